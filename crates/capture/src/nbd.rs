//! A client of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md), of our own.
//!
//! Fixed newstyle negotiation, structured replies and the `base:allocation` context where the server has them, several
//! connections where it says that they are coherent, and many requests in flight on each. The server is not trusted:
//! every length is checked before anything is allocated or read, a reply must fill its buffer exactly once, and a
//! server that stalls is given up after a time. No TLS yet.

mod connection;
mod disk;
pub mod handshake;
pub mod reply;
mod stream;
pub mod uri;

use std::io;
use std::sync::Arc;

pub use disk::{NbdDisk, NbdOptions};
pub use uri::NbdUri;

/// Numbers of the protocol, as its document names them.
pub mod number {
    #![expect(missing_docs, reason = "the protocol's document describes them")]

    pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
    pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
    pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
    pub const REQUEST_MAGIC: u32 = 0x2560_9513;
    pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
    pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

    pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
    pub const FLAG_NO_ZEROES: u16 = 2;

    pub const OPTION_EXPORT_NAME: u32 = 1;
    pub const OPTION_GO: u32 = 7;
    pub const OPTION_STRUCTURED_REPLY: u32 = 8;
    pub const OPTION_SET_META_CONTEXT: u32 = 10;

    pub const REPLY_ACK: u32 = 1;
    pub const REPLY_INFO: u32 = 3;
    pub const REPLY_META_CONTEXT: u32 = 4;
    pub const REPLY_ERROR: u32 = 1 << 31;
    pub const REPLY_ERROR_UNSUPPORTED: u32 = REPLY_ERROR + 1;
    pub const REPLY_ERROR_POLICY: u32 = REPLY_ERROR + 2;
    pub const REPLY_ERROR_TLS_REQUIRED: u32 = REPLY_ERROR + 5;
    pub const REPLY_ERROR_UNKNOWN: u32 = REPLY_ERROR + 6;
    pub const REPLY_ERROR_BLOCK_SIZE_REQUIRED: u32 = REPLY_ERROR + 8;

    pub const INFO_EXPORT: u16 = 0;
    pub const INFO_BLOCK_SIZE: u16 = 3;

    pub const EXPORT_READ_ONLY: u16 = 1 << 1;
    pub const EXPORT_SEND_FLUSH: u16 = 1 << 2;
    pub const EXPORT_SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const EXPORT_CAN_MULTI_CONN: u16 = 1 << 8;

    pub const COMMAND_READ: u16 = 0;
    pub const COMMAND_WRITE: u16 = 1;
    pub const COMMAND_DISCONNECT: u16 = 2;
    pub const COMMAND_FLUSH: u16 = 3;
    pub const COMMAND_WRITE_ZEROES: u16 = 6;
    pub const COMMAND_BLOCK_STATUS: u16 = 7;

    pub const CHUNK_DONE: u16 = 1;
    pub const CHUNK_NONE: u16 = 0;
    pub const CHUNK_OFFSET_DATA: u16 = 1;
    pub const CHUNK_OFFSET_HOLE: u16 = 2;
    pub const CHUNK_BLOCK_STATUS: u16 = 5;
    pub const CHUNK_ERROR: u16 = 1 << 15;
    pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR + 2;

    pub const STATE_ZERO: u32 = 2;
}

/// Talking to an NBD server failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdError {
    /// Nobody answers there.
    #[error("could not connect to the NBD server at {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It answered something that is not NBD, or not the kind that is supported.
    #[error("not a usable NBD server: {0}")]
    Unusable(&'static str),
    /// There is no such export.
    #[error("the NBD server has no export named {name:?}{}", quoted(message))]
    NoSuchExport {
        /// The name that was asked for.
        name: String,
        /// What the server says.
        message: String,
    },
    /// The server refuses.
    #[error("the NBD server refuses: {reason}{}", quoted(message))]
    Refused {
        /// What its answer means.
        reason: &'static str,
        /// What the server says.
        message: String,
    },
    /// The export cannot be written.
    #[error("the NBD export is read-only")]
    ReadOnly,
    /// The server failed one request.
    #[error("the NBD server could not {command} {length} bytes at {offset}{}", quoted(message))]
    Request {
        /// What was asked, as a verb.
        command: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How long, in bytes.
        length: u64,
        /// What the server says.
        message: String,
        /// The error number that the server gave.
        #[source]
        source: io::Error,
    },
    /// The connection is lost.
    #[error("the connection to the NBD server is lost: {0}")]
    Lost(Lost),
    /// The server did not answer in time.
    #[error("the NBD server has not answered for {seconds} seconds")]
    Stalled {
        /// How long was waited.
        seconds: u64,
    },
}

/// Why a connection was given up.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Lost {
    /// The server closed it.
    #[error("closed by the server")]
    Closed,
    /// It could not be read or written.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// The server sent what the protocol does not allow.
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl From<Lost> for NbdError {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

fn quoted(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" (it says {message:?})") }
}

/// The operating system's error for a number of the protocol, which are Linux's.
fn error_of(number: u32) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(number).unwrap_or(22))
}

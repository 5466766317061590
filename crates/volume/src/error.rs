//! Why work on volumes as a whole failed; requests to a disk fail with [`DeviceError`].

use std::path::PathBuf;

use store::{FetchError, StoreError};
use types::{ByteSize, Cancelled, FrozenId, Name, VolumeId};

use crate::DeviceError;

/// Work on volumes failed. Nothing that was acknowledged before is lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The name is taken.
    #[error("a volume named {0} exists already")]
    Exists(Name),
    /// There is no such volume, or it was removed meanwhile.
    #[error("there is no volume named {0}")]
    NotFound(Name),
    /// There is no such frozen disk, or it was forgotten meanwhile.
    #[error("there is no frozen disk {0}")]
    UnknownFrozen(FrozenId),
    /// There is no such deleted volume: it was taken back, or is gone for good.
    #[error("there is no deleted volume {0}")]
    UnknownDeleted(VolumeId),
    /// Nothing is kept of the volume's past.
    #[error("nothing is kept of the past of volume {0}")]
    NotProtected(Name),
    /// A moment of which nothing is kept.
    #[error("that moment is not kept")]
    OutsideWindow {
        /// The earliest that is, in milliseconds since 1970.
        from_ms: u64,
        /// The latest.
        to_ms: u64,
    },
    /// A disk cannot have this size.
    #[error("a disk cannot have {0} bytes: it has whole sectors of 512 bytes, at least one, and at most 64 TiB")]
    Size(u64),
    /// Disks do not shrink.
    #[error("a volume of {} cannot shrink to {}", ByteSize(*.size_bytes), ByteSize(*.wanted_bytes))]
    Shrinks {
        /// What it has, in bytes.
        size_bytes: u64,
        /// What was asked for, in bytes.
        wanted_bytes: u64,
    },
    /// A clone is at least as large as what it begins as.
    #[error("a disk of {size_bytes} bytes does not fit into a volume of {wanted_bytes}")]
    TooSmall {
        /// What the disk has, in bytes.
        size_bytes: u64,
        /// What was asked for, in bytes.
        wanted_bytes: u64,
    },
    /// One volume was named twice where each is meant once.
    #[error("volume {0} is named twice")]
    Repeated(Name),
    /// A root record cannot be understood.
    #[error("could not understand the record {name}")]
    Record {
        /// The record's name.
        name: String,
        /// Why.
        #[source]
        source: format::CanonicalError,
    },
    /// A root record, or a journal, contradicts itself or others.
    #[error("the record {name} cannot be: {what}")]
    Contradiction {
        /// The record's name.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A later version of brant wrote it.
    #[error("{path} needs a newer brant: version {version}")]
    Newer {
        /// The file or record.
        path: PathBuf,
        /// Its version.
        version: u8,
    },
    /// A frozen journal is not what was written.
    #[error("the journal {path} is damaged")]
    Damaged {
        /// The journal.
        path: PathBuf,
    },
    /// An operation on a file failed.
    #[error("could not {operation} {path}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The system gave no random numbers.
    #[error("could not get random numbers")]
    Random(#[source] getrandom::Error),
    /// A request to one of the disks failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is not here will not come.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// A disk's tree is damaged.
    #[error("damaged disk tree")]
    Tree(#[source] format::NodeError),
    /// The work was cancelled; it can be started again.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

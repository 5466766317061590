//! NBD: the network block device protocol over unix sockets and TCP.
//!
//! The server speaks fixed newstyle with structured replies and TLS (not extended headers); see "NBD exports" in
//! docs/protocol.md. [`protocol`] and [`option`] are the wire, `negotiation` the handshake, `connection` the loop of
//! receive, serve and send, `ahead` what that sees of the next requests, `transmission` what each request does, `wait` what becomes of reads whose data are
//! elsewhere, `server` the threads around it all, `direct` connections without a handshake, `tls` and `session` its encryption, `suspend` and [`state`] how another process goes on with it.

mod ahead;
mod connection;
pub mod context;
mod direct;
mod input;
mod link;
mod listen;
mod negotiation;
pub mod option;
pub mod protocol;
pub mod refusal;
mod reply;
mod server;
mod session;
pub mod state;
mod suspend;
mod tls;
mod transmission;
pub(crate) mod wait;

pub use direct::Direct;
pub use listen::{Listen, Reservation};
pub use server::{ExportError, NbdOptions, NbdServer};
pub use suspend::Suspended;
pub use tls::{Tls, TlsError};

//! Buckets: their keys, their signed logs, who may read them, and the signed statements around them.
//!
//! A bucket's history is a hash-chained log of signed entries (`format::entry`). A [`Log`] holds only entries that
//! were verified: signature, place in the chain, the author's right to write, and the rules of the action. Nothing
//! here knows the network; time is an argument. Files are touched only by [`Signer`] (keys) and [`LogFile`] (logs).

pub mod certificate;
pub mod fork;
pub mod head;
pub mod log;
pub mod log_file;
pub mod rebase;
pub mod signer;
pub mod state;
pub mod statement;

pub use certificate::{Certificate, SignedCertificate};
pub use fork::{ForkEvidence, Merged};
pub use head::{Head, HeadOrder, HeadStatement, SignedHead};
pub use log::{Log, LogError};
pub use log_file::{LogFile, LogFileError};
pub use rebase::{Rebased, Renumbered};
pub use signer::{Signer, SignerError, is_signed_by};
pub use state::Version;
pub use statement::{Signed, Statement, StatementError};

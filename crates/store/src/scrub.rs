//! Scrub: reading everything that is stored again, to find what is damaged before it is needed.

use types::Cancelled;

use crate::{Key, StoreError};

/// How a store is scrubbed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubOptions {
    /// How many bytes may be read per second; no limit where none is given.
    pub rate_bytes_per_second: Option<u64>,
    /// Up to where everything was read by the scrub before, as it has told: it goes on from there.
    pub after: u32,
}

/// What a scrub tells on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrubbed {
    /// An object was found damaged. It is not present any more; its bytes are kept aside.
    Damaged(Key),
    /// Everything up to here was read; a later scrub can go on from here.
    UpTo(u32),
}

/// What a scrub found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Objects that were read and are what they are named by.
    pub objects: u64,
    /// Their length as stored, in bytes.
    pub bytes: u64,
    /// Objects that were found damaged.
    pub damaged: u64,
}

/// A scrub could not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScrubError {
    /// It was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// This store cannot be scrubbed.
    #[error("this store cannot be scrubbed")]
    Unsupported,
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

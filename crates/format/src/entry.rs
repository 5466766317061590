//! Entries of a bucket's log: signed, numbered, and chained by hash.
//!
//! The bytes that were signed are the bytes that are kept and sent. This module encodes and decodes; signatures and
//! the rules of who may write what are checked by the `bucket` crate.

use minicbor::{Decode, Encode};
pub use types::PublicKey;
use types::{BucketId, EndpointId, EntryHash, Name, SnapshotId};

use crate::canonical::{CanonicalError, from_canonical, to_canonical};
use crate::hash::entry_hash;

/// The version of entries that is written.
pub const VERSION: u16 = 1;

/// The longest entry, in bytes, signature included.
pub const MAX_ENTRY_BYTES: usize = 64 << 10;

/// What precedes an entry's bytes when they are signed, so that a signature for one purpose serves no other.
pub const SIGNATURE_CONTEXT: &[u8] = b"brant 2026-11 log entry v1\0";

/// One step in a bucket's history.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// The version of this format.
    #[n(0)]
    pub version: u16,
    /// The bucket whose log this is.
    #[n(1)]
    pub bucket: BucketId,
    /// The entry's number, from 0.
    #[n(2)]
    pub sequence: u64,
    /// The hash of the entry before; `None` only for the first.
    #[n(3)]
    pub previous: Option<EntryHash>,
    /// When it was written, in milliseconds since 1970, by the writer's clock.
    #[n(4)]
    pub time_ms: u64,
    /// The key that signs it.
    #[n(5)]
    pub author: PublicKey,
    /// What it does.
    #[n(6)]
    pub action: Action,
}

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Action {
    /// Begins the log; signed by the bucket's own key.
    #[n(0)]
    Create,
    /// Adds a version of an object.
    #[n(1)]
    Put {
        /// The object.
        #[n(0)]
        object: Name,
        /// The version, from 1, one more than the object's last.
        #[n(1)]
        version: u64,
        /// The snapshot.
        #[n(2)]
        snapshot: SnapshotId,
        /// The sum of its disks' sizes, in bytes, for listings.
        #[n(3)]
        size_bytes: u64,
        /// A note.
        #[n(4)]
        message: String,
    },
    /// Withdraws a version: it stays in the history, but is no longer offered.
    #[n(2)]
    Retire {
        /// The object.
        #[n(0)]
        object: Name,
        /// The version.
        #[n(1)]
        version: u64,
    },
    /// Lets someone read the bucket.
    #[n(3)]
    Grant {
        /// Who.
        #[n(0)]
        reader: Reader,
    },
    /// Takes a grant back.
    #[n(4)]
    Revoke {
        /// Who.
        #[n(0)]
        reader: Reader,
    },
    /// Lets another key write the log.
    #[n(5)]
    AddWriter {
        /// The key.
        #[n(0)]
        writer: PublicKey,
    },
    /// Takes that back.
    #[n(6)]
    RemoveWriter {
        /// The key.
        #[n(0)]
        writer: PublicKey,
    },
    /// Says that a publisher now holds all of a version.
    #[n(7)]
    Complete {
        /// The object.
        #[n(0)]
        object: Name,
        /// The version.
        #[n(1)]
        version: u64,
    },
}

/// Who may read a bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Reader {
    /// Everyone.
    #[n(0)]
    Everyone,
    /// One node.
    #[n(1)]
    Endpoint {
        /// The node.
        #[n(0)]
        endpoint: EndpointId,
    },
    /// All nodes that an Indexer certifies to belong to an account.
    #[n(2)]
    Account {
        /// The key that the Indexer certifies with.
        #[n(0)]
        indexer: PublicKey,
        /// The account there.
        #[n(1)]
        account: Name,
    },
}

/// An entry as it is kept and sent: the signed bytes and the signature.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SignedEntry {
    /// The canonical encoding of an [`Entry`].
    #[cbor(n(0), with = "minicbor::bytes")]
    pub entry: Vec<u8>,
    /// The author's signature over [`SIGNATURE_CONTEXT`] and these bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: [u8; 64],
}

/// Bytes were not an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Not the encoding of one.
    #[error(transparent)]
    Encoding(#[from] CanonicalError),
    /// Made by a later version of brant.
    #[error("log entry version {0} is newer than this brant understands")]
    Newer(u16),
    /// The first entry has a predecessor, or another one has none.
    #[error("a log entry that does not fit its place")]
    Misplaced,
}

impl Entry {
    /// Encodes the entry.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        to_canonical(self)
    }

    /// Decodes an entry; any bytes may be given.
    ///
    /// # Errors
    /// Everything that [`Entry::encode`] would not have written for an entry that can be.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let mut head = minicbor::Decoder::new(bytes);
        if let (Ok(Some(_)), Ok(version)) = (head.array(), head.u16())
            && version > VERSION
        {
            return Err(EntryError::Newer(version));
        }
        let entry: Self = from_canonical(bytes, MAX_ENTRY_BYTES)?;
        let first = entry.sequence == 0;
        if entry.version != VERSION || entry.previous.is_none() != first || (entry.action == Action::Create) != first {
            return Err(EntryError::Misplaced);
        }
        Ok(entry)
    }
}

impl SignedEntry {
    /// The entry's hash, which its successor names.
    #[must_use]
    pub fn hash(&self) -> EntryHash {
        entry_hash(&self.entry)
    }

    /// Encodes entry and signature together, for files and the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        to_canonical(self)
    }

    /// Decodes entry and signature; neither is checked yet.
    ///
    /// # Errors
    /// Bytes that are too long or not canonical.
    pub fn decode(bytes: &[u8]) -> Result<Self, CanonicalError> {
        from_canonical(bytes, MAX_ENTRY_BYTES)
    }
}

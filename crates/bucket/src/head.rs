//! Heads: the newest entry of a log, how two compare, and an Indexer's short-lived word for which is current.

use minicbor::{Decode, Encode};
use types::{BucketId, EntryHash, PublicKey};

use crate::signer::Signer;
use crate::statement::{Signed, Statement};

/// The newest entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number, from 0.
    pub sequence: u64,
    /// Its hash.
    pub hash: EntryHash,
}

/// How a head that someone offers relates to a log that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadOrder {
    /// It is the log's head.
    Same,
    /// It is the hash of an earlier entry: someone is behind, or replays an old head.
    Older,
    /// It is beyond the log: the entries between are needed to judge it.
    Newer,
    /// It names another entry at a place that the log knows: there is a fork.
    Diverged,
}

/// An Indexer's word for a bucket's current head.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HeadStatement {
    /// The version of this format.
    #[n(0)]
    pub version: u16,
    /// The Indexer's key, which signs.
    #[n(1)]
    pub indexer: PublicKey,
    /// The bucket.
    #[n(2)]
    pub bucket: BucketId,
    /// The number of its newest entry.
    #[n(3)]
    pub sequence: u64,
    /// The hash of its newest entry.
    #[n(4)]
    pub head: EntryHash,
    /// Until when it holds, in milliseconds since 1970.
    #[n(5)]
    pub expires_ms: u64,
}

/// A head statement as it is sent.
pub type SignedHead = Signed<HeadStatement>;

impl Statement for HeadStatement {
    const CONTEXT: &'static [u8] = b"brant 2026-11 log head v1\0";
    const KIND: &'static str = "head statement";

    fn version(&self) -> u16 {
        self.version
    }

    fn author(&self) -> PublicKey {
        self.indexer
    }

    fn expires_ms(&self) -> Option<u64> {
        Some(self.expires_ms)
    }
}

impl HeadStatement {
    /// The head that it vouches for.
    #[must_use]
    pub const fn head(&self) -> Head {
        Head { sequence: self.sequence, hash: self.head }
    }
}

impl Signed<HeadStatement> {
    /// Vouches, with the Indexer's key, for a bucket's head until `expires_ms`.
    #[must_use]
    pub fn attest(indexer: &Signer, bucket: BucketId, head: Head, expires_ms: u64) -> Self {
        let Head { sequence, hash } = head;
        let (version, indexer_key) = (HeadStatement::VERSION, indexer.public_key());
        let statement = HeadStatement { version, indexer: indexer_key, bucket, sequence, head: hash, expires_ms };
        Self::sign(indexer, &statement)
    }
}

//! Announcements: an endpoint's signed word that it provides snapshots of a reference for a while.
//!
//! The signature keeps an account from announcing endpoints that are not its own; the Indexer's key, the reference and
//! the expiry in it keep it from being used elsewhere or later.

use bucket::{Signed, Statement};
use minicbor::{Decode, Encode};
use types::{EndpointId, Name, PublicKey, SnapshotId};

/// The most snapshots in one announcement.
pub const MAX_SNAPSHOTS: usize = 1000;

/// What an endpoint provides of one snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Announced {
    /// The snapshot.
    #[n(0)]
    pub snapshot: SnapshotId,
    /// Whether it holds all of it.
    #[n(1)]
    pub complete: bool,
}

/// That an endpoint provides snapshots of a reference.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Announcement {
    /// The version of this format.
    #[n(0)]
    pub version: u16,
    /// The endpoint, which signs.
    #[n(1)]
    pub endpoint: EndpointId,
    /// The key of the Indexer that it is said to.
    #[n(2)]
    pub indexer: PublicKey,
    /// The account of the reference.
    #[n(3)]
    pub account: Name,
    /// The name of the reference.
    #[n(4)]
    pub name: Name,
    /// What it provides, at most [`MAX_SNAPSHOTS`].
    #[n(5)]
    pub snapshots: Vec<Announced>,
    /// How long it holds from when the Indexer hears it, in seconds; 0 takes it back.
    #[n(6)]
    pub ttl_s: u64,
    /// Until when the Indexer may hear it, in milliseconds since 1970.
    #[n(7)]
    pub expires_ms: u64,
}

/// An announcement as it is sent.
pub type SignedAnnouncement = Signed<Announcement>;

impl Statement for Announcement {
    const CONTEXT: &'static [u8] = b"brant 2026-11 announcement v1\0";
    const KIND: &'static str = "announcement";

    fn version(&self) -> u16 {
        self.version
    }

    fn author(&self) -> PublicKey {
        PublicKey(self.endpoint.0)
    }

    fn expires_ms(&self) -> Option<u64> {
        Some(self.expires_ms)
    }
}

//! Counts what moves: by direction, urgency and peer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use store::Urgency;
use types::EndpointId;

/// What moved in one direction, for one urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests made or answered.
    pub requests: u64,
    /// Chunks, nodes and manifests.
    pub objects: u64,
    /// Their bytes as they went over the wire.
    pub payload_bytes: u64,
    /// All bytes of requests and replies, without what encryption and transport add.
    pub message_bytes: u64,
}

impl Traffic {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.objects += other.objects;
        self.payload_bytes += other.payload_bytes;
        self.message_bytes += other.message_bytes;
    }
}

/// What moved between us and one peer, or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStatistics {
    /// What we asked for because someone waited.
    pub fetched_lazy: Traffic,
    /// What we asked for in bulk.
    pub fetched_bulk: Traffic,
    /// What we served to those who said that someone waits.
    pub served_lazy: Traffic,
    /// What we served in bulk.
    pub served_bulk: Traffic,
    /// Objects that did not have the hash they were asked for by.
    pub bad_objects: u64,
}

impl PeerStatistics {
    fn add(&mut self, other: &Self) {
        self.fetched_lazy.add(&other.fetched_lazy);
        self.fetched_bulk.add(&other.fetched_bulk);
        self.served_lazy.add(&other.served_lazy);
        self.served_bulk.add(&other.served_bulk);
        self.bad_objects += other.bad_objects;
    }

    pub(crate) fn fetched(&mut self, urgency: Urgency) -> &mut Traffic {
        match urgency {
            Urgency::Lazy => &mut self.fetched_lazy,
            Urgency::Bulk => &mut self.fetched_bulk,
        }
    }

    pub(crate) fn served(&mut self, urgency: Urgency) -> &mut Traffic {
        match urgency {
            Urgency::Lazy => &mut self.served_lazy,
            Urgency::Bulk => &mut self.served_bulk,
        }
    }

    /// All payload bytes that came from the peer.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_lazy.payload_bytes + self.fetched_bulk.payload_bytes
    }

    /// All payload bytes that went to the peer.
    #[must_use]
    pub fn served_bytes(&self) -> u64 {
        self.served_lazy.payload_bytes + self.served_bulk.payload_bytes
    }
}

/// What moved since the swarm started.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SwarmStatistics {
    /// With all peers together.
    pub total: PeerStatistics,
    /// With each of the peers dealt with, up to a limit.
    pub peers: BTreeMap<EndpointId, PeerStatistics>,
    /// Peers that are connected to us, or we to them.
    pub connected_peers: usize,
}

/// How many peers are counted on their own.
const MAX_PEERS: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Statistics {
    peers: Mutex<BTreeMap<EndpointId, PeerStatistics>>,
}

/// Under which those are counted that are too many.
const OTHERS: EndpointId = EndpointId([0; 32]);

impl Statistics {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<EndpointId, PeerStatistics>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self, peer: EndpointId, count: impl FnOnce(&mut PeerStatistics)) {
        let mut peers = self.lock();
        let name = if peers.len() < MAX_PEERS || peers.contains_key(&peer) { peer } else { OTHERS };
        count(peers.entry(name).or_default());
    }

    pub(crate) fn snapshot(&self, connected_peers: usize) -> SwarmStatistics {
        let peers = self.lock().clone();
        let mut total = PeerStatistics::default();
        peers.values().for_each(|peer| total.add(peer));
        SwarmStatistics { total, peers, connected_peers }
    }
}

//! What can be set: limits, and how long things may take.

use std::net::SocketAddr;
use std::time::Duration;

/// How a swarm is set up. Make one with [`SwarmOptions::new`] and change what is needed.
#[derive(Clone)]
#[non_exhaustive]
pub struct SwarmOptions {
    /// The endpoint's secret key; its public half is the endpoint's id.
    pub secret_key: [u8; 32],
    /// Where to listen; on all IPv4 addresses and a free port where empty.
    pub bind: Vec<SocketAddr>,
    /// Bulk bytes in flight from each peer to begin with; steered by delay from there. They set how long a lazy read
    /// waits behind bulk data on a slow link.
    pub bulk_in_flight_bytes: u64,
    /// The most bulk bytes in flight from each peer.
    pub max_bulk_in_flight_bytes: u64,
    /// The most peers that may be connected to us at once.
    pub max_peers: usize,
    /// The most bytes that are read from the store and not yet sent, to all peers together.
    pub serving_bytes: u32,
    /// How long things may take.
    pub timing: Timing,
}

impl std::fmt::Debug for SwarmOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwarmOptions").field("bind", &self.bind).field("timing", &self.timing).finish_non_exhaustive()
    }
}

impl SwarmOptions {
    /// The defaults, with a secret key.
    #[must_use]
    pub fn new(secret_key: [u8; 32]) -> Self {
        Self {
            secret_key,
            bind: Vec::new(),
            bulk_in_flight_bytes: 512 << 10,
            max_bulk_in_flight_bytes: 16 << 20,
            max_peers: 256,
            serving_bytes: 64 << 20,
            timing: Timing::default(),
        }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Timing {
    /// To connect to a peer.
    pub connect: Duration,
    /// Without any progress of a lazy request, before it is asked elsewhere.
    pub lazy_stall: Duration,
    /// Without any progress of a bulk request, before it is asked elsewhere.
    pub bulk_stall: Duration,
    /// Before a lazy wait for something that is already coming in bulk is asked for on its own.
    pub overtake: Duration,
    /// Before a peer that failed, or did not have something, is asked again for the first time.
    pub first_retry: Duration,
    /// Before a peer that keeps failing is asked again.
    pub longest_retry: Duration,
    /// Before a peer that sent wrong bytes is asked again.
    pub ban: Duration,
    /// Before providers that are in use are looked up again.
    pub refresh: Duration,
    /// How long a provider lets an asker wait while it fetches through what it has not itself.
    pub fetch_through: Duration,
    /// Without any progress in sending a reply, before a provider gives it up.
    pub send_stall: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(4),
            lazy_stall: Duration::from_secs(4),
            bulk_stall: Duration::from_secs(10),
            overtake: Duration::from_millis(30),
            first_retry: Duration::from_millis(250),
            longest_retry: Duration::from_secs(10),
            ban: Duration::from_secs(600),
            refresh: Duration::from_secs(30),
            fetch_through: Duration::from_secs(2),
            send_stall: Duration::from_secs(30),
        }
    }
}

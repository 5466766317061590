//! What all requests share.

use bucket::Signer;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::limit::{Counters, Limits, Rates};
use super::logs::LogCache;
use crate::clock::Clock;
use crate::db::Db;

/// How many changes a slow event stream may lag behind before it asks the database instead.
const CHANGES: usize = 256;

/// That a reference has another head, or is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Changed {
    pub(crate) reference_id: i64,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) db: Db,
    pub(crate) signer: Signer,
    pub(crate) name: String,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) rates: Rates,
    pub(crate) connections: Counters,
    pub(crate) streams: Counters,
    pub(crate) logs: LogCache,
    pub(crate) changed: broadcast::Sender<Changed>,
    /// Changes that go on when the client that asked for them is gone.
    pub(crate) changes: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl State {
    pub(crate) fn new(
        db: Db,
        signer: Signer,
        name: String,
        limits: Limits,
        clock: Clock,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            db,
            signer,
            name,
            rates: Rates::new(limits.requests_per_second, limits.request_burst),
            connections: Counters::new(limits.connections, limits.connections_per_address),
            streams: Counters::new(limits.streams, limits.streams_per_caller),
            limits,
            clock,
            logs: LogCache::default(),
            changed: broadcast::Sender::new(CHANGES),
            changes: TaskTracker::new(),
            shutdown,
        }
    }

    /// Wakes the event streams of a reference.
    pub(crate) fn notify(&self, reference_id: i64) {
        // Nobody may be listening.
        let _listeners = self.changed.send(Changed { reference_id });
    }

    /// Until when something holds that is said now, in milliseconds since 1970.
    pub(crate) fn valid_until(&self, validity_ms: u64) -> u64 {
        self.clock.now_ms().saturating_add(validity_ms)
    }
}

//! Which snapshots peers have been reading lately: a schedule does not withdraw those.
//!
//! It is known in memory only. So for a while after the node's start nothing is known, and everything may be read.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use types::SnapshotId;
use volume::Clock;

/// For how long a snapshot counts as being read, after something of it was asked for, in milliseconds.
const READING_MS: u64 = 24 * 3_600_000;

/// For how long after the node's start any may be read: whoever waits for data asks again within seconds.
const UNKNOWN_MS: u64 = 3_600_000;

/// How many are remembered before those are forgotten that are read no more.
const MANY: usize = 1024;

/// What peers read.
#[derive(Debug)]
pub(crate) struct Readers {
    clock: Clock,
    since_ms: u64,
    asked_ms: Mutex<BTreeMap<SnapshotId, u64>>,
}

impl Readers {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { since_ms: clock.now_ms(), clock, asked_ms: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SnapshotId, u64>> {
        self.asked_ms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a peer was let read something of a snapshot.
    pub(crate) fn note(&self, snapshot: SnapshotId) {
        let now_ms = self.clock.now_ms();
        let mut asked_ms = self.lock();
        if asked_ms.len() >= MANY && !asked_ms.contains_key(&snapshot) {
            asked_ms.retain(|_, ms| now_ms.abs_diff(*ms) < READING_MS);
        }
        asked_ms.insert(snapshot, now_ms);
    }

    /// Whether a peer may be reading a snapshot.
    pub(crate) fn may_be_reading(&self, snapshot: &SnapshotId) -> bool {
        let now_ms = self.clock.now_ms();
        // A clock that was put back says nothing, either.
        now_ms.abs_diff(self.since_ms) < UNKNOWN_MS
            || self.lock().get(snapshot).is_some_and(|ms| now_ms.abs_diff(*ms) < READING_MS)
    }
}

//! The planned end of a home's process: the line is brought to a stand, from which the next process goes on.
//!
//! Invariant: a line is gone on with only where the volume is what it was when the line stood, and the replica has said that it stands there, too;
//! before it has, no change begins. Whoever records a [`Standing`] takes it back, durably, before a change may begin.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use volume::{BlockDevice as _, Position, Volume};

use super::{Mirror, MirrorError, MirrorHost, State, bare};
use crate::frame::Operation;
use crate::line::Line;
use crate::message::Terms;

/// Where a volume and its replica are the same, durably at both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The line of changes.
    pub line: u64,
    /// The number of its last change, which the replica has.
    pub last: u64,
    /// How far the volume has been written.
    pub position: Position,
    /// The volume's size, in bytes.
    pub size_bytes: u64,
}

impl Standing {
    fn is_of(&self, volume: &Volume) -> bool {
        (self.position, self.size_bytes) == (volume.position(), volume.size_bytes())
    }
}

impl Mirror {
    /// Goes on with a volume's replica as it was recorded. It is where an earlier process has left it, if the volume is, too; what was
    /// recorded of that must have been taken back by now, and nobody may have changed the volume. Otherwise the replica is made anew.
    #[must_use]
    pub fn begin(volume: &Volume, terms: Terms, current: bool, left: Option<Standing>) -> Arc<Self> {
        let name = volume.name().clone();
        let Some(Standing { line, last, .. }) = left.filter(|left| current && left.is_of(volume)) else {
            return Self::new(name, terms, current);
        };
        let (line, resuming) = (Some(Line::new(line, last)), Some(last));
        Self::with(name, terms, State { current, line, last, told: last, resuming, ..State::default() })
    }

    /// Whether the member is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.state().connected
    }

    /// Lets no further change begin, until [`Mirror::release`], and has the replica make durable what has begun.
    pub fn hold(&self) {
        let mut state = self.state();
        state.held = true;
        self.enter(&mut state, bare(Operation::Flush, 0));
    }

    /// Lets changes begin again.
    pub fn release(&self) {
        self.state().held = false;
        self.moved.notify_all();
    }

    /// Has the replica make durable what was changed so far. Waits for that, but not for one that does not answer. Blocks.
    pub fn catch_up(&self, until: Instant) {
        let mut state = self.state();
        let number = self.enter(&mut state, bare(Operation::Flush, 0));
        while state.connected && !state.closed && state.line.as_ref().is_some_and(|line| !line.has(number)) {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the volume and its replica are the same, and says where. Nothing where the replica is not current or does not answer, or
    /// where it takes too long, as it does while the volume is changed. Blocks.
    #[must_use]
    pub fn stand(&self, volume: &Volume, until: Instant) -> Option<Standing> {
        loop {
            let (position, size_bytes) = (volume.position(), volume.size_bytes());
            let (line, last) = self.settle(until)?;
            // A loss of power must not take any of it: the journal could have come as far without some records before.
            if let Err(error) = volume.sync() {
                tracing::warn!(volume = %self.volume, %error, "what the replica has cannot be made durable here");
                return None;
            }
            // What is in the journal is in the line: they were looked at around it, and nothing has come between.
            let standing = Standing { line, last, position, size_bytes };
            if standing.is_of(volume) {
                return Some(standing);
            }
        }
    }

    /// Waits until the replica has everything in the line, durably, and knows that it is current: the line, and its last change.
    fn settle(&self, until: Instant) -> Option<(u64, u64)> {
        let mut state = self.state();
        loop {
            let left = until.checked_duration_since(Instant::now())?;
            if state.closed || !state.current || !state.connected || state.resuming.is_some() {
                return None;
            }
            let (told, line) = (state.told, state.line.as_ref()?);
            if line.is_settled() && line.is_consistent() && line.has(told) {
                return Some((line.id, line.last()));
            }
            if !line.is_flushing() {
                self.enter(&mut state, bare(Operation::Flush, 0));
            }
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Goes on with a line that an earlier process has left, if it is one: the replica says how far it has come on it.
    pub(super) fn resume(&self, host: &dyn MirrorHost, applied: Option<u64>) -> Result<(), MirrorError> {
        let Some(left) = self.state().resuming else { return Ok(()) };
        if applied != Some(left) {
            let mut state = self.state();
            // It still counts as current, and nothing begins before it has recorded that it is not.
            (state.line, state.resuming) = (None, None);
            return Err(MirrorError::Parted);
        }
        // Whatever was set when nobody could tell.
        let told = self.tell_settings(|| host.settings()).map_err(MirrorError::Record)?;
        let mut state = self.state();
        (state.told, state.resuming) = (told, None);
        drop(state);
        self.moved.notify_all();
        tracing::info!(volume = %self.volume, "a replica goes on where it was");
        Ok(())
    }
}

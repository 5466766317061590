//! Progress of long work, shared between the one who does it and those who watch or cancel it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The work was cancelled by whoever watches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// How far a piece of work has come, in bytes, and whether it shall stop.
#[derive(Debug, Default)]
pub struct Progress {
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Sets how many bytes there are to do in all.
    pub fn set_total_bytes(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Adds bytes to what is done, of which `moved` had to be stored or transferred.
    pub fn advance(&self, done: u64, moved: u64) {
        self.done_bytes.fetch_add(done, Ordering::Relaxed);
        self.moved_bytes.fetch_add(moved, Ordering::Relaxed);
    }

    /// Bytes to do in all; zero while unknown.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Bytes done.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that had to be stored or transferred, as stored.
    #[must_use]
    pub fn moved_bytes(&self) -> u64 {
        self.moved_bytes.load(Ordering::Relaxed)
    }

    /// Asks the work to stop at its next safe point.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the work was asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Returns an error once the work was asked to stop, for use with `?` at safe points.
    ///
    /// # Errors
    /// [`Cancelled`] after [`Progress::cancel`].
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.is_cancelled() { Err(Cancelled) } else { Ok(()) }
    }
}

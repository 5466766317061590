//! What the thread of a device is told to do.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

const RUN: u8 = 0;
const FAIL: u8 = 1;
const STOP: u8 = 2;

/// The orders.
#[derive(Debug)]
pub(super) struct Orders {
    order: AtomicU8,
    /// Until when reads of what is elsewhere may wait, where that is bounded for all of them.
    deadline: Mutex<Option<Instant>>,
    event: Arc<OwnedFd>,
}

impl Orders {
    pub(super) fn new() -> io::Result<Arc<Orders>> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Arc::new(Orders { order: AtomicU8::new(RUN), deadline: Mutex::default(), event }))
    }

    /// By what the thread is woken.
    pub(super) fn event(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.event)
    }

    pub(super) fn wake(&self) {
        // It fails where the counter is full, and so the thread was woken.
        let _ = rustix::io::write(&*self.event, &1_u64.to_le_bytes());
    }

    /// Fails what waits, and what is asked from now on.
    pub(super) fn fail(&self) {
        self.order.fetch_max(FAIL, Ordering::AcqRel);
        self.wake();
    }

    pub(super) fn fails(&self) -> bool {
        self.order.load(Ordering::Acquire) == FAIL
    }

    /// Ends after the request in hand; what waits is given up, without an answer.
    pub(super) fn stop(&self) {
        self.order.fetch_max(STOP, Ordering::AcqRel);
        self.wake();
    }

    pub(super) fn is_to_stop(&self) -> bool {
        self.order.load(Ordering::Acquire) == STOP
    }

    /// Has reads that begin from now on fail where what they read is not here by then.
    pub(super) fn hurry(&self, deadline: Option<Instant>) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
    }

    /// How long a read that begins now may wait, where that is bounded for all of them.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let deadline = *self.deadline.lock().unwrap_or_else(PoisonError::into_inner);
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

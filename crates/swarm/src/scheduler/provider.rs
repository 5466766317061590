//! What is known of one provider: whether it may be asked, how fast it answers, what it has in flight.

use std::time::Duration;

use store::{Kind, Urgency};

use super::Moment;
use super::window::Window;
use crate::options::Timing;

/// What a provider that was never asked is taken to need for an answer.
const UNKNOWN_LATENCY: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(super) struct Provider {
    /// Not asked before, after failures or when it is busy.
    rests_until: Moment,
    /// Not asked before, after it sent wrong bytes.
    banned_until: Moment,
    failures: u32,
    /// How long lazy requests took to be answered lately.
    latency: Option<Duration>,
    lazy_requests: usize,
    bulk_requests: usize,
    window: Window,
    /// How long chunks are on the wire, lately.
    chunk_bytes: u64,
}

impl Provider {
    pub(super) fn new(bulk_bytes: (u64, u64)) -> Self {
        Self {
            rests_until: Moment::ZERO,
            banned_until: Moment::ZERO,
            failures: 0,
            latency: None,
            lazy_requests: 0,
            bulk_requests: 0,
            window: Window::new(bulk_bytes),
            chunk_bytes: types::CHUNK_BYTES as u64 / 2,
        }
    }

    /// When it may be asked.
    pub(super) fn rests_until(&self) -> Moment {
        self.rests_until.max(self.banned_until)
    }

    /// Asks it nothing until then, whatever happens.
    pub(super) fn ban(&mut self, until: Moment) {
        self.banned_until = self.banned_until.max(until);
    }

    /// Asks it nothing until then.
    pub(super) fn rest(&mut self, until: Moment) {
        self.rests_until = self.rests_until.max(until);
    }

    /// A request to it failed. Those that fail together count once.
    pub(super) fn failed(&mut self, now: Moment, timing: &Timing) {
        if now >= self.rests_until {
            self.rests_until = now + timing.retry(self.failures);
            self.failures += 1;
            self.window.shrink();
        }
    }

    /// Lets one that failed, but not one that is banned, be asked at once.
    pub(super) fn reprieve(&mut self) {
        self.failures = 0;
        self.rests_until = Moment::ZERO;
    }

    /// It answered a request for the first time, after a delay.
    pub(super) fn answered(&mut self, now: Moment, urgency: Urgency, delay: Duration) {
        self.failures = 0;
        match urgency {
            Urgency::Lazy => {
                self.latency = Some(self.latency.map_or(delay, |latency| (latency * 7 + delay) / 8));
            }
            Urgency::Bulk => self.window.answered(now, delay),
        }
    }

    /// It sent something that was right.
    pub(super) fn served(&mut self, kind: Kind, bytes: u64) {
        if kind == Kind::Chunk {
            self.chunk_bytes = (self.chunk_bytes * 15 + bytes) / 16;
        }
    }

    /// How good it is for a lazy request: less is better.
    pub(super) fn lazy_cost(&self) -> Duration {
        let load = u32::try_from(self.lazy_requests).unwrap_or(u32::MAX).saturating_add(1);
        self.latency.unwrap_or(UNKNOWN_LATENCY).saturating_mul(load)
    }

    pub(super) fn lazy_requests(&self) -> usize {
        self.lazy_requests
    }

    pub(super) fn window(&self) -> &Window {
        &self.window
    }

    /// What an object of a kind is expected to take on the wire, in bytes.
    pub(super) fn expected_bytes(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Chunk => self.chunk_bytes.clamp(512, types::CHUNK_BYTES as u64),
            Kind::Node => 4 << 10,
            Kind::Manifest => 1 << 10,
        }
    }

    pub(super) fn request_began(&mut self, urgency: Urgency, bytes: u64) {
        match urgency {
            Urgency::Lazy => self.lazy_requests += 1,
            Urgency::Bulk => {
                self.bulk_requests += 1;
                self.window.take(bytes);
            }
        }
    }

    pub(super) fn request_ended(&mut self, urgency: Urgency) {
        let requests = match urgency {
            Urgency::Lazy => &mut self.lazy_requests,
            Urgency::Bulk => &mut self.bulk_requests,
        };
        *requests = requests.saturating_sub(1);
    }

    pub(super) fn bulk_requests(&self) -> usize {
        self.bulk_requests
    }

    pub(super) fn is_busy(&self) -> bool {
        self.lazy_requests + self.bulk_requests > 0
    }

    /// An item of a request is open no more.
    pub(super) fn release(&mut self, urgency: Urgency, bytes: u64) {
        if urgency == Urgency::Bulk {
            self.window.release(bytes);
        }
    }
}

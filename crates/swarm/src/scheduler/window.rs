//! How many bulk bytes one provider may have in flight: steered by delay.
//!
//! The first answer to a request comes after the link's delay plus what is queued before it, ours included. While it
//! stays near the least delay seen, more is put in flight; when it grows, less. So bulk data fills the link and hardly
//! its queue, behind which lazy reads would wait. (The idea of LEDBAT, RFC 6817, on requests instead of packets.)

use super::Moment;
use std::time::Duration;

/// How much later than at best an answer may begin before the window shrinks.
const TARGET: Duration = Duration::from_millis(25);
/// How long the least delay is believed: paths change.
const MEMORY: Duration = Duration::from_secs(30);
/// The least that the window shrinks to, in bytes.
const LEAST_BYTES: u64 = 128 << 10;

#[derive(Debug)]
pub(super) struct Window {
    limit_bytes: u64,
    most_bytes: u64,
    in_flight_bytes: u64,
    least: Option<(Moment, Duration)>,
}

impl Window {
    pub(super) fn new((first_bytes, most_bytes): (u64, u64)) -> Self {
        Self { limit_bytes: first_bytes, most_bytes: most_bytes.max(first_bytes), in_flight_bytes: 0, least: None }
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    pub(super) fn take(&mut self, bytes: u64) {
        self.in_flight_bytes += bytes;
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
    }

    /// A request's first answer came after a delay.
    pub(super) fn answered(&mut self, now: Moment, delay: Duration) {
        let least = match self.least {
            Some((at, least)) if least <= delay && now < at + MEMORY => least,
            _ => {
                self.least = Some((now, delay));
                delay
            }
        };
        if delay <= least + TARGET {
            // Grown only where it is what limits; by an eighth, so that a doubling takes about six requests.
            if self.in_flight_bytes * 2 >= self.limit_bytes {
                self.limit_bytes = (self.limit_bytes + self.limit_bytes / 8).min(self.most_bytes);
            }
        } else {
            self.shrink();
        }
    }

    /// Something went wrong: begins again with less.
    pub(super) fn shrink(&mut self) {
        self.limit_bytes = (self.limit_bytes - self.limit_bytes / 4).max(LEAST_BYTES.min(self.limit_bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_while_answers_come_at_once_and_shrinks_when_they_queue() {
        let mut window = Window::new((512 << 10, 4 << 20));
        let mut now = Duration::ZERO;
        window.take(512 << 10);
        for _ in 0..8 {
            now += Duration::from_millis(10);
            window.answered(now, Duration::from_millis(5));
        }
        let grown = window.limit_bytes();
        assert!(grown > 512 << 10);
        for _ in 0..40 {
            window.answered(now, Duration::from_millis(80));
        }
        assert_eq!(window.limit_bytes(), LEAST_BYTES);
    }

    #[test]
    fn does_not_grow_where_something_else_limits() {
        let mut window = Window::new((512 << 10, 4 << 20));
        window.answered(Duration::ZERO, Duration::from_millis(5));
        assert_eq!(window.limit_bytes(), 512 << 10);
    }

    #[test]
    fn a_longer_path_is_accepted_after_a_while() {
        let mut window = Window::new((512 << 10, 4 << 20));
        window.take(4 << 20);
        window.answered(Duration::ZERO, Duration::from_millis(5));
        window.answered(MEMORY, Duration::from_millis(200));
        let before = window.limit_bytes();
        window.answered(MEMORY, Duration::from_millis(210));
        assert!(window.limit_bytes() > before);
    }
}

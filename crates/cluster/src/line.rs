//! The changes of a volume on their way to its replica, in order.
//!
//! Invariant: what is kept is everything after the last change that the replica has made durable, without a gap.

use std::collections::VecDeque;
use std::time::Instant;

use crate::frame::Operation;
use crate::table::Request;

/// What a change takes beside its data, in bytes.
const OVERHEAD_BYTES: u64 = 128;

#[derive(Debug)]
struct Entry {
    request: Request,
    at: Instant,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.request.data.len() as u64 + OVERHEAD_BYTES
    }
}

/// The changes since the replica was made.
#[derive(Debug)]
pub(crate) struct Line {
    /// Which line it is: another one begins whenever the replica is made anew.
    pub(crate) id: u64,
    /// What is not durable there, from `durable + 1` on.
    entries: VecDeque<Entry>,
    durable: u64,
    /// Up to which change the replica has come.
    applied: u64,
    /// Up to which change was sent.
    sent: u64,
    /// How much of what is kept is not applied, and how much is kept at all, in bytes.
    lag_bytes: u64,
    bytes: u64,
    /// The latest flush that is under way.
    flush: Option<u64>,
    /// From which change on the replica is a moment of the volume.
    consistent: u64,
}

impl Line {
    /// A line whose first change will be the one after `last`.
    pub(crate) fn new(id: u64, last: u64) -> Self {
        Self {
            id,
            entries: VecDeque::new(),
            durable: last,
            applied: last,
            sent: last,
            lag_bytes: 0,
            bytes: 0,
            flush: None,
            consistent: last,
        }
    }

    /// The number of the last change.
    pub(crate) fn last(&self) -> u64 {
        self.durable + self.entries.len() as u64
    }

    pub(crate) fn push(&mut self, request: Request) -> u64 {
        let entry = Entry { request, at: Instant::now() };
        self.lag_bytes += entry.bytes();
        self.bytes += entry.bytes();
        let flushes = entry.request.operation == Operation::Flush;
        self.entries.push_back(entry);
        if flushes {
            self.flush = Some(self.last());
        }
        self.last()
    }

    fn entry(&self, number: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(number.checked_sub(self.durable + 1)?).ok()?)
    }

    /// The next changes to send, up to about so many bytes of data.
    pub(crate) fn take_unsent(&mut self, most_bytes: usize) -> Vec<(u64, Request)> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < most_bytes
            && let Some(entry) = self.entry(self.sent + 1)
        {
            bytes += entry.request.data.len();
            let request = entry.request.clone();
            self.sent += 1;
            taken.push((self.sent, request));
        }
        taken
    }

    /// Begins to send again: behind what the replica says that it has, or behind all that is surely durable there. Returns the first
    /// number, and from which on the replica is a moment of the volume.
    pub(crate) fn rewind(&mut self, applied: Option<u64>) -> (u64, u64) {
        match applied.filter(|applied| (self.durable..=self.sent).contains(applied)) {
            Some(applied) => {
                self.applied(applied);
                self.sent = applied;
            }
            None => {
                // What it may have had already is made once more: until all of that is there, it mixes two moments.
                self.consistent = self.consistent.max(self.sent);
                self.sent = self.durable;
            }
        }
        (self.sent + 1, self.consistent)
    }

    /// Says that all changes so far may be in the replica already, or not.
    pub(crate) fn begin_behind(&mut self) {
        self.consistent = self.last();
    }

    /// Whether the replica has come so far.
    pub(crate) fn has(&self, number: u64) -> bool {
        self.applied >= number
    }

    pub(crate) fn is_consistent(&self) -> bool {
        self.has(self.consistent)
    }

    /// Notes how far the replica has come; false where it cannot have come so far.
    pub(crate) fn applied(&mut self, number: u64) -> bool {
        if number > self.sent {
            return false;
        }
        let from = self.applied.max(self.durable);
        for passed in from + 1..=number {
            self.lag_bytes -= self.entry(passed).map_or(0, Entry::bytes);
        }
        self.applied = self.applied.max(number);
        let flushed = (self.durable + 1..=number)
            .rev()
            .find(|at| self.entry(*at).is_some_and(|entry| entry.request.operation == Operation::Flush));
        if let Some(flushed) = flushed {
            while self.durable < flushed
                && let Some(entry) = self.entries.pop_front()
            {
                self.bytes -= entry.bytes();
                self.durable += 1;
            }
            self.flush = self.flush.filter(|flush| *flush > flushed);
        }
        true
    }

    /// How far the replica is behind, in bytes.
    pub(crate) fn lag_bytes(&self) -> u64 {
        self.lag_bytes
    }

    /// How much is kept because it is not durable there, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn is_flushing(&self) -> bool {
        self.flush.is_some()
    }

    /// Whether the replica has made all changes, durably.
    pub(crate) fn is_settled(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of the oldest change that the replica does not have.
    pub(crate) fn oldest_waiting(&self) -> Option<u64> {
        let number = self.applied + 1;
        self.entry(number).map(|_| number)
    }

    /// Since when the oldest change waits that the replica does not have.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.entry(self.applied + 1).map(|entry| entry.at)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use volume::Durability;

    use super::*;

    fn request(operation: Operation) -> Request {
        let data = if operation == Operation::Write { Bytes::from_static(&[1; 512]) } else { Bytes::new() };
        Request { operation, durability: Durability::Process, offset: 0, length: data.len() as u64, data }
    }

    fn sent(line: &mut Line) -> Vec<u64> {
        line.take_unsent(usize::MAX).into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn what_is_not_durable_is_kept_and_sent_again_where_the_replica_does_not_know() {
        let mut line = Line::new(1, 10);
        for operation in [Operation::Write, Operation::Flush, Operation::Write, Operation::Write] {
            line.push(request(operation));
        }
        assert_eq!(sent(&mut line), [11, 12, 13, 14]);
        assert!(line.applied(13) && !line.applied(15), "what was not sent cannot be there");
        assert_eq!((line.lag_bytes(), line.bytes()), (640, 1280), "the first two are durable");
        assert_eq!(line.rewind(Some(13)), (14, 10));
        assert_eq!(sent(&mut line), [14]);
        assert_eq!(line.rewind(None), (13, 14), "its memory is lost: from the last flush on");
        assert!(!line.is_consistent());
        assert_eq!(sent(&mut line), [13, 14]);
        assert!(line.applied(14) && line.is_consistent());
        assert_eq!(line.lag_bytes(), 0);
    }

    #[test]
    fn a_line_is_settled_when_all_of_it_is_durable_there() {
        let mut line = Line::new(1, 10);
        assert!(line.is_settled());
        for operation in [Operation::Write, Operation::Flush, Operation::Write] {
            line.push(request(operation));
        }
        sent(&mut line);
        assert!(line.applied(13) && !line.is_settled(), "the last one is not durable");
        line.push(request(Operation::Flush));
        sent(&mut line);
        assert!(line.applied(14) && line.is_settled() && line.last() == 14);
    }

    #[test]
    fn a_replica_that_claims_more_than_was_sent_is_not_believed() {
        let mut line = Line::new(1, 0);
        line.push(request(Operation::Write));
        assert_eq!(line.rewind(Some(7)), (1, 0));
        assert_eq!(line.rewind(Some(1)), (1, 0));
    }
}

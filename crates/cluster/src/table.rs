//! What was asked of a volume's home and not answered, and what was answered and not yet made durable.
//!
//! The second is what a write's verifier is to NFS (RFC 1813, section 4.8): if the home's machine has lost its memory, it is written
//! again. Invariant: what is kept is all that was acknowledged since the last flush that ended, in the order in which it was.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tokio::sync::oneshot;
use volume::{DeviceError, Durability};

use crate::frame::{Operation, Outcome, RequestFrame};

/// What a kept change takes beside its data, in bytes.
const KEPT_OVERHEAD_BYTES: u64 = 128;

/// A request without its number.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) durability: Durability,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) data: Bytes,
}

impl Request {
    pub(crate) fn frame(&self, id: u64) -> RequestFrame {
        let Self { operation, durability, offset, length, .. } = *self;
        RequestFrame { id, operation, durability, offset, length }
    }
}

/// What became of a request.
pub(crate) type Answer = Result<Bytes, DeviceError>;

#[derive(Debug)]
struct Pending {
    request: Request,
    done: oneshot::Sender<Answer>,
    /// Up to where a flush makes durable what is kept.
    covers: u64,
}

/// The machine that a volume is used at, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footing {
    pub(crate) epoch: u64,
    pub(crate) boot: String,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    unsent: VecDeque<u64>,
    kept: VecDeque<(u64, Request)>,
    kept_bytes: u64,
    /// The number of the next change that is kept.
    mark: u64,
    footing: Option<Footing>,
    /// That something was answered since this was last looked at.
    pub(crate) useful: bool,
    closed: bool,
}

impl Table {
    /// Enters a request, which is sent as soon as it can be. Where the table is closed, it is answered so.
    pub(crate) fn enter(&mut self, request: Request) -> oneshot::Receiver<Answer> {
        let (done, answer) = oneshot::channel();
        if self.closed {
            // Who asks is still there.
            let _ = done.send(Err(DeviceError::Closed));
            return answer;
        }
        let id = self.next;
        self.next += 1;
        self.unsent.push_back(id);
        self.pending.insert(id, Pending { request, done, covers: self.mark });
        answer
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// How much is kept, in bytes.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }

    /// Begins to talk to a home: everything unanswered is sent again. Returns what must be written again before that.
    pub(crate) fn begin(&mut self, footing: &Footing) -> Vec<Request> {
        // Who has stopped to wait for a read needs no answer.
        self.pending.retain(|_, pending| !pending.done.is_closed());
        self.unsent = self.pending.keys().copied().collect();
        match &self.footing {
            Some(before) if before == footing => Vec::new(),
            Some(before) if before.epoch == footing.epoch => self.kept.iter().map(|(_, kept)| kept.clone()).collect(),
            // Whoever gave the volume away has made all of it durable.
            _ => {
                self.kept.clear();
                self.kept_bytes = 0;
                Vec::new()
            }
        }
    }

    /// Whether it was used in an epoch before this one.
    pub(crate) fn has_seen_before(&self, epoch: u64) -> bool {
        self.footing.as_ref().is_some_and(|footing| footing.epoch < epoch)
    }

    /// Says that what [`begin`](Self::begin) returned has been written.
    pub(crate) fn stands_on(&mut self, footing: Footing) {
        self.footing = Some(footing);
    }

    /// The next requests to send, up to about so many bytes of data.
    pub(crate) fn take_unsent(&mut self, most_bytes: usize) -> Vec<(u64, Request)> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < most_bytes
            && let Some(id) = self.unsent.pop_front()
        {
            let Some(pending) = self.pending.get(&id) else { continue };
            bytes += pending.request.data.len();
            taken.push((id, pending.request.clone()));
        }
        taken
    }

    /// How many bytes of data the answer to a request has; `None` where nothing of the kind was asked.
    pub(crate) fn expects(&self, id: u64) -> Option<u64> {
        let request = &self.pending.get(&id)?.request;
        Some(if request.operation == Operation::Read { request.length } else { 0 })
    }

    /// Answers a request.
    pub(crate) fn answered(&mut self, id: u64, outcome: Outcome, data: Bytes, size_bytes: u64) {
        let Some(Pending { request, done, covers }) = self.pending.remove(&id) else { return };
        self.useful = true;
        if outcome == Outcome::Done {
            match request.operation {
                Operation::Flush => self.durable_up_to(covers),
                operation if operation.changes() => self.keep(&request),
                _ => {}
            }
        }
        let answer = match outcome {
            Outcome::Done => Ok(data),
            Outcome::Gone => Err(DeviceError::Closed),
            Outcome::OutOfRange => {
                Err(DeviceError::OutOfRange { offset: request.offset, length: request.length, size_bytes })
            }
            Outcome::ReadOnly => Err(DeviceError::ReadOnly),
            Outcome::Full => Err(DeviceError::Full),
            Outcome::Failed => Err(DeviceError::Home),
        };
        // Who asked may have stopped to wait.
        let _ = done.send(answer);
    }

    fn keep(&mut self, request: &Request) {
        // What is durable by itself is kept behind what is not, which would else be written over it.
        if request.durability == Durability::Power && self.kept.is_empty() {
            return;
        }
        self.kept_bytes += request.data.len() as u64 + KEPT_OVERHEAD_BYTES;
        self.kept.push_back((self.mark, request.clone()));
        self.mark += 1;
    }

    fn durable_up_to(&mut self, mark: u64) {
        while let Some((_, request)) = self.kept.pop_front_if(|(kept, _)| *kept < mark) {
            self.kept_bytes -= request.data.len() as u64 + KEPT_OVERHEAD_BYTES;
        }
    }

    /// Answers everything with an error, and from now on also what is entered where it is closed for good.
    pub(crate) fn fail(&mut self, for_good: bool) {
        self.closed |= for_good;
        self.unsent.clear();
        while let Some((_, pending)) = self.pending.pop_first() {
            let _ = pending.done.send(Err(DeviceError::Closed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, durability: Durability) -> Request {
        let data = Bytes::from_static(&[1; 512]);
        Request { operation: Operation::Write, durability, offset, length: 512, data }
    }

    fn flush() -> Request {
        let data = Bytes::new();
        Request { operation: Operation::Flush, durability: Durability::Process, offset: 0, length: 0, data }
    }

    fn done(table: &mut Table) {
        for (id, _) in table.take_unsent(usize::MAX) {
            table.answered(id, Outcome::Done, Bytes::new(), 1 << 20);
        }
    }

    fn footing(epoch: u64, boot: &str) -> Footing {
        Footing { epoch, boot: boot.to_owned() }
    }

    fn replayed(table: &mut Table, at: Footing) -> Vec<u64> {
        let offsets = table.begin(&at).iter().map(|request| request.offset).collect();
        table.stands_on(at);
        offsets
    }

    #[test]
    fn what_was_not_made_durable_is_written_again_where_memory_was_lost_and_only_there() {
        let mut table = Table::default();
        assert!(replayed(&mut table, footing(1, "a")).is_empty());
        let _answers = [0, 512].map(|offset| table.enter(write(offset, Durability::Process)));
        done(&mut table);
        let _power = table.enter(write(0, Durability::Power));
        done(&mut table);
        assert!(replayed(&mut table, footing(1, "a")).is_empty(), "the process has begun anew, the machine has not");
        assert_eq!(replayed(&mut table, footing(1, "b")), [0, 512, 0], "in order, with what lies over it");
        let _flush = table.enter(flush());
        let late = table.enter(write(1024, Durability::Process));
        done(&mut table);
        drop(late);
        assert_eq!(replayed(&mut table, footing(1, "c")), [1024], "the flush began before the last one was answered");
        assert!(replayed(&mut table, footing(2, "d")).is_empty(), "it was given, so all is durable");
        assert_eq!(table.kept_bytes(), 0);
    }

    #[test]
    fn what_was_not_answered_is_sent_again_in_order() {
        let mut table = Table::default();
        replayed(&mut table, footing(1, "a"));
        let _answers: Vec<_> = (0..3).map(|number| table.enter(write(number * 512, Durability::Process))).collect();
        let sent = table.take_unsent(usize::MAX);
        table.answered(sent[1].0, Outcome::Done, Bytes::new(), 1 << 20);
        replayed(&mut table, footing(1, "a"));
        let again: Vec<_> = table.take_unsent(usize::MAX).into_iter().map(|(id, _)| id).collect();
        assert_eq!(again, [sent[0].0, sent[2].0]);
        assert!(!table.is_idle());
    }

    #[test]
    fn a_durable_write_alone_is_not_kept() {
        let mut table = Table::default();
        let _answer = table.enter(write(0, Durability::Power));
        done(&mut table);
        assert_eq!(table.kept_bytes(), 0);
    }

    #[test]
    fn a_closed_table_answers_at_once() {
        let mut table = Table::default();
        let mut before = table.enter(flush());
        table.fail(true);
        assert!(matches!(before.try_recv(), Ok(Err(DeviceError::Closed))));
        assert!(matches!(table.enter(flush()).try_recv(), Ok(Err(DeviceError::Closed))));
    }
}

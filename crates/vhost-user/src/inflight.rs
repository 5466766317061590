//! The log of requests under way, which the front-end keeps in shared memory while back-ends come and go
//! (`docs/interop/vhost-user.rst`, "Inflight I/O tracking", split virtqueues).
//!
//! Invariant: a request is noted before anything is done for it, and crossed out after the guest can see its answer. So
//! whoever comes next makes again what was noted and not answered: none is lost, and none is answered that was not made.
//! What the log says is foreign bytes: it is checked as everything else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::{dup, fcntl_dupfd_cloexec};
use vm_memory::{Bytes as _, MmapRegion, VolatileMemory as _};

use crate::memory::map;
use crate::message::InflightArea;

/// The version of the layout.
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
/// Queues begin at multiples of this.
const ALIGNMENT: usize = 64;

const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const LAST_AT: usize = 12;
const USED_AT: usize = 14;
const COUNTER_AT: usize = 8;

/// A log could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InflightError {
    /// It is for no queue, or for more than there are, or not as long as it says.
    #[error("a log for {queues} queues of {queue_size} requests does not fit {size_bytes} bytes")]
    Area {
        /// For how many queues it is.
        queues: u16,
        /// How many requests each can have.
        queue_size: u16,
        /// How long it is.
        size_bytes: u64,
    },
    /// It was written by a back-end that keeps another kind of log.
    #[error("the log of queue {index} is of version {version} with {count} entries")]
    Version {
        /// The queue.
        index: u16,
        /// The version.
        version: u16,
        /// How many entries it has.
        count: u16,
    },
    /// The memory could not be made or mapped.
    #[error("could not make the memory of a log")]
    Memory(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The log of all queues.
#[derive(Debug)]
pub struct Inflight {
    map: MmapRegion,
    area: InflightArea,
}

fn queue_bytes(queue_size: u16) -> usize {
    (HEAD_BYTES + ENTRY_BYTES * usize::from(queue_size)).next_multiple_of(ALIGNMENT)
}

impl Inflight {
    /// Makes a log in which nothing is under way, and its file for the front-end.
    ///
    /// # Errors
    /// See [`InflightError`].
    pub fn new(queues: u16, queue_size: u16) -> Result<(Inflight, OwnedFd), InflightError> {
        let failed = |error: rustix::io::Errno| InflightError::Memory(error.into());
        let size_bytes = (queue_bytes(queue_size) * usize::from(queues)) as u64;
        let area = InflightArea { size_bytes, file_offset: 0, queues, queue_size };
        let file = memfd_create("brant-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(failed)?;
        ftruncate(&file, size_bytes).map_err(failed)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(failed)?;
        let ours = dup_of(file.as_fd()).map_err(failed)?;
        Ok((Inflight::open(area, ours)?, file))
    }

    /// Goes on with a log that was made before.
    ///
    /// # Errors
    /// See [`InflightError`].
    pub fn open(area: InflightArea, file: OwnedFd) -> Result<Inflight, InflightError> {
        let InflightArea { size_bytes, file_offset, queues, queue_size } = area;
        let wrong = || InflightError::Area { queues, queue_size, size_bytes };
        let needed = (queue_bytes(queue_size) * usize::from(queues)) as u64;
        if queues == 0 || queue_size == 0 || size_bytes < needed {
            return Err(wrong());
        }
        let mapped = map(file, file_offset, size_bytes).map_err(|error| InflightError::Memory(error.into()))?;
        Ok(Inflight { map: mapped.ok_or_else(wrong)?, area })
    }

    /// Where it is in its file.
    #[must_use]
    pub fn area(&self) -> InflightArea {
        self.area
    }

    /// The log of one queue; nothing where it is not for that one.
    pub fn queue(self: &Arc<Self>, index: u16, size: u16) -> Option<QueueLog> {
        let fits = index < self.area.queues && size <= self.area.queue_size && size > 0;
        let base = queue_bytes(self.area.queue_size) * usize::from(index);
        fits.then(|| QueueLog { inflight: Arc::clone(self), index, base, size, counter: 0 })
    }
}

fn dup_of(file: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    fcntl_dupfd_cloexec(file, 0).or_else(|_| dup(file))
}

/// The log of one queue.
#[derive(Debug)]
pub struct QueueLog {
    inflight: Arc<Inflight>,
    index: u16,
    base: usize,
    size: u16,
    /// The next number: requests are made again in the order of their numbers.
    counter: u64,
}

impl QueueLog {
    /// How many requests it has room for.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    fn entry(&self, head: u16) -> usize {
        debug_assert!(head < self.size, "heads are checked before");
        self.base + HEAD_BYTES + ENTRY_BYTES * usize::from(head)
    }

    fn half(&self, at: usize) -> u16 {
        self.inflight.map.as_volatile_slice().load(self.base + at, Ordering::Acquire).unwrap_or(0)
    }

    fn put_half(&self, at: usize, value: u16) {
        let stored = self.inflight.map.as_volatile_slice().store(value, self.base + at, Ordering::Release);
        debug_assert!(stored.is_ok(), "the log was measured");
    }

    fn set_under_way(&self, head: u16, under_way: bool) {
        let all = self.inflight.map.as_volatile_slice();
        let stored = all.store(u8::from(under_way), self.entry(head), Ordering::Release);
        debug_assert!(stored.is_ok(), "the log was measured");
    }

    /// Notes that a request is under way.
    pub fn begin(&mut self, head: u16) {
        let all = self.inflight.map.as_volatile_slice();
        let stored = all.store(self.counter, self.entry(head) + COUNTER_AT, Ordering::Release);
        debug_assert!(stored.is_ok(), "the log was measured");
        self.counter = self.counter.wrapping_add(1);
        self.set_under_way(head, true);
    }

    /// Notes which request is about to be answered.
    pub fn answering(&self, head: u16) {
        self.put_half(LAST_AT, head);
    }

    /// Crosses out a request that was answered; `used` is the index that the guest sees.
    pub fn answered(&self, head: u16, used: u16) {
        self.set_under_way(head, false);
        self.put_half(USED_AT, used);
    }

    /// The requests that are under way, in their order, where `used` is the index that the guest sees.
    ///
    /// # Errors
    /// Where it is not a log of this kind.
    pub fn recover(&mut self, used: u16) -> Result<Vec<u16>, InflightError> {
        let (version, count) = (self.half(VERSION_AT), self.half(COUNT_AT));
        if version == 0 {
            self.put_half(COUNT_AT, self.size);
            self.put_half(USED_AT, used);
            self.put_half(VERSION_AT, VERSION);
        } else if version != VERSION || count != self.size {
            return Err(InflightError::Version { index: self.index, version, count });
        }
        // Whoever died between answering and crossing out has answered one: they are answered one by one.
        let last = self.half(LAST_AT);
        if self.half(USED_AT) != used && last < self.size {
            self.set_under_way(last, false);
        }
        self.put_half(USED_AT, used);
        let all = self.inflight.map.as_volatile_slice();
        let number = |head: &u16| all.load::<u64>(self.entry(*head) + COUNTER_AT, Ordering::Acquire).unwrap_or(0);
        let under_way = |head: &u16| all.load::<u8>(self.entry(*head), Ordering::Acquire).unwrap_or(0) != 0;
        let mut heads: Vec<u16> = (0..self.size).filter(under_way).collect();
        heads.sort_by_key(number);
        self.counter = heads.last().map_or(0, |head| number(head).wrapping_add(1));
        Ok(heads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(area: InflightArea, file: &OwnedFd) -> Arc<Inflight> {
        Arc::new(Inflight::open(area, dup_of(file.as_fd()).unwrap()).unwrap())
    }

    #[test]
    fn the_next_one_finds_what_is_under_way_in_its_order() {
        let (log, file) = Inflight::new(2, 8).unwrap();
        let (area, log) = (log.area(), Arc::new(log));
        let mut queue = log.queue(1, 8).unwrap();
        assert!(queue.recover(100).unwrap().is_empty());
        for head in [5, 2, 7, 0] {
            queue.begin(head);
        }
        queue.answering(2);
        queue.answered(2, 101);
        queue.begin(2);
        drop((queue, log));
        let log = again(area, &file);
        let mut queue = log.queue(1, 8).unwrap();
        assert_eq!(queue.recover(101).unwrap(), [5, 7, 0, 2]);
        queue.begin(3);
        assert_eq!(again(area, &file).queue(1, 8).unwrap().recover(101).unwrap(), [5, 7, 0, 2, 3]);
        assert!(log.queue(0, 8).unwrap().recover(0).unwrap().is_empty(), "each queue has its own");
    }

    #[test]
    fn an_answer_that_was_seen_is_not_given_twice() {
        let (log, file) = Inflight::new(1, 4).unwrap();
        let (area, log) = (log.area(), Arc::new(log));
        let mut queue = log.queue(0, 4).unwrap();
        queue.recover(7).unwrap();
        queue.begin(1);
        queue.begin(3);
        queue.answering(3);
        // It dies here: the guest may have the answer, or not.
        assert_eq!(again(area, &file).queue(0, 4).unwrap().recover(7).unwrap(), [1, 3], "not answered");
        assert_eq!(again(area, &file).queue(0, 4).unwrap().recover(8).unwrap(), [1], "answered");
        assert_eq!(again(area, &file).queue(0, 4).unwrap().recover(8).unwrap(), [1], "once");
    }

    #[test]
    fn a_log_that_is_none_is_refused() {
        let (log, file) = Inflight::new(1, 4).unwrap();
        let area = log.area();
        let open = |area| Inflight::open(area, dup_of(file.as_fd()).unwrap());
        assert!(matches!(open(InflightArea { queues: 2, ..area }), Err(InflightError::Area { .. })));
        assert!(matches!(open(InflightArea { queue_size: 0, ..area }), Err(InflightError::Area { .. })));
        let longer = InflightArea { size_bytes: area.size_bytes + 1, ..area };
        assert!(matches!(open(longer), Err(InflightError::Area { .. })), "than its file");
        let log = Arc::new(log);
        assert!(log.queue(1, 4).is_none() && log.queue(0, 5).is_none() && log.queue(0, 0).is_none());
        log.queue(0, 4).unwrap().recover(0).unwrap();
        assert!(matches!(log.queue(0, 2).unwrap().recover(0), Err(InflightError::Version { .. })));
        log.queue(0, 4).unwrap().put_half(VERSION_AT, 9);
        assert!(matches!(log.queue(0, 4).unwrap().recover(0), Err(InflightError::Version { .. })));
    }

    #[test]
    fn a_log_of_nonsense_says_nothing_impossible() {
        let (log, _file) = Inflight::new(1, 16).unwrap();
        let log = Arc::new(log);
        log.map.as_volatile_slice().write_slice(&vec![0xa5; queue_bytes(16)], 0).unwrap();
        let mut queue = log.queue(0, 16).unwrap();
        queue.put_half(VERSION_AT, VERSION);
        queue.put_half(COUNT_AT, 16);
        assert_eq!(queue.recover(3).unwrap(), (0..16).collect::<Vec<_>>());
        queue.begin(4);
    }
}

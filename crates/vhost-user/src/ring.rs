//! One split virtqueue (virtio 1.2, 2.7): takes what the guest offers, and gives back what is answered.
//!
//! Invariants: a request is in the log from before it is taken until after its answer can be seen ([`QueueLog`]); no
//! request is taken twice at once. Only one thread has a ring.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock};

use crate::chain::{Chain, ChainError, walk};
use crate::inflight::{InflightError, QueueLog};
use crate::memory::{Memory, NoMemory};

/// The most requests of a queue.
pub(crate) const MAX_QUEUE_SIZE: u16 = 1024;

/// In the available ring: the driver wants no interrupts. In the used ring: the device wants no notifications.
const SUPPRESSED: u16 = 1;

/// A queue cannot be used any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RingError {
    /// The driver offers more than its queue holds.
    #[error("the driver's index {index} is too far from {expected}")]
    Index { index: u16, expected: u16 },
    /// The driver offers what is no descriptor of the queue, or what is under way.
    #[error("the driver offers descriptor {head}, which it cannot")]
    Head { head: u16 },
    /// The log is not one.
    #[error("the log of requests under way cannot be used")]
    Log(#[from] InflightError),
    /// The queue is not in the guest's memory.
    #[error("a queue is no memory of the guest")]
    Memory(#[from] NoMemory),
}

/// The memory of the guest at this moment.
pub(crate) type SharedMemory = Arc<RwLock<Arc<Memory>>>;

/// Where a queue is in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// A queue.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: SharedMemory,
    addresses: Addresses,
    size: u16,
    event_index: bool,
    log: QueueLog,
    under_way: Vec<bool>,
    next_available: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// The used index at the last interrupt; unknown at first.
    interrupted: Option<Wrapping<u16>>,
}

impl Ring {
    /// Goes on with a queue where it is, and returns what is under way in it, to be made again.
    pub(crate) fn new(
        memory: SharedMemory,
        addresses: Addresses,
        event_index: bool,
        mut log: QueueLog,
    ) -> Result<(Ring, Vec<u16>), RingError> {
        let now = Arc::clone(&memory.read().unwrap_or_else(PoisonError::into_inner));
        let used = now.load::<u16>(addresses.used.wrapping_add(2), Ordering::Acquire)?;
        let size = log.size();
        let heads = log.recover(used)?;
        let mut under_way = vec![false; usize::from(size)];
        heads.iter().for_each(|head| under_way[usize::from(*head)] = true);
        let taken = u16::try_from(heads.len()).unwrap_or(u16::MAX);
        let (next_used, next_available) = (Wrapping(used), Wrapping(used) + Wrapping(taken));
        let interrupted = None;
        let ring =
            Ring { memory, addresses, size, event_index, log, under_way, next_available, next_used, interrupted };
        Ok((ring, heads))
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The index of the next request.
    pub(crate) fn next_available(&self) -> u16 {
        self.next_available.0
    }

    /// Where a request is.
    pub(crate) fn walk(&self, memory: &Memory, head: u16) -> Result<Chain, ChainError> {
        walk(memory, self.addresses.descriptors, self.size, head)
    }

    fn available(&self, memory: &Memory) -> Result<Wrapping<u16>, NoMemory> {
        memory.load(self.addresses.available.wrapping_add(2), Ordering::Acquire).map(Wrapping)
    }

    /// Takes everything that is offered.
    pub(crate) fn take(&mut self) -> Result<Vec<u16>, RingError> {
        let memory = self.memory();
        let index = self.available(&memory)?;
        if (index - self.next_available).0 > self.size {
            return Err(RingError::Index { index: index.0, expected: self.next_available.0 });
        }
        let mut heads = Vec::new();
        while self.next_available != index {
            let place = 4 + 2 * u64::from(self.next_available.0 % self.size);
            let head = memory.load::<u16>(self.addresses.available.wrapping_add(place), Ordering::Acquire)?;
            match self.under_way.get_mut(usize::from(head)) {
                Some(under_way) if !*under_way => *under_way = true,
                _ => return Err(RingError::Head { head }),
            }
            self.log.begin(head);
            self.next_available += 1;
            heads.push(head);
        }
        Ok(heads)
    }

    /// Gives a request back, of which that many bytes were written.
    pub(crate) fn answer(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        let memory = self.memory();
        let place = 4 + 8 * u64::from(self.next_used.0 % self.size);
        let mut element = u32::from(head).to_le_bytes().to_vec();
        element.extend(written.to_le_bytes());
        memory.write(self.addresses.used.wrapping_add(place), &element)?;
        self.log.answering(head);
        let next = self.next_used + Wrapping(1);
        memory.store(self.addresses.used.wrapping_add(2), next.0, Ordering::Release)?;
        self.next_used = next;
        self.under_way[usize::from(head)] = false;
        self.log.answered(head, next.0);
        Ok(())
    }

    /// Says that the driver need not notify, as it is looked for requests anyway.
    pub(crate) fn stop_listening(&self) -> Result<(), RingError> {
        if !self.event_index {
            self.memory().store(self.addresses.used, SUPPRESSED, Ordering::Relaxed)?;
        }
        Ok(())
    }

    /// Says that the driver shall notify; whether something is there already.
    pub(crate) fn listen(&self) -> Result<bool, RingError> {
        let memory = self.memory();
        if self.event_index {
            let event = self.addresses.used.wrapping_add(4 + 8 * u64::from(self.size));
            memory.store(event, self.next_available.0, Ordering::Relaxed)?;
        } else {
            memory.store(self.addresses.used, 0_u16, Ordering::Relaxed)?;
        }
        // The driver's index must not be read before it can see that.
        fence(Ordering::SeqCst);
        Ok(self.available(&memory)? != self.next_available)
    }

    /// Whether the driver wants to be interrupted for what was answered since the last time.
    pub(crate) fn wants_interrupt(&mut self) -> Result<bool, RingError> {
        // The driver's wish must not be read before it can see the answers.
        fence(Ordering::SeqCst);
        let before = self.interrupted.replace(self.next_used);
        let Some(before) = before else { return Ok(true) };
        if before == self.next_used {
            return Ok(false);
        }
        let memory = self.memory();
        if !self.event_index {
            let flags = memory.load::<u16>(self.addresses.available, Ordering::Relaxed)?;
            return Ok(flags & SUPPRESSED == 0);
        }
        let event = self.addresses.available.wrapping_add(4 + 2 * u64::from(self.size));
        let event = Wrapping(memory.load::<u16>(event, Ordering::Relaxed)?);
        Ok(self.next_used - event - Wrapping(1) < self.next_used - before)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::inflight::Inflight;
    use crate::memory::tests::guest;

    pub(crate) const SIZE: u16 = 8;
    pub(crate) const PLACES: Addresses = Addresses { descriptors: 0x1000, available: 0x2000, used: 0x3000 };

    /// The driver's side of a queue.
    #[derive(Debug)]
    pub(crate) struct Driver {
        pub(crate) memory: SharedMemory,
        pub(crate) log: Arc<Inflight>,
        next: u16,
        seen: u16,
    }

    impl Driver {
        pub(crate) fn new() -> Driver {
            let memory = Arc::new(RwLock::new(Arc::new(guest(1 << 22))));
            let (log, _file) = Inflight::new(1, SIZE).unwrap();
            Driver { memory, log: Arc::new(log), next: 0, seen: 0 }
        }

        pub(crate) fn memory(&self) -> Arc<Memory> {
            Arc::clone(&self.memory.read().unwrap())
        }

        /// The device's side, as each of its lives finds it.
        pub(crate) fn ring(&self, event_index: bool) -> (Ring, Vec<u16>) {
            Ring::new(Arc::clone(&self.memory), PLACES, event_index, self.log.queue(0, SIZE).unwrap()).unwrap()
        }

        pub(crate) fn offer(&mut self, head: u16) {
            let memory = self.memory();
            memory.store(PLACES.available + 4 + 2 * u64::from(self.next % SIZE), head, Ordering::Relaxed).unwrap();
            self.next = self.next.wrapping_add(1);
            memory.store(PLACES.available + 2, self.next, Ordering::Release).unwrap();
        }

        pub(crate) fn set_index(&self, index: u16) {
            self.memory().store(PLACES.available + 2, index, Ordering::Release).unwrap();
        }

        /// What was answered since the last call: the head, and how many bytes were written.
        pub(crate) fn answers(&mut self) -> Vec<(u32, u32)> {
            let memory = self.memory();
            let used: u16 = memory.load(PLACES.used + 2, Ordering::Acquire).unwrap();
            let mut answers = Vec::new();
            while self.seen != used {
                let place = PLACES.used + 4 + 8 * u64::from(self.seen % SIZE);
                let word = |at: u64| memory.load::<u32>(place + at, Ordering::Relaxed).unwrap();
                answers.push((word(0), word(4)));
                self.seen = self.seen.wrapping_add(1);
            }
            answers
        }
    }

    #[test]
    fn requests_go_round_and_round() {
        let mut driver = Driver::new();
        let (mut ring, again) = driver.ring(false);
        assert!(again.is_empty());
        for round in 0..20_000_u32 {
            let (first, second) = ((round % 8) as u16, ((round + 3) % 8) as u16);
            driver.offer(first);
            driver.offer(second);
            assert_eq!(ring.take().unwrap(), [first, second]);
            ring.answer(second, round).unwrap();
            ring.answer(first, 1).unwrap();
            assert_eq!(driver.answers(), [(u32::from(second), round), (u32::from(first), 1)]);
        }
        assert!(ring.take().unwrap().is_empty());
    }

    #[test]
    fn what_was_not_answered_is_made_again_and_nothing_is_taken_twice() {
        let mut driver = Driver::new();
        let (mut ring, _) = driver.ring(true);
        for head in [4, 1, 6, 2] {
            driver.offer(head);
        }
        assert_eq!(ring.take().unwrap(), [4, 1, 6, 2]);
        ring.answer(1, 0).unwrap();
        ring.answer(2, 0).unwrap();
        drop(ring);
        driver.offer(1);
        let (mut ring, again) = driver.ring(true);
        assert_eq!(again, [4, 6], "out of order, and yet");
        assert_eq!(ring.take().unwrap(), [1]);
        assert!(ring.wants_interrupt().unwrap(), "nobody knows whether the last one came");
    }

    #[test]
    fn a_driver_that_breaks_the_rules_loses_its_queue() {
        let mut driver = Driver::new();
        let (mut ring, _) = driver.ring(false);
        driver.set_index(SIZE + 1);
        assert!(matches!(ring.take(), Err(RingError::Index { .. })));
        driver.set_index(0);
        driver.offer(3);
        driver.offer(3);
        assert!(matches!(ring.take(), Err(RingError::Head { head: 3 })), "it is under way");
        let (mut ring, again) = driver.ring(false);
        assert_eq!(again, [3]);
        driver.offer(SIZE);
        assert!(matches!(ring.take(), Err(RingError::Head { .. })));
        let elsewhere = Addresses { used: 1 << 40, ..PLACES };
        let log = || driver.log.queue(0, SIZE).unwrap();
        let new = |addresses| Ring::new(Arc::clone(&driver.memory), addresses, false, log());
        assert!(matches!(new(elsewhere), Err(RingError::Memory(_))));
        let (mut far, _) = new(Addresses { available: 1 << 40, ..PLACES }).unwrap();
        assert!(matches!(far.take(), Err(RingError::Memory(_))));
        assert!(far.listen().is_err());
    }

    #[test]
    fn interrupts_come_where_the_driver_waits_for_them() {
        let mut driver = Driver::new();
        let (mut ring, _) = driver.ring(true);
        assert!(ring.wants_interrupt().unwrap(), "at first");
        assert!(!ring.wants_interrupt().unwrap(), "nothing was answered");
        (0..6).for_each(|head| driver.offer(head));
        let wait_for = |index: u16| {
            let event = PLACES.available + 4 + 2 * u64::from(SIZE);
            driver.memory().store(event, index, Ordering::Relaxed).unwrap();
        };
        wait_for(2);
        let heads = ring.take().unwrap();
        let wanted: Vec<bool> = heads
            .iter()
            .map(|head| {
                ring.answer(*head, 0).unwrap();
                ring.wants_interrupt().unwrap()
            })
            .collect();
        assert_eq!(wanted, [false, false, true, false, false, false], "for the third");
        let (mut plain, _) = driver.ring(false);
        assert!(plain.wants_interrupt().unwrap());
        driver.memory().store(PLACES.available, SUPPRESSED, Ordering::Relaxed).unwrap();
        driver.offer(0);
        plain.take().unwrap();
        plain.answer(0, 0).unwrap();
        assert!(!plain.wants_interrupt().unwrap());
    }

    #[test]
    fn whoever_listens_misses_nothing() {
        let mut driver = Driver::new();
        let (mut ring, _) = driver.ring(true);
        assert!(!ring.listen().unwrap());
        driver.offer(0);
        assert!(ring.listen().unwrap());
        ring.take().unwrap();
        assert!(!ring.listen().unwrap());
        let event: u16 = driver.memory().load(PLACES.used + 4 + 8 * u64::from(SIZE), Ordering::Relaxed).unwrap();
        assert_eq!(event, 1);
    }
}

//! The thread of a device: takes requests, does them, and answers.
//!
//! What is here is served at once, on this thread; writes that came together are made together. What is not here becomes a
//! wait, answered out of order when it ends. Nothing is answered before it is true, and where the disk is closed under it,
//! nothing is answered at all: the driver keeps the request for whoever serves the device next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::ublk::{Operation, Queue, Request, UblkError};
use rustix::io::Errno;
use volume::{DeviceError, Durability, Readiness};

use super::orders::Orders;
use super::wait::Waits;
use crate::disk::{Disk, Written};
use crate::nbd::protocol::NBD_ESHUTDOWN;
use crate::nbd::refusal::Refusal;

/// How much is written at once.
const RUN_BYTES: usize = 4 << 20;
/// From this length on, a read is answered before further requests are served: its user can work on it meanwhile.
const ANSWERED_BYTES: u32 = 64 << 10;
/// A read that takes longer, and half a nanosecond for each byte, has waited for the medium.
const FAST: Duration = Duration::from_micros(60);
/// For how many fast reads after a slow one the medium is told of those that follow.
const SLOW_READS: u32 = 64;

/// What serves a device.
pub(super) struct Service<'queue> {
    queue: &'queue mut Queue,
    disk: Disk,
    waits: Waits,
    orders: Arc<Orders>,
    /// What is not answered, as the disk is closed: it is kept for who serves the device next, unless it has to fail.
    unanswered: Vec<Request>,
    buffer: Vec<u8>,
    /// For how many reads more the medium is told of what follows.
    slow: u32,
}

/// An error's number for the kernel; nothing where the request is not to be answered, as the disk is closed.
fn number(refusal: &Refusal) -> Option<Errno> {
    let number = i32::try_from(refusal.error).unwrap_or(0);
    (refusal.error != NBD_ESHUTDOWN).then(|| Errno::from_raw_os_error(number))
}

impl<'queue> Service<'queue> {
    pub(super) fn new(queue: &'queue mut Queue, disk: Disk, waits: Waits, orders: Arc<Orders>) -> Self {
        Service { queue, disk, waits, orders, unanswered: Vec::new(), buffer: Vec::new(), slow: 0 }
    }

    /// Serves until it is told to stop, or the device has been stopped.
    pub(super) fn run(mut self) -> Result<(), UblkError> {
        let mut requests = Vec::new();
        while !self.orders.is_to_stop() && !self.queue.is_over() {
            if self.orders.fails() {
                requests.append(&mut self.waits.give_up());
                requests.append(&mut self.unanswered);
                for request in requests.drain(..) {
                    self.queue.answer(&request, Err(Errno::IO))?;
                }
            } else {
                self.serve(&mut requests)?;
                self.answer_ended()?;
            }
            self.queue.wait(&mut requests)?;
        }
        // What was done is told, so that it is not asked for again.
        self.queue.submit()
    }

    /// Does requests that came together. Their order is free: none of them was answered before another one was made.
    fn serve(&mut self, requests: &mut Vec<Request>) -> Result<(), UblkError> {
        let together = |request: &Request| request.operation == Operation::Write && !request.durable;
        let (writes, others): (Vec<_>, Vec<_>) = requests.drain(..).partition(together);
        self.write(&writes)?;
        if !writes.is_empty() && !others.is_empty() {
            self.queue.submit()?;
        }
        self.foresee(&others);
        for request in others {
            self.perform(&request)?;
        }
        Ok(())
    }

    fn perform(&mut self, request: &Request) -> Result<(), UblkError> {
        let Request { offset, length, .. } = *request;
        let durability = if request.durable { Durability::Power } else { Durability::Process };
        let outcome = match request.operation {
            Operation::Read => return self.read(request),
            Operation::Write => return self.write_durably(request),
            Operation::Flush => self.disk.flush(),
            Operation::Discard => self.disk.discard(offset, length.into(), durability),
            // Only parts of sectors could be needed first, and the driver has whole ones.
            Operation::WriteZeroes => self.disk.write_zeroes(offset, length.into(), durability).map(|_: Written| ()),
            Operation::Other(_) => return self.queue.answer(request, Err(Errno::OPNOTSUPP)),
        };
        self.changed(request, outcome)
    }

    /// Answers what a change came to.
    fn changed(&mut self, request: &Request, outcome: Result<(), DeviceError>) -> Result<(), UblkError> {
        match outcome {
            Ok(()) => self.queue.answer(request, Ok(())),
            Err(error) => self.refuse(request, &Refusal::of(&error, true)),
        }
    }

    fn refuse(&mut self, request: &Request, refusal: &Refusal) -> Result<(), UblkError> {
        tracing::warn!(?request, reason = refusal.message, "a request failed");
        match number(refusal) {
            Some(error) => self.queue.answer(request, Err(error)),
            None => {
                self.unanswered.push(*request);
                Ok(())
            }
        }
    }

    /// A buffer of a length, whose content does not matter.
    fn take_buffer(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        buffer
    }

    fn read(&mut self, request: &Request) -> Result<(), UblkError> {
        let length = request.length as usize;
        let mut buffer = self.take_buffer(length);
        let begin = Instant::now();
        let outcome = self.disk.try_read(request.offset, &mut buffer[..length]);
        let took = begin.elapsed();
        match outcome {
            Ok(Readiness::Ready) => {
                let fast = FAST + Duration::from_nanos(u64::from(request.length) / 2);
                self.slow = if took > fast { SLOW_READS } else { self.slow.saturating_sub(1) };
                self.queue.give(request, &buffer[..length])?;
                self.queue.answer(request, Ok(()))?;
                if request.length >= ANSWERED_BYTES {
                    self.queue.submit()?;
                }
            }
            Ok(Readiness::Wait) => self.waits.begin(*request),
            Err(error) => self.refuse(request, &Refusal::of(&error, false))?,
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Tells the medium of reads that came together, where reads wait for it.
    fn foresee(&self, requests: &[Request]) {
        let reads = || requests.iter().filter(|request| request.operation == Operation::Read);
        if self.slow > 0 && reads().count() > 1 {
            reads().for_each(|request| self.disk.will_read(request.offset, request.length.into()));
        }
    }

    fn answer_ended(&mut self) -> Result<(), UblkError> {
        for (request, outcome) in self.waits.take() {
            match outcome {
                Some(Ok(bytes)) => {
                    self.queue.give(&request, &bytes)?;
                    self.queue.answer(&request, Ok(()))?;
                }
                Some(Err(refusal)) => self.refuse(&request, &refusal)?,
                // The task has panicked.
                None => self.queue.answer(&request, Err(Errno::IO))?,
            }
        }
        Ok(())
    }

    fn write_durably(&mut self, request: &Request) -> Result<(), UblkError> {
        let length = request.length as usize;
        let mut buffer = self.take_buffer(length);
        self.queue.take(request, &mut buffer[..length])?;
        let outcome = self.disk.write(request.offset, &buffer[..length], Durability::Power);
        self.buffer = buffer;
        self.changed(request, outcome.map(|_: Written| ()))
    }

    /// Makes writes, as many as fit the buffer in one go.
    fn write(&mut self, requests: &[Request]) -> Result<(), UblkError> {
        let mut rest = requests;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |request: &&Request| {
                bytes += request.length as usize;
                bytes <= RUN_BYTES
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (run, behind) = rest.split_at(count);
            self.write_run(run)?;
            rest = behind;
        }
        Ok(())
    }

    fn write_run(&mut self, run: &[Request]) -> Result<(), UblkError> {
        let mut buffer = self.take_buffer(run.iter().map(|request| request.length as usize).sum());
        let (mut rest, mut writes) = (&mut buffer[..], Vec::with_capacity(run.len()));
        for request in run {
            let (place, behind) = std::mem::take(&mut rest).split_at_mut(request.length as usize);
            rest = behind;
            self.queue.take(request, place)?;
            writes.push((request.offset, &*place));
        }
        match self.disk.write_many(&writes) {
            Ok(()) => {
                for request in run {
                    self.queue.answer(request, Ok(()))?;
                }
            }
            // Those that were made are made again, in the same order: none of them has been answered.
            Err(_) => {
                for (request, (offset, bytes)) in run.iter().zip(&writes) {
                    let outcome = self.disk.write(*offset, bytes, Durability::Process);
                    self.changed(request, outcome.map(|_: Written| ()))?;
                }
            }
        }
        drop(writes);
        self.buffer = buffer;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_kernels_numbers_and_a_closed_disk_has_none() {
        let of = |error: &DeviceError| number(&Refusal::of(error, true));
        assert_eq!(of(&DeviceError::Full), Some(Errno::NOSPC));
        assert_eq!(of(&DeviceError::ReadOnly), Some(Errno::PERM));
        assert_eq!(of(&DeviceError::Closed), None);
    }
}

//! The thread of a queue: takes requests, makes them, and answers.
//!
//! What is here is served at once, on this thread; writes that came together are made together. What is not here becomes a
//! wait, answered out of order when it ends. Nothing is answered before it is true, and where the disk is closed under it,
//! nothing is answered at all: the log keeps the requests for whoever serves the queue next.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use store::FetchError;
use tokio::runtime::Handle;
use volume::{BlockDevice, DeviceError, Durability, Readiness};

use crate::call::{Call, forget, make, wait};
use crate::chain::{Piece, bytes_of, gather, part, scatter};
use crate::memory::Memory;
use crate::request::{HEAD_BYTES, Head, ID_BYTES, Limits, MAX_SEGMENTS, Range, Request, SEGMENT_BYTES, Status};
use crate::ring::{Ring, RingError};
use crate::wait::{Ended, Failure, Waits};

/// How much is written at once.
const RUN_BYTES: u64 = 4 << 20;
/// From this length on, an answer is announced before further requests are served: the guest can work on it meanwhile.
const ANNOUNCED_BYTES: u64 = 64 << 10;
/// A read that takes longer, and half a nanosecond for each byte, has waited for the medium.
const FAST: Duration = Duration::from_micros(60);
/// For how many fast reads after a slow one the medium is told of those that follow.
const SLOW_READS: u32 = 64;

const RUN: u8 = 0;
const DRAIN: u8 = 1;
const STOP: u8 = 2;

/// The disk behind all queues.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) runtime: Handle,
    pub(crate) read_timeout: Option<Duration>,
    /// What it calls itself.
    pub(crate) serial: [u8; ID_BYTES],
    /// Whether the guest has turned the write cache off.
    pub(crate) write_through: AtomicBool,
}

/// What a worker is told to do.
#[derive(Debug)]
pub(crate) struct Orders {
    order: AtomicU8,
    call: Call,
    /// Called when the worker has ended.
    pub(crate) ended: Call,
}

impl Orders {
    pub(crate) fn new() -> io::Result<Orders> {
        Ok(Orders { order: AtomicU8::new(RUN), call: Call::new()?, ended: Call::new()? })
    }

    pub(crate) fn wake(&self) {
        self.call.make();
    }

    /// Takes no more requests, and ends when those that were taken are answered.
    pub(crate) fn drain(&self) {
        self.order.fetch_max(DRAIN, Ordering::AcqRel);
        self.wake();
    }

    /// Ends after the request in hand; what waits is given up, and stays in the log.
    pub(crate) fn stop(&self) {
        self.order.fetch_max(STOP, Ordering::AcqRel);
        self.wake();
    }
}

/// Where the guest is told of answers, if it wants to be.
pub(crate) type Interrupt = Arc<Mutex<Option<OwnedFd>>>;

/// Tells the guest to look.
pub(crate) fn interrupt(interrupt: &Interrupt) {
    if let Some(event) = &*interrupt.lock().unwrap_or_else(PoisonError::into_inner) {
        make(event);
    }
}

/// A request that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) head: u16,
    pub(crate) request: Request,
    /// What it brings, behind its head.
    data: Vec<Piece>,
    /// Where its outcome goes, before the status.
    room: Vec<Piece>,
    status: Vec<Piece>,
}

/// A worker ended by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    /// The guest has broken its queue, which is not served any more until it is set up again.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The disk was closed.
    #[error("the disk is closed")]
    Closed,
    /// Nothing can be waited for.
    #[error("the worker cannot wait")]
    Wait(#[from] io::Error),
}

/// What a worker is made of.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) target: Arc<Target>,
    pub(crate) orders: Arc<Orders>,
    pub(crate) ring: Ring,
    pub(crate) kick: Arc<OwnedFd>,
    pub(crate) interrupt: Interrupt,
    /// Whether the driver knows of no flush.
    pub(crate) always_durable: bool,
}

/// A worker that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) orders: Arc<Orders>,
    pub(crate) thread: JoinHandle<u16>,
}

impl Worker {
    /// Begins to serve, first what is under way. `closed` is called where the disk was closed.
    pub(crate) fn start(
        self,
        index: u32,
        again: Vec<u16>,
        closed: impl FnOnce() + Send + 'static,
    ) -> io::Result<Running> {
        let orders = Arc::clone(&self.orders);
        let thread = std::thread::Builder::new().name(format!("vhost-user {index}")).spawn(move || {
            let orders = Arc::clone(&self.orders);
            let waits = Waits::new(
                Arc::clone(&self.target.device),
                self.target.runtime.clone(),
                self.target.read_timeout,
                Arc::clone(&orders),
            );
            let mut service = Service { worker: self, waits, buffer: Vec::new(), slow: 0 };
            let outcome = service.run(again);
            match outcome {
                Ok(()) => {}
                Err(WorkerError::Closed) => {
                    tracing::warn!(index, "the disk is closed: nothing is answered until it is there again");
                    closed();
                }
                Err(error) => {
                    let reason = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, reason, index, "a queue is not served any more: its driver must set it up again");
                }
            }
            let next = service.worker.ring.next_available();
            drop(service);
            orders.ended.make();
            next
        })?;
        Ok(Running { orders, thread })
    }
}

#[derive(Debug)]
struct Service {
    worker: Worker,
    waits: Waits,
    buffer: Vec<u8>,
    /// For how many reads more the medium is told of what follows.
    slow: u32,
}

impl Service {
    fn run(&mut self, again: Vec<u16>) -> Result<(), WorkerError> {
        self.serve(again)?;
        self.announce()?;
        loop {
            let order = self.worker.orders.order.load(Ordering::Acquire);
            if order == STOP || (order == DRAIN && self.waits.is_empty()) {
                return Ok(());
            }
            self.answer_ended()?;
            if order == RUN {
                let heads = self.worker.ring.take()?;
                if !heads.is_empty() {
                    self.worker.ring.stop_listening()?;
                    self.serve(heads)?;
                    self.announce()?;
                    continue;
                }
                if self.worker.ring.listen()? {
                    continue;
                }
            }
            self.sleep(order)?;
        }
    }

    fn sleep(&self, order: u8) -> io::Result<()> {
        let Worker { kick, orders, .. } = &self.worker;
        // Who is draining takes no more requests, and so does not listen to the driver.
        let wanted = if order == RUN { PollFlags::IN } else { PollFlags::empty() };
        let [kicked, called] = wait([(kick.as_fd(), wanted), (orders.call.as_fd(), PollFlags::IN)])?;
        if kicked {
            forget(kick);
        }
        if called {
            orders.call.forget();
        }
        Ok(())
    }

    fn announce(&mut self) -> Result<(), RingError> {
        if self.worker.ring.wants_interrupt()? {
            interrupt(&self.worker.interrupt);
        }
        Ok(())
    }

    fn durability(&self) -> Durability {
        let through = self.worker.always_durable || self.worker.target.write_through.load(Ordering::Acquire);
        if through { Durability::Power } else { Durability::Process }
    }

    /// Makes requests that came together. Their order is free: none of them was answered before another one was offered.
    fn serve(&mut self, heads: Vec<u16>) -> Result<(), WorkerError> {
        let memory = self.worker.ring.memory();
        let (mut writes, mut others) = (Vec::new(), Vec::new());
        for head in heads {
            match self.prepare(&memory, head)? {
                Some((task, range)) if matches!(task.request, Request::Write(_)) => writes.push((task, range)),
                Some((task, range)) => others.push((task, range)),
                None => {}
            }
        }
        if !writes.is_empty() {
            self.write(&memory, &writes)?;
            if !others.is_empty() {
                self.announce()?;
            }
        }
        self.foresee(&others);
        for (task, range) in others {
            self.perform(&memory, task, range)?;
            if range.length >= ANNOUNCED_BYTES {
                self.announce()?;
            }
        }
        Ok(())
    }

    /// Reads and checks a request; what is refused is answered. With it comes the range of its data, where it has some.
    fn prepare(&mut self, memory: &Memory, head: u16) -> Result<Option<(Task, Range)>, RingError> {
        let chain = match self.worker.ring.walk(memory, head) {
            Ok(chain) if !chain.writable.is_empty() => chain,
            // There is no place for a status.
            Ok(_) => return self.worker.ring.answer(head, 0).map(|()| None),
            Err(error) => {
                tracing::debug!(%error, head, "a request is refused");
                return self.worker.ring.answer(head, 0).map(|()| None);
            }
        };
        let (readable, writable) = (bytes_of(&chain.readable), bytes_of(&chain.writable) - 1);
        let status = part(&chain.writable, writable, 1);
        let mut bytes = [0; HEAD_BYTES];
        let first = part(&chain.readable, 0, HEAD_BYTES as u64);
        if gather(memory, &first, &mut bytes).is_err() || readable < HEAD_BYTES as u64 {
            return self.answer(memory, head, &status, 0, Status::IoError).map(|()| None);
        }
        let (request, readable) = (Head::decode(&bytes), readable - HEAD_BYTES as u64);
        let data = part(&chain.readable, HEAD_BYTES as u64, readable);
        let device = &self.worker.target.device;
        let limits = Limits { size_bytes: device.size_bytes(), read_only: device.read_only() };
        let mut segments = Vec::new();
        let most = SEGMENT_BYTES as u64 * u64::from(MAX_SEGMENTS) + 1;
        if request.has_segments() {
            // One byte more than there may be is too many.
            segments = vec![0; usize::try_from(readable.min(most)).unwrap_or(0)];
            if gather(memory, &part(&data, 0, most), &mut segments).is_err() {
                return self.answer(memory, head, &status, 0, Status::IoError).map(|()| None);
            }
        }
        match request.check(readable, writable, &segments, &limits) {
            Ok(request) => {
                let range = match &request {
                    Request::Read(range) | Request::Write(range) => *range,
                    _ => Range { offset: 0, length: 0 },
                };
                let room = part(&chain.writable, 0, writable);
                Ok(Some((Task { head, request, data, room, status }, range)))
            }
            Err(refused) => {
                tracing::debug!(?request, readable, writable, ?refused, "a request is refused");
                self.answer(memory, head, &status, 0, refused).map(|()| None)
            }
        }
    }

    /// Answers a request, into whose room that many bytes were written.
    fn answer(
        &mut self,
        memory: &Memory,
        head: u16,
        status: &[Piece],
        written: u64,
        outcome: Status,
    ) -> Result<(), RingError> {
        // A guest that gave no memory for it does not get it.
        let told = scatter(memory, status, &[outcome.byte()]).is_ok();
        let written = u32::try_from(written).unwrap_or(u32::MAX).saturating_add(u32::from(told));
        self.worker.ring.answer(head, written)
    }

    /// Answers what a change, or a request without data for the guest, came to.
    fn changed(&mut self, memory: &Memory, task: &Task, outcome: Result<(), DeviceError>) -> Result<(), WorkerError> {
        let status = match outcome {
            Ok(()) => Status::Ok,
            Err(error) if is_closed(&error) => return Err(WorkerError::Closed),
            Err(error) => {
                tracing::warn!(error = reasons(&error), request = ?task.request, "a request failed");
                Status::IoError
            }
        };
        Ok(self.answer(memory, task.head, &task.status, 0, status)?)
    }

    /// Makes writes, as many as fit the buffer in one go.
    fn write(&mut self, memory: &Memory, tasks: &[(Task, Range)]) -> Result<(), WorkerError> {
        let mut rest = tasks;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fit = |(_, range): &&(Task, Range)| {
                bytes += range.length;
                bytes <= RUN_BYTES
            };
            let count = rest.iter().take_while(fit).count().max(1);
            let (run, behind) = rest.split_at(count);
            self.write_run(memory, run)?;
            rest = behind;
        }
        Ok(())
    }

    fn write_run(&mut self, memory: &Memory, run: &[(Task, Range)]) -> Result<(), WorkerError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let total: u64 = run.iter().map(|(_, range)| range.length).sum();
        buffer.resize(length_of(total), 0);
        let (mut rest, mut writes, mut tasks) = (&mut buffer[..], Vec::new(), Vec::new());
        for (task, range) in run {
            let (place, behind) = std::mem::take(&mut rest).split_at_mut(length_of(range.length));
            rest = behind;
            // A guest's memory may change while it is read: what was copied once is what is written.
            if gather(memory, &task.data, place).is_err() {
                self.answer(memory, task.head, &task.status, 0, Status::IoError)?;
                continue;
            }
            writes.push((range.offset, &*place));
            tasks.push(task);
        }
        let (device, durability) = (Arc::clone(&self.worker.target.device), self.durability());
        let together = if writes.is_empty() { Ok(()) } else { device.write_many(&writes, durability) };
        match together {
            Ok(()) => {
                for task in tasks {
                    self.changed(memory, task, Ok(()))?;
                }
            }
            Err(error) if is_closed(&error) => return Err(WorkerError::Closed),
            // Those that were made are made again, in the same order: none of them has been answered.
            Err(_) => {
                for (task, (offset, bytes)) in tasks.into_iter().zip(&writes) {
                    let outcome = device.write(*offset, bytes, durability);
                    self.changed(memory, task, outcome)?;
                }
            }
        }
        drop(writes);
        self.keep(buffer);
        Ok(())
    }

    /// Keeps a buffer for the next request, unless it is a large one.
    fn keep(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() as u64 > RUN_BYTES {
            buffer = Vec::new();
        }
        self.buffer = buffer;
    }

    /// Tells the medium of reads that came together, where reads wait for it.
    fn foresee(&self, tasks: &[(Task, Range)]) {
        let reads = || tasks.iter().filter(|(task, _)| matches!(task.request, Request::Read(_)));
        if self.slow > 0 && reads().count() > 1 {
            reads().for_each(|(_, range)| self.worker.target.device.will_read(range.offset, range.length));
        }
    }

    fn perform(&mut self, memory: &Memory, task: Task, range: Range) -> Result<(), WorkerError> {
        let (device, durability) = (Arc::clone(&self.worker.target.device), self.durability());
        let each =
            |ranges: &[Range], work: &dyn Fn(&Range) -> Result<(), DeviceError>| ranges.iter().try_for_each(work);
        let outcome = match &task.request {
            Request::Read(_) => return self.read(memory, task, range),
            Request::Write(_) => return self.write(memory, &[(task, range)]),
            Request::Identify => {
                let serial = self.worker.target.serial;
                let told = scatter(memory, &part(&task.room, 0, serial.len() as u64), &serial);
                let status = if told.is_ok() { Status::Ok } else { Status::IoError };
                return Ok(self.answer(memory, task.head, &task.status, serial.len() as u64, status)?);
            }
            Request::Flush => device.flush(),
            Request::Discard(ranges) => each(ranges, &|range| device.discard(range.offset, range.length, durability)),
            Request::WriteZeroes(ranges) => {
                each(ranges, &|range| device.write_zeroes(range.offset, range.length, durability))
            }
        };
        self.changed(memory, &task, outcome)
    }

    fn read(&mut self, memory: &Memory, task: Task, range: Range) -> Result<(), WorkerError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(length_of(range.length), 0);
        let begin = Instant::now();
        let outcome = self.worker.target.device.try_read(range.offset, &mut buffer);
        let fast = FAST + Duration::from_nanos(range.length / 2);
        self.slow = if begin.elapsed() > fast { SLOW_READS } else { self.slow.saturating_sub(1) };
        match outcome {
            Ok(Readiness::Ready) => self.give(memory, &task, &buffer)?,
            Ok(Readiness::Wait) => self.waits.begin(task, range),
            Err(error) => self.changed(memory, &task, Err(error))?,
        }
        self.keep(buffer);
        Ok(())
    }

    /// Answers a read.
    fn give(&mut self, memory: &Memory, task: &Task, bytes: &[u8]) -> Result<(), RingError> {
        let (written, status) = match scatter(memory, &task.room, bytes) {
            Ok(()) => (bytes.len() as u64, Status::Ok),
            Err(_) => (0, Status::IoError),
        };
        self.answer(memory, task.head, &task.status, written, status)
    }

    fn answer_ended(&mut self) -> Result<(), WorkerError> {
        let ended = self.waits.take();
        if ended.is_empty() {
            return Ok(());
        }
        let memory = self.worker.ring.memory();
        for Ended { task, range, outcome } in ended {
            match outcome {
                Ok(bytes) => self.give(&memory, &task, &bytes)?,
                Err(Failure::Closed) => return Err(WorkerError::Closed),
                Err(Failure::Failed(reason)) => {
                    tracing::warn!(reason, ?range, "a read failed");
                    self.answer(&memory, task.head, &task.status, 0, Status::IoError)?;
                }
            }
        }
        Ok(self.announce()?)
    }
}

/// Whether somebody else may have the disk, or its data, later.
pub(crate) fn is_closed(error: &DeviceError) -> bool {
    matches!(error, DeviceError::Closed | DeviceError::Fetch(FetchError::Closed))
}

/// Lengths were checked against what a request may have.
fn length_of(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// An error and its sources in one line.
pub(crate) fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        text = format!("{text}: {reason}");
        source = reason.source();
    }
    text
}

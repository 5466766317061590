//! Requests that wait for what is not here.
//!
//! Each waits as a task of the network's runtime, with the device's permission to be dropped at any time. When it has
//! ended, in whatever way, the connection's thread is woken and answers: only that thread writes to the client. Number
//! and bytes of waits are bounded; dropping this cancels them all.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::link::Link;
use super::protocol::{NBD_EIO, Request};
use super::refusal::Refusal;
use crate::disk::Disk;

/// What a wait is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// To answer a read, from this offset to its end.
    Read(u64),
    /// To bring the sectors that a write covers in part; then the request is done again, with its payload.
    Retry(Vec<u8>),
    /// To bring a range near.
    Cache,
}

/// A request that waits, as another process is told of it.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: Request,
    pub(crate) purpose: Purpose,
}

/// A wait that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) request: Request,
    pub(crate) purpose: Purpose,
    /// What came; `None` if the wait was given up.
    pub(crate) outcome: Option<Result<Bytes, Refusal>>,
    charged: usize,
}

/// The bounds of a connection's waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitLimits {
    pub(crate) requests: usize,
    pub(crate) bytes: usize,
    pub(crate) timeout: Option<Duration>,
}

/// A connection's waits.
#[derive(Debug)]
pub(crate) struct Waits {
    runtime: Handle,
    tasks: JoinSet<()>,
    link: Arc<Link>,
    ended: Arc<EndedList>,
    limits: WaitLimits,
    requests: usize,
    bytes: usize,
}

impl Waits {
    pub(crate) fn new(runtime: Handle, link: Arc<Link>, limits: WaitLimits) -> Waits {
        let ended = Arc::new(EndedList { list: Mutex::default(), link: Arc::clone(&link) });
        Waits { runtime, tasks: JoinSet::new(), link, ended, limits, requests: 0, bytes: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Whether no further request may be begun that could have to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.requests >= self.limits.requests || self.bytes >= self.limits.bytes
    }

    /// Begins to wait for ranges of the disk, one after the other; the last one's bytes are the outcome.
    pub(crate) fn begin(&mut self, disk: &Disk, request: Request, purpose: Purpose, ranges: Vec<(u64, usize)>) {
        let held = if let Purpose::Retry(payload) = &purpose { payload.len() } else { 0 };
        let charged = held + ranges.iter().map(|range| range.1).max().unwrap_or(0);
        self.requests += 1;
        self.bytes += charged;
        let ticket =
            Ticket { ended: Arc::clone(&self.ended), wait: Some(Ended { request, purpose, outcome: None, charged }) };
        let (disk, timeout) = (disk.clone(), self.limits.timeout);
        self.tasks.spawn_on(async move { ticket.end(fetch(&disk, ranges, timeout).await) }, &self.runtime);
    }

    /// Gives up all waits, and returns them with those that had ended before.
    pub(crate) fn recall(&mut self) -> io::Result<Vec<Ended>> {
        self.tasks.abort_all();
        let mut recalled = self.take();
        while !self.is_empty() {
            self.link.wait_for_call()?;
            recalled.append(&mut self.take());
        }
        Ok(recalled)
    }

    /// The waits that have ended since the last call.
    pub(crate) fn take(&mut self) -> Vec<Ended> {
        if self.requests == 0 {
            return Vec::new();
        }
        let ended = std::mem::take(&mut *self.ended.list.lock().unwrap_or_else(PoisonError::into_inner));
        for wait in &ended {
            self.requests -= 1;
            self.bytes -= wait.charged;
        }
        while self.tasks.try_join_next().is_some() {}
        ended
    }
}

/// Reads ranges of the disk, one after the other, and returns the last one's bytes. Each may take as long as is said.
pub(crate) async fn fetch(disk: &Disk, ranges: Vec<(u64, usize)>, timeout: Option<Duration>) -> Result<Bytes, Refusal> {
    let mut last = Bytes::new();
    for (offset, length) in ranges {
        let read = disk.read(offset, length);
        let outcome = match timeout {
            None => read.await,
            Some(timeout) => tokio::time::timeout(timeout, read).await.map_err(|_| {
                tracing::warn!(offset, length, ?timeout, "nobody had a range in time: its read fails");
                Refusal::new(NBD_EIO, "nobody had the data in time")
            })?,
        };
        last = outcome.map_err(|error| Refusal::of(&error, false))?;
        if last.len() != length {
            return Err(Refusal::new(NBD_EIO, "the disk gave a part of what was asked for"));
        }
    }
    Ok(last)
}

#[derive(Debug)]
struct EndedList {
    list: Mutex<Vec<Ended>>,
    link: Arc<Link>,
}

/// The promise that a wait's end is noticed, even that of a task that panics or is dropped.
#[derive(Debug)]
struct Ticket {
    ended: Arc<EndedList>,
    wait: Option<Ended>,
}

impl Ticket {
    fn end(mut self, outcome: Result<Bytes, Refusal>) {
        if let Some(wait) = &mut self.wait {
            wait.outcome = Some(outcome);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(wait) = self.wait.take() {
            self.ended.list.lock().unwrap_or_else(PoisonError::into_inner).push(wait);
            self.ended.link.wake();
        }
    }
}

//! Reads whose data are elsewhere: they wait on the runtime, and the device's thread is woken when they have ended.
//!
//! Invariant: what waits is bounded by the device's depth, and what is fetched at once by [`MOST_BYTES`]; the rest is begun as
//! others end. Dropping this gives all waits up.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::ublk::Request;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::orders::Orders;
use crate::disk::Disk;
use crate::nbd::refusal::Refusal;
use crate::nbd::wait::fetch;

/// How many bytes a device fetches at once, at most, unless it is a single request.
const MOST_BYTES: u64 = 32 << 20;

/// What a wait came to; nothing where it was given up.
type Outcome = Option<Result<Bytes, Refusal>>;

/// The waits of a device.
#[derive(Debug)]
pub(super) struct Waits {
    disk: Disk,
    runtime: Handle,
    timeout: Option<Duration>,
    orders: Arc<Orders>,
    tasks: JoinSet<()>,
    ended: Arc<Mutex<Vec<(u16, Outcome)>>>,
    waiting: BTreeMap<u16, Request>,
    bytes: u64,
    later: VecDeque<Request>,
}

impl Waits {
    pub(super) fn new(disk: Disk, runtime: Handle, timeout: Option<Duration>, orders: Arc<Orders>) -> Waits {
        let (ended, waiting, later) = (Arc::default(), BTreeMap::new(), VecDeque::new());
        Waits { disk, runtime, timeout, orders, tasks: JoinSet::new(), ended, waiting, bytes: 0, later }
    }

    /// Begins to wait for what a request reads.
    pub(super) fn begin(&mut self, request: Request) {
        self.later.push_back(request);
        self.begin_those_that_fit();
    }

    fn begin_those_that_fit(&mut self) {
        while let Some(request) = self.later.pop_front() {
            if self.bytes > 0 && self.bytes + u64::from(request.length) > MOST_BYTES {
                return self.later.push_front(request);
            }
            self.bytes += u64::from(request.length);
            self.waiting.insert(request.tag, request);
            let (ended, orders) = (Arc::clone(&self.ended), Arc::clone(&self.orders));
            let ticket = Ticket { tag: request.tag, ended, orders, outcome: None };
            let timeout = self.timeout.into_iter().chain(self.orders.time_left()).min();
            let disk = self.disk.clone();
            let ranges = vec![(request.offset, request.length as usize)];
            let work = async move { ticket.end(fetch(&disk, ranges, timeout).await) };
            self.tasks.spawn_on(work, &self.runtime);
        }
    }

    /// The waits that have ended since the last call.
    pub(super) fn take(&mut self) -> Vec<(Request, Outcome)> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        while self.tasks.try_join_next().is_some() {}
        let mut all = Vec::with_capacity(ended.len());
        for (tag, outcome) in ended {
            let Some(request) = self.waiting.remove(&tag) else { continue };
            self.bytes -= u64::from(request.length);
            all.push((request, outcome));
        }
        self.begin_those_that_fit();
        all
    }

    /// Gives all waits up, and returns their requests.
    pub(super) fn give_up(&mut self) -> Vec<Request> {
        // What a task says when it is dropped is about nothing any more.
        self.tasks = JoinSet::new();
        self.ended = Arc::default();
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_values().chain(std::mem::take(&mut self.later)).collect()
    }
}

/// The promise that a wait's end is noticed, even that of a task that panics.
#[derive(Debug)]
struct Ticket {
    tag: u16,
    ended: Arc<Mutex<Vec<(u16, Outcome)>>>,
    orders: Arc<Orders>,
    outcome: Outcome,
}

impl Ticket {
    fn end(mut self, outcome: Result<Bytes, Refusal>) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push((self.tag, self.outcome.take()));
        self.orders.wake();
    }
}

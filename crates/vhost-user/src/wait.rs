//! Reads whose data are elsewhere: they wait on the runtime, and whoever serves the queue is called when they have ended.
//!
//! Invariant: what waits is bounded by the queue's size, and what is fetched at once by [`MOST_BYTES`]; the rest is begun as
//! others end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use volume::BlockDevice;

use crate::request::Range;
use crate::worker::{Orders, Task, is_closed, reasons};

/// How many bytes one queue fetches at once, at most, unless it is a single request.
const MOST_BYTES: u64 = 32 << 20;

/// Why a read came to nothing.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The device was closed: whoever has it next shall make the request again.
    Closed,
    /// It cannot be read.
    Failed(String),
}

/// The end of a wait.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) task: Task,
    pub(crate) range: Range,
    pub(crate) outcome: Result<Bytes, Failure>,
}

type EndedList = Mutex<Vec<(u16, Result<Bytes, Failure>)>>;

/// The waits of a queue. Dropping them gives them up.
#[derive(Debug)]
pub(crate) struct Waits {
    device: Arc<dyn BlockDevice>,
    runtime: Handle,
    timeout: Option<Duration>,
    orders: Arc<Orders>,
    tasks: JoinSet<()>,
    ended: Arc<EndedList>,
    waiting: BTreeMap<u16, (Task, Range)>,
    bytes: u64,
    later: VecDeque<(Task, Range)>,
}

impl Waits {
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        runtime: Handle,
        timeout: Option<Duration>,
        orders: Arc<Orders>,
    ) -> Waits {
        let (ended, waiting, later) = (Arc::default(), BTreeMap::new(), VecDeque::new());
        Waits { device, runtime, timeout, orders, tasks: JoinSet::new(), ended, waiting, bytes: 0, later }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.later.is_empty()
    }

    /// Begins to wait.
    pub(crate) fn begin(&mut self, task: Task, range: Range) {
        self.later.push_back((task, range));
        self.begin_those_that_fit();
    }

    fn begin_those_that_fit(&mut self) {
        while let Some((task, range)) = self.later.pop_front() {
            if self.bytes > 0 && self.bytes + range.length > MOST_BYTES {
                return self.later.push_front((task, range));
            }
            self.bytes += range.length;
            let (head, device, timeout) = (task.head, Arc::clone(&self.device), self.timeout);
            self.waiting.insert(head, (task, range));
            let (ended, orders) = (Arc::clone(&self.ended), Arc::clone(&self.orders));
            let ticket = Ticket { head, ended, orders, outcome: Err(Failure::Closed) };
            let work = async move { ticket.end(fetch(&*device, range, timeout).await) };
            self.tasks.spawn_on(work, &self.runtime);
        }
    }

    /// The waits that have ended since the last call.
    pub(crate) fn take(&mut self) -> Vec<Ended> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        while self.tasks.try_join_next().is_some() {}
        let mut all = Vec::with_capacity(ended.len());
        for (head, outcome) in ended {
            let Some((task, range)) = self.waiting.remove(&head) else { continue };
            self.bytes -= range.length;
            all.push(Ended { task, range, outcome });
        }
        self.begin_those_that_fit();
        all
    }
}

async fn fetch(device: &dyn BlockDevice, range: Range, timeout: Option<Duration>) -> Result<Bytes, Failure> {
    let length = usize::try_from(range.length).map_err(|_| Failure::Failed("it is too long".to_owned()))?;
    let read = device.read(range.offset, length);
    let outcome = match timeout {
        None => read.await,
        Some(timeout) => tokio::time::timeout(timeout, read).await.map_err(|_| {
            tracing::warn!(?range, ?timeout, "nobody had a range in time: its read fails");
            Failure::Failed("nobody had the data in time".to_owned())
        })?,
    };
    match outcome {
        Ok(bytes) if bytes.len() == length => Ok(bytes),
        Ok(_) => Err(Failure::Failed("the disk gave a part of what was asked for".to_owned())),
        Err(error) if is_closed(&error) => Err(Failure::Closed),
        Err(error) => Err(Failure::Failed(reasons(&error))),
    }
}

/// The promise that a wait's end is noticed, even that of a task that panics.
#[derive(Debug)]
struct Ticket {
    head: u16,
    ended: Arc<EndedList>,
    orders: Arc<Orders>,
    outcome: Result<Bytes, Failure>,
}

impl Ticket {
    fn end(mut self, outcome: Result<Bytes, Failure>) {
        self.outcome = outcome;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Err(Failure::Closed));
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push((self.head, outcome));
        self.orders.wake();
    }
}

//! Drives the scheduler: carries its actions out and tells it what came of them.
//!
//! Invariant: whoever waits is told, by success, by an error that stays, or by the engine's end; a passing fault is none
//! of these. The state lock is held for moments only, never across an await.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use format::Stored;
use futures_util::future::BoxFuture;
use store::{ChunkStore, FetchError, Part, StoreError, Urgency};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{EndpointId, SnapshotId};

use crate::client::{AskError, Client, IDLE, Received};
use crate::library::Library;
use crate::message::{ITEM_BYTES, Place, REPLY_BYTES, Request, Status};
use crate::options::SwarmOptions;
use crate::scheduler::{Action, End, EntryId, Moment, Order, RequestId, Scheduler, Want};
use crate::statistics::Statistics;
use crate::transport::Transport;

/// How long finding providers may take before it counts as having found none.
const LOOKUP: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn ChunkStore>,
    pub(crate) library: Arc<dyn Library>,
    pub(crate) client: Client,
    pub(crate) statistics: Statistics,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    state: Mutex<State>,
    wake: Notify,
    started: Instant,
}

#[derive(Debug)]
struct State {
    scheduler: Scheduler,
    waits: HashMap<EntryId, Vec<Wait>>,
    running: HashMap<RequestId, Running>,
    last_wait: u64,
    closed: bool,
}

/// How many bytes came over the wire for an object that is here now, or why it will not come.
pub(crate) type Arrival = Result<u64, FetchError>;

#[derive(Debug)]
struct Wait {
    number: u64,
    urgency: Urgency,
    done: oneshot::Sender<Arrival>,
}

#[derive(Debug)]
struct Running {
    task: AbortHandle,
    provider: EndpointId,
    urgency: Urgency,
}

impl Engine {
    pub(crate) fn new(
        options: &SwarmOptions,
        transport: Arc<dyn Transport>,
        store: Arc<dyn ChunkStore>,
        library: Arc<dyn Library>,
        seed: u64,
    ) -> Arc<Self> {
        let bulk_bytes = (options.bulk_in_flight_bytes, options.max_bulk_in_flight_bytes);
        let scheduler = Scheduler::new(transport.endpoint(), options.timing, bulk_bytes, seed);
        let state = State { scheduler, waits: HashMap::new(), running: HashMap::new(), last_wait: 0, closed: false };
        Arc::new(Self {
            store,
            library: Arc::clone(&library),
            client: Client::new(transport, library, options.timing.connect),
            statistics: Statistics::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            state: Mutex::new(state),
            wake: Notify::new(),
            started: Instant::now(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        self.started.elapsed()
    }

    /// Brings one object into the store. Dropping the future cancels the wait.
    pub(crate) fn fetch(self: &Arc<Self>, want: Want) -> BoxFuture<'static, Arrival> {
        let engine = Arc::clone(self);
        Box::pin(async move {
            if engine.claim(&want).await {
                return Ok(0);
            }
            let Some((_guard, done)) = engine.wait_for(want)? else { return Ok(0) };
            done.await.unwrap_or(Err(FetchError::Closed))
        })
    }

    /// Whether what is wanted is here after all, in another domain that may stand in for the one it is wanted in.
    async fn claim(&self, want: &Want) -> bool {
        let part = match want.whereabouts.place {
            Place::Manifest => return false,
            Place::Node(position) => Part::Node(position),
            Place::Chunk(index) => Part::Chunk(index),
        };
        // Mostly not: then all who ask in the same moment share a request.
        if !self.library.may_claim(&want.whereabouts.origin.snapshot) {
            return false;
        }
        let (library, origin, key, domain) =
            (Arc::clone(&self.library), want.whereabouts.origin, want.key, want.domain);
        tokio::task::spawn_blocking(move || library.claim(origin, part, &key, domain)).await.unwrap_or(false)
    }

    fn wait_for(self: &Arc<Self>, want: Want) -> Result<Option<(WaitGuard, oneshot::Receiver<Arrival>)>, FetchError> {
        let mut state = self.state();
        if state.closed {
            return Err(FetchError::Closed);
        }
        let urgency = want.urgency;
        let Some(entry) = state.scheduler.want(self.now(), want) else { return Ok(None) };
        state.last_wait += 1;
        let number = state.last_wait;
        let (done, receiver) = oneshot::channel();
        state.waits.entry(entry).or_default().push(Wait { number, urgency, done });
        self.wake.notify_one();
        Ok(Some((WaitGuard { engine: Arc::clone(self), entry, number }, receiver)))
    }

    /// Tells the engine that a snapshot has, or may have, new providers.
    pub(crate) fn announced(&self, snapshot: SnapshotId) {
        self.state().scheduler.announced(self.now(), snapshot);
        self.wake.notify_one();
    }

    /// Carries the scheduler's actions out until the engine is stopped.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            // Lets everyone who was woken together say what they want, so that it goes in one request.
            tokio::task::yield_now().await;
            let wake = self.step();
            let sleep = async {
                match wake {
                    Some(moment) => sleep_until(self.started + moment).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep => {}
                () = self.stop.cancelled() => break,
            }
        }
        self.close();
    }

    /// Closes idle connections until the engine is stopped.
    pub(crate) async fn tidy(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(IDLE / 4) => self.client.close_idle(),
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// Ends everything that is in flight and everyone's waiting.
    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waits.clear();
        let running = std::mem::take(&mut state.running);
        drop(state);
        running.into_values().for_each(|running| running.task.abort());
    }

    fn step(self: &Arc<Self>) -> Option<Moment> {
        let mut state = self.state();
        let (actions, wake) = state.scheduler.poll(self.now());
        for action in actions {
            match action {
                Action::LookUp(snapshot) => drop(self.tasks.spawn(Arc::clone(self).look_up(snapshot))),
                Action::Send(order) => {
                    let (id, provider, urgency) = (order.id, order.provider, order.urgency);
                    // The lock is held: the task cannot report its end before it is entered here.
                    let task = self.tasks.spawn(Arc::clone(self).carry_out(order)).abort_handle();
                    state.running.insert(id, Running { task, provider, urgency });
                }
                Action::Abandon { request, stalled } => {
                    if let Some(running) = state.running.remove(&request) {
                        running.task.abort();
                        if stalled {
                            self.client.discard(running.provider, running.urgency);
                        }
                    }
                }
            }
        }
        wake
    }

    async fn look_up(self: Arc<Self>, snapshot: SnapshotId) {
        let providers = tokio::select! {
            found = timeout(LOOKUP, self.library.providers(snapshot)) => found.unwrap_or_default(),
            () = self.stop.cancelled() => return,
        };
        tracing::debug!(%snapshot, providers = providers.len(), "looked up");
        self.state().scheduler.found(self.now(), snapshot, providers);
        self.wake.notify_one();
    }

    async fn carry_out(self: Arc<Self>, order: Order) {
        let end = match self.exchange(&order).await {
            Ok(end) => end,
            Err(AskError::Transport(error)) => {
                tracing::debug!(provider = %order.provider, %error, source = ?std::error::Error::source(&error), "asking failed");
                End::Failed
            }
            Err(AskError::Message(error)) => {
                tracing::warn!(provider = %order.provider, %error, "a provider does not speak the protocol");
                End::Wrong
            }
        };
        let mut state = self.state();
        state.running.remove(&order.id);
        state.scheduler.ended(self.now(), order.id, end);
        drop(state);
        self.wake.notify_one();
    }

    async fn exchange(&self, order: &Order) -> Result<End, AskError> {
        let places = order.items.iter().map(|item| item.place).collect();
        let request = Request::for_places(order.origin.snapshot, order.origin.disk, places, order.hops);
        let kind = order.items.first().map_or(store::Kind::Chunk, |item| item.key.kind);
        let (status, mut reply, sent) =
            self.client.ask(order.provider, order.urgency, &request, kind, order.items.len()).await?;
        self.statistics.count(order.provider, |peer| {
            let traffic = peer.fetched(order.urgency);
            traffic.requests += 1;
            traffic.message_bytes += (sent + REPLY_BYTES) as u64;
        });
        match status {
            Status::Ok => {}
            Status::Unknown => {
                // It may be our certificates that are too old; then asking again helps.
                let changed = self.client.show_again(order.provider, order.urgency).await?;
                return Ok(if changed { End::Busy } else { End::Unknown });
            }
            Status::Busy => return Ok(End::Busy),
            Status::Malformed => {
                tracing::warn!(provider = %order.provider, ?request, "a provider did not understand a request");
                return Ok(End::Unknown);
            }
        }
        while let Some((number, received)) = reply.next().await? {
            match received {
                Received::Nothing => {
                    self.statistics.count(order.provider, |peer| {
                        peer.fetched(order.urgency).message_bytes += ITEM_BYTES as u64;
                    });
                    self.state().scheduler.absent(self.now(), order.id, number);
                    self.wake.notify_one();
                }
                Received::Object(stored) => {
                    if !self.keep(order, number, stored).await {
                        return Ok(End::Wrong);
                    }
                }
            }
        }
        Ok(End::Complete)
    }

    /// Stores what came for an item, if it is right, and tells who waits. Returns whether it was right.
    async fn keep(&self, order: &Order, number: usize, stored: Stored) -> bool {
        let item = order.items[number];
        let bytes = stored.bytes.len() as u64;
        self.statistics.count(order.provider, |peer| {
            let traffic = peer.fetched(order.urgency);
            traffic.objects += 1;
            traffic.payload_bytes += bytes;
            traffic.message_bytes += bytes + ITEM_BYTES as u64;
        });
        let store = Arc::clone(&self.store);
        let put = move || {
            let outcome = store.put_stored(&item.key, item.domain, &stored);
            let full = matches!(outcome, Err(StoreError::Full { .. }));
            (outcome, full && store.lend(&item.key, item.domain, &stored).unwrap_or(false))
        };
        let (outcome, lent) = match tokio::task::spawn_blocking(put).await {
            Ok((Ok(_), _)) => (Ok(bytes), false),
            Ok((Err(StoreError::WrongHash(key)), _)) => {
                tracing::warn!(provider = %order.provider, %key, "a provider sent wrong bytes; it is banned for a while");
                self.statistics.count(order.provider, |peer| peer.bad_objects += 1);
                return false;
            }
            Ok((Err(error), lent)) => (Err(FetchError::Store(Arc::new(error))), lent),
            // The runtime is shutting down.
            Err(_) => (Err(FetchError::Closed), false),
        };
        let mut state = self.state();
        let now = self.now();
        let entry = match &outcome {
            Ok(_) => state.scheduler.arrived(now, order.id, number, bytes),
            Err(_) => state.scheduler.rejected(now, order.id, number),
        };
        let waits = entry.and_then(|entry| state.waits.remove(&entry)).unwrap_or_default();
        drop(state);
        for wait in waits {
            // A guest's read is answered though there is no room; what was lent will have to be fetched again.
            let outcome = if lent && wait.urgency == Urgency::Lazy { Ok(bytes) } else { outcome.clone() };
            // One who has stopped waiting needs no answer.
            let _ = wait.done.send(outcome);
        }
        self.wake.notify_one();
        true
    }
}

/// Ends a wait when it is dropped.
struct WaitGuard {
    engine: Arc<Engine>,
    entry: EntryId,
    number: u64,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let mut state = self.engine.state();
        let Some(waits) = state.waits.get_mut(&self.entry) else { return };
        waits.retain(|wait| wait.number != self.number);
        if waits.is_empty() {
            state.waits.remove(&self.entry);
        }
        state.scheduler.forget(self.entry);
        drop(state);
        self.engine.wake.notify_one();
    }
}

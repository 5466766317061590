//! The home's side of a replica: whoever changes the volume enters it here, and it is sent to the member that keeps the replica.
//!
//! Invariants: while the replica is *current*, nothing is answered that it lacks (with `sync`), or more than so many bytes are behind (else).
//! It stops to be so only when the replica itself or a witness has recorded it, or the operator says so; and begins to be so only
//! after it has caught up.

mod planned;

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use format::to_canonical;
use futures_util::future::BoxFuture;
use swarm::transport::{Connection, ReceiveStream, SendStream, TransportError};
use tokio::sync::Notify;
use tokio::time::timeout;
use types::{EndpointId, Name};
use volume::{Change, DeviceError, Durability, Observer};

use crate::epoch::supersedes;
use crate::frame::{FrameError, Operation, Outcome, REPLY_BYTES, ReplyFrame};
use crate::line::Line;
use crate::message::{self, MessageError, Refusal, Reply, Settings, Terms};
use crate::peers::AskError;
use crate::remote::send_all;
use crate::table::Request;

pub use planned::Standing;

/// How much is put together for one send, in bytes.
const SEND_BYTES: usize = 256 << 10;

/// How long the member may take to answer at first.
const GREETING: Duration = Duration::from_secs(5);

/// How long it may take to fetch what has changed since it fetched last, while changes wait.
const LAST_ROUND: Duration = Duration::from_mins(2);

/// How soon a member that was lost is tried again, at first and at last.
const AGAIN: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// How long a replica that is current may be away before it is asked whether the volume may go on without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// A member that is connected and makes none of the changes that it was told of for so long counts as away: its disk hangs.
const STALLED: Duration = Duration::from_mins(2);

/// What a mirror needs of its node.
pub trait MirrorHost: Send + Sync + Debug {
    /// Connects to the member.
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, AskError>>;

    /// How often the volume was given.
    ///
    /// # Errors
    /// Where that cannot be told now.
    fn epoch(&self) -> Result<u64, String>;

    /// Records durably whether the replica is current; if it is, at the witness first.
    fn set_current(&self, current: bool) -> BoxFuture<'_, Result<(), String>>;

    /// Whether the volume may go on without the replica, which is away: because a witness has recorded it, or because the terms
    /// say so.
    fn outdate(&self) -> BoxFuture<'_, bool>;

    /// What was set for the volume, by now.
    ///
    /// # Errors
    /// Where that cannot be told now.
    fn settings(&self) -> Result<Settings, String>;

    /// Another member has taken the volume over.
    fn superseded(&self, home: EndpointId, epoch: u64) -> BoxFuture<'_, ()>;
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorState {
    /// It has everything that it must have.
    Current,
    /// It was, and does not answer.
    Away,
    /// It is being brought up to date.
    Syncing,
    /// It is not current, and does not answer.
    Behind,
}

/// What a replica is, and how far it is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorStatus {
    /// What it is.
    pub state: MirrorState,
    /// What it lacks of what was written since it began to follow, in bytes.
    pub lag_bytes: u64,
    /// For how long the oldest of that has waited.
    pub lag: Duration,
}

/// A replica, as the home of its volume sees it.
#[derive(Debug)]
pub struct Mirror {
    volume: Name,
    terms: Terms,
    state: Mutex<State>,
    /// Held from when settings are read until they are entered: the latest come last.
    telling: Mutex<()>,
    /// Told when somebody who waits may go on.
    moved: Condvar,
    /// Told when there is something to send.
    entered: Notify,
}

#[derive(Debug, Default)]
struct State {
    current: bool,
    connected: bool,
    line: Option<Line>,
    /// The number of the last change, over all lines.
    last: u64,
    /// The number with which the replica was told that it is current.
    told: u64,
    /// Where an earlier process has left the line, until the replica has said that it stands there.
    resuming: Option<u64>,
    /// No further change may begin.
    held: bool,
    closed: bool,
    /// How often whoever waited was told not to.
    abandoned: u64,
}

/// Why a conversation has ended.
#[derive(Debug, thiserror::Error)]
enum MirrorError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it refuses: {0}")]
    Refused(Refusal),
    #[error("it answered something else than was asked")]
    Unexpected,
    #[error("it does not answer")]
    TimedOut,
    #[error("it makes no change any more")]
    Stalled,
    #[error("what is recorded of it cannot be read or changed: {0}")]
    Record(String),
    #[error("it does not stand where it was left")]
    Parted,
    #[error("another member has taken the volume over")]
    Superseded { home: EndpointId, epoch: u64 },
}

impl Mirror {
    /// Nothing was changed yet. `current` is what was recorded.
    #[must_use]
    pub fn new(volume: Name, terms: Terms, current: bool) -> Arc<Self> {
        Self::with(volume, terms, State { current, ..State::default() })
    }

    fn with(volume: Name, terms: Terms, state: State) -> Arc<Self> {
        let (moved, entered) = (Condvar::new(), Notify::new());
        Arc::new(Self { volume, terms, state: Mutex::new(state), telling: Mutex::default(), moved, entered })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the replica is now.
    #[must_use]
    pub fn status(&self) -> MirrorStatus {
        let state = self.state();
        let line = state.line.as_ref();
        // It can take over once it knows that it is current, and is some moment of the volume.
        let knows = line.is_some_and(|line| line.has(state.told) && line.is_consistent());
        let kind = match (state.current, state.connected) {
            (true, true) if !knows => MirrorState::Syncing,
            (true, true) => MirrorState::Current,
            (true, false) => MirrorState::Away,
            (false, true) => MirrorState::Syncing,
            (false, false) => MirrorState::Behind,
        };
        MirrorStatus {
            state: kind,
            lag_bytes: line.map_or(0, Line::lag_bytes),
            lag: line.and_then(Line::waiting_since).map_or(Duration::ZERO, |since| since.elapsed()),
        }
    }

    /// Whether nothing may be answered that the replica lacks, also where it does not know yet.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.state().current
    }

    /// Goes on without the replica, after that was recorded.
    pub fn leave_behind(&self) {
        let mut state = self.state();
        (state.current, state.line, state.resuming) = (false, None, None);
        drop(state);
        self.moved.notify_all();
    }

    /// Has the replica told what was set for the volume, which `read` returns. Answers the change's number.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn tell_settings<E>(&self, read: impl FnOnce() -> Result<Settings, E>) -> Result<u64, E> {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let data = Bytes::from(to_canonical(&read()?));
        let request = Request { data: data.clone(), ..bare(Operation::Settings, data.len() as u64) };
        Ok(self.enter(&mut self.state(), request))
    }

    /// Whether the replica has a change, or need not have it. Waits for that, but not for long.
    #[must_use]
    pub fn has_within(&self, number: u64, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.state();
        while !state.closed && !self.may_answer(&state, number) {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.may_answer(&state, number)
    }

    /// Whether a change may be answered as far as the replica goes.
    fn may_answer(&self, state: &State, number: u64) -> bool {
        !self.terms.sync || !state.current || state.line.as_ref().is_some_and(|line| line.has(number))
    }

    /// Waits for a change of the state; fails where nobody waits for answers any more.
    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.moved.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Talks to the member for as long as this is polled.
    pub async fn run(&self, host: &dyn MirrorHost) {
        let (mut wait, mut lost, mut told) = (AGAIN[0], None::<Instant>, false);
        loop {
            let error = match self.converse(host).await {
                Err(MirrorError::Superseded { home, epoch }) => {
                    host.superseded(home, epoch).await;
                    return;
                }
                Err(error) => error,
                Ok(never) => match never {},
            };
            if self.disconnect() {
                (wait, lost, told) = (AGAIN[0], None, false);
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(volume = %self.volume, why = %error, "a replica does not follow");
            }
            let since = *lost.get_or_insert_with(Instant::now);
            let current = self.state().current;
            let is_lost = matches!(error, MirrorError::Stalled) || since.elapsed() >= PATIENCE;
            if current && is_lost && host.outdate().await {
                match host.set_current(false).await {
                    Ok(()) => {
                        tracing::warn!(volume = %self.volume, "the volume goes on without its replica");
                        self.leave_behind();
                    }
                    Err(error) => tracing::warn!(volume = %self.volume, error, "it could not be recorded"),
                }
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN[1]);
        }
    }

    /// Notes that the member is away; whether it was there.
    fn disconnect(&self) -> bool {
        let mut state = self.state();
        if !state.current {
            // It is begun anew, and nobody waits for it.
            state.line = None;
        }
        let was = std::mem::replace(&mut state.connected, false);
        drop(state);
        self.moved.notify_all();
        was
    }

    async fn converse(&self, host: &dyn MirrorHost) -> Result<Infallible, MirrorError> {
        let silent = |_| MirrorError::TimedOut;
        let connection = timeout(GREETING, host.connect()).await.map_err(silent)??;
        let (mut send, mut receive) = timeout(GREETING, connection.open()).await.map_err(silent)??;
        let line = self.state().line.as_ref().map(|line| line.id);
        let epoch = host.epoch().map_err(MirrorError::Record)?;
        let (volume, terms) = (self.volume.clone(), self.terms);
        message::send(&mut *send, &message::Request::Replicate { volume, epoch, terms, line }).await?;
        let reply = timeout(GREETING, message::receive::<Reply>(&mut *receive)).await.map_err(silent)??;
        let applied = match reply {
            Reply::Replica { resumed: true, applied } if line.is_some() => {
                self.resume(host, applied)?;
                applied
            }
            Reply::Replica { .. } => {
                self.state().connected = true;
                self.begin_anew(host, &mut *send, &mut *receive).await?;
                None
            }
            Reply::Elsewhere { home, epoch: later } if supersedes(later, epoch) => {
                return Err(MirrorError::Superseded { home, epoch: later });
            }
            other => return Err(failed(other)),
        };
        let (from, consistent) = {
            let mut state = self.state();
            state.connected = true;
            state.line.as_mut().ok_or(MirrorError::Unexpected)?.rewind(applied)
        };
        // The replica may have more than it could say before, and nothing else may follow that it has to answer.
        self.moved.notify_all();
        message::send(&mut *send, &message::Request::Continue { from, consistent }).await?;
        self.entered.notify_one();
        tokio::select! {
            ended = self.tell(&mut *send) => ended,
            ended = self.hear(host, &mut *receive) => ended,
            () = self.stalls() => Err(MirrorError::Stalled),
        }
    }

    /// Waits until the replica has made no headway for long, although there is something to make.
    async fn stalls(&self) {
        let mut seen = (None, tokio::time::Instant::now());
        loop {
            tokio::time::sleep(STALLED / 10).await;
            let oldest = self.state().line.as_ref().and_then(Line::oldest_waiting);
            if oldest.is_none() || oldest != seen.0 {
                seen = (oldest, tokio::time::Instant::now());
            } else if seen.1.elapsed() >= STALLED {
                return;
            }
        }
    }

    /// Has the replica made anew. It has recorded itself that it is not current.
    async fn begin_anew(
        &self,
        host: &dyn MirrorHost,
        send: &mut dyn SendStream,
        receive: &mut dyn ReceiveStream,
    ) -> Result<(), MirrorError> {
        host.set_current(false).await.map_err(MirrorError::Record)?;
        self.leave_behind();
        match message::receive::<Reply>(receive).await? {
            Reply::Prefetched => {}
            other => return Err(failed(other)),
        }
        let line = rand_line()?;
        {
            let mut state = self.state();
            state.line = Some(Line::new(line, state.last));
        }
        // Whatever is set later is told later.
        self.tell_settings(|| host.settings()).map_err(MirrorError::Record)?;
        message::send(send, &message::Request::Begin { line }).await?;
        let ready = timeout(LAST_ROUND, message::receive::<Reply>(receive)).await;
        match ready.map_err(|_| MirrorError::TimedOut)?? {
            Reply::Ready => {}
            other => return Err(failed(other)),
        }
        // What was fetched is some moment since the line began.
        self.state().line.as_mut().ok_or(MirrorError::Unexpected)?.begin_behind();
        Ok(())
    }

    async fn tell(&self, send: &mut dyn SendStream) -> Result<Infallible, MirrorError> {
        loop {
            let entered = self.entered.notified();
            let unsent = self.state().line.as_mut().ok_or(MirrorError::Unexpected)?.take_unsent(SEND_BYTES);
            if unsent.is_empty() {
                entered.await;
            } else {
                send_all(send, unsent).await?;
            }
        }
    }

    async fn hear(&self, host: &dyn MirrorHost, receive: &mut dyn ReceiveStream) -> Result<Infallible, MirrorError> {
        loop {
            self.become_current(host).await?;
            let head = receive.receive(REPLY_BYTES).await?.ok_or(MirrorError::Unexpected)?;
            let frame = ReplyFrame::decode(&head)?;
            let mut state = self.state();
            let line = state.line.as_mut().ok_or(MirrorError::Unexpected)?;
            if frame.outcome != Outcome::Done || frame.length != 0 || !line.applied(frame.id) {
                return Err(MirrorError::Unexpected);
            }
            drop(state);
            self.moved.notify_all();
        }
    }

    /// Where the replica has caught up, nothing is answered any more from now on that it lacks.
    async fn become_current(&self, host: &dyn MirrorHost) -> Result<(), MirrorError> {
        {
            let state = self.state();
            if state.current || !state.line.as_ref().is_some_and(Line::is_consistent) {
                return Ok(());
            }
        }
        host.set_current(true).await.map_err(MirrorError::Record)?;
        let mut state = self.state();
        state.current = true;
        state.told = self.enter(&mut state, bare(Operation::Current, 0));
        drop(state);
        tracing::info!(volume = %self.volume, "a replica is current");
        Ok(())
    }

    fn enter(&self, state: &mut State, request: Request) -> u64 {
        if let Some(line) = &mut state.line {
            state.last = line.push(request);
            if line.bytes() > self.terms.lag_bytes / 2 && !line.is_flushing() {
                state.last = line.push(bare(Operation::Flush, 0));
            }
            self.entered.notify_one();
        }
        state.last
    }
}

impl Observer for Mirror {
    fn admit(&self, bytes: u64) -> Result<(), DeviceError> {
        let mut state = self.state();
        let begun = state.abandoned;
        loop {
            if state.closed || state.abandoned != begun {
                return Err(DeviceError::Closed);
            }
            let full = |line: &Line| {
                let most_bytes = self.terms.lag_bytes;
                // One that is longer than that passes alone.
                line.lag_bytes() > 0 && line.lag_bytes() + bytes > most_bytes || line.bytes() > 2 * most_bytes
            };
            // While the replica counts as current and nothing is kept for it, as after a restart, no bound would hold. Where the line is
            // to go on, the replica is heard first.
            let waits = state.held || state.resuming.is_some() || state.line.as_ref().map_or(state.current, full);
            if !waits {
                return Ok(());
            }
            state = self.wait(state);
        }
    }

    fn changed(&self, change: Change<'_>, durability: Durability) -> u64 {
        let mut request = match change {
            Change::Write { offset, data } => {
                let (data, length) = (Bytes::copy_from_slice(data), data.len() as u64);
                Request { operation: Operation::Write, durability, offset, length, data }
            }
            Change::Zero { offset, length } => Request { offset, ..bare(Operation::Zero, length) },
            Change::Discard { offset, length } => Request { offset, ..bare(Operation::Discard, length) },
            Change::Grow { size_bytes } => bare(Operation::Grow, size_bytes),
            Change::Flush => bare(Operation::Flush, 0),
        };
        request.durability = durability;
        let mut state = self.state();
        self.enter(&mut state, request)
    }

    fn settled(&self, number: u64) -> Result<(), DeviceError> {
        let mut state = self.state();
        let begun = state.abandoned;
        loop {
            if state.closed || state.abandoned != begun {
                return Err(DeviceError::Closed);
            }
            if self.may_answer(&state, number) {
                return Ok(());
            }
            state = self.wait(state);
        }
    }

    fn abandon(&self, for_good: bool) {
        let mut state = self.state();
        state.closed |= for_good;
        state.abandoned += 1;
        drop(state);
        self.moved.notify_all();
    }
}

fn bare(operation: Operation, length: u64) -> Request {
    Request { operation, durability: Durability::Process, offset: 0, length, data: Bytes::new() }
}

fn failed(reply: Reply) -> MirrorError {
    match reply {
        Reply::Refused(refusal) => MirrorError::Refused(refusal),
        _ => MirrorError::Unexpected,
    }
}

fn rand_line() -> Result<u64, MirrorError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| MirrorError::Record(error.to_string()))?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> Arc<Mirror> {
        let mirror = Mirror::new("vm".parse().unwrap(), Terms { sync: true, witness: None, lag_bytes: 1 << 20 }, true);
        mirror.state().line = Some(Line::new(1, 0));
        mirror
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_has_something_to_do_and_does_nothing_of_it_stalls() {
        let mirror = mirror();
        let stalls = async || timeout(2 * STALLED, mirror.stalls()).await.is_ok();
        assert!(!stalls().await, "nothing is to be done");
        let first = mirror.changed(Change::Flush, Durability::Power);
        assert!(stalls().await);
        // It does one after the other, slowly.
        let last = (0..10).map(|_| mirror.changed(Change::Flush, Durability::Power)).max().unwrap();
        let sent = mirror.state().line.as_mut().unwrap().take_unsent(SEND_BYTES).len();
        assert_eq!(sent, 11);
        let slowly = async {
            for number in first..last {
                tokio::time::sleep(STALLED / 2).await;
                assert!(mirror.state().line.as_mut().unwrap().applied(number));
            }
        };
        tokio::select! {
            () = mirror.stalls() => panic!("it goes on"),
            () = slowly => {}
        }
    }
}

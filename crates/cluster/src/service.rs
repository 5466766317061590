//! The serving side: what members ask of this node, and the volumes that they use here.
//!
//! Invariant: of one member's sessions with a volume only the latest is served, and it begins when the earlier one has nothing in hand
//! any more. Else a write that was sent again could be followed by its older self.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use swarm::transport::{Connection, ReceiveStream, SendStream, Stream, TransportError};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;
use types::{EndpointId, Name};
use volume::{BlockDevice, DeviceError, Readiness};

use crate::copying::{self, Replica};
use crate::frame::{FrameError, Operation, Outcome, REQUEST_BYTES, ReplyFrame, RequestFrame};
use crate::message::{self, MessageError, Refusal, Reply, Request, Terms};

/// How many requests of one session are under way at most.
const OPERATIONS: usize = 64;

/// How many streams of one connection are served at most: those of volumes stay open.
const STREAMS: usize = 200;

/// How many replies wait to be sent.
const REPLIES: usize = 256;

/// How much is put together for one send, in bytes.
const SEND_BYTES: usize = 256 << 10;

/// The unit in which data in memory are counted, and how many of them one session may hold.
const UNIT_BYTES: u64 = 64 << 10;
const UNITS: u32 = 1024;

/// What members may ask for.
pub trait Home: Send + Sync + Debug {
    /// A volume that is here. Called on a thread that may wait.
    ///
    /// # Errors
    /// Why not.
    fn open(&self, volume: &Name) -> Result<Opened, Refusal>;

    /// The replica that this node keeps of a member's volume, from now on if need be. Where the member is not the volume's home, what
    /// it is told instead.
    fn replica(&self, member: EndpointId, asked: Asked) -> BoxFuture<'static, Result<Arc<dyn Replica>, Reply>>;

    /// What the machine is called for as long as it has power.
    fn boot(&self) -> String;

    /// Answers everything but [`Request::Device`] and [`Request::Replicate`].
    fn answer(&self, member: EndpointId, request: Request) -> BoxFuture<'static, Result<Reply, Refusal>>;
}

/// A volume that is used from elsewhere.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its device.
    pub device: Arc<dyn BlockDevice>,
    /// How often it was given.
    pub epoch: u64,
    /// Who used it in this epoch or later has seen nothing that it has lost.
    pub since: u64,
}

/// A replica that is asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The volume.
    pub volume: Name,
    /// How often it was given.
    pub epoch: u64,
    /// What was agreed.
    pub terms: Terms,
}

/// What a member does with a volume: it has a turn for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    Using,
    Replicating,
}

/// Whose turn it is.
type Who = (EndpointId, Name, Doing);

/// The latest session of a member with a volume.
#[derive(Debug, Default)]
struct Turn {
    latest: CancellationToken,
    /// Held while a session is served.
    serving: Arc<tokio::sync::Mutex<()>>,
}

/// A turn that is being served; given back when dropped.
struct Serving<'s> {
    service: &'s Service,
    who: Who,
    /// Cancelled when a later session waits.
    mine: CancellationToken,
    held: Option<OwnedMutexGuard<()>>,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        drop(self.held.take());
        self.service.give_turn_back(&self.who);
    }
}

/// Serves members.
#[derive(Debug)]
pub struct Service {
    home: Arc<dyn Home>,
    turns: Mutex<BTreeMap<Who, Turn>>,
}

/// Why a stream has ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a later session has begun")]
    Superseded,
    #[error("the replica cannot follow")]
    Replica,
}

impl Service {
    /// Serves what is at a home.
    #[must_use]
    pub fn new(home: Arc<dyn Home>) -> Arc<Self> {
        Arc::new(Self { home, turns: Mutex::default() })
    }

    /// Serves a member's connection until it ends.
    ///
    /// # Cancel safety
    /// Dropping the future ends it; what is under way is finished and not answered.
    pub async fn serve(self: &Arc<Self>, connection: Arc<dyn Connection>) {
        let member = connection.peer();
        let mut streams = JoinSet::new();
        while let Ok(stream) = connection.accept().await {
            while streams.try_join_next().is_some() {}
            if streams.len() >= STREAMS {
                tracing::warn!(%member, "a member asks for too much at once");
                continue;
            }
            let service = Arc::clone(self);
            streams.spawn(async move {
                if let Err(error) = service.stream(member, stream).await {
                    tracing::debug!(%member, %error, "a member's stream has ended");
                }
            });
        }
        connection.close();
        while streams.join_next().await.is_some() {}
    }

    async fn stream(&self, member: EndpointId, (mut send, mut receive): Stream) -> Result<(), ServiceError> {
        match message::receive::<Request>(&mut *receive).await? {
            Request::Device { volume } => self.device(member, volume, send, receive).await,
            Request::Replicate { volume, epoch, terms, line } => {
                self.replicate(member, Asked { volume, epoch, terms }, line, (send, receive)).await
            }
            request => {
                let reply = self.home.answer(member, request).await.unwrap_or_else(Reply::Refused);
                message::send(&mut *send, &reply).await?;
                send.finish();
                Ok(())
            }
        }
    }

    /// Takes the turn of a member with a volume, and waits until the session before has ended.
    async fn turn(&self, who: Who) -> Result<Serving<'_>, ServiceError> {
        let (mine, serving) = self.take_turn(&who);
        let serving = Serving { service: self, who, mine, held: Some(serving.lock_owned().await) };
        if serving.mine.is_cancelled() { Err(ServiceError::Superseded) } else { Ok(serving) }
    }

    fn take_turn(&self, who: &Who) -> (CancellationToken, Arc<tokio::sync::Mutex<()>>) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = turns.entry(who.clone()).or_default();
        let mine = CancellationToken::new();
        std::mem::replace(&mut turn.latest, mine.clone()).cancel();
        (mine, Arc::clone(&turn.serving))
    }

    fn give_turn_back(&self, who: &Who) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever waits for it or has it holds a second reference.
        if let Some(turn) = turns.get(who)
            && Arc::strong_count(&turn.serving) == 1
        {
            turns.remove(who);
        }
    }

    /// Keeps a replica of a member's volume.
    async fn replicate(
        &self,
        member: EndpointId,
        asked: Asked,
        line: Option<u64>,
        (mut send, receive): Stream,
    ) -> Result<(), ServiceError> {
        let turn = self.turn((member, asked.volume.clone(), Doing::Replicating)).await?;
        match self.home.replica(member, asked).await {
            Ok(replica) => copying::follow(replica, line, send, receive, &turn.mine).await,
            Err(reply) => {
                message::send(&mut *send, &reply).await?;
                send.finish();
                Ok(())
            }
        }
    }

    async fn device(
        &self,
        member: EndpointId,
        volume: Name,
        mut send: Box<dyn SendStream>,
        receive: Box<dyn ReceiveStream>,
    ) -> Result<(), ServiceError> {
        let turn = self.turn((member, volume.clone(), Doing::Using)).await?;
        let home = Arc::clone(&self.home);
        let opened = spawn_blocking(move || home.open(&volume)).await;
        let Opened { device, epoch, since } = match opened.map_err(|_| TransportError::Closed)? {
            Ok(opened) => opened,
            Err(refusal) => {
                message::send(&mut *send, &Reply::Refused(refusal)).await?;
                send.finish();
                return Ok(());
            }
        };
        let opened = Reply::Opened { size_bytes: device.size_bytes(), epoch, boot: self.home.boot(), since };
        message::send(&mut *send, &opened).await?;
        session(device, send, receive, &turn.mine).await
    }
}

/// Takes requests with their data from a stream; what is in memory of them is bounded.
pub(crate) struct Incoming {
    receive: Box<dyn ReceiveStream>,
    units: Arc<Semaphore>,
}

impl Incoming {
    pub(crate) fn new(receive: Box<dyn ReceiveStream>) -> Self {
        Self { receive, units: Arc::new(Semaphore::new(UNITS as usize)) }
    }

    /// The next request, what a write carries, and what is to be held for as long as its data, or those of its answer, are in memory.
    pub(crate) async fn next(&mut self) -> Result<Option<(RequestFrame, Bytes, OwnedSemaphorePermit)>, ServiceError> {
        let Some(head) = self.receive.receive(REQUEST_BYTES).await? else { return Ok(None) };
        let frame = RequestFrame::decode(&head)?;
        let wanted = u32::try_from(frame.carried_bytes().div_ceil(UNIT_BYTES)).unwrap_or(UNITS).min(UNITS);
        let unit = Arc::clone(&self.units).acquire_many_owned(wanted).await.map_err(|_| TransportError::Closed)?;
        let data = match frame.payload_bytes() {
            0 => Bytes::new(),
            length => self.receive.receive(length).await?.ok_or(TransportError::Framing)?,
        };
        Ok(Some((frame, data, unit)))
    }
}

/// A reply with its data.
type Answer = (ReplyFrame, Bytes);

/// Serves a session until it ends, and everything that it has begun.
async fn session(
    device: Arc<dyn BlockDevice>,
    send: Box<dyn SendStream>,
    receive: Box<dyn ReceiveStream>,
    mine: &CancellationToken,
) -> Result<(), ServiceError> {
    let (answers, answered) = mpsc::channel(REPLIES);
    let (mut reads, mut changes) = (JoinSet::new(), JoinSet::new());
    let sending = tokio::spawn(send_answers(send, answered));
    let (places, mut incoming) = (Arc::new(Semaphore::new(OPERATIONS)), Incoming::new(receive));
    let receiving = async {
        while let Some((frame, data, unit)) = incoming.next().await? {
            if frame.operation.is_for_replicas() {
                return Err(FrameError.into());
            }
            let place = Arc::clone(&places).acquire_owned().await.map_err(|_| TransportError::Closed)?;
            let under_way = if frame.operation == Operation::Read { &mut reads } else { &mut changes };
            while under_way.try_join_next().is_some() {}
            let (device, answers) = (Arc::clone(&device), answers.clone());
            under_way.spawn(async move {
                let answer = perform(device, frame, data).await;
                // Whoever asked may be gone.
                let _ = answers.send(answer).await;
                drop((unit, place));
            });
        }
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = receiving => outcome,
        () = mine.cancelled() => Err(ServiceError::Superseded),
    };
    drop(answers);
    sending.abort();
    // Reads may wait for as long as it takes, and are given up; changes are finished before anyone else may make one.
    reads.abort_all();
    while changes.join_next().await.is_some() {}
    outcome
}

async fn perform(device: Arc<dyn BlockDevice>, frame: RequestFrame, data: Bytes) -> Answer {
    let outcome = match frame.operation {
        Operation::Read => read(&device, frame).await,
        _ => spawn_blocking(move || change(&*device, frame, &data)).await.unwrap_or(Err(DeviceError::Closed)),
    };
    match outcome {
        Ok(data) => (ReplyFrame { id: frame.id, length: data.len() as u64, outcome: Outcome::Done }, data),
        Err(error) => {
            let outcome = Outcome::of(&error);
            if outcome == Outcome::Failed {
                tracing::error!(%error, ?frame, "a member's request has failed");
            }
            (ReplyFrame { id: frame.id, length: 0, outcome }, Bytes::new())
        }
    }
}

async fn read(device: &Arc<dyn BlockDevice>, frame: RequestFrame) -> Result<Bytes, DeviceError> {
    let length = usize::try_from(frame.length).map_err(|_| DeviceError::Closed)?;
    let trying = Arc::clone(device);
    let tried = spawn_blocking(move || {
        let mut buffer = BytesMut::zeroed(length);
        trying.try_read(frame.offset, &mut buffer).map(|readiness| (readiness, buffer))
    });
    match tried.await.unwrap_or(Err(DeviceError::Closed))? {
        (Readiness::Ready, buffer) => Ok(buffer.freeze()),
        (Readiness::Wait, _) => device.read(frame.offset, length).await,
    }
}

fn change(device: &dyn BlockDevice, frame: RequestFrame, data: &[u8]) -> Result<Bytes, DeviceError> {
    let RequestFrame { offset, length, durability, .. } = frame;
    match frame.operation {
        Operation::Write => device.write(offset, data, durability),
        Operation::Zero => device.write_zeroes(offset, length, durability),
        Operation::Discard => device.discard(offset, length, durability),
        // The others are not asked for here.
        _ => device.flush(),
    }
    .map(|()| Bytes::new())
}

/// Sends replies, several in one go where they are short.
async fn send_answers(
    mut send: Box<dyn SendStream>,
    mut answers: mpsc::Receiver<Answer>,
) -> Result<(), TransportError> {
    let mut together = BytesMut::new();
    while let Some(answer) = answers.recv().await {
        let mut next = Some(answer);
        while let Some((frame, data)) = next {
            together.extend_from_slice(&frame.encode());
            together.extend_from_slice(&data);
            next = if together.len() < SEND_BYTES { answers.try_recv().ok() } else { None };
        }
        send.send(together.split().freeze()).await?;
    }
    send.finish();
    Ok(())
}

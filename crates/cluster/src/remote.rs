//! A volume that is used here and whose home is another member.
//!
//! Requests wait while the home cannot be reached, for as long as it takes: a passing fault is never an error for a guest.
//! Invariant: what was answered is never lost by the loss of a connection, of the home's process or of the power of its machine, as
//! the volume's own promise says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use swarm::transport::{Connection, ReceiveStream, SendStream, TransportError};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use types::{EndpointId, Name};
use volume::{BlockDevice, DeviceError, Durability, Extent, ExtentKind, Readiness};

use crate::frame::{MAX_PAYLOAD_BYTES, Operation, Outcome, REPLY_BYTES, ReplyFrame};
use crate::message::{self, MessageError, Reply};
use crate::peers::AskError;
use crate::table::{Answer, Footing, Request, Table};

/// How much may be acknowledged and not durable before it is made so, in bytes.
const KEPT_BYTES: u64 = 64 << 20;

/// How much is put together for one send, in bytes.
const SEND_BYTES: usize = 256 << 10;

/// The longest piece of one read or write, in bytes: others come in between.
const PIECE_BYTES: usize = 1 << 20;

/// How soon a home that was lost is looked for again, at first and at last.
const AGAIN: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// The number of requests that write again what was lost.
const AGAIN_ID: u64 = u64::MAX;

/// Who knows where volumes are.
pub trait Members: Send + Sync + std::fmt::Debug {
    /// A connection to the home of a volume. `None` where all members have answered, and none has it.
    fn home(&self, volume: &Name) -> BoxFuture<'static, Result<Option<Arc<dyn Connection>>, AskError>>;
}

/// A volume whose home is another member. Closed when dropped.
#[derive(Debug)]
pub struct RemoteVolume {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: Name,
    size_bytes: AtomicU64,
    table: Mutex<Table>,
    /// Who was the home when it was last talked to, or found.
    home: Mutex<Option<EndpointId>>,
    /// Woken when there is something to send.
    entered: Notify,
    /// Woken when nothing is under way.
    idle: Notify,
    closed: CancellationToken,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, requests: impl IntoIterator<Item = Request>) -> Vec<oneshot::Receiver<Answer>> {
        let answers = {
            let mut table = self.table();
            requests.into_iter().map(|request| table.enter(request)).collect()
        };
        self.entered.notify_one();
        answers
    }
}

impl RemoteVolume {
    /// Begins to use a volume of the given size, whose home is `home` as far as is known. Needs a tokio runtime.
    #[must_use]
    pub fn open(name: Name, size_bytes: u64, home: Option<EndpointId>, members: Arc<dyn Members>) -> Arc<Self> {
        let shared = Arc::new(Shared {
            name,
            size_bytes: AtomicU64::new(size_bytes),
            table: Mutex::default(),
            home: Mutex::new(home),
            entered: Notify::new(),
            idle: Notify::new(),
            closed: CancellationToken::new(),
        });
        let (working, closed) = (Arc::clone(&shared), shared.closed.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stay_connected(&working, &*members) => {}
                () = closed.cancelled() => {}
            }
        });
        Arc::new(Self { shared })
    }

    /// Waits until everything that was asked has been answered.
    pub async fn drain(&self) {
        loop {
            let idle = self.shared.idle.notified();
            if self.shared.table().is_idle() {
                return;
            }
            idle.await;
        }
    }

    /// The member that was the home when it was last talked to, or when it was found.
    #[must_use]
    pub fn home(&self) -> Option<EndpointId> {
        *self.shared.home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how large the volume is now, where it has grown.
    pub fn grow(&self, size_bytes: u64) {
        self.shared.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
    }

    /// Answers all requests with [`DeviceError::Closed`], now and from now on.
    pub fn close(&self) {
        self.shared.table().fail(true);
        self.shared.closed.cancel();
        self.shared.idle.notify_waiters();
    }

    fn change(&self, requests: Vec<Request>) -> Result<(), DeviceError> {
        for answer in self.shared.enter(requests) {
            answered(answer.blocking_recv())?;
        }
        if self.shared.table().kept_bytes() > KEPT_BYTES { self.flush() } else { Ok(()) }
    }

    fn clear(&self, operation: Operation, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.change(vec![Request { operation, durability, offset, length, data: Bytes::new() }])
    }
}

impl Drop for RemoteVolume {
    fn drop(&mut self) {
        self.close();
    }
}

fn answered(answer: Result<Answer, oneshot::error::RecvError>) -> Answer {
    answer.unwrap_or(Err(DeviceError::Closed))
}

/// The pieces of a range: where, from which byte of it, and how long.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let starts = (0..length).step_by(PIECE_BYTES);
    starts.map(move |start| (offset + start as u64, start, PIECE_BYTES.min(length - start)))
}

impl BlockDevice for RemoteVolume {
    fn size_bytes(&self) -> u64 {
        self.shared.size_bytes.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<Readiness, DeviceError> {
        Ok(Readiness::Wait)
    }

    fn read(&self, offset: u64, length: usize) -> BoxFuture<'static, Result<Bytes, DeviceError>> {
        let read = |(offset, _, length): (u64, usize, usize)| Request {
            operation: Operation::Read,
            durability: Durability::Process,
            offset,
            length: length as u64,
            data: Bytes::new(),
        };
        let mut answers = self.shared.enter(pieces(offset, length).map(read));
        Box::pin(async move {
            if let [only] = &mut answers[..] {
                return answered(only.await);
            }
            let mut whole = BytesMut::with_capacity(length);
            for answer in answers {
                whole.extend_from_slice(&answered(answer.await)?);
            }
            Ok(whole.freeze())
        })
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), DeviceError> {
        self.write_many(&[(offset, data)], durability)
    }

    fn write_many(&self, writes: &[(u64, &[u8])], durability: Durability) -> Result<(), DeviceError> {
        let requests = writes.iter().flat_map(|(offset, data)| {
            let data = Bytes::copy_from_slice(data);
            pieces(*offset, data.len()).map(move |(offset, start, length)| Request {
                operation: Operation::Write,
                durability,
                offset,
                length: length as u64,
                data: data.slice(start..start + length),
            })
        });
        self.change(requests.collect())
    }

    fn write_zeroes(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.clear(Operation::Zero, offset, length, durability)
    }

    fn discard(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.clear(Operation::Discard, offset, length, durability)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let flush = Request {
            operation: Operation::Flush,
            durability: Durability::Process,
            offset: 0,
            length: 0,
            data: Bytes::new(),
        };
        self.shared.enter([flush]).into_iter().try_for_each(|answer| answered(answer.blocking_recv()).map(drop))
    }

    fn abandon(&self) {
        self.close();
    }

    /// All of it is elsewhere; what it consists of there is not asked.
    fn extents(&self, offset: u64, length: u64, _: usize) -> Result<Vec<Extent>, DeviceError> {
        let size_bytes = self.size_bytes();
        match offset.checked_add(length).is_some_and(|end| end <= size_bytes) {
            true if length == 0 => Ok(Vec::new()),
            true => Ok(vec![Extent { length, kind: ExtentKind::Absent }]),
            false => Err(DeviceError::OutOfRange { offset, length, size_bytes }),
        }
    }
}

/// Finds the home and talks to it, again and again.
async fn stay_connected(shared: &Shared, members: &dyn Members) {
    let mut wait = AGAIN[0];
    let mut told = false;
    loop {
        let ended = match members.home(&shared.name).await {
            Ok(Some(connection)) => {
                let ended = converse(shared, &*connection).await;
                if let Err(error @ ConversationError::Lost) = &ended {
                    // Going on would mix what its user has in memory with a disk that is older.
                    tracing::error!(volume = %shared.name, %error, "a volume cannot be used any more");
                    shared.table().fail(true);
                    shared.idle.notify_waiters();
                    return;
                }
                // One that was of use is looked for again at once.
                if std::mem::take(&mut shared.table().useful) {
                    (wait, told) = (AGAIN[0], false);
                }
                Some(ended.map_or_else(|error| error.to_string(), |never| match never {}))
            }
            Ok(None) => {
                shared.table().fail(false);
                shared.idle.notify_waiters();
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let why = ended.unwrap_or_else(|| "no member of the cluster has it".to_owned());
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(volume = %shared.name, why, "a volume's home is looked for again");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN[1]);
    }
}

/// Why a conversation with a home has ended.
#[derive(Debug, thiserror::Error)]
enum ConversationError {
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Frame(#[from] crate::frame::FrameError),
    /// It answers what was not asked, or is not the home any more.
    #[error("it is not this volume's home any more")]
    Gone,
    #[error("it refuses: {0}")]
    Refused(message::Refusal),
    /// Who has taken it over lacks what was answered here.
    #[error("a replica has taken over that lacks what was written last: detach it and attach it again")]
    Lost,
}

async fn converse(shared: &Shared, connection: &dyn Connection) -> Result<std::convert::Infallible, ConversationError> {
    let (mut send, mut receive) = connection.open().await?;
    message::send(&mut *send, &message::Request::Device { volume: shared.name.clone() }).await?;
    let (size_bytes, footing) = match message::receive::<Reply>(&mut *receive).await? {
        Reply::Opened { size_bytes, epoch, boot, since } => {
            if shared.table().has_seen_before(since) {
                return Err(ConversationError::Lost);
            }
            (size_bytes, Footing { epoch, boot })
        }
        Reply::Refused(refusal) => return Err(ConversationError::Refused(refusal)),
        _ => return Err(ConversationError::Gone),
    };
    shared.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
    *shared.home.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.peer());
    let again = shared.table().begin(&footing);
    if !again.is_empty() {
        tracing::warn!(volume = %shared.name, changes = again.len(), "the home has lost its memory: written again");
    }
    for request in again {
        send_all(&mut *send, [(AGAIN_ID, request)]).await?;
        let (_, outcome, _) = reply(&mut *receive, |_| Some(0)).await?;
        if outcome != Outcome::Done {
            return Err(ConversationError::Gone);
        }
    }
    shared.table().stands_on(footing);
    tokio::select! {
        ended = ask(shared, &mut *send) => ended,
        ended = hear(shared, &mut *receive) => ended,
    }
}

async fn ask(shared: &Shared, send: &mut dyn SendStream) -> Result<std::convert::Infallible, ConversationError> {
    loop {
        let entered = shared.entered.notified();
        let unsent = shared.table().take_unsent(SEND_BYTES);
        if unsent.is_empty() {
            entered.await;
        } else {
            send_all(send, unsent).await?;
        }
    }
}

pub(crate) async fn send_all(
    send: &mut dyn SendStream,
    requests: impl IntoIterator<Item = (u64, Request)>,
) -> Result<(), TransportError> {
    let mut bytes = BytesMut::new();
    for (id, request) in requests {
        bytes.extend_from_slice(&request.frame(id).encode());
        bytes.extend_from_slice(&request.data);
    }
    send.send(bytes.freeze()).await
}

async fn hear(shared: &Shared, receive: &mut dyn ReceiveStream) -> Result<std::convert::Infallible, ConversationError> {
    loop {
        let (id, outcome, data) = reply(receive, |id| shared.table().expects(id)).await?;
        if outcome == Outcome::Gone {
            return Err(ConversationError::Gone);
        }
        let idle = {
            let mut table = shared.table();
            table.answered(id, outcome, data, shared.size_bytes.load(Ordering::Acquire));
            table.is_idle()
        };
        if idle {
            shared.idle.notify_waiters();
        }
    }
}

/// Receives a reply, whose data must be as long as expected.
async fn reply(
    receive: &mut dyn ReceiveStream,
    expects: impl Fn(u64) -> Option<u64>,
) -> Result<(u64, Outcome, Bytes), ConversationError> {
    let head = receive.receive(REPLY_BYTES).await?.ok_or(ConversationError::Gone)?;
    let frame = ReplyFrame::decode(&head)?;
    let expected = if frame.outcome == Outcome::Done { expects(frame.id) } else { Some(0) };
    if expected != Some(frame.length) || frame.length > MAX_PAYLOAD_BYTES {
        return Err(ConversationError::Gone);
    }
    let length = usize::try_from(frame.length).map_err(|_| ConversationError::Gone)?;
    let data =
        if length == 0 { Bytes::new() } else { receive.receive(length).await?.ok_or(ConversationError::Gone)? };
    Ok((frame.id, frame.outcome, data))
}

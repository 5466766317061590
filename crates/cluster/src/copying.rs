//! The side of the member that keeps a replica: changes are made in the order in which the home made them.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use swarm::transport::{ReceiveStream, SendStream, TransportError};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use volume::{BlockDevice, DeviceError};

use crate::frame::{Operation, Outcome, ReplyFrame, RequestFrame};
use crate::message::{self, Refusal, Reply, Request, Settings};
use crate::service::{Incoming, ServiceError};

/// How many changes wait to be made at most.
const CHANGES: usize = 256;

/// Where a replica stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line of changes that it was made for, if it was made.
    pub line: Option<u64>,
    /// Up to which change it has come, where it knows.
    pub applied: Option<u64>,
}

/// A replica, as its node keeps it. It is of one session at a time.
pub trait Replica: Send + Sync + Debug {
    /// Where it stands for a home that still has the changes of a line. Where that is not its own, it is not current from now on,
    /// durably. Blocks.
    ///
    /// # Errors
    /// Why it cannot be kept.
    fn stand(&self, line: Option<u64>) -> Result<Position, Refusal>;

    /// Fetches nearly everything that the volume is now.
    fn prefetch(&self) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Makes the replica anew of what the volume is now.
    fn begin(&self, line: u64) -> BoxFuture<'_, Result<(), Refusal>>;

    /// Changes follow; some of them may have been made already where `again`. Blocks.
    ///
    /// # Errors
    /// Why they cannot be made.
    fn go_on(&self, again: bool) -> Result<Arc<dyn BlockDevice>, Refusal>;

    /// It has come to a change, and is a moment of the volume. Blocks.
    ///
    /// # Errors
    /// Where that cannot be recorded.
    fn reached(&self, number: u64, consistent: bool) -> Result<(), DeviceError>;

    /// The disk has grown. Blocks.
    ///
    /// # Errors
    /// Where the replica cannot.
    fn grow(&self, size_bytes: u64) -> Result<(), DeviceError>;

    /// What was set for the volume from now on. Blocks.
    ///
    /// # Errors
    /// Where that cannot be recorded.
    fn set(&self, settings: Settings) -> Result<(), DeviceError>;

    /// Whether nothing is answered from now on that it lacks. Blocks.
    ///
    /// # Errors
    /// Where that cannot be recorded.
    fn set_current(&self, current: bool) -> Result<(), DeviceError>;
}

/// A change that waits to be made.
type Change = (RequestFrame, Bytes, OwnedSemaphorePermit);

/// Keeps a replica until the stream ends.
pub(crate) async fn follow(
    replica: Arc<dyn Replica>,
    line: Option<u64>,
    mut send: Box<dyn SendStream>,
    mut receive: Box<dyn ReceiveStream>,
    mine: &CancellationToken,
) -> Result<(), ServiceError> {
    let prepared = tokio::select! {
        prepared = prepare(&replica, line, &mut *send, &mut *receive) => prepared?,
        () = mine.cancelled() => return Err(ServiceError::Superseded),
    };
    let (device, consistent) = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            message::send(&mut *send, &Reply::Refused(refusal)).await?;
            send.finish();
            return Ok(());
        }
    };
    let (changes, mut waiting) = mpsc::channel(CHANGES);
    let making = async move {
        let mut together = Vec::new();
        while waiting.recv_many(&mut together, CHANGES).await > 0 {
            let (replica, device, batch) = (Arc::clone(&replica), Arc::clone(&device), std::mem::take(&mut together));
            let made = spawn_blocking(move || make(&*replica, &*device, &batch, consistent)).await;
            let frame = made.unwrap_or(ReplyFrame { id: 0, length: 0, outcome: Outcome::Failed });
            send.send(Bytes::copy_from_slice(&frame.encode())).await?;
            if frame.outcome != Outcome::Done {
                return Err(ServiceError::Replica);
            }
        }
        Ok(())
    };
    let receiving = async move {
        tokio::select! {
            outcome = receive_changes(Incoming::new(receive), &changes) => outcome,
            () = mine.cancelled() => Err(ServiceError::Superseded),
        }
    };
    // What was received is made before another session begins.
    let (made, received) = tokio::join!(making, receiving);
    made.and(received)
}

/// What a session has agreed on: the replica's device, and from which change on it is a moment of the volume.
type Prepared = Result<(Arc<dyn BlockDevice>, u64), Refusal>;

async fn prepare(
    replica: &Arc<dyn Replica>,
    line: Option<u64>,
    send: &mut dyn SendStream,
    receive: &mut dyn ReceiveStream,
) -> Result<Prepared, ServiceError> {
    let standing = Arc::clone(replica);
    let stood = spawn_blocking(move || standing.stand(line)).await.map_err(|_| TransportError::Closed)?;
    let position = match stood {
        Ok(position) => position,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let resumed = line.is_some() && position.line == line;
    let applied = position.applied.filter(|_| resumed);
    message::send(send, &Reply::Replica { resumed, applied }).await?;
    if !resumed {
        let mut next = pin!(message::receive::<Request>(receive));
        let prefetched = tokio::select! {
            prefetched = replica.prefetch() => prefetched,
            // The home says nothing meanwhile: it has gone, and nobody needs what is fetched.
            early = &mut next => return Err(early.err().map_or(ServiceError::Replica, Into::into)),
        };
        if let Err(refusal) = prefetched {
            return Ok(Err(refusal));
        }
        message::send(send, &Reply::Prefetched).await?;
        let Request::Begin { line } = next.await? else {
            return Err(ServiceError::Replica);
        };
        if let Err(refusal) = replica.begin(line).await {
            return Ok(Err(refusal));
        }
        message::send(send, &Reply::Ready).await?;
    }
    let Request::Continue { from, consistent } = message::receive::<Request>(receive).await? else {
        return Err(ServiceError::Replica);
    };
    let (replica, again) = (Arc::clone(replica), applied.is_none());
    let going_on = move || {
        let device = replica.go_on(again)?;
        // Where nothing is to be made once more, no change may follow that says so.
        if let Some(before) = from.checked_sub(1).filter(|before| *before >= consistent) {
            replica.reached(before, true).map_err(|error| Refusal {
                code: "internal".to_owned(),
                message: error.to_string(),
                hint: None,
            })?;
        }
        Ok(device)
    };
    let device = spawn_blocking(going_on).await.map_err(|_| TransportError::Closed)?;
    Ok(device.map(|device| (device, consistent)))
}

async fn receive_changes(mut incoming: Incoming, changes: &mpsc::Sender<Change>) -> Result<(), ServiceError> {
    while let Some(change) = incoming.next().await? {
        if changes.send(change).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Makes changes in order, those that are alike in one go.
fn make(replica: &dyn Replica, device: &dyn BlockDevice, batch: &[Change], consistent: u64) -> ReplyFrame {
    let reply = |id, outcome| ReplyFrame { id, length: 0, outcome };
    let alike = |(left, ..): &Change, (right, ..): &Change| {
        left.operation == Operation::Write
            && right.operation == Operation::Write
            && left.durability == right.durability
            && left.id + 1 == right.id
    };
    let mut last = 0;
    for group in batch.chunk_by(alike) {
        last = group.last().map_or(last, |(frame, ..)| frame.id);
        let made = make_alike(replica, device, group).and_then(|()| replica.reached(last, last >= consistent));
        if let Err(error) = made {
            tracing::error!(%error, "a replica cannot follow");
            if let Err(error) = replica.set_current(false) {
                tracing::error!(%error, "that a replica is behind could not be recorded");
            }
            return reply(last, Outcome::of(&error));
        }
    }
    reply(last, Outcome::Done)
}

fn make_alike(replica: &dyn Replica, device: &dyn BlockDevice, group: &[Change]) -> Result<(), DeviceError> {
    let Some((first, data, _)) = group.first() else { return Ok(()) };
    let RequestFrame { offset, length, durability, .. } = *first;
    match first.operation {
        Operation::Write => {
            let writes: Vec<_> = group.iter().map(|(frame, data, _)| (frame.offset, &data[..])).collect();
            device.write_many(&writes, durability)
        }
        Operation::Zero => device.write_zeroes(offset, length, durability),
        Operation::Discard => device.discard(offset, length, durability),
        Operation::Grow => replica.grow(length),
        Operation::Current => replica.set_current(true),
        Operation::Settings => match message::decode(data) {
            Ok(settings) => replica.set(settings),
            Err(error) => {
                tracing::error!(%error, "what was set for a volume cannot be read");
                Err(DeviceError::Home)
            }
        },
        Operation::Flush | Operation::Read => device.flush(),
    }
}

//! Connections to members, made when they are needed: one for questions, and a few for the volumes that are used there.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use swarm::Swarm;
use swarm::transport::{Connection, Protocol, TransportError};
use tokio::time::timeout;
use types::{EndpointId, Name};

use crate::message::{self, MessageError, Refusal, Reply, Request};

/// A member did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It could not be reached, or was lost.
    #[error("it cannot be reached")]
    Transport(#[from] TransportError),
    /// It answered what is no answer.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// It did not answer in time.
    #[error("it does not answer")]
    TimedOut,
    /// It will not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It answered something else than was asked.
    #[error("it answered something else than was asked")]
    Unexpected,
}

/// A way to connect to a member.
pub trait Connector: Send + Sync + Debug {
    /// Connects.
    fn connect(&self, member: EndpointId) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>>;
}

impl Connector for Swarm {
    fn connect(&self, member: EndpointId) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>> {
        Box::pin(self.connect(member, Protocol::Cluster))
    }
}

/// How many connections volumes are spread over: each has so many streams at most.
const LANES: u8 = 8;

/// Which of a member's connections: 0 is for questions.
type Lane = u8;

/// The connection of a volume: always the same one.
fn lane_of(volume: &Name) -> Lane {
    let sum = volume.as_str().bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    u8::try_from(sum % u32::from(LANES)).unwrap_or(0) + 1
}

/// A member's connection; whoever needs it first makes it while the others wait.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<dyn Connection>>>>;

/// Connections to members.
#[derive(Debug)]
pub struct Peers {
    connector: Arc<dyn Connector>,
    slots: Mutex<BTreeMap<(EndpointId, Lane), Slot>>,
}

impl Peers {
    /// Nobody is connected yet.
    #[must_use]
    pub fn new(connector: Arc<dyn Connector>) -> Self {
        Self { connector, slots: Mutex::default() }
    }

    /// The connection to a member for a volume that is used there.
    ///
    /// # Errors
    /// When it cannot be reached.
    ///
    /// # Cancel safety
    /// Dropping the future gives up.
    pub async fn connection(&self, member: EndpointId, volume: &Name) -> Result<Arc<dyn Connection>, TransportError> {
        self.connection_on(member, lane_of(volume)).await
    }

    async fn connection_on(&self, member: EndpointId, lane: Lane) -> Result<Arc<dyn Connection>, TransportError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry((member, lane)).or_default())
        };
        let mut connected = slot.lock().await;
        if let Some(connection) = connected.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        let connection = self.connector.connect(member).await?;
        *connected = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Asks a member, and waits for its answer as long as that may take.
    ///
    /// # Errors
    /// When it cannot be reached, does not answer in time, or refuses.
    pub async fn ask(&self, member: EndpointId, request: &Request, patience: Duration) -> Result<Reply, AskError> {
        let asking = async {
            let connection = self.connection_on(member, 0).await?;
            let (mut send, mut receive) = connection.open().await?;
            message::send(&mut *send, request).await?;
            send.finish();
            Ok(message::receive::<Reply>(&mut *receive).await?)
        };
        match timeout(patience, asking).await.unwrap_or(Err(AskError::TimedOut))? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// Asks a member what may be asked twice: over a new connection where the one that there is brings no answer. A member that was killed and
    /// has begun anew does not know the connections of before, and nobody else says so for a while.
    ///
    /// # Errors
    /// When it does not answer in time over either, or refuses.
    pub async fn ask_anew(&self, member: EndpointId, request: &Request, patience: Duration) -> Result<Reply, AskError> {
        let first = self.ask(member, request, patience / 3).await;
        if !matches!(first, Err(AskError::TimedOut | AskError::Transport(_) | AskError::Message(_))) {
            return first;
        }
        for (lane, slot) in self.take_lanes(member) {
            // If it is only slow, what it is asked beside this goes on.
            if lane != 0 {
                close(&slot);
            }
        }
        self.ask(member, request, patience - patience / 3).await
    }

    fn take_lanes(&self, member: EndpointId) -> Vec<(Lane, Slot)> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = slots.extract_if((member, 0)..=(member, LANES), |_, _| true);
        lanes.map(|((_, lane), slot)| (lane, slot)).collect()
    }

    /// Ends the connections to who is no member any more, or does not answer.
    pub fn forget(&self, member: EndpointId) {
        for (_, slot) in self.take_lanes(member) {
            close(&slot);
        }
    }
}

fn close(slot: &Slot) {
    if let Some(connection) = slot.try_lock().ok().and_then(|mut slot| slot.take()) {
        connection.close();
    }
}

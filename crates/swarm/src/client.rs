//! The asking side of the protocol: connections to peers, one lazy and one bulk each, and requests on them.
//!
//! Knows nothing of why something is asked for or whether the answer is right.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use format::Stored;
use minicbor::bytes::ByteVec;
use store::{Kind, Urgency};
use tokio::time::{Instant, timeout};
use types::EndpointId;

use crate::library::Library;
use crate::message::{
    Content, ITEM_BYTES, Item, MAX_CERTIFICATES, MessageError, REPLY_BYTES, Request, Status, array, priority,
};
use crate::transport::{Connection, Protocol, ReceiveStream, Transport, TransportError};

/// A request was not answered as it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// The peer could not be reached, or was lost: it may be better later.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The peer sent what is no reply.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Connections to peers.
#[derive(Debug)]
pub(crate) struct Client {
    transport: Arc<dyn Transport>,
    library: Arc<dyn Library>,
    connect_timeout: Duration,
    slots: Mutex<HashMap<(EndpointId, Urgency), Arc<Slot>>>,
}

/// The place of one connection; whoever needs it first makes it while the others wait.
#[derive(Debug, Default)]
struct Slot(tokio::sync::Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    connection: Arc<dyn Connection>,
    shown: Vec<ByteVec>,
    /// When a request was last made on it.
    used: Instant,
}

/// A connection on which nothing was asked for so long is closed: the peer has places for so many only.
pub(crate) const IDLE: Duration = Duration::from_secs(120);

impl Client {
    pub(crate) fn new(transport: Arc<dyn Transport>, library: Arc<dyn Library>, connect_timeout: Duration) -> Self {
        Self { transport, library, connect_timeout, slots: Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<(EndpointId, Urgency), Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, peer: EndpointId, urgency: Urgency) -> Arc<Slot> {
        Arc::clone(self.slots().entry((peer, urgency)).or_default())
    }

    /// Who we have connections to.
    pub(crate) fn connected(&self) -> Vec<EndpointId> {
        let open = |slot: &Slot| {
            slot.0.try_lock().is_ok_and(|open| open.as_ref().is_some_and(|open| !open.connection.is_closed()))
        };
        let slots = self.slots();
        let mut peers: Vec<_> = slots.iter().filter(|(_, slot)| open(slot)).map(|((peer, _), _)| *peer).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// The certificates to show, encoded.
    async fn certificates(&self) -> Vec<ByteVec> {
        let certificates = self.library.certificates().await;
        certificates.iter().take(MAX_CERTIFICATES).map(|certificate| certificate.encode().into()).collect()
    }

    async fn connection(&self, peer: EndpointId, urgency: Urgency) -> Result<Arc<dyn Connection>, TransportError> {
        let slot = self.slot(peer, urgency);
        let mut open = slot.0.lock().await;
        if let Some(open) = open.as_mut().filter(|open| !open.connection.is_closed()) {
            open.used = Instant::now();
            return Ok(Arc::clone(&open.connection));
        }
        *open = None;
        let made = async {
            let connection = self.transport.connect(peer, Protocol::Chunks).await?;
            let shown = self.certificates().await;
            // The peer reads the first stream first: what is asked next need not wait for the reply.
            drop(hello(&*connection, urgency, &shown).await?);
            Ok((connection, shown))
        };
        let (connection, shown) =
            timeout(self.connect_timeout, made).await.unwrap_or_else(|_| Err(TransportError::TimedOut))?;
        tracing::debug!(%peer, ?urgency, "connected");
        *open = Some(Open { connection: Arc::clone(&connection), shown, used: Instant::now() });
        Ok(connection)
    }

    /// Shows our certificates again if they have changed since. Returns whether the peer might now answer otherwise.
    pub(crate) async fn show_again(&self, peer: EndpointId, urgency: Urgency) -> Result<bool, TransportError> {
        let certificates = self.certificates().await;
        let slot = self.slot(peer, urgency);
        let mut open = slot.0.lock().await;
        let Some(open) = open.as_mut().filter(|open| open.shown != certificates) else { return Ok(false) };
        let shown = async {
            let mut reply = hello(&*open.connection, urgency, &certificates).await?;
            reply.receive_all(REPLY_BYTES).await
        };
        timeout(self.connect_timeout, shown).await.unwrap_or_else(|_| Err(TransportError::TimedOut))?;
        open.shown = certificates;
        Ok(true)
    }

    /// Closes connections that are not used any more.
    pub(crate) fn close_idle(&self) {
        self.slots().retain(|_, slot| {
            let Ok(mut open) = slot.0.try_lock() else { return true };
            match open.take_if(|open| open.connection.is_closed() || open.used.elapsed() >= IDLE) {
                None => open.is_some(),
                Some(idle) => {
                    idle.connection.close();
                    false
                }
            }
        });
    }

    /// Closes a connection that is no good any more.
    pub(crate) fn discard(&self, peer: EndpointId, urgency: Urgency) {
        let slot = self.slots().remove(&(peer, urgency));
        if let Some(slot) = slot
            && let Ok(mut open) = slot.0.try_lock()
            && let Some(open) = open.take()
        {
            open.connection.close();
        }
    }

    /// Sends a request. Returns the reply and how many bytes were sent.
    pub(crate) async fn ask(
        &self,
        peer: EndpointId,
        urgency: Urgency,
        request: &Request,
        kind: Kind,
        items: usize,
    ) -> Result<(Status, Reply, usize), AskError> {
        let connection = self.connection(peer, urgency).await?;
        let (mut send, mut receive) = connection.open().await?;
        send.set_priority(priority(urgency));
        let bytes = Bytes::from(request.encode());
        let sent = bytes.len();
        send.send(bytes).await?;
        send.finish();
        let head = receive.receive(REPLY_BYTES).await?.ok_or(TransportError::Framing)?;
        let status = Status::decode(array(&head))?;
        Ok((status, Reply { stream: receive, kind, items, left: items }, sent))
    }
}

async fn hello(
    connection: &dyn Connection,
    urgency: Urgency,
    certificates: &[ByteVec],
) -> Result<Box<dyn ReceiveStream>, TransportError> {
    let (mut send, receive) = connection.open().await?;
    let request = Request::Hello { lazy: urgency == Urgency::Lazy, certificates: certificates.to_vec() };
    send.send(request.encode().into()).await?;
    send.finish();
    Ok(receive)
}

/// A reply, item by item.
pub(crate) struct Reply {
    stream: Box<dyn ReceiveStream>,
    kind: Kind,
    items: usize,
    left: usize,
}

/// What a reply has for one item.
#[derive(Debug)]
pub(crate) enum Received {
    /// An object, not yet checked.
    Object(Stored),
    /// The provider does not have it, or says that nothing is there.
    Nothing,
}

impl Reply {
    /// The next item: its number and what there is; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Received)>, AskError> {
        let Some(head) = self.stream.receive(ITEM_BYTES).await? else { return Ok(None) };
        // Everyone answers each item once: more would never end.
        self.left = self.left.checked_sub(1).ok_or(MessageError::Item(array(&head)))?;
        let item = Item::decode(array(&head), self.items, self.kind)?;
        let received = match item.content {
            Content::Absent | Content::Hole => Received::Nothing,
            Content::Stored { codec, plain_bytes, stored_bytes } => {
                let bytes = self.stream.receive(stored_bytes as usize).await?.ok_or(TransportError::Framing)?;
                Received::Object(Stored { codec, plain_bytes, bytes })
            }
        };
        Ok(Some((item.number as usize, received)))
    }
}

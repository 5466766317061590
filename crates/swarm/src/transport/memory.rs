//! A network in memory, with delay, bandwidth and faults: for tests and simulations, on real or paused time.
//!
//! It keeps what the transport promises (identity, order within a stream, back-pressure) and breaks what networks break:
//! an endpoint can be [cut](Network::cut) off (connections end), [stalled](Network::stall) (nothing arrives, nothing
//! ends) or gone, and comes back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use types::EndpointId;

use super::{Connection, Incoming, Protocol, ReceiveStream, SendStream, Stream, Transport, TransportError};

/// How many pieces a stream holds that were not yet received.
const PIECES: usize = 64;
/// How many connections and streams wait to be accepted.
const BACKLOG: usize = 64;

/// How the way from and to an endpoint is.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// How long bytes take to or from it.
    pub delay: Duration,
    /// How many bytes a second it can send.
    pub bytes_per_second: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self { delay: Duration::from_micros(100), bytes_per_second: 1 << 30 }
    }
}

/// A network in memory.
#[derive(Clone, Debug, Default)]
pub struct Network {
    hosts: Arc<Mutex<BTreeMap<EndpointId, Host>>>,
}

#[derive(Debug)]
struct Host {
    incoming: Option<mpsc::Sender<Arc<MemoryConnection>>>,
    state: watch::Sender<State>,
    link: Link,
    /// When what is being sent will have left, for the bandwidth.
    busy_until: Option<Instant>,
    sent_bytes: u64,
}

/// How an endpoint is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// How often it was cut off: connections of an earlier generation are dead.
    generation: u64,
    /// Whether anything arrives or leaves.
    stalled: bool,
}

impl Network {
    /// Makes a network without endpoints.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<EndpointId, Host>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an endpoint, or brings one back that has closed.
    #[must_use]
    pub fn join(&self, endpoint: EndpointId) -> Arc<MemoryTransport> {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let mut hosts = self.hosts();
        let host = hosts.entry(endpoint).or_insert_with(|| Host {
            incoming: None,
            state: watch::Sender::new(State { generation: 0, stalled: false }),
            link: Link::default(),
            busy_until: None,
            sent_bytes: 0,
        });
        host.incoming = Some(sender);
        let incoming = tokio::sync::Mutex::new(incoming);
        Arc::new(MemoryTransport { network: self.clone(), endpoint, incoming, closed: watch::Sender::new(false) })
    }

    fn change(&self, endpoint: EndpointId, change: impl FnOnce(&mut Host)) {
        if let Some(host) = self.hosts().get_mut(&endpoint) {
            change(host);
        }
    }

    /// Sets how the way to and from an endpoint is.
    pub fn set_link(&self, endpoint: EndpointId, link: Link) {
        self.change(endpoint, |host| host.link = link);
    }

    /// Ends all connections of an endpoint.
    pub fn cut(&self, endpoint: EndpointId) {
        self.change(endpoint, |host| host.state.send_modify(|state| state.generation += 1));
    }

    /// Keeps everything from arriving at or leaving an endpoint, or lets it pass again.
    pub fn stall(&self, endpoint: EndpointId, stalled: bool) {
        self.change(endpoint, |host| host.state.send_modify(|state| state.stalled = stalled));
    }

    /// How many bytes an endpoint has sent in all.
    #[must_use]
    pub fn sent_bytes(&self, endpoint: EndpointId) -> u64 {
        self.hosts().get(&endpoint).map_or(0, |host| host.sent_bytes)
    }

    fn leave(&self, endpoint: EndpointId) {
        self.change(endpoint, |host| {
            host.incoming = None;
            host.state.send_modify(|state| state.generation += 1);
        });
    }

    /// Counts bytes that an endpoint sends, and says when they arrive at the other one.
    fn schedule(&self, from: EndpointId, to: EndpointId, length: usize) -> Instant {
        let mut hosts = self.hosts();
        let delay = |host: Option<&Host>| host.map_or(Duration::ZERO, |host| host.link.delay);
        let delay = delay(hosts.get(&from)) + delay(hosts.get(&to));
        let now = Instant::now();
        let Some(host) = hosts.get_mut(&from) else { return now };
        host.sent_bytes += length as u64;
        let took = Duration::from_nanos(
            u64::try_from(u128::from(length as u64) * 1_000_000_000 / u128::from(host.link.bytes_per_second.max(1)))
                .unwrap_or(u64::MAX),
        );
        let left = host.busy_until.map_or(now, |until| until.max(now)) + took;
        host.busy_until = Some(left);
        left + delay
    }

    fn watch(&self, endpoint: EndpointId) -> Option<watch::Receiver<State>> {
        self.hosts().get(&endpoint).map(|host| host.state.subscribe())
    }
}

/// An endpoint of a network in memory.
#[derive(Debug)]
pub struct MemoryTransport {
    network: Network,
    endpoint: EndpointId,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Arc<MemoryConnection>>>,
    closed: watch::Sender<bool>,
}

impl Transport for MemoryTransport {
    fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    fn connect(
        &self,
        peer: EndpointId,
        protocol: Protocol,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, TransportError>> {
        let (network, me) = (self.network.clone(), self.endpoint);
        let closed = self.closed.subscribe();
        Box::pin(async move {
            if *closed.borrow() {
                return Err(TransportError::Closed);
            }
            let incoming = network.hosts().get(&peer).and_then(|host| host.incoming.clone());
            let incoming = incoming.ok_or(TransportError::NoAddress(peer))?;
            let path = Path::between(&network, me, peer).ok_or(TransportError::NoAddress(peer))?;
            path.clone().arrive(network.schedule(me, peer, 1200)).await?;
            let (here, there) = MemoryConnection::pair(&network, (me, peer), protocol, &path);
            incoming.send(there).await.map_err(|_| TransportError::NoAddress(peer))?;
            path.arrive(network.schedule(peer, me, 1200)).await?;
            Ok(here as Arc<dyn Connection>)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Incoming>> {
        Box::pin(async move {
            let mut closed = self.closed.subscribe();
            let mut incoming = self.incoming.lock().await;
            tokio::select! {
                connection = incoming.recv() => {
                    let connection = connection?;
                    Some(Box::pin(async move { Ok(connection as Arc<dyn Connection>) }) as Incoming)
                }
                _ = closed.wait_for(|closed| *closed) => None,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closed.send_replace(true);
            self.network.leave(self.endpoint);
        })
    }
}

/// The state of both ends of a connection, as one of them sees it.
#[derive(Clone, Debug)]
struct Path {
    ends: [watch::Receiver<State>; 2],
    generations: [u64; 2],
    closed: Arc<AtomicBool>,
    closing: watch::Sender<()>,
}

impl Path {
    fn between(network: &Network, one: EndpointId, other: EndpointId) -> Option<Self> {
        let ends = [network.watch(one)?, network.watch(other)?];
        let generations = [ends[0].borrow().generation, ends[1].borrow().generation];
        Some(Self { ends, generations, closed: Arc::default(), closing: watch::Sender::new(()) })
    }

    fn is_dead(&self) -> bool {
        let cut = self.ends.iter().zip(self.generations).any(|(end, generation)| end.borrow().generation != generation);
        cut || self.closed.load(Ordering::Acquire)
    }

    /// Waits until `at`, and then while an end is stalled.
    async fn arrive(mut self, at: Instant) -> Result<(), TransportError> {
        let lost = || TransportError::Lost("the connection was cut".into());
        let mut closing = self.closing.subscribe();
        loop {
            if self.is_dead() {
                return Err(lost());
            }
            let stalled = self.ends.iter_mut().any(|end| end.borrow_and_update().stalled);
            if !stalled && Instant::now() >= at {
                return Ok(());
            }
            let [one, other] = &mut self.ends;
            tokio::select! {
                () = tokio::time::sleep_until(at), if !stalled => {}
                changed = one.changed() => changed.map_err(|_| lost())?,
                changed = other.changed() => changed.map_err(|_| lost())?,
                _ = closing.changed() => {}
            }
        }
    }

    /// Resolves once the connection has ended.
    async fn dead(mut self) {
        let mut closing = self.closing.subscribe();
        while !self.is_dead() {
            let [one, other] = &mut self.ends;
            tokio::select! {
                changed = one.changed() => if changed.is_err() { return },
                changed = other.changed() => if changed.is_err() { return },
                _ = closing.changed() => {}
            }
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
struct MemoryConnection {
    network: Network,
    me: EndpointId,
    peer: EndpointId,
    protocol: Protocol,
    path: Path,
    outgoing: mpsc::Sender<Halves>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Halves>>,
}

/// What the other end gets of a stream.
#[derive(Debug)]
struct Halves {
    arrives: Instant,
    send: MemorySend,
    receive: MemoryReceive,
}

impl MemoryConnection {
    fn pair(
        network: &Network,
        (me, peer): (EndpointId, EndpointId),
        protocol: Protocol,
        path: &Path,
    ) -> (Arc<Self>, Arc<Self>) {
        let (to_there, from_here) = mpsc::channel(BACKLOG);
        let (to_here, from_there) = mpsc::channel(BACKLOG);
        let end = |me, peer, outgoing, incoming| {
            let (network, path) = (network.clone(), path.clone());
            let incoming = tokio::sync::Mutex::new(incoming);
            Arc::new(Self { network, me, peer, protocol, path, outgoing, incoming })
        };
        (end(me, peer, to_there, from_there), end(peer, me, to_here, from_here))
    }

    fn pipe(&self, from: EndpointId, to: EndpointId) -> (MemorySend, MemoryReceive) {
        let (sender, receiver) = mpsc::channel(PIECES);
        let (network, path) = (self.network.clone(), self.path.clone());
        let send = MemorySend { network, path: path.clone(), from, to, pieces: Some(sender) };
        (send, MemoryReceive { path, pieces: receiver, buffer: BytesMut::new(), ended: false })
    }
}

impl Connection for MemoryConnection {
    fn peer(&self) -> EndpointId {
        self.peer
    }

    fn protocol(&self) -> Protocol {
        self.protocol
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, TransportError>> {
        Box::pin(async {
            if self.path.is_dead() {
                return Err(TransportError::Closed);
            }
            let (send, there) = self.pipe(self.me, self.peer);
            let (back, receive) = self.pipe(self.peer, self.me);
            let arrives = self.network.schedule(self.me, self.peer, 20);
            let halves = Halves { arrives, send: back, receive: there };
            self.outgoing.send(halves).await.map_err(|_| TransportError::Closed)?;
            Ok((Box::new(send) as Box<dyn SendStream>, Box::new(receive) as Box<dyn ReceiveStream>))
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, TransportError>> {
        Box::pin(async {
            let mut incoming = self.incoming.lock().await;
            let halves = tokio::select! {
                halves = incoming.recv() => halves.ok_or(TransportError::Closed)?,
                () = self.path.clone().dead() => return Err(TransportError::Closed),
            };
            self.path.clone().arrive(halves.arrives).await?;
            Ok((Box::new(halves.send) as Box<dyn SendStream>, Box::new(halves.receive) as Box<dyn ReceiveStream>))
        })
    }

    fn is_closed(&self) -> bool {
        self.path.is_dead()
    }

    fn close(&self) {
        self.path.closed.store(true, Ordering::Release);
        self.path.closing.send_replace(());
    }
}

/// A piece of a stream on its way; no bytes stand for its end.
type Piece = (Instant, Bytes);

#[derive(Debug)]
struct MemorySend {
    network: Network,
    path: Path,
    from: EndpointId,
    to: EndpointId,
    pieces: Option<mpsc::Sender<Piece>>,
}

impl SendStream for MemorySend {
    fn send(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async move {
            let pieces = self.pieces.as_ref().ok_or(TransportError::Closed)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let permit = tokio::select! {
                permit = pieces.reserve() => permit.map_err(|_| TransportError::Closed)?,
                () = self.path.clone().dead() => return Err(TransportError::Closed),
            };
            permit.send((self.network.schedule(self.from, self.to, bytes.len()), bytes));
            Ok(())
        })
    }

    fn finish(&mut self) {
        // A full pipe could not take the end now: it is sent by a task of its own.
        if let Some(pieces) = self.pieces.take() {
            let end = (self.network.schedule(self.from, self.to, 1), Bytes::new());
            tokio::spawn(async move { pieces.send(end).await });
        }
    }

    fn set_priority(&mut self, _: i32) {}
}

#[derive(Debug)]
struct MemoryReceive {
    path: Path,
    pieces: mpsc::Receiver<Piece>,
    buffer: BytesMut,
    ended: bool,
}

impl MemoryReceive {
    /// Adds a piece to the buffer, or finds the end.
    async fn piece(&mut self) -> Result<(), TransportError> {
        let piece = tokio::select! {
            piece = self.pieces.recv() => piece,
            () = self.path.clone().dead() => return Err(TransportError::Closed),
        };
        let (at, bytes) = piece.ok_or_else(|| TransportError::Lost("the stream was reset".into()))?;
        self.path.clone().arrive(at).await?;
        self.ended = bytes.is_empty();
        self.buffer.extend_from_slice(&bytes);
        Ok(())
    }
}

impl ReceiveStream for MemoryReceive {
    fn receive(&mut self, length: usize) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async move {
            while self.buffer.len() < length {
                if self.ended {
                    return if self.buffer.is_empty() { Ok(None) } else { Err(TransportError::Framing) };
                }
                self.piece().await?;
            }
            Ok(Some(self.buffer.split_to(length).freeze()))
        })
    }

    fn receive_all(&mut self, limit: usize) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move {
            while !self.ended && self.buffer.len() <= limit {
                self.piece().await?;
            }
            if self.buffer.len() > limit { Err(TransportError::Framing) } else { Ok(self.buffer.split().freeze()) }
        })
    }
}

/// Makes endpoint ids for tests: each call another one.
#[must_use]
pub fn test_endpoint() -> EndpointId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; 32];
    id[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    EndpointId(id)
}

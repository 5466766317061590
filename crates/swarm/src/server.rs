//! The serving side of the protocol: who asks is checked at every request, and answered from the store.
//!
//! Invariants: who may not read a snapshot gets the answer that an unknown snapshot gets; what a peer can make us hold
//! is bounded per request, per connection and in all; the store is never read on an async thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bucket::{Certificate, SignedCertificate};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use minicbor::bytes::ByteVec;
use store::{Key, NodeCache, Origin, Part, StoreError, Urgency};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout, timeout_at};
use types::EndpointId;

use crate::engine::Engine;
use crate::library::{Peer, Served};
use crate::message::{MAX_REQUEST_BYTES, Place, Request, Status, priority};
use crate::options::{SwarmOptions, Timing};
use crate::scheduler::{Want, Whereabouts};
use crate::shelf::{Found, Shelf, append};
use crate::transport::{Connection, Incoming, Protocol, SendStream, Stream, Transport, TransportError};

/// The most requests that are answered at once on one connection.
const REQUESTS: usize = 64;
/// The most connections of one peer: lazy and bulk, each perhaps twice while it reconnects.
const CONNECTIONS: usize = 4;
/// A connection on which nothing is asked for so long is closed, to make room for others.
const IDLE: Duration = Duration::from_secs(300);
/// How much is read from the store before it is sent, in bytes.
const BATCH_BYTES: usize = 256 << 10;
/// The unit in which bytes between store and network are counted.
const PERMIT_BYTES: usize = 1 << 10;
/// The most objects that are being fetched through at once.
const THROUGH: usize = 1024;
/// How long something is still fetched through after who asked has been told that it is absent: it will ask again.
const LINGER: Duration = Duration::from_secs(30);
/// What decoded tree nodes may take, in bytes.
const NODE_CACHE_BYTES: u64 = 16 << 20;
/// How many connections of other protocols wait for whoever speaks them.
const VISITORS: usize = 16;

#[derive(Debug)]
pub(crate) struct Server {
    engine: Arc<Engine>,
    transport: Arc<dyn Transport>,
    timing: Timing,
    max_peers: usize,
    cache: Arc<NodeCache>,
    peers: Mutex<BTreeMap<EndpointId, usize>>,
    /// Store reads at once, so that bulk never takes the places of lazy ones.
    lazy_reads: Semaphore,
    bulk_reads: Semaphore,
    /// Bytes between store and network.
    sending: Arc<Semaphore>,
    through: Arc<Semaphore>,
    /// Connections of other protocols, for whoever speaks them.
    arriving: mpsc::Sender<Arc<dyn Connection>>,
    visitors: tokio::sync::Mutex<mpsc::Receiver<Arc<dyn Connection>>>,
}

/// What is known of a connection's other end.
#[derive(Debug)]
struct Session {
    endpoint: EndpointId,
    urgency: Urgency,
    certificates: Mutex<Vec<Certificate>>,
}

impl Session {
    /// Who asks: with the certificates that hold now.
    fn peer(&self, now_ms: u64) -> Peer {
        let certificates = self.certificates.lock().unwrap_or_else(PoisonError::into_inner);
        let valid = certificates.iter().filter(|certificate| certificate.expires_ms > now_ms);
        let accounts = valid.map(|certificate| (certificate.indexer, certificate.account.clone())).collect();
        Peer { endpoint: self.endpoint, accounts }
    }

    /// Believes certificates that are for this endpoint and verify; the others do not count.
    fn show(&self, shown: &[ByteVec], now_ms: u64) {
        let verified = shown.iter().filter_map(|bytes| SignedCertificate::decode(bytes).ok()?.verify(now_ms).ok());
        let ours = verified.filter(|certificate| certificate.endpoint == self.endpoint).collect();
        *self.certificates.lock().unwrap_or_else(PoisonError::into_inner) = ours;
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A request under way: what it asks for, and where that is looked for.
struct Job {
    shelf: Shelf,
    served: Served,
    disk: u32,
    hops: u8,
    places: Vec<Place>,
}

/// The absent items of a request: number, place, and what would have to be fetched first.
type Absent = Vec<(u32, Part, Key)>;

impl Server {
    pub(crate) fn new(engine: Arc<Engine>, transport: Arc<dyn Transport>, options: &SwarmOptions) -> Arc<Self> {
        let permits = options.serving_bytes as usize / PERMIT_BYTES;
        let (arriving, visitors) = mpsc::channel(VISITORS);
        Arc::new(Self {
            engine,
            transport,
            timing: options.timing,
            max_peers: options.max_peers,
            cache: NodeCache::new(NODE_CACHE_BYTES),
            peers: Mutex::default(),
            lazy_reads: Semaphore::new(16),
            bulk_reads: Semaphore::new(8),
            sending: Arc::new(Semaphore::new(permits.max(2 * MAX_BATCH_PERMITS))),
            through: Arc::new(Semaphore::new(THROUGH)),
            arriving,
            visitors: tokio::sync::Mutex::new(visitors),
        })
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<EndpointId, usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is connected to us.
    pub(crate) fn connected(&self) -> Vec<EndpointId> {
        self.peers().keys().copied().collect()
    }

    /// The next connection of another protocol; those that nobody takes in time are closed.
    pub(crate) async fn visitor(&self) -> Option<Arc<dyn Connection>> {
        self.visitors.lock().await.recv().await
    }

    /// Accepts connections until the engine is stopped.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let incoming = tokio::select! {
                incoming = self.transport.accept() => incoming,
                () = self.engine.stop.cancelled() => return,
            };
            let Some(incoming) = incoming else { return };
            self.engine.tasks.spawn(Arc::clone(&self).serve(incoming));
        }
    }

    async fn serve(self: Arc<Self>, incoming: Incoming) {
        let connection = match timeout(self.timing.connect, incoming).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::debug!(%error, "an incoming connection failed"),
            Err(_) => return tracing::debug!("an incoming connection did not finish its handshake in time"),
        };
        if connection.protocol() != Protocol::Chunks {
            if let Err(refused) = self.arriving.try_send(connection) {
                refused.into_inner().close();
            }
            return;
        }
        let Some(_place) = self.admit(connection.peer()) else {
            tracing::debug!(peer = %connection.peer(), "too many connections");
            return connection.close();
        };
        tokio::select! {
            ended = self.converse(&*connection) => {
                tracing::debug!(peer = %connection.peer(), ended = ?ended.err(), "connection ended");
            }
            () = self.engine.stop.cancelled() => {}
        }
        connection.close();
    }

    fn admit(self: &Arc<Self>, peer: EndpointId) -> Option<Admitted> {
        let mut peers = self.peers();
        let full = peers.len() >= self.max_peers && !peers.contains_key(&peer);
        let connections = peers.get(&peer).copied().unwrap_or(0);
        if full || connections >= CONNECTIONS {
            return None;
        }
        peers.insert(peer, connections + 1);
        Some(Admitted { server: Arc::clone(self), peer })
    }

    /// Answers everything on a connection, until it ends.
    async fn converse(self: &Arc<Self>, connection: &dyn Connection) -> Result<(), TransportError> {
        let first = async {
            let (send, mut receive) = connection.accept().await?;
            Ok((send, receive.receive_all(MAX_REQUEST_BYTES).await?))
        };
        let (mut send, hello) = timeout(self.timing.connect, first).await.unwrap_or(Err(TransportError::TimedOut))?;
        let Ok(Request::Hello { lazy, certificates }) = Request::decode(&hello) else {
            return Err(TransportError::Framing);
        };
        let urgency = if lazy { Urgency::Lazy } else { Urgency::Bulk };
        let session = Session { endpoint: connection.peer(), urgency, certificates: Mutex::default() };
        session.show(&certificates, now_ms());
        // Who asks does not wait for this reply, and may have stopped listening.
        if send.send(Bytes::copy_from_slice(&Status::Ok.encode())).await.is_ok() {
            send.finish();
        }
        let session = Arc::new(session);
        let mut requests = JoinSet::new();
        loop {
            let stream = timeout(IDLE, connection.accept()).await.unwrap_or(Err(TransportError::TimedOut))?;
            while requests.try_join_next().is_some() {}
            if requests.len() >= REQUESTS {
                requests.join_next().await;
            }
            let (server, session) = (Arc::clone(self), Arc::clone(&session));
            requests.spawn(async move {
                if let Err(error) = server.answer(&session, stream).await {
                    tracing::debug!(peer = %session.endpoint, %error, "a request was not answered");
                }
            });
        }
    }

    async fn answer(&self, session: &Session, (mut send, mut receive): Stream) -> Result<(), TransportError> {
        send.set_priority(priority(session.urgency));
        let bytes = timeout(self.timing.connect, receive.receive_all(MAX_REQUEST_BYTES)).await;
        let bytes = bytes.unwrap_or(Err(TransportError::TimedOut))?;
        let refuse = async |mut send: Box<dyn SendStream>, status: Status| {
            self.send(&mut send, status.encode().to_vec()).await?;
            send.finish();
            Ok(())
        };
        match Request::decode(&bytes) {
            Err(error) => {
                tracing::debug!(peer = %session.endpoint, %error, "a malformed request");
                refuse(send, Status::Malformed).await
            }
            Ok(Request::Hello { certificates, .. }) => {
                session.show(&certificates, now_ms());
                refuse(send, Status::Ok).await
            }
            Ok(request) => {
                let Some(job) = self.open(session, &request).await else {
                    return refuse(send, Status::Unknown).await;
                };
                self.send_items(session, Arc::new(job), &mut send).await?;
                send.finish();
                Ok(())
            }
        }
    }

    fn reads(&self, urgency: Urgency) -> &Semaphore {
        match urgency {
            Urgency::Lazy => &self.lazy_reads,
            Urgency::Bulk => &self.bulk_reads,
        }
    }

    /// Checks whether the peer may read what it asks for, and finds it.
    async fn open(&self, session: &Session, request: &Request) -> Option<Job> {
        let (snapshot, disk, hops) = match request {
            Request::Hello { .. } => return None,
            Request::Manifest { snapshot } => (*snapshot, None, 0),
            Request::Nodes { snapshot, disk, hops, .. } | Request::Chunks { snapshot, disk, hops, .. } => {
                (*snapshot, Some(*disk), *hops)
            }
        };
        let places = request.places();
        let (library, store) = (Arc::clone(&self.engine.library), Arc::clone(&self.engine.store));
        let cache = Arc::clone(&self.cache);
        let peer = session.peer(now_ms());
        let _permit = self.reads(session.urgency).acquire().await.ok()?;
        let open = move || {
            let served = library.serve(&peer, &snapshot)?;
            let shelf = match Shelf::open(&store, &cache, &served.domains, snapshot, disk) {
                Ok(shelf) => shelf?,
                Err(error) => {
                    tracing::warn!(%snapshot, %error, "could not read a snapshot to serve it");
                    return None;
                }
            };
            Some(Job { shelf, served, disk: disk.unwrap_or(0), hops, places })
        };
        spawn_blocking(open).await.ok().flatten()
    }

    async fn send_items(
        &self,
        session: &Session,
        job: Arc<Job>,
        send: &mut Box<dyn SendStream>,
    ) -> Result<(), TransportError> {
        let mut reply = Status::Ok.encode().to_vec();
        let mut absent = Absent::new();
        self.engine.statistics.count(session.endpoint, |peer| peer.served(session.urgency).requests += 1);
        let each = job.places.first().map_or(1, |place| place.kind().max_plain_bytes());
        let per_batch = (BATCH_BYTES / each).max(1);
        for first in (0..job.places.len()).step_by(per_batch) {
            let numbers = first..(first + per_batch).min(job.places.len());
            let permits = u32::try_from(numbers.len() * each / PERMIT_BYTES).unwrap_or(u32::MAX);
            let _sending = acquire(&self.sending, permits).await?;
            let reading = self.reads(session.urgency).acquire().await.map_err(|_| TransportError::Closed)?;
            let batch = Arc::clone(&job);
            let read = move || read_batch(&batch, numbers, reply, &mut absent).map(|reply| (reply, absent));
            let (batch, missing) =
                spawn_blocking(read).await.map_err(|_| TransportError::Closed)?.map_err(|error| {
                    tracing::warn!(%error, "could not read what shall be served");
                    TransportError::Closed
                })?;
            drop(reading);
            absent = missing;
            self.count_sent(session, &batch);
            self.send(send, batch.bytes).await?;
            reply = Vec::new();
        }
        self.send_absent(session, &job, absent, send).await
    }

    /// Fetches through what is absent here, where that is possible, and sends what came in time.
    async fn send_absent(
        &self,
        session: &Session,
        job: &Arc<Job>,
        absent: Absent,
        send: &mut Box<dyn SendStream>,
    ) -> Result<(), TransportError> {
        let deadline = Instant::now() + self.timing.fetch_through;
        let upstream = job.served.upstream.get(job.disk as usize).copied().flatten().filter(|_| job.hops > 0);
        let mut coming: FuturesUnordered<_> = absent
            .into_iter()
            .map(|(number, part, key)| async move {
                let arrived = match upstream {
                    None => false,
                    Some(origin) => timeout_at(deadline, self.bring(session, job, origin, number, (part, key)))
                        .await
                        .unwrap_or(false),
                };
                (number, arrived)
            })
            .collect();
        while let Some((number, arrived)) = coming.next().await {
            let at = number as usize;
            let batch = if arrived {
                let job = Arc::clone(job);
                let read = move || read_batch(&job, at..at + 1, Vec::new(), &mut Absent::new());
                spawn_blocking(read).await.ok().and_then(Result::ok)
            } else {
                None
            };
            let batch = batch.unwrap_or_else(|| Batch::absent(number));
            let batch = if batch.bytes.is_empty() { Batch::absent(number) } else { batch };
            self.count_sent(session, &batch);
            self.send(send, batch.bytes).await?;
        }
        Ok(())
    }

    /// Fetches what lies on the way to an item, and the item. Returns whether it is here now.
    async fn bring(&self, session: &Session, job: &Arc<Job>, origin: Origin, number: u32, first: (Part, Key)) -> bool {
        let (mut part, mut key) = first;
        // A node of each level, and the item.
        for _ in 0..=format::node::MAX_LEVELS {
            let Ok(permit) = Arc::clone(&self.through).try_acquire_owned() else { return false };
            let place = match part {
                Part::Node(position) => Place::Node(position),
                Part::Chunk(index) => Place::Chunk(index),
            };
            let want = Want {
                key,
                domain: job.served.domains.first(),
                whereabouts: Whereabouts { origin, place },
                urgency: session.urgency,
                hops: job.hops - 1,
            };
            let fetch = self.engine.fetch(want);
            // Goes on for a while after we have given up, so that a slow upstream is not asked in vain.
            let fetched = self.engine.tasks.spawn(async move {
                let _permit = permit;
                timeout(LINGER, fetch).await.is_ok_and(|fetched| fetched.is_ok())
            });
            if !fetched.await.unwrap_or(false) {
                return false;
            }
            let again = Arc::clone(job);
            let found = spawn_blocking(move || again.shelf.find(again.places[number as usize])).await;
            match found {
                Ok(Ok(Found::Absent(next, next_key))) => (part, key) = (next, next_key),
                Ok(Ok(_)) => return true,
                _ => return false,
            }
        }
        false
    }

    fn count_sent(&self, session: &Session, batch: &Batch) {
        self.engine.statistics.count(session.endpoint, |peer| {
            let traffic = peer.served(session.urgency);
            traffic.objects += batch.objects;
            traffic.payload_bytes += batch.payload_bytes;
            traffic.message_bytes += batch.bytes.len() as u64;
        });
    }

    /// Sends bytes, but gives up on a peer that does not take them.
    async fn send(&self, send: &mut Box<dyn SendStream>, bytes: Vec<u8>) -> Result<(), TransportError> {
        timeout(self.timing.send_stall, send.send(bytes.into())).await.unwrap_or(Err(TransportError::TimedOut))
    }
}

/// The permits of the largest batch: a manifest.
const MAX_BATCH_PERMITS: usize = format::manifest::MAX_MANIFEST_BYTES / PERMIT_BYTES;

async fn acquire(semaphore: &Arc<Semaphore>, permits: u32) -> Result<OwnedSemaphorePermit, TransportError> {
    Arc::clone(semaphore).acquire_many_owned(permits).await.map_err(|_| TransportError::Closed)
}

/// Items of a reply, ready to be sent.
struct Batch {
    bytes: Vec<u8>,
    objects: u64,
    payload_bytes: u64,
}

impl Batch {
    fn absent(number: u32) -> Self {
        let mut bytes = Vec::new();
        append(&mut bytes, number, &Found::Damaged);
        Self { bytes, objects: 0, payload_bytes: 0 }
    }
}

/// Reads items by number, appends those that are here to a reply and collects the others.
fn read_batch(
    job: &Job,
    numbers: std::ops::Range<usize>,
    reply: Vec<u8>,
    absent: &mut Absent,
) -> Result<Batch, StoreError> {
    let mut batch = Batch { bytes: reply, objects: 0, payload_bytes: 0 };
    for number in numbers {
        let found = match job.shelf.find(job.places[number]) {
            // What is damaged here counts as absent: others may have it.
            Err(StoreError::Damaged { what, path }) => {
                tracing::error!(what, path = %path.display(), "damaged, so not served");
                Found::Damaged
            }
            found => found?,
        };
        let number = u32::try_from(number).expect("a request has few items");
        match found {
            Found::Absent(part, key) => absent.push((number, part, key)),
            found => {
                if let Found::Stored(stored) = &found {
                    batch.objects += 1;
                    batch.payload_bytes += stored.bytes.len() as u64;
                }
                append(&mut batch.bytes, number, &found);
            }
        }
    }
    Ok(batch)
}

/// A connection's place among those that are allowed; given back when dropped.
struct Admitted {
    server: Arc<Server>,
    peer: EndpointId,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut peers = self.server.peers();
        if let Some(connections) = peers.get_mut(&self.peer) {
            *connections -= 1;
            if *connections == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

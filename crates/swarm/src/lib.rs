//! Brings absent chunks, tree nodes and manifests from peers, and serves ours to them.
//!
//! **Participants.** An *asker* lacks parts of a snapshot that it may read; *providers* have some. Every node is both.
//! The node behind the [`Library`] trait says who provides what, who may read what, and where endpoints are.
//!
//! **Promises.** Nothing is believed before its hash is checked. A passing fault is never an error: what is wanted is
//! asked for again and elsewhere until it comes, the wait is dropped, or the swarm is closed. A provider answers only
//! who may read the snapshot, and to all others as if it did not exist. Requests name places in snapshots, never
//! hashes.
//!
//! **Not here.** Volumes, buckets' logs, the Indexer, relays. The protocol is described in `docs/protocol.md`.
//!
//! The life of a lazy read: [`ChunkSource::fetch`] enters it at the `scheduler` by way of the `engine`, which asks a
//! provider through the `client`; at the other end the `server` asks its library, finds the chunk on its `shelf` and
//! sends it as it is stored; the engine puts it in the store and wakes whoever waits.

mod client;
mod engine;
mod error;
mod hydrate;
mod library;
pub mod message;
mod options;
mod scheduler;
mod server;
mod shelf;
mod statistics;
pub mod transport;

use std::net::SocketAddr;
use std::sync::Arc;

use format::Manifest;
use futures_util::future::BoxFuture;
use store::{ChunkSource, ChunkStore, Domains, FetchError, NodeCache, Origin, Part, Wanted};
use types::{EndpointId, NodeId, Progress, SnapshotId};

pub use error::SwarmError;
pub use library::{Library, Peer, Served};
pub use options::{SwarmOptions, Timing};
pub use statistics::{PeerStatistics, SwarmStatistics, Traffic};

use crate::engine::Engine;
use crate::message::Place;
use crate::scheduler::{Want, Whereabouts};
use crate::server::Server;
use crate::transport::iroh::IrohTransport;
use crate::transport::{Connection, Protocol, Transport, TransportError};

/// How many peers our own requests may be passed on through: a clone of a clone that was published again.
const HOPS: u8 = 3;

/// How long it may take to connect to a peer for another protocol.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(5);

/// What decoded tree nodes may take while trees are walked, in bytes.
const NODE_CACHE_BYTES: u64 = 4 << 20;

/// A disk's tree of which parts may be absent here and can be fetched.
#[derive(Clone, Debug)]
pub struct RemoteTree {
    /// The published disk where absent parts can be asked for, at the same places.
    pub origin: Origin,
    /// The disk's size, in bytes.
    pub size_bytes: u64,
    /// The tree's root; `None` where the whole disk is a hole.
    pub root: Option<NodeId>,
    /// Where parts count as present; they are put in the first of these.
    pub domains: Domains,
}

/// A node's part in the swarm: an endpoint that asks and serves. Ends when closed or dropped.
#[derive(Debug)]
pub struct Swarm {
    engine: Arc<Engine>,
    server: Arc<Server>,
    transport: Arc<dyn Transport>,
    cache: Arc<NodeCache>,
}

impl Swarm {
    /// Binds an endpoint and begins to serve. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`SwarmError::Start`] when an address cannot be bound.
    pub async fn start(
        options: SwarmOptions,
        store: Arc<dyn ChunkStore>,
        library: Arc<dyn Library>,
    ) -> Result<Arc<Self>, SwarmError> {
        let transport = IrohTransport::bind(&options.secret_key, &options.bind, Arc::clone(&library)).await;
        let transport = transport.map_err(SwarmError::Start)?;
        Ok(Self::start_over(Arc::new(transport), &options, store, library, rand::random()))
    }

    /// Begins to serve over a transport that is there already. `seed` makes its choices among equals repeatable.
    #[must_use]
    pub fn start_over(
        transport: Arc<dyn Transport>,
        options: &SwarmOptions,
        store: Arc<dyn ChunkStore>,
        library: Arc<dyn Library>,
        seed: u64,
    ) -> Arc<Self> {
        let engine = Engine::new(options, Arc::clone(&transport), store, library, seed);
        let server = Server::new(Arc::clone(&engine), Arc::clone(&transport), options);
        engine.tasks.spawn(Arc::clone(&engine).run());
        engine.tasks.spawn(Arc::clone(&engine).tidy());
        engine.tasks.spawn(Arc::clone(&server).run());
        Arc::new(Self { engine, server, transport, cache: NodeCache::new(NODE_CACHE_BYTES) })
    }

    /// This node's endpoint.
    #[must_use]
    pub fn endpoint(&self) -> EndpointId {
        self.transport.endpoint()
    }

    /// Where it can be reached, as far as it knows itself.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.transport.addresses()
    }

    /// Brings a snapshot's manifest: from the store, else from a provider, as long as that takes.
    ///
    /// # Errors
    /// When the store fails, the swarm is closed, or the publisher signed something else than a manifest.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the wait.
    pub async fn manifest(&self, snapshot: SnapshotId, domains: &Domains) -> Result<Manifest, SwarmError> {
        hydrate::fetch_manifest(&self.engine, snapshot, domains).await
    }

    /// Brings all nodes of a tree that are absent, and commits them.
    ///
    /// # Errors
    /// When cancelled or closed, when the store fails, or when the publisher's tree is none.
    pub async fn fetch_tree(&self, tree: &RemoteTree, progress: &Progress) -> Result<(), SwarmError> {
        hydrate::fetch_tree(&self.engine, tree, progress, &self.cache).await.map(|_| ())
    }

    /// Brings everything of a tree that is absent, in bulk, and commits it. Resumes where an earlier call stopped, also
    /// one of another process. Progress counts plain bytes of chunks.
    ///
    /// # Errors
    /// As [`fetch_tree`](Swarm::fetch_tree).
    pub async fn hydrate(&self, tree: &RemoteTree, progress: &Progress) -> Result<(), SwarmError> {
        hydrate::hydrate(&self.engine, tree, progress, &self.cache).await
    }

    /// Is told that a snapshot has, or may have, new providers: asks them at once if anything of it is wanted.
    pub fn announced(&self, snapshot: SnapshotId) {
        self.engine.announced(snapshot);
    }

    /// Connects to a peer to speak another protocol than the swarm's own.
    ///
    /// # Errors
    /// When the peer cannot be found or reached in time.
    pub async fn connect(&self, peer: EndpointId, protocol: Protocol) -> Result<Arc<dyn Connection>, TransportError> {
        let connecting = self.transport.connect(peer, protocol);
        tokio::time::timeout(CONNECT, connecting).await.unwrap_or(Err(TransportError::TimedOut))
    }

    /// Waits for the next connection of a peer that speaks another protocol than the swarm's own. Who it is has been
    /// proven, and nothing more.
    ///
    /// # Cancel safety
    /// Dropping the future loses no connection.
    pub async fn visitor(&self) -> Option<Arc<dyn Connection>> {
        self.server.visitor().await
    }

    /// What moved since the start.
    #[must_use]
    pub fn statistics(&self) -> SwarmStatistics {
        let mut connected = self.engine.client.connected();
        connected.extend(self.server.connected());
        connected.sort_unstable();
        connected.dedup();
        self.engine.statistics.snapshot(connected.len())
    }

    /// Ends all transfers, answers everyone who waits with [`FetchError::Closed`], and closes the endpoint.
    pub async fn close(&self) {
        self.engine.stop.cancel();
        self.engine.tasks.close();
        self.transport.close().await;
        self.engine.tasks.wait().await;
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        self.engine.stop.cancel();
    }
}

impl ChunkSource for Swarm {
    fn fetch(&self, wanted: Wanted) -> BoxFuture<'static, Result<(), FetchError>> {
        let place = match wanted.part {
            Part::Node(position) => Place::Node(position),
            Part::Chunk(index) => Place::Chunk(index),
        };
        let arrival = self.engine.fetch(Want {
            key: wanted.key,
            domain: wanted.domains.first(),
            whereabouts: Whereabouts { origin: wanted.origin, place },
            urgency: wanted.urgency,
            hops: HOPS,
        });
        Box::pin(async move { arrival.await.map(drop) })
    }
}

//! A small world for tests: an "Indexer" that knows everything, disks, and nodes with stores in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bucket::{SignedCertificate, Signer};
use bytes::Bytes;
use format::{Disk, Manifest, Shape};
use futures_util::future::BoxFuture;
use store::{
    ChunkSource, ChunkStore, Domain, Domains, Key, MemoryStore, Nodes, Origin, Part, Put, Roots, StoreError,
    StoreStatistics, Urgency, Wanted,
};
use swarm::transport::memory::{Network, test_endpoint};
use swarm::{Library, Peer, RemoteTree, Served, Swarm, SwarmOptions};
use types::{CHUNK_BYTES, ChunkId, EndpointId, Name, NodeId, PublicKey, SnapshotId};

/// The longest that a test may take before it counts as failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Fails a test that hangs.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("the test ends in time")
}

/// What everyone can find out.
#[derive(Debug, Default)]
pub(crate) struct World {
    addresses: Mutex<BTreeMap<EndpointId, Vec<SocketAddr>>>,
    providers: Mutex<BTreeMap<SnapshotId, BTreeSet<EndpointId>>>,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Announces that a node provides a snapshot.
    pub(crate) fn provide(&self, snapshot: SnapshotId, node: &Node) {
        self.providers.lock().unwrap().entry(snapshot).or_default().insert(node.swarm.endpoint());
    }
}

/// Who may read a snapshot at a node, in which domains, and where the node fetches it through.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) to: To,
    pub(crate) domains: Domains,
    pub(crate) upstream: Vec<Option<Origin>>,
}

#[derive(Clone, Debug)]
pub(crate) enum To {
    Everyone,
    Account(PublicKey, Name),
}

/// One node's library.
#[derive(Debug)]
pub(crate) struct Shelves {
    world: Arc<World>,
    me: Mutex<Option<EndpointId>>,
    shown: Mutex<BTreeMap<SnapshotId, Shown>>,
    certificates: Mutex<Vec<SignedCertificate>>,
    /// From where the node may claim what is here.
    claims: Mutex<Option<(Arc<dyn ChunkStore>, Domain)>>,
}

impl Shelves {
    pub(crate) fn new(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            me: Mutex::default(),
            shown: Mutex::default(),
            certificates: Mutex::default(),
            claims: Mutex::default(),
        })
    }

    pub(crate) fn show(
        &self,
        snapshot: SnapshotId,
        to: To,
        domains: impl Into<Domains>,
        upstream: Vec<Option<Origin>>,
    ) {
        self.shown.lock().unwrap().insert(snapshot, Shown { to, domains: domains.into(), upstream });
    }

    pub(crate) fn set_certificates(&self, certificates: Vec<SignedCertificate>) {
        *self.certificates.lock().unwrap() = certificates;
    }

    pub(crate) fn claim_from(&self, store: Arc<dyn ChunkStore>, domain: Domain) {
        *self.claims.lock().unwrap() = Some((store, domain));
    }
}

impl Library for Shelves {
    fn serve(&self, peer: &Peer, snapshot: &SnapshotId) -> Option<Served> {
        let shown = self.shown.lock().unwrap().get(snapshot).cloned()?;
        let allowed = match shown.to {
            To::Everyone => true,
            To::Account(indexer, account) => peer.accounts.contains(&(indexer, account)),
        };
        allowed.then_some(Served { domains: shown.domains, upstream: shown.upstream })
    }

    fn may_claim(&self, _: &SnapshotId) -> bool {
        self.claims.lock().unwrap().is_some()
    }

    fn claim(&self, _: Origin, _: Part, key: &Key, domain: Domain) -> bool {
        let claims = self.claims.lock().unwrap().clone();
        let found = claims.and_then(|(store, from)| Some((store.get_stored(key, &from.into()).unwrap()?, store)));
        found.is_some_and(|(stored, store)| store.put_stored(key, domain, &stored).is_ok())
    }

    fn providers(&self, snapshot: SnapshotId) -> BoxFuture<'static, Vec<EndpointId>> {
        let providers = self.world.providers.lock().unwrap().get(&snapshot).cloned().unwrap_or_default();
        Box::pin(async move { providers.into_iter().collect() })
    }

    fn certificates(&self) -> BoxFuture<'static, Vec<SignedCertificate>> {
        let certificates = self.certificates.lock().unwrap().clone();
        Box::pin(async move { certificates })
    }

    fn resolve(&self, endpoint: EndpointId) -> BoxFuture<'static, Option<Vec<SocketAddr>>> {
        let addresses = self.world.addresses.lock().unwrap().get(&endpoint).cloned();
        Box::pin(async move { addresses })
    }

    fn publish(&self, addresses: Vec<SocketAddr>) {
        if let Some(me) = *self.me.lock().unwrap() {
            self.world.addresses.lock().unwrap().insert(me, addresses);
        }
    }
}

/// A node of the world.
pub(crate) struct Node {
    pub(crate) swarm: Arc<Swarm>,
    pub(crate) store: Arc<dyn ChunkStore>,
    pub(crate) library: Arc<Shelves>,
}

/// Options with short retries, so that tests of faults are quick.
pub(crate) fn options(secret_key: [u8; 32]) -> SwarmOptions {
    let mut options = SwarmOptions::new(secret_key);
    options.bind = vec!["127.0.0.1:0".parse().unwrap()];
    options.timing.first_retry = Duration::from_millis(20);
    options.timing.longest_retry = Duration::from_millis(200);
    options
}

/// A new secret key.
pub(crate) fn secret() -> [u8; 32] {
    rand::random()
}

impl Node {
    /// Starts a node with a real endpoint on loopback.
    pub(crate) async fn start(world: &Arc<World>, secret_key: [u8; 32], store: Arc<dyn ChunkStore>) -> Self {
        Self::start_with(world, options(secret_key), store).await
    }

    pub(crate) async fn start_with(world: &Arc<World>, options: SwarmOptions, store: Arc<dyn ChunkStore>) -> Self {
        let library = Shelves::new(world);
        let swarm = Swarm::start(options, Arc::clone(&store), library.clone()).await.unwrap();
        *library.me.lock().unwrap() = Some(swarm.endpoint());
        library.publish(swarm.addresses());
        Self { swarm, store, library }
    }

    /// Starts an empty node with a real endpoint on loopback.
    pub(crate) async fn empty(world: &Arc<World>) -> Self {
        Self::start(world, secret(), Arc::new(MemoryStore::new())).await
    }

    /// Starts a node with a real endpoint that shows a disk to everyone.
    pub(crate) async fn publisher(world: &Arc<World>, disk: &TestDisk) -> Self {
        let node = Self::empty(world).await;
        node.publish(world, disk);
        node
    }

    /// Starts a node on a network in memory.
    pub(crate) fn join(world: &Arc<World>, network: &Network, store: Arc<dyn ChunkStore>, seed: u64) -> Self {
        Self::join_as(world, network, test_endpoint(), store, seed)
    }

    pub(crate) fn join_as(
        world: &Arc<World>,
        network: &Network,
        endpoint: EndpointId,
        store: Arc<dyn ChunkStore>,
        seed: u64,
    ) -> Self {
        let library = Shelves::new(world);
        let transport = network.join(endpoint);
        let swarm = Swarm::start_over(transport, &options([0; 32]), Arc::clone(&store), library.clone(), seed);
        Self { swarm, store, library }
    }

    /// Puts a whole disk in the store, shows it to everyone and announces it.
    pub(crate) fn publish(&self, world: &World, disk: &TestDisk) {
        disk.put_all(&*self.store, Domain::PUBLIC);
        self.library.show(disk.snapshot, To::Everyone, Domain::PUBLIC, Vec::new());
        world.provide(disk.snapshot, self);
    }

    /// Fetches one chunk of a disk because someone waits for it.
    pub(crate) async fn read(&self, disk: &TestDisk, index: u64, domains: impl Into<Domains>) {
        self.swarm.fetch(disk.wanted(index, domains, Urgency::Lazy)).await.unwrap();
    }

    pub(crate) fn has(&self, key: impl Into<Key>, domains: impl Into<Domains>) -> bool {
        self.store.contains(&key.into(), &domains.into()).unwrap()
    }
}

/// A disk with known chunks.
pub(crate) struct TestDisk {
    pub(crate) manifest: Manifest,
    pub(crate) snapshot: SnapshotId,
    pub(crate) chunks: BTreeMap<u64, Bytes>,
    objects: Vec<(Key, Bytes)>,
}

impl TestDisk {
    /// A disk of `chunks` chunks of which those at `indexes` are written. `content` tells disks apart.
    pub(crate) fn new(chunks: u64, indexes: impl IntoIterator<Item = u64>, content: u64) -> Self {
        let written: BTreeMap<_, _> = indexes.into_iter().map(|index| (index, chunk(index, content))).collect();
        let mut objects: Vec<(Key, Bytes)> =
            written.values().map(|bytes| (format::chunk_id(bytes).into(), bytes.clone())).collect();
        let size_bytes = chunks * CHUNK_BYTES as u64;
        let shape = Shape::of(size_bytes);
        let empty = MemoryStore::new();
        let nodes = Nodes::new(Arc::new(empty), Domain::OWN.into());
        let changes = written.iter().map(|(index, bytes)| (*index, Some(format::chunk_id(bytes))));
        let mut emit = |id: NodeId, bytes: Vec<u8>| {
            objects.push((id.into(), bytes.into()));
            Ok(())
        };
        let root = format::tree::update(&nodes, (shape, None), shape, changes, &mut emit).unwrap();
        let disk = Disk { name: "disk0".parse().unwrap(), size_bytes, chunk_bytes: 1 << 16, root };
        let manifest = Manifest {
            version: format::manifest::VERSION,
            taken_ms: content,
            disks: vec![disk],
            base: None,
            message: String::new(),
            machine: None,
        };
        let (snapshot, bytes) = manifest.identify();
        objects.push((snapshot.into(), bytes.into()));
        Self { manifest, snapshot, chunks: written, objects }
    }

    /// Makes another snapshot of the same disk.
    pub(crate) fn rename(&mut self, taken_ms: u64) {
        self.manifest.taken_ms = taken_ms;
        let (snapshot, bytes) = self.manifest.identify();
        self.snapshot = snapshot;
        self.objects.retain(|(key, _)| key.kind != store::Kind::Manifest);
        self.objects.push((snapshot.into(), bytes.into()));
    }

    /// Puts everything in a store.
    pub(crate) fn put_all(&self, store: &dyn ChunkStore, domain: Domain) {
        self.put_some(store, domain, |_| true);
    }

    /// Puts some of it in a store.
    pub(crate) fn put_some(&self, store: &dyn ChunkStore, domain: Domain, which: impl Fn(&Key) -> bool) {
        for (key, bytes) in self.objects.iter().filter(|(key, _)| which(key)) {
            store.put(key, domain, bytes).unwrap();
        }
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin { snapshot: self.snapshot, disk: 0 }
    }

    pub(crate) fn tree(&self, domains: impl Into<Domains>) -> RemoteTree {
        let disk = &self.manifest.disks[0];
        RemoteTree { origin: self.origin(), size_bytes: disk.size_bytes, root: disk.root, domains: domains.into() }
    }

    pub(crate) fn id(&self, index: u64) -> ChunkId {
        format::chunk_id(&self.chunks[&index])
    }

    pub(crate) fn wanted(&self, index: u64, domains: impl Into<Domains>, urgency: Urgency) -> Wanted {
        let key = self.id(index).into();
        Wanted { origin: self.origin(), part: Part::Chunk(index), key, domains: domains.into(), urgency }
    }

    /// Whether all chunks are in a store, and right.
    pub(crate) fn is_whole(&self, store: &dyn ChunkStore, domain: Domain) -> bool {
        self.objects
            .iter()
            .filter(|(key, _)| key.kind != store::Kind::Manifest)
            .all(|(key, bytes)| store.get(key, &domain.into()).unwrap().is_some_and(|found| found == *bytes))
    }

    pub(crate) fn chunk_bytes(&self) -> u64 {
        (self.chunks.len() * CHUNK_BYTES) as u64
    }
}

/// The content of a chunk: no two are alike.
pub(crate) fn chunk(index: u64, content: u64) -> Bytes {
    let word = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ content.rotate_left(32) ^ 0x5555;
    let mut bytes = vec![0; CHUNK_BYTES];
    for (position, place) in bytes.chunks_exact_mut(8).enumerate() {
        place.copy_from_slice(&word.wrapping_add(position as u64 * 0x1234_5677).to_le_bytes());
    }
    bytes.into()
}

/// An Indexer's key.
pub(crate) fn indexer(seed: u8) -> Signer {
    Signer::from_seed(&[seed; 32])
}

/// A store that sends other bytes than those asked for, as a lying provider would.
#[derive(Debug, Default)]
pub(crate) struct LyingStore(pub(crate) MemoryStore);

impl ChunkStore for LyingStore {
    fn contains(&self, key: &Key, domains: &Domains) -> Result<bool, StoreError> {
        self.0.contains(key, domains)
    }

    fn get(&self, key: &Key, domains: &Domains) -> Result<Option<Bytes>, StoreError> {
        self.0.get(key, domains)
    }

    fn get_stored(&self, key: &Key, domains: &Domains) -> Result<Option<format::Stored>, StoreError> {
        let stored = self.0.get_stored(key, domains)?;
        Ok(stored.map(|stored| {
            let mut bytes = stored.bytes.to_vec();
            bytes[0] ^= 1;
            format::Stored { bytes: bytes.into(), ..stored }
        }))
    }

    fn put(&self, key: &Key, domain: Domain, plain: &[u8]) -> Result<Put, StoreError> {
        self.0.put(key, domain, plain)
    }

    fn put_stored(&self, key: &Key, domain: Domain, stored: &format::Stored) -> Result<Put, StoreError> {
        self.0.put_stored(key, domain, stored)
    }

    fn commit(&self) -> Result<(), StoreError> {
        self.0.commit()
    }

    fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        self.0.statistics()
    }

    fn roots(&self) -> &dyn Roots {
        self.0.roots()
    }
}

//! How long lazy reads take and how fast a disk arrives, between two real endpoints on loopback with local stores.
//!
//! `cargo bench -p swarm` (a number after `--` is the disk's size in MiB). Both ends share the machine's cores.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement prints, and stops where it cannot go on")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bucket::SignedCertificate;
use format::tree::{self, TreeError};
use format::{Disk, Manifest, Shape};
use futures_util::future::BoxFuture;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use store::local::{LocalOptions, LocalStore};
use store::{ChunkSource, ChunkStore, Domain, Key, Nodes, Origin, Part, Urgency, Wanted};
use swarm::{Library, Peer, RemoteTree, Served, Swarm, SwarmOptions};
use types::{CHUNK_BYTES, ChunkId, EndpointId, Progress, SnapshotId};

const DOMAIN: Domain = Domain::PUBLIC;

/// Shows everything to everyone, and knows one other endpoint.
#[derive(Debug, Default)]
struct Open(Mutex<Option<(EndpointId, Vec<SocketAddr>)>>);

impl Library for Open {
    fn serve(&self, _: &Peer, _: &SnapshotId) -> Option<Served> {
        Some(Served { domains: DOMAIN.into(), upstream: Vec::new() })
    }

    fn providers(&self, _: SnapshotId) -> BoxFuture<'static, Vec<EndpointId>> {
        let known = self.0.lock().unwrap().clone();
        Box::pin(async move { known.into_iter().map(|(endpoint, _)| endpoint).collect() })
    }

    fn certificates(&self) -> BoxFuture<'static, Vec<SignedCertificate>> {
        Box::pin(async { Vec::new() })
    }

    fn resolve(&self, _: EndpointId) -> BoxFuture<'static, Option<Vec<SocketAddr>>> {
        let known = self.0.lock().unwrap().clone();
        Box::pin(async move { known.map(|(_, addresses)| addresses) })
    }

    fn publish(&self, _: Vec<SocketAddr>) {}
}

async fn start(directory: &std::path::Path) -> (Arc<Swarm>, Arc<dyn ChunkStore>, Arc<Open>) {
    let store: Arc<dyn ChunkStore> = LocalStore::open(directory, LocalOptions::default()).unwrap();
    let library = Arc::new(Open::default());
    let mut options = SwarmOptions::new(rand::random());
    options.bind = vec!["127.0.0.1:0".parse().unwrap()];
    (Swarm::start(options, store.clone(), library.clone()).await.unwrap(), store, library)
}

/// Fills a store with a disk that compresses to about 40 %.
fn fill(store: &Arc<dyn ChunkStore>, chunks: u64) -> Manifest {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut written: Vec<(u64, Option<ChunkId>)> = Vec::new();
    let mut bytes = vec![0; CHUNK_BYTES];
    for index in 0..chunks {
        rng.fill_bytes(&mut bytes[..CHUNK_BYTES * 2 / 5]);
        let id = format::chunk_id(&bytes);
        store.put(&id.into(), DOMAIN, &bytes).unwrap();
        written.push((index, Some(id)));
    }
    let size_bytes = chunks * CHUNK_BYTES as u64;
    let shape = Shape::of(size_bytes);
    let nodes = Nodes::new(store.clone(), DOMAIN.into());
    let mut emit = |id: types::NodeId, bytes: Vec<u8>| store.put(&id.into(), DOMAIN, &bytes).map(drop);
    let root = tree::update(&nodes, (shape, None), shape, written, &mut emit).unwrap();
    let disk = Disk { name: "disk0".parse().unwrap(), size_bytes, chunk_bytes: 1 << 16, root };
    let version = format::manifest::VERSION;
    let manifest =
        Manifest { version, taken_ms: 0, disks: vec![disk], base: None, message: String::new(), machine: None };
    let (snapshot, bytes) = manifest.identify();
    store.put(&snapshot.into(), DOMAIN, &bytes).unwrap();
    store.commit().unwrap();
    manifest
}

/// Reads a chunk as a volume does: from the store, and what is absent on the way from the swarm.
async fn read(swarm: &Swarm, nodes: &Nodes, tree: &RemoteTree, index: u64) {
    let shape = Shape::of(tree.size_bytes);
    loop {
        let (part, key) = match tree::lookup(nodes, shape, tree.root, index) {
            Ok(None) => return,
            Ok(Some(id)) => (Part::Chunk(index), Key::from(id)),
            Err(TreeError::Absent(node)) => (Part::Node(node.position), Key::from(node.id)),
            Err(error) => panic!("{error}"),
        };
        if key.kind == store::Kind::Chunk && nodes.store().get(&key, &tree.domains).unwrap().is_some() {
            return;
        }
        let (origin, domains) = (tree.origin, tree.domains.clone());
        swarm.fetch(Wanted { origin, part, key, domains, urgency: Urgency::Lazy }).await.unwrap();
    }
}

fn report(what: &str, mut waits: Vec<Duration>) {
    waits.sort_unstable();
    let at = |part: usize| waits[(waits.len() * part / 100).min(waits.len() - 1)].as_secs_f64() * 1e3;
    let total: Duration = waits.iter().sum();
    println!("{what}: p50 {:.2} ms, p90 {:.2}, p99 {:.2}, all {} in {total:.2?}", at(50), at(90), at(99), waits.len());
}

#[tokio::main]
async fn main() {
    let mib: u64 = std::env::args().filter_map(|argument| argument.parse().ok()).next_back().unwrap_or(512);
    let directory = tempfile::tempdir().unwrap();
    let (seed, seed_store, _) = start(&directory.path().join("seed")).await;
    let manifest = fill(&seed_store, mib * 16);
    let (snapshot, _) = manifest.identify();
    let disk = &manifest.disks[0];
    let origin = Origin { snapshot, disk: 0 };
    let tree = RemoteTree { origin, size_bytes: disk.size_bytes, root: disk.root, domains: DOMAIN.into() };
    let (node, store, library) = start(&directory.path().join("node")).await;
    *library.0.lock().unwrap() = Some((seed.endpoint(), seed.addresses()));
    let nodes = Nodes::new(store.clone(), DOMAIN.into());

    let mut indexes: Vec<u64> = (0..mib * 16).collect();
    indexes.shuffle(&mut SmallRng::seed_from_u64(2));
    read(&node, &nodes, &tree, indexes[0]).await;
    let mut waits = Vec::new();
    for index in &indexes[1..978.min(indexes.len())] {
        let begun = Instant::now();
        read(&node, &nodes, &tree, *index).await;
        waits.push(begun.elapsed());
    }
    let moved = node.statistics().total;
    report("cold lazy reads of 64 KiB, one after another", waits);
    println!("  {} requests, {} bytes of messages", moved.fetched_lazy.requests, moved.fetched_lazy.message_bytes);

    let begun = Instant::now();
    let bulk = {
        let (node, tree) = (node.clone(), tree.clone());
        tokio::spawn(async move { node.hydrate(&tree, &Progress::default()).await.unwrap() })
    };
    let mut waits = Vec::new();
    for index in indexes[978.min(indexes.len())..].iter().rev() {
        if bulk.is_finished() || waits.len() == 100 {
            break;
        }
        let begun = Instant::now();
        read(&node, &nodes, &tree, *index).await;
        waits.push(begun.elapsed());
    }
    if !waits.is_empty() {
        report("lazy reads while the disk is hydrated", waits);
    }
    bulk.await.unwrap();
    println!("  hydrated beside them in {:.2?}", begun.elapsed());

    let (other, _, library) = start(&directory.path().join("other")).await;
    *library.0.lock().unwrap() = Some((seed.endpoint(), seed.addresses()));
    let begun = Instant::now();
    other.hydrate(&tree, &Progress::default()).await.unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let moved = other.statistics().total.fetched_bulk;
    println!(
        "hydration of {mib} MiB: {seconds:.2} s, {:.0} MiB/s plain, {:.0} MiB/s on the wire, {} requests",
        mib as f64 / seconds,
        moved.message_bytes as f64 / 1048576.0 / seconds,
        moved.requests
    );
}

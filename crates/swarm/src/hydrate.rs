//! Brings a whole tree, or everything below it: in bulk, skipping what is present, committing as it goes.
//!
//! Invariant: nothing is remembered between runs but the store itself, so that work resumes wherever it stopped. Memory
//! is bounded whatever the disk's size: a tree is walked left to right, and so many fetches are under way at most.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use format::tree::ReadNode;
use format::{FAN_OUT, Node, Position, Shape};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use store::{Key, NodeCache, Nodes, Origin, StoreError, Urgency};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use types::{CHUNK_BYTES, NodeId, Progress};

use crate::engine::{Arrival, Engine};
use crate::error::SwarmError;
use crate::message::Place;
use crate::scheduler::{Want, Whereabouts};
use crate::{HOPS, RemoteTree};

/// The most fetches under way: 64 MiB of chunks.
const FETCHES: usize = 1024;
/// How often at least what has come is made durable.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How much may come before it is made durable, in bytes.
const COMMIT_BYTES: u64 = 64 << 20;
/// How often somebody's wish to cancel is looked for.
const TICK: Duration = Duration::from_millis(100);
/// When nothing comes for so long, others are asked for instead: what nobody has must not hold up what somebody has.
const STUCK: Duration = Duration::from_secs(20);

/// A node that is still to be visited.
type Pending = (Position, NodeId);

/// What one fetch was for.
#[derive(Clone, Copy)]
enum Goal {
    Node(Pending),
    Chunk,
}

type Fetch = BoxFuture<'static, (Goal, Arrival)>;

/// One run over a tree.
struct Run<'a> {
    engine: &'a Arc<Engine>,
    tree: &'a RemoteTree,
    progress: &'a Progress,
    nodes: Nodes,
    shape: Shape,
    /// Whether chunks are wanted too.
    chunks: bool,
    /// Nodes to visit, the leftmost last.
    stack: Vec<Pending>,
    /// Absent chunks found and not yet asked for.
    ready: VecDeque<(u64, Key)>,
    fetches: FuturesUnordered<Fetch>,
    /// What was asked for in vain in this pass.
    missed: usize,
    last_arrival: Instant,
    last_commit: Instant,
    uncommitted_bytes: u64,
    /// Counted while only nodes are wanted, to know the total.
    chunk_bytes: u64,
}

/// Brings all nodes of a tree. Returns how many bytes its chunks have when plain.
pub(crate) async fn fetch_tree(
    engine: &Arc<Engine>,
    tree: &RemoteTree,
    progress: &Progress,
    cache: &Arc<NodeCache>,
) -> Result<u64, SwarmError> {
    Run::new(engine, tree, progress, cache, false).finish().await
}

/// Brings everything of a tree that is absent.
pub(crate) async fn hydrate(
    engine: &Arc<Engine>,
    tree: &RemoteTree,
    progress: &Progress,
    cache: &Arc<NodeCache>,
) -> Result<(), SwarmError> {
    // First all nodes: then the total is known.
    let uncounted = Progress::default();
    let follow = CancelTogether { outer: progress, inner: &uncounted };
    let chunk_bytes = follow.run(Run::new(engine, tree, &uncounted, cache, false).finish()).await?;
    progress.set_total_bytes(chunk_bytes);
    Run::new(engine, tree, progress, cache, true).finish().await?;
    Ok(())
}

/// Cancels one progress when another one is.
struct CancelTogether<'a> {
    outer: &'a Progress,
    inner: &'a Progress,
}

impl CancelTogether<'_> {
    async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(TICK) => if self.outer.is_cancelled() { self.inner.cancel() },
            }
        }
    }
}

impl<'a> Run<'a> {
    fn new(
        engine: &'a Arc<Engine>,
        tree: &'a RemoteTree,
        progress: &'a Progress,
        cache: &Arc<NodeCache>,
        chunks: bool,
    ) -> Self {
        let now = Instant::now();
        Self {
            engine,
            tree,
            progress,
            nodes: Nodes::with_cache(Arc::clone(&engine.store), tree.domains.clone(), Arc::clone(cache)),
            shape: Shape::of(tree.size_bytes),
            chunks,
            stack: Vec::new(),
            ready: VecDeque::new(),
            fetches: FuturesUnordered::new(),
            missed: 0,
            last_arrival: now,
            last_commit: now,
            uncommitted_bytes: 0,
            chunk_bytes: 0,
        }
    }

    /// Passes over the tree until nothing is missing.
    async fn finish(mut self) -> Result<u64, SwarmError> {
        loop {
            self.missed = 0;
            self.chunk_bytes = 0;
            self.stack.extend(self.tree.root.map(|root| (self.shape.root(), root)));
            let passed = self.pass().await;
            // Also after an error: what has come is kept.
            self.commit().await?;
            passed?;
            if self.missed == 0 {
                return Ok(self.chunk_bytes);
            }
            tracing::info!(missed = self.missed, snapshot = %self.tree.origin.snapshot, "nobody has everything yet");
        }
    }

    async fn pass(&mut self) -> Result<(), SwarmError> {
        self.last_arrival = Instant::now();
        loop {
            self.progress.check()?;
            self.fill().await?;
            if self.fetches.is_empty() {
                return Ok(());
            }
            tokio::select! {
                Some((goal, arrival)) = self.fetches.next() => self.take(goal, arrival)?,
                () = tokio::time::sleep(TICK) => {}
            }
            if self.last_arrival.elapsed() >= STUCK && (self.fetches.len() >= FETCHES || !self.stack.is_empty()) {
                self.missed += self.fetches.len();
                self.fetches.clear();
                self.last_arrival = Instant::now();
            }
            if self.uncommitted_bytes >= COMMIT_BYTES
                || (self.uncommitted_bytes > 0 && self.last_commit.elapsed() >= COMMIT_EVERY)
            {
                self.commit().await?;
            }
        }
    }

    /// Takes the outcome of one fetch.
    fn take(&mut self, goal: Goal, arrival: Arrival) -> Result<(), SwarmError> {
        let moved_bytes = arrival?;
        self.last_arrival = Instant::now();
        match goal {
            // Visited next, where it stands.
            Goal::Node(pending) => {
                self.progress.advance(0, moved_bytes);
                self.stack.push(pending);
            }
            Goal::Chunk => {
                self.progress.advance(CHUNK_BYTES as u64, moved_bytes);
                self.uncommitted_bytes += CHUNK_BYTES as u64;
            }
        }
        Ok(())
    }

    /// Begins fetches while there is room for more and something to fetch.
    async fn fill(&mut self) -> Result<(), SwarmError> {
        while self.fetches.len() < FETCHES {
            if let Some((index, key)) = self.ready.pop_front() {
                self.begin(Goal::Chunk, Place::Chunk(index), key);
            } else if let Some(pending) = self.stack.pop() {
                self.visit(pending).await?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn begin(&mut self, goal: Goal, place: Place, key: Key) {
        let fetch = self.engine.fetch(self.want(place, key));
        self.fetches.push(Box::pin(async move { (goal, fetch.await) }));
    }

    fn want(&self, place: Place, key: Key) -> Want {
        let whereabouts = Whereabouts { origin: self.tree.origin, place };
        Want { key, domain: self.tree.domains.first(), whereabouts, urgency: Urgency::Bulk, hops: HOPS }
    }

    /// Looks at a node: fetches it, or finds what is below it.
    async fn visit(&mut self, pending: Pending) -> Result<(), SwarmError> {
        let (nodes, shape, chunks) = (self.nodes.clone(), self.shape, self.chunks);
        let look = move || look(&nodes, shape, pending, chunks);
        let seen = spawn_blocking(look).await.map_err(|_| SwarmError::Closed)??;
        match seen {
            Seen::Absent => self.begin(Goal::Node(pending), Place::Node(pending.0), pending.1.into()),
            Seen::Nodes(below) => self.stack.extend(below.into_iter().rev()),
            Seen::Chunks { present, absent } => {
                let bytes = |count: usize| count as u64 * CHUNK_BYTES as u64;
                self.chunk_bytes += bytes(present + absent.len());
                if chunks {
                    self.progress.advance(bytes(present), 0);
                    self.ready.extend(absent);
                }
            }
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), SwarmError> {
        let store = Arc::clone(&self.engine.store);
        spawn_blocking(move || store.commit()).await.map_err(|_| SwarmError::Closed)??;
        self.last_commit = Instant::now();
        self.uncommitted_bytes = 0;
        Ok(())
    }
}

/// What a visit to a node found.
enum Seen {
    /// The node is not here.
    Absent,
    /// Nodes below it, left to right.
    Nodes(Vec<Pending>),
    /// Chunks below it: how many are here, and those that are not.
    Chunks { present: usize, absent: Vec<(u64, Key)> },
}

/// Reads a node, and, where chunks are wanted, finds which of its chunks are here. Blocking.
fn look(nodes: &Nodes, shape: Shape, (position, id): Pending, chunks: bool) -> Result<Seen, SwarmError> {
    // What is found present stays for whoever holds the store; what is only read may be collected meanwhile.
    if !nodes.store().contains(&id.into(), nodes.domains())? {
        return Ok(Seen::Absent);
    }
    let Some(node) = nodes.read_node(&id)? else { return Ok(Seen::Absent) };
    shape.check(position, &node).map_err(SwarmError::Tree)?;
    Ok(match position.level.checked_sub(1) {
        None => look_at_chunks(nodes, position, &node, chunks)?,
        Some(level) => Seen::Nodes(
            node.children()
                .map(|(slot, hash)| (Position { level, index: below(position, slot) }, NodeId(*hash)))
                .collect(),
        ),
    })
}

fn look_at_chunks(nodes: &Nodes, position: Position, node: &Node, chunks: bool) -> Result<Seen, StoreError> {
    let mut present = 0;
    let mut absent = Vec::new();
    for (slot, hash) in node.children() {
        let key = Key { kind: store::Kind::Chunk, hash: *hash };
        if !chunks || nodes.store().contains(&key, nodes.domains())? {
            present += 1;
        } else {
            absent.push((below(position, slot), key));
        }
    }
    Ok(Seen::Chunks { present, absent })
}

/// The index, one level below, of a node's child.
fn below(position: Position, slot: u8) -> u64 {
    position.index * FAN_OUT as u64 + u64::from(slot)
}

/// Brings a manifest into the store, if it is not there.
pub(crate) async fn fetch_manifest(
    engine: &Arc<Engine>,
    snapshot: types::SnapshotId,
    domains: &store::Domains,
) -> Result<format::Manifest, SwarmError> {
    let key = Key::from(snapshot);
    loop {
        let (store, within) = (Arc::clone(&engine.store), domains.clone());
        let read = spawn_blocking(move || store.get(&key, &within)).await.map_err(|_| SwarmError::Closed)??;
        if let Some(bytes) = read {
            return Ok(format::Manifest::decode(&bytes)?);
        }
        let whereabouts = Whereabouts { origin: Origin { snapshot, disk: 0 }, place: Place::Manifest };
        let want = Want { key, domain: domains.first(), whereabouts, urgency: Urgency::Lazy, hops: HOPS };
        engine.fetch(want).await?;
    }
}

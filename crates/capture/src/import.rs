//! Importing: a foreign disk becomes chunks and a tree in a store.
//!
//! One thread follows the data map, several read, hash and store 1 MiB at a time, and the caller's builds the tree in
//! order, in memory that does not depend on the disk's size. Trees are canonical, so a disk that has hardly changed
//! gives nearly the same nodes and chunks as before, which the store has already: no earlier version need be named.
//! An import that was interrupted and is started again only reads and hashes what had been stored.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use format::tree::{self, ReadNode, TreeError};
use format::{Node, Shape};
use store::{ChunkStore, Domain, Domains, Key, StoreError};
use types::{CHUNK_BYTES, Cancelled, ChunkId, NodeId, Progress};

use crate::foreign::{CaptureError, ForeignDisk};
use crate::pieces::{self, Feed, Piece, Planner};

/// How much is stored between commits, in bytes: what a crash can cost.
const COMMIT_BYTES: u64 = 256 << 20;

/// An import did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The foreign disk failed.
    #[error("could not read the disk to import")]
    Read(#[from] CaptureError),
    /// The store failed; [`StoreError::Full`] where there is no room.
    #[error("could not store the imported disk")]
    Store(#[from] StoreError),
}

/// What an import has made, all of it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The disk's size, in bytes.
    pub size_bytes: u64,
    /// The root of its tree; `None` where it is all zero.
    pub root: Option<NodeId>,
    /// Its chunks that are not zero.
    pub chunks: u64,
    /// Those that the store did not have.
    pub new_chunks: u64,
    /// What they and new tree nodes take, as stored, in bytes; what is shared is not counted.
    pub new_bytes_stored: u64,
    /// How much room is shared with the file that was imported, in bytes.
    pub shared_bytes: u64,
}

/// Imports a disk into a store's domain, and commits.
///
/// What was stored before an error or a cancellation stays, and makes the next try quicker, until it is collected.
///
/// # Errors
/// See [`ImportError`].
pub fn import(
    disk: &dyn ForeignDisk,
    store: &Arc<dyn ChunkStore>,
    domain: Domain,
    progress: &Progress,
) -> Result<Imported, ImportError> {
    let size_bytes = disk.size_bytes();
    progress.set_total_bytes(size_bytes);
    let ingest =
        Ingest { disk, store: store.as_ref(), domain, domains: domain.into(), progress, counts: Counts::default() };
    let root = with_commits(ingest.store, |due| {
        pieces::in_order(
            pieces::threads(disk.parallel_reads()),
            |feed| ingest.plan(feed),
            |piece| ingest.piece(piece),
            |results| ingest.build(results, due),
        )
    })?;
    store.commit()?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Ok(Imported {
        size_bytes,
        root,
        chunks: count(&ingest.counts.chunks),
        new_chunks: count(&ingest.counts.new_chunks),
        new_bytes_stored: count(&ingest.counts.new_bytes),
        shared_bytes: count(&ingest.counts.shared_bytes),
    })
}

#[derive(Debug, Default)]
struct Counts {
    chunks: AtomicU64,
    new_chunks: AtomicU64,
    new_bytes: AtomicU64,
    shared_bytes: AtomicU64,
}

struct Ingest<'i> {
    disk: &'i dyn ForeignDisk,
    store: &'i dyn ChunkStore,
    domain: Domain,
    domains: Domains,
    progress: &'i Progress,
    counts: Counts,
}

impl Ingest<'_> {
    /// Follows the data map and feeds pieces.
    fn plan(&self, feed: Feed<'_>) -> Result<(), ImportError> {
        let size_bytes = self.disk.size_bytes();
        let mut planner = Planner::new(size_bytes, feed);
        while let Some(position) = planner.next() {
            self.progress.check()?;
            let extents = self.disk.extents(position, size_bytes - position)?;
            assert!(!extents.is_empty(), "a disk tells what it consists of up to its end");
            for extent in extents {
                if !planner.add(extent.length, extent.zero) {
                    return Ok(());
                }
            }
        }
        planner.finish();
        Ok(())
    }

    /// Reads, hashes and stores one piece.
    fn piece(&self, piece: Piece) -> Result<Vec<(u64, ChunkId)>, ImportError> {
        self.progress.check()?;
        if piece.zero {
            self.progress.advance(piece.length, 0);
            return Ok(Vec::new());
        }
        BUFFER.with_borrow_mut(|buffer| {
            let length = usize::try_from(piece.length).expect("a piece of data is short");
            // The disk's last chunk may reach beyond its end, and is hashed with zeroes there.
            buffer.resize(length.next_multiple_of(CHUNK_BYTES), 0);
            buffer[length..].fill(0);
            self.disk.read_at(piece.offset, &mut buffer[..length])?;
            let first = piece.offset / CHUNK_BYTES as u64;
            let data = |(_, plain): &(u64, &[u8])| !format::is_zero(plain);
            let chunks: Vec<(u64, ChunkId)> = (first..)
                .zip(buffer.chunks_exact(CHUNK_BYTES))
                .filter(data)
                .map(|(index, plain)| (index, format::chunk_id(plain)))
                .collect();
            let (shared, rest) = self.share_new(&chunks)?;
            let mut moved = shared;
            for (index, id) in &rest {
                let at = usize::try_from(index - first).expect("a piece is short") * CHUNK_BYTES;
                if let Some(stored_bytes) = self.store_new(&(*id).into(), &buffer[at..at + CHUNK_BYTES])? {
                    self.counts.new_chunks.fetch_add(1, Ordering::Relaxed);
                    moved += stored_bytes;
                }
            }
            self.counts.chunks.fetch_add(chunks.len() as u64, Ordering::Relaxed);
            self.progress.advance(piece.length, moved);
            Ok(chunks)
        })
    }

    /// Has the store share what it does not have yet, as far as it can; returns how much that is, in bytes, and the chunks
    /// that are left to be stored.
    fn share_new(&self, chunks: &[(u64, ChunkId)]) -> Result<(u64, Vec<(u64, ChunkId)>), StoreError> {
        let Some((frozen, file_bytes)) = self.disk.frozen() else { return Ok((0, chunks.to_vec())) };
        // The disk's last chunk may reach beyond the file's end.
        let whole = file_bytes / CHUNK_BYTES as u64;
        let (inside, mut rest): (Vec<_>, Vec<_>) = chunks.iter().partition(|(index, _)| *index < whole);
        let mut new = Vec::new();
        for (index, id) in inside {
            if !self.store.contains(&id.into(), &self.domains)? {
                new.push((index, id));
            }
        }
        let mut shared_chunks = 0;
        for run in new.chunk_by(|(one, _), (next, _)| one + 1 == *next) {
            let ids: Vec<ChunkId> = run.iter().map(|(_, id)| *id).collect();
            let puts = self.store.share(self.domain, &ids, frozen, run[0].0 * CHUNK_BYTES as u64)?;
            shared_chunks += puts.iter().filter(|put| put.new).count() as u64;
            rest.extend(run.iter().skip(puts.len()));
        }
        let shared = shared_chunks * CHUNK_BYTES as u64;
        self.counts.new_chunks.fetch_add(shared_chunks, Ordering::Relaxed);
        self.counts.shared_bytes.fetch_add(shared, Ordering::Relaxed);
        Ok((shared, rest))
    }

    /// Stores what the domain has not yet; the bytes that it took where no domain had it.
    fn store_new(&self, key: &Key, plain: &[u8]) -> Result<Option<u64>, StoreError> {
        if self.store.contains(key, &self.domains)? {
            return Ok(None);
        }
        let put = self.store.put(key, self.domain, plain)?;
        let stored_bytes = u64::from(put.stored_bytes);
        if put.new {
            self.counts.new_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
        }
        Ok(put.new.then_some(stored_bytes))
    }

    /// Builds the tree from the chunks as they come, and says when a commit is due.
    fn build(
        &self,
        results: &mut dyn Iterator<Item = Result<Vec<(u64, ChunkId)>, ImportError>>,
        due: &SyncSender<()>,
    ) -> Result<Option<NodeId>, ImportError> {
        let failure = RefCell::new(None);
        let mut committed = 0;
        let chunks = results.map_while(|result| match result {
            Ok(chunks) => {
                let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                let stored = count(&self.counts.new_bytes) + count(&self.counts.shared_bytes);
                // Where a commit is still going on, the next piece asks again.
                if stored - committed >= COMMIT_BYTES && due.try_send(()).is_ok() {
                    committed = stored;
                }
                Some(chunks)
            }
            Err(error) => {
                failure.replace(Some(error));
                None
            }
        });
        let changes = chunks.flatten().map(|(index, id)| (index, Some(id)));
        let shape = Shape::of(self.disk.size_bytes());
        let root = tree::update(&Empty, (shape, None), shape, changes, &mut |id, bytes| {
            if failure.borrow().is_none() {
                self.store_new(&id.into(), &bytes)?;
            }
            Ok(())
        });
        match (failure.into_inner(), root) {
            (Some(error), _) | (None, Err(TreeError::Read(error))) => Err(error),
            (None, Ok(root)) => Ok(root),
            (None, Err(error)) => unreachable!("a tree that is made from nothing reads no nodes: {error}"),
        }
    }
}

thread_local! {
    /// Each worker's buffer of a piece.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The tree of nothing, from which an import's tree is made.
struct Empty;

impl ReadNode for Empty {
    type Error = ImportError;

    fn read_node(&self, _: &NodeId) -> Result<Option<Arc<Node>>, ImportError> {
        Ok(None)
    }
}

/// Does work that may ask for commits, which a thread of their own makes meanwhile.
fn with_commits<R>(
    store: &dyn ChunkStore,
    work: impl FnOnce(&SyncSender<()>) -> Result<R, ImportError>,
) -> Result<R, ImportError> {
    let (due, asked) = sync_channel(1);
    let failure = &Mutex::new(None);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            for () in asked {
                if let Err(error) = store.commit() {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    // Later requests find nobody; the work goes on to its end and then fails.
                    return;
                }
            }
        });
        let outcome = work(&due);
        drop(due);
        outcome
    });
    match failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(error) => Err(error.into()),
        None => outcome,
    }
}

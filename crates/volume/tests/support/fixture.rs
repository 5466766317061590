//! A node's volumes on a temporary directory, and a source that brings what a test lets through.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use store::{ChunkSource, ChunkStore, FetchError, MemoryStore, NoSource, Wanted};
use tempfile::TempDir;
use tokio::sync::Notify;
use volume::{BlockDevice, Readiness, VolumeOptions, Volumes};

/// A directory and a store that volumes are opened on, again and again.
pub(crate) struct Node {
    pub(crate) directory: TempDir,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) source: Arc<dyn ChunkSource>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with_source(Arc::new(MemoryStore::new()), Arc::new(NoSource))
    }

    pub(crate) fn with_source(store: Arc<MemoryStore>, source: Arc<dyn ChunkSource>) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), store, source }
    }

    pub(crate) fn open(&self) -> Arc<Volumes> {
        self.open_in(self.directory.path())
    }

    pub(crate) fn open_in(&self, directory: &Path) -> Arc<Volumes> {
        // Who counts files and layers wants nobody at work beside.
        let mut options = VolumeOptions::default();
        options.tidy_in_background = false;
        Volumes::open(directory, self.store.clone(), self.source.clone(), options).unwrap()
    }

    /// The files of journals that are in use, by name.
    pub(crate) fn journals(&self) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(self.directory.path().join("layers")).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        let used = |path: &std::path::PathBuf| !std::fs::read(path).unwrap().starts_with(&[0; 64]);
        let mut journals: Vec<_> = files.filter(used).collect();
        journals.sort();
        journals
    }
}

/// Brings objects from another store, once it is let.
#[derive(Debug)]
pub(crate) struct Gate {
    from: Arc<MemoryStore>,
    to: Arc<MemoryStore>,
    open: AtomicBool,
    changed: Notify,
    asked: Notify,
    pub(crate) waiting: AtomicUsize,
    pub(crate) fetched: AtomicUsize,
}

impl Gate {
    pub(crate) fn new(from: Arc<MemoryStore>, to: Arc<MemoryStore>) -> Arc<Self> {
        Arc::new(Self {
            from,
            to,
            open: AtomicBool::new(false),
            changed: Notify::new(),
            asked: Notify::new(),
            waiting: AtomicUsize::new(0),
            fetched: AtomicUsize::new(0),
        })
    }

    /// Lets everything through from now on.
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Returns once so many requests wait.
    pub(crate) async fn until_waiting(&self, requests: usize) {
        loop {
            let asked = self.asked.notified();
            if self.waiting.load(Ordering::SeqCst) >= requests {
                return;
            }
            asked.await;
        }
    }

    async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.asked.notify_waiters();
        loop {
            let changed = self.changed.notified();
            if self.open.load(Ordering::SeqCst) {
                break;
            }
            changed.await;
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The gate as a volume's source.
#[derive(Debug)]
pub(crate) struct Through(pub(crate) Arc<Gate>);

impl ChunkSource for Through {
    fn fetch(&self, wanted: Wanted) -> BoxFuture<'static, Result<(), FetchError>> {
        let gate = self.0.clone();
        Box::pin(async move {
            gate.pass().await;
            let all = store::Domains::new(&[store::Domain::OWN, store::Domain::PUBLIC]);
            let stored = gate.from.get_stored(&wanted.key, &all).unwrap().expect("the other side has it");
            gate.to.put_stored(&wanted.key, wanted.domains.first(), &stored).unwrap();
            gate.fetched.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    }
}

/// Reads what must be here.
pub(crate) fn read(device: &dyn BlockDevice, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    assert_eq!(device.try_read(offset, &mut buffer).unwrap(), Readiness::Ready);
    buffer
}

/// Reads a whole disk, which must be small and here.
pub(crate) fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    read(device, 0, usize::try_from(device.size_bytes()).unwrap())
}

/// Runs async work to its end, but not for ever.
pub(crate) fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(Duration::from_secs(60), work).await.expect("done within a minute") };
    let done = runtime.block_on(limited);
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Bytes that depend on a seed and differ everywhere.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

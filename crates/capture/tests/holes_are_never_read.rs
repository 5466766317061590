//! Raw disks are imported byte for byte, their holes cost nothing, and what fails half-way is told and loses nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/disk.rs"]
mod disk;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use capture::{CaptureError, ForeignDisk, ImportError, RawDisk, import};
use disk::{Counting, read_by_extents, read_tree, sparse, told};
use format::Stored;
use proptest::prelude::*;
use store::{ChunkStore, Domain, Domains, Key, MemoryStore, Put, Roots, StoreError, StoreStatistics};
use types::Progress;

const MIB: usize = 1 << 20;

fn memory() -> Arc<dyn ChunkStore> {
    Arc::new(MemoryStore::new())
}

#[test]
fn only_data_is_read_and_everything_arrives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    // The last sector is cut short: 100 bytes of it.
    let size = 300 * MIB + 100;
    let data = [(0, 4096), (5 * MIB - 4096, 3 * MIB), (200 * MIB + 512, 512), (300 * MIB, 100)];
    let mut content = sparse(&path, size, &data);
    content.resize(size.next_multiple_of(512), 0);
    let raw = Counting::new(RawDisk::new(File::open(&path).unwrap()).unwrap());
    assert_eq!(raw.size_bytes(), content.len() as u64);
    let (store, progress) = (memory(), Progress::default());
    let imported = import(&raw, &store, Domain::OWN, &progress).unwrap();
    assert!(raw.count() < 4 * MIB as u64, "{} bytes were read", raw.count());
    assert_eq!((progress.total_bytes(), progress.done_bytes()), (raw.size_bytes(), raw.size_bytes()));
    assert_eq!(imported.new_chunks, imported.chunks);
    assert_eq!(imported.chunks, 1 + 49 + 1 + 1);
    assert!(read_tree(&store, imported.size_bytes, imported.root) == content);
    assert!(read_by_extents(&raw) == content);

    let again = import(&raw, &store, Domain::OWN, &Progress::default()).unwrap();
    assert_eq!((again.root, again.chunks), (imported.root, imported.chunks));
    assert_eq!((again.new_chunks, again.new_bytes_stored), (0, 0));
}

#[test]
fn a_disk_of_holes_is_nothing() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 40).unwrap();
    let raw = Counting::new(RawDisk::new(file).unwrap());
    let imported = import(&raw, &memory(), Domain::OWN, &Progress::default()).unwrap();
    assert_eq!((imported.root, imported.chunks, raw.count()), (None, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_layout_arrives(
        size in 1_usize..3 * MIB,
        data in proptest::collection::vec((0_usize..3 * MIB, 1_usize..200_000), 0..6),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let inside = |(offset, length): (usize, usize)| (offset < size).then(|| (offset, length.min(size - offset)));
        let data: Vec<_> = data.into_iter().filter_map(inside).collect();
        let mut content = sparse(&path, size, &data);
        content.resize(size.next_multiple_of(512), 0);
        let raw = RawDisk::new(File::open(&path).unwrap()).unwrap();
        let store = memory();
        let imported = import(&raw, &store, Domain::OWN, &Progress::default()).unwrap();
        prop_assert!(read_tree(&store, imported.size_bytes, imported.root) == content);
        prop_assert!(read_by_extents(&raw) == content);
    }
}

#[test]
fn what_is_no_disk_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let of = |file: File| told(&RawDisk::new(file).unwrap_err());
    assert!(of(File::open(directory.path()).unwrap()).starts_with("a directory is not a disk"));
    assert!(of(File::open("/dev/null").unwrap()).starts_with("a character device is not a disk"));
    assert!(of(tempfile::tempfile().unwrap()).starts_with("a disk of 0 bytes"));
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(of(std::os::fd::OwnedFd::from(reader).into()).starts_with("a pipe or socket is not a disk"));
    let large = tempfile::tempfile().unwrap();
    large.set_len((64 << 40) - 511).unwrap_or_default();
    if large.metadata().unwrap().len() > 0 {
        assert_eq!(RawDisk::new(large).unwrap().size_bytes(), 64 << 40);
    }
}

#[test]
fn a_file_that_shrinks_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    sparse(&path, 4 * MIB, &[(0, 4 * MIB)]);
    let raw = RawDisk::new(File::open(&path).unwrap()).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(MIB as u64 + 5).unwrap();
    let error = import(&raw, &memory(), Domain::OWN, &Progress::default()).unwrap_err();
    assert!(matches!(error, ImportError::Read(CaptureError::Shrunk { .. })), "{error:?}");
}

#[test]
fn a_cancelled_import_stops_and_can_be_done_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let content = sparse(&path, 4 * MIB, &[(0, 4 * MIB)]);
    let raw = RawDisk::new(File::open(&path).unwrap()).unwrap();
    let (store, progress) = (memory(), Progress::default());
    progress.cancel();
    assert!(matches!(import(&raw, &store, Domain::OWN, &progress), Err(ImportError::Cancelled(_))));
    let imported = import(&raw, &store, Domain::OWN, &Progress::default()).unwrap();
    assert!(read_tree(&store, imported.size_bytes, imported.root) == content);
}

/// A store with room for so many more puts.
#[derive(Debug)]
struct Small {
    store: MemoryStore,
    left: AtomicU64,
}

impl ChunkStore for Small {
    fn contains(&self, key: &Key, domains: &Domains) -> Result<bool, StoreError> {
        self.store.contains(key, domains)
    }

    fn get(&self, key: &Key, domains: &Domains) -> Result<Option<Bytes>, StoreError> {
        self.store.get(key, domains)
    }

    fn get_stored(&self, key: &Key, domains: &Domains) -> Result<Option<Stored>, StoreError> {
        self.store.get_stored(key, domains)
    }

    fn put(&self, key: &Key, domain: Domain, plain: &[u8]) -> Result<Put, StoreError> {
        let room = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        room.map_err(|_| StoreError::Full { path: "small".into() })?;
        self.store.put(key, domain, plain)
    }

    fn put_stored(&self, key: &Key, domain: Domain, stored: &Stored) -> Result<Put, StoreError> {
        self.store.put_stored(key, domain, stored)
    }

    fn commit(&self) -> Result<(), StoreError> {
        self.store.commit()
    }

    fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        self.store.statistics()
    }

    fn roots(&self) -> &dyn Roots {
        self.store.roots()
    }
}

#[test]
fn a_full_store_stops_cleanly_and_the_next_try_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let content = sparse(&path, 8 * MIB, &[(0, 8 * MIB)]);
    let raw = RawDisk::new(File::open(&path).unwrap()).unwrap();
    let small = Arc::new(Small { store: MemoryStore::new(), left: 40.into() });
    let store: Arc<dyn ChunkStore> = small.clone();
    let error = import(&raw, &store, Domain::OWN, &Progress::default()).unwrap_err();
    assert!(matches!(error, ImportError::Store(StoreError::Full { .. })), "{error:?}");
    small.left.store(u64::MAX, Ordering::SeqCst);
    let imported = import(&raw, &store, Domain::OWN, &Progress::default()).unwrap();
    assert_eq!((imported.chunks, imported.new_chunks), (128, 88));
    assert!(read_tree(&store, imported.size_bytes, imported.root) == content);
}

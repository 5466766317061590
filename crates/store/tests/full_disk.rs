//! A full disk stops puts cleanly: nothing is lost, what is there can be read, and when there is room it goes on.
//!
//! Needs root, to mount a small file system.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use store::conformance::chunk_key;
use store::{ChunkStore, Domain, Key, LocalOptions, LocalStore, StoreError};
use tempfile::TempDir;

const DISK_MIB: u64 = 24;

/// A small file system in memory, unmounted in the end.
struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// Mounts it; `None`, said loudly, where that is not possible.
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={DISK_MIB}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self { directory });
        }
        eprintln!("SKIPPED: full_disk needs root, to mount a small tmpfs");
        None
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn store(&self, reserve_bytes: u64) -> Arc<LocalStore> {
        let options = LocalOptions { pack_bytes: 5 << 20, cache_bytes: 0, hot_bytes: 0, reserve_bytes };
        LocalStore::open(self.path().join("store"), options).unwrap()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.path().display());
    }
}

fn noise(number: u32) -> Vec<u8> {
    let mut bytes = vec![0; 65536];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Puts until the disk is full, committing now and then, and returns what was taken.
fn fill(store: &LocalStore) -> Vec<(Key, u32)> {
    let mut taken = Vec::new();
    for number in 0.. {
        let plain = noise(number);
        let key = chunk_key(&plain);
        match store.put(&key, Domain::OWN, &plain) {
            Ok(put) => {
                assert!(put.new);
                taken.push((key, number));
            }
            Err(StoreError::Full { .. }) => return taken,
            Err(error) => panic!("{error}"),
        }
        assert!(u64::from(number) < DISK_MIB * 16, "the disk is full some time");
        if number % 20 == 0 {
            store.commit().unwrap();
        }
    }
    unreachable!("puts end with a full disk")
}

fn all_there(store: &LocalStore, taken: &[(Key, u32)]) {
    for (key, number) in taken {
        let plain = store.get(key, &Domain::OWN.into()).unwrap().expect("it was taken");
        assert_eq!(plain, noise(*number));
    }
}

#[test]
fn with_room_in_reserve_commits_and_roots_go_on() {
    let Some(disk) = SmallDisk::mount() else { return };
    let store = disk.store(6 << 20);
    let taken = fill(&store);
    assert!(taken.len() > 100);
    all_there(&store, &taken);
    store.roots().apply(vec![("volume/1".to_owned(), Some(b"important".to_vec()))]).unwrap();
    assert!(!store.put(&taken[0].0, Domain::OWN, &noise(0)).unwrap().new, "what is there needs no room");
    drop(store);
    let store = disk.store(6 << 20);
    all_there(&store, &taken);
    assert!(store.roots().get("volume/1").is_some());
    drop(store);
    let report = LocalStore::rebuild_index(disk.path().join("store")).unwrap();
    assert_eq!((report.damages, report.records), (0, taken.len() as u64));
}

#[test]
fn without_any_room_nothing_is_lost_and_it_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else { return };
    let ballast: PathBuf = disk.path().join("ballast");
    fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let store = disk.store(0);
    let taken = fill(&store);
    // Really nothing: not a byte more.
    let mut rest = fs::File::create(disk.path().join("rest")).unwrap();
    while std::io::Write::write(&mut rest, &[1; 4096]).is_ok_and(|written| written > 0) {}
    all_there(&store, &taken);
    let committed = store.commit();
    assert!(matches!(committed, Ok(()) | Err(StoreError::Full { .. } | StoreError::Index(_))), "{committed:?}");
    let applied = store.roots().apply(vec![("volume/1".to_owned(), Some(vec![7; 100_000]))]);
    assert!(matches!(applied, Err(StoreError::Full { .. } | StoreError::Index(_))), "{applied:?}");
    assert_eq!(store.roots().get("volume/1"), None);
    all_there(&store, &taken);
    fs::remove_file(&ballast).unwrap();
    let plain = noise(1_000_000);
    assert!(store.put(&chunk_key(&plain), Domain::OWN, &plain).unwrap().new);
    store.commit().unwrap();
    store.roots().apply(vec![("volume/1".to_owned(), Some(vec![7; 100]))]).unwrap();
    drop(store);
    let store = disk.store(0);
    assert_eq!(store.recovery().damages, 0);
    all_there(&store, &taken);
    assert!(store.contains(&chunk_key(&plain), &Domain::OWN.into()).unwrap());
    assert_eq!(store.roots().get("volume/1"), Some(vec![7; 100]));
}

#[test]
fn an_index_that_found_no_room_is_brought_up_again() {
    let Some(disk) = SmallDisk::mount() else { return };
    let ballast: PathBuf = disk.path().join("ballast");
    fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let store = disk.store(0);
    // Many small objects: their entries are more than what the index's journal has room for.
    let small = |number: u32| number.to_le_bytes();
    for number in 0..10_000 {
        store.put(&chunk_key(&small(number)), Domain::OWN, &small(number)).unwrap();
    }
    let mut rest = fs::File::create(disk.path().join("rest")).unwrap();
    while std::io::Write::write(&mut rest, &[1; 4096]).is_ok_and(|written| written > 0) {}
    for _ in 0..2 {
        let committed = store.commit();
        assert!(matches!(committed, Err(StoreError::Full { .. })), "{committed:?}");
        for number in (0..10_000).step_by(100) {
            let found = store.get(&chunk_key(&small(number)), &Domain::OWN.into()).unwrap();
            assert_eq!(found.as_deref(), Some(&small(number)[..]));
        }
    }
    fs::remove_file(&ballast).unwrap();
    store.commit().unwrap();
    let absent = store.contains(&chunk_key(b"never put"), &Domain::OWN.into()).unwrap();
    assert!(!absent);
    drop(store);
    let store = disk.store(0);
    assert_eq!((store.recovery().records, store.statistics().unwrap().objects), (0, 10_000));
}

//! Roots change all or none, at whatever byte a write is torn, and damage to them is never passed over.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use medium::Simulated;
use medium::simulated::{Fault, Operation};
use store::{ChunkStore, LocalOptions, LocalStore, RootChange, StoreError};
use tempfile::TempDir;

fn memory_directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(directory: &Path) -> Result<Arc<LocalStore>, StoreError> {
    LocalStore::open(directory, LocalOptions::default())
}

fn set(name: &str, value: &[u8]) -> RootChange {
    (name.to_owned(), Some(value.to_vec()))
}

/// A store with one transaction, and then one more; and the log's length after the first, and its bytes in the end.
fn two_transactions() -> (TempDir, usize, Vec<u8>) {
    let directory = memory_directory();
    let log = directory.path().join("roots");
    let store = open(directory.path()).unwrap();
    store.roots().apply(vec![set("a", b"1"), set("b", b"1")]).unwrap();
    let first = fs::read(&log).unwrap().len();
    store.roots().apply(vec![set("a", b"2"), ("b".to_owned(), None), set("c", b"2")]).unwrap();
    let bytes = fs::read(&log).unwrap();
    (directory, first, bytes)
}

fn state(store: &LocalStore) -> Vec<(String, Vec<u8>)> {
    store.roots().list("")
}

#[test]
fn a_transaction_torn_at_any_byte_has_not_happened() {
    let (directory, first, bytes) = two_transactions();
    let before = vec![("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"1".to_vec())];
    let after = vec![("a".to_owned(), b"2".to_vec()), ("c".to_owned(), b"2".to_vec())];
    let log = directory.path().join("roots");
    for length in first..=bytes.len() {
        for tail in [&b""[..], &[0; 50]] {
            fs::write(&log, [&bytes[..length], tail].concat()).unwrap();
            let store = open(directory.path()).unwrap();
            assert_eq!(state(&store), if length < bytes.len() { before.clone() } else { after.clone() }, "{length}");
            store.roots().apply(vec![set("d", b"3")]).unwrap();
            drop(store);
            assert_eq!(open(directory.path()).unwrap().roots().get("d").as_deref(), Some(&b"3"[..]));
        }
    }
}

#[test]
fn damage_before_the_last_transaction_is_an_error() {
    let (directory, first, bytes) = two_transactions();
    let log = directory.path().join("roots");
    for place in 0..first {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        fs::write(&log, &damaged).unwrap();
        let error = open(directory.path()).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { path, .. } if *path == log), "byte {place}: {error}");
        assert_eq!(fs::read(&log).unwrap(), damaged, "nothing is done to it");
    }
    fs::remove_file(&log).unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Damaged { .. })));
}

#[test]
fn an_outdated_log_is_written_anew_and_says_the_same() {
    let directory = memory_directory();
    let log = directory.path().join("roots");
    let store = open(directory.path()).unwrap();
    store.roots().apply(vec![set("kept", b"for ever"), set("removed", b"x")]).unwrap();
    for round in 0..40_u8 {
        store.roots().apply(vec![set("large", &[round; 100_000])]).unwrap();
    }
    store.roots().apply(vec![("removed".to_owned(), None)]).unwrap();
    assert!(fs::metadata(&log).unwrap().len() < 2 << 20, "4 MB were written, of which 100 kB are current");
    let before = state(&store);
    assert_eq!(before.len(), 2);
    drop(store);
    let store = open(directory.path()).unwrap();
    assert_eq!(state(&store), before);
    assert_eq!(store.roots().get("large"), Some(vec![39; 100_000]));
}

#[test]
fn nothing_is_written_to_a_log_that_has_lost_its_name() {
    for operation in [Operation::SyncDirectory, Operation::Rename, Operation::Write, Operation::Sync, Operation::Open] {
        let medium = Simulated::new(1);
        let open =
            |medium: &Simulated| LocalStore::open_on(medium.shared(), "/store", LocalOptions::default()).unwrap();
        let store = open(&medium);
        // As long as it can be without being shortened.
        for round in 0..11_u8 {
            store.roots().apply(vec![set("large", &[round; 100_000])]).unwrap();
        }
        medium.fail(Fault { operation: Some(operation), after: 0, lasting: false });
        let applied = store.roots().apply(vec![set("small", b"acknowledged")]).is_ok();
        assert_eq!(medium.mend(), [operation].into(), "the log is shortened");
        let again = store.roots().apply(vec![set("later", b"acknowledged too")]);
        assert!(again.is_ok(), "{operation:?}: {again:?}");
        drop(store);
        let store = open(&medium.kill());
        let found = |name: &str| store.roots().get(name).is_some();
        assert!((found("small") || !applied) && found("later") && found("large"), "{operation:?}, applied: {applied}");
    }
}

#[test]
fn threads_change_roots_side_by_side() {
    let directory = memory_directory();
    let store = open(directory.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..50 {
                    store.roots().apply(vec![set(&format!("{thread}/{number}"), &[1; 10])]).unwrap();
                }
            });
        }
    });
    drop(store);
    assert_eq!(state(&open(directory.path()).unwrap()).len(), 200);
}

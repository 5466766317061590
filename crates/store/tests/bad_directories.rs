//! What is wrong with a store's directory is said clearly, and nothing is done to it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use store::conformance::{chunk_key, sample};
use store::{ChunkStore, Domain, LocalOptions, LocalStore, StoreError};
use tempfile::TempDir;

fn made() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
    let plain = sample(1, 5000);
    store.put(&chunk_key(&plain), Domain::OWN, &plain).unwrap();
    store.roots().apply(vec![("volume/1".to_owned(), Some(b"value".to_vec()))]).unwrap();
    directory
}

fn error(directory: &TempDir) -> StoreError {
    LocalStore::open(directory.path(), LocalOptions::default()).unwrap_err()
}

#[test]
fn a_store_is_used_by_one_at_a_time() {
    let directory = made();
    let store = LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
    assert!(matches!(error(&directory), StoreError::InUse { path } if path == directory.path()));
    assert!(matches!(LocalStore::rebuild_index(directory.path()), Err(StoreError::InUse { .. })));
    drop(store);
    LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
}

#[test]
fn a_later_version_and_unknown_features_are_told() {
    let directory = made();
    let place = directory.path().join("format");
    let text = fs::read_to_string(&place).unwrap();
    for (from, to, word) in [
        ("version 1", "version 2", "2"),
        ("\nincompatible", "\nincompatible encryption", "encryption"),
        ("\nread-only-compatible", "\nread-only-compatible tiers", "tiers"),
    ] {
        fs::write(&place, text.replace(from, to)).unwrap();
        let error = error(&directory);
        assert!(matches!(&error, StoreError::Newer { what, .. } if what.contains(word)), "{error}");
    }
    fs::write(&place, text.replace("\ncompatible", "\ncompatible hints")).unwrap();
    LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
}

#[test]
fn a_directory_with_other_things_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.tex"), "precious").unwrap();
    assert!(matches!(error(&directory), StoreError::NotAStore { .. }));
    assert!(matches!(LocalStore::rebuild_index(directory.path()), Err(StoreError::NotAStore { .. })));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    let file = directory.path().join("thesis.tex");
    assert!(matches!(LocalStore::open(&file, LocalOptions::default()), Err(StoreError::Io { .. })));
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
}

#[test]
fn a_creation_that_was_broken_off_is_begun_anew() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("packs")).unwrap();
    fs::write(directory.path().join("roots"), b"").unwrap();
    fs::write(directory.path().join("format.new"), b"brant st").unwrap();
    fs::write(directory.path().join("lock"), b"").unwrap();
    let store = LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
    assert_eq!(store.statistics().unwrap().objects, 0);
}

#[test]
fn a_lost_or_broken_format_file_is_told() {
    let directory = made();
    let place = directory.path().join("format");
    for garbage in [&b""[..], b"brant store\n", &[0xff; 5000]] {
        fs::write(&place, garbage).unwrap();
        assert!(matches!(error(&directory), StoreError::Damaged { path, .. } if path == place));
    }
    fs::remove_file(&place).unwrap();
    // Its packs make it no fresh directory.
    assert!(matches!(error(&directory), StoreError::NotAStore { .. } | StoreError::Damaged { .. }));
    assert!(directory.path().join("packs/00000001.pack").exists());
}

#[test]
fn a_lost_pack_is_told_when_it_is_read() {
    let directory = made();
    let store = LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
    fs::remove_file(directory.path().join("packs/00000001.pack")).unwrap();
    let error = store.get(&chunk_key(&sample(1, 5000)), &Domain::OWN.into()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn the_store_is_its_owners_alone() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("new");
    drop(LocalStore::open(&place, LocalOptions::default()).unwrap());
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(place.join("format")).unwrap().mode() & 0o777, 0o600);
}

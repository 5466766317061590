//! `brant store rebuild-index` on real stores: one that is fine, one that is damaged, one that is in use, and none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::Value;
use store::{ChunkStore as _, Domain, Key, LocalOptions, LocalStore};

fn rebuild(node: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brant"));
    command.args(["store", "rebuild-index", "--json", "--dir"]).arg(node).output().unwrap()
}

/// A node's directory with a store of two chunks in it.
fn with_two_chunks() -> (tempfile::TempDir, Arc<LocalStore>) {
    let node = tempfile::tempdir().unwrap();
    let store = LocalStore::open(node.path().join("store"), LocalOptions::default()).unwrap();
    for seed in [0x9e37_79b9_u32, 0x85eb_ca6b] {
        let plain: Vec<u8> = (0_u32..16_384).flat_map(|word| word.wrapping_mul(seed).to_le_bytes()).collect();
        store.put(&Key::from(format::chunk_id(&plain)), Domain::OWN, &plain).unwrap();
    }
    store.commit().unwrap();
    (node, store)
}

fn the_pack(directory: &Path) -> PathBuf {
    let mut longest = (0, PathBuf::new());
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() && entry.file_name() != "index" {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|extension| extension == "pack") {
                longest = longest.max((metadata.len(), entry.path()));
            }
        }
    }
    assert!(longest.0 > 0, "there is a pack");
    longest.1
}

#[test]
fn a_store_that_is_fine_is_indexed_anew() {
    let (node, store) = with_two_chunks();
    drop(store);
    let output = rebuild(node.path());
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["records"], &report["damages"]), (&2.into(), &0.into()), "{report}");
}

#[test]
fn damage_is_named_and_is_an_error() {
    let (node, store) = with_two_chunks();
    drop(store);
    let path = the_pack(node.path());
    let pack = std::fs::File::options().write(true).open(&path).unwrap();
    // In the first record; at the end it would be taken for a write that a crash tore off.
    pack.write_all_at(&[0xff; 64], 20_000).unwrap();
    let output = rebuild(node.path());
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["damages"], 1, "{report}");
    assert_eq!(report["named_damages"][0]["path"], path.to_str().unwrap());
}

#[test]
fn a_store_in_use_is_left_alone_and_none_is_not_made() {
    let (node, _store) = with_two_chunks();
    let output = rebuild(node.path());
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let empty = tempfile::tempdir().unwrap();
    let output = rebuild(empty.path());
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

//! Every implementation keeps the promises of the trait.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use medium::Host;
use store::{LocalOptions, LocalStore, MemoryStore, conformance};

#[test]
fn in_memory() {
    conformance::check(&|| {
        let store = Arc::new(MemoryStore::new());
        Box::new(move || store.clone())
    });
}

fn local(options: LocalOptions) {
    conformance::check(&|| {
        let directory = tempfile::tempdir().unwrap();
        Box::new(move || LocalStore::open(directory.path(), options).unwrap())
    });
}

#[test]
fn in_a_directory() {
    local(LocalOptions::default());
}

#[test]
fn in_a_directory_of_many_small_packs_without_cache() {
    local(LocalOptions { pack_bytes: 50_000, cache_bytes: 0, hot_bytes: 0, reserve_bytes: 0 });
}

#[test]
fn in_a_directory_with_a_hot_tier_of_few_chunks() {
    local(LocalOptions { pack_bytes: 1 << 20, cache_bytes: 0, hot_bytes: 4 << 16, reserve_bytes: 0 });
}

#[test]
fn on_a_medium_with_the_index_in_memory() {
    conformance::check(&|| {
        let directory = tempfile::tempdir().unwrap();
        let options = LocalOptions { pack_bytes: 50_000, reserve_bytes: 0, ..LocalOptions::default() };
        Box::new(move || LocalStore::open_on(Host::shared(), directory.path().join("made/store"), options).unwrap())
    });
}

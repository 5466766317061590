//! A store whose power is cut: what was committed is there, and what was not does not come back as damage.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use medium::Simulated;
use store::conformance::{chunk_key, sample};
use store::{ChunkStore, Domain, LocalOptions, LocalStore};

/// A pack has room for about three samples of this length.
const OPTIONS: LocalOptions = LocalOptions { pack_bytes: 60_000, cache_bytes: 0, hot_bytes: 0, reserve_bytes: 0 };
const LENGTH: usize = 20_000;

fn open(medium: &Simulated) -> Arc<LocalStore> {
    LocalStore::open_on(medium.shared(), "/store", OPTIONS).unwrap()
}

fn put(store: &LocalStore, number: u32) {
    let plain = sample(number, LENGTH);
    store.put(&chunk_key(&plain), Domain::OWN, &plain).unwrap();
}

fn is_there(store: &LocalStore, number: u32) -> bool {
    let plain = sample(number, LENGTH);
    match store.get(&chunk_key(&plain), &Domain::OWN.into()).unwrap() {
        None => false,
        Some(bytes) => {
            assert!(bytes == plain);
            true
        }
    }
}

#[test]
fn a_record_that_was_torn_before_others_is_not_believed_when_its_pack_is_full() {
    let mut torn = 0;
    for seed in 0..200 {
        let medium = Simulated::new(seed);
        let store = open(&medium);
        put(&store, 0);
        store.commit().unwrap();
        (1..4).for_each(|number| put(&store, number));
        let left = medium.power_cut(seed);
        let store = open(&left);
        torn += u32::from(store.recovery().damages > 0);
        // The pack goes on, is full, and gets its footer.
        (10..16).for_each(|number| put(&store, number));
        store.commit().unwrap();
        drop(store);
        for _ in 0..2 {
            let store = open(&left.kill());
            (1..4).for_each(|number| put(&store, number));
            store.commit().unwrap();
            let all = (0..4).chain(10..16);
            assert!(all.clone().all(|number| is_there(&store, number)), "seed {seed}");
        }
    }
    assert!(torn > 10, "records were torn before others in {torn} of the seeds");
}

#[test]
fn nor_when_the_process_that_found_it_torn_died_before_it_could_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let open = || LocalStore::open(directory.path(), OPTIONS).unwrap();
    let store = open();
    put(&store, 0);
    store.commit().unwrap();
    (1..4).for_each(|number| put(&store, number));
    drop(store);
    let pack = OpenOptions::new().write(true).open(directory.path().join("packs/00000001.pack")).unwrap();
    let first = pack.metadata().unwrap().len() / 4;
    pack.write_all_at(&[0; 512], first + 1000).unwrap();
    assert!(open().recovery().damages > 0);
    // The index has seen the pack to its end, and nothing tells the next process what lies before.
    let store = open();
    (10..16).for_each(|number| put(&store, number));
    store.commit().unwrap();
    drop(store);
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let store = open();
    (1..4).for_each(|number| put(&store, number));
    let all = (0..4).chain(10..16);
    assert!(all.clone().all(|number| is_there(&store, number)));
}

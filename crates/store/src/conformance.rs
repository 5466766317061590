//! What every [`ChunkStore`] must do, as one suite that is run on each implementation.
//!
//! ```
//! use std::sync::Arc;
//! use store::{ChunkStore, MemoryStore, conformance};
//!
//! conformance::check(&|| {
//!     let store = Arc::new(MemoryStore::new());
//!     Box::new(move || store.clone())
//! });
//! ```

mod collection;

use std::sync::{Arc, Barrier};

use bytes::Bytes;
use format::Stored;
use format::codec::Compressor;

use crate::{ChunkStore, Domain, Domains, Key, Kind, StoreError};

pub use self::collection::{ListedRoots, collect, live_tree, put_tree};

/// Opens one medium; called again after the store it returned last was dropped, it opens what that one left behind.
pub type Open = Box<dyn FnMut() -> Arc<dyn ChunkStore>>;

const HOST: Domain = Domain(17);
const THREADS: u32 = 4;
const OBJECTS_PER_THREAD: u32 = 64;

/// Runs the suite; each part gets an empty medium from `make`.
///
/// # Panics
/// When the store breaks one of the promises.
pub fn check(make: &dyn Fn() -> Open) {
    what_was_put_is_got(make());
    an_object_is_present_only_in_its_domains(make());
    all_domains_share_one_copy(make());
    foreign_bytes_are_checked(make());
    parts_of_objects_are_read(make());
    stored_bytes_can_be_sent(make());
    what_was_committed_is_there_after_opening_again(make());
    threads_that_put_the_same_store_one_copy(make());
    readers_see_what_writers_have_put(make());
    roots_change_all_or_none(make());
    roots_are_listed_by_prefix(make());
    collection::check(make);
}

/// Plain bytes that no other number gives: half of them compress well.
#[must_use]
pub fn sample(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let (noise, _) = bytes.split_at_mut(length / 2);
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(noise);
    bytes
}

/// The key of plain bytes as a chunk.
#[must_use]
pub fn chunk_key(plain: &[u8]) -> Key {
    format::chunk_id(plain).into()
}

fn put(store: &dyn ChunkStore, domain: Domain, plain: &[u8]) -> Key {
    let key = chunk_key(plain);
    store.put(&key, domain, plain).expect("an object can be put");
    key
}

fn get(store: &dyn ChunkStore, key: &Key, domains: &Domains) -> Option<Bytes> {
    let present = store.contains(key, domains).expect("presence is known");
    let plain = store.get(key, domains).expect("an object can be read");
    assert_eq!(plain.is_some(), present, "contains and get agree on {key}");
    plain
}

fn what_was_put_is_got(mut open: Open) {
    let store = open();
    let own = Domains::from(Domain::OWN);
    let mut puts = Vec::new();
    for (kind, length) in [(Kind::Chunk, 65536), (Kind::Chunk, 1), (Kind::Node, 68), (Kind::Manifest, 300)] {
        let plain = sample(7, length);
        let hash = match kind {
            Kind::Chunk => format::chunk_id(&plain).0,
            Kind::Node => format::node_id(&plain).0,
            Kind::Manifest => format::snapshot_id(&plain).0,
        };
        let key = Key { kind, hash };
        assert_eq!(get(&*store, &key, &own), None);
        let put = store.put(&key, Domain::OWN, &plain).expect("an object can be put");
        assert!(put.new && put.stored_bytes as usize <= length);
        assert_eq!(get(&*store, &key, &own).expect("it is there"), plain);
        let again = store.put(&key, Domain::OWN, &plain).expect("an object can be put again");
        assert_eq!((again.new, again.stored_bytes), (false, put.stored_bytes));
        puts.push((key, plain));
    }
    store.commit().expect("a store can be committed");
    for (key, plain) in puts {
        assert_eq!(get(&*store, &key, &own).expect("it is there after the commit"), plain);
        let other_kind = if key.kind == Kind::Chunk { Kind::Node } else { Kind::Chunk };
        assert_eq!(get(&*store, &Key { kind: other_kind, ..key }, &own), None, "kinds are apart");
    }
}

fn an_object_is_present_only_in_its_domains(mut open: Open) {
    let store = open();
    for commit_between in [false, true] {
        let plain = sample(u32::from(commit_between), 5000);
        let key = put(&*store, HOST, &plain);
        if commit_between {
            store.commit().expect("a store can be committed");
        }
        // Asked for in its domain first, so that a cache has it.
        assert!(get(&*store, &key, &HOST.into()).is_some());
        for others in [Domains::from(Domain::OWN), Domains::new(&[Domain::PUBLIC, Domain(18)])] {
            assert_eq!(get(&*store, &key, &others), None);
            assert!(store.get_stored(&key, &others).expect("presence is known").is_none());
        }
        assert!(get(&*store, &key, &Domains::new(&[Domain::OWN, HOST])).is_some());
    }
}

fn all_domains_share_one_copy(mut open: Open) {
    let mut store = open();
    let plain = sample(1, 65536);
    let key = put(&*store, Domain::OWN, &plain);
    let before = store.statistics().expect("a store can be counted");
    for (number, commit) in [(0, false), (1, true), (2, false), (3, true)] {
        let domain = Domain(100 + number);
        assert!(!store.put(&key, domain, &plain).expect("another domain can have it").new);
        assert!(get(&*store, &key, &domain.into()).is_some());
        assert!(get(&*store, &key, &Domain::OWN.into()).is_some());
        if commit {
            store.commit().expect("a store can be committed");
        }
    }
    let after = store.statistics().expect("a store can be counted");
    assert_eq!(
        (after.objects, after.plain_bytes, after.stored_bytes),
        (before.objects, before.plain_bytes, before.stored_bytes)
    );
    assert_eq!((after.objects, after.plain_bytes), (1, 65536));
    drop(store);
    store = open();
    for domain in [Domain::OWN, Domain(100), Domain(101), Domain(102), Domain(103)] {
        assert!(get(&*store, &key, &domain.into()).is_some(), "{domain:?}");
    }
    assert_eq!(store.statistics().expect("a store can be counted").objects, 1);
}

fn foreign_bytes_are_checked(mut open: Open) {
    let store = open();
    let plain = sample(1, 65536);
    let key = chunk_key(&plain);
    let good = Compressor::new().compress(&plain);
    let mut cut = good.clone();
    cut.bytes = cut.bytes.slice(..cut.bytes.len() - 1);
    let mut longer = good.clone();
    longer.plain_bytes += 1;
    let mut too_long = good.clone();
    too_long.plain_bytes = u32::MAX;
    for bad in [Stored::plain(sample(2, 65536).into()), cut, longer, too_long, Stored::plain(Bytes::new())] {
        let result = store.put_stored(&key, HOST, &bad);
        assert!(matches!(result, Err(StoreError::WrongHash(named)) if named == key), "{result:?}");
        assert_eq!(get(&*store, &key, &HOST.into()), None);
    }
    let oversized = sample(3, Kind::Chunk.max_plain_bytes() + 1);
    let result = store.put_stored(&chunk_key(&oversized), HOST, &Stored::plain(oversized.clone().into()));
    assert!(matches!(result, Err(StoreError::WrongHash(_))), "{result:?}");
    assert!(store.put_stored(&key, HOST, &good).expect("the right bytes are taken").new);
    assert_eq!(get(&*store, &key, &HOST.into()).expect("it is there"), plain);
}

fn parts_of_objects_are_read(mut open: Open) {
    let store = open();
    for (number, length) in [(0, 65536), (1, 65536), (2, 5000), (3, 1)] {
        let plain = sample(number, length);
        let key = put(&*store, HOST, &plain);
        // Again and again: what is read often may be read from elsewhere.
        for _ in 0..3 {
            for (offset, part) in [(0, length), (0, 1), (length - 1, 1), (length / 3, length / 2), (length, 0)] {
                let mut buffer = vec![0xa5; part];
                let read = store.read_at(&key, &HOST.into(), offset, &mut buffer).expect("it can be read");
                assert_eq!((read, &buffer[..]), (Some(length), &plain[offset..offset + part]));
            }
            let mut beyond = vec![0xa5; 512];
            let read = store.read_at(&key, &HOST.into(), length - 1, &mut beyond).expect("it can be read");
            assert_eq!((read, beyond), (Some(length), vec![0xa5; 512]));
            let elsewhere = store.read_at(&key, &Domain::OWN.into(), 0, &mut [0; 1]).expect("it can be looked for");
            assert_eq!(elsewhere, None);
        }
    }
    let absent = store.read_at(&chunk_key(b"never put"), &HOST.into(), 0, &mut [0; 1]).expect("it can be looked for");
    assert_eq!(absent, None);
}

fn stored_bytes_can_be_sent(mut open: Open) {
    let mut receiver_medium = open();
    for number in 0..8 {
        let plain = sample(number, 65536 >> number);
        let key = put(&*receiver_medium, Domain::OWN, &plain);
        let stored = receiver_medium.get_stored(&key, &Domain::OWN.into()).expect("it can be read");
        let stored = stored.expect("it is there");
        assert_eq!(stored.to_plain().expect("it is whole"), plain);
        assert!(!receiver_medium.put_stored(&key, HOST, &stored).expect("it can be put").new);
        assert_eq!(get(&*receiver_medium, &key, &HOST.into()).expect("it is there"), plain);
    }
    receiver_medium.commit().expect("a store can be committed");
    drop(receiver_medium);
    receiver_medium = open();
    let key = chunk_key(&sample(0, 65536));
    assert!(receiver_medium.get_stored(&key, &HOST.into()).expect("it can be read").is_some());
}

fn what_was_committed_is_there_after_opening_again(mut open: Open) {
    let mut store = open();
    let domains = Domains::new(&[Domain::OWN, HOST]);
    for round in 0..3 {
        for number in 0..40 {
            let domain = if number % 3 == 0 { HOST } else { Domain::OWN };
            put(&*store, domain, &sample(100 * round + number, 3000));
        }
        store.commit().expect("a store can be committed");
        let statistics = store.statistics().expect("a store can be counted");
        drop(store);
        store = open();
        for number in (0..=round).flat_map(|round| (0..40).map(move |number| 100 * round + number)) {
            let plain = sample(number, 3000);
            assert_eq!(get(&*store, &chunk_key(&plain), &domains).expect("it was committed"), plain, "{number}");
        }
        let reopened = store.statistics().expect("a store can be counted");
        assert_eq!((reopened.objects, reopened.plain_bytes), (statistics.objects, statistics.plain_bytes));
        assert_eq!(reopened.stored_bytes, statistics.stored_bytes);
    }
}

fn threads_that_put_the_same_store_one_copy(mut open: Open) {
    let store = open();
    let barrier = Barrier::new(THREADS as usize);
    let new: u32 = std::thread::scope(|scope| {
        let work = |_| {
            scope.spawn(|| {
                barrier.wait();
                let mut new = 0;
                for number in 0..OBJECTS_PER_THREAD {
                    let plain = sample(number, 20000);
                    let put = store.put(&chunk_key(&plain), Domain::OWN, &plain).expect("an object can be put");
                    new += u32::from(put.new);
                    if number % 16 == 0 {
                        store.commit().expect("a store can be committed");
                    }
                }
                new
            })
        };
        let threads: Vec<_> = (0..THREADS).map(work).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread fails")).sum()
    });
    assert_eq!(new, OBJECTS_PER_THREAD);
    let statistics = store.statistics().expect("a store can be counted");
    assert_eq!(statistics.objects, u64::from(OBJECTS_PER_THREAD));
    assert_eq!(statistics.plain_bytes, 20000 * u64::from(OBJECTS_PER_THREAD));
}

fn readers_see_what_writers_have_put(mut open: Open) {
    let store = open();
    std::thread::scope(|scope| {
        for writer in 0..THREADS {
            let store = &store;
            let (tell, told) = std::sync::mpsc::sync_channel(4);
            scope.spawn(move || {
                for number in 0..OBJECTS_PER_THREAD {
                    let plain = sample(1000 * writer + number, 9000);
                    tell.send((put(&**store, HOST, &plain), plain)).expect("the reader waits");
                    if number % 10 == writer {
                        store.commit().expect("a store can be committed");
                    }
                }
            });
            scope.spawn(move || {
                let mut seen = Vec::new();
                for (key, plain) in told {
                    assert_eq!(get(&**store, &key, &HOST.into()).expect("a put is seen at once"), plain);
                    seen.push((key, plain));
                }
                for (key, plain) in seen {
                    assert_eq!(get(&**store, &key, &HOST.into()).expect("it stays"), plain);
                }
            });
        }
    });
}

fn roots_change_all_or_none(mut open: Open) {
    let mut store = open();
    let key = put(&*store, Domain::OWN, b"what the root refers to");
    let set = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
    store.roots().apply(vec![set("volume/1", b"one"), set("volume/2", b"two")]).expect("roots can change");
    let refused = vec![set("volume/1", b"changed"), set("volume/3", &vec![0; (1 << 20) + 1])];
    assert!(matches!(store.roots().apply(refused), Err(StoreError::RootTooLong { .. })));
    assert!(matches!(store.roots().apply(vec![set("", b"")]), Err(StoreError::RootTooLong { .. })));
    let changes = vec![set("volume/2", b"new"), ("volume/1".to_owned(), None), ("volume/never".to_owned(), None)];
    for reopen in [false, true, true] {
        if reopen {
            drop(store);
            store = open();
        }
        if !reopen {
            assert_eq!(store.roots().get("volume/1").as_deref(), Some(&b"one"[..]));
            assert_eq!(store.roots().get("volume/3"), None);
            store.roots().apply(changes.clone()).expect("roots can change");
        }
        assert_eq!(store.roots().get("volume/1"), None);
        assert_eq!(store.roots().get("volume/2").as_deref(), Some(&b"new"[..]));
        assert!(get(&*store, &key, &Domain::OWN.into()).is_some(), "changing roots commits the objects");
    }
    store.roots().apply(Vec::new()).expect("no change is one");
}

fn roots_are_listed_by_prefix(mut open: Open) {
    let store = open();
    let names = ["a", "layer/2", "layer/1", "layers", "volume/1", "layer/", "layer\u{10ffff}"];
    let changes = names.map(|name| (name.to_owned(), Some(name.as_bytes().to_vec())));
    store.roots().apply(changes.to_vec()).expect("roots can change");
    let listed = |prefix| -> Vec<String> {
        let records = store.roots().list(prefix);
        assert!(records.iter().all(|(name, value)| name.as_bytes() == value));
        records.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(listed("layer/"), ["layer/", "layer/1", "layer/2"]);
    assert_eq!(listed("layer/2"), ["layer/2"]);
    assert_eq!(listed("b"), [""; 0]);
    assert_eq!(listed("").len(), names.len());
}

//! What collection must do, on every implementation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use format::Node;
use types::{CHUNK_BYTES, NodeId, Progress};

use super::{Open, chunk_key, get, put, sample};
use crate::{
    ChunkStore, CollectError, CollectOptions, CollectReport, Domain, Domains, IncompleteRoots, Key, Live, LiveRoots,
    LiveTree,
};

const OTHER: Domain = Domain(17);

/// Roots that are a list.
#[derive(Clone, Debug, Default)]
pub struct ListedRoots(pub Vec<Live>);

impl LiveRoots for ListedRoots {
    fn visit(&self, live: &mut dyn FnMut(Live)) -> Result<(), IncompleteRoots> {
        self.0.iter().cloned().for_each(live);
        Ok(())
    }
}

/// Puts the tree of a disk that consists of these chunks, and returns its root.
///
/// # Panics
/// Where the store does not take it, or for more than 256 chunks.
pub fn put_tree(store: &dyn ChunkStore, domain: Domain, chunks: &[Vec<u8>]) -> NodeId {
    let children: Vec<(u8, [u8; 32])> =
        (0..=u8::MAX).zip(chunks).map(|(slot, plain)| (slot, put(store, domain, plain).hash)).collect();
    assert_eq!(children.len(), chunks.len(), "the chunks fit one node");
    let (id, bytes) = Node::new(0, &children).expect("a node can be made").identify();
    store.put(&id.into(), domain, &bytes).expect("a node can be put");
    id
}

/// A root that keeps a tree of up to 256 chunks.
#[must_use]
pub fn live_tree(root: NodeId, chunks: usize, domains: &Domains) -> Live {
    let size_bytes = (chunks * CHUNK_BYTES) as u64;
    Live::Tree(LiveTree { root, size_bytes, domains: domains.clone(), chunks: true, partial: false })
}

/// Collects all that can be collected.
///
/// # Errors
/// As [`ChunkStore::collect`].
pub fn collect(store: &dyn ChunkStore, roots: &[Live]) -> Result<CollectReport, CollectError> {
    let options = CollectOptions { live_percent: 100, ..CollectOptions::default() };
    store.collect(&ListedRoots(roots.to_vec()), &options, &Progress::default())
}

pub(super) fn check(make: &dyn Fn() -> Open) {
    what_roots_refer_to_stays_and_the_rest_goes(make());
    what_is_held_stays(make());
    a_domain_keeps_only_its_own(make());
    what_is_not_known_in_whole_forbids_collection(make());
    absent_parts_are_passed_over(make());
    only_nodes_are_kept_where_only_they_are_wanted(make());
    a_dry_run_changes_nothing(make());
    // Small objects share blocks of the file system, and large ones do not.
    collection_goes_on_beside_puts_and_reads(make(), 3000);
    collection_goes_on_beside_puts_and_reads(make(), 50_000);
}

fn disk(first: u32) -> Vec<Vec<u8>> {
    (first..first + 10).map(|number| sample(number, 3000)).collect()
}

fn present(store: &dyn ChunkStore, chunks: &[Vec<u8>], domain: Domain) -> usize {
    let here = |plain: &&Vec<u8>| get(store, &chunk_key(plain), &domain.into()).is_some_and(|found| found == ***plain);
    chunks.iter().filter(here).count()
}

fn what_roots_refer_to_stays_and_the_rest_goes(mut open: Open) {
    let mut store = open();
    let own = Domains::from(Domain::OWN);
    let (kept, shared, dropped) = (disk(0), disk(5), disk(100));
    let roots = [put_tree(&*store, Domain::OWN, &kept), put_tree(&*store, Domain::OWN, &dropped)];
    let shared_root = put_tree(&*store, Domain::OWN, &shared);
    let manifest = put(&*store, Domain::OWN, b"a single object");
    store.commit().expect("a store can be committed");
    let live = vec![
        live_tree(roots[0], 10, &own),
        live_tree(shared_root, 10, &own),
        Live::Object { key: manifest, domains: own.clone() },
    ];
    let report = collect(&*store, &live).expect("a store can be collected");
    assert_eq!((report.live_objects, report.dead_objects), (15 + 2 + 1, 11));
    for reopen in [false, true, true] {
        if reopen {
            drop(store);
            store = open();
        }
        assert_eq!(present(&*store, &kept, Domain::OWN) + present(&*store, &shared, Domain::OWN), 20);
        assert_eq!(present(&*store, &dropped, Domain::OWN), 0);
        assert!(get(&*store, &roots[1].into(), &own).is_none());
        assert!(get(&*store, &manifest, &own).is_some());
        assert_eq!(store.statistics().expect("a store can be counted").objects, 18);
    }
    // What is gone can be put again, and a second collection finds nothing to do.
    assert!(store.put(&chunk_key(&dropped[0]), Domain::OWN, &dropped[0]).expect("it can be put").new);
    assert_eq!(present(&*store, &dropped, Domain::OWN), 1);
    assert_eq!(collect(&*store, &live).expect("a store can be collected").dead_objects, 1);
    assert_eq!(collect(&*store, &live).expect("a store can be collected").dead_objects, 0);
    assert_eq!(store.statistics().expect("a store can be counted").objects, 18);
}

fn what_is_held_stays(mut open: Open) {
    let store = open();
    let (old, new, looked, loose) = (disk(0), disk(100), disk(200), disk(300));
    for plain in old.iter().chain(&looked).chain(&loose) {
        put(&*store, Domain::OWN, plain);
    }
    store.commit().expect("a store can be committed");
    let hold = store.hold();
    for plain in old.iter().chain(&new) {
        put(&*store, Domain::OWN, plain);
    }
    for plain in &looked {
        assert!(store.contains(&chunk_key(plain), &Domain::OWN.into()).expect("presence is known"));
    }
    collect(&*store, &[]).expect("a store can be collected");
    let held = [&old, &new, &looked].map(|chunks| present(&*store, chunks, Domain::OWN));
    assert_eq!(held, [10, 10, 10]);
    // About one in a hundred of the rest may be taken for one that is held.
    assert!(present(&*store, &loose, Domain::OWN) <= 2);
    drop(hold);
    collect(&*store, &[]).expect("a store can be collected");
    assert_eq!([&old, &new, &looked].map(|chunks| present(&*store, chunks, Domain::OWN)), [0, 0, 0]);
    assert_eq!(store.statistics().expect("a store can be counted").objects, 0);
}

fn a_domain_keeps_only_its_own(mut open: Open) {
    let mut store = open();
    let chunks = disk(0);
    let dead = disk(50);
    let root = put_tree(&*store, Domain::OWN, &chunks);
    put_tree(&*store, OTHER, &chunks);
    put_tree(&*store, OTHER, &dead);
    let live = [live_tree(root, 10, &Domain::OWN.into())];
    collect(&*store, &live).expect("a store can be collected");
    for reopen in [false, true] {
        if reopen {
            drop(store);
            store = open();
        }
        assert_eq!(present(&*store, &chunks, Domain::OWN), 10);
        assert_eq!(present(&*store, &chunks, OTHER), 0, "live only elsewhere");
        assert_eq!(present(&*store, &dead, OTHER), 0);
    }
    // It can be had again, and then both count.
    put_tree(&*store, OTHER, &chunks);
    let both = [live_tree(root, 10, &Domain::OWN.into()), live_tree(root, 10, &OTHER.into())];
    collect(&*store, &both).expect("a store can be collected");
    assert_eq!((present(&*store, &chunks, Domain::OWN), present(&*store, &chunks, OTHER)), (10, 10));
}

struct Unreadable;

impl LiveRoots for Unreadable {
    fn visit(&self, _: &mut dyn FnMut(Live)) -> Result<(), IncompleteRoots> {
        Err(IncompleteRoots { what: "the record of a volume is damaged".to_owned(), source: None })
    }
}

fn what_is_not_known_in_whole_forbids_collection(mut open: Open) {
    let store = open();
    let chunks = disk(0);
    let absent = put_tree(&*open_another(), Domain::OWN, &disk(20));
    put_tree(&*store, Domain::OWN, &chunks);
    let refused = store.collect(&Unreadable, &CollectOptions::default(), &Progress::default());
    assert!(matches!(refused, Err(CollectError::Roots(_))), "{refused:?}");
    let refused = collect(&*store, &[live_tree(absent, 10, &Domain::OWN.into())]);
    assert!(matches!(refused, Err(CollectError::Node(id, _)) if id == absent), "{refused:?}");
    let cancelled = Progress::default();
    cancelled.cancel();
    let root = put_tree(&*store, Domain::OWN, &chunks);
    let roots = ListedRoots(vec![live_tree(root, 10, &Domain::OWN.into())]);
    let refused = store.collect(&roots, &CollectOptions::default(), &cancelled);
    assert!(matches!(refused, Err(CollectError::Cancelled(_))), "{refused:?}");
    assert_eq!(present(&*store, &chunks, Domain::OWN), 10);
}

fn open_another() -> Arc<dyn ChunkStore> {
    Arc::new(crate::MemoryStore::new())
}

fn absent_parts_are_passed_over(mut open: Open) {
    let store = open();
    let own = Domains::from(Domain::OWN);
    let leaf = put_tree(&*store, Domain::OWN, &disk(0));
    let absent = put_tree(&*open_another(), Domain::OWN, &disk(20));
    let (root, bytes) = Node::new(1, &[(0, leaf.0), (1, absent.0)]).expect("a node can be made").identify();
    store.put(&root.into(), Domain::OWN, &bytes).expect("a node can be put");
    let size_bytes = 512 * CHUNK_BYTES as u64;
    let tree = LiveTree { root, size_bytes, domains: own.clone(), chunks: true, partial: true };
    assert_eq!(collect(&*store, &[Live::Tree(tree.clone())]).expect("a store can be collected").dead_objects, 0);
    assert_eq!(present(&*store, &disk(0), Domain::OWN), 10);
    let refused = collect(&*store, &[Live::Tree(LiveTree { partial: false, ..tree })]);
    assert!(matches!(refused, Err(CollectError::Node(..))), "{refused:?}");
}

fn only_nodes_are_kept_where_only_they_are_wanted(mut open: Open) {
    let store = open();
    let chunks = disk(0);
    let root = put_tree(&*store, Domain::OWN, &chunks);
    let Live::Tree(tree) = live_tree(root, 10, &Domain::OWN.into()) else { unreachable!("it is a tree") };
    let report = collect(&*store, &[Live::Tree(LiveTree { chunks: false, ..tree })]);
    assert_eq!(report.expect("a store can be collected").dead_objects, 10);
    assert!(get(&*store, &root.into(), &Domain::OWN.into()).is_some());
}

fn a_dry_run_changes_nothing(mut open: Open) {
    let store = open();
    put_tree(&*store, Domain::OWN, &disk(0));
    let before = store.statistics().expect("a store can be counted");
    let options = CollectOptions { dry_run: true, ..CollectOptions::default() };
    let report = store.collect(&ListedRoots::default(), &options, &Progress::default());
    let report = report.expect("a store can be collected");
    assert_eq!((report.dead_objects, report.live_objects, report.freed_bytes), (11, 0, 0));
    assert!(report.dead_bytes >= 10 * 1500);
    let after = store.statistics().expect("a store can be counted");
    assert_eq!((before.objects, before.stored_bytes), (after.objects, after.stored_bytes));
    assert_eq!(present(&*store, &disk(0), Domain::OWN), 10);
}

/// Putters that hold, and readers of what is live, meet collections that would take all the rest.
fn collection_goes_on_beside_puts_and_reads(mut open: Open, length: usize) {
    let mut store = open();
    let own = Domains::from(Domain::OWN);
    let live: Vec<Vec<u8>> = (0..10).map(|number| sample(number, length)).collect();
    let root = put_tree(&*store, Domain::OWN, &live);
    let roots = [live_tree(root, 10, &own)];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, live, stop, own) = (&store, &live, &stop, &own);
        scope.spawn(move || {
            while !stop.load(Ordering::Acquire) {
                assert_eq!(present(&**store, live, Domain::OWN), 10);
                for plain in live {
                    let stored = store.get_stored(&chunk_key(plain), own).expect("it can be read");
                    assert!(stored.is_some(), "what is live is always there");
                }
            }
        });
        let putters: Vec<_> = (0..3_u32)
            .map(|putter| {
                scope.spawn(move || {
                    for round in 0..12_u32 {
                        // Half of these are put by all putters, and may be dead from an earlier round.
                        let shared = (0..10).map(|number| sample(1000 + number + round % 3 * 10, length));
                        let own = (0..10).map(|number| sample(10_000 * (putter + 1) + 10 * round + number, length));
                        let all: Vec<_> = shared.chain(own).collect();
                        let hold = store.hold();
                        let held: Vec<(Key, Bytes)> =
                            all.iter().map(|plain| (put(&**store, OTHER, plain), plain.clone().into())).collect();
                        std::thread::yield_now();
                        store.commit().expect("a store can be committed");
                        for (key, plain) in held {
                            assert_eq!(get(&**store, &key, &OTHER.into()), Some(plain), "{key} is held");
                        }
                        drop(hold);
                    }
                })
            })
            .collect();
        while putters.iter().any(|putter| !putter.is_finished()) {
            collect(&**store, &roots).expect("a store can be collected");
        }
        stop.store(true, Ordering::Release);
    });
    collect(&*store, &roots).expect("a store can be collected");
    assert_eq!(store.statistics().expect("a store can be counted").objects, 11);
    drop(store);
    store = open();
    assert_eq!(store.statistics().expect("a store can be counted").objects, 11);
    assert_eq!(present(&*store, &live, Domain::OWN), 10);
}

//! A collection that is cut off at any step, by the loss of power or the death of the process, costs nothing that is
//! live, and the next one does the rest.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use medium::simulated::Simulated;
use store::conformance::{chunk_key, collect, live_tree, put_tree, sample};
use store::{ChunkStore, Domain, Live, LocalOptions, LocalStore};

const OPTIONS: LocalOptions = LocalOptions { pack_bytes: 8_000, cache_bytes: 0, hot_bytes: 0, reserve_bytes: 0 };
const OTHER: Domain = Domain(3);

fn open(medium: &Simulated) -> Arc<LocalStore> {
    LocalStore::open_on(medium.shared(), "store", OPTIONS).unwrap()
}

fn disk(first: u32) -> Vec<Vec<u8>> {
    (first..first + 8).map(|number| sample(number, 1200)).collect()
}

/// A store with live and dead trees in turn, so that packs are mixed, and one chunk that is live in two domains.
fn prepared(medium: &Simulated) -> (Arc<LocalStore>, Vec<Live>) {
    let store = open(medium);
    let mut live = Vec::new();
    for number in 0..6 {
        let root = put_tree(&*store, Domain::OWN, &disk(100 * number));
        if number % 2 == 0 {
            live.push(live_tree(root, 8, &Domain::OWN.into()));
        }
        store.commit().unwrap();
    }
    let root = put_tree(&*store, OTHER, &disk(0));
    live.push(live_tree(root, 8, &OTHER.into()));
    store.commit().unwrap();
    (store, live)
}

fn count(store: &LocalStore, number: u32, domain: Domain) -> usize {
    let is_there = |plain: &&Vec<u8>| {
        let found = store.get(&chunk_key(plain), &domain.into()).unwrap();
        found.inspect(|found| assert_eq!(*found, **plain)).is_some()
    };
    disk(100 * number).iter().filter(is_there).count()
}

fn check(medium: &Simulated, live: &[Live], what: &str) {
    let store = open(medium);
    // What was never committed may be torn; the pack is ended behind it.
    store.commit().unwrap();
    for number in [0, 2, 4] {
        assert_eq!(count(&store, number, Domain::OWN), 8, "live disk {number} after {what}");
    }
    assert_eq!(count(&store, 0, OTHER), 8, "the other domain's after {what}");
    let mut torn = false;
    for again in [false, true] {
        let report = collect(&*store, live).unwrap();
        // A pack whose head was torn with the power stays, as nobody can tell what was in it.
        torn = report.damaged_packs > 0 && what.contains("power");
        assert!(report.damaged_packs == 0 || torn, "{what}: {report:?}");
        assert!(!again || report.dead_objects == 0, "{what}: {report:?}");
    }
    drop(store);
    let store = open(medium);
    let objects = store.statistics().unwrap().objects;
    assert!(objects == 3 * 9 || torn, "{what}: {objects}");
    for number in [1, 3, 5] {
        assert_eq!(count(&store, number, Domain::OWN), 0, "dead disk {number} after {what}");
    }
    assert_eq!((count(&store, 0, Domain::OWN), count(&store, 0, OTHER)), (8, 8), "{what}");
}

#[test]
fn at_any_step() {
    let medium = Simulated::new(7);
    let (store, live) = prepared(&medium);
    medium.keep_moments();
    let report = collect(&*store, &live).unwrap();
    assert!(report.removed_packs > 2 && report.moved_bytes > 5_000, "{report:?}");
    let moments = medium.take_moments();
    assert!(moments.len() > 40, "{}", moments.len());
    for (number, moment) in moments.iter().enumerate() {
        check(&moment.kill(), &live, &format!("a kill at step {number}"));
        let seed = u64::try_from(number).unwrap();
        check(&moment.power_cut(seed), &live, &format!("a power cut at step {number}"));
    }
}

#[test]
fn without_room_it_ends_with_an_error_and_harms_nothing() {
    let medium = Simulated::new(8);
    let (store, live) = prepared(&medium);
    let taken = store.statistics().unwrap().allocated_bytes;
    for more in (0..40_000).step_by(2_000) {
        medium.set_total_bytes(taken + more);
        // What gives most for least goes first, so that even little room is enough to begin with.
        let _ = collect(&*store, &live);
        for number in [0, 2, 4] {
            assert_eq!(count(&store, number, Domain::OWN), 8, "{more}");
        }
    }
    medium.set_total_bytes(1 << 30);
    drop(store);
    check(&medium, &live, "full media");
}

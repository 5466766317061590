//! A collection that is cut off at any step, by the loss of power or the death of the process, costs nothing that is
//! live, and the next one does the rest.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use medium::Open;
use medium::simulated::Simulated;
use store::conformance::{chunk_key, collect, live_tree, put_tree, sample};
use store::{ChunkStore, CollectReport, Domain, Live, LocalOptions, LocalStore};

const OTHER: Domain = Domain(3);

/// How large chunks and packs are: what is dead is smaller than a block, so that packs are copied; or larger, so that
/// they are hollowed.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    chunk_bytes: usize,
    pack_bytes: u64,
}

const COPIED: Sizes = Sizes { chunk_bytes: 1200, pack_bytes: 8_000 };
const HOLLOWED: Sizes = Sizes { chunk_bytes: 20_000, pack_bytes: 200_000 };

fn open(medium: &Simulated, sizes: Sizes) -> Arc<LocalStore> {
    let options = LocalOptions { pack_bytes: sizes.pack_bytes, cache_bytes: 0, hot_bytes: 0, reserve_bytes: 0 };
    LocalStore::open_on(medium.shared(), "store", options).unwrap()
}

fn disk(first: u32, sizes: Sizes) -> Vec<Vec<u8>> {
    (first..first + 8).map(|number| sample(number, sizes.chunk_bytes)).collect()
}

/// A store with live and dead trees in turn, so that packs are mixed, and one chunk that is live in two domains.
fn prepared(medium: &Simulated, sizes: Sizes) -> (Arc<LocalStore>, Vec<Live>) {
    let store = open(medium, sizes);
    let mut live = Vec::new();
    for number in 0..6 {
        let root = put_tree(&*store, Domain::OWN, &disk(100 * number, sizes));
        if number % 2 == 0 {
            live.push(live_tree(root, 8, &Domain::OWN.into()));
        }
        store.commit().unwrap();
    }
    let root = put_tree(&*store, OTHER, &disk(0, sizes));
    live.push(live_tree(root, 8, &OTHER.into()));
    store.commit().unwrap();
    (store, live)
}

fn count(store: &LocalStore, number: u32, domain: Domain, sizes: Sizes) -> usize {
    let is_there = |plain: &&Vec<u8>| {
        let found = store.get(&chunk_key(plain), &domain.into()).unwrap();
        found.inspect(|found| assert_eq!(*found, **plain)).is_some()
    };
    disk(100 * number, sizes).iter().filter(is_there).count()
}

fn check(medium: &Simulated, live: &[Live], sizes: Sizes, what: &str) {
    let store = open(medium, sizes);
    // What was never committed may be torn; the pack is ended behind it.
    store.commit().unwrap();
    for number in [0, 2, 4] {
        assert_eq!(count(&store, number, Domain::OWN, sizes), 8, "live disk {number} after {what}");
    }
    assert_eq!(count(&store, 0, OTHER, sizes), 8, "the other domain's after {what}");
    for number in [1, 3, 5] {
        // What is dead may still be there; then it can be read.
        let _some = count(&store, number, Domain::OWN, sizes);
    }
    let mut torn = false;
    for again in [false, true] {
        let report = collect(&*store, live).unwrap();
        // A pack whose head was torn with the power stays, as nobody can tell what was in it.
        torn = report.damaged_packs > 0 && what.contains("power");
        assert!(report.damaged_packs == 0 || torn, "{what}: {report:?}");
        assert!(!again || report.dead_objects == 0, "{what}: {report:?}");
    }
    drop(store);
    let store = open(medium, sizes);
    let objects = store.statistics().unwrap().objects;
    assert!(objects == 3 * 9 || torn, "{what}: {objects}");
    for number in [1, 3, 5] {
        assert_eq!(count(&store, number, Domain::OWN, sizes), 0, "dead disk {number} after {what}");
    }
    assert_eq!((count(&store, 0, Domain::OWN, sizes), count(&store, 0, OTHER, sizes)), (8, 8), "{what}");
}

fn at_any_step_with(sizes: Sizes) -> CollectReport {
    let medium = Simulated::new(7);
    let (store, live) = prepared(&medium, sizes);
    medium.keep_moments();
    let report = collect(&*store, &live).unwrap();
    let moments = medium.take_moments();
    for (number, moment) in moments.iter().enumerate() {
        check(&moment.kill(), &live, sizes, &format!("a kill at step {number}"));
        for seed in [0, 1000] {
            let seed = seed + u64::try_from(number).unwrap();
            check(&moment.power_cut(seed), &live, sizes, &format!("a power cut at step {number} by seed {seed}"));
        }
    }
    assert!(moments.len() > 20, "{}", moments.len());
    report
}

#[test]
fn at_any_step_of_copying() {
    let report = at_any_step_with(COPIED);
    assert!(report.removed_packs > 2 && report.moved_bytes > 5_000 && report.hollowed_packs == 0, "{report:?}");
}

#[test]
fn at_any_step_of_hollowing() {
    let report = at_any_step_with(HOLLOWED);
    assert!(report.hollowed_packs > 1 && report.freed_bytes > 200_000, "{report:?}");
}

/// What a store says is present in the other domain is so after its index was made anew, too. The other domain's tree is
/// dead, and its claims lie in packs that are emptied; the objects lie in one that is not.
fn claims_stay_true_with(sizes: Sizes) {
    let medium = Simulated::new(11);
    let store = open(&medium, sizes);
    // More than a pack, so that the first one is live throughout.
    let live = [0, 5, 6, 7]
        .map(|number| live_tree(put_tree(&*store, Domain::OWN, &disk(100 * number, sizes)), 8, &Domain::OWN.into()));
    store.commit().unwrap();
    for number in [1, 2] {
        put_tree(&*store, Domain::OWN, &disk(100 * number, sizes));
        put_tree(&*store, OTHER, &disk(0, sizes));
    }
    store.commit().unwrap();
    let report = collect(&*store, &live).unwrap();
    assert!(report.removed_packs + report.hollowed_packs > 0, "{report:?}");
    let counted_on = count(&store, 0, OTHER, sizes);
    assert!(counted_on > 0, "the test shows something: {report:?}");
    store.commit().unwrap();
    drop(store);
    let store = open(&medium, sizes);
    assert_eq!(count(&store, 0, OTHER, sizes), counted_on, "{report:?}");
}

#[test]
fn claims_of_the_dead_stay_true_where_packs_are_copied() {
    claims_stay_true_with(COPIED);
}

#[test]
fn claims_of_the_dead_stay_true_where_packs_are_hollowed() {
    claims_stay_true_with(HOLLOWED);
}

/// A store that was hollowed, and the places of its packs.
fn hollowed(medium: &Simulated) -> (Vec<Live>, Vec<PathBuf>) {
    let (store, live) = prepared(medium, HOLLOWED);
    let before = store.statistics().unwrap().allocated_bytes;
    let report = collect(&*store, &live).unwrap();
    let after = store.statistics().unwrap().allocated_bytes;
    assert!(report.hollowed_packs > 1 && before - after > 200_000, "{after} of {before} are left: {report:?}");
    drop(store);
    let counted_anew = open(medium, HOLLOWED).statistics().unwrap().allocated_bytes;
    assert_eq!(counted_anew, after, "{report:?}");
    let directory = Path::new("store/packs");
    let names = medium.shared().list(directory).unwrap();
    (live, names.iter().map(|name| directory.join(name)).collect())
}

#[test]
fn a_hollow_pack_that_has_lost_its_footer_is_read_all_the_same() {
    let medium = Simulated::new(9);
    let (live, packs) = hollowed(&medium);
    for pack in packs {
        let file = medium.shared().open(&pack, Open::Existing).unwrap();
        file.set_length(file.length().unwrap() - 1).unwrap();
    }
    let store = open(&medium, HOLLOWED);
    assert_eq!(store.recovery().damages, 0, "{:?}", store.recovery());
    drop(store);
    check(&medium, &live, HOLLOWED, "the loss of all footers");
}

#[test]
fn a_hollow_pack_is_hollowed_again_or_copied_when_more_of_it_dies() {
    let medium = Simulated::new(10);
    let (live, _) = hollowed(&medium);
    let store = open(&medium, HOLLOWED);
    let report = collect(&*store, &live[..2]).unwrap();
    assert!(report.dead_objects == 9 && report.freed_bytes > 60_000, "{report:?}");
    let counts = [0, 2, 4].map(|number| count(&store, number, Domain::OWN, HOLLOWED));
    assert_eq!(counts, [8, 8, 0]);
    let report = collect(&*store, &live[..2]).unwrap();
    assert_eq!((report.dead_objects, report.freed_bytes, report.hollowed_packs), (0, 0, 0), "{report:?}");
    let report = collect(&*store, &[]).unwrap();
    assert_eq!(report.live_objects, 0, "{report:?}");
    assert!(store.statistics().unwrap().allocated_bytes < 50_000);
}

#[test]
fn where_no_holes_can_be_punched_packs_are_copied() {
    let medium = Simulated::new(12);
    medium.refuse_holes();
    let (store, live) = prepared(&medium, HOLLOWED);
    let before = store.statistics().unwrap().allocated_bytes;
    // The first one finds it out.
    let first = collect(&*store, &live).unwrap();
    let second = collect(&*store, &live).unwrap();
    let after = store.statistics().unwrap().allocated_bytes;
    assert!(second.hollowed_packs == 0 && first.moved_bytes + second.moved_bytes > 0, "{first:?}, {second:?}");
    assert!(before - after > 200_000, "{after} of {before} are left: {first:?}, {second:?}");
    drop(store);
    check(&medium, &live, HOLLOWED, "no holes");
}

#[test]
fn without_room_it_ends_with_an_error_and_harms_nothing() {
    let medium = Simulated::new(8);
    let sizes = COPIED;
    let (store, live) = prepared(&medium, sizes);
    let taken = store.statistics().unwrap().allocated_bytes;
    for more in (0..40_000).step_by(2_000) {
        medium.set_total_bytes(taken + more);
        // What gives most for least goes first, so that even little room is enough to begin with.
        let _ = collect(&*store, &live);
        for number in [0, 2, 4] {
            assert_eq!(count(&store, number, Domain::OWN, sizes), 8, "{more}");
        }
    }
    medium.set_total_bytes(1 << 30);
    drop(store);
    check(&medium, &live, sizes, "full media");
}

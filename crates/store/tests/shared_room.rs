//! Chunks that share the room of a file are as good as others: after a cut, a collection, a scrub, in every domain; and
//! what becomes of the file is nothing to them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::sync::Arc;

use format::pack::{PackHeader, RECORD_HEADER_BYTES};
use medium::{File, Medium, Open, Simulated};
use store::conformance::{chunk_key, collect, live_tree, put_tree, sample};
use store::{ChunkStore, Domain, Domains, FreezeError, FrozenFile, LocalOptions, LocalStore, Scrubbed};
use types::{CHUNK_BYTES, ChunkId, Progress};

const OPTIONS: LocalOptions = LocalOptions { pack_bytes: 1 << 20, cache_bytes: 0, hot_bytes: 0, reserve_bytes: 0 };
const OTHER: Domain = Domain(3);

fn open(medium: &Simulated) -> Arc<LocalStore> {
    LocalStore::open_on(medium.shared(), "/store", OPTIONS).unwrap()
}

fn chunk(number: u32) -> Vec<u8> {
    sample(number, CHUNK_BYTES)
}

fn id(plain: &[u8]) -> ChunkId {
    format::chunk_id(plain)
}

/// A file on the medium that consists of chunks, and it frozen.
fn disk(medium: &Simulated, store: &LocalStore, chunks: &[Vec<u8>]) -> (Arc<dyn File>, FrozenFile) {
    let file = medium.open(Path::new("/disk"), Open::Replace).unwrap();
    file.write_all_at(&[&chunks.concat()], 0).unwrap();
    let frozen = store.freeze(&*file).unwrap();
    (file, frozen)
}

/// Shares chunks that lie in a file from a chunk on, and says which were new.
fn share(store: &LocalStore, domain: Domain, chunks: &[Vec<u8>], frozen: &FrozenFile, first: usize) -> Vec<bool> {
    let ids: Vec<ChunkId> = chunks.iter().map(|plain| id(plain)).collect();
    let puts = store.share(domain, &ids, frozen, (first * CHUNK_BYTES) as u64).unwrap();
    puts.iter().map(|put| put.new).collect()
}

fn is_there(store: &LocalStore, plain: &[u8], domain: Domain) -> bool {
    let found = store.get(&chunk_key(plain), &domain.into()).unwrap();
    found.inspect(|found| assert!(*found == plain)).is_some()
}

fn is_shared(store: &LocalStore, plain: &[u8], domain: Domain) -> bool {
    let Some(found) = store.find_in_file(&id(plain), &domain.into()).unwrap() else { return false };
    assert!(found.chunk == id(plain) && found.offset % 4096 == 0);
    let mut again = vec![0; CHUNK_BYTES];
    found.file.read_exact_at(&mut again, found.offset).unwrap();
    again == plain
}

#[test]
fn what_is_shared_is_read_whatever_becomes_of_the_file() {
    let medium = Simulated::new(1);
    let store = open(&medium);
    let chunks: Vec<_> = (0..5).map(chunk).collect();
    let (file, frozen) = disk(&medium, &store, &chunks);
    file.write_all_at(&[&[7; 400_000]], 0).unwrap();
    file.set_length(3).unwrap();
    assert_eq!(share(&store, Domain::OWN, &chunks, &frozen, 0), [true; 5]);
    drop((file, frozen));
    store.commit().unwrap();
    let statistics = store.statistics().unwrap();
    assert_eq!((statistics.objects, statistics.stored_bytes), (5, 5 << 16));
    for _ in 0..2 {
        let store = open(&medium.kill());
        assert_eq!((store.recovery().damages, store.recovery().records), (0, 5));
        for plain in &chunks {
            assert!(is_there(&store, plain, Domain::OWN) && is_shared(&store, plain, Domain::OWN));
            assert!(!is_there(&store, plain, OTHER));
            // It is sent compressed, as any other.
            let sent = store.get_stored(&chunk_key(plain), &Domain::OWN.into()).unwrap().unwrap();
            assert!(sent.bytes.len() < 40_000 && sent.to_plain().unwrap() == *plain);
        }
    }
}

#[test]
fn what_is_known_or_there_twice_is_stored_once_and_claimed() {
    let medium = Simulated::new(2);
    let store = open(&medium);
    let chunks = [chunk(0), chunk(1), chunk(0), chunk(2), chunk(3)];
    let (_, frozen) = disk(&medium, &store, &chunks);
    store.put(&chunk_key(&chunks[3]), OTHER, &chunks[3]).unwrap();
    assert_eq!(share(&store, Domain::OWN, &chunks, &frozen, 0), [true, true, false, false, true]);
    assert_eq!(share(&store, OTHER, &chunks[..2], &frozen, 0), [false, false]);
    store.commit().unwrap();
    assert_eq!(share(&store, Domain::OWN, &chunks, &frozen, 0), [false; 5]);
    assert_eq!(store.statistics().unwrap().objects, 4);
    let store = open(&medium.kill());
    assert!(chunks.iter().all(|plain| is_there(&store, plain, Domain::OWN)));
    assert!(is_shared(&store, &chunks[0], OTHER) && !is_shared(&store, &chunks[3], Domain::OWN));
    assert!(is_there(&store, &chunks[1], OTHER) && !is_there(&store, &chunks[4], OTHER));
}

#[test]
fn threads_that_share_the_same_store_one_copy() {
    let medium = Simulated::new(9);
    let store = open(&medium);
    let chunks: Vec<_> = (0..40).map(chunk).collect();
    let (_, frozen) = disk(&medium, &store, &chunks);
    let new: usize = std::thread::scope(|scope| {
        let work = |thread: usize| {
            let (store, chunks, frozen) = (&store, &chunks, &frozen);
            move || {
                // Each goes round from another place.
                let runs = (0..8).map(|step| (step + 2 * thread) % 8 * 5);
                runs.flat_map(|first| share(store, Domain::OWN, &chunks[first..first + 5], frozen, first))
                    .filter(|new| *new)
                    .count()
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((new, store.statistics().unwrap().objects), (40, 40));
    store.commit().unwrap();
    let store = open(&medium.power_cut(9));
    assert_eq!((store.recovery().records, store.recovery().damages), (40, 0));
    assert!(chunks.iter().all(|plain| is_shared(&store, plain, Domain::OWN)));
}

#[test]
fn where_files_share_nothing_it_says_so_and_nothing_is_left() {
    let medium = Simulated::new(3);
    let store = open(&medium);
    let chunks: Vec<_> = (0..3).map(chunk).collect();
    let (file, frozen) = disk(&medium, &store, &chunks);
    medium.refuse_clones();
    assert!(matches!(store.freeze(&*file), Err(FreezeError::Refused(_))));
    assert_eq!(share(&store, Domain::OWN, &chunks, &frozen, 0), [false; 0]);
    store.put(&chunk_key(&chunks[0]), Domain::OWN, &chunks[0]).unwrap();
    store.commit().unwrap();
    let store = open(&medium.kill());
    assert_eq!((store.recovery().damages, store.recovery().torn_bytes, store.recovery().records), (0, 0, 1));
    assert!(is_there(&store, &chunks[0], Domain::OWN) && !is_shared(&store, &chunks[0], Domain::OWN));
}

#[test]
fn a_cut_at_any_step_costs_nothing_that_was_committed() {
    let medium = Simulated::new(4);
    let store = open(&medium);
    let chunks: Vec<_> = (0..24).map(chunk).collect();
    let (_, frozen) = disk(&medium, &store, &chunks);
    share(&store, Domain::OWN, &chunks[..6], &frozen, 0);
    store.commit().unwrap();
    medium.keep_moments();
    // Over the end of the first pack, with others in between.
    share(&store, Domain::OWN, &chunks[6..10], &frozen, 6);
    store.put(&chunk_key(&chunks[10]), Domain::OWN, &chunks[10]).unwrap();
    share(&store, Domain::OWN, &chunks[11..20], &frozen, 11);
    let before_commit = medium.take_moments();
    store.commit().unwrap();
    share(&store, Domain::OWN, &chunks[20..], &frozen, 20);
    let after_begin = medium.take_moments();
    let mut torn = 0;
    for (number, moment) in before_commit.iter().chain(&after_begin).enumerate() {
        for seed in 0..4 {
            let left = moment.power_cut(seed * 1000 + u64::try_from(number).unwrap());
            let store = open(&left);
            torn += store.recovery().torn_bytes.min(1) + store.recovery().damages.min(1);
            assert!(chunks[..6].iter().all(|plain| is_there(&store, plain, Domain::OWN)), "step {number}");
            // All others are whole or absent, and can be stored again.
            let (_, frozen) = disk(&left, &store, &chunks);
            share(&store, Domain::OWN, &chunks, &frozen, 0);
            store.commit().unwrap();
            let store = open(&left.power_cut(seed));
            assert!(chunks.iter().all(|plain| is_there(&store, plain, Domain::OWN)), "step {number}");
        }
        let store = open(&moment.kill());
        assert!(chunks[..6].iter().all(|plain| is_there(&store, plain, Domain::OWN)), "a kill at step {number}");
        for plain in &chunks {
            is_there(&store, plain, Domain::OWN);
        }
    }
    assert!(torn > 10, "{torn}");
    let store = open(&after_begin.last().unwrap().power_cut(9));
    assert!(chunks[..20].iter().all(|plain| is_there(&store, plain, Domain::OWN)), "what was committed");
}

#[test]
fn faults_and_full_media_leave_what_was_there() {
    for after in 0..12 {
        for total in [None, Some(after * 40_000)] {
            let medium = Simulated::new(after);
            let store = open(&medium);
            let chunks: Vec<_> = (0..8).map(chunk).collect();
            let (_, frozen) = disk(&medium, &store, &chunks);
            share(&store, Domain::OWN, &chunks[..2], &frozen, 0);
            store.commit().unwrap();
            match total {
                Some(more) => medium.set_total_bytes(store.statistics().unwrap().allocated_bytes + (16 << 16) + more),
                None => medium.fail(medium::simulated::Fault { operation: None, after, lasting: false }),
            }
            for first in [2, 4, 6] {
                let ids: Vec<ChunkId> = chunks[first..first + 2].iter().map(|plain| id(plain)).collect();
                let _ = store.share(Domain::OWN, &ids, &frozen, (first * CHUNK_BYTES) as u64);
            }
            let _ = store.commit();
            medium.mend();
            medium.set_total_bytes(1 << 30);
            let store = open(&medium.kill());
            let there = chunks.iter().filter(|plain| is_there(&store, plain, Domain::OWN)).count();
            assert!(there >= 2 && chunks[..2].iter().all(|plain| is_there(&store, plain, Domain::OWN)));
        }
    }
}

/// Chunks to be kept and chunks to be dropped, mixed in their numbers.
fn halves() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (kept, dropped): (Vec<_>, Vec<_>) = (0..30).map(chunk).partition(|plain| plain[0] < 128);
    assert!(kept.len() > 5 && dropped.len() > 5);
    (kept, dropped)
}

/// A store in which all of them are shared, one that is kept also in another domain, and a tree over what is kept.
fn half_dead(medium: &Simulated, kept: &[Vec<u8>]) -> (Arc<LocalStore>, types::NodeId) {
    let store = open(medium);
    let all: Vec<_> = (0..30).map(chunk).collect();
    let (_, frozen) = disk(medium, &store, &all);
    share(&store, Domain::OWN, &all, &frozen, 0);
    share(&store, OTHER, &kept[..1], &frozen, 0);
    let root = put_tree(&*store, Domain::OWN, kept);
    store.commit().unwrap();
    (store, root)
}

#[test]
fn a_collection_gives_back_what_is_dead_and_the_rest_stays_shared() {
    let medium = Simulated::new(5);
    let (kept, dropped) = halves();
    let (store, root) = half_dead(&medium, &kept);
    let before = store.statistics().unwrap().allocated_bytes;
    let live = [live_tree(root, kept.len(), &Domains::new(&[Domain::OWN, OTHER]))];
    medium.keep_moments();
    let report = collect(&*store, &live).unwrap();
    let moments = medium.take_moments();
    let dead = (dropped.len() << 16) as u64;
    assert!(report.hollowed_packs == 1 && report.freed_bytes > dead - (40 << 12), "{report:?}");
    assert!(store.statistics().unwrap().allocated_bytes < before - dead + (40 << 12));
    assert_eq!(collect(&*store, &live).unwrap().freed_bytes, 0, "once is enough");
    let check = |store: &LocalStore, ended: bool| {
        assert!(kept.iter().all(|plain| is_shared(store, plain, Domain::OWN)));
        assert!(is_there(store, &kept[0], OTHER));
        assert!(!ended || !dropped.iter().any(|plain| is_there(store, plain, Domain::OWN)));
    };
    check(&store, true);
    for (number, moment) in moments.iter().enumerate() {
        check(&open(&moment.kill()), false);
        check(&open(&moment.power_cut(u64::try_from(number).unwrap())), false);
    }
    let left = medium.power_cut(5);
    check(&open(&left), true);
    // Without its footer it is read from record to record: rooms are passed over, whatever lies in them.
    let first = left.open(Path::new("/store/packs/00000001.pack"), Open::Existing).unwrap();
    first.set_length(first.length().unwrap() - 8).unwrap();
    let store = open(&left);
    assert_eq!(store.recovery().damages, 0);
    check(&store, true);
}

#[test]
fn what_a_collection_moves_stays_shared_where_that_can_be() {
    for refuses in [false, true] {
        let medium = Simulated::new(6);
        let (kept, dropped) = halves();
        let (store, root) = half_dead(&medium, &kept);
        if refuses {
            medium.refuse_clones();
        }
        // What ceases to be present in a domain is not left in its place.
        let live = [live_tree(root, kept.len(), &Domain::OWN.into())];
        let report = collect(&*store, &live).unwrap();
        assert!(report.removed_packs == 1 && report.moved_bytes >= (kept.len() as u64) << 16, "{report:?}");
        let check = |store: &LocalStore| {
            assert!(kept.iter().all(|plain| is_there(store, plain, Domain::OWN)));
            assert!(kept.iter().all(|plain| is_shared(store, plain, Domain::OWN) != refuses));
            assert!(!dropped.iter().any(|plain| is_there(store, plain, Domain::OWN)));
            assert!(!is_there(store, &kept[0], OTHER));
        };
        check(&store);
        check(&open(&medium.power_cut(5)));
    }
}

/// Changes bytes of the first pack.
fn change(medium: &Simulated, find: impl Fn(&[u8]) -> usize, bytes: &[u8]) {
    let path = Path::new("/store/packs/00000001.pack");
    let place = find(&medium.read(path).unwrap());
    medium.open(path, Open::Existing).unwrap().write_all_at(&[bytes], place as u64).unwrap();
}

#[test]
fn a_scrub_finds_damage_in_a_room_and_a_lost_head_of_one_hides_nothing() {
    let medium = Simulated::new(6);
    let store = open(&medium);
    let mut chunks: Vec<_> = (0..4).map(chunk).collect();
    // A guest that knows the beginning of every record, and has a copy of one.
    let record = {
        let other = Simulated::new(7);
        let store = open(&other);
        let plain = chunk(100);
        store.put(&chunk_key(&plain), Domain::OWN, &plain).unwrap();
        other.read(Path::new("/store/packs/00000001.pack")).unwrap()[64..].to_vec()
    };
    let length = record.len().min(CHUNK_BYTES);
    chunks[1][..length].copy_from_slice(&record[..length]);
    let (_, frozen) = disk(&medium, &store, &chunks);
    share(&store, Domain::OWN, &chunks, &frozen, 0);
    store.commit().unwrap();
    drop(store);

    let damaged = medium.kill();
    let begin = |plain: &[u8]| plain[..64].to_vec();
    let third = begin(&chunks[2]);
    change(&damaged, |pack| pack.windows(64).position(|bytes| bytes == third).unwrap() + 5000, &[1; 3]);
    let store = open(&damaged);
    // Its index is built from the packs, which are looked at.
    assert_eq!(store.recovery().damages, 1);
    let there = |store: &LocalStore| chunks.iter().map(|plain| is_there(store, plain, Domain::OWN)).collect::<Vec<_>>();
    assert_eq!(there(&store), [true, true, false, true]);

    let damaged = medium.kill();
    let store = open(&damaged);
    change(&damaged, |pack| pack.windows(64).position(|bytes| bytes == third).unwrap() + 5000, &[1; 3]);
    let mut found = Vec::new();
    let mut tell = |scrubbed| {
        if let Scrubbed::Damaged(key) = scrubbed {
            found.push(key);
        }
    };
    let report = store.scrub(&store::ScrubOptions::default(), &Progress::default(), &mut tell).unwrap();
    assert_eq!((report.damaged, report.objects), (1, 3));
    assert_eq!(found, [chunk_key(&chunks[2])]);
    assert_eq!(store.quarantined(), found);
    assert_eq!(there(&store), [true, true, false, true]);
    assert!(share(&store, Domain::OWN, &chunks[2..3], &disk(&damaged, &store, &chunks).1, 2)[0]);
    assert_eq!(there(&store), [true; 4]);

    let headless = medium.kill();
    change(&headless, |_| 64, &[0; RECORD_HEADER_BYTES]);
    let store = open(&headless);
    assert_eq!((store.recovery().damages, store.recovery().records), (1, 4));
    assert_eq!(there(&store), [true; 4]);
}

#[test]
fn packs_of_version_1_are_read_and_get_no_rooms() {
    let medium = Simulated::new(8);
    let store = open(&medium);
    let chunks: Vec<_> = (0..3).map(chunk).collect();
    store.put(&chunk_key(&chunks[0]), Domain::OWN, &chunks[0]).unwrap();
    store.commit().unwrap();
    drop(store);
    let medium = medium.kill();
    let first = Path::new("/store/packs/00000001.pack");
    let header = PackHeader::decode(&medium.read(first).unwrap()).unwrap();
    assert_eq!(header.version, 2);
    change(&medium, |_| 0, &PackHeader { version: 1, ..header }.encode());
    let store = open(&medium);
    store.put(&chunk_key(&chunks[1]), Domain::OWN, &chunks[1]).unwrap();
    assert!(!medium.exists(Path::new("/store/packs/00000002.pack")).unwrap(), "it goes on");
    let (_, frozen) = disk(&medium, &store, &chunks);
    assert_eq!(share(&store, Domain::OWN, &chunks[2..], &frozen, 2), [true]);
    store.commit().unwrap();
    let second = medium.read(Path::new("/store/packs/00000002.pack")).unwrap();
    assert_eq!(PackHeader::decode(&second).unwrap().version, 2);
    let store = open(&medium.kill());
    assert_eq!(store.recovery().damages, 0);
    assert!(chunks.iter().all(|plain| is_there(&store, plain, Domain::OWN)));
}

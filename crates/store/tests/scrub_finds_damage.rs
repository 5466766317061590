//! A scrub finds what is damaged, wherever the byte; it is absent then, its bytes are kept aside, it can be stored anew,
//! and nothing else suffers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;

use store::conformance::{ListedRoots, chunk_key, sample};
use store::{
    ChunkStore, CollectOptions, Domain, Live, LocalOptions, LocalStore, ScrubError, ScrubOptions, ScrubReport, Scrubbed,
};
use types::Progress;

const OPTIONS: LocalOptions = LocalOptions { pack_bytes: 20_000, cache_bytes: 1 << 20, hot_bytes: 0, reserve_bytes: 0 };

fn scrub(store: &LocalStore, after: u32) -> (ScrubReport, Vec<Scrubbed>) {
    let mut told = Vec::new();
    let options = ScrubOptions { after, ..ScrubOptions::default() };
    let report = store.scrub(&options, &Progress::default(), &mut |scrubbed| told.push(scrubbed)).unwrap();
    (report, told)
}

fn plain(number: u32) -> Vec<u8> {
    sample(number, 3000)
}

fn flip(directory: &Path, pack: u32, place: usize) {
    let path = directory.join(format!("packs/{pack:08}.pack"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[place] ^= 4;
    fs::write(&path, bytes).unwrap();
}

#[test]
fn damage_is_found_told_and_healed_by_storing_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path(), OPTIONS).unwrap();
    let own = Domain::OWN.into();
    for number in 0..40 {
        store.put(&chunk_key(&plain(number)), Domain::OWN, &plain(number)).unwrap();
    }
    store.commit().unwrap();
    let (report, told) = scrub(&store, 0);
    assert_eq!((report.objects, report.damaged), (40, 0));
    let packs = told.len();
    assert!(packs > 3 && told.last() == Some(&Scrubbed::UpTo(u32::try_from(packs).unwrap())), "{told:?}");
    for number in 0..40 {
        assert!(store.get(&chunk_key(&plain(number)), &own).unwrap().is_some());
    }
    // One in its header, one in its content; both are cached.
    flip(directory.path(), 2, 64 + 8);
    flip(directory.path(), 3, 64 + 64 + 700);
    let (report, told) = scrub(&store, 0);
    assert_eq!((report.objects, report.damaged), (38, 2), "{told:?}");
    let damaged: Vec<_> =
        (0..40).filter(|number| told.contains(&Scrubbed::Damaged(chunk_key(&plain(*number))))).collect();
    assert_eq!(damaged.len(), 2);
    for number in 0..40 {
        let (key, is_there) = (chunk_key(&plain(number)), !damaged.contains(&number));
        assert_eq!(store.contains(&key, &own).unwrap(), is_there);
        assert_eq!(store.get(&key, &own).unwrap().is_some(), is_there);
    }
    assert_eq!(store.statistics().unwrap().objects, 38);
    assert_eq!(fs::read_dir(directory.path().join("damaged")).unwrap().count(), 2);
    assert_eq!(store.quarantined().len(), 2);
    assert!(store.quarantined().contains(&chunk_key(&plain(damaged[0]))));
    // The packs are not touched, so a rebuilt index finds it again; what was stored anew counts.
    assert!(store.put(&chunk_key(&plain(damaged[0])), Domain::OWN, &plain(damaged[0])).unwrap().new);
    store.commit().unwrap();
    assert_eq!(scrub(&store, 0).0.damaged, 0);
    drop(store);
    LocalStore::rebuild_index(directory.path()).unwrap();
    let store = LocalStore::open(directory.path(), OPTIONS).unwrap();
    assert_eq!(store.get(&chunk_key(&plain(damaged[0])), &own).unwrap().unwrap(), plain(damaged[0]));
    assert_eq!(scrub(&store, 0).0.damaged, 1);
    assert_eq!(store.statistics().unwrap().objects, 39);
    let live: Vec<_> =
        (0..40).map(|number| Live::Object { key: chunk_key(&plain(number)), domains: own.clone() }).collect();
    let options = CollectOptions { live_percent: 100, ..CollectOptions::default() };
    store.collect(&ListedRoots(live), &options, &Progress::default()).unwrap();
    assert_eq!(store.statistics().unwrap().objects, 39);
    assert_eq!(scrub(&store, 0).0, ScrubReport { damaged: 0, ..scrub(&store, 0).0 });
}

#[test]
fn a_read_that_finds_damage_makes_it_absent() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path(), LocalOptions { cache_bytes: 0, ..OPTIONS }).unwrap();
    let (key, own) = (chunk_key(&plain(1)), Domain::OWN.into());
    store.put(&key, Domain::OWN, &plain(1)).unwrap();
    store.commit().unwrap();
    flip(directory.path(), 1, 64 + 64 + 20);
    assert!(matches!(store.get(&key, &own), Err(store::StoreError::Damaged { .. })), "the first to see it is told");
    assert_eq!(store.get(&key, &own).unwrap(), None);
    assert!(store.put(&key, Domain::OWN, &plain(1)).unwrap().new, "it is stored anew, and not taken for present");
    assert_eq!(store.get(&key, &own).unwrap().unwrap(), plain(1));
}

#[test]
fn a_scrub_goes_on_where_it_was_and_can_be_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path(), OPTIONS).unwrap();
    for number in 0..40 {
        store.put(&chunk_key(&plain(number)), Domain::OWN, &plain(number)).unwrap();
    }
    let progress = Progress::default();
    let mut at = 0;
    let cancelled = store.scrub(&ScrubOptions::default(), &progress, &mut |scrubbed| {
        if let Scrubbed::UpTo(pack) = scrubbed {
            at = pack;
            progress.cancel();
        }
    });
    assert!(matches!(cancelled, Err(ScrubError::Cancelled(_))), "{cancelled:?}");
    assert_eq!(at, 1);
    let all = scrub(&store, 0).0;
    assert!(scrub(&store, at).0.objects < all.objects && all.objects == 40);
}

//! A million chunks in a thousand snapshots, half of them dropped: what is left is exactly what is live, and the tables
//! that collection needs stay below 64 bytes for each live chunk. Reduced unless `BRANT_TEST_FULL` is set.

use store::conformance::{ListedRoots, chunk_key, collect, live_tree, put_tree};
use store::{ChunkStore, CollectOptions, Domain, LocalOptions, LocalStore};
use types::Progress;

const CHUNKS_PER_SNAPSHOT: u32 = 250;

fn chunk(snapshot: u32, number: u32) -> Vec<u8> {
    // Every tenth chunk is shared with the snapshot before.
    let snapshot = if number.is_multiple_of(10) { snapshot - snapshot % 2 } else { snapshot };
    let mut plain = vec![7; 100];
    plain[..4].copy_from_slice(&snapshot.to_le_bytes());
    plain[4..8].copy_from_slice(&number.to_le_bytes());
    plain
}

#[test]
fn half_of_many_snapshots_are_dropped() {
    let snapshots: u32 = if std::env::var_os("BRANT_TEST_FULL").is_some() { 4_000 } else { 200 };
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let options = LocalOptions { pack_bytes: 4 << 20, reserve_bytes: 0, ..LocalOptions::default() };
    let store = LocalStore::open(directory.path(), options).unwrap();
    let own = Domain::OWN.into();
    let mut live = Vec::new();
    for snapshot in 0..snapshots {
        let chunks: Vec<_> = (0..CHUNKS_PER_SNAPSHOT).map(|number| chunk(snapshot, number)).collect();
        let root = put_tree(&*store, Domain::OWN, &chunks);
        if snapshot % 2 == 0 {
            live.push(live_tree(root, chunks.len(), &own));
        }
    }
    store.commit().unwrap();
    let before = store.statistics().unwrap();
    let report = collect(&*store, &live).unwrap();
    let live_chunks = u64::from(CHUNKS_PER_SNAPSHOT) * u64::from(snapshots / 2);
    assert_eq!(report.live_objects, live_chunks + u64::from(snapshots / 2));
    assert!(report.memory_bytes < 64 * live_chunks, "{report:?}");
    let after = store.statistics().unwrap();
    assert_eq!(after.objects, report.live_objects);
    assert_eq!(before.objects, report.live_objects + report.dead_objects);
    for (snapshot, number) in [(0, 0), (0, 1), (2, 249), (snapshots - 2, 7)] {
        assert!(store.contains(&chunk_key(&chunk(snapshot, number)), &own).unwrap());
    }
    assert!(store.contains(&chunk_key(&chunk(1, 10)), &own).unwrap(), "it is shared with one that lives");
    assert!(!store.contains(&chunk_key(&chunk(1, 1)), &own).unwrap());
    let again = store.collect(&ListedRoots(live), &CollectOptions::default(), &Progress::default()).unwrap();
    assert_eq!((again.dead_objects, again.removed_packs), (0, 0));
    let rebuilt = {
        drop(store);
        LocalStore::rebuild_index(directory.path()).unwrap()
    };
    assert_eq!(rebuilt.damages, 0);
    let store = LocalStore::open(directory.path(), options).unwrap();
    assert_eq!(store.statistics().unwrap().objects, report.live_objects, "the packs say the same as the index");
}

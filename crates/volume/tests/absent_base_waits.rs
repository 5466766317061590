//! Over a base that is elsewhere, reads and sealing wait for what they need and for nothing else; writes never wait.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fixture::{Gate, Node, Through, noise, read, read_all, run};
use store::{ChunkStore, Domain, Domains, MemoryStore, Origin};
use types::{CHUNK_BYTES, MAX_DISK_BYTES, Name, Progress, SnapshotId};
use volume::{BlockDevice, DeviceError, Durability, ExtentKind, Readiness, TreeBase, Volume, VolumeError, Volumes};

const CHUNK: u64 = CHUNK_BYTES as u64;
const CHUNKS: u64 = 600;
/// The last chunk is a part of one.
const SIZE: u64 = CHUNKS * CHUNK - 512;

/// The trust domain of what is fetched.
const THEIRS: Domain = Domain(7);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A lazy clone of a disk that another node has sealed.
struct Lazy {
    node: Node,
    gate: Arc<Gate>,
    base: TreeBase,
    content: Vec<u8>,
}

impl Lazy {
    fn new() -> Self {
        let elsewhere = Node::new();
        let volumes = elsewhere.open();
        let disk = volumes.create(&name("origin"), SIZE).unwrap();
        let mut content = vec![0; usize::try_from(SIZE).unwrap()];
        // Chunks 0 to 2, 300 and the last; the rest is a hole.
        for (chunk, chunks) in [(0, 3), (300, 1), (CHUNKS - 1, 1)] {
            let start = usize::try_from(chunk * CHUNK).unwrap();
            let end = (start + chunks * CHUNK_BYTES).min(content.len());
            content[start..end].copy_from_slice(&noise(chunk + 1, end - start));
            disk.write(chunk * CHUNK, &content[start..end], Durability::Process).unwrap();
        }
        let frozen = volumes.freeze(&[disk], |_| Vec::new()).unwrap().remove(0);
        let sealed = run(volumes.seal(frozen.id(), &Progress::default())).unwrap();
        let here = Arc::new(MemoryStore::new());
        let gate = Gate::new(elsewhere.store.clone(), here.clone());
        let node = Node::with_source(here, Arc::new(Through(gate.clone())));
        let origin = Some(Origin { snapshot: SnapshotId([1; 32]), disk: 0 });
        let base = TreeBase { origin, domains: Domains::new(&[THEIRS, Domain::OWN]), written: Domain::OWN, ..sealed };
        Self { node, gate, base, content }
    }

    fn clone(&self) -> (Arc<Volumes>, Arc<Volume>) {
        let volumes = self.node.open();
        let clone = volumes.clone_tree(&name("clone"), self.base.clone()).unwrap();
        (volumes, clone)
    }

    fn fetched(&self) -> usize {
        self.gate.fetched.load(Ordering::SeqCst)
    }
}

#[test]
fn a_read_waits_and_then_has_the_bytes() {
    let lazy = Lazy::new();
    let (_volumes, clone) = lazy.clone();
    let mut buffer = vec![0; 4096];
    assert_eq!(clone.try_read(0, &mut buffer).unwrap(), Readiness::Wait);
    run(async {
        let reading = tokio::spawn(clone.read(CHUNK - 2048, 4096));
        lazy.gate.until_waiting(1).await;
        assert!(!reading.is_finished());
        lazy.gate.open();
        let start = CHUNK_BYTES - 2048;
        assert_eq!(reading.await.unwrap().unwrap(), lazy.content[start..start + 4096]);
        // The root, a leaf, and two chunks: no more.
        assert_eq!(lazy.fetched(), 4);
        assert_eq!(clone.try_read(CHUNK, &mut buffer).unwrap(), Readiness::Ready);
        let all = clone.read(0, lazy.content.len()).await.unwrap();
        assert!(all == lazy.content);
        assert_eq!(clone.missing().unwrap(), volume::Missing::default());
    });
}

#[test]
fn who_reads_on_finds_the_next_chunk_there_already() {
    let lazy = Lazy::new();
    lazy.gate.open();
    let (_volumes, clone) = lazy.clone();
    run(async {
        clone.read(0, 4096).await.unwrap();
        assert_eq!(lazy.fetched(), 3, "the root, a leaf and a chunk: nobody reads on yet");
        clone.read(CHUNK, 4096).await.unwrap();
        let mut buffer = vec![0; CHUNK_BYTES];
        while clone.try_read(2 * CHUNK, &mut buffer).unwrap() == Readiness::Wait {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(buffer, lazy.content[2 * CHUNK_BYTES..3 * CHUNK_BYTES]);
        assert_eq!(lazy.fetched(), 5);
    });
}

#[test]
fn a_read_in_a_hole_or_of_what_was_written_fetches_no_chunk() {
    let lazy = Lazy::new();
    lazy.gate.open();
    let (_volumes, clone) = lazy.clone();
    run(async {
        assert_eq!(clone.read(10 * CHUNK, 4096).await.unwrap(), vec![0; 4096]);
        assert_eq!(lazy.fetched(), 2, "the nodes that say so");
        clone.write(0, &noise(9, 4096), Durability::Process).unwrap();
        assert_eq!(clone.read(0, 4096).await.unwrap(), noise(9, 4096));
        assert_eq!(lazy.fetched(), 2);
    });
}

#[test]
fn what_is_written_meanwhile_need_not_be_waited_for_and_a_dropped_read_waits_no_more() {
    let lazy = Lazy::new();
    let (_volumes, clone) = lazy.clone();
    run(async {
        let dropped = tokio::spawn(clone.read(0, 512));
        lazy.gate.until_waiting(1).await;
        dropped.abort();
        assert!(dropped.await.unwrap_err().is_cancelled());
        assert!(clone.base().root.is_some());
    });
    clone.write(0, &vec![5; 3 * CHUNK_BYTES], Durability::Power).unwrap();
    assert_eq!(read(&*clone, 0, 3 * CHUNK_BYTES), vec![5; 3 * CHUNK_BYTES]);
    assert_eq!(lazy.fetched(), 0);
}

#[test]
fn sealing_waits_for_the_base_of_parts_and_writes_do_not() {
    let lazy = Lazy::new();
    let (volumes, clone) = lazy.clone();
    clone.write(4096, &noise(5, 4096), Durability::Process).unwrap();
    clone.write(SIZE - 512, &noise(6, 512), Durability::Process).unwrap();
    clone.write(300 * CHUNK, &noise(7, CHUNK_BYTES), Durability::Process).unwrap();
    let mut expected = lazy.content.clone();
    expected[4096..8192].copy_from_slice(&noise(5, 4096));
    let end = expected.len();
    expected[end - 512..].copy_from_slice(&noise(6, 512));
    let whole = 300 * CHUNK_BYTES..301 * CHUNK_BYTES;
    expected[whole].copy_from_slice(&noise(7, CHUNK_BYTES));
    let frozen = volumes.freeze(std::slice::from_ref(&clone), |_| Vec::new()).unwrap().remove(0);
    run(async {
        let progress = Arc::new(Progress::default());
        let (sealer, watched) = (volumes.clone(), progress.clone());
        let id = frozen.id();
        let cancelled = tokio::spawn(async move { sealer.seal(id, &watched).await });
        lazy.gate.until_waiting(1).await;
        clone.write(0, &noise(8, 512), Durability::Power).unwrap();
        progress.cancel();
        assert!(matches!(cancelled.await.unwrap(), Err(VolumeError::Cancelled(_))));

        lazy.gate.open();
        let base = volumes.seal(id, &Progress::default()).await.unwrap();
        // The root, three leaves, the chunks at both ends; not chunk 300, which was written whole, nor 1 and 2.
        assert_eq!(lazy.fetched(), 6);
        assert_eq!(base.origin, lazy.base.origin, "what is still absent is asked for at the same place");
        let view = volumes.view(base);
        assert_eq!(view.missing().unwrap(), volume::Missing { chunks: 2, bytes: 2 * CHUNK, nodes: 0 });
        assert!(view.read(0, expected.len()).await.unwrap() == expected);
    });
    expected[..512].copy_from_slice(&noise(8, 512));
    assert!(read_all(&*clone) == expected);
    assert_eq!(clone.status().layers, 1);
}

#[test]
fn a_fold_that_is_put_off_leaves_no_more_layers_and_loses_nothing() {
    let lazy = Lazy::new();
    let (volumes, clone) = lazy.clone();
    let mut expected = lazy.content.clone();
    for round in 0..3_u64 {
        let (first, second) = (noise(5 + round, 4096), noise(50 + round, 512));
        clone.write(4096, &first, Durability::Process).unwrap();
        run(async {
            let progress = Arc::new(Progress::default());
            let (folder, folded, watched) = (volumes.clone(), clone.clone(), progress.clone());
            let fold = tokio::spawn(async move { folder.fold(&folded, &watched).await });
            lazy.gate.until_waiting(1).await;
            while clone.status().layers == 1 {
                tokio::task::yield_now().await;
            }
            // It goes over what is being folded.
            clone.write(4096 + 512, &second, Durability::Process).unwrap();
            progress.cancel();
            assert!(matches!(fold.await.unwrap(), Err(VolumeError::Cancelled(_))));
        });
        assert_eq!(clone.status().layers, 1, "round {round}");
        expected[4096..8192].copy_from_slice(&first);
        expected[4096 + 512..4096 + 1024].copy_from_slice(&second);
    }
    lazy.gate.open();
    run(async {
        assert!(clone.read(0, expected.len()).await.unwrap() == expected);
        volumes.fold(&clone, &Progress::default()).await.unwrap();
        assert!(clone.read(0, expected.len()).await.unwrap() == expected);
    });
}

/// Layers that say the same count twice: a volume that is as large as its journal may be would at once be folded in earnest.
#[test]
fn what_a_fold_that_is_put_off_leaves_is_made_one_before_anybody_else_begins() {
    let lazy = Lazy::new();
    let (volumes, clone) = lazy.clone();
    clone.write(4096, &noise(5, 4096), Durability::Process).unwrap();
    run(async {
        let begin = || {
            let progress = Arc::new(Progress::default());
            let (folder, folded, watched) = (volumes.clone(), clone.clone(), progress.clone());
            (tokio::spawn(async move { folder.fold(&folded, &watched).await }), progress)
        };
        let (first, first_progress) = begin();
        lazy.gate.until_waiting(1).await;
        clone.write(4096 + 512, &noise(6, 512), Durability::Process).unwrap();
        let (second, second_progress) = begin();
        tokio::task::yield_now().await;
        first_progress.cancel();
        assert!(matches!(first.await.unwrap(), Err(VolumeError::Cancelled(_))));
        while second_progress.total_bytes() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(clone.status().layers, 2, "what is folded, and what is written to");
        second_progress.cancel();
        assert!(matches!(second.await.unwrap(), Err(VolumeError::Cancelled(_))));
        assert_eq!(clone.status().layers, 1);
    });
}

#[test]
fn zeroing_a_disk_that_is_elsewhere_fetches_nothing() {
    let lazy = Lazy::new();
    let (volumes, clone) = lazy.clone();
    clone.discard(0, SIZE, Durability::Process).unwrap();
    run(volumes.fold(&clone, &Progress::default())).unwrap();
    assert_eq!((lazy.fetched(), clone.base().root), (0, None));
    assert_eq!(read(&*clone, 0, 4096), [0; 4096]);
}

#[test]
fn extents_and_counts_fetch_nothing() {
    let lazy = Lazy::new();
    let (_volumes, clone) = lazy.clone();
    clone.write(0, &[1; 512], Durability::Process).unwrap();
    clone.write_zeroes(512, 512, Durability::Process).unwrap();
    let kinds = |offset: u64| {
        let extents = clone.extents(offset, SIZE - offset, 100).unwrap();
        extents.iter().map(|extent| (extent.kind, extent.length)).collect::<Vec<_>>()
    };
    let (written, zero) = ((ExtentKind::Written, 512), (ExtentKind::Zero, 512));
    assert_eq!(kinds(0), [written, zero, (ExtentKind::Absent, SIZE - 1024)]);
    assert_eq!(clone.missing().unwrap(), volume::Missing { chunks: 0, bytes: 0, nodes: 1 });
    assert_eq!(lazy.fetched(), 0);
    lazy.gate.open();
    run(clone.read(CHUNK, 512)).unwrap();
    assert_eq!(
        kinds(0),
        [
            written,
            zero,
            (ExtentKind::Absent, CHUNK - 1024),
            (ExtentKind::Local, CHUNK),
            (ExtentKind::Absent, CHUNK),
            (ExtentKind::Hole, 253 * CHUNK),
            (ExtentKind::Absent, SIZE - 256 * CHUNK),
        ]
    );
    assert_eq!(clone.missing().unwrap(), volume::Missing { chunks: 2, bytes: 2 * CHUNK, nodes: 2 });
}

#[test]
fn without_an_origin_what_is_absent_is_damage() {
    let lazy = Lazy::new();
    let volumes = lazy.node.open();
    let clone = volumes.clone_tree(&name("clone"), TreeBase { origin: None, ..lazy.base.clone() }).unwrap();
    let read = run(clone.read(0, 512));
    assert!(matches!(read, Err(DeviceError::Store(store::StoreError::Damaged { .. }))), "{read:?}");
    clone.write(0, &[1; 512], Durability::Process).unwrap();
    assert!(run(volumes.fold(&clone, &Progress::default())).is_err());
    assert_eq!(fixture::read(&*clone, 0, 512), [1; 512]);
}

#[test]
fn what_nobody_will_bring_is_an_error() {
    let lazy = Lazy::new();
    let node = Node::new();
    let clone = node.open().clone_tree(&name("clone"), lazy.base.clone()).unwrap();
    assert!(matches!(run(clone.read(0, 512)), Err(DeviceError::Fetch(store::FetchError::NoSource(_)))));
}

#[test]
fn a_grown_clone_still_finds_its_base() {
    let lazy = Lazy::new();
    lazy.gate.open();
    let (volumes, clone) = lazy.clone();
    volumes.grow(&clone, MAX_DISK_BYTES).unwrap();
    clone.write(MAX_DISK_BYTES - 512, &[3; 512], Durability::Process).unwrap();
    run(async {
        volumes.fold(&clone, &Progress::default()).await.unwrap();
        assert_eq!(lazy.fetched(), 0, "the old tree is lifted, not read");
        assert!(clone.read(0, lazy.content.len()).await.unwrap() == lazy.content);
    });
    assert_eq!(read(&*clone, MAX_DISK_BYTES - 512, 512), [3; 512]);
}

#[test]
fn what_is_fetched_stays_theirs_and_what_is_written_is_our_own() {
    let lazy = Lazy::new();
    lazy.gate.open();
    let (volumes, clone) = lazy.clone();
    clone.write(0, &[1; 512], Durability::Process).unwrap();
    run(volumes.fold(&clone, &Progress::default())).unwrap();
    let here = |root: Option<types::NodeId>, domain: Domain| {
        lazy.node.store.contains(&root.unwrap().into(), &domain.into()).unwrap()
    };
    let (old, new) = (lazy.base.root, clone.base().root);
    assert_eq!([here(old, THEIRS), here(old, Domain::OWN)], [true, false]);
    assert_eq!([here(new, THEIRS), here(new, Domain::OWN)], [false, true]);
    assert!(read(&*clone, 512, 1024) == lazy.content[512..1536]);

    let lost = TreeBase { written: Domain(9), ..lazy.base.clone() };
    let refused = volumes.clone_tree(&name("lost"), lost);
    assert!(matches!(refused, Err(VolumeError::Contradiction { .. })), "it could not read what it had written");
}

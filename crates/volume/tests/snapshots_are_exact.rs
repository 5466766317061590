//! A snapshot is all its disks at one moment between two requests, whoever writes meanwhile; what was cloned from it
//! outlives it; and none of it costs more for a larger disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fixture::{Node, noise, read, read_all, run};
use store::ChunkStore;
use types::{MAX_DISK_BYTES, Name, Progress};
use volume::{BlockDevice, DeviceError, Durability, ExtentKind, VolumeError};

const BLOCK: usize = 4096;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// The number that a block consists of; it must be the same everywhere in it.
fn number(device: &dyn BlockDevice, block: u64) -> u64 {
    let bytes = read(device, block * BLOCK as u64, BLOCK);
    let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    assert!(numbers.iter().all(|number| *number == numbers[0]), "a write is in a snapshot wholly or not at all");
    numbers[0]
}

#[test]
fn under_concurrent_writers() {
    let node = Node::new();
    let volumes = node.open();
    let disks = ["a", "b"].map(|disk| volumes.create(&name(disk), 1 << 20).unwrap());
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for block in 0..2 {
            let (disks, stop, written) = (&disks, &stop, &written);
            scope.spawn(move || {
                let mut next = 1_u64;
                while !stop.load(Ordering::Relaxed) {
                    // First the one disk, then the other: no snapshot may have the second write without the first.
                    for disk in disks {
                        let data = next.to_le_bytes().repeat(BLOCK / 8);
                        disk.write(block * BLOCK as u64, &data, Durability::Process).unwrap();
                    }
                    next += 1;
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut snapshots = Vec::new();
        while snapshots.len() < 30 {
            let before = written.load(Ordering::Relaxed);
            let pair = volumes.freeze(&disks, |_| Vec::new()).unwrap();
            let numbers = [0, 1].map(|block| [number(&*pair[0], block), number(&*pair[1], block)]);
            for [first, second] in numbers {
                assert!(second <= first && first <= second + 1, "{first} on one disk, {second} on the other");
            }
            snapshots.push((pair, numbers));
            while written.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            if snapshots.len() % 10 == 0 {
                // Sealing changes nothing of what is read, also of older and newer snapshots.
                let disk = &snapshots[snapshots.len() - 5].0[0];
                run(volumes.seal(disk.id(), &Progress::default())).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        for (pair, numbers) in &snapshots {
            for (side, disk) in pair.iter().enumerate() {
                let found = [0, 1].map(|block| number(&**disk, block));
                assert_eq!(found, [numbers[0][side], numbers[1][side]]);
            }
        }
    });
}

#[test]
fn further_records_are_made_in_the_same_step() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("a"), 1 << 20).unwrap();
    disk.write(0, &[1; 512], Durability::Process).unwrap();
    let too_long = |_: &[types::FrozenId]| vec![("version/x".to_owned(), Some(vec![0; 2 << 20]))];
    assert!(matches!(volumes.freeze(std::slice::from_ref(&disk), too_long), Err(VolumeError::Store(_))));
    assert_eq!(node.store.roots().list("frozen/"), Vec::new(), "all or none");
    assert_eq!(disk.status().layers, 1);
    disk.write(512, &[2; 512], Durability::Process).unwrap();
    let frozen = volumes
        .freeze(std::slice::from_ref(&disk), |ids| vec![("version/x".to_owned(), Some(ids[0].0.to_vec()))])
        .unwrap()
        .remove(0);
    assert_eq!(node.store.roots().get("version/x"), Some(frozen.id().0.to_vec()));
    assert_eq!(read(&*frozen, 0, 1024), [[1; 512], [2; 512]].concat());
    let twice = volumes.freeze(&[disk.clone(), disk], |_| Vec::new());
    assert!(matches!(twice, Err(VolumeError::Repeated(_))));
}

#[test]
fn a_clone_outlives_its_source() {
    let node = Node::new();
    let volumes = node.open();
    let source = volumes.create(&name("source"), 1 << 20).unwrap();
    let data = noise(1, 1 << 20);
    source.write(0, &data, Durability::Process).unwrap();
    let frozen = volumes.freeze(std::slice::from_ref(&source), |_| Vec::new()).unwrap().remove(0);
    let clone = volumes.clone_frozen(&name("clone"), frozen.id()).unwrap();
    source.write(0, &noise(2, 4096), Durability::Process).unwrap();
    clone.write(8192, &noise(3, 4096), Durability::Process).unwrap();
    let mut expected = data;
    expected[8192..12288].copy_from_slice(&noise(3, 4096));
    let layers = || node.store.roots().list("layer/").len();
    assert_eq!((layers(), node.journals().len()), (3, 2));

    volumes.remove(&name("source")).unwrap();
    assert_eq!(layers(), 2, "the layer that was only the source's is gone");
    volumes.forget_frozen(frozen.id()).unwrap();
    assert_eq!((layers(), node.journals().len()), (2, 2), "the shared one is not");
    assert!(matches!(source.try_read(0, &mut [0; 512]), Err(DeviceError::Closed)));
    assert!(matches!(source.write(0, &[0; 512], Durability::Process), Err(DeviceError::Closed)));
    assert!(matches!(volumes.remove(&name("source")), Err(VolumeError::NotFound(_))));
    assert!(read_all(&*clone) == expected);
    drop((volumes, clone));

    let volumes = node.open();
    let clone = volumes.get(&name("clone")).unwrap();
    assert!(read_all(&*clone) == expected);
    run(volumes.fold(&clone, &Progress::default())).unwrap();
    assert!(read_all(&*clone) == expected);
    assert_eq!((node.journals().len(), clone.status().journal_bytes), (0, 0));
    let status = node.open().get(&name("clone")).unwrap().status();
    assert_eq!((status.dirty_bytes, status.layers, status.base), (0, 1, clone.base()));
}

#[test]
fn whoever_reads_one_goes_on_once_it_is_sealed_and_forgotten() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("a"), 1 << 20).unwrap();
    let data = noise(1, 1 << 20);
    disk.write(0, &data, Durability::Process).unwrap();
    let freeze = || volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
    let sealed = freeze();
    // One with a layer of its own, as the other's are sealed for both.
    disk.write(0, &noise(2, BLOCK), Durability::Process).unwrap();
    let dropped = freeze();
    disk.write(0, &noise(3, 1 << 20), Durability::Process).unwrap();
    run(volumes.seal(sealed.id(), &Progress::default())).unwrap();
    for frozen in [&sealed, &dropped] {
        volumes.forget_frozen(frozen.id()).unwrap();
        assert!(volumes.frozen(frozen.id()).is_none());
    }
    run(volumes.fold(&disk, &Progress::default())).unwrap();
    assert!(read_all(&*sealed) == data);
    assert!(matches!(run(dropped.read(0, BLOCK)), Err(DeviceError::Closed)), "what it was is nowhere any more");
}

#[test]
fn the_largest_disk_costs_what_is_written() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("large"), MAX_DISK_BYTES).unwrap();
    let last = MAX_DISK_BYTES - 512;
    disk.write(last, &[7; 512], Durability::Process).unwrap();
    let frozen = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
    let clone = volumes.clone_frozen(&name("clone"), frozen.id()).unwrap();
    assert_eq!(read(&*clone, last, 512), [7; 512]);
    let base = run(volumes.seal(frozen.id(), &Progress::default())).unwrap();
    assert_eq!(node.store.statistics().unwrap().objects, 1 + 4, "a chunk, and a node on each of four levels");
    assert_eq!(clone.base(), base, "what stood on the same layers stands on the tree now");
    assert_eq!(node.journals().len(), 0);

    let extents = clone.extents(0, MAX_DISK_BYTES, 10).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.kind).collect::<Vec<_>>(), [ExtentKind::Hole, ExtentKind::Local]);
    clone.discard(0, MAX_DISK_BYTES, Durability::Process).unwrap();
    let extents = clone.extents(0, MAX_DISK_BYTES, 10).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.kind).collect::<Vec<_>>(), [ExtentKind::Zero]);
    run(volumes.fold(&clone, &Progress::default())).unwrap();
    assert_eq!(clone.base().root, None, "a disk of zeroes is a hole");
    assert_eq!(read(&*disk, last, 512), [7; 512]);
    assert_eq!(read(&*volumes.view(base), last, 512), [7; 512]);
}

#[test]
fn journals_that_have_grown_are_folded_while_writes_go_on() {
    let node = Node::new();
    let mut options = volume::VolumeOptions::default();
    options.journal_limit_bytes = 100_000;
    let source = Arc::new(store::NoSource);
    let volumes = volume::Volumes::open(node.directory.path(), node.store.clone(), source, options).unwrap();
    let disk = volumes.create(&name("a"), 1 << 20).unwrap();
    assert!(volumes.needs_fold().is_empty());
    let first = noise(1, 200_000 / 512 * 512);
    disk.write(0, &first, Durability::Process).unwrap();
    assert_eq!(volumes.needs_fold().len(), 1);
    let progress = Progress::default();
    progress.cancel();
    assert!(matches!(run(volumes.fold(&disk, &progress)), Err(VolumeError::Cancelled(_))));
    let folded = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writes = 0;
            while writes == 0 || !folded.load(Ordering::Relaxed) {
                disk.write(512, &noise(2, 512), Durability::Process).unwrap();
                writes += 1;
            }
        });
        run(volumes.fold(&disk, &Progress::default())).unwrap();
        folded.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
    let mut expected = first;
    expected[512..1024].copy_from_slice(&noise(2, 512));
    assert!(read(&*disk, 0, expected.len()) == expected);
    run(volumes.fold(&disk, &Progress::default())).unwrap();
    assert!(volumes.needs_fold().is_empty());
    assert!(read(&*disk, 0, expected.len()) == expected);
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let node = Node::new();
    let volumes = node.open();
    for size in [0, 511, MAX_DISK_BYTES + 512] {
        assert!(matches!(volumes.create(&name("bad"), size), Err(VolumeError::Size(_))), "{size}");
    }
    let disk = volumes.create(&name("a"), 4096).unwrap();
    assert!(matches!(volumes.create(&name("a"), 4096), Err(VolumeError::Exists(_))));
    let out = |result: Result<(), DeviceError>| matches!(result, Err(DeviceError::OutOfRange { .. }));
    for (offset, length) in [(4096, 512), (0, 4608), (1, 512), (0, 100), (u64::MAX - 511, 512)] {
        let data = vec![0; usize::try_from(length).unwrap()];
        assert!(out(disk.write(offset, &data, Durability::Process)));
        assert!(out(disk.write_zeroes(offset, length, Durability::Process)));
        assert!(out(disk.discard(offset, length, Durability::Process)));
        assert!(out(disk.try_read(offset, &mut data.clone()).map(drop)));
        assert!(out(run(disk.read(offset, data.len())).map(drop)));
        assert!(out(disk.extents(offset, length, 1).map(drop)));
    }
    for result in [disk.write(4096, &[], Durability::Power), disk.discard(0, 0, Durability::Power), disk.flush()] {
        result.unwrap();
    }
    assert_eq!(disk.status().journal_bytes, 0);
    let frozen = volumes.freeze(&[disk], |_| Vec::new()).unwrap().remove(0);
    assert!(matches!(frozen.write(0, &[0; 512], Durability::Process), Err(DeviceError::ReadOnly)));
    assert!(frozen.read_only());
}

#[test]
fn a_volume_that_was_not_written_to_is_where_it_was() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("a"), 1 << 20).unwrap();
    disk.write(0, &noise(1, BLOCK), Durability::Process).unwrap();
    let before = disk.position();
    let frozen = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap();
    run(volumes.seal(frozen[0].id(), &Progress::default())).unwrap();
    run(volumes.fold(&disk, &Progress::default())).unwrap();
    assert_eq!(disk.position(), before, "neither snapshots nor folding change it");
    drop((volumes, disk));
    let volumes = node.open();
    let disk = volumes.get(&name("a")).unwrap();
    assert_eq!(disk.position(), before, "nor a restart");
    disk.discard(0, BLOCK as u64, Durability::Process).unwrap();
    let written = disk.position();
    assert_ne!(written, before);
    volumes.revert(&disk, volume::RevertTo::Frozen(frozen[0].id()), 1, "").unwrap();
    disk.write(0, &noise(1, BLOCK), Durability::Process).unwrap();
    assert!(disk.position() != before && disk.position() != written, "a volume that was reverted is another one");
}

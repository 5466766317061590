//! A volume that was removed, and what one was before it was reverted, can be taken back: all of it, also after a
//! restart and whatever was folded meanwhile; and its space is given back once it is gone for good.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::sync::Arc;

use fixture::{Node, noise, read, read_all, run};
use types::{Name, Progress, VolumeId};
use volume::{BlockDevice, DeviceError, Durability, RevertTo, VolumeError, Volumes};

const SIZE: usize = 1 << 20;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn write(volumes: &Volumes, volume: &str, seed: u64) -> Vec<u8> {
    let data = noise(seed, SIZE);
    volumes.get(&name(volume)).unwrap().write(0, &data, Durability::Process).unwrap();
    data
}

fn deleted_ids(volumes: &Volumes) -> Vec<VolumeId> {
    volumes.deleted().iter().map(volume::Deleted::id).collect()
}

#[test]
fn a_removed_volume_is_restored_under_any_free_name() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("a"), SIZE as u64).unwrap();
    let data = write(&volumes, "a", 1);
    let deleted = volumes.delete(&name("a"), 1000, "removed").unwrap();
    assert_eq!((deleted.id(), deleted.name(), deleted.deleted_ms()), (disk.id(), &name("a"), 1000));
    assert!(volumes.get(&name("a")).is_none() && volumes.list().is_empty());
    assert!(matches!(disk.write(0, &[0; 512], Durability::Process), Err(DeviceError::Closed)));
    assert!(matches!(disk.try_read(0, &mut [0; 512]), Err(DeviceError::Closed)));
    assert!(matches!(volumes.delete(&name("a"), 1000, ""), Err(VolumeError::NotFound(_))));
    assert!(volumes.own_journal_bytes(disk.id()) > SIZE as u64);

    // The name is free at once, and taken then.
    volumes.create(&name("a"), 4096).unwrap();
    assert!(matches!(volumes.restore(disk.id(), &name("a")), Err(VolumeError::Exists(_))));
    drop(volumes);
    let volumes = node.open();
    let found = volumes.deleted();
    assert_eq!((found.len(), found[0].id(), found[0].note(), found[0].deleted_ms()), (1, disk.id(), "removed", 1000));
    let restored = volumes.restore(disk.id(), &name("b")).unwrap();
    assert!(read_all(&*restored) == data && restored.id() == disk.id());
    assert!(matches!(volumes.restore(disk.id(), &name("c")), Err(VolumeError::UnknownDeleted(_))));
    restored.write(0, &noise(2, 4096), Durability::Process).unwrap();
    drop((volumes, restored));
    let volumes = node.open();
    assert!(deleted_ids(&volumes).is_empty());
    let restored = volumes.get(&name("b")).unwrap();
    assert!(read(&*restored, 0, 4096) == noise(2, 4096) && read(&*restored, 4096, SIZE - 4096) == data[4096..]);
}

#[test]
fn who_still_holds_a_removed_volume_cannot_change_the_one_that_was_restored() {
    let node = Node::new();
    let volumes = node.open();
    let held = volumes.create(&name("a"), SIZE as u64).unwrap();
    let data = write(&volumes, "a", 1);
    volumes.delete(&name("a"), 1000, "").unwrap();
    let restored = volumes.restore(held.id(), &name("a")).unwrap();
    assert!(matches!(held.write(0, &[7; 512], Durability::Process), Err(DeviceError::Closed)));
    assert!(volumes.grow(&held, 2 * SIZE as u64).is_err());
    assert!(run(volumes.fold(&held, &Progress::default())).is_err());
    assert!(volumes.freeze(std::slice::from_ref(&held), |_| Vec::new()).is_err());
    assert!(read_all(&*restored) == data);
    run(volumes.fold(&restored, &Progress::default())).unwrap();
    assert!(read_all(&*restored) == data);
}

#[test]
fn what_expires_gives_its_space_back_and_nothing_else_does() {
    let node = Node::new();
    let volumes = node.open();
    for (volume, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        volumes.create(&name(volume), SIZE as u64).unwrap();
        write(&volumes, volume, seed);
    }
    let shared = volumes.freeze(&[volumes.get(&name("b")).unwrap()], |_| Vec::new()).unwrap().remove(0);
    volumes.delete(&name("a"), 1000, "").unwrap();
    let b = volumes.delete(&name("b"), 2000, "").unwrap().id();
    let c = volumes.delete(&name("c"), 3000, "").unwrap().id();
    assert_eq!(node.journals().len(), 3);
    assert!(volumes.expire(999).unwrap().is_empty());
    assert_eq!(volumes.expire(2000).unwrap().len(), 2);
    assert_eq!(deleted_ids(&volumes), [c]);
    assert_eq!(node.journals().len(), 2, "what a snapshot holds as well stays");
    assert!(read_all(&*shared) == noise(2, SIZE));
    assert!(matches!(volumes.purge(b), Err(VolumeError::UnknownDeleted(_))));
    volumes.purge(c).unwrap();
    assert_eq!(node.journals().len(), 1);
    drop(volumes);
    let volumes = node.open();
    assert!(volumes.deleted().is_empty() && volumes.list().is_empty());
    assert!(read_all(&*volumes.frozen(shared.id()).unwrap()) == noise(2, SIZE));
}

#[test]
fn a_deleted_volume_moves_to_the_tree_that_its_layers_were_folded_into() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("a"), SIZE as u64).unwrap();
    let data = write(&volumes, "a", 1);
    let frozen = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
    volumes.delete(&name("a"), 1000, "note").unwrap();
    run(volumes.seal(frozen.id(), &Progress::default())).unwrap();
    volumes.forget_frozen(frozen.id()).unwrap();
    assert_eq!(node.journals().len(), 0);
    drop(volumes);
    let volumes = node.open();
    assert_eq!(volumes.deleted()[0].note(), "note", "it is still a deleted one");
    assert!(read_all(&*volumes.restore(disk.id(), &name("a")).unwrap()) == data);
}

#[test]
fn reverting_keeps_what_was_and_can_be_reverted_itself() {
    for (sealed, reopened) in [(false, false), (false, true), (true, false), (true, true)] {
        let node = Node::new();
        let mut volumes = node.open();
        let disk = volumes.create(&name("a"), SIZE as u64).unwrap();
        let first = write(&volumes, "a", 1);
        let frozen = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
        let to = if sealed {
            RevertTo::Tree(run(volumes.seal(frozen.id(), &Progress::default())).unwrap())
        } else {
            RevertTo::Frozen(frozen.id())
        };
        let second = write(&volumes, "a", 2);
        volumes.grow(&disk, 2 * SIZE as u64).unwrap();
        let kept = volumes.revert(&disk, to, 5000, "before").unwrap();
        assert!(read_all(&*disk) == first, "the same volume, with the size that it had");
        disk.write(512, &[9; 512], Durability::Process).unwrap();
        if reopened {
            drop((disk, volumes));
            volumes = node.open();
        }
        let disk = volumes.get(&name("a")).unwrap();
        assert_eq!(read(&*disk, 512, 512), [9; 512]);
        assert!(read(&*disk, 1024, SIZE - 1024) == first[1024..]);
        assert_eq!(deleted_ids(&volumes), [kept.id()]);
        assert_eq!(volumes.deleted()[0].status().size_bytes, 2 * SIZE as u64);

        let undone = volumes.revert(&disk, RevertTo::Deleted(kept.id()), 6000, "back").unwrap();
        assert!(read(&*disk, 0, SIZE) == second && disk.size_bytes() == 2 * SIZE as u64);
        disk.write(0, &[8; 512], Durability::Process).unwrap();
        let kept = volumes.restore(kept.id(), &name("kept")).unwrap();
        assert!(read(&*kept, 0, SIZE) == second, "what is reverted to stays as it is");
        kept.write(0, &[7; 512], Durability::Process).unwrap();
        assert_eq!(read(&*disk, 0, 512), [8; 512]);
        let undone = volumes.restore(undone.id(), &name("undone")).unwrap();
        assert_eq!(read(&*undone, 512, 512), [9; 512]);
        assert!(read(&*volumes.frozen(frozen.id()).unwrap(), 0, SIZE) == first);
        drop((disk, kept, undone, volumes));
        let volumes = node.open();
        assert_eq!(read(&*volumes.get(&name("a")).unwrap(), 0, 512), [8; 512]);
        assert_eq!(read(&*volumes.get(&name("kept")).unwrap(), 0, 512), [7; 512]);
        assert_eq!(read(&*volumes.get(&name("undone")).unwrap(), 512, 512), [9; 512]);
    }
}

#[test]
fn a_revert_to_what_is_not_there_changes_nothing() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("a"), SIZE as u64).unwrap();
    let data = write(&volumes, "a", 1);
    let nowhere = RevertTo::Frozen(types::FrozenId([1; 16]));
    assert!(matches!(volumes.revert(&disk, nowhere, 1, ""), Err(VolumeError::UnknownFrozen(_))));
    let nobody = RevertTo::Deleted(VolumeId([1; 16]));
    assert!(matches!(volumes.revert(&disk, nobody, 1, ""), Err(VolumeError::UnknownDeleted(_))));
    assert!(read_all(&*disk) == data && volumes.deleted().is_empty());
    assert_eq!(disk.status().layers, 1);
}

#[test]
fn a_write_during_a_revert_is_in_one_of_the_two() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("a"), SIZE as u64).unwrap();
    let frozen = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
    std::thread::scope(|scope| {
        let writer = {
            let disk = Arc::clone(&disk);
            scope.spawn(move || {
                for number in 1..=2000_u64 {
                    disk.write(0, &number.to_le_bytes().repeat(64), Durability::Process).unwrap();
                }
            })
        };
        while !writer.is_finished() {
            volumes.revert(&disk, RevertTo::Frozen(frozen.id()), 1, "").unwrap();
        }
    });
    let number = |device: &dyn BlockDevice| {
        let bytes = read(device, 0, 512);
        let numbers: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert!(numbers.iter().all(|number| *number == numbers[0]));
        numbers[0]
    };
    let mut seen = vec![number(&*disk)];
    for (place, deleted) in deleted_ids(&volumes).into_iter().enumerate() {
        seen.push(number(&*volumes.restore(deleted, &name(&format!("kept-{place}"))).unwrap()));
    }
    assert!(seen.contains(&2000), "the last write is somewhere");
    assert!(read_all(&*frozen).iter().all(|byte| *byte == 0), "and none is in the snapshot");
}

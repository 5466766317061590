//! A volume begins as a snapshot's disk, or as what another volume is now, and may be larger from the beginning; where it
//! cannot be made, nothing is left of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use fixture::{Node, noise, read_all, run};
use types::{Name, Progress};
use volume::{BlockDevice, CloneOf, Durability, VolumeError};

const SIZE: u64 = 1 << 20;

const BYTES: usize = 1 << 20;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[test]
fn a_copy_is_what_the_volume_was_at_that_moment() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("disk"), SIZE).unwrap();
    let first = noise(1, BYTES / 2);
    disk.write(0, &first, Durability::Process).unwrap();
    let copy = volumes.clone_disk(&name("copy"), CloneOf::Volume(disk.clone()), None).unwrap();
    disk.write(0, &noise(2, BYTES / 4), Durability::Process).unwrap();
    copy.write(SIZE - 4096, &noise(3, 4096), Durability::Process).unwrap();
    let expected = [first, vec![0; BYTES / 2 - 4096], noise(3, 4096)].concat();
    assert!(read_all(&*copy) == expected, "neither sees what the other has written since");
    assert!(read_all(&*disk)[BYTES / 2..].iter().all(|byte| *byte == 0));
    drop((disk, copy, volumes));
    let volumes = node.open();
    volumes.remove(&name("disk")).unwrap();
    assert!(read_all(&*volumes.get(&name("copy")).unwrap()) == expected, "it outlives the volume, and the process");
}

#[test]
fn it_may_be_larger_and_not_smaller() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("disk"), SIZE).unwrap();
    disk.write(0, &noise(1, BYTES), Durability::Process).unwrap();
    let frozen = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
    let sealed = run(volumes.seal(frozen.id(), &Progress::default())).unwrap();
    let origins = [CloneOf::Volume(disk.clone()), CloneOf::Frozen(frozen.id()), CloneOf::Tree(sealed)];
    for (number, of) in origins.into_iter().enumerate() {
        let clone = name(&format!("clone-{number}"));
        let refused = volumes.clone_disk(&clone, of.clone(), Some(SIZE - 512)).unwrap_err();
        assert!(matches!(refused, VolumeError::TooSmall { size_bytes: SIZE, .. }), "{refused}");
        let refused = volumes.clone_disk(&clone, of.clone(), Some(SIZE + 1)).unwrap_err();
        assert!(matches!(refused, VolumeError::Size(_)), "{refused}");
        assert!(volumes.get(&clone).is_none(), "nothing is left of what was refused");
        let refused = volumes.clone_disk(&name("disk"), of.clone(), None).unwrap_err();
        assert!(matches!(refused, VolumeError::Exists(_)), "{refused}");
        let made = volumes.clone_disk(&clone, of, Some(2 * SIZE)).unwrap();
        assert_eq!(made.size_bytes(), 2 * SIZE);
        assert!(read_all(&*made) == [noise(1, BYTES), vec![0; BYTES]].concat());
    }
    drop((disk, frozen, volumes));
    let volumes = node.open();
    assert_eq!(volumes.get(&name("clone-1")).unwrap().size_bytes(), 2 * SIZE, "the size survives");
}

//! A full file system stops writes cleanly: what was acknowledged stays, reads go on, and so do writes once there is
//! room. Needs root, to mount a small tmpfs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use fixture::{Node, noise, read, run};
use types::{Name, Progress};
use volume::{BlockDevice, DeviceError, Durability};

/// A tmpfs of 2 MiB, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = ["-t", "tmpfs", "-o", "size=2m", "brant-test"];
        let mounted = Command::new("mount").args(options).arg(directory.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.path().display());
    }
}

fn fill(path: &Path, bytes: usize) {
    std::fs::File::create(path).unwrap().write_all(&vec![1; bytes]).unwrap();
}

#[test]
fn writes_stop_and_go_on() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("SKIPPED: writes_stop_and_go_on needs root, to mount a tmpfs");
        return;
    };
    const BLOCK: usize = 10 * 512;
    let node = Node::new();
    let filler = disk.0.path().join("filler");
    fill(&filler, 1 << 20);
    let name: Name = "disk".parse().unwrap();
    let volumes = node.open_in(disk.0.path());
    let volume = volumes.create(&name, 64 << 20).unwrap();
    let block = |number: u64| noise(number, BLOCK);
    let mut blocks = 0;
    let error = loop {
        match volume.write(blocks * BLOCK as u64, &block(blocks), Durability::Process) {
            Ok(()) => blocks += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, DeviceError::Full), "{error:?}");
    assert!(blocks > 50);
    let check = |volume: &dyn BlockDevice, blocks: u64| {
        for number in 0..blocks {
            assert!(read(volume, number * BLOCK as u64, BLOCK) == block(number), "block {number}");
        }
        assert!(read(volume, blocks * BLOCK as u64, BLOCK) == vec![0; BLOCK], "what failed is not there");
    };
    check(&*volume, blocks);
    assert!(matches!(volume.write(0, &vec![9; 1 << 20], Durability::Process), Err(DeviceError::Full)));
    volume.flush().unwrap();
    check(&*volume, blocks);
    let volumes = node.open_in(disk.0.path());
    let volume = volumes.get(&name).unwrap();
    check(&*volume, blocks);

    std::fs::remove_file(&filler).unwrap();
    volume.write(blocks * BLOCK as u64, &block(blocks), Durability::Power).unwrap();
    check(&*volume, blocks + 1);
    // Folding gives all of the room back.
    run(volumes.fold(&volume, &Progress::default())).unwrap();
    assert_eq!(std::fs::read_dir(disk.0.path().join("layers")).unwrap().count(), 0);
    check(&*node.open_in(disk.0.path()).get(&name).unwrap(), blocks + 1);
}

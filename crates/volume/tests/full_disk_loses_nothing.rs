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
use volume::{BlockDevice, DeviceError, Durability, Protection};

/// A tmpfs, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let options = ["-t", "tmpfs", "-o", &size, "brant-test"];
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
    let Some(disk) = SmallDisk::mount(2) else {
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

/// A guest that overwrites the same data for ever, faster than they can be folded, is slowed down: no write fails, though
/// the journals of all writes would fill the file system many times over.
#[test]
fn a_writer_is_slowed_before_the_disk_is_full() {
    let Some(disk) = SmallDisk::mount(64) else {
        eprintln!("SKIPPED: a_writer_is_slowed_before_the_disk_is_full needs root, to mount a tmpfs");
        return;
    };
    const BLOCK: usize = 64 << 10;
    const BLOCKS: u64 = 128;
    const WRITES: u64 = 8 * 512;
    let node = Node::new();
    let volumes = node.open_in(disk.0.path());
    let volume = volumes.create(&"disk".parse().unwrap(), BLOCKS * BLOCK as u64).unwrap();
    let content = |number: u64| noise(number, 16).repeat(BLOCK / 16);
    let writer = std::thread::spawn({
        let volume = volume.clone();
        move || {
            for number in 0..WRITES {
                volume.write(number % BLOCKS * BLOCK as u64, &content(number), Durability::Process)?;
            }
            Ok::<_, DeviceError>(())
        }
    });
    run(async {
        while !writer.is_finished() {
            // The writer says when; a last time nobody says anything.
            let _ = tokio::time::timeout(std::time::Duration::from_millis(100), volumes.room_due()).await;
            for (due, _) in volumes.needs_fold() {
                volumes.fold(&due, &Progress::default()).await.unwrap();
            }
        }
    });
    writer.join().unwrap().expect("no write fails");
    for number in WRITES - BLOCKS..WRITES {
        assert!(read(&*volume, number % BLOCKS * BLOCK as u64, BLOCK) == content(number), "block {number}");
    }
}

/// Writes do not fail for the past of a protected volume: its oldest part is given up.
#[test]
fn the_past_makes_room_for_writes() {
    let Some(disk) = SmallDisk::mount(64) else {
        eprintln!("SKIPPED: the_past_makes_room_for_writes needs root, to mount a tmpfs");
        return;
    };
    const BLOCK: usize = 1 << 20;
    let node = Node::new();
    let volumes = node.open_in(disk.0.path());
    let volume = volumes.create(&"disk".parse().unwrap(), 4 * BLOCK as u64).unwrap();
    volumes.protect(&volume, Protection { for_ms: 3_600_000, space_bytes: None }).unwrap();
    let begun = volume.window().unwrap().from_ms;
    run(async {
        for number in 0..200 {
            volume
                .write(number % 4 * BLOCK as u64, &noise(number, BLOCK), Durability::Process)
                .expect("no write fails");
            // As a node does every second.
            volumes.expire_history().unwrap();
            for (due, _) in volumes.needs_fold() {
                volumes.fold(&due, &Progress::default()).await.unwrap();
            }
        }
    });
    let window = volume.window().unwrap();
    assert!(window.from_ms > begun, "some of it was given up");
    assert!(window.bytes > 8 << 20, "and not more than must be: {} bytes", window.bytes);
}

/// What folding, the roots and others need is never written to.
#[test]
fn a_reserve_is_left_when_writes_stop() {
    let Some(disk) = SmallDisk::mount(64) else {
        eprintln!("SKIPPED: a_reserve_is_left_when_writes_stop needs root, to mount a tmpfs");
        return;
    };
    let node = Node::new();
    let volumes = node.open_in(disk.0.path());
    let volume = volumes.create(&"disk".parse().unwrap(), 1 << 30).unwrap();
    let block = noise(1, 1 << 20);
    let written =
        (0..64_u64).take_while(|number| volume.write(number << 20, &block, Durability::Process).is_ok()).count();
    assert!((50..=60).contains(&written), "{written}");
    let status = rustix::fs::statvfs(disk.0.path()).unwrap();
    let left = status.f_bavail * status.f_frsize;
    assert!(left >= 4 << 20, "{left} bytes");
    // What needs no room goes on.
    volume.discard(0, 1 << 20, Durability::Power).unwrap();
    assert!(read(&*volume, 0, 1 << 20) == vec![0; 1 << 20]);
}

//! Every write that was acknowledged is there after kill -9, in the middle of anything.
//!
//! The test runs itself again as a child, which writes, freezes, clones, seals and folds on a store in a directory and
//! says on its standard output what it has done; the parent kills it after a line and looks at what is there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use fixture::{noise, read_all, run};
use store::{ChunkStore, LocalOptions, LocalStore, NoSource};
use types::{Name, Progress};
use volume::{BlockDevice, Durability, VolumeOptions, Volumes};

const DIRECTORY: &str = "BRANT_TEST_KILLED_CHILD";
const SIZE: usize = 1 << 20;
const SECTOR: usize = 512;
/// Where the number of the last write stands.
const COUNTER: usize = SIZE - SECTOR;

fn name() -> Name {
    "disk".parse().unwrap()
}

fn open(directory: &Path) -> (Arc<Volumes>, Arc<LocalStore>) {
    let store = LocalStore::open(directory.join("store"), LocalOptions::default()).unwrap();
    let options = VolumeOptions::default();
    let volumes = Volumes::open(&directory.join("volumes"), store.clone(), Arc::new(NoSource), options).unwrap();
    (volumes, store)
}

/// The n-th write: where and what.
fn write(number: u64) -> (usize, Vec<u8>) {
    let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let sectors = 1 + usize::try_from(number % 40).unwrap();
    let sector = usize::try_from(place).unwrap() % (COUNTER / SECTOR - sectors);
    let data = if number.is_multiple_of(11) { vec![0; sectors * SECTOR] } else { noise(number, sectors * SECTOR) };
    (sector * SECTOR, data)
}

/// The disk after the first writes.
fn content(writes: u64) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for number in 1..=writes {
        let (offset, data) = write(number);
        bytes[offset..offset + data.len()].copy_from_slice(&data);
    }
    bytes[COUNTER..COUNTER + 8].copy_from_slice(&writes.to_le_bytes());
    bytes
}

fn counter(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[COUNTER..COUNTER + 8].try_into().unwrap())
}

/// What the child does until it is killed.
fn child(directory: &Path) {
    let (volumes, _) = open(directory);
    let disk = volumes.get(&name()).unwrap();
    let mut number = counter(&read_all(&*disk));
    let stdout = std::io::stdout();
    loop {
        number += 1;
        let (offset, data) = write(number);
        if number.is_multiple_of(11) {
            disk.write_zeroes(offset as u64, data.len() as u64, Durability::Process).unwrap();
        } else {
            disk.write(offset as u64, &data, Durability::Process).unwrap();
        }
        let mut sector = [0; SECTOR];
        sector[..8].copy_from_slice(&number.to_le_bytes());
        disk.write(COUNTER as u64, &sector, Durability::Process).unwrap();
        // The parent may be gone already: then there is nobody to tell.
        if writeln!(stdout.lock(), "wrote {number}").is_err() {
            return;
        }
        if number.is_multiple_of(16) {
            between(&volumes, number);
        }
    }
}

/// What else happens between writes.
fn between(volumes: &Arc<Volumes>, number: u64) {
    let disk = volumes.get(&name()).unwrap();
    let frozen = volumes
        .freeze(std::slice::from_ref(&disk), |ids| vec![(format!("version/{number}"), Some(ids[0].0.to_vec()))])
        .unwrap()
        .remove(0);
    let clone = format!("clone-{number}").parse().unwrap();
    volumes.clone_frozen(&clone, frozen.id()).unwrap();
    match number % 3 {
        0 => drop(run(volumes.seal(frozen.id(), &Progress::default())).unwrap()),
        1 => run(volumes.fold(&disk, &Progress::default())).unwrap(),
        _ => volumes.remove(&clone).unwrap(),
    }
}

fn start(directory: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "every_acknowledged_write_is_there", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// Runs the child until it has said so many lines, kills it, and returns the last write it acknowledged.
fn run_and_kill(directory: &Path, lines: u64) -> u64 {
    let (mut child, output) = start(directory);
    let mut acknowledged = 0;
    let mut seen = 0;
    for line in output.lines() {
        let line = line.unwrap();
        // The test harness, too, writes to the child's output.
        let Some((_, number)) = line.split_once("wrote ") else { continue };
        acknowledged = number.parse().unwrap();
        seen += 1;
        if seen == lines {
            child.kill().unwrap();
        }
    }
    assert!(seen >= lines, "the child ended by itself");
    child.wait().unwrap();
    acknowledged
}

fn check(directory: &Path, acknowledged: u64) {
    let (volumes, store) = open(directory);
    let bytes = read_all(&*volumes.get(&name()).unwrap());
    let counter = counter(&bytes);
    assert!(counter >= acknowledged, "write {acknowledged} was acknowledged, {counter} is there");
    let mut expected = content(counter);
    if bytes != expected {
        // Killed between a write and its number.
        let (offset, data) = write(counter + 1);
        expected[offset..offset + data.len()].copy_from_slice(&data);
    }
    assert!(bytes == expected, "the disk is not what was written up to {counter}");
    for (record, id) in store.roots().list("version/") {
        let number: u64 = record.strip_prefix("version/").unwrap().parse().unwrap();
        let frozen = volumes.frozen(types::FrozenId(id.try_into().unwrap())).unwrap();
        assert!(read_all(&*frozen) == content(number), "snapshot {number}");
        if let Some(clone) = volumes.get(&format!("clone-{number}").parse().unwrap()) {
            assert!(read_all(&*clone) == content(number), "clone {number}");
        }
    }
}

#[test]
fn every_acknowledged_write_is_there() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return child(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).0.create(&name(), SIZE as u64).unwrap();
    for lines in [1, 5, 16, 17, 40, 48, 49, 63] {
        let acknowledged = run_and_kill(directory.path(), lines);
        check(directory.path(), acknowledged);
    }
}

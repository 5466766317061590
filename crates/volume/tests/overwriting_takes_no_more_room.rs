//! A volume that is overwritten again and again takes a bounded room, although nothing is sealed or folded: its journal is
//! tidied without hashing, and its files are used again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use fixture::{Node, noise, read_all};
use types::Name;
use volume::{BlockDevice, Durability, Promised, Volume, VolumeOptions, Volumes};

const BLOCK: usize = 4096;
const BLOCKS: usize = 512;
const SIZE: usize = BLOCK * BLOCKS;
const SEGMENT: u64 = 64 << 10;
const POOL: u64 = 4 * SEGMENT;

/// A volume, and what it should be.
struct Written {
    volume: Arc<Volume>,
    bytes: Vec<u8>,
    number: u64,
}

impl Written {
    /// Overwrites so many blocks, here and there; some are zeroed and some flushed.
    fn overwrite(&mut self, blocks: usize) {
        for _ in 0..blocks {
            self.number += 1;
            let random = u64::from_le_bytes(*noise(self.number, 8).first_chunk().unwrap());
            let start = usize::try_from(random % BLOCKS as u64).unwrap() * BLOCK;
            if random % 97 == 3 {
                self.volume.write_zeroes(start as u64, BLOCK as u64, Durability::Process).unwrap();
                self.bytes[start..start + BLOCK].fill(0);
                continue;
            }
            let data = noise(self.number, BLOCK);
            self.volume.write(start as u64, &data, Durability::Process).unwrap();
            self.bytes[start..start + BLOCK].copy_from_slice(&data);
            if random % 101 == 5 {
                self.volume.flush().unwrap();
            }
        }
    }
}

fn open(node: &Node) -> Arc<Volumes> {
    let mut options = VolumeOptions::default();
    (options.segment_bytes, options.pool_bytes, options.tidy_in_background) = (SEGMENT, POOL, false);
    Volumes::open(node.directory.path(), node.store.clone(), node.source.clone(), options).unwrap()
}

/// What all files of journals take.
fn room(node: &Node) -> u64 {
    let entries = std::fs::read_dir(node.directory.path().join("layers")).unwrap();
    entries.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// One and a half times what can count, and a few segments: those that are filled, the slack, and those that are kept.
fn bound(live: u64) -> u64 {
    live * 3 / 2 + 6 * SEGMENT + POOL
}

/// What each block takes with its header.
const RECORD: u64 = BLOCK as u64 + 64;

#[test]
fn while_nothing_is_sealed() {
    let node = Node::new();
    let volumes = open(&node);
    let name: Name = "disk".parse().unwrap();
    let volume = volumes.create(&name, SIZE as u64).unwrap();
    let mut written = Written { volume: volume.clone(), bytes: vec![0; SIZE], number: 0 };
    let mut most = 0;
    for _ in 0..16 {
        written.overwrite(BLOCKS / 2);
        volumes.tidy(&volume, Promised::Replace).unwrap();
        most = most.max(room(&node));
    }
    assert!(most <= bound(BLOCKS as u64 * RECORD), "{most} bytes for {SIZE}");
    // A snapshot that nobody seals keeps what it is, and no more.
    let frozen = volumes.freeze(std::slice::from_ref(&volume), |_| Vec::new()).unwrap().remove(0);
    let then = written.bytes.clone();
    for _ in 0..16 {
        written.overwrite(BLOCKS / 2);
        volumes.tidy(&volume, Promised::Replace).unwrap();
        let now = room(&node);
        assert!(now <= bound(2 * BLOCKS as u64 * RECORD), "{now} bytes for twice {SIZE}");
    }
    assert!(read_all(&*volume) == written.bytes && read_all(&*frozen) == then);
    // When it is gone, so is its room.
    volumes.forget_frozen(frozen.id()).unwrap();
    written.overwrite(BLOCKS / 8);
    volumes.tidy(&volume, Promised::Replace).unwrap();
    assert!(room(&node) <= bound(BLOCKS as u64 * RECORD), "{} bytes for {SIZE}", room(&node));
    volume.flush().unwrap();
    drop((volumes, volume, frozen));
    let volumes = open(&node);
    assert!(read_all(&*volumes.get(&name).unwrap()) == written.bytes, "after a start");
}

#[test]
fn its_files_are_used_again() {
    let node = Node::new();
    let volumes = open(&node);
    let volume = volumes.create(&"disk".parse().unwrap(), SIZE as u64).unwrap();
    let mut names = BTreeSet::new();
    for round in 0..64 {
        // About a segment, always the same blocks: nothing counts of the one before.
        for block in 0..SEGMENT / RECORD {
            volume.write(block * BLOCK as u64, &noise(round, BLOCK), Durability::Process).unwrap();
        }
        volumes.tidy(&volume, Promised::Replace).unwrap();
        let entries = std::fs::read_dir(node.directory.path().join("layers")).unwrap();
        names.extend(entries.map(|entry| entry.unwrap().file_name()));
    }
    assert!(names.len() <= 6, "{} files for 64 segments", names.len());
}

//! Disks with known content for the tests of this crate, and what they are compared with.

#![allow(dead_code, clippy::unwrap_used, reason = "every test uses some of this, and fails by panicking")]

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use capture::{CaptureError, ForeignDisk, ForeignExtent};
use format::Shape;
use format::tree::{Found, walk};
use store::{ChunkStore, Domain, Nodes};
use types::{CHUNK_BYTES, NodeId};

/// Whether tools are installed; says loudly which test is skipped where one is not.
pub(crate) fn tools(test: &str, names: &[&str]) -> bool {
    let there = |name: &&str| Command::new(name).arg("--version").output().is_ok();
    match names.iter().find(|name| !there(name)) {
        None => true,
        Some(missing) => {
            // Past the capture of a passing test's output.
            let line = format!("SKIPPED: {test}: {missing} is not installed\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            false
        }
    }
}

/// Runs a tool that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Bytes that do not compress and are nowhere the same.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Makes a sparse file with noise in some places, and gives its content.
pub(crate) fn sparse(path: &Path, size: usize, data: &[(usize, usize)]) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len(size as u64).unwrap();
    let mut content = vec![0; size];
    for (offset, length) in data {
        let bytes = noise(*offset as u64 + 1, *length);
        file.write_all_at(&bytes, *offset as u64).unwrap();
        content[*offset..offset + length].copy_from_slice(&bytes);
    }
    file.sync_all().unwrap();
    content
}

/// Reads a foreign disk by its extents, and checks that what they call zero is.
pub(crate) fn read_by_extents(disk: &dyn ForeignDisk) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(disk.size_bytes()).unwrap()];
    let mut position = 0;
    while position < disk.size_bytes() {
        for ForeignExtent { length, zero } in disk.extents(position, disk.size_bytes() - position).unwrap() {
            let range = usize::try_from(position).unwrap()..usize::try_from(position + length).unwrap();
            disk.read_at(position, &mut content[range.clone()]).unwrap();
            assert!(!zero || format::is_zero(&content[range]), "{length} bytes at {position}");
            position += length;
        }
    }
    content
}

/// Reads a disk out of a store by its tree.
pub(crate) fn read_tree(store: &Arc<dyn ChunkStore>, size_bytes: u64, root: Option<NodeId>) -> Vec<u8> {
    let nodes = Nodes::new(store.clone(), Domain::OWN.into());
    let shape = Shape::of(size_bytes);
    let mut content = vec![0; usize::try_from(size_bytes).unwrap().next_multiple_of(CHUNK_BYTES)];
    for found in walk(&nodes, shape, root, 0..shape.chunks()) {
        match found.unwrap() {
            Found::Chunk { index, id } => {
                let plain = store.get(&id.into(), &Domain::OWN.into()).unwrap().expect("an imported chunk is here");
                let at = usize::try_from(index).unwrap() * CHUNK_BYTES;
                content[at..at + CHUNK_BYTES].copy_from_slice(&plain);
            }
            Found::Node { .. } => {}
            Found::Absent(absent) => panic!("{absent}"),
        }
    }
    assert!(format::is_zero(&content[usize::try_from(size_bytes).unwrap()..]), "beyond the end there are zeroes");
    content.truncate(usize::try_from(size_bytes).unwrap());
    content
}

/// Counts what is read from a disk.
#[derive(Debug)]
pub(crate) struct Counting<D> {
    pub(crate) disk: D,
    pub(crate) bytes: std::sync::atomic::AtomicU64,
}

impl<D: ForeignDisk> Counting<D> {
    pub(crate) fn new(disk: D) -> Self {
        Self { disk, bytes: 0.into() }
    }

    pub(crate) fn count(&self) -> u64 {
        self.bytes.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl<D: ForeignDisk> ForeignDisk for Counting<D> {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), CaptureError> {
        self.bytes.fetch_add(buffer.len() as u64, std::sync::atomic::Ordering::SeqCst);
        self.disk.read_at(offset, buffer)
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<ForeignExtent>, CaptureError> {
        self.disk.extents(offset, length)
    }
}

/// An error and its causes, as a person sees them.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

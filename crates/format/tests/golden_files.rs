//! What version 1 wrote, every later version reads and writes the same: golden files of nodes, manifests and entries.
//!
//! `BRANT_WRITE_GOLDEN=1 cargo test -p format` writes files that are missing. One that exists is changed only together
//! with its version.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use format::codec::Compressor;
use format::entry::{Action, Entry, PublicKey, Reader, SignedEntry};
use format::manifest::{Disk, Machine, Manifest};
use format::{Codec, Node, Stored, chunk_id, entry_hash, node_id, snapshot_id};
use types::{BucketId, EndpointId, EntryHash, Name, NodeId, SnapshotId};

fn golden(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("BRANT_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, bytes).unwrap();
    }
    let expected = std::fs::read(&path).unwrap();
    assert!(expected == bytes, "the encoding in {name} has changed: {}", hex(bytes));
    path
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn node() -> Node {
    Node::new(1, &[(0, [0x11; 32]), (65, [0x22; 32]), (255, [0x33; 32])]).unwrap()
}

fn manifest() -> Manifest {
    let disk = |name_text: &str, root| Disk { name: name(name_text), size_bytes: 10 << 30, chunk_bytes: 65536, root };
    Manifest {
        version: 1,
        taken_ms: 1_790_000_000_123,
        disks: vec![disk("root", Some(NodeId([0x44; 32]))), disk("data", None)],
        base: Some(SnapshotId([0x55; 32])),
        message: "before the upgrade, as ever ✓".into(),
        machine: Some(Machine { media_type: "application/json".into(), description: b"{\"cpus\":2}".to_vec() }),
    }
}

fn entry(sequence: u64, action: Action) -> Entry {
    Entry {
        version: 1,
        bucket: BucketId([0x66; 32]),
        sequence,
        previous: (sequence > 0).then_some(EntryHash([0x77; 32])),
        time_ms: 1_790_000_000_456,
        author: PublicKey([0x88; 32]),
        action,
    }
}

fn entries() -> Vec<Entry> {
    let object = || name("web-01");
    let account = Reader::Account { indexer: PublicKey([0xbb; 32]), account: name("alice") };
    let put = Action::Put {
        object: object(),
        version: 7,
        snapshot: SnapshotId([0x99; 32]),
        size_bytes: 20 << 30,
        message: "nightly".into(),
    };
    let actions = [
        Action::Create,
        put,
        Action::Retire { object: object(), version: 6 },
        Action::Grant { reader: Reader::Everyone },
        Action::Grant { reader: Reader::Endpoint { endpoint: EndpointId([0xaa; 32]) } },
        Action::Revoke { reader: account },
        Action::AddWriter { writer: PublicKey([0xcc; 32]) },
        Action::RemoveWriter { writer: PublicKey([0xcc; 32]) },
        Action::Complete { object: object(), version: 7 },
    ];
    (0..).zip(actions).map(|(sequence, action)| entry(sequence, action)).collect()
}

/// Entries of several lengths in one file: each after its length, little-endian.
fn framed(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let frame = |part: Vec<u8>| [&u32::try_from(part.len()).unwrap().to_le_bytes()[..], &part].concat();
    parts.into_iter().flat_map(frame).collect()
}

#[test]
fn nodes() {
    let (id, bytes) = node().identify();
    let path = golden("node-v1.bin", &bytes);
    assert_eq!(Node::decode(&std::fs::read(path).unwrap()).unwrap(), node());
    assert_eq!(id.to_string(), "614f91b40f70474b661454fbe37de41c5c25f100d0c956455a91dda704f8d258");
}

#[test]
fn manifests() {
    let (id, bytes) = manifest().identify();
    let path = golden("manifest-v1.cbor", &bytes);
    assert_eq!(Manifest::decode(&std::fs::read(path).unwrap()).unwrap(), manifest());
    assert_eq!(id.to_string(), "c15faac5964119288a424866e2329ca57f71f121f805e5fa32cba84e2635e04a");
    let small = Manifest { base: None, machine: None, message: String::new(), ..manifest() };
    golden("manifest-small-v1.cbor", &small.identify().1);
    assert_eq!(Manifest::decode(&small.identify().1).unwrap(), small);
}

#[test]
fn log_entries() {
    let encoded: Vec<_> = entries().iter().map(Entry::encode).collect();
    golden("entries-v1.bin", &framed(encoded.clone()));
    for (bytes, entry) in encoded.iter().zip(entries()) {
        assert_eq!(Entry::decode(bytes).unwrap(), entry);
    }
    let signed = SignedEntry { entry: encoded[0].clone(), signature: [0xdd; 64] };
    golden("signed-entry-v1.cbor", &signed.encode());
    assert_eq!(SignedEntry::decode(&signed.encode()).unwrap(), signed);
    assert_eq!(signed.hash().to_string(), "e7ebb215cb643423453d89e7fc55087bc0850966accf2a93289c8658871eb86d");
}

/// The contexts of all four hashes, by what they make of the same bytes.
#[test]
fn hashes() {
    let hashes = [chunk_id(b"brant").0, node_id(b"brant").0, snapshot_id(b"brant").0, entry_hash(b"brant").0];
    let expected = [
        "09f1d189dd6457b167d1f5fb4c87e9f7c9ca35b3700f1e692ef3a441278529e1",
        "66129b11aa8c872ae4ff45e9972865fc49aa202c7d3794cbe27e14fac6f93a9b",
        "8d9e776ea25a955627b8841ade0642b47c6ee35b535c185f04d5c535213eb0d2",
        "fd19d10af60798c9e43a496df441724a888ce318f30c7bb8bc80c7cc0c14fc8f",
    ];
    assert_eq!(hashes.map(|hash| hex(&hash)), expected);
}

/// Frames need not be the same from one zstd to the next, but what was written must be read for ever.
#[test]
fn compressed_chunks() {
    let plain: Vec<u8> = (0..65536_u32).flat_map(|word| (word / 64).to_le_bytes()).take(65536).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/chunk-v1.zst");
    if !path.exists() && std::env::var_os("BRANT_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, Compressor::new().compress(&plain).bytes).unwrap();
    }
    let stored = Stored { codec: Codec::Zstd, plain_bytes: 65536, bytes: std::fs::read(path).unwrap().into() };
    assert_eq!(stored.to_plain().unwrap(), plain);
}

/// The example of the documentation is what the code writes.
#[test]
fn the_documented_example_is_true() {
    let document = include_str!("../../../docs/format.md");
    let create = hex(&entries()[0].encode());
    let lines: String =
        document.lines().map(str::trim).filter(|line| line.len() >= 4 && create.contains(*line)).collect();
    assert_eq!(lines, create, "the entry in docs/format.md, \"Log entry\"");
}

//! Chunks, tree nodes, manifests and log entries: what a store holds and a log consists of.

use format::codec::Compressor;
use format::entry::{Action, Entry, PublicKey, Reader, SignedEntry};
use format::manifest::{Disk, MAX_MANIFEST_BYTES, Machine, Manifest};
use format::{Codec, Node, Shape, Stored};
use types::{BucketId, CHUNK_BYTES, EndpointId, EntryHash, Name, NodeId, SnapshotId};

/// Bytes of a codec, with the length of a chunk promised.
pub(crate) fn chunk(data: &[u8]) -> bool {
    let Some((codec, rest)) = data.split_first() else { return false };
    let packed = Compressor::new().compress(rest);
    assert_eq!(packed.to_plain().expect("what was compressed comes back"), rest);
    let Ok(codec) = Codec::try_from(codec % 3) else { return false };
    let stored = Stored { codec, plain_bytes: 65536, bytes: rest.to_vec().into() };
    match stored.to_plain() {
        Ok(plain) => plain.len() == CHUNK_BYTES,
        Err(_) => false,
    }
}

pub(crate) fn chunk_seeds() -> Vec<Vec<u8>> {
    let chunks = [vec![7; CHUNK_BYTES], (0..CHUNK_BYTES).map(|place| (place / 300).to_le_bytes()[0]).collect()];
    let packed = chunks.iter().map(|plain| {
        let stored = Compressor::new().compress(plain);
        [&[stored.codec as u8][..], &stored.bytes].concat()
    });
    packed.chain([[&[0][..], &chunks[1]].concat(), vec![1]]).collect()
}

pub(crate) fn node(data: &[u8]) -> bool {
    let Ok(node) = Node::decode(data) else { return false };
    assert_eq!(node.encode(), data, "one form");
    assert_eq!(node.children().count(), (data.len() - 36) / 32);
    let shape = Shape::of(types::MAX_DISK_BYTES);
    let _: Result<(), _> = shape.check(shape.root(), &node);
    true
}

pub(crate) fn node_seeds() -> Vec<Vec<u8>> {
    let full: Vec<_> = (0..=255).map(|slot| (slot, [slot; 32])).collect();
    [(0, &full[..]), (1, &full[3..4]), (3, &full[250..])]
        .into_iter()
        .filter_map(|(level, children)| Node::new(level, children))
        .map(|node| node.encode())
        .collect()
}

pub(crate) fn manifest(data: &[u8]) -> bool {
    let Ok(manifest) = Manifest::decode(data) else { return false };
    assert!(data.len() <= MAX_MANIFEST_BYTES);
    assert_eq!(manifest.identify().1, data, "one form");
    for disk in &manifest.disks {
        let _: Shape = Shape::of(disk.size_bytes);
    }
    true
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let disk = |name_of: &str, root| Disk { name: name(name_of), size_bytes: 1 << 30, chunk_bytes: 65536, root };
    let machine = Machine { media_type: "application/json".into(), description: b"{}".to_vec() };
    let full = Manifest {
        version: 1,
        taken_ms: 1_790_000_000_000,
        disks: vec![disk("a", Some(NodeId([1; 32]))), disk("b", None)],
        base: Some(SnapshotId([2; 32])),
        message: "a note".into(),
        machine: Some(machine),
    };
    let small = Manifest { base: None, machine: None, message: String::new(), ..full.clone() };
    vec![full.identify().1, small.identify().1]
}

pub(crate) fn entry(data: &[u8]) -> bool {
    let Ok(entry) = Entry::decode(data) else { return false };
    assert_eq!(entry.encode(), data, "one form");
    true
}

pub(crate) fn entry_seeds() -> Vec<Vec<u8>> {
    entries().iter().map(Entry::encode).collect()
}

pub(crate) fn signed_entry(data: &[u8]) -> bool {
    let Ok(signed) = SignedEntry::decode(data) else { return false };
    assert_eq!(signed.encode(), data, "one form");
    entry(&signed.entry);
    true
}

pub(crate) fn signed_entry_seeds() -> Vec<Vec<u8>> {
    let sign = |entry: Vec<u8>| SignedEntry { entry, signature: [3; 64] }.encode();
    entry_seeds().into_iter().map(sign).collect()
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn entries() -> Vec<Entry> {
    let object = || name("web-01");
    let put = Action::Put {
        object: object(),
        version: 1,
        snapshot: SnapshotId([9; 32]),
        size_bytes: 1 << 30,
        message: "m".into(),
    };
    let account = Reader::Account { indexer: PublicKey([5; 32]), account: name("alice") };
    let actions = [
        Action::Create,
        put,
        Action::Retire { object: object(), version: 1 },
        Action::Grant { reader: Reader::Everyone },
        Action::Revoke { reader: Reader::Endpoint { endpoint: EndpointId([4; 32]) } },
        Action::Grant { reader: account },
        Action::AddWriter { writer: PublicKey([6; 32]) },
        Action::Complete { object: object(), version: 1 },
    ];
    let make = |(sequence, action)| Entry {
        version: 1,
        bucket: BucketId([1; 32]),
        sequence,
        previous: (sequence > 0).then_some(EntryHash([2; 32])),
        time_ms: 1_790_000_000_000,
        author: PublicKey([1; 32]),
        action,
    };
    (0..).zip(actions).map(make).collect()
}

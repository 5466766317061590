//! A value has one encoding: it comes back from it, and no other bytes are taken for it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use format::entry::{Action, Entry, PublicKey, Reader, SignedEntry};
use format::manifest::{Disk, Machine, Manifest, ManifestError};
use format::node::{MAX_NODE_BYTES, zero_chunk};
use format::{CanonicalError, Node, from_canonical, to_canonical};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use types::{BucketId, EndpointId, EntryHash, MAX_DISK_BYTES, Name, NodeId, SnapshotId};

fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,40}".prop_map(|text| text.parse().unwrap())
}

fn node() -> impl Strategy<Value = Node> {
    (0_u8..4, btree_map(any::<u8>(), any::<[u8; 32]>(), 1..=256))
        .prop_map(|(level, children)| Node::new(level, &children.into_iter().collect::<Vec<_>>()).unwrap())
}

fn disks() -> impl Strategy<Value = Vec<Disk>> {
    let disk = (1..=MAX_DISK_BYTES / 512, option::of(any::<[u8; 32]>()));
    btree_map(name().prop_map(String::from), disk, 1..5).prop_map(|disks| {
        let disk = |(name, (sectors, root)): (String, (u64, Option<[u8; 32]>))| Disk {
            name: name.parse().unwrap(),
            size_bytes: sectors * 512,
            chunk_bytes: 65536,
            root: root.map(NodeId),
        };
        disks.into_iter().map(disk).collect()
    })
}

prop_compose! {
    fn manifest()(
        taken_ms in any::<u64>(),
        disks in disks(),
        base in option::of(any::<[u8; 32]>()),
        message in ".{0,80}",
        machine in option::of(("[a-z/+.]{1,40}", vec(any::<u8>(), 0..200))),
    ) -> Manifest {
        let machine = machine.map(|(media_type, description)| Machine { media_type, description });
        Manifest { version: 1, taken_ms, disks, base: base.map(SnapshotId), message, machine }
    }
}

fn reader() -> impl Strategy<Value = Reader> {
    prop_oneof![
        Just(Reader::Everyone),
        any::<[u8; 32]>().prop_map(|id| Reader::Endpoint { endpoint: EndpointId(id) }),
        (any::<[u8; 32]>(), name()).prop_map(|(key, account)| Reader::Account { indexer: PublicKey(key), account }),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let put = (name(), any::<u64>(), any::<[u8; 32]>(), any::<u64>(), ".{0,80}");
    prop_oneof![
        put.prop_map(|(object, version, snapshot, size_bytes, message)| {
            Action::Put { object, version, snapshot: SnapshotId(snapshot), size_bytes, message }
        }),
        (name(), any::<u64>()).prop_map(|(object, version)| Action::Retire { object, version }),
        reader().prop_map(|reader| Action::Grant { reader }),
        reader().prop_map(|reader| Action::Revoke { reader }),
        any::<[u8; 32]>().prop_map(|key| Action::AddWriter { writer: PublicKey(key) }),
        any::<[u8; 32]>().prop_map(|key| Action::RemoveWriter { writer: PublicKey(key) }),
        (name(), any::<u64>()).prop_map(|(object, version)| Action::Complete { object, version }),
    ]
}

prop_compose! {
    fn entry()(
        bucket in any::<[u8; 32]>(),
        sequence in 1..=u64::MAX,
        previous in any::<[u8; 32]>(),
        time_ms in any::<u64>(),
        author in any::<[u8; 32]>(),
        action in prop_oneof![9 => action().prop_map(Some), 1 => Just(None)],
    ) -> Entry {
        Entry {
            version: 1,
            bucket: BucketId(bucket),
            sequence: action.as_ref().map_or(0, |_| sequence),
            previous: action.as_ref().map(|_| EntryHash(previous)),
            time_ms,
            author: PublicKey(author),
            action: action.unwrap_or(Action::Create),
        }
    }
}

/// Changes one byte, or cuts, or adds one.
fn damage(bytes: &[u8], place: usize, with: u8, kind: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let place = place % bytes.len();
    match kind % 4 {
        0 => bytes.truncate(place),
        1 => bytes.insert(place, with),
        2 => bytes.push(with),
        _ => bytes[place] ^= with.max(1),
    }
    bytes
}

proptest! {
    #[test]
    fn nodes(node in node(), place: usize, with: u8, kind: u8) {
        let bytes = node.encode();
        prop_assert!(bytes.len() <= MAX_NODE_BYTES);
        prop_assert_eq!(&Node::decode(&bytes).unwrap(), &node);
        let damaged = damage(&bytes, place, with, kind);
        if let Ok(other) = Node::decode(&damaged) {
            prop_assert_eq!(other.encode(), damaged);
            prop_assert!(other != node);
        }
    }

    #[test]
    fn manifests(manifest in manifest(), place: usize, with: u8, kind: u8) {
        let (_, bytes) = manifest.identify();
        prop_assert_eq!(&Manifest::decode(&bytes).unwrap(), &manifest);
        let damaged = damage(&bytes, place, with, kind);
        if let Ok(other) = Manifest::decode(&damaged) {
            prop_assert_eq!(other.identify().1, damaged);
            prop_assert!(other != manifest);
        }
    }

    #[test]
    fn entries(entry in entry(), place: usize, with: u8, kind: u8) {
        let bytes = entry.encode();
        prop_assert_eq!(&Entry::decode(&bytes).unwrap(), &entry);
        let damaged = damage(&bytes, place, with, kind);
        if let Ok(other) = Entry::decode(&damaged) {
            prop_assert_eq!(other.encode(), damaged);
            prop_assert!(other != entry);
        }
    }

    #[test]
    fn signed_entries(entry in entry(), signature in vec(any::<u8>(), 64), place: usize, with: u8, kind: u8) {
        let signed = SignedEntry { entry: entry.encode(), signature: signature.try_into().unwrap() };
        prop_assert_eq!(&SignedEntry::decode(&signed.encode()).unwrap(), &signed);
        let damaged = damage(&signed.encode(), place, with, kind);
        if let Ok(other) = SignedEntry::decode(&damaged) {
            prop_assert_eq!(other.encode(), damaged);
        }
    }

    #[test]
    fn any_bytes_may_be_given(bytes: Vec<u8>) {
        drop((Node::decode(&bytes), Manifest::decode(&bytes), Entry::decode(&bytes), SignedEntry::decode(&bytes)));
    }
}

/// RFC 8949 lets a value be written in many ways; each of these is well-formed, and none is ours.
#[test]
fn other_forms_of_a_value_are_refused() {
    type Value = (u64, Option<String>, Vec<u32>);
    let value: Value = (1, Some("a".into()), vec![2]);
    let good = to_canonical(&value);
    assert_eq!(good, [0x83, 0x01, 0x61, b'a', 0x81, 0x02]);
    assert_eq!(from_canonical::<Value>(&good, 100).unwrap(), value);
    let others: [&[u8]; 7] = [
        &[0x83, 0x18, 0x01, 0x61, b'a', 0x81, 0x02],
        &[0x83, 0x1b, 0, 0, 0, 0, 0, 0, 0, 1, 0x61, b'a', 0x81, 0x02],
        &[0x98, 0x03, 0x01, 0x61, b'a', 0x81, 0x02],
        &[0x83, 0x01, 0x78, 0x01, b'a', 0x81, 0x02],
        &[0x83, 0x01, 0x61, b'a', 0x9f, 0x02, 0xff],
        &[0x83, 0x01, 0x61, b'a', 0x98, 0x01, 0x02],
        &[0x83, 0x01, 0x61, b'a', 0x81, 0x02, 0x00],
    ];
    for other in others {
        let refused = from_canonical::<Value>(other, 100);
        assert!(matches!(refused, Err(CanonicalError::NotCanonical | CanonicalError::Malformed(_))), "{other:02x?}");
    }
    assert!(matches!(from_canonical::<Value>(&good, 5), Err(CanonicalError::TooLong { length: 6, limit: 5 })));
}

fn one_disk() -> Manifest {
    let disk = Disk { name: "disk".parse().unwrap(), size_bytes: 512, chunk_bytes: 65536, root: None };
    Manifest { version: 1, taken_ms: 0, disks: vec![disk], base: None, message: String::new(), machine: None }
}

#[test]
fn manifests_that_cannot_be_are_refused() {
    assert!(Manifest::decode(&one_disk().identify().1).is_ok());
    let refused = |change: fn(&mut Manifest)| {
        let mut manifest = one_disk();
        change(&mut manifest);
        assert!(matches!(Manifest::decode(&manifest.identify().1), Err(ManifestError::Invalid(_))), "{manifest:?}");
    };
    refused(|manifest| manifest.version = 0);
    refused(|manifest| manifest.disks.clear());
    refused(|manifest| manifest.disks = vec![manifest.disks[0].clone(); 2]);
    refused(|manifest| manifest.disks[0].size_bytes = 0);
    refused(|manifest| manifest.disks[0].size_bytes = 513);
    refused(|manifest| manifest.disks[0].size_bytes = MAX_DISK_BYTES + 512);
    refused(|manifest| manifest.disks[0].chunk_bytes = 4096);
    let newer = Manifest { version: 2, ..one_disk() };
    assert!(matches!(Manifest::decode(&newer.identify().1), Err(ManifestError::Newer(2))));
    let long = Manifest { message: "x".repeat(1 << 20), ..one_disk() };
    assert!(matches!(Manifest::decode(&long.identify().1), Err(ManifestError::Encoding(_))));
}

#[test]
fn a_zero_chunk_is_never_a_child_but_may_be_a_name_of_a_node() {
    let children = [(9, zero_chunk().0)];
    assert!(Node::decode(&Node::new(0, &children).unwrap().encode()).is_err());
    assert!(Node::decode(&Node::new(1, &children).unwrap().encode()).is_ok());
}

//! A log holds only what it has verified: wrong writers, numbers, predecessors, actions and every flipped bit are
//! refused and change nothing.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it must be")]

use bucket::{HeadOrder, Log, LogError, Signer};
use format::entry::{Action, Reader, SignedEntry};
use proptest::prelude::*;
use types::{EndpointId, Name, PublicKey, SnapshotId};

fn signer(number: u8) -> Signer {
    Signer::from_seed(&[number; 32])
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn put(object: &str, version: u64, snapshot: u8) -> Action {
    let (object, snapshot) = (name(object), SnapshotId([snapshot; 32]));
    Action::Put { object, version, snapshot, size_bytes: 1 << 30, message: "m".into() }
}

#[test]
fn versions_readers_and_writers_follow_the_entries() {
    let (owner, writer) = (signer(1), signer(2));
    let mut log = Log::create(&owner, 10);
    log.write(&owner, Action::AddWriter { writer: writer.public_key() }, 11).unwrap();
    log.write(&writer, put("vm", 1, 7), 12).unwrap();
    log.write(&writer, put("vm", 2, 8), 13).unwrap();
    log.write(&owner, Action::Complete { object: name("vm"), version: 1 }, 14).unwrap();
    log.write(&owner, Action::Retire { object: name("vm"), version: 2 }, 15).unwrap();
    assert_eq!(log.latest(&name("vm")).map(|(number, found)| (number, found.complete)), Some((1, true)));
    assert_eq!(log.next_version(&name("vm")), 3);
    assert_eq!(log.snapshot_versions(SnapshotId([8; 32])), [(name("vm"), 2)]);
    assert!(log.offers(SnapshotId([7; 32])) && !log.offers(SnapshotId([8; 32])) && !log.offers(SnapshotId([9; 32])));

    let (indexer, endpoint) = (PublicKey([5; 32]), EndpointId([6; 32]));
    let alice = (indexer, name("alice"));
    assert!(!log.readable_by(endpoint, std::slice::from_ref(&alice)));
    let account = Reader::Account { indexer, account: name("alice") };
    log.write(&owner, Action::Grant { reader: account.clone() }, 16).unwrap();
    assert!(log.readable_by(endpoint, std::slice::from_ref(&alice)));
    assert!(!log.readable_by(endpoint, &[(PublicKey([4; 32]), name("alice"))]), "another Indexer's alice");
    log.write(&owner, Action::Revoke { reader: account }, 17).unwrap();
    assert!(!log.readable_by(endpoint, &[alice]));
    log.write(&owner, Action::Grant { reader: Reader::Endpoint { endpoint } }, 18).unwrap();
    assert!(log.readable_by(endpoint, &[]) && !log.readable_by(EndpointId([0; 32]), &[]));
    log.write(&owner, Action::Grant { reader: Reader::Everyone }, 19).unwrap();
    assert!(log.readable_by(EndpointId([0; 32]), &[]));

    let replayed = Log::replay(owner.bucket_id(), log.entries().to_vec()).unwrap();
    assert_eq!(replayed, log);
    assert_eq!(log.prefix(3).unwrap(), Log::replay(owner.bucket_id(), log.entries()[..3].to_vec()).unwrap());
}

#[test]
fn a_removed_writer_writes_no_more() {
    let (owner, writer) = (signer(1), signer(2));
    let mut log = Log::create(&owner, 0);
    assert!(matches!(log.propose(&writer, put("vm", 1, 1), 1), Err(LogError::Writer { sequence: 1, .. })));
    log.write(&owner, Action::AddWriter { writer: writer.public_key() }, 1).unwrap();
    let late = log.propose(&writer, put("vm", 1, 1), 2).unwrap();
    log.apply(late.clone()).unwrap();
    log.write(&owner, Action::RemoveWriter { writer: writer.public_key() }, 3).unwrap();
    assert!(matches!(log.propose(&writer, put("vm", 2, 1), 4), Err(LogError::Writer { .. })));
    let own = Action::RemoveWriter { writer: owner.public_key() };
    assert!(matches!(log.propose(&owner, own, 4), Err(LogError::BucketKey)));
}

#[test]
fn entries_of_a_stranger_are_refused_even_when_well_signed() {
    let (owner, stranger) = (signer(1), signer(3));
    let mut log = Log::create(&owner, 0);
    // The stranger's own log, in which it may write, made to look like ours.
    let mut entry = format::entry::Entry::decode(&log.propose(&owner, put("vm", 1, 1), 1).unwrap().entry).unwrap();
    entry.author = stranger.public_key();
    let bytes = entry.encode();
    let signature = stranger.sign(format::entry::SIGNATURE_CONTEXT, &bytes);
    let before = log.clone();
    assert!(matches!(log.apply(SignedEntry { entry: bytes, signature }), Err(LogError::Writer { .. })));
    // The owner's name, but the stranger's signature.
    entry.author = owner.public_key();
    let bytes = entry.encode();
    let signature = stranger.sign(format::entry::SIGNATURE_CONTEXT, &bytes);
    assert!(matches!(log.apply(SignedEntry { entry: bytes, signature }), Err(LogError::Signature { sequence: 1 })));
    // The right bytes, signed in another context.
    let good = log.propose(&owner, put("vm", 1, 1), 1).unwrap();
    let signature = owner.sign(b"something else\0", &good.entry);
    assert!(matches!(log.apply(SignedEntry { signature, ..good }), Err(LogError::Signature { .. })));
    assert_eq!(log, before);
}

#[test]
fn numbers_and_predecessors_are_checked() {
    let owner = signer(1);
    let mut log = Log::create(&owner, 0);
    let mut longer = log.clone();
    longer.write(&owner, put("vm", 1, 1), 1).unwrap();
    let third = longer.write(&owner, put("vm", 2, 1), 2).unwrap();
    assert!(matches!(log.apply(third.clone()), Err(LogError::Sequence { found: 2, expected: 1 })));
    log.write(&owner, put("vm", 1, 9), 1).unwrap();
    assert!(matches!(log.apply(third), Err(LogError::Previous { sequence: 2 })));
    for (version, expected) in [(1, 2), (3, 2), (0, 2)] {
        let wrong = log.propose(&owner, put("vm", version, 1), 3);
        assert!(matches!(wrong, Err(LogError::VersionOrder { expected: found, .. }) if found == expected));
    }
    let none = Action::Retire { object: name("vm"), version: 2 };
    assert!(matches!(log.propose(&owner, none, 3), Err(LogError::NoSuchVersion { .. })));
    let zero = Action::Complete { object: name("vm"), version: 0 };
    assert!(matches!(log.propose(&owner, zero, 3), Err(LogError::NoSuchVersion { .. })));
    let again = Log::create(&owner, 0).entries()[0].clone();
    assert!(matches!(log.apply(again), Err(LogError::Sequence { found: 0, expected: 2 })));
    let other = Log::create(&signer(2), 0);
    assert!(matches!(Log::replay(owner.bucket_id(), other.entries().to_vec()), Err(LogError::Bucket { .. })));
    assert!(matches!(Log::replay(owner.bucket_id(), Vec::new()), Err(LogError::Empty)));
    let message = "x".repeat(70_000);
    let long = Action::Put { object: name("vm"), version: 2, snapshot: SnapshotId([0; 32]), size_bytes: 0, message };
    assert!(matches!(log.propose(&owner, long, 3), Err(LogError::TooLong { .. })));
}

#[test]
fn heads_are_told_apart() {
    let owner = signer(1);
    let mut log = Log::create(&owner, 0);
    let old = log.head();
    let mut other = log.clone();
    log.write(&owner, put("vm", 1, 1), 1).unwrap();
    other.write(&owner, put("vm", 1, 2), 1).unwrap();
    assert_eq!(log.compare(log.head()), HeadOrder::Same);
    assert_eq!(log.compare(old), HeadOrder::Older);
    assert_eq!(log.compare(other.head()), HeadOrder::Diverged);
    other.write(&owner, put("vm", 2, 2), 1).unwrap();
    assert_eq!(log.compare(other.head()), HeadOrder::Newer);
}

/// An action that may or may not follow: the log decides.
fn action() -> impl Strategy<Value = (bool, u8, u64)> {
    (any::<bool>(), 0_u8..8, 0_u64..4)
}

/// Builds a log from random choices; choices that the rules forbid are left out.
fn build(choices: &[(bool, u8, u64)]) -> Log {
    let (owner, writer) = (signer(1), signer(2));
    let mut log = Log::create(&owner, 0);
    for (time_ms, (second, kind, number)) in (1..).zip(choices) {
        let object = name(["a", "b"][usize::from(number % 2 == 1)]);
        let reader = [
            Reader::Everyone,
            Reader::Endpoint { endpoint: EndpointId([1; 32]) },
            Reader::Account { indexer: PublicKey([2; 32]), account: name("alice") },
        ][usize::try_from(number % 3).unwrap()]
        .clone();
        let action = match kind {
            0 | 1 => {
                let (version, snapshot) = (log.next_version(&object), SnapshotId([u8::try_from(*number).unwrap(); 32]));
                Action::Put { object, version, snapshot, size_bytes: *number, message: "é".repeat(3) }
            }
            2 => Action::Retire { object, version: *number },
            3 => Action::Complete { object, version: *number },
            4 => Action::Grant { reader },
            5 => Action::Revoke { reader },
            6 => Action::AddWriter { writer: writer.public_key() },
            _ => Action::RemoveWriter { writer: writer.public_key() },
        };
        let _refused_or_not = log.write(if *second { &writer } else { &owner }, action, time_ms);
    }
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_log_replays_to_the_same_state(choices in proptest::collection::vec(action(), 0..40), cut in 0_usize..40) {
        let log = build(&choices);
        let replayed = Log::replay(log.bucket(), log.entries().to_vec()).unwrap();
        prop_assert_eq!(&replayed, &log);
        let cut = 1 + cut % log.entries().len();
        let mut merged = log.prefix(cut as u64).unwrap();
        let added = merged.merge(log.entries()).unwrap().added;
        prop_assert_eq!(added, log.length() - cut as u64);
        prop_assert_eq!(&merged, &log);
    }

    #[test]
    fn any_flipped_bit_is_refused(choices in proptest::collection::vec(action(), 1..12), place in any::<prop::sample::Index>()) {
        let log = build(&choices);
        let mut entries = log.entries().to_vec();
        let bits: usize = entries.iter().map(|entry| (entry.entry.len() + 64) * 8).sum();
        let mut bit = place.index(bits);
        for entry in &mut entries {
            let here = (entry.entry.len() + 64) * 8;
            if bit >= here {
                bit -= here;
                continue;
            }
            let byte = match entry.entry.get_mut(bit / 8) {
                Some(byte) => byte,
                None => &mut entry.signature[bit / 8 - (here / 8 - 64)],
            };
            *byte ^= 1 << (bit % 8);
            break;
        }
        prop_assert!(entries != log.entries());
        prop_assert!(Log::replay(log.bucket(), entries).is_err());
    }
}

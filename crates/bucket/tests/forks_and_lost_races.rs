//! A fork is detected and proved; a writer that lost the race rebases and loses nothing, writes nothing twice.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it must be")]

use bucket::{ForkEvidence, Log, LogError, LogFile, Renumbered, Signer};
use format::entry::{Action, Reader, SignedEntry};
use types::{Name, SnapshotId};

fn signer(number: u8) -> Signer {
    Signer::from_seed(&[number; 32])
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn put(log: &Log, snapshot: u8) -> Action {
    let (object, snapshot) = (name("vm"), SnapshotId([snapshot; 32]));
    let version = log.next_version(&object);
    Action::Put { object, version, snapshot, size_bytes: 1, message: String::new() }
}

/// A log with a second writer, and both signers.
fn shared() -> (Log, Signer, Signer) {
    let (owner, writer) = (signer(1), signer(2));
    let mut log = Log::create(&owner, 0);
    log.write(&owner, Action::AddWriter { writer: writer.public_key() }, 1).unwrap();
    (log, owner, writer)
}

fn tentative(base: &Log, signer: &Signer, snapshots: &[u8], time_ms: u64) -> (Log, Vec<SignedEntry>) {
    let mut log = base.clone();
    for (time_ms, snapshot) in (time_ms..).zip(snapshots) {
        let action = put(&log, *snapshot);
        log.write(signer, action, time_ms).unwrap();
    }
    let entries = log.entries_from(base.length()).to_vec();
    (log, entries)
}

#[test]
fn two_signed_entries_at_one_place_are_a_fork() {
    let (base, owner, writer) = shared();
    let (mut ours, own) = tentative(&base, &owner, &[1, 2], 10);
    let (theirs, _) = tentative(&base, &writer, &[3], 20);
    let before = ours.clone();
    let Err(LogError::Fork(evidence)) = ours.merge(theirs.entries()) else { panic!("no fork was seen") };
    assert_eq!(ours, before);
    assert_eq!((evidence.sequence, &evidence.ours), (2, &own[0]));
    // The evidence proves the fork to anyone who has the log before it.
    let evidence = ForkEvidence::decode(&evidence.encode()).unwrap();
    let mut third = base.clone();
    third.merge(std::slice::from_ref(&evidence.ours)).unwrap();
    assert!(matches!(third.merge(std::slice::from_ref(&evidence.theirs)), Err(LogError::Fork(_))));
    // It is kept beside the log's file, once.
    let directory = tempfile::tempdir().unwrap();
    let (file, _) = LogFile::open(&directory.path().join("log")).unwrap();
    let kept = file.keep_evidence(&evidence).unwrap();
    assert_eq!(file.keep_evidence(&evidence).unwrap(), kept);
    assert_eq!(ForkEvidence::decode(&std::fs::read(kept).unwrap()).unwrap(), evidence);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn a_forgery_is_not_taken_for_a_fork() {
    let (base, owner, _) = shared();
    let (mut ours, _) = tentative(&base, &owner, &[1], 10);
    let (theirs, _) = tentative(&base, &owner, &[3], 20);
    let mut forged = theirs.entries_from(2).to_vec();
    forged[0].signature[5] ^= 1;
    assert!(matches!(ours.merge(&forged), Err(LogError::Signature { sequence: 2 })));
    // A stranger's branch of the same log.
    let mut entry = format::entry::Entry::decode(&theirs.entries()[2].entry).unwrap();
    let stranger = signer(9);
    entry.author = stranger.public_key();
    let bytes = entry.encode();
    let signature = stranger.sign(format::entry::SIGNATURE_CONTEXT, &bytes);
    assert!(matches!(ours.merge(&[SignedEntry { entry: bytes, signature }]), Err(LogError::Writer { .. })));
    // Another creation of the same bucket is the owner's own fork.
    assert!(matches!(ours.merge(Log::create(&owner, 99).entries()), Err(LogError::Fork(_))));
}

#[test]
fn runs_that_do_not_join_are_told_apart() {
    let (base, owner, _) = shared();
    let (longer, _) = tentative(&base, &owner, &[1, 2, 3], 10);
    let (other, _) = tentative(&base, &owner, &[4, 5, 6], 20);
    let mut log = longer.clone();
    assert_eq!(log.merge(longer.entries_from(3)).unwrap().added, 0);
    assert_eq!(log.merge(&[]).unwrap().added, 0);
    assert!(matches!(log.merge(&longer.entries()[..4]), Err(LogError::Stale { offered: 3, known: 4 })));
    assert!(matches!(log.merge(other.entries_from(3)), Err(LogError::Previous { sequence: 3 })));
    let mut short = base.clone();
    assert!(matches!(short.merge(longer.entries_from(4)), Err(LogError::Sequence { found: 4, expected: 2 })));
    let hole = [longer.entries()[2].clone(), longer.entries()[4].clone()];
    assert!(matches!(short.merge(&hole), Err(LogError::Sequence { found: 4, expected: 3 })));
    let mut entry = format::entry::Entry::decode(&longer.entries()[2].entry).unwrap();
    entry.sequence = u64::MAX;
    let bytes = entry.encode();
    let signature = owner.sign(format::entry::SIGNATURE_CONTEXT, &bytes);
    let last = SignedEntry { entry: bytes, signature };
    for entries in [vec![last.clone()], vec![last.clone(), last]] {
        assert!(matches!(short.merge(&entries), Err(LogError::Sequence { found: u64::MAX, expected: 2 })));
    }
    assert_eq!(short, base, "all or nothing");
}

#[test]
fn a_lost_race_is_rebased_with_new_version_numbers() {
    let (base, owner, writer) = shared();
    let (remote, _) = tentative(&base, &owner, &[1, 2], 10);
    let (mut offline, _) = tentative(&base, &writer, &[7], 20);
    offline.write(&writer, Action::Complete { object: name("vm"), version: 1 }, 21).unwrap();
    offline.write(&writer, Action::Grant { reader: Reader::Everyone }, 22).unwrap();
    let own = offline.entries_from(base.length()).to_vec();

    let mut log = base.clone();
    let rebased = log.rebase(remote.entries(), &own, &writer).unwrap();
    assert_eq!(log, remote);
    assert_eq!(rebased.renumbered, [Renumbered { object: name("vm"), from: 1, to: 3 }]);
    assert_eq!((rebased.entries.len(), rebased.dropped), (3, 0));
    log.merge(&rebased.entries).unwrap();
    let version = log.version(&name("vm"), 3).unwrap();
    assert_eq!((version.snapshot, version.complete, version.time_ms), (SnapshotId([7; 32]), true, 20));
    assert!(!log.version(&name("vm"), 1).unwrap().complete, "the other writer's version is not touched");

    // The race is lost once more, after the Indexer accepted the first of the three and only its answer was lost.
    let mut remote = remote;
    remote.apply(rebased.entries[0].clone()).unwrap();
    let action = put(&remote, 9);
    remote.write(&owner, action, 30).unwrap();
    let mut log = base.clone();
    let again = log.rebase(remote.entries(), &own, &writer).unwrap();
    assert_eq!((again.entries.len(), again.dropped), (2, 1));
    log.merge(&again.entries).unwrap();
    assert_eq!(log.next_version(&name("vm")), 5, "nothing is written twice");
    assert!(log.version(&name("vm"), 3).unwrap().complete);
    // And once all is accepted, nothing is left to do.
    let done = log.clone().rebase(remote.entries(), &own, &writer).unwrap();
    assert_eq!((done.entries.len(), done.dropped), (0, 3));
}

#[test]
fn a_writer_that_was_removed_cannot_rebase() {
    let (base, owner, writer) = shared();
    let (_, own) = tentative(&base, &writer, &[7], 20);
    let mut remote = base.clone();
    remote.write(&owner, Action::RemoveWriter { writer: writer.public_key() }, 30).unwrap();
    let mut log = base.clone();
    assert!(matches!(log.rebase(remote.entries(), &own, &writer), Err(LogError::Writer { .. })));
    assert!(matches!(log.rebase(base.entries(), &own, &owner), Err(LogError::Writer { .. })), "another's entries");
    assert_eq!(log, base);
}

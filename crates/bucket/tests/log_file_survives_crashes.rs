//! What a log file has acknowledged is there after a crash at any byte of a later append, and damage is never hidden.

#![allow(clippy::unwrap_used, reason = "a test panics where something is not as it must be")]

use bucket::{Log, LogFile, LogFileError, Signer};
use format::entry::{Action, Reader, SignedEntry};
use std::fs;

fn entries() -> Vec<SignedEntry> {
    let owner = Signer::from_seed(&[1; 32]);
    let mut log = Log::create(&owner, 0);
    for time_ms in 1..5 {
        log.write(&owner, Action::Grant { reader: Reader::Everyone }, time_ms).unwrap();
    }
    log.entries().to_vec()
}

#[test]
fn entries_there_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let entries = entries();
    let (mut file, empty) = LogFile::open(&path).unwrap();
    assert!(empty.is_empty());
    file.append(&entries[..1]).unwrap();
    file.append(&[]).unwrap();
    file.append(&entries[1..3]).unwrap();
    let (mut file, read) = LogFile::open(&path).unwrap();
    assert_eq!((read, file.cut_bytes()), (entries[..3].to_vec(), 0));
    file.replace(&entries[..2]).unwrap();
    file.append(&entries[2..]).unwrap();
    assert_eq!(LogFile::open(&path).unwrap().1, entries);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_torn_append_at_every_byte_loses_nothing_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let entries = entries();
    let (mut file, _) = LogFile::open(&path).unwrap();
    file.append(&entries[..2]).unwrap();
    let acknowledged = fs::read(&path).unwrap().len();
    file.append(&entries[2..]).unwrap();
    let whole = fs::read(&path).unwrap();
    // Every byte of the frame's header, then samples of its body.
    for cut in (acknowledged..acknowledged + 24).chain((acknowledged + 24..whole.len()).step_by(31)) {
        for zeroes in [0, whole.len() - cut] {
            let mut torn = whole[..cut].to_vec();
            torn.resize(cut + zeroes, 0);
            fs::write(&path, &torn).unwrap();
            let (mut file, read) = LogFile::open(&path).unwrap();
            assert_eq!(read, entries[..2], "cut at {cut}");
            file.append(&entries[2..]).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }
    for cut in 0..16 {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(LogFile::open(&path).unwrap().1.is_empty());
    }
}

#[test]
fn damage_before_the_end_is_an_error_and_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let entries = entries();
    let (mut file, _) = LogFile::open(&path).unwrap();
    file.append(&entries[..1]).unwrap();
    let first = fs::read(&path).unwrap().len();
    file.append(&entries[1..]).unwrap();
    let whole = fs::read(&path).unwrap();
    for byte in 0..first {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        match (byte, LogFile::open(&path)) {
            (0..8, Err(LogFileError::NotALog(_))) | (8..12, Err(LogFileError::Newer { .. })) => {}
            (12..16, Err(LogFileError::NotALog(_))) => {}
            (16.., Err(LogFileError::Damaged { offset: 16, .. })) => {}
            (_, other) => panic!("byte {byte}: {other:?}"),
        }
        assert_eq!(fs::read(&path).unwrap(), damaged, "evidence is not destroyed");
    }
    fs::write(&path, b"something else entirely").unwrap();
    assert!(matches!(LogFile::open(&path), Err(LogFileError::NotALog(_))));
    assert!(matches!(LogFile::open(directory.path()), Err(LogFileError::Io { .. })));
}

//! The simulated medium loses what the contract lets it lose, in every way, and keeps what it must keep.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use medium::simulated::{Fault, Operation};
use medium::{File, Medium, Open, Simulated};

const SEEDS: u64 = 400;

fn at(name: &str) -> &Path {
    Path::new(name)
}

/// A medium with a durable file of sectors of `0`.
fn medium(seed: u64, sectors: usize) -> (Simulated, Arc<dyn File>) {
    let medium = Simulated::new(seed);
    let file = medium.open(at("/file"), Open::New).expect("made");
    file.write_all_at(&[&vec![b'0'; sectors * 512]], 0).expect("written");
    file.sync_data().expect("durable");
    medium.sync_directory(at("/")).expect("durable");
    (medium, file)
}

/// All that seeds make of a medium, each sector as its first byte.
fn outcomes(medium: &Simulated) -> BTreeSet<String> {
    let after = |seed| {
        let bytes = medium.power_cut(seed).read(at("/file")).expect("a durable file is there");
        bytes
            .chunks(512)
            .map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is whole");
                char::from(sector[0])
            })
            .collect()
    };
    (0..SEEDS).map(after).collect()
}

fn set(outcomes: &[&str]) -> BTreeSet<String> {
    outcomes.iter().map(|outcome| (*outcome).to_owned()).collect()
}

#[test]
fn each_sector_is_old_or_what_any_write_has_made_of_it() {
    let (medium, file) = medium(1, 2);
    file.write_all_at(&[&[b'1'; 1024]], 0).expect("written");
    file.write_all_at(&[&[b'2'; 512]], 512).expect("written");
    assert_eq!(outcomes(&medium), set(&["00", "01", "02", "10", "11", "12"]));
}

#[test]
fn what_was_synchronised_is_there_and_a_length_is_old_or_new() {
    let (medium, file) = medium(2, 1);
    file.write_all_at(&[&[b'1'; 512]], 512).expect("written");
    assert_eq!(outcomes(&medium), set(&["0", "0\0", "01"]));
    let (medium, file) = self::medium(2, 1);
    file.write_all_at(&[&[b'1'; 512]], 512).expect("written");
    file.sync_data().expect("durable");
    assert_eq!(outcomes(&medium), set(&["01"]));
    let (medium, file) = self::medium(2, 2);
    file.set_length(512).expect("cut");
    assert_eq!(outcomes(&medium), set(&["0", "00"]));
}

#[test]
fn what_was_cloned_is_lost_until_it_is_synchronised_and_what_was_frozen_when_its_handle_is() {
    let (medium, file) = medium(4, 2);
    let source = medium.open(at("/source"), Open::New).expect("made");
    source.write_all_at(&[&[b'1'; 512], &[b'2'; 512]], 0).expect("written");
    let frozen = medium.freeze(&*source, at("/")).expect("frozen");
    source.write_all_at(&[&[b'3'; 1024]], 0).expect("written");
    file.clone_range(0, &*frozen, 0, 1024).expect("cloned");
    assert_eq!(outcomes(&medium), set(&["00", "02", "10", "12"]));
    let (medium, file) = self::medium(4, 2);
    let taken = medium.room(at("/")).expect("told").available_bytes;
    let frozen = medium.freeze(&*file, at("/")).expect("frozen");
    drop(frozen);
    assert_eq!(medium.room(at("/")).expect("told").available_bytes, taken);
    medium.fail(Fault { operation: Some(Operation::Clone), after: 0, lasting: false });
    medium.freeze(&*file, at("/")).expect_err("it fails");
    file.clone_range(0, &*file, 512, 512).expect("cloned");
    file.sync_data().expect("durable");
    assert_eq!(outcomes(&medium), set(&["00"]));
}

#[test]
fn a_killed_process_leaves_all_that_it_did() {
    let (medium, file) = medium(3, 1);
    file.write_all_at(&[&[b'1'; 512]], 512).expect("written");
    medium.open(at("/new"), Open::New).expect("made");
    let next = medium.kill();
    assert!(next.exists(at("/new")).expect("looked for"));
    assert_eq!(next.read(at("/file")).expect("read").len(), 1024);
    file.read_exact_at(&mut [0], 0).expect_err("the handles are gone");
    medium.open(at("/file"), Open::Existing).expect_err("the process is gone");
    // What the process left unsynchronised, the power still takes.
    assert_eq!(outcomes(&next), set(&["0", "0\0", "01"]));
}

#[test]
fn a_name_is_old_or_new_and_never_gone() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let (medium, _) = medium(seed, 1);
        let new = medium.open(at("/new"), Open::New).expect("made");
        new.write_all_at(&[&[b'1'; 512]], 0).expect("written");
        new.sync_data().expect("durable");
        medium.rename(at("/new"), at("/file")).expect("renamed");
        medium.open(at("/other"), Open::New).expect("made");
        let left = medium.power_cut(seed);
        let mut names = left.list(at("/")).expect("listed");
        names.sort();
        seen.insert((left.read(at("/file")).expect("never gone")[0], names.join(" ".as_ref())));
    }
    let names = |byte, names: &str| (byte, names.into());
    let expected = [
        names(b'0', "file"),
        names(b'0', "file new"),
        names(b'0', "file new other"),
        names(b'0', "file other"),
        names(b'1', "file"),
        names(b'1', "file other"),
    ];
    assert_eq!(seen, BTreeSet::from(expected));
}

#[test]
fn names_are_durable_once_their_directory_is() {
    for seed in 0..50 {
        let (medium, _) = medium(seed, 1);
        medium.create_directory(at("/a/b")).expect("made");
        medium.open(at("/a/b/file"), Open::New).expect("made");
        medium.remove(at("/file")).expect("removed");
        medium.sync_directory(at("/a/b")).expect("durable");
        medium.sync_directory(at("/a")).expect("durable");
        medium.sync_directory(at("/")).expect("durable");
        let left = medium.power_cut(seed);
        assert!(left.exists(at("/a/b/file")).expect("looked for"));
        assert!(!left.exists(at("/file")).expect("looked for"));
    }
    for seed in 0..50 {
        let medium = Simulated::new(seed);
        // A process that died has made it, and its name is not durable.
        medium.create_directory(at("/a/b")).expect("made");
        medium.sync_directory(at("/")).expect("durable");
        medium.make_directory(at("/a/b")).expect("made");
        medium.make_directory(at("/a/b/c/d")).expect("made");
        assert!(medium.power_cut(seed).exists(at("/a/b/c/d")).expect("looked for"));
    }
    let lost = |seed| {
        let (medium, _) = medium(seed, 1);
        medium.create_directory(at("/a")).expect("made");
        medium.open(at("/a/file"), Open::New).expect("made");
        medium.sync_directory(at("/a")).expect("durable");
        !medium.power_cut(seed).exists(at("/a")).expect("looked for")
    };
    assert!((0..50).any(lost), "a directory whose own name is not durable can vanish with what is in it");
}

#[test]
fn the_power_fails_in_the_middle_of_a_write() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let (medium, file) = medium(seed, 2);
        medium.cut_after(medium.operations() + 1);
        file.length().expect("one more operation");
        file.write_all_at(&[&[b'1'; 1024]], 0).expect_err("the power is off");
        assert!(medium.is_off());
        file.sync_data().expect_err("the power is off");
        seen.extend(outcomes(&medium));
    }
    assert_eq!(seen, set(&["00", "01", "10", "11"]));
}

#[test]
fn a_failed_sync_is_reported_once_and_what_it_lost_stays_lost() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let (medium, file) = medium(seed, 1);
        file.write_all_at(&[&[b'1'; 512]], 0).expect("written");
        medium.fail(Fault { operation: Some(Operation::Sync), after: 0, lasting: false });
        assert_eq!(file.sync_data().expect_err("planned").raw_os_error(), Some(5));
        file.sync_data().expect("the second one knows nothing");
        let read = medium.read(at("/file")).expect("read")[0];
        let durable = medium.power_cut(seed).read(at("/file")).expect("read")[0];
        seen.insert((char::from(read), char::from(durable)));
    }
    assert_eq!(seen, BTreeSet::from([('0', '0'), ('1', '0'), ('1', '1')]));
}

#[test]
fn faults_come_when_they_are_planned() {
    let (medium, file) = medium(4, 1);
    medium.fail(Fault { operation: Some(Operation::Write), after: 1, lasting: true });
    medium.fail(Fault { operation: None, after: 3, lasting: false });
    file.write_all_at(&[b"1"], 0).expect("the first one");
    file.write_all_at(&[b"2"], 0).expect_err("the second one");
    file.length().expect("the third operation");
    file.length().expect_err("the fourth one");
    file.length().expect("the fifth one");
    file.write_all_at(&[b"2"], 0).expect_err("from the second one on");
    assert_eq!(medium.mend(), [Operation::Write, Operation::Length].into());
    assert_eq!(medium.mend(), [].into());
    file.write_all_at(&[b"2"], 0).expect("mended");
}

#[test]
fn a_full_medium_takes_what_fits_and_more_when_there_is_room_again() {
    let (medium, file) = medium(5, 8);
    medium.set_total_bytes(3 * 4096);
    let full = file.write_all_at(&[&[b'1'; 16_384]], 0).expect_err("no room");
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    assert_eq!(medium.read(at("/file")).expect("read"), [b'1'; 12_288]);
    assert_eq!(medium.room(at("/")).expect("asked").available_bytes, 0);
    file.write_all_at(&[&[b'2'; 12_288]], 0).expect("it is all allocated already");
    file.punch(0, 4096).expect("given back");
    file.write_all_at(&[&[b'3'; 4096]], 12_288).expect("there is room again");
    drop(file);
    medium.remove(at("/file")).expect("removed");
    assert_eq!(medium.room(at("/")).expect("asked").available_bytes, 3 * 4096);
    medium.open(at("/new"), Open::New).expect("made").write_all_at(&[&[1; 4096]], 0).expect("written");
}

#[test]
fn moments_are_what_a_process_leaves_that_dies_there() {
    let (medium, file) = medium(6, 1);
    medium.keep_moments();
    file.write_all_at(&[b"12345678"], 0).expect("written");
    medium.rename(at("/file"), at("/moved")).expect("renamed");
    let moments = medium.take_moments();
    let name = |moment: &Simulated| if moment.exists(at("/file")).expect("looked for") { "/file" } else { "/moved" };
    let names: Vec<_> = moments.iter().map(name).collect();
    assert!(names.ends_with(&["/file", "/moved"]), "{names:?}");
    for moment in moments {
        let next = moment.kill();
        let bytes = next.read(at(name(&next))).expect("read");
        let written = bytes.iter().position(|byte| *byte == b'0').expect("not all was written");
        assert_eq!(&bytes[..written], &b"12345678"[..written]);
    }
    file.length().expect("the medium itself goes on");
}

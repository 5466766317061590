//! What every [`Medium`] must do while there is power, as one suite that is run on each implementation.
//!
//! ```
//! use medium::{Medium, Simulated, conformance};
//!
//! conformance::check(&Simulated::new(1), "/somewhere".as_ref());
//! ```

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::{File, Medium, Open, cannot_share};

/// Runs the suite in a directory of which only the one above may exist.
///
/// # Panics
/// When the medium breaks one of the promises.
pub fn check(medium: &dyn Medium, directory: &Path) {
    directories_are_made_with_those_above(medium, directory);
    files_are_opened_as_asked(medium, &directory.join("open"));
    what_was_written_is_read(medium, &directory.join("write"));
    lengths_are_set_and_ranges_given_back(medium, &directory.join("length"));
    ranges_are_cloned_or_refused(medium, &directory.join("cloned"));
    a_frozen_file_changes_no_more(medium, directory);
    names_change_at_once(medium, directory);
    a_nameless_file_stays_readable(medium, &directory.join("nameless"));
    contents_are_replaced_whole(medium, directory);
    a_lock_keeps_others_out(medium, &directory.join("lock"));
    threads_write_beside_each_other(medium, &directory.join("threads"));
}

fn kind<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> ErrorKind {
    outcome.expect_err("this fails").kind()
}

fn new(medium: &dyn Medium, path: &Path) -> Arc<dyn File> {
    medium.open(path, Open::New).expect("a new file can be made")
}

fn names(medium: &dyn Medium, directory: &Path) -> Vec<OsString> {
    let mut names = medium.list(directory).expect("a directory can be listed");
    names.sort();
    names
}

fn directories_are_made_with_those_above(medium: &dyn Medium, directory: &Path) {
    assert!(!medium.exists(directory).expect("a name can be looked for"));
    assert_eq!(kind(medium.list(directory)), ErrorKind::NotFound);
    assert_eq!(kind(medium.sync_directory(directory)), ErrorKind::NotFound);
    let below = directory.join("one/two");
    assert_eq!(kind(medium.open(&below.join("file"), Open::New)), ErrorKind::NotFound);
    for _ in 0..2 {
        medium.create_directory(&below).expect("a directory can be made, and made again");
    }
    assert!(medium.exists(&below).expect("a name can be looked for"));
    assert_eq!(names(medium, directory), ["one"]);
    assert_eq!(names(medium, &below), [""; 0]);
    medium.sync_directory(&below).expect("names can be made durable");
    drop(new(medium, &below.join("file")));
    assert!(medium.create_directory(&below.join("file")).is_err(), "a file is no directory");
    assert!(medium.open(&below.join("file/beyond"), Open::New).is_err(), "a file is no directory");
    assert!(medium.open(&below, Open::Existing).is_err(), "a directory is no file");
    assert!(medium.remove(&below).is_err(), "a directory is no file");
    let room = medium.room(directory).expect("there is room");
    assert!(room.available_bytes <= room.total_bytes && room.total_bytes > 0);
}

fn files_are_opened_as_asked(medium: &dyn Medium, path: &Path) {
    assert_eq!(kind(medium.open(path, Open::Existing)), ErrorKind::NotFound);
    new(medium, path).write_all_at(&[b"content"], 0).expect("a file can be written");
    assert_eq!(kind(medium.open(path, Open::New)), ErrorKind::AlreadyExists);
    let file = medium.open(path, Open::Existing).expect("it is there");
    assert_eq!(file.length().expect("it has a length"), 7);
    medium.open(path, Open::Replace).expect("it can be made empty");
    assert_eq!(file.length().expect("it has a length"), 0, "all handles are of one file");
    medium.open(&path.with_extension("other"), Open::Replace).expect("it can be made");
    assert!(medium.exists(&path.with_extension("other")).expect("a name can be looked for"));
}

fn what_was_written_is_read(medium: &dyn Medium, path: &Path) {
    let file = new(medium, path);
    let mut expected = vec![0; 20_000];
    for (number, offset, length) in [(1, 3, 5), (2, 510, 4), (3, 4090, 8200), (4, 0, 1), (5, 19_000, 1000), (6, 600, 0)]
    {
        let bytes = vec![number; length];
        expected[offset..offset + length].copy_from_slice(&bytes);
        let (first, second) = bytes.split_at(length / 3);
        file.write_all_at(&[first, b"", second], offset as u64).expect("it can be written");
        file.sync_data().expect("it can be made durable");
    }
    assert!(medium.read(path).expect("it can be read") == expected);
    let mut part = [9; 4];
    file.read_exact_at(&mut part, 509).expect("it can be read");
    assert_eq!(part, expected[509..513]);
    assert_eq!(kind(file.read_exact_at(&mut part, 19_997)), ErrorKind::UnexpectedEof);
    assert_eq!(kind(file.read_exact_at(&mut part, 1 << 40)), ErrorKind::UnexpectedEof);
    file.read_exact_at(&mut [], 1 << 40).expect("nothing is everywhere");
}

fn lengths_are_set_and_ranges_given_back(medium: &dyn Medium, path: &Path) {
    let file = new(medium, path);
    file.write_all_at(&[&[7; 40_000]], 0).expect("it can be written");
    file.set_length(10_001).expect("it can be cut");
    file.set_length(30_000).expect("it can be made longer");
    let mut expected = vec![7; 10_001];
    expected.resize(30_000, 0);
    assert!(medium.read(path).expect("it can be read") == expected, "what was cut off does not come back");
    file.sync_data().expect("it can be made durable");
    let before = file.allocated_bytes().expect("it takes room");
    assert!(before >= 8192);
    match file.punch(1000, 8000) {
        Ok(()) => expected[1000..9000].fill(0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
    }
    assert!(medium.read(path).expect("it can be read") == expected);
    assert!(file.allocated_bytes().expect("it takes room") <= before);
    assert_eq!(file.length().expect("it has a length"), 30_000);
}

fn ranges_are_cloned_or_refused(medium: &dyn Medium, path: &Path) {
    let (source, target) = (new(medium, &path.with_extension("source")), new(medium, path));
    let content: Vec<u8> = (0..40_960_u32).map(|at| (at / 512).to_le_bytes()[0]).collect();
    source.write_all_at(&[&content], 0).expect("it can be written");
    target.write_all_at(&[b"head"], 0).expect("it can be written");
    match target.clone_range(8192, &*source, 4096, 16_384) {
        Err(error) => assert!(cannot_share(&error), "{error}"),
        Ok(()) => {
            source.write_all_at(&[&[9; 20_000]], 4096).expect("it can be written");
            target.write_all_at(&[&[8; 10]], 8192).expect("it can be written");
            let mut expected = vec![0; 8192];
            expected[..4].copy_from_slice(b"head");
            expected.extend([8; 10]);
            expected.extend(&content[4106..20_480]);
            target.sync_data().expect("it can be made durable");
            assert!(medium.read(path).expect("it can be read") == expected, "neither is changed with the other");
            target.clone_range(3, &*source, 5, 1000).expect("what is no whole block is copied");
            let mut part = [0; 1000];
            target.read_exact_at(&mut part, 3).expect("it can be read");
            assert!(part[..] == [&content[5..1005]].concat());
            assert_eq!(kind(target.clone_range(0, &*source, 40_960, 4096)), ErrorKind::UnexpectedEof);
        }
    }
}

fn a_frozen_file_changes_no_more(medium: &dyn Medium, directory: &Path) {
    let path = directory.join("frozen");
    let source = new(medium, &path);
    source.write_all_at(&[&[1; 5000], &[2; 5001]], 0).expect("it can be written");
    let before = names(medium, directory);
    let frozen = match medium.freeze(&*source, directory) {
        Ok(frozen) => frozen,
        Err(error) => return assert!(cannot_share(&error), "{error}"),
    };
    assert_eq!(names(medium, directory), before, "it has no name");
    source.write_all_at(&[&[3; 20_000]], 0).expect("it can be written");
    source.set_length(1).expect("it can be cut");
    medium.remove(&path).expect("it can be removed");
    assert_eq!(frozen.length().expect("it has a length"), 10_001);
    let mut bytes = vec![0; 10_001];
    frozen.read_exact_at(&mut bytes, 0).expect("it can be read");
    assert!(bytes == [vec![1; 5000], vec![2; 5001]].concat());
}

fn names_change_at_once(medium: &dyn Medium, directory: &Path) {
    let [a, b] = ["a", "b"].map(|name| directory.join("one").join(name));
    assert_eq!(kind(medium.rename(&a, &b)), ErrorKind::NotFound);
    new(medium, &a).write_all_at(&[b"a"], 0).expect("it can be written");
    let old = new(medium, &b);
    old.write_all_at(&[b"old"], 0).expect("it can be written");
    medium.rename(&a, &b).expect("a file takes the place of another");
    assert_eq!(medium.read(&b).expect("it can be read"), b"a");
    assert_eq!(names(medium, a.parent().expect("it is in a directory")), ["b", "two"]);
    old.read_exact_at(&mut [0; 3], 0).expect("it can be read to the end");
    medium.rename(&directory.join("one/two"), &directory.join("one/three")).expect("directories have names too");
    assert_eq!(names(medium, &directory.join("one/three")), ["file"]);
    assert!(medium.rename(&b, &directory.join("one/three")).is_err(), "a file does not replace a directory");
    medium.remove(&b).expect("a file can be removed");
    assert_eq!(kind(medium.remove(&b)), ErrorKind::NotFound);
    assert_eq!(kind(medium.open(&b, Open::Existing)), ErrorKind::NotFound);
}

fn a_nameless_file_stays_readable(medium: &dyn Medium, path: &Path) {
    let file = new(medium, path);
    file.write_all_at(&[b"before"], 0).expect("it can be written");
    medium.remove(path).expect("it can be removed");
    file.write_all_at(&[b"after"], 6).expect("it can be written");
    let other = new(medium, path);
    let mut bytes = [0; 11];
    file.read_exact_at(&mut bytes, 0).expect("it can be read");
    assert_eq!(&bytes, b"beforeafter");
    assert_eq!(other.length().expect("it has a length"), 0);
}

fn contents_are_replaced_whole(medium: &dyn Medium, directory: &Path) {
    let path = directory.join("replaced/file");
    medium.create_directory(&directory.join("replaced")).expect("a directory can be made");
    for content in [&b"the first"[..], b"2", b""] {
        let file = medium.replace(&path, content).expect("a content can be replaced");
        assert_eq!(medium.read(&path).expect("it can be read"), content);
        assert_eq!(file.length().expect("it has a length"), content.len() as u64);
        assert_eq!(names(medium, &directory.join("replaced")), ["file"], "nothing is left beside it");
    }
}

fn a_lock_keeps_others_out(medium: &dyn Medium, path: &Path) {
    let first = medium.lock(path).expect("it is free");
    assert_eq!(kind(medium.lock(path)), ErrorKind::WouldBlock);
    drop(first);
    drop(medium.lock(path).expect("it is free again"));
    assert!(medium.exists(path).expect("a name can be looked for"));
}

fn threads_write_beside_each_other(medium: &dyn Medium, path: &Path) {
    let file = new(medium, path);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let file = &file;
            scope.spawn(move || {
                for block in 0..32 {
                    let offset = (block * 4 + u64::from(thread)) * 700;
                    file.write_all_at(&[&[thread + 1; 700]], offset).expect("it can be written");
                    file.sync_data().expect("it can be made durable");
                }
            });
        }
    });
    let bytes = medium.read(path).expect("it can be read");
    assert_eq!(bytes.len(), 128 * 700);
    assert!(
        bytes
            .chunks(700)
            .enumerate()
            .all(|(number, block)| block.iter().all(|byte| usize::from(*byte) == number % 4 + 1))
    );
}

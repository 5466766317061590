//! What was committed survives whatever happens to the end of the packs and to the index, at every byte.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use format::pack::RECORD_HEADER_BYTES;
use store::conformance::{chunk_key, sample};
use store::{ChunkStore, Domain, Domains, LocalOptions, LocalStore, StoreError};
use tempfile::TempDir;

const OPTIONS: LocalOptions = LocalOptions { pack_bytes: 1 << 20, cache_bytes: 0, hot_bytes: 0, reserve_bytes: 0 };
const HOST: Domain = Domain(5);
/// Short ones, so that every byte can be tried.
const OBJECT_BYTES: usize = 30;
const COMMITTED: Range<u32> = 0..3;
const UNCOMMITTED: Range<u32> = 3..5;

fn memory_directory() -> TempDir {
    // The death of a process is tried here, which needs no medium: synchronising thousands of times would be slow.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(directory: &Path) -> Arc<LocalStore> {
    LocalStore::open(directory, OPTIONS).unwrap()
}

fn plain(number: u32) -> Vec<u8> {
    sample(number, OBJECT_BYTES)
}

fn put(store: &LocalStore, number: u32) {
    assert!(store.put(&chunk_key(&plain(number)), HOST, &plain(number)).unwrap().new);
}

fn is_there(store: &LocalStore, number: u32, domain: Domain) -> bool {
    let found = store.get(&chunk_key(&plain(number)), &domain.into()).unwrap();
    found.inspect(|found| assert_eq!(found, &plain(number))).is_some()
}

fn first_pack(directory: &Path) -> PathBuf {
    directory.join("packs/00000001.pack")
}

/// A store with three committed objects and two that are not, and the pack's bytes at the commit and at the end.
fn prepared() -> (TempDir, u64, Vec<u8>) {
    let directory = memory_directory();
    let store = open(directory.path());
    COMMITTED.for_each(|number| put(&store, number));
    store.commit().unwrap();
    let committed_bytes = fs::metadata(first_pack(directory.path())).unwrap().len();
    UNCOMMITTED.for_each(|number| put(&store, number));
    drop(store);
    let bytes = fs::read(first_pack(directory.path())).unwrap();
    (directory, committed_bytes, bytes)
}

/// Puts the pack and the index back as they were at the commit, or takes the index away.
fn reset(directory: &Path, bytes: &[u8], index: Option<&Path>) {
    fs::write(first_pack(directory), bytes).unwrap();
    let place = directory.join("index");
    fs::remove_dir_all(&place).unwrap();
    if let Some(index) = index {
        copy_sparse(index, &place);
    }
}

/// Copies a directory; the zeroes at the end of files, which the index has many of, become holes.
fn copy_sparse(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_sparse(&entry.path(), &target);
            continue;
        }
        let length = entry.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(length.min(1 << 20)).unwrap()];
        std::io::Read::read_exact(&mut fs::File::open(entry.path()).unwrap(), &mut bytes).unwrap();
        fs::write(&target, bytes).unwrap();
        fs::File::options().write(true).open(&target).unwrap().set_len(length).unwrap();
    }
}

/// Opens a damaged store; the committed objects must be there, the others either whole or absent, and it must work on.
fn check(directory: &Path) -> u32 {
    let store = open(directory);
    for number in COMMITTED {
        assert!(is_there(&store, number, HOST), "object {number} was committed");
    }
    let survivors = UNCOMMITTED.filter(|number| is_there(&store, *number, HOST)).count();
    put(&store, 99);
    store.commit().unwrap();
    drop(store);
    let store = open(directory);
    assert_eq!(store.recovery().damages, 0);
    assert!(COMMITTED.chain([99]).all(|number| is_there(&store, number, HOST)));
    assert_eq!(store.statistics().unwrap().objects, u64::try_from(4 + survivors).unwrap());
    u32::try_from(survivors).unwrap()
}

#[test]
fn a_write_torn_at_any_byte_costs_nothing_that_was_committed() {
    let (directory, committed_bytes, bytes) = prepared();
    let index = memory_directory();
    copy_sparse(&directory.path().join("index"), index.path());
    let committed_bytes = usize::try_from(committed_bytes).unwrap();
    let record = RECORD_HEADER_BYTES + OBJECT_BYTES;
    assert_eq!(bytes.len(), committed_bytes + 2 * record);
    for length in committed_bytes..=bytes.len() {
        for index in [Some(index.path()), None] {
            reset(directory.path(), &bytes[..length], index);
            let survivors = check(directory.path());
            assert_eq!(usize::try_from(survivors).unwrap(), (length - committed_bytes) / record, "{length}");
        }
    }
}

#[test]
fn garbage_at_any_byte_of_the_tail_costs_nothing_that_was_committed() {
    let (directory, committed_bytes, bytes) = prepared();
    let index = memory_directory();
    copy_sparse(&directory.path().join("index"), index.path());
    for place in usize::try_from(committed_bytes).unwrap()..bytes.len() {
        // One bit, as a medium flips it; or the rest of the file zero, as when its length was written before its data.
        let mut flipped = bytes.clone();
        flipped[place] ^= 0x10;
        let mut zeroed = bytes.clone();
        zeroed[place..].fill(0);
        for (damaged, index) in [(&flipped, Some(index.path())), (&zeroed, None)] {
            reset(directory.path(), damaged, index);
            let survivors = check_with_damage(directory.path());
            assert!(survivors <= 2, "{place}");
        }
    }
}

/// As [`check`], where what is damaged may be followed by what is whole.
fn check_with_damage(directory: &Path) -> usize {
    let store = open(directory);
    assert!(COMMITTED.clone().all(|number| is_there(&store, number, HOST)));
    let survivors = UNCOMMITTED.filter(|number| is_there(&store, *number, HOST)).count();
    for number in UNCOMMITTED.filter(|number| !is_there(&store, *number, HOST)).collect::<Vec<_>>() {
        put(&store, number);
    }
    store.commit().unwrap();
    drop(store);
    let store = open(directory);
    assert!(COMMITTED.chain(UNCOMMITTED).all(|number| is_there(&store, number, HOST)));
    survivors
}

#[test]
fn a_corrupt_byte_damages_its_own_object_only() {
    let (directory, _, bytes) = prepared();
    let index = memory_directory();
    copy_sparse(&directory.path().join("index"), index.path());
    let record = RECORD_HEADER_BYTES + OBJECT_BYTES;
    for place in 64 + record..64 + 2 * record {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        reset(directory.path(), &damaged, Some(index.path()));
        let store = open(directory.path());
        let error = store.get(&chunk_key(&plain(1)), &HOST.into()).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { path, .. } if *path == first_pack(directory.path())), "{error}");
        assert!([0, 2, 3, 4].iter().all(|number| is_there(&store, *number, HOST)), "byte {place}");
        drop(store);
        // Without an index the damage is found at once, and the object can be put again.
        reset(directory.path(), &damaged, None);
        let store = open(directory.path());
        assert_eq!(store.recovery().damages, 1, "byte {place}");
        assert!([0, 2, 3, 4].iter().all(|number| is_there(&store, *number, HOST)), "byte {place}");
        assert!(!is_there(&store, 1, HOST));
        put(&store, 1);
        assert!(is_there(&store, 1, HOST));
        // A pack that was found damaged is followed by another one.
        drop(store);
        fs::remove_file(directory.path().join("packs/00000002.pack")).unwrap();
    }
}

#[test]
fn a_damaged_pack_head_costs_nothing() {
    let (directory, _, bytes) = prepared();
    for place in 0..64 {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        reset(directory.path(), &damaged, None);
        let store = open(directory.path());
        assert!((0..5).all(|number| is_there(&store, number, HOST)), "byte {place}");
        assert_eq!(store.recovery().damages, 1);
        put(&store, 50);
        store.commit().unwrap();
        drop(store);
        assert!(is_there(&open(directory.path()), 50, HOST));
        fs::remove_file(directory.path().join("packs/00000002.pack")).unwrap();
    }
}

#[test]
fn a_pack_that_was_only_just_created_is_taken_away() {
    let (directory, _, _) = prepared();
    let second = directory.path().join("packs/00000002.pack");
    for bytes in [&[][..], &[0; 64], &[0; 5000]] {
        fs::write(&second, bytes).unwrap();
        let store = open(directory.path());
        assert!((0..5).all(|number| is_there(&store, number, HOST)));
        assert!(!second.exists());
        assert_eq!(store.recovery().damages, 0);
    }
}

#[test]
fn no_damage_to_the_index_costs_anything() {
    let (directory, ..) = prepared();
    let index = memory_directory();
    copy_sparse(&directory.path().join("index"), index.path());
    let mut files = Vec::new();
    list_files(index.path(), index.path(), &mut files);
    assert!(files.len() > 3, "the index has files: {files:?}");
    for file in files {
        for damage in [&b""[..], b"garbage that is no index at all", &[0xff; 4000]] {
            let bytes = fs::read(first_pack(directory.path())).unwrap();
            reset(directory.path(), &bytes, Some(index.path()));
            fs::write(directory.path().join("index").join(&file), damage).unwrap();
            let store = open(directory.path());
            assert!((0..5).all(|number| is_there(&store, number, HOST)), "{}", file.display());
        }
    }
}

#[test]
fn damage_to_the_tables_of_an_index_in_use_is_repaired() {
    const OBJECTS: u32 = 60_000;
    let directory = memory_directory();
    let store = open(directory.path());
    let small = |number: u32| number.to_le_bytes();
    for number in 0..OBJECTS {
        store.put(&chunk_key(&small(number)), HOST, &small(number)).unwrap();
    }
    store.commit().unwrap();
    drop(store);
    let index = directory.path().join("index");
    let mut files = Vec::new();
    list_files(&index, &index, &mut files);
    let is_table = |file: &&PathBuf| {
        let length = fs::metadata(index.join(file)).unwrap().len();
        file.components().any(|part| part.as_os_str() == "tables") && length > 1 << 20
    };
    let table = index.join(files.iter().find(is_table).expect("the index has a large table"));
    // Its data, and not what the engine looks at when it opens it.
    let mut bytes = fs::read(&table).unwrap();
    let half = bytes.len() / 2;
    bytes[5000..half].iter_mut().step_by(3000).for_each(|byte| *byte ^= 0x55);
    fs::write(&table, bytes).unwrap();
    let store = open(directory.path());
    assert!(!store.recovery().index_rebuilt, "the damage is not seen before it is read");
    for number in (0..OBJECTS).step_by(7) {
        let found = store.get(&chunk_key(&small(number)), &HOST.into()).unwrap();
        assert_eq!(found.as_deref(), Some(&small(number)[..]), "object {number} was committed");
    }
    put(&store, 1);
    store.commit().unwrap();
    assert_eq!(store.statistics().unwrap().objects, u64::from(OBJECTS) + 1);
    assert!(index.with_extension("damaged").exists(), "the damaged index is kept");
}

fn list_files(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            list_files(root, &entry.path(), files);
        } else {
            files.push(entry.path().strip_prefix(root).unwrap().to_owned());
        }
    }
}

#[test]
fn an_index_of_another_store_or_of_more_than_the_packs_have_is_rebuilt() {
    let (directory, committed_bytes, bytes) = prepared();
    let (other, ..) = prepared();
    reset(directory.path(), &bytes, Some(&other.path().join("index")));
    let store = open(directory.path());
    assert!(store.recovery().index_rebuilt);
    assert!((0..5).all(|number| is_there(&store, number, HOST)));
    drop(store);
    // The last committed record is gone from the pack, as after restoring an older copy of it.
    let shorter = usize::try_from(committed_bytes).unwrap() - 10;
    fs::write(first_pack(directory.path()), &bytes[..shorter]).unwrap();
    let store = open(directory.path());
    assert!(store.recovery().index_rebuilt);
    assert!(is_there(&store, 0, HOST) && is_there(&store, 1, HOST) && !is_there(&store, 2, HOST));
    put(&store, 2);
}

#[test]
fn a_rebuilt_index_says_what_the_old_one_said() {
    let directory = memory_directory();
    let options = LocalOptions { pack_bytes: 2000, ..OPTIONS };
    let store = LocalStore::open(directory.path(), options).unwrap();
    for number in 0..60 {
        put(&store, number);
        if number % 7 == 0 {
            let again = store.put(&chunk_key(&plain(number)), Domain::OWN, &plain(number)).unwrap();
            assert!(!again.new);
        }
        if number % 10 == 0 {
            store.commit().unwrap();
        }
    }
    store.commit().unwrap();
    let before = store.statistics().unwrap();
    drop(store);
    let report = LocalStore::rebuild_index(directory.path()).unwrap();
    assert!(report.index_rebuilt && report.packs > 2 && report.damages == 0 && report.torn_bytes == 0, "{report:?}");
    assert_eq!(report.records, 60 + 9);
    let store = LocalStore::open(directory.path(), options).unwrap();
    assert!(!store.recovery().index_rebuilt);
    let after = store.statistics().unwrap();
    assert_eq!((after.objects, after.plain_bytes, after.stored_bytes), (60, before.plain_bytes, before.stored_bytes));
    for number in 0..60 {
        assert!(is_there(&store, number, HOST));
        assert_eq!(is_there(&store, number, Domain::OWN), number % 7 == 0);
        assert!(store.get(&chunk_key(&plain(number)), &Domains::from(Domain(6))).unwrap().is_none());
    }
}

#[test]
fn a_damaged_footer_costs_nothing() {
    let directory = memory_directory();
    let options = LocalOptions { pack_bytes: 500, ..OPTIONS };
    let store = LocalStore::open(directory.path(), options).unwrap();
    (0..20).for_each(|number| put(&store, number));
    store.commit().unwrap();
    drop(store);
    let bytes = fs::read(first_pack(directory.path())).unwrap();
    let content_end = 64 + 4 * (RECORD_HEADER_BYTES + OBJECT_BYTES);
    assert!(bytes.len() > content_end + 64, "the pack has a footer");
    for place in (content_end..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        reset(directory.path(), &damaged, None);
        let store = LocalStore::open(directory.path(), options).unwrap();
        assert!((0..20).all(|number| is_there(&store, number, HOST)), "byte {place}");
    }
}

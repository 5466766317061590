//! After a crash every record is there that is whole in the journal, wherever others are torn, and nothing else is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use fixture::{Node, noise, read_all, run};
use proptest::prelude::*;
use types::{Name, Progress};
use volume::{BlockDevice, DeviceError, Durability, Volume, VolumeError, Volumes};

const SECTOR: usize = 512;
const SECTORS: usize = 200;
const DISK: usize = SECTORS * SECTOR;
/// Where the first record begins.
const HEAD: usize = 128;

/// A write, as the journal has it.
#[derive(Clone, Debug)]
struct Write {
    sector: usize,
    data: Option<Vec<u8>>,
    sectors: usize,
    /// Where its record lies in the journal.
    record: Range<u64>,
}

fn name() -> Name {
    "disk".parse().unwrap()
}

fn journal_bytes(volume: &Volume) -> u64 {
    volume.status().journal_bytes.max(HEAD as u64)
}

/// Writes to a volume and remembers where each record lies.
fn write(volume: &Volume, sector: usize, sectors: usize, data: Option<Vec<u8>>) -> Write {
    let start = journal_bytes(volume);
    let offset = (sector * SECTOR) as u64;
    match &data {
        Some(data) => volume.write(offset, data, Durability::Process).unwrap(),
        None => volume.write_zeroes(offset, (sectors * SECTOR) as u64, Durability::Process).unwrap(),
    }
    Write { sector, data, sectors, record: start..journal_bytes(volume) }
}

/// A zero is written for the zeroes beside it as well, and says what they say where their records are torn.
fn with_zeroes_beside(mut write: Write, zeroes: &mut [bool; SECTORS]) -> Write {
    let (mut start, mut end) = (write.sector, write.sector + write.sectors);
    if write.data.is_none() {
        start -= zeroes[..start].iter().rev().take_while(|zero| **zero).count();
        end += zeroes[end..].iter().take_while(|zero| **zero).count();
    }
    zeroes[start..end].fill(write.data.is_none());
    (write.sector, write.sectors) = (start, end - start);
    write
}

fn content<'w>(writes: impl IntoIterator<Item = &'w Write>) -> Vec<u8> {
    let mut bytes = vec![0; DISK];
    for write in writes {
        let target = &mut bytes[write.sector * SECTOR..][..write.sectors * SECTOR];
        match &write.data {
            Some(data) => target.copy_from_slice(data),
            None => target.fill(0),
        }
    }
    bytes
}

/// What happens to the journal while nobody looks.
#[derive(Clone, Debug)]
enum Harm {
    Cut(u64),
    Zero(Range<u64>),
    Flip(u64),
}

impl Harm {
    fn apply(&self, path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let clip = |at: u64| usize::try_from(at).unwrap().min(bytes.len());
        match self {
            Self::Cut(at) => bytes.truncate(clip(*at)),
            Self::Zero(range) => {
                let range = clip(range.start)..clip(range.end);
                bytes[range].fill(0);
            }
            Self::Flip(at) => {
                let at = clip(*at);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0x10;
                }
            }
        }
        std::fs::write(path, bytes).unwrap();
    }

    fn hits(&self, record: &Range<u64>) -> bool {
        match self {
            Self::Cut(at) => record.end > *at,
            Self::Zero(range) => range.start < record.end && record.start < range.end,
            Self::Flip(at) => record.contains(at),
        }
    }
}

fn harms() -> impl Strategy<Value = Harm> {
    const END: u64 = 200_000;
    prop_oneof![
        (0..END).prop_map(Harm::Cut),
        (0..END, 1..9000_u64).prop_map(|(start, length)| Harm::Zero(start..start + length)),
        (0..END).prop_map(Harm::Flip),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exactly_the_torn_records_are_missing(
        plan in prop::collection::vec((0..SECTORS, 1..30_usize, 0..9_u64), 1..20),
        harms in prop::collection::vec(harms(), 1..3),
        later in 0..SECTORS - 1,
    ) {
        let node = Node::new();
        let volume = node.open().create(&name(), DISK as u64).unwrap();
        let mut writes = Vec::new();
        let mut zeroes = [false; SECTORS];
        for (sector, sectors, seed) in plan {
            let sectors = sectors.min(SECTORS - sector);
            // Some data are zeroes, so that what a crash zeroes may not differ: the disk must not either.
            let data = (seed > 1).then(|| if seed > 2 { noise(seed, sectors * SECTOR) } else { vec![0; sectors * SECTOR] });
            writes.push(with_zeroes_beside(write(&volume, sector, sectors, data), &mut zeroes));
        }
        drop(volume);
        let journal = node.journals().pop().unwrap();
        let before = std::fs::read(&journal).unwrap();
        harms.iter().for_each(|harm| harm.apply(&journal));
        let after = std::fs::read(&journal).unwrap();
        let unchanged = |record: &Range<u64>| {
            let range = usize::try_from(record.start).unwrap()..usize::try_from(record.end).unwrap();
            after.get(range.clone()) == Some(&before[range])
        };
        // What a file begins with is there twice; without either, nobody knows whose it is.
        let is_known = unchanged(&(0..HEAD as u64 / 2)) || unchanged(&(HEAD as u64 / 2..HEAD as u64));
        let whole: Vec<_> = writes.iter().filter(|write| is_known && unchanged(&write.record)).cloned().collect();
        prop_assert!(writes.iter().all(|write| unchanged(&write.record) || harms.iter().any(|harm| harm.hits(&write.record))));

        let volumes = node.open();
        let volume = volumes.get(&name()).unwrap();
        prop_assert!(read_all(&*volume) == content(&whole), "recovered");
        // And life goes on: what is written now is found again beside it.
        let mut whole = whole;
        whole.push(write(&volume, later, 1, Some(noise(77, SECTOR))));
        volume.flush().unwrap();
        prop_assert!(read_all(&*node.open().get(&name()).unwrap()) == content(&whole), "recovered again");
        // A frozen journal with torn places in it is as good as any.
        let frozen = volumes.freeze(&[volume], |_| Vec::new()).unwrap().remove(0);
        let volumes = node.open();
        let base = run(volumes.seal(frozen.id(), &Progress::default())).unwrap();
        prop_assert!(read_all(&*volumes.view(base)) == content(&whole), "sealed");
    }
}

/// Copies a directory as a crash would leave it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.join("layers")).unwrap();
    for entry in std::fs::read_dir(from.join("layers")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join("layers").join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_record_that_a_guest_wrote_into_its_data_is_not_replayed() {
    let node = Node::new();
    let volume = node.open().create(&name(), DISK as u64).unwrap();
    let first = write(&volume, 0, 1, Some(noise(1, SECTOR)));
    // On a copy of the directory the same volume goes on, so that the guest gets hold of a record that is true: it
    // has the right secret, the right layer and a sequence number that would be next. Only its place is another.
    let twin_directory = tempfile::tempdir().unwrap();
    copy(node.directory.path(), twin_directory.path());
    let twin = node.open_in(twin_directory.path()).get(&name()).unwrap();
    let container = vec![7; 8 * SECTOR];
    // It goes on in a file of its own.
    let before = journal_bytes(&twin);
    write(&twin, 8, 8, Some(container.clone()));
    let stolen = write(&twin, 1, 1, Some(noise(666, SECTOR)));
    let old = node.journals()[0].file_name().unwrap().to_owned();
    let twin_files = std::fs::read_dir(twin_directory.path().join("layers")).unwrap();
    let twin_journal =
        twin_files.map(|entry| entry.unwrap().path()).find(|path| path.file_name().unwrap() != old).unwrap();
    let in_file = |position: u64| usize::try_from(position - before).unwrap();
    let range = in_file(stolen.record.start)..in_file(stolen.record.end);
    let stolen_bytes = std::fs::read(twin_journal).unwrap()[range].to_vec();

    let mut forged = container;
    for at in [0, 1024, 2048 + 64] {
        forged[at..at + stolen_bytes.len()].copy_from_slice(&stolen_bytes);
    }
    let carrier = write(&volume, 8, 8, Some(forged));
    let last = write(&volume, 100, 1, Some(noise(3, SECTOR)));
    volume.flush().unwrap();
    let untouched = tempfile::tempdir().unwrap();
    copy(node.directory.path(), untouched.path());
    assert!(read_all(&*node.open_in(untouched.path()).get(&name()).unwrap()) == content([&first, &carrier, &last]));
    // With the carrier torn, recovery looks for the next record inside its data, and finds only the true one after.
    Harm::Flip(carrier.record.start + 9).apply(&node.journals()[0]);
    assert!(read_all(&*node.open().get(&name()).unwrap()) == content([&first, &last]));
}

#[test]
fn an_old_record_does_not_come_back_at_its_old_place() {
    let node = Node::new();
    let volume = node.open().create(&name(), DISK as u64).unwrap();
    let first = write(&volume, 0, 1, Some(noise(1, SECTOR)));
    write(&volume, 4, 1, Some(noise(2, SECTOR)));
    let journal = node.journals()[0].clone();
    let old = std::fs::read(&journal).unwrap();
    // The second record is torn, and another takes its number; then the disk brings the old one back behind it.
    Harm::Cut(first.record.end + 10).apply(&journal);
    let volume = node.open().get(&name()).unwrap();
    let second = write(&volume, 4, 1, None);
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes.extend(&old[bytes.len()..]);
    std::fs::write(&journal, bytes).unwrap();
    assert!(read_all(&*node.open().get(&name()).unwrap()) == content([&first, &second]));
}

fn frozen_with_data(volumes: &Arc<Volumes>) -> (Arc<Volume>, types::FrozenId) {
    let volume = volumes.create(&name(), DISK as u64).unwrap();
    write(&volume, 3, 20, Some(noise(5, 20 * SECTOR)));
    let frozen = volumes.freeze(std::slice::from_ref(&volume), |_| Vec::new()).unwrap().remove(0);
    (volume, frozen.id())
}

#[test]
fn a_damaged_frozen_journal_is_reported_and_never_sealed() {
    for harm in [Harm::Flip(5000), Harm::Cut(5000), Harm::Zero(128..192)] {
        let node = Node::new();
        let volumes = node.open();
        let other: Name = "other".parse().unwrap();
        volumes.create(&other, DISK as u64).unwrap();
        let (_, id) = frozen_with_data(&volumes);
        let journal = node.journals()[0].clone();
        harm.apply(&journal);
        // Noticed while the process runs, before anything is made of it.
        let sealed = run(volumes.seal(id, &Progress::default()));
        assert!(matches!(sealed, Err(VolumeError::Damaged { path }) if path == journal), "{harm:?}");
        // And when it starts: what needs the layer fails, the rest works.
        let volumes = node.open();
        let mut buffer = vec![0; SECTOR];
        let frozen = volumes.frozen(id).unwrap();
        for device in [&*frozen as &dyn BlockDevice, &*volumes.get(&name()).unwrap()] {
            assert!(matches!(device.try_read(0, &mut buffer), Err(DeviceError::Store(_))), "{harm:?}");
        }
        assert!(matches!(run(volumes.seal(id, &Progress::default())), Err(VolumeError::Damaged { .. })));
        assert_eq!(read_all(&*volumes.get(&other).unwrap()), vec![0; DISK]);
        // Nor is it forgotten when the roots say something new of the journal.
        let volume = volumes.get(&name()).unwrap();
        write(&volume, 100, 1, Some(noise(6, SECTOR)));
        volumes.freeze(&[volume], |_| Vec::new()).unwrap();
        let frozen = node.open().frozen(id).unwrap();
        assert!(matches!(frozen.try_read(0, &mut buffer), Err(DeviceError::Store(_))), "{harm:?}, later");
    }
}

#[test]
fn a_lost_frozen_journal_is_damage_and_a_stray_one_is_deleted() {
    let node = Node::new();
    let (_, id) = frozen_with_data(&node.open());
    let stray = node.directory.path().join("layers").join(format!("{}.journal", types::LayerId([9; 16])));
    std::fs::write(&stray, b"left over").unwrap();
    std::fs::remove_file(node.journals().into_iter().find(|path| *path != stray).unwrap()).unwrap();
    let volumes = node.open();
    assert!(!stray.exists());
    let read = volumes.frozen(id).unwrap().try_read(0, &mut [0; 512]);
    assert!(matches!(read, Err(DeviceError::Store(_))));
}

#[test]
fn a_file_of_which_nobody_knows_what_it_is_goes_with_its_journal() {
    let node = Node::new();
    let volumes = node.open();
    volumes.create(&name(), DISK as u64).unwrap().write(0, &noise(1, SECTOR), Durability::Power).unwrap();
    drop(volumes);
    // Both headers name the journal, and neither is right.
    let journal = node.journals()[0].clone();
    Harm::Flip(60).apply(&journal);
    Harm::Flip(124).apply(&journal);
    let volumes = node.open();
    assert_eq!(node.journals(), [journal], "somebody may want to look at it");
    volumes.remove(&name()).unwrap();
    assert!(node.journals().is_empty());
}

#[test]
fn a_journal_of_a_newer_version_is_refused() {
    let node = Node::new();
    let volume = node.open().create(&name(), DISK as u64).unwrap();
    write(&volume, 0, 1, Some(noise(1, SECTOR)));
    let journal = node.journals()[0].clone();
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[8] = 3;
    std::fs::write(&journal, &bytes).unwrap();
    let source = Arc::new(store::NoSource);
    let opened = Volumes::open(node.directory.path(), node.store.clone(), source, volume::VolumeOptions::default());
    assert!(matches!(opened, Err(VolumeError::Newer { version: 3, .. })));
    assert_eq!(std::fs::read(&journal).unwrap(), bytes, "and left alone");
}

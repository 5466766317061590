//! What a volume writes to: a line of segments, to the last of which records are appended.
//!
//! Invariants: what [`Journal::append`] has entered has reached the kernel, and stays where it is as long as a map says
//! so; what had been appended when [`Journal::sync`] began is durable when it returns. A failed append leaves the journal
//! as it was. A segment is made with the first record that needs it: a volume that nobody has written to has none.
//! Locks are taken in this order: `tidying`, `appender`, a layer's map, `segments`.

mod appending;
mod listing;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use format::journal::JournalKeys;
use types::JournalId;

pub(crate) use appending::place_of;

use crate::device::DeviceError;
use crate::layer::Layer;
use crate::locks::{Mutex, RwLock};
use crate::records::SegmentRecord;
use crate::segment::{Segment, SegmentFiles};

/// The secret of a volume's journal.
#[derive(Clone, Copy)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A journal.
#[derive(Debug)]
pub(crate) struct Journal {
    id: JournalId,
    secret: Secret,
    keys: JournalKeys,
    files: Arc<SegmentFiles>,
    segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    appender: Mutex<Appender>,
    /// The layers that lie in it and count.
    layers: Mutex<Vec<Weak<Layer>>>,
    /// Segments that its root record names and that were not found so: it goes on to name them.
    damaged: Mutex<Vec<SegmentRecord>>,
    /// Files that are of this journal or of another one, nobody knows which part of it.
    strays: Mutex<Vec<Arc<PathBuf>>>,
    /// The segments that its root record names.
    listed: Mutex<BTreeSet<u32>>,
    /// How many records were appended.
    appended: AtomicU64,
    /// How many of them are durable.
    synced: AtomicU64,
    /// Held while the files are made durable.
    syncing: Mutex<()>,
    /// Whether there are files whose names may not be durable.
    new_names: AtomicBool,
    /// Set once the kernel has failed to make a file durable: what it has dropped then, nobody knows.
    failed: AtomicBool,
    /// How long all segments are together, in bytes.
    bytes: AtomicU64,
    /// Held while records are moved.
    pub(crate) tidying: Mutex<Moving>,
    /// Whether segments without a record of any layer were left to whoever held `tidying`.
    pub(crate) uncovered_left: AtomicBool,
    /// Whether work in the background was asked for and has not begun.
    pub(crate) asked: AtomicBool,
}

/// What only the one who appends may touch.
#[derive(Debug, Default)]
struct Appender {
    filling: Option<Filling>,
    next_segment: u32,
    /// Segments that may not be durable, beside the one that is being filled.
    unsynced: Vec<Arc<Segment>>,
}

/// A segment that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    pub(crate) segment: Arc<Segment>,
    /// How many records it has.
    records: usize,
}

/// Where records are moved to.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    filling: Option<Filling>,
    /// Full segments that may not be durable.
    unsynced: Vec<Arc<Segment>>,
}

/// What must be durable before a segment may go of which nothing counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needed {
    /// Nothing: no layer has a record in it.
    Nothing,
    /// What took the place of its records, if a flush has covered them.
    Flushed,
    /// What took the place of its records, and is.
    Durable,
}

impl Journal {
    /// A journal that has no segment yet.
    pub(crate) fn new(files: Arc<SegmentFiles>, id: JournalId, secret: Secret) -> Self {
        Self {
            id,
            keys: JournalKeys::new(&secret.0),
            secret,
            files,
            segments: RwLock::default(),
            appender: Mutex::default(),
            layers: Mutex::default(),
            damaged: Mutex::default(),
            strays: Mutex::default(),
            listed: Mutex::default(),
            appended: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            syncing: Mutex::default(),
            new_names: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            tidying: Mutex::default(),
            uncovered_left: AtomicBool::new(false),
            asked: AtomicBool::new(false),
        }
    }

    /// Gives no other segment a number that one had, even if it has nothing: its file may still be there.
    pub(crate) fn number_is_used(&self, number: u32) {
        let mut appender = self.appender.lock();
        appender.next_segment = appender.next_segment.max(number.saturating_add(1));
    }

    /// Keeps a file that has a damaged header until all journals are gone that it may belong to.
    pub(crate) fn keep_stray(&self, path: Arc<PathBuf>) {
        self.strays.lock().push(path);
    }

    /// Deletes the files that only this journal kept, as nothing refers to it any more.
    pub(crate) fn delete_strays(&self) {
        let strays = std::mem::take(&mut *self.strays.lock());
        strays.into_iter().filter_map(Arc::into_inner).for_each(|path| self.files.delete(&path));
    }

    /// Goes on to name a segment that was not found as the root record says, so that the next process finds out too.
    pub(crate) fn keep_listed(&self, record: SegmentRecord) {
        self.damaged.lock().push(record);
    }

    /// Whether a segment was not found as the root record says.
    pub(crate) fn is_damaged(&self, number: u32) -> bool {
        self.damaged.lock().iter().any(|record| record.number == number)
    }

    /// Takes in a segment that was found, before anyone appends.
    pub(crate) fn take_in(&self, segment: Segment, listed: bool) {
        let segment = Arc::new(segment);
        let mut appender = self.appender.lock();
        // What has a footer was durable before it got one.
        if segment.durable() < segment.tail() {
            appender.unsynced.push(segment.clone());
        }
        // What was found must be made durable before anyone is told that it is.
        self.appended.store(1, Ordering::Release);
        self.new_names.store(true, Ordering::Release);
        self.bytes.fetch_add(segment.tail(), Ordering::AcqRel);
        if listed {
            self.listed.lock().insert(segment.number());
        }
        self.segments.write().insert(segment.number(), segment);
    }

    pub(crate) fn id(&self) -> JournalId {
        self.id
    }

    pub(crate) fn secret(&self) -> Secret {
        self.secret
    }

    pub(crate) fn keys(&self) -> &JournalKeys {
        &self.keys
    }

    pub(crate) fn files(&self) -> &SegmentFiles {
        &self.files
    }

    /// How long all segments are together, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// A segment, if it is still there.
    pub(crate) fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.segments.read().get(&number).cloned()
    }

    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.read().values().cloned().collect()
    }

    /// The layers that lie in it and count.
    pub(crate) fn layers(&self) -> Vec<Arc<Layer>> {
        self.layers.lock().iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn add_layer(&self, layer: &Arc<Layer>) {
        let mut layers = self.layers.lock();
        layers.retain(|layer| layer.strong_count() > 0);
        layers.push(Arc::downgrade(layer));
    }

    /// A layer does not count any more; whoever still reads it keeps its segments.
    pub(crate) fn forget_layer(&self, layer: &Arc<Layer>) {
        layer.hold_segments();
        self.layers.lock().retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(layer)));
    }

    /// What still counts of a segment, in bytes.
    pub(crate) fn live_bytes(layers: &[Arc<Layer>], segment: &Segment) -> u64 {
        if layers.iter().any(|layer| layer.is_whole() && layer.reaches_into(segment)) {
            return segment.tail();
        }
        layers.iter().map(|layer| layer.live_bytes(segment.number())).sum()
    }

    /// Makes everything durable that has been appended.
    pub(crate) fn sync(&self) -> Result<(), DeviceError> {
        if self.synced.load(Ordering::Acquire) >= self.appended.load(Ordering::Acquire) {
            return self.check();
        }
        let _one = self.syncing.lock();
        self.check()?;
        let (target, segments) = {
            let mut appender = self.appender.lock();
            let target = self.appended.load(Ordering::Acquire);
            // Many flushes at once become one: whoever waited for the lock may find everything done.
            if self.synced.load(Ordering::Acquire) >= target {
                return Ok(());
            }
            let filling = appender.filling.as_ref().map(|filling| filling.segment.clone());
            let segments: Vec<_> = std::mem::take(&mut appender.unsynced).into_iter().chain(filling).collect();
            // While nobody can append, or take one of them away.
            segments.iter().for_each(|segment| segment.promised.store(true, Ordering::Release));
            (target, segments)
        };
        self.sync_segments(&segments).map_err(|source| failure("flush", source))?;
        self.synced.fetch_max(target, Ordering::AcqRel);
        Ok(())
    }

    /// Makes what was moved durable.
    pub(crate) fn sync_moved(&self, moving: &mut Moving) -> Result<(), DeviceError> {
        let filling = moving.filling.as_ref().map(|filling| &filling.segment);
        let filling = filling.filter(|segment| segment.durable() < segment.tail());
        let segments: Vec<_> = moving.unsynced.iter().chain(filling).cloned().collect();
        if segments.is_empty() {
            return Ok(());
        }
        let _one = self.syncing.lock();
        self.check()?;
        self.sync_segments(&segments).map_err(|source| failure("flush", source))?;
        moving.unsynced.clear();
        Ok(())
    }

    /// Makes segments durable, with their names; a failure is for ever.
    fn sync_segments(&self, segments: &[Arc<Segment>]) -> io::Result<()> {
        let new_names = self.new_names.swap(false, Ordering::AcqRel);
        let sync = || -> io::Result<()> {
            let ends = segments.iter().map(|segment| segment.sync()).collect::<io::Result<Vec<_>>>()?;
            if new_names {
                self.files.medium.sync_directory(&self.files.directory)?;
            }
            // No sooner: a record that names a segment must find its file.
            segments.iter().zip(ends).for_each(|(segment, end)| segment.is_durable(end));
            Ok(())
        };
        sync().inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    /// Fails for ever once the kernel has lost data: a later flush must not say that all is well.
    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(failure("flush", io::Error::other("an earlier flush failed")));
        }
        Ok(())
    }
}

/// What a failed operation on a journal means for the request.
pub(crate) fn failure(operation: &'static str, source: io::Error) -> DeviceError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => DeviceError::Full,
        _ => DeviceError::Journal { operation, source },
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use format::journal::{DATA_CHECKSUM_BYTES, Record, RecordKind, SegmentId};
    use medium::simulated::{Fault, Operation};
    use medium::{Medium, Simulated};

    use super::*;
    use crate::extent_map::Place;
    use crate::segment::{FIRST_RECORD, RECORD_HEADER};

    fn journal(directory: &Path) -> Journal {
        let files = SegmentFiles::new(medium::Host::shared(), directory.to_owned(), 4096, 0);
        Journal::new(Arc::new(files), JournalId([1; 16]), Secret([1; 32]))
    }

    fn append(journal: &Journal, sequence: u64) -> Result<Place, DeviceError> {
        let data_checksum = [0; DATA_CHECKSUM_BYTES];
        let record = Record { kind: RecordKind::Zero, sequence, time_ms: 0, sector: 0, sectors: 1, data_checksum };
        let mut entered = None;
        journal.append(&[(record, &[])], |_, place| entered = Some(place))?;
        Ok(entered.unwrap())
    }

    #[test]
    fn a_file_is_made_with_the_first_record_and_only_for_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        journal.sync().unwrap();
        assert!(journal.segments().is_empty() && journal.bytes() == 0);
        assert_eq!(append(&journal, 1).unwrap(), Place::zero(0, FIRST_RECORD));
        assert_eq!(append(&journal, 2).unwrap(), Place::zero(0, FIRST_RECORD + RECORD_HEADER));
        journal.sync().unwrap();
        let segment = journal.segments().remove(0);
        assert_eq!(segment.durable(), segment.tail());
        assert_eq!(segment.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(segment.path().metadata().unwrap().len(), journal.bytes());
    }

    #[test]
    fn a_full_segment_is_followed_by_another() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        let places: Vec<_> = (1..=100).map(|sequence| append(&journal, sequence).unwrap().segment()).collect();
        assert_eq!((places[61], places[62], places[99]), (0, 1, 1));
        journal.sync().unwrap();
        assert!(journal.segments().iter().all(|segment| segment.durable() == segment.tail()));
    }

    fn simulated(seed: u64) -> (Simulated, Arc<SegmentFiles>, Journal) {
        let medium = Simulated::new(seed);
        medium.make_directory(Path::new("/layers")).unwrap();
        let files = Arc::new(SegmentFiles::new(medium.shared(), "/layers".into(), 4096, 8192));
        let journal = Journal::new(files.clone(), JournalId([1; 16]), Secret([1; 32]));
        (medium, files, journal)
    }

    #[test]
    fn a_file_that_is_used_again_is_there_after_a_loss_of_power() {
        for seed in 0..32 {
            let (medium, files, journal) = simulated(seed);
            // Whoever had it before never made its name durable.
            let id = SegmentId { journal: JournalId([2; 16]), number: 0, generation: [0; 16] };
            let before = files.make(id, &JournalKeys::new(&[2; 32])).unwrap();
            before.file().set_length(4096).unwrap();
            files.give_back(Arc::new(before));
            append(&journal, 1).unwrap();
            journal.sync().unwrap();
            let path = journal.segments()[0].path().to_owned();
            assert!(medium.power_cut(seed).exists(&path).unwrap(), "seed {seed}");
        }
    }

    #[test]
    fn no_record_names_a_segment_whose_name_may_be_lost() {
        let (medium, _, journal) = simulated(1);
        append(&journal, 1).unwrap();
        medium.fail(Fault { operation: Some(Operation::SyncDirectory), after: 0, lasting: false });
        assert!(journal.sync().is_err());
        assert!(journal.record(&BTreeSet::new()).segments.is_empty());
        let (_, _, journal) = simulated(1);
        append(&journal, 1).unwrap();
        journal.sync().unwrap();
        assert_eq!(journal.record(&BTreeSet::new()).segments.len(), 1);
    }

    #[test]
    fn after_a_failed_flush_nothing_says_that_all_is_well() {
        let directory = tempfile::tempdir().unwrap();
        let journal = journal(directory.path());
        append(&journal, 1).unwrap();
        journal.failed.store(true, Ordering::Release);
        assert!(journal.sync().is_err());
        assert!(append(&journal, 2).is_err());
    }
}

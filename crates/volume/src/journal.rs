//! What a volume writes to: a line of segments, to the last of which records are appended.
//!
//! Invariants: what [`Journal::append`] has entered has reached the kernel, and stays where it is as long as a map says
//! so; what had been appended when [`Journal::sync`] began is durable when it returns. A failed append leaves the journal
//! as it was. A segment is made with the first record that needs it: a volume that nobody has written to has none.
//! Locks are taken in this order: `tidying`, `appender`, a layer's map, `segments`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use format::journal::{HEADER_BYTES, JournalKeys, MAX_FOOTER_ENTRIES, Record, RecordKind, SegmentId};
use types::JournalId;

use crate::device::DeviceError;
use crate::extent_map::Place;
use crate::layer::Layer;
use crate::locks::{Mutex, RwLock};
use crate::records::{JournalRecord, SegmentRecord, VERSION};
use crate::segment::{FIRST_RECORD, RECORD_HEADER, Segment, SegmentFiles};

/// The secret of a volume's journal.
#[derive(Clone, Copy)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How many records go to the kernel in one call at most.
const MOST_AT_ONCE: usize = 256;

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
            listed: Mutex::default(),
            appended: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            syncing: Mutex::default(),
            new_names: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            tidying: Mutex::default(),
            asked: AtomicBool::new(false),
        }
    }

    /// Gives no other segment a number that one had, even if it has nothing: its file may still be there.
    pub(crate) fn number_is_used(&self, number: u32) {
        let mut appender = self.appender.lock();
        appender.next_segment = appender.next_segment.max(number.saturating_add(1));
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

    /// Appends records with their data, enters each where it lies, and says whether they needed a new segment. The caller
    /// holds the volume's writer: one at a time. After an error some of them may have been entered.
    pub(crate) fn append(
        &self,
        records: &[(Record, &[u8])],
        mut enter: impl FnMut(&Record, Place),
    ) -> Result<bool, DeviceError> {
        self.check()?;
        let mut appender = self.appender.lock();
        let before = appender.next_segment;
        let mut rest = records;
        while !rest.is_empty() {
            let filling =
                self.room_for(&mut appender, length(&rest[0])).map_err(|source| failure("append to", source))?;
            let (now, later) = rest.split_at(self.fitting(filling, rest));
            self.append_to(filling, now, &mut enter).map_err(|source| failure("append to", source))?;
            rest = later;
        }
        Ok(appender.next_segment != before)
    }

    /// How many records fit into the segment, at least one.
    fn fitting(&self, filling: &Filling, records: &[(Record, &[u8])]) -> usize {
        let mut end = filling.segment.tail();
        let room = MOST_AT_ONCE.min(MAX_FOOTER_ENTRIES - filling.records);
        let fits = |record: &&(Record, &[u8])| {
            end += length(record);
            end <= self.files.segment_bytes
        };
        records.iter().take(room).take_while(fits).count().max(1)
    }

    fn append_to(
        &self,
        filling: &mut Filling,
        records: &[(Record, &[u8])],
        enter: &mut impl FnMut(&Record, Place),
    ) -> io::Result<()> {
        let segment = &filling.segment;
        let start = segment.tail();
        let mut headers = Vec::with_capacity(records.len());
        let mut end = start;
        for record in records {
            headers.push(self.keys.encode(&segment.home, end, &record.0));
            end += length(record);
        }
        let parts = headers.iter().zip(records).flat_map(|(header, (_, data))| [&header[..], data]);
        let written = match &headers[..] {
            [header] => segment.file().write_all_at(&[header, records[0].1], start),
            _ => segment.file().write_all_at(&parts.collect::<Vec<_>>(), start),
        };
        if let Err(source) = written {
            // Whatever was written of it is not a record, and the next one takes its place: giving back the room is
            // a courtesy, so it may fail.
            if let Err(error) = segment.file().set_length(start) {
                tracing::warn!(path = %segment.path().display(), %error, "could not cut a failed append");
            }
            return Err(source);
        }
        let mut position = start;
        for record in records {
            enter(&record.0, place_of(&record.0, segment.number(), position));
            position += length(record);
        }
        filling.records += records.len();
        segment.appended(records[0].0.sequence, records[records.len() - 1].0.sequence, end);
        self.bytes.fetch_add(end - start, Ordering::AcqRel);
        self.appended.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// The segment that a record goes to.
    fn room_for<'a>(&self, appender: &'a mut Appender, length: u64) -> io::Result<&'a mut Filling> {
        if let Some(full) = appender.filling.take_if(|filling| self.is_full(filling, length)) {
            appender.unsynced.push(full.segment);
        }
        if appender.filling.is_none() {
            let number = appender.next_segment;
            appender.filling = Some(self.new_segment(number)?);
            appender.next_segment += 1;
        }
        appender.filling.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn is_full(&self, filling: &Filling, length: u64) -> bool {
        let tail = filling.segment.tail();
        let long = tail > FIRST_RECORD && tail + length > self.files.segment_bytes;
        long || filling.records >= MAX_FOOTER_ENTRIES
    }

    fn new_segment(&self, number: u32) -> io::Result<Filling> {
        if number > Place::MAX_SEGMENT {
            return Err(io::Error::other("the journal has had too many segments"));
        }
        let mut generation = [0; 16];
        getrandom::fill(&mut generation).map_err(io::Error::other)?;
        let segment = self.files.make(SegmentId { journal: self.id, number, generation }, &self.keys)?;
        self.new_names.store(true, Ordering::Release);
        let segment = Arc::new(segment);
        self.bytes.fetch_add(FIRST_RECORD, Ordering::AcqRel);
        self.segments.write().insert(number, segment.clone());
        Ok(Filling { segment, records: 0 })
    }

    /// Appends records that lie in other segments, with their own sequence numbers, for who tidies; enters nothing.
    pub(crate) fn append_moved(&self, moving: &mut Moving, record: &Record, data: &[u8]) -> io::Result<Place> {
        let pair = (*record, data);
        if let Some(full) = moving.filling.take_if(|filling| self.is_full(filling, length(&pair))) {
            moving.unsynced.push(full.segment);
        }
        if moving.filling.is_none() {
            let number = {
                let mut appender = self.appender.lock();
                appender.next_segment += 1;
                appender.next_segment - 1
            };
            let filling = self.new_segment(number)?;
            // What is moved may have been promised where it was.
            filling.segment.promised.store(true, Ordering::Release);
            moving.filling = Some(filling);
        }
        let Some(filling) = &mut moving.filling else { return Err(io::ErrorKind::NotFound.into()) };
        let segment = filling.segment.clone();
        let start = segment.tail();
        let header = self.keys.encode(&segment.home, start, record);
        segment.file().write_all_at(&[&header, data], start)?;
        filling.records += 1;
        segment.appended(record.sequence, record.sequence, start + length(&pair));
        self.bytes.fetch_add(length(&pair), Ordering::AcqRel);
        Ok(place_of(record, segment.number(), start))
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

    /// Its root record as of now: the segments, each as far as it is durable.
    pub(crate) fn record(&self, without: &BTreeSet<u32>) -> JournalRecord {
        let layers = self.layers();
        let mut damaged = self.damaged.lock().clone();
        damaged.retain(|record| covered(&layers, (record.first_sequence, record.last_sequence)));
        let is_damaged = |number: u32| damaged.iter().any(|record| record.number == number);
        let segments = self.segments.read();
        let durable = segments.values().filter(|segment| segment.durable() > FIRST_RECORD);
        let wanted = |number: u32| !without.contains(&number) && !is_damaged(number);
        let segments = durable.filter(|segment| wanted(segment.number())).filter_map(|segment| {
            let format::journal::Home::Segment(id) = segment.home else { return None };
            let (first_sequence, last_sequence) = segment.sequences();
            let (end, torn_bytes) = segment.durable_part();
            Some(SegmentRecord {
                number: id.number,
                generation: id.generation,
                end,
                torn_bytes,
                first_sequence,
                last_sequence,
            })
        });
        let damaged_too = damaged.iter().filter(|record| !without.contains(&record.number)).copied();
        JournalRecord { version: VERSION, secret: self.secret.0, segments: segments.chain(damaged_too).collect() }
    }

    /// Remembers which segments the root record names now.
    pub(crate) fn recorded(&self, record: &JournalRecord) {
        *self.listed.lock() = record.segments.iter().map(|segment| segment.number).collect();
    }

    /// Remembers which segments a root record may name that is not known to be durable.
    pub(crate) fn may_be_recorded(&self, record: &JournalRecord) {
        self.listed.lock().extend(record.segments.iter().map(|segment| segment.number));
    }

    pub(crate) fn is_listed(&self, number: u32) -> bool {
        self.listed.lock().contains(&number)
    }

    /// The segments that have no record of any layer, but of such as `counts` says no of.
    pub(crate) fn uncovered(&self, counts: impl Fn(&Layer) -> bool) -> BTreeSet<u32> {
        let layers: Vec<_> = self.layers().into_iter().filter(|layer| counts(layer)).collect();
        let uncovered = |segment: &&Arc<Segment>| Self::is_uncovered(&layers, segment);
        self.segments.read().values().filter(uncovered).map(|segment| segment.number()).collect()
    }

    fn is_uncovered(layers: &[Arc<Layer>], segment: &Segment) -> bool {
        !covered(layers, segment.sequences())
    }

    /// Takes out those of some segments of which nothing counts, if more is not needed.
    pub(crate) fn take_dead(&self, moving: &mut Moving, dead: &BTreeSet<u32>, needed: Needed) -> Vec<Arc<Segment>> {
        let mut appender = self.appender.lock();
        let layers = self.layers();
        // Nobody appends now: what was appended is in a map.
        let may_go = |number: &&u32| {
            let is_enough = |segment: &Segment| match needed {
                Needed::Nothing => Self::is_uncovered(&layers, segment),
                Needed::Flushed => !segment.promised.load(Ordering::Acquire),
                Needed::Durable => true,
            };
            let goes = |segment: Arc<Segment>| is_enough(&segment) && Self::live_bytes(&layers, &segment) == 0;
            self.segment(**number).is_some_and(goes)
        };
        let dead: BTreeSet<u32> = dead.iter().filter(may_go).copied().collect();
        let is_dead = |segment: &Segment| dead.contains(&segment.number());
        drop(appender.filling.take_if(|filling| is_dead(&filling.segment)));
        drop(moving.filling.take_if(|filling| is_dead(&filling.segment)));
        appender.unsynced.retain(|segment| !is_dead(segment));
        moving.unsynced.retain(|segment| !is_dead(segment));
        let mut segments = self.segments.write();
        let taken: Vec<_> = dead.iter().filter_map(|number| segments.remove(number)).collect();
        self.bytes.fetch_sub(taken.iter().map(|segment| segment.tail()).sum(), Ordering::AcqRel);
        taken
    }

    /// The segments that are being filled.
    pub(crate) fn filled(&self, moving: &Moving) -> BTreeSet<u32> {
        let appender = self.appender.lock();
        let both = appender.filling.iter().chain(&moving.filling);
        both.map(|filling| filling.segment.number()).collect()
    }
}

/// Whether layers have any of some sequence numbers.
fn covered(layers: &[Arc<Layer>], (first, last): (u64, u64)) -> bool {
    layers.iter().map(|layer| layer.range()).any(|(from, to)| from <= last && to.is_none_or(|to| first <= to))
}

fn length((record, _): &(Record, &[u8])) -> u64 {
    RECORD_HEADER + record.data_bytes()
}

/// Where the content of a record lies that begins at a position.
pub(crate) fn place_of(record: &Record, segment: u32, position: u64) -> Place {
    match record.kind {
        RecordKind::Write => Place::data(segment, position + HEADER_BYTES as u64),
        RecordKind::Zero | RecordKind::Discard => Place::zero(segment, position),
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

    use format::journal::DATA_CHECKSUM_BYTES;
    use medium::simulated::{Fault, Operation};
    use medium::{Medium, Simulated};

    use super::*;

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

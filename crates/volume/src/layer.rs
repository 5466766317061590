//! A layer: what was written to a volume between two moments. Frozen, it never changes, and volumes share it.
//!
//! It is all records of a journal whose sequence numbers lie in a range: nothing is copied or synced when a layer ends
//! and the next begins, and two layers that nothing separates any more are made one by saying so.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use format::journal::Record;
use types::LayerId;

use crate::base::CHUNK_SECTORS;
use crate::device::DeviceError;
use crate::error::VolumeError;
use crate::extent_map::{Content, ExtentMap, Place, Run};
use crate::journal::Journal;
use crate::locks::{Mutex, RwLock};
use crate::records::{LAYER_VERSION, LayerRecord};
use crate::replay::{check_segment, entries_of};
use crate::segment::{RECORD_HEADER, Segment};
use crate::steps::{Step, steps_of};

/// The last sequence number of a layer that is open.
const OPEN: u64 = u64::MAX;

/// How many runs of a map are taken at a time.
const RUNS_AT_ONCE: usize = 1024;

/// A range of a journal, and the map of what in it counts.
#[derive(Debug)]
pub(crate) struct Layer {
    id: LayerId,
    pub(crate) journal: Arc<Journal>,
    map: RwLock<ExtentMap>,
    first_sequence: AtomicU64,
    last_sequence: AtomicU64,
    /// The segments that it needs, once it does not count any more.
    held: OnceLock<BTreeMap<u32, Arc<Segment>>>,
    /// The file that was found damaged.
    damaged: OnceLock<PathBuf>,
    /// Whether all its records are kept, also those that do not count any more.
    whole: AtomicBool,
    /// How long all records are that were written to it, in bytes.
    written: AtomicU64,
    /// How many chunks it touched when it last had about so many extents, and how many those were.
    chunks: Mutex<(u64, u64)>,
}

/// What is done with each record and its data.
pub(crate) type Visit<'v> = dyn FnMut(&Record, &[u8]) -> ControlFlow<()> + 'v;

fn unreadable(segment: &Segment, source: std::io::Error) -> VolumeError {
    VolumeError::Io { operation: "read", path: segment.path().to_owned(), source }
}

/// What a run of sectors is read from.
#[derive(Debug)]
pub(crate) enum Source {
    /// Data at a position of a segment, which is there unless a file was lost.
    Data(Option<Arc<Segment>>, u64),
    Zero,
}

impl Layer {
    /// An empty layer, open, in a journal that is told of it.
    pub(crate) fn new(journal: Arc<Journal>, id: LayerId, first_sequence: u64) -> Arc<Self> {
        Self::with_map(journal, id, first_sequence, None, ExtentMap::default())
    }

    /// A layer that was found again.
    pub(crate) fn with_map(
        journal: Arc<Journal>,
        id: LayerId,
        first_sequence: u64,
        last_sequence: Option<u64>,
        map: ExtentMap,
    ) -> Arc<Self> {
        let layer = Arc::new(Self {
            id,
            map: RwLock::new(map),
            first_sequence: AtomicU64::new(first_sequence),
            last_sequence: AtomicU64::new(last_sequence.unwrap_or(OPEN)),
            held: OnceLock::new(),
            damaged: OnceLock::new(),
            whole: AtomicBool::new(false),
            written: AtomicU64::new(0),
            chunks: Mutex::default(),
            journal,
        });
        layer.journal.add_layer(&layer);
        layer
    }

    pub(crate) fn id(&self) -> LayerId {
        self.id
    }

    /// Says whether all its records are kept, for the past of a protected volume.
    pub(crate) fn keep_whole(&self, whole: bool) {
        self.whole.store(whole, Ordering::Release);
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// How long all records are that were written to it, in bytes.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Takes in how long the records were that it was found with.
    pub(crate) fn found_written(&self, bytes: u64) {
        self.written.store(bytes, Ordering::Release);
    }

    /// Calls `visit` with each record and its data, in the order of writing, until it says stop. Those that do not count
    /// any more are only there as long as the layer is kept whole.
    ///
    /// # Errors
    /// A journal that is damaged or cannot be read.
    pub(crate) fn each_record(&self, visit: &mut Visit<'_>) -> Result<(), VolumeError> {
        if let Some(path) = self.damaged() {
            return Err(VolumeError::Damaged { path: path.clone() });
        }
        let mut all = Vec::new();
        for segment in self.journal.segments().into_iter().filter(|segment| self.reaches_into(segment)) {
            let entries = entries_of(&segment, self.journal.keys()).map_err(|source| unreadable(&segment, source))?;
            let own = entries.into_iter().filter(|entry| self.covers(entry.record.sequence));
            all.extend(own.map(|entry| (segment.clone(), entry)));
        }
        all.sort_by_key(|(_, entry)| entry.record.sequence);
        let mut data = Vec::new();
        for (segment, entry) in all {
            data.resize(usize::try_from(entry.record.data_bytes()).unwrap_or(usize::MAX), 0);
            let position = entry.position + RECORD_HEADER;
            segment.read(position, &mut data).map_err(|source| unreadable(&segment, source))?;
            if !segment.matches(self.journal.keys(), &entry.record, &data) {
                return Err(VolumeError::Damaged { path: segment.path().to_owned() });
            }
            if visit(&entry.record, &data).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Whether a segment may have records of it.
    pub(crate) fn reaches_into(&self, segment: &Segment) -> bool {
        let ((first, last), (from, to)) = (segment.sequences(), self.range());
        from <= last && to.is_none_or(|to| first <= to)
    }

    /// Whether nothing was ever written to it.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.read().is_empty()
    }

    /// The first sequence number and, once it is frozen, the last.
    pub(crate) fn range(&self) -> (u64, Option<u64>) {
        let last = self.last_sequence.load(Ordering::Acquire);
        (self.first_sequence.load(Ordering::Acquire), (last != OPEN).then_some(last))
    }

    pub(crate) fn covers(&self, sequence: u64) -> bool {
        let (first, last) = self.range();
        first <= sequence && last.is_none_or(|last| sequence <= last)
    }

    /// Lets it begin where it will be written to from now on.
    pub(crate) fn begin_at(&self, sequence: u64) {
        self.first_sequence.store(sequence, Ordering::Release);
    }

    /// Ends it with a record, or opens it again.
    pub(crate) fn end_with(&self, sequence: Option<u64>) {
        self.last_sequence.store(sequence.unwrap_or(OPEN), Ordering::Release);
    }

    pub(crate) fn damaged(&self) -> Option<&PathBuf> {
        self.damaged.get()
    }

    pub(crate) fn mark_damaged(&self, path: PathBuf) {
        tracing::error!(path = %path.display(), "the journal is damaged: what is over it cannot be read");
        self.damaged.get_or_init(|| path);
    }

    /// The record of this layer.
    pub(crate) fn record(&self) -> LayerRecord {
        let (first_sequence, last_sequence) = self.range();
        LayerRecord { version: LAYER_VERSION, journal: self.journal.id(), first_sequence, last_sequence }
    }

    /// Appends records and enters them in the map, and says whether they needed a new segment. The caller holds the
    /// volume's writer.
    pub(crate) fn append(&self, records: &[(Record, &[u8])]) -> Result<bool, DeviceError> {
        self.journal.append(records, |record, place| {
            self.map.write().insert(record.sector, record.sector + record.sectors, place);
            self.written.fetch_add(RECORD_HEADER + record.data_bytes(), Ordering::AcqRel);
        })
    }

    /// A range that is to be zeroed, with the zeroes that it touches.
    pub(crate) fn with_zeroes_around(&self, sector: u64, sectors: u64) -> (u64, u64) {
        let (start, end) = self.map.read().with_zeroes_around(sector, sector + sectors);
        (start, end - start)
    }

    /// Finds what begins at a sector, at most to `end`.
    pub(crate) fn find(&self, start: u64, end: u64) -> Run {
        self.map.read().find(start, end)
    }

    /// Finds what begins at a sector, at most to `end`, and what it is read from.
    pub(crate) fn locate(&self, start: u64, end: u64) -> (u64, Option<Source>) {
        let map = self.map.read();
        let Run { end, place } = map.find(start, end);
        let source = match place.map(Place::content) {
            None => None,
            Some(Content::Zero(_)) => Some(Source::Zero),
            // The map is held: nobody can have moved it meanwhile.
            Some(Content::Data(number, position)) => {
                let segment = self.journal.segment(number).or_else(|| self.held.get()?.get(&number).cloned());
                Some(Source::Data(segment, position))
            }
        };
        (end, source)
    }

    /// How many sectors have data that still count.
    pub(crate) fn data_sectors(&self) -> u64 {
        self.map.read().data_sectors()
    }

    /// More chunks than it touches.
    pub(crate) fn most_chunks(&self) -> u64 {
        let map = self.map.read();
        // An extent begins and ends within a chunk.
        map.data_sectors() / CHUNK_SECTORS + 2 * map.extents()
    }

    /// How many chunks folding it composes, on a disk that ends at a sector: about, while it grows.
    pub(crate) fn chunks(&self, disk_end: u64) -> u64 {
        let extents = self.map.read().extents();
        let mut known = self.chunks.lock();
        if extents.abs_diff(known.0) > known.0 / 16 {
            *known = (extents, self.steps(disk_end).iter().map(Step::composed).sum());
        }
        known.1
    }

    /// What a fold has to do for it, on a disk that ends at a sector.
    pub(crate) fn steps(&self, disk_end: u64) -> Vec<Step> {
        steps_of(self.runs(), disk_end)
    }

    /// All that it says, in order. The runs are taken a few at a time, so that nobody waits for whoever goes through millions.
    fn runs(&self) -> impl Iterator<Item = (u64, u64, Place)> {
        let mut from = 0;
        let some = move || {
            let runs = self.map.read().some(from, RUNS_AT_ONCE);
            from = runs.last()?.1;
            Some(runs)
        };
        std::iter::from_fn(some).flatten()
    }

    /// What of a segment still counts in this layer, in bytes.
    pub(crate) fn live_bytes(&self, segment: u32) -> u64 {
        self.map.read().live_bytes(segment)
    }

    /// What of a record still counts, run by run.
    pub(crate) fn unmoved(&self, record: &Record, place: Place, runs: &mut Vec<(u64, u64)>) {
        runs.extend(self.map.read().unmoved(record.sector, record.sector + record.sectors, place));
    }

    /// Puts what still is where it was at another place.
    pub(crate) fn relocate(&self, start: u64, end: u64, from: Place, to: Place) {
        let mut map = self.map.write();
        // Who does not count any more has its segments, and no others.
        if self.held.get().is_none() {
            map.relocate(start, end, from, to);
        }
    }

    /// Takes in what a layer above it says, of the same journal.
    pub(crate) fn absorb(&self, above: &Self) {
        let mut map = self.map.write();
        for (start, end, place) in above.map.read().iter() {
            map.insert(start, end, place);
        }
    }

    /// Enters what a layer below it says where it says nothing itself, a few runs at a time.
    pub(crate) fn absorb_below(&self, below: &Self) {
        let mut from = 0;
        loop {
            let runs = below.map.read().some(from, RUNS_AT_ONCE);
            let Some((_, last, _)) = runs.last() else { return };
            from = *last;
            let mut map = self.map.write();
            for (start, end, place) in runs {
                map.insert_below(start, end, place);
            }
        }
    }

    /// Keeps the segments that it needs, for who reads it although it does not count any more.
    pub(crate) fn hold_segments(&self) {
        let map = self.map.write();
        let held = map.segments().filter_map(|number| Some((number, self.journal.segment(number)?)));
        self.held.get_or_init(|| held.collect());
    }

    /// Checks that a frozen layer's data still are what was written, before anything is made of them for good.
    pub(crate) fn verify(&self) -> Result<(), VolumeError> {
        let damaged = |path: PathBuf| VolumeError::Damaged { path };
        if let Some(path) = self.damaged() {
            return Err(damaged(path.clone()));
        }
        let numbers: Vec<_> = self.map.read().segments().collect();
        for segment in numbers.into_iter().filter_map(|number| self.journal.segment(number)) {
            let end = segment.tail();
            let start = segment.verified.load(Ordering::Acquire);
            if start >= end {
                continue;
            }
            let whole = check_segment(&segment, self.journal.keys(), start, end).map_err(|source| VolumeError::Io {
                operation: "read",
                path: segment.path().to_owned(),
                source,
            })?;
            if !whole {
                return Err(damaged(segment.path().to_owned()));
            }
            segment.verified.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use types::JournalId;

    use super::*;
    use crate::journal::Secret;
    use crate::segment::SegmentFiles;

    fn layer_of(runs: impl IntoIterator<Item = (u64, u64, Place)>) -> Arc<Layer> {
        let files = SegmentFiles::new(medium::Simulated::new(1).shared(), "/layers".into(), 4096, 0);
        let journal = Arc::new(Journal::new(Arc::new(files), JournalId([1; 16]), Secret([1; 32])));
        let mut map = ExtentMap::default();
        runs.into_iter().for_each(|(start, end, place)| map.insert(start, end, place));
        Layer::with_map(journal, LayerId([1; 16]), 1, Some(2), map)
    }

    #[test]
    fn what_a_fold_composes_is_counted_by_the_chunk() {
        // More runs than are taken at a time.
        let count = 3 * RUNS_AT_ONCE as u64;
        let scattered = (0..count).map(|chunk| (chunk * CHUNK_SECTORS + 8, chunk * CHUNK_SECTORS + 16));
        let layer = layer_of(scattered.map(|(start, end)| (start, end, Place::data(1, 64))));
        let end = 2 * count * CHUNK_SECTORS;
        assert_eq!((layer.steps(end), layer.chunks(end)), (vec![Step::Compose(0..count)], count));
        assert!(layer.most_chunks() >= count);
        let zeroed = layer_of([(8, 1000 * CHUNK_SECTORS + 8, Place::zero(1, 64))]);
        assert_eq!(zeroed.chunks(end), 2, "zeroes are made of nothing");
        assert_eq!(layer_of([(8, end - 8, Place::zero(1, 64))]).chunks(end - 8), 1, "nor is what the disk ends with");
    }
}

//! Space for what is written next, without hashing: segments of which nothing counts are used again, and those of which
//! little does are emptied by moving it.
//!
//! What is moved keeps its sequence number, so that it changes nothing of what a recovery finds: for a while there are
//! two of it. A segment is given up only when what took the place of its records is durable, and when the root record of
//! its journal does not name it any more. Layers that nothing separates are made one, so that what the upper one says is
//! not kept in the lower one as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use format::journal::{FooterEntry, Home, Record, RecordKind};
use types::{LayerId, SECTOR_BYTES};

use crate::device::DeviceError;
use crate::error::VolumeError;
use crate::journal::{Journal, Moving, Needed, failure, place_of};
use crate::layer::Layer;
use crate::pressure::idle;
use crate::records::{self, JournalRecord};
use crate::replay::{entries_of, replay};
use crate::segment::{FIRST_RECORD, RECORD_HEADER, Segment};
use crate::stack::{Context, Stack};
use crate::volume::Volume;
use crate::volumes::{Kept, Volumes};
use store::RootChange;

/// How many segments' length may not count before the fullest journals are tidied.
const SLACK_SEGMENTS: u64 = 3;

/// What becomes of segments that a flush has promised, and of which nothing counts any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promised {
    /// They go: what took the place of their records is made durable.
    Replace,
    /// They go once a flush has made that durable, as long as the journal is not longer than it may be.
    Await,
}

/// Layers that are to go.
#[derive(Debug)]
pub(crate) struct Removal {
    /// The records to change first.
    pub(crate) changes: Vec<RootChange>,
    freed: Vec<Arc<Layer>>,
    records: Vec<(Arc<Journal>, JournalRecord)>,
}

impl Volumes {
    /// Gives back what of a volume's journal does not count any more, moving what does where that pays, until the journal
    /// is not longer than one and a half times what counts, or less where room is short, and a few segments. Nothing is
    /// hashed or compressed.
    ///
    /// # Errors
    /// A journal that cannot be read or written, or a store that fails. What was done stays done.
    pub fn tidy(&self, volume: &Volume, promised: Promised) -> Result<(), VolumeError> {
        self.merge_layers(volume)?;
        let stack = volume.cell.stack();
        stack.layers.first().map_or(Ok(()), |open| self.tidy_journal(&open.journal, promised))
    }

    /// Gives the room of what does not count any more in a volume's journal back to the file system.
    pub(crate) fn give_room(&self, volume: &Volume) {
        let stack = volume.cell.stack();
        let Some(open) = stack.layers.first() else { return };
        let merged = if volume.cell.open().is_ok() { self.merge_layers(volume) } else { Ok(()) };
        if let Err(error) = merged.and_then(|()| self.tidy_journal(&open.journal, Promised::Replace)) {
            tracing::warn!(volume = %volume.name(), %error, "a journal could not be tidied");
        }
        self.context.files.give_room();
    }

    fn tidy_journal(&self, journal: &Arc<Journal>, promised: Promised) -> Result<(), VolumeError> {
        // Whoever writes meanwhile has it tidied again. Not in the loop's head, which would keep all segments for it.
        let segments = journal.segments().len();
        for _ in 0..=segments {
            if !self.tidy_segment(journal, promised)? {
                break;
            }
        }
        Ok(())
    }

    /// Gives up the segments of which nothing counts, and empties one if that is not enough; whether it was.
    fn tidy_segment(&self, journal: &Arc<Journal>, promised: Promised) -> Result<bool, VolumeError> {
        self.while_tidying(journal, |moving| {
            self.give_up_dead(journal, moving, promised)?;
            write_footers(journal, moving).map_err(|source| failure("tidy", source))?;
            let Some(segment) = worst(journal, moving) else { return Ok(false) };
            if let Err(error) = empty(journal, &segment, moving) {
                if !matches!(error, DeviceError::Full) {
                    segment.stuck.store(true, Ordering::Release);
                }
                return Err(error.into());
            }
            drop(segment);
            self.give_up_dead(journal, moving, Promised::Replace)?;
            Ok(true)
        })
    }

    /// Does something while nobody else moves a journal's records, then gives up what others could not meanwhile.
    fn while_tidying<T>(&self, journal: &Journal, work: impl FnOnce(&mut Moving) -> T) -> T {
        let done = work(&mut journal.tidying.lock());
        // Whoever finds the lock taken has said so before: one of the two sees what the other did.
        if journal.uncovered_left.swap(false, Ordering::AcqRel) {
            self.give_up_uncovered(&self.changes.lock(), journal);
        }
        done
    }

    /// Prepares to remove layers that nothing refers to: with their records those of their journals change.
    pub(crate) fn removal(kept: &Kept, freed: Vec<Arc<Layer>>) -> Removal {
        let journals: BTreeMap<_, _> = freed.iter().map(|layer| (layer.journal.id(), layer.journal.clone())).collect();
        let mut removal = Removal { changes: Vec::new(), freed, records: Vec::new() };
        removal.changes.extend(removal.freed.iter().map(|layer| (records::layer_name(layer.id()), None)));
        for (id, journal) in journals {
            let name = records::journal_name(id);
            if !kept.journals.contains(&id) {
                removal.changes.push((name, None));
                continue;
            }
            let uncovered = journal.uncovered(|layer| !removal.freed.iter().any(|freed| freed.id() == layer.id()));
            if uncovered.iter().any(|number| journal.is_listed(*number)) {
                let record = journal.record(&uncovered);
                removal.changes.push(records::put(name, &record));
                removal.records.push((journal, record));
            }
        }
        removal
    }

    /// Layers that no record names any more: what only they needed is given up.
    pub(crate) fn let_go(&self, changing: &MutexGuard<'_, ()>, removal: Removal) {
        removal.records.iter().for_each(|(journal, record)| journal.recorded(record));
        let mut journals: BTreeMap<_, Arc<Journal>> = BTreeMap::new();
        for layer in &removal.freed {
            layer.journal.forget_layer(layer);
            journals.insert(layer.journal.id(), layer.journal.clone());
        }
        for journal in journals.values() {
            if journal.layers().is_empty() {
                journal.delete_strays();
            }
            self.give_up_uncovered(changing, journal);
        }
    }

    /// Gives up the segments in which no layer has a record; if somebody moves records now, once that has ended.
    fn give_up_uncovered(&self, _: &MutexGuard<'_, ()>, journal: &Journal) {
        journal.uncovered_left.swap(true, Ordering::AcqRel);
        let Some(mut moving) = journal.tidying.try_lock() else { return };
        journal.uncovered_left.store(false, Ordering::Release);
        let uncovered = journal.uncovered(|_| true);
        let may_go = uncovered.into_iter().filter(|number| !journal.is_listed(*number) || journal.layers().is_empty());
        for segment in journal.take_dead(&mut moving, &may_go.collect(), Needed::Nothing) {
            journal.files().give_back(segment);
        }
    }

    /// Gives up the segments of which nothing counts.
    fn give_up_dead(&self, journal: &Arc<Journal>, moving: &mut Moving, promised: Promised) -> Result<(), VolumeError> {
        // Before it is looked what counts: to these nobody appends any more.
        let full: BTreeSet<u32> = journal.full(moving).iter().map(|segment| segment.number()).collect();
        let layers = journal.layers();
        // Of what is damaged nobody knows what counted: it stays as long as a layer is over it.
        let is_dead = |segment: &Arc<Segment>| {
            !journal.is_damaged(segment.number()) && Journal::live_bytes(&layers, segment) == 0
        };
        let dead: Vec<_> = journal.segments().into_iter().filter(is_dead).collect();
        let was_emptied = dead.iter().any(|segment| segment.emptied.load(Ordering::Acquire));
        let mut numbers: BTreeSet<u32> = dead.iter().map(|segment| segment.number()).collect();
        journal.found_dead(dead.iter().filter(|segment| full.contains(&segment.number())));
        // Only a file that nobody has is used again.
        drop(dead);
        if was_emptied {
            journal.sync_moved(moving)?;
        }
        for segment in journal.take_dead(moving, &numbers, Needed::Flushed) {
            numbers.remove(&segment.number());
            journal.files().give_back(segment);
        }
        // What took the place of their records must not be lost when they are. What is appended from here on is another
        // matter: who appends may bring back to life, and promise, what is being filled.
        numbers.retain(|number| full.contains(number));
        if promised == Promised::Await && !is_long(journal) {
            numbers.retain(|number| journal.is_replaced(*number));
        } else if !numbers.is_empty() {
            journal.sync()?;
        }
        if numbers.is_empty() {
            return Ok(());
        }
        journal.sync_moved(moving)?;
        let _changing = self.changes.lock();
        if journal.layers().is_empty() {
            // Its record has gone meanwhile, and so will all its segments.
            return Ok(());
        }
        if numbers.iter().any(|number| journal.is_listed(*number)) {
            let without = journal.uncovered(|_| true).union(&numbers).copied().collect();
            let record = journal.record(&without);
            let change = records::put(records::journal_name(journal.id()), &record);
            self.context.store.roots().apply(vec![change])?;
            journal.recorded(&record);
        }
        for segment in journal.take_dead(moving, &numbers, Needed::Durable) {
            journal.files().give_back(segment);
        }
        Ok(())
    }

    /// Makes layers of a volume one that nothing separates any more.
    pub(crate) fn merge_layers(&self, volume: &Volume) -> Result<(), VolumeError> {
        // Whoever folds counts on the layers as they are.
        let Ok(_folding) = volume.folding.try_lock() else { return Ok(()) };
        self.merge_unfolded_layers(volume)
    }

    /// The same for whoever sees to it that nobody folds.
    pub(crate) fn merge_unfolded_layers(&self, volume: &Volume) -> Result<(), VolumeError> {
        loop {
            let stack = volume.cell.open()?;
            let pair = stack.layers.windows(2).find(|pair| self.is_one(&pair[0], &pair[1])).map(<[_]>::to_vec);
            let Some(pair) = pair else { return Ok(()) };
            let made = self.while_tidying(&pair[0].journal, |_| {
                // Whoever froze or sealed while this one waited may have separated them, and given the segments of the lower one up.
                // From here on nobody can, and nobody is in the middle of freezing them.
                if !self.is_one_now(&self.changes.lock(), &pair[0], &pair[1]) {
                    return Ok(false);
                }
                // What is entered says nothing new to whoever reads both.
                pair[0].absorb_below(&pair[1]);
                let changing = self.changes.lock();
                let is_one = self.is_one_now(&changing, &pair[0], &pair[1]);
                if is_one {
                    self.make_one(&changing, &pair[0], &pair[1])?;
                }
                Ok::<_, VolumeError>(is_one)
            });
            if !made? {
                return Ok(());
            }
        }
    }

    /// The same, while nobody changes what volumes consist of.
    fn is_one_now(&self, _: &MutexGuard<'_, ()>, upper: &Layer, lower: &Layer) -> bool {
        self.is_one(upper, lower)
    }

    /// Whether every disk that has one of two layers has the other right below or above it, and nobody seals it.
    fn is_one(&self, upper: &Layer, lower: &Layer) -> bool {
        let ((first, _), (_, last)) = (upper.range(), lower.range());
        let adjacent = upper.journal.id() == lower.journal.id() && last.is_some_and(|last| last + 1 == first);
        let together = |stack: &Stack| {
            let place = |layer: &Layer| stack.layers.iter().position(|other| other.id() == layer.id());
            match (place(upper), place(lower)) {
                (None, None) => true,
                (Some(upper), Some(lower)) => upper + 1 == lower,
                _ => false,
            }
        };
        let registry = self.registry.read();
        let is_past = |volume: &Arc<Volume>| {
            let entries = volume.entries();
            let mut layers = entries.iter().flat_map(|(_, entry)| entry.before.stack().layers.clone());
            layers.any(|layer| layer.id() == upper.id() || layer.id() == lower.id())
        };
        adjacent
            && upper.damaged().is_none()
            && lower.damaged().is_none()
            && !upper.is_whole()
            && !lower.is_whole()
            && !registry.all_volumes().any(is_past)
            && registry.all_volumes().all(|volume| together(&volume.cell.stack()))
            && registry.frozen.values().all(|disk| {
                let stack = disk.cell.stack();
                let has = stack.layers.iter().any(|layer| layer.id() == upper.id());
                together(&stack) && (!has || disk.sealing.try_lock().is_ok())
            })
    }

    /// Makes two layers one, which the upper one already says all of.
    fn make_one(&self, _: &MutexGuard<'_, ()>, upper: &Arc<Layer>, lower: &Arc<Layer>) -> Result<(), VolumeError> {
        let without = |stack: &Stack, id: LayerId| {
            stack.with_layers(stack.layers.iter().filter(|layer| layer.id() != id).cloned().collect())
        };
        let has = |stack: &Stack| stack.layers.iter().any(|layer| layer.id() == lower.id());
        let (volumes, frozen): (Vec<_>, Vec<_>) = {
            let registry = self.registry.read();
            let volumes = registry.all_volumes().filter(|volume| has(&volume.cell.stack())).cloned();
            let frozen = registry.frozen.values().filter(|disk| has(&disk.cell.stack())).cloned();
            (volumes.collect(), frozen.collect())
        };
        let mut changes = Vec::new();
        for volume in &volumes {
            changes.push(volume.record(&without(&volume.cell.stack(), lower.id())));
        }
        for disk in &frozen {
            let next = without(&disk.cell.stack(), lower.id());
            changes.push(crate::frozen::Frozen::record(disk.id(), &next));
        }
        let mut record = upper.record();
        record.first_sequence = lower.range().0;
        changes.push(records::put(records::layer_name(upper.id()), &record));
        changes.push((records::layer_name(lower.id()), None));
        self.context.store.roots().apply(changes)?;
        upper.begin_at(record.first_sequence);
        for volume in volumes {
            volume.cell.replace(without(&volume.cell.stack(), lower.id()));
        }
        for disk in frozen {
            disk.cell.replace(without(&disk.cell.stack(), lower.id()));
        }
        lower.journal.forget_layer(lower);
        Ok(())
    }

    /// Has all journals tidied that need it.
    pub(crate) fn ask_for_all(&self) {
        for volume in self.list() {
            if let Some(open) = volume.cell.stack().layers.first().filter(|open| is_long(&open.journal)) {
                self.context.ask_to_tidy(&open.journal);
            }
        }
    }

    fn tidy_in_background(&self, journal: &Arc<Journal>) {
        let volume = self
            .list()
            .into_iter()
            .find(|volume| volume.cell.stack().layers.first().is_some_and(|open| open.journal.id() == journal.id()));
        let merged = volume.map_or(Ok(()), |volume| self.merge_layers(&volume));
        match merged.and_then(|()| self.tidy_segment(journal, Promised::Await)) {
            // After whoever waits: one segment at a time.
            Ok(true) => self.context.ask_to_tidy(journal),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "a journal could not be tidied"),
        }
    }
}

impl Context {
    /// Has a journal tidied in the background, if it needs it and nobody was asked yet.
    pub(crate) fn ask_to_tidy(&self, journal: &Arc<Journal>) {
        if !self.options.tidy_in_background || journal.asked.swap(true, Ordering::AcqRel) {
            return;
        }
        let (volumes, journal) = (self.volumes.get().cloned(), journal.clone());
        let asked = journal.clone();
        let begun = self.tidiers.try_run(move || {
            journal.asked.store(false, Ordering::Release);
            if let Some(volumes) = volumes.and_then(|volumes| volumes.upgrade()) {
                volumes.tidy_in_background(&journal);
            }
        });
        if !begun {
            // All are busy: who writes on asks again.
            asked.asked.store(false, Ordering::Release);
        }
    }
}

/// Writes the footers of full segments that have none and are durable.
fn write_footers(journal: &Journal, moving: &Moving) -> io::Result<()> {
    for segment in journal.full(moving) {
        let end = segment.tail();
        let durable = end > FIRST_RECORD && segment.durable() >= end;
        let lacks = !segment.has_footer.load(Ordering::Acquire) && !segment.stuck.load(Ordering::Acquire);
        if !(durable && lacks && matches!(segment.home, Home::Segment(_))) {
            continue;
        }
        let found = replay(segment.file(), journal.keys(), &segment.home, end)?;
        if found.end == end && found.torn_bytes == segment.torn_bytes() {
            segment.verified.fetch_max(end, Ordering::AcqRel);
            segment.close(journal.keys(), &found.entries)?;
        } else {
            // Sealing will say so, and so will whoever finds it again.
            tracing::error!(path = %segment.path().display(), "a segment is damaged");
            segment.stuck.store(true, Ordering::Release);
        }
    }
    Ok(())
}

/// What of a journal still counts, in bytes.
pub(crate) fn live_bytes(journal: &Journal) -> u64 {
    let layers = journal.layers();
    journal.segments().iter().map(|segment| Journal::live_bytes(&layers, segment)).sum()
}

/// Whether a journal is longer than what counts of it needs.
fn is_long(journal: &Journal) -> bool {
    let slack = SLACK_SEGMENTS * journal.files().segment_bytes;
    let bytes = journal.bytes();
    if bytes <= slack {
        return false;
    }
    let live = live_bytes(journal);
    bytes - slack > live + idle(live, journal.files().room())
}

/// The segment that has the least that counts, if the journal is longer than it needs to be.
fn worst(journal: &Journal, moving: &Moving) -> Option<Arc<Segment>> {
    if !is_long(journal) {
        return None;
    }
    let layers = journal.layers();
    let movable = journal.full(moving).into_iter().filter(|segment| {
        let own = matches!(segment.home, Home::Segment(_));
        own && !segment.stuck.load(Ordering::Acquire) && !journal.is_damaged(segment.number())
    });
    let share = |segment: &Arc<Segment>| {
        let live = Journal::live_bytes(&layers, segment);
        // In thousandths: what is left of a segment, of its length.
        live * 1000 / segment.tail().max(FIRST_RECORD)
    };
    movable
        .map(|segment| (share(&segment), segment))
        .filter(|(share, _)| *share < 900)
        .min_by_key(|(share, _)| *share)
        .map(|(_, segment)| segment)
}

/// Moves what still counts of a segment to the one that is filled for that.
fn empty(journal: &Journal, segment: &Arc<Segment>, moving: &mut Moving) -> Result<(), DeviceError> {
    let layers = journal.layers();
    let error = |source| failure("tidy", source);
    // Before anything is moved: it stays until that is durable.
    segment.emptied.store(true, Ordering::Release);
    let mut runs = Vec::new();
    let mut data = Vec::new();
    for entry in entries_of(segment, journal.keys()).map_err(error)? {
        let record = &entry.record;
        let place = place_of(record, segment.number(), entry.position);
        runs.clear();
        layers
            .iter()
            .filter(|layer| layer.covers(record.sequence))
            .for_each(|layer| layer.unmoved(record, place, &mut runs));
        if runs.is_empty() {
            continue;
        }
        read_checked(journal, segment, &entry, &runs, &mut data)?;
        for (start, end) in joined(&mut runs) {
            let from = usize::try_from((start - record.sector) * SECTOR_BYTES).unwrap_or(usize::MAX);
            let length = usize::try_from((end - start) * SECTOR_BYTES).unwrap_or(usize::MAX);
            let part = if record.kind == RecordKind::Write { &data[from..from + length] } else { &[][..] };
            let whole = end - start == record.sectors;
            let data_checksum =
                if whole || part.is_empty() { record.data_checksum } else { journal.keys().data_checksum(part) };
            let moved = Record { sector: start, sectors: end - start, data_checksum, ..*record };
            let to = journal.append_moved(moving, &moved, part).map_err(error)?;
            let from = place.advance(start - record.sector);
            layers.iter().for_each(|layer| layer.relocate(start, end, from, to));
        }
    }
    if Journal::live_bytes(&layers, segment) > 0 {
        // A layer took it in from one that is gone. Nobody is to try again and again.
        segment.stuck.store(true, Ordering::Release);
    }
    Ok(())
}

/// Reads a record's data. Where only a part is moved, which gets a checksum of its own, they must have theirs.
fn read_checked(
    journal: &Journal,
    segment: &Segment,
    entry: &FooterEntry,
    runs: &[(u64, u64)],
    data: &mut Vec<u8>,
) -> Result<(), DeviceError> {
    let record = &entry.record;
    let length = usize::try_from(record.data_bytes()).unwrap_or(usize::MAX);
    data.resize(length, 0);
    segment.read(entry.position + RECORD_HEADER, data).map_err(|source| failure("tidy", source))?;
    let whole = runs.iter().all(|(start, end)| end - start == record.sectors);
    if !whole && !segment.matches(journal.keys(), record, data) {
        let path = segment.path().to_owned();
        return Err(store::StoreError::Damaged { what: "a journal's record".to_owned(), path }.into());
    }
    Ok(())
}

/// Runs in order, those that touch or overlap as one.
fn joined(runs: &mut [(u64, u64)]) -> Vec<(u64, u64)> {
    runs.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
    for (start, end) in runs.iter().copied() {
        match joined.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => joined.push((start, end)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use store::{MemoryStore, NoSource};
    use types::Progress;

    use super::*;
    use crate::{BlockDevice, Durability, VolumeOptions};

    const SEGMENT: u64 = 64 << 10;

    fn opened() -> (tempfile::TempDir, Arc<Volumes>) {
        let directory = tempfile::tempdir().unwrap();
        let options = VolumeOptions { tidy_in_background: false, segment_bytes: SEGMENT, ..VolumeOptions::default() };
        let store = Arc::new(MemoryStore::new());
        let volumes = Volumes::open(directory.path(), store, Arc::new(NoSource), options).unwrap();
        (directory, volumes)
    }

    #[test]
    fn what_was_promised_waits_for_the_next_flush_while_there_is_room() {
        let (_directory, volumes) = opened();
        let disk = volumes.create(&"a".parse().unwrap(), 1 << 20).unwrap();
        let journal = disk.cell.stack().layers[0].journal.clone();
        // The same blocks each time, and each time a new segment; of the one before nothing counts then.
        let write = |byte: u8| {
            for block in 0..15 {
                disk.write(block * 4096, &[byte; 4096], Durability::Process).unwrap();
            }
        };
        let numbers = || journal.segments().iter().map(|segment| segment.number()).collect::<Vec<_>>();
        let tidied = |promised: Promised| {
            volumes.tidy(&disk, promised).unwrap();
            numbers()
        };
        write(0);
        write(1);
        assert_eq!(tidied(Promised::Await), [1], "nothing was promised");
        disk.flush().unwrap();
        write(2);
        write(3);
        assert_eq!(tidied(Promised::Await), [1, 3], "only what was flushed is waited with");
        disk.flush().unwrap();
        assert_eq!(tidied(Promised::Await), [3], "what took its place is durable");
        write(4);
        assert_eq!(tidied(Promised::Await), [3, 4]);
        assert_eq!(tidied(Promised::Replace), [4]);
        for byte in 5..9 {
            disk.flush().unwrap();
            write(byte);
        }
        assert!(is_long(&journal));
        volumes.while_tidying(&journal, |moving| volumes.give_up_dead(&journal, moving, Promised::Await)).unwrap();
        assert_eq!(numbers(), [8], "too long to wait");
    }

    #[test]
    fn what_was_emptied_is_not_written_to_again() {
        let (_directory, volumes) = opened();
        let disk = volumes.create(&"a".parse().unwrap(), 1 << 20).unwrap();
        let journal = disk.cell.stack().layers[0].journal.clone();
        // Of each segment one block goes on to count.
        for round in 0..8 {
            for block in (0..14).chain([100 + round]) {
                disk.write(block * 4096, &[7; 4096], Durability::Process).unwrap();
            }
        }
        disk.flush().unwrap();
        let first = journal.segments()[0].path().to_owned();
        assert!(is_long(&journal) && first.exists());
        volumes.tidy(&disk, Promised::Replace).unwrap();
        assert!(journal.segments()[0].number() > 0 && !first.exists());
        let mut block = [0; 4096];
        assert_eq!(disk.try_read(100 * 4096, &mut block).unwrap(), crate::Readiness::Ready);
        assert_eq!(block, [7; 4096]);
    }

    #[test]
    fn what_is_let_go_while_somebody_tidies_is_given_up_afterwards() {
        let (directory, volumes) = opened();
        let disk = volumes.create(&"a".parse().unwrap(), 1 << 20).unwrap();
        disk.write(0, &[7; 512], Durability::Process).unwrap();
        let frozen = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
        let journal = disk.cell.stack().layers[0].journal.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        volumes.while_tidying(&journal, |_| {
            runtime.block_on(volumes.seal(frozen.id(), &Progress::default())).unwrap();
            assert_eq!(journal.segments().len(), 1);
        });
        assert_eq!(journal.segments().len(), 0);
        assert_eq!(std::fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
    }
}

//! Rewind: what is written to a volume is kept for a while, and any moment of that can be cloned.
//!
//! While a volume is protected, each layer that ends is kept whole, with every record in the order in which it was
//! written, and beside it what the disk was before it. A clone as of a moment stands on that, and has the records up to
//! the moment copied into its own layer. Invariants: a window has no gaps, as every way in which a layer ends adds to it
//! in the same atomic step; a fold changes what a disk before a layer stands on, never what it is; the oldest goes
//! first, and the window says then that it begins later.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, MutexGuard};

use format::journal::{Record, RecordKind};
use store::RootChange;
use types::{LayerId, Name, VolumeId};

use crate::error::VolumeError;
use crate::journal::Secret;
use crate::layer::Layer;
use crate::reading::StackCell;
use crate::records::{self, HistoryRecord, ProtectionRecord, StackRecord};
use crate::stack::{Context, Stack};
use crate::volume::Volume;
use crate::volumes::{Owner, Volumes, random};

/// How long a protected volume's open layer grows before it ends, in bytes: so much is copied at most for a clone, but for
/// what is written within a second.
const LAYER_BYTES: u64 = 64 << 20;

/// How many layers a protected volume may have over its tree before they are folded.
pub(crate) const MOST_LAYERS: usize = 16;

/// How much is kept of what is written to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// In how much space at most, in bytes; the oldest goes first.
    pub space_bytes: Option<u64>,
}

/// What can be cloned of a protected volume's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// What was asked for.
    pub protection: Protection,
    /// The earliest moment, in milliseconds since 1970.
    pub from_ms: u64,
    /// How long the journals are that are kept for it, in bytes, without the one that is being written.
    pub bytes: u64,
}

/// The past of a protected volume.
#[derive(Debug)]
pub(crate) struct History {
    protection: Protection,
    /// The earliest moment: what was before is gone, or was never kept.
    since_ms: u64,
    /// When the open layer began.
    open_ms: u64,
    /// By number, in order.
    entries: BTreeMap<u64, Arc<Entry>>,
}

/// A layer that has ended.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The disk before it.
    pub(crate) before: Arc<StackCell>,
    /// The layer; `None` where nothing was written until the volume became another one.
    pub(crate) layer: Option<Arc<Layer>>,
    from_ms: u64,
    /// When it ended: no record in it is later, unless the clock was put back.
    to_ms: u64,
    bytes: u64,
}

impl History {
    fn new(protection: Protection, since_ms: u64) -> Self {
        Self { protection, since_ms, open_ms: since_ms, entries: BTreeMap::new() }
    }

    fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.bytes).sum()
    }

    fn record(&self) -> ProtectionRecord {
        ProtectionRecord {
            version: records::VERSION,
            for_ms: self.protection.for_ms,
            space_bytes: self.protection.space_bytes,
            since_ms: self.since_ms,
        }
    }

    /// The entries that are too old, or for which there is no room, the oldest first; `missing_bytes` are to be given up
    /// whatever was asked for.
    fn expired(&self, now_ms: u64, missing_bytes: u64) -> Vec<u64> {
        let mut bytes = self.bytes();
        let most = self.protection.space_bytes.unwrap_or(u64::MAX);
        let most = if missing_bytes > 0 { most.min(bytes.saturating_sub(missing_bytes)) } else { most };
        let mut expired = Vec::new();
        for (number, entry) in &self.entries {
            let old = entry.to_ms.saturating_add(self.protection.for_ms) < now_ms;
            if !old && bytes <= most {
                break;
            }
            bytes -= entry.bytes;
            expired.push(*number);
        }
        expired
    }

    /// What it was found to be.
    fn found(record: &ProtectionRecord) -> Self {
        let protection = Protection { for_ms: record.for_ms, space_bytes: record.space_bytes };
        Self::new(protection, record.since_ms)
    }

    /// Takes in an entry that was found.
    fn take_in(&mut self, number: u64, record: &HistoryRecord, before: Stack, layer: Option<Arc<Layer>>) {
        let HistoryRecord { from_ms, to_ms, bytes, .. } = *record;
        if let Some(layer) = &layer {
            layer.keep_whole(true);
        }
        self.entries.insert(number, Arc::new(Entry { before: StackCell::new(before), layer, from_ms, to_ms, bytes }));
        self.open_ms = self.open_ms.max(to_ms);
    }
}

impl Entry {
    /// The record of it, with what the disk before it stands on.
    pub(crate) fn change(&self, id: VolumeId, number: u64, before: &Stack) -> RootChange {
        let record = HistoryRecord {
            version: records::VERSION,
            before: before.record(),
            from_ms: self.from_ms,
            to_ms: self.to_ms,
            bytes: self.bytes,
            layer: self.layer.as_ref().map(|layer| layer.id()),
        };
        records::put(records::history_name(id, number), &record)
    }
}

/// A layer that ends, and is about to become part of the past.
#[derive(Debug)]
pub(crate) struct Ending {
    number: u64,
    entry: Arc<Entry>,
}

impl HistoryRecord {
    /// The disk with the layer over it: everything that has to be found again.
    pub(crate) fn with_layer(&self) -> StackRecord {
        let mut stack = self.before.clone();
        stack.layers.extend(self.layer);
        stack
    }
}

impl Volume {
    /// Where a volume is protected: what becomes part of its past when its open layer ends now, the first of a stack, and
    /// the record of it.
    pub(crate) fn ending(&self, stack: &Stack) -> Option<(Ending, RootChange)> {
        let (layer, below) = stack.layers.split_first()?;
        self.part(stack.with_layers(below.to_vec()), Some(layer.clone()))
    }

    /// As [`Volume::ending`], where nothing was written to the disk.
    pub(crate) fn pause(&self, stack: &Stack) -> Option<(Ending, RootChange)> {
        self.part(stack.clone(), None)
    }

    fn part(&self, before: Stack, layer: Option<Arc<Layer>>) -> Option<(Ending, RootChange)> {
        let history = self.history.lock();
        let history = history.as_ref()?;
        let number = history.entries.last_key_value().map_or(1, |(last, _)| last + 1);
        let (from_ms, now_ms) = (history.open_ms, before.context.options.clock.now_ms());
        let bytes = layer.as_ref().map_or(0, |layer| layer.written());
        let entry = Entry { before: StackCell::new(before), layer, from_ms, to_ms: now_ms.max(from_ms), bytes };
        let change = entry.change(self.id(), number, &entry.before.stack());
        Some((Ending { number, entry: Arc::new(entry) }, change))
    }

    /// Enters what has ended, once that is durable.
    pub(crate) fn ended(&self, ending: Ending) {
        if let Some(history) = &mut *self.history.lock() {
            history.open_ms = ending.entry.to_ms;
            history.entries.insert(ending.number, ending.entry);
        }
    }

    /// The past, layer by layer.
    pub(crate) fn entries(&self) -> Vec<(u64, Arc<Entry>)> {
        let history = self.history.lock();
        let entries = history.iter().flat_map(|history| &history.entries);
        entries.map(|(number, entry)| (*number, entry.clone())).collect()
    }

    /// What can be cloned of its past; `None` where it is not protected.
    #[must_use]
    pub fn window(&self) -> Option<Window> {
        let history = self.history.lock();
        let history = history.as_ref()?;
        Some(Window { protection: history.protection, from_ms: history.since_ms, bytes: history.bytes() })
    }

    /// Keeps nothing whole any more.
    fn let_past_go(&self) {
        *self.history.lock() = None;
        if let Some(open) = self.cell.stack().layers.first() {
            open.keep_whole(false);
        }
    }

    pub(crate) fn is_protected(&self) -> bool {
        self.history.lock().is_some()
    }
}

impl Volumes {
    /// Keeps what is written to a volume from now on; where that is done already, says anew for how long.
    ///
    /// # Errors
    /// A volume that is not there, a journal that cannot be made durable, or a store that fails.
    pub fn protect(&self, volume: &Arc<Volume>, protection: Protection) -> Result<(), VolumeError> {
        let changing = self.changes.lock();
        self.check_present(volume)?;
        let known = volume.history.lock().as_ref().map(|history| (history.since_ms, history.open_ms));
        if known.is_none() {
            // The window begins where a layer does, which is kept whole as soon as it is there.
            *volume.history.lock() = Some(History::new(protection, self.now_ms()));
        }
        let protect = || -> Result<(), VolumeError> {
            if known.is_none() {
                self.end_layer(&changing, volume)?;
            }
            let mut history = volume.history.lock();
            let Some(history) = &mut *history else { return Ok(()) };
            let now_ms = self.now_ms();
            let record = {
                let (since_ms, _) = known.unwrap_or((now_ms, now_ms));
                History::new(protection, since_ms).record()
            };
            let change = records::put(records::protection_name(volume.id()), &record);
            self.context.store.roots().apply(vec![change])?;
            history.protection = protection;
            (history.since_ms, history.open_ms) = known.unwrap_or((now_ms, now_ms));
            Ok(())
        };
        protect().inspect_err(|_| {
            if known.is_none() {
                volume.let_past_go();
            }
        })
    }

    fn now_ms(&self) -> u64 {
        self.context.options.clock.now_ms()
    }

    /// Keeps no more of what is written to a volume, and lets go of what was kept.
    ///
    /// # Errors
    /// A volume that is not there, or a store that fails.
    pub fn unprotect(&self, volume: &Volume) -> Result<(), VolumeError> {
        let changing = self.changes.lock();
        self.check_present(volume)?;
        let all = volume.entries().into_iter().map(|(number, _)| number).collect();
        self.forget(&changing, volume, &all, vec![(records::protection_name(volume.id()), None)])?;
        volume.let_past_go();
        Ok(())
    }

    /// Lets go of what is older than volumes are protected for, takes more than the space they have for it, or is in the
    /// way of writes; and ends the open layers of protected volumes that have grown long.
    ///
    /// # Errors
    /// A journal that cannot be made durable, or a store that fails; the rest is done the next time.
    pub fn expire_history(&self) -> Result<(), VolumeError> {
        let now_ms = self.now_ms();
        let volumes: Vec<_> = self.registry.read().all_volumes().cloned().collect();
        for volume in volumes.iter().filter(|volume| volume.is_protected()) {
            if volume.pressure.missing(self.context.room()) > 0 {
                // The past goes only for what can be had in no other way.
                self.give_room(volume);
            }
            let changing = self.changes.lock();
            let long = volume.cell.stack().layers.first().is_some_and(|open| open.written() > LAYER_BYTES);
            if long && self.check_present(volume).is_ok() {
                self.end_layer(&changing, volume)?;
            }
            let missing_bytes = volume.pressure.missing(self.context.room());
            let (expired, record) = {
                let mut history = volume.history.lock();
                let Some(history) = &mut *history else { continue };
                let expired = history.expired(now_ms, missing_bytes);
                let Some(last) = expired.last().and_then(|number| history.entries.get(number)) else { continue };
                let mut record = history.record();
                record.since_ms = last.to_ms;
                (expired, record)
            };
            let since_ms = record.since_ms;
            let change = records::put(records::protection_name(volume.id()), &record);
            self.forget(&changing, volume, &expired.into_iter().collect(), vec![change])?;
            if let Some(history) = &mut *volume.history.lock() {
                history.since_ms = since_ms;
            }
            drop(changing);
            if missing_bytes > 0 {
                self.give_room(volume);
            }
        }
        Ok(())
    }

    /// Lets go of a part of a volume's past, with further changes in the same step.
    fn forget(
        &self,
        changing: &MutexGuard<'_, ()>,
        volume: &Volume,
        gone: &BTreeSet<u64>,
        mut changes: Vec<RootChange>,
    ) -> Result<(), VolumeError> {
        let id = volume.id();
        let kept = self.registry.read().referenced(|owner, stack| match owner {
            Owner::History(other, number) if other == id && gone.contains(&number) => None,
            _ => Some(stack),
        });
        let entries: Vec<_> = volume.entries().into_iter().filter(|(number, _)| gone.contains(number)).collect();
        changes.extend(entries.iter().map(|(number, _)| (records::history_name(id, *number), None)));
        let removal = Self::removal(&kept, kept.unreferenced(&layers_of(entries.iter().map(|(_, entry)| entry))));
        changes.extend(removal.changes.iter().cloned());
        self.context.store.roots().apply(changes)?;
        if let Some(history) = &mut *volume.history.lock() {
            history.entries.retain(|number, _| !gone.contains(number));
        }
        for layer in entries.iter().filter_map(|(_, entry)| entry.layer.as_ref()) {
            layer.keep_whole(false);
            self.context.ask_to_tidy(&layer.journal);
        }
        self.let_go(changing, removal);
        Ok(())
    }

    /// Makes a volume that is what another one was at a moment.
    ///
    /// # Errors
    /// A volume that is not there or not protected, a moment outside its window, a name that is taken, journals that are
    /// damaged or cannot be written, or a store that fails.
    pub fn clone_at(&self, volume: &Arc<Volume>, at_ms: u64, name: &Name) -> Result<Arc<Volume>, VolumeError> {
        let changing = self.changes.lock();
        self.check_present(volume)?;
        if self.get(name).is_some() {
            return Err(VolumeError::Exists(name.clone()));
        }
        let window = volume.window().ok_or_else(|| VolumeError::NotProtected(volume.name().clone()))?;
        let to_ms = self.now_ms();
        if at_ms < window.from_ms || at_ms > to_ms {
            return Err(VolumeError::OutsideWindow { from_ms: window.from_ms, to_ms });
        }
        // From now on all of the past lies in layers that have ended.
        self.end_layer(&changing, volume)?;
        let entry = volume.entries().into_iter().map(|(_, entry)| entry).find(|entry| entry.to_ms > at_ms);
        let (open, changes) = self.begin_journal(Secret(random()?))?;
        let (under, next_sequence) = match entry {
            Some(entry) => (entry.before.stack(), copy_until(entry.layer.as_deref(), at_ms, &open)?),
            None => {
                let stack = volume.cell.stack();
                (Arc::new(stack.with_layers(stack.layers[1..].to_vec())), 1)
            }
        };
        open.journal.sync()?;
        self.add_over(
            &changing,
            name,
            &under,
            (open, next_sequence),
            Some(self.context.options.clock.now_ms()),
            changes,
        )
    }

    /// Ends a volume's open layer, unless nobody has written to it.
    pub(crate) fn end_layer(&self, changing: &MutexGuard<'_, ()>, volume: &Arc<Volume>) -> Result<(), VolumeError> {
        let exchanges = self.exchange(changing, std::slice::from_ref(volume))?;
        self.complete(exchanges, Vec::new())
    }
}

/// The layers that a part of the past stands on.
pub(crate) fn layers_of<'e>(entries: impl Iterator<Item = &'e Arc<Entry>>) -> Vec<Arc<Layer>> {
    let mut all: BTreeMap<LayerId, Arc<Layer>> = BTreeMap::new();
    for entry in entries {
        let before = entry.before.stack();
        all.extend(before.layers.iter().chain(&entry.layer).map(|layer| (layer.id(), layer.clone())));
    }
    all.into_values().collect()
}

/// Copies what was written to a layer up to a moment, and returns the next sequence number.
fn copy_until(layer: Option<&Layer>, at_ms: u64, to: &Layer) -> Result<u64, VolumeError> {
    let mut next_sequence = 1;
    let mut copied = Ok(());
    let Some(layer) = layer else { return Ok(next_sequence) };
    layer.each_record(&mut |record, data| {
        // In the order of writing: a clock that was put back does not tear a moment apart.
        if record.time_ms > at_ms {
            return ControlFlow::Break(());
        }
        let mut copy = Record { sequence: next_sequence, ..*record };
        if record.kind == RecordKind::Write {
            copy.data_checksum = to.journal.keys().data_checksum(data);
        }
        next_sequence += 1;
        copied = to.append(&[(copy, data)]).map(drop);
        if copied.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    copied?;
    Ok(next_sequence)
}

/// The records of the past of all volumes, by name.
pub(crate) fn records(context: &Context) -> Result<Vec<(String, HistoryRecord)>, VolumeError> {
    let all = context.store.roots().list(records::HISTORY_PREFIX).into_iter();
    all.map(|(name, bytes)| records::decode(&name, &bytes).map(|record| (name, record))).collect()
}

/// The record of a protected volume's layer that ends with the version that wrote it, beside those of its past; `None` where
/// the volume is not protected.
pub(crate) fn ended_by_upgrade(
    past: &[(String, HistoryRecord)],
    id: VolumeId,
    before: &Stack,
    layer: &Layer,
) -> Result<Option<(String, HistoryRecord)>, VolumeError> {
    let name = records::protection_name(id);
    let Some(bytes) = before.context.store.roots().get(&name) else { return Ok(None) };
    let protection: ProtectionRecord = records::decode(&name, &bytes)?;
    let own = past.iter().filter_map(|(name, record)| {
        let (_, number) = records::history_of(name).filter(|(volume, _)| *volume == id)?;
        Some((number, record.to_ms))
    });
    let (last, from_ms) = own.max().unwrap_or((0, protection.since_ms));
    let record = HistoryRecord {
        version: records::VERSION,
        before: before.record(),
        from_ms,
        to_ms: before.context.options.clock.now_ms().max(from_ms),
        bytes: layer.written(),
        layer: Some(layer.id()),
    };
    Ok(Some((records::history_name(id, last + 1), record)))
}

/// What a record of the past is of: the disk before a layer, and the layer.
type Find<'f> = dyn FnMut(&str, &HistoryRecord) -> Result<(Stack, Option<Arc<Layer>>), VolumeError> + 'f;

/// Finds the past of volumes again.
pub(crate) fn recover(
    context: &Context,
    volumes: &BTreeMap<VolumeId, Arc<Volume>>,
    past: Vec<(String, HistoryRecord)>,
    find: &mut Find<'_>,
) -> Result<(), VolumeError> {
    for (name, bytes) in context.store.roots().list(records::PROTECTION_PREFIX) {
        let record: ProtectionRecord = records::decode(&name, &bytes)?;
        let id: VolumeId = records::id_of(records::PROTECTION_PREFIX, &name)?;
        let Some(volume) = volumes.get(&id) else { continue };
        *volume.history.lock() = Some(History::found(&record));
        if let Some(open) = volume.cell.stack().layers.first() {
            open.keep_whole(true);
        }
    }
    for (name, record) in past {
        let contradiction = || VolumeError::Contradiction { name: name.clone(), what: "its name is not of a history" };
        let (id, number) = records::history_of(&name).ok_or_else(contradiction)?;
        let Some(volume) = volumes.get(&id) else { continue };
        let (before, layer) = find(&name, &record)?;
        if let Some(history) = &mut *volume.history.lock() {
            history.take_in(number, &record, before, layer);
        }
    }
    Ok(())
}

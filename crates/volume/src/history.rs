//! Rewind: what is written to a volume is kept for a while, and any moment of that can be cloned.
//!
//! While a volume is protected, each layer that ends is kept whole, with every record in the order in which it was
//! written, and beside it what the disk was before it. A clone as of a moment stands on that, and has the records up to
//! the moment copied into its own layer. Invariants: a window has no gaps, as every way in which a layer ends adds to it
//! in the same atomic step; a fold changes what a disk before a layer stands on, never what it is; the oldest goes
//! first, and the window says then that it begins later.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use format::journal::Record;
use store::RootChange;
use types::{LayerId, Name, VolumeId};

use crate::device::DeviceError;
use crate::error::VolumeError;
use crate::layer::{Layer, Secret};
use crate::reading::StackCell;
use crate::records::{self, HistoryRecord, ProtectionRecord};
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
    pub(crate) layer: Arc<Layer>,
    from_ms: u64,
    /// When it ended: no record in it is later, unless the clock was put back.
    to_ms: u64,
}

impl History {
    fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.layer.journal.tail()).sum()
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
            bytes -= entry.layer.journal.tail();
            expired.push(*number);
        }
        expired
    }

    /// What it was found to be.
    pub(crate) fn found(record: &ProtectionRecord) -> Self {
        let protection = Protection { for_ms: record.for_ms, space_bytes: record.space_bytes };
        Self { protection, since_ms: record.since_ms, open_ms: record.since_ms, entries: BTreeMap::new() }
    }

    /// Takes in an entry that was found.
    pub(crate) fn take_in(&mut self, number: u64, record: &HistoryRecord, before: Stack, layer: Arc<Layer>) {
        let HistoryRecord { from_ms, to_ms, .. } = *record;
        self.entries.insert(number, Arc::new(Entry { before: StackCell::new(before), layer, from_ms, to_ms }));
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
            bytes: self.layer.journal.tail(),
            layer: Some(self.layer.id()),
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

impl Volume {
    /// Where a volume is protected: what becomes part of its past when its open layer ends now, and the record of it.
    pub(crate) fn ending(&self, stack: &Stack) -> Option<(Ending, RootChange)> {
        let history = self.history.lock();
        let history = history.as_ref()?;
        let layer = stack.layers.first()?.clone();
        let before = stack.with_layers(stack.layers[1..].to_vec());
        let number = history.entries.last_key_value().map_or(1, |(last, _)| last + 1);
        let (from_ms, to_ms) = (history.open_ms, stack.context.clock.now_ms().max(history.open_ms));
        let cell = StackCell::new(before);
        let entry = Entry { before: cell, layer, from_ms, to_ms };
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

    pub(crate) fn is_protected(&self) -> bool {
        self.history.lock().is_some()
    }
}

impl Volumes {
    /// Keeps what is written to a volume from now on; where that is done already, says anew for how long.
    ///
    /// # Errors
    /// A volume that is not there, a journal that cannot be made durable, or a store that fails.
    pub fn protect(&self, volume: &Volume, protection: Protection) -> Result<(), VolumeError> {
        let changing = self.changes.lock();
        self.check_present(volume)?;
        if !volume.is_protected() {
            // The window begins where a layer does.
            self.end_open_layer(&changing, volume)?;
        }
        let since_ms = self.context.clock.now_ms();
        let mut history = volume.history.lock();
        let mut next = History { protection, since_ms, open_ms: since_ms, entries: BTreeMap::new() };
        if let Some(known) = &*history {
            (next.since_ms, next.open_ms) = (known.since_ms, known.open_ms);
            next.entries.clone_from(&known.entries);
        }
        let change = records::put(records::protection_name(volume.id()), &next.record());
        self.context.store.roots().apply(vec![change])?;
        *history = Some(next);
        Ok(())
    }

    /// Keeps no more of what is written to a volume, and lets go of what was kept.
    ///
    /// # Errors
    /// A volume that is not there, or a store that fails.
    pub fn unprotect(&self, volume: &Volume) -> Result<(), VolumeError> {
        let _changing = self.changes.lock();
        self.check_present(volume)?;
        let all = volume.entries().into_iter().map(|(number, _)| number).collect();
        self.forget(volume, &all, vec![(records::protection_name(volume.id()), None)])?;
        *volume.history.lock() = None;
        Ok(())
    }

    /// Lets go of what is older than volumes are protected for, takes more than the space they have for it, or is in the
    /// way of writes; and ends the open layers of protected volumes that have grown long.
    ///
    /// # Errors
    /// A journal that cannot be made durable, or a store that fails; the rest is done the next time.
    pub fn expire_history(&self) -> Result<(), VolumeError> {
        let now_ms = self.context.clock.now_ms();
        let volumes: Vec<_> = self.registry.read().all_volumes().cloned().collect();
        for volume in volumes.iter().filter(|volume| volume.is_protected()) {
            let changing = self.changes.lock();
            let long = volume.cell.stack().layers.first().is_some_and(|open| open.journal.tail() > LAYER_BYTES);
            if long && self.check_present(volume).is_ok() {
                self.end_open_layer(&changing, volume)?;
            }
            let (expired, record) = {
                let mut history = volume.history.lock();
                let Some(history) = &mut *history else { continue };
                let missing_bytes = volume.pressure.missing(self.context.room());
                let expired = history.expired(now_ms, missing_bytes);
                let Some(last) = expired.last().and_then(|number| history.entries.get(number)) else { continue };
                let mut record = history.record();
                record.since_ms = last.to_ms;
                (expired, record)
            };
            let since_ms = record.since_ms;
            let change = records::put(records::protection_name(volume.id()), &record);
            self.forget(volume, &expired.into_iter().collect(), vec![change])?;
            if let Some(history) = &mut *volume.history.lock() {
                history.since_ms = since_ms;
            }
        }
        Ok(())
    }

    /// Lets go of a part of a volume's past, with further changes in the same step.
    fn forget(&self, volume: &Volume, gone: &BTreeSet<u64>, mut changes: Vec<RootChange>) -> Result<(), VolumeError> {
        let id = volume.id();
        let kept = self.registry.read().referenced(|owner, stack| match owner {
            Owner::History(other, number) if other == id && gone.contains(&number) => None,
            _ => Some(stack),
        });
        let entries: Vec<_> = volume.entries().into_iter().filter(|(number, _)| gone.contains(number)).collect();
        changes.extend(entries.iter().map(|(number, _)| (records::history_name(id, *number), None)));
        let freed = freed_layers(entries.iter().map(|(_, entry)| entry), &kept);
        changes.extend(freed.iter().map(|layer| (records::layer_name(layer.id()), None)));
        self.context.store.roots().apply(changes)?;
        if let Some(history) = &mut *volume.history.lock() {
            history.entries.retain(|number, _| !gone.contains(number));
        }
        self.context.delete_journals(&freed);
        Ok(())
    }

    /// Makes a volume that is what another one was at a moment.
    ///
    /// # Errors
    /// A volume that is not there or not protected, a moment outside its window, a name that is taken, journals that are
    /// damaged or cannot be written, or a store that fails.
    pub fn clone_at(&self, volume: &Volume, at_ms: u64, name: &Name) -> Result<Arc<Volume>, VolumeError> {
        let changing = self.changes.lock();
        self.check_present(volume)?;
        if self.get(name).is_some() {
            return Err(VolumeError::Exists(name.clone()));
        }
        let window = volume.window().ok_or_else(|| VolumeError::NotProtected(volume.name().clone()))?;
        let to_ms = self.context.clock.now_ms();
        if at_ms < window.from_ms || at_ms > to_ms {
            return Err(VolumeError::OutsideWindow { from_ms: window.from_ms, to_ms });
        }
        // From now on all of the past lies in layers that have ended.
        self.end_open_layer(&changing, volume)?;
        let entry = volume.entries().into_iter().map(|(_, entry)| entry).find(|entry| entry.to_ms > at_ms);
        let open = Arc::new(self.new_layer(Secret(random()?), 1)?);
        let (under, next_sequence) = match entry {
            Some(entry) => (entry.before.stack(), copy_until(&entry.layer, at_ms, &open)?),
            None => {
                let stack = volume.cell.stack();
                (Arc::new(stack.with_layers(stack.layers[1..].to_vec())), 1)
            }
        };
        open.journal.sync()?;
        self.add_over(&changing, name, &under, open, next_sequence)
    }

    /// Ends a volume's open layer, unless nobody has written to it.
    fn end_open_layer(&self, _: &std::sync::MutexGuard<'_, ()>, volume: &Volume) -> Result<(), VolumeError> {
        let mut writer = volume.writer.lock();
        let exchange = self.exchange(volume, &volume.cell.stack(), &writer)?;
        if !exchange.changes.is_empty() {
            self.context.store.roots().apply(exchange.changes.clone())?;
        }
        exchange.finish(volume, &mut writer);
        Ok(())
    }
}

/// Those of some layers' past that nothing refers to.
pub(crate) fn freed_layers<'e>(
    entries: impl Iterator<Item = &'e Arc<Entry>>,
    kept: &BTreeSet<LayerId>,
) -> Vec<Arc<Layer>> {
    let mut freed: BTreeMap<LayerId, Arc<Layer>> = BTreeMap::new();
    for entry in entries {
        let before = entry.before.stack();
        let layers = before.layers.iter().chain([&entry.layer]);
        freed.extend(layers.filter(|layer| !kept.contains(&layer.id())).map(|layer| (layer.id(), layer.clone())));
    }
    freed.into_values().collect()
}

/// Copies what was written to a layer up to a moment, and returns the next sequence number.
fn copy_until(layer: &Layer, at_ms: u64, to: &Layer) -> Result<u64, VolumeError> {
    let mut next_sequence = 1;
    let mut failed = None;
    let mut data = Vec::new();
    layer.each_record(&mut |record, position| {
        // In the order of writing: a clock that was put back does not tear a moment apart.
        if record.time_ms > at_ms {
            return ControlFlow::Break(());
        }
        let copied = copy(layer, record, position, next_sequence, &mut data, to);
        next_sequence += 1;
        match copied {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    failed.map_or(Ok(next_sequence), |error| Err(error.into()))
}

fn copy(
    layer: &Layer,
    record: &Record,
    position: u64,
    sequence: u64,
    data: &mut Vec<u8>,
    to: &Layer,
) -> Result<(), DeviceError> {
    data.resize(usize::try_from(record.data_bytes()).unwrap_or(usize::MAX), 0);
    let mut copied = Record { sequence, ..*record };
    if !data.is_empty() {
        layer.journal.read(position, data)?;
        copied.data_checksum = to.journal.keys().data_checksum(data);
    }
    to.append(&copied, data)
}

/// What a record of the past is of: the disk before a layer, and the layer.
type Find<'f> = dyn FnMut(&str, &HistoryRecord) -> Result<(Stack, Arc<Layer>), VolumeError> + 'f;

/// Finds the past of volumes again.
pub(crate) fn recover(
    context: &Arc<Context>,
    volumes: &BTreeMap<VolumeId, Arc<Volume>>,
    stack: &mut Find<'_>,
) -> Result<(), VolumeError> {
    let roots = context.store.roots();
    for (name, bytes) in roots.list(records::PROTECTION_PREFIX) {
        let record: ProtectionRecord = records::decode(&name, &bytes)?;
        let id: VolumeId = records::id_of(records::PROTECTION_PREFIX, &name)?;
        if let Some(volume) = volumes.get(&id) {
            *volume.history.lock() = Some(History::found(&record));
        }
    }
    for (name, bytes) in roots.list(records::HISTORY_PREFIX) {
        let record: HistoryRecord = records::decode(&name, &bytes)?;
        let contradiction = || VolumeError::Contradiction { name: name.clone(), what: "its name is not of a history" };
        let (id, number) = records::history_of(&name).ok_or_else(contradiction)?;
        let Some(volume) = volumes.get(&id) else { continue };
        let (before, layer) = stack(&name, &record)?;
        if let Some(history) = &mut *volume.history.lock() {
            history.take_in(number, &record, before, layer);
        }
    }
    Ok(())
}

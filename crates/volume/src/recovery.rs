//! Finding all volumes again: from the root records, and from the journals that they name.
//!
//! Invariant: what no record names was never acknowledged, or is not needed any more; it is used again or deleted. What a
//! record names is never deleted here. Of full segments only the footers are read; what was being filled is read through.

mod segments;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use types::{JournalId, LayerId, VolumeId};

use crate::error::VolumeError;
use crate::frozen::Frozen;
use crate::journal::{Journal, Secret};
use crate::layer::Layer;
use crate::records::{
    self, AnyLayerRecord, FROZEN_PREFIX, FileLayerRecord, FrozenRecord, HistoryRecord, JOURNAL_PREFIX, JournalEnd,
    JournalRecord, LAYER_PREFIX, LayerRecord, StackRecord, VOLUME_PREFIX, VolumeRecord,
};
use crate::stack::{Context, Stack};
use crate::volume::Volume;
use crate::volumes::{Registry, random};
use segments::FoundJournal;

/// Reads everything that there is.
pub(crate) fn recover(context: &Arc<Context>) -> Result<Registry, VolumeError> {
    make_directory(context)?;
    let roots = context.store.roots();
    let mut volumes = Vec::new();
    let mut layers = Layers { context, found: BTreeMap::new(), next: BTreeMap::new(), journals: BTreeMap::new() };
    for (name, bytes) in roots.list(VOLUME_PREFIX) {
        let record: VolumeRecord = records::decode(&name, &bytes)?;
        volumes.push((records::id_of(VOLUME_PREFIX, &name)?, name, record));
    }
    let mut frozen = Vec::new();
    for (name, bytes) in roots.list(FROZEN_PREFIX) {
        let record: FrozenRecord = records::decode(&name, &bytes)?;
        frozen.push((records::id_of(FROZEN_PREFIX, &name)?, name, record.stack));
    }
    let mut past = crate::history::records(context)?;
    let whole: Vec<_> = past.iter().map(|(name, record)| (name, record.with_layer())).collect();
    let stacks = volumes.iter().map(|(_, name, record)| (name, &record.stack));
    let stacks = stacks.chain(frozen.iter().map(|(_, name, stack)| (name, stack)));
    layers.find(stacks.chain(whole.iter().map(|(name, stack)| (*name, stack))))?;

    let mut registry = Registry::default();
    for (id, name, record) in volumes {
        let (stack, open, next) = layers.volume_stack(id, &name, &record, &mut past)?;
        let volume = Volume::new(id, record.name.clone(), stack, (open, next), record.born_ms);
        if let Some(deleted) = record.deleted {
            volume.mark_deleted(deleted);
            registry.deleted.insert(id, volume);
            continue;
        }
        if registry.volumes.insert(record.name, volume).is_some() {
            return Err(VolumeError::Contradiction { name, what: "another volume has its name" });
        }
    }
    for (id, name, record) in frozen {
        registry.frozen.insert(id, Frozen::new(id, layers.stack(&name, &record)?));
    }
    let volumes = registry.all_volumes().map(|volume| (volume.id(), volume.clone())).collect();
    crate::history::recover(context, &volumes, past, &mut |name, record| {
        Ok((layers.stack(name, &record.before)?, record.layer.and_then(|id| layers.found.get(&id).cloned())))
    })?;
    layers.drop_unreferenced()?;
    Ok(registry)
}

struct Layers<'c> {
    context: &'c Arc<Context>,
    /// The layers that were named.
    found: BTreeMap<LayerId, Arc<Layer>>,
    /// The sequence number that follows all in a journal.
    next: BTreeMap<JournalId, u64>,
    journals: BTreeMap<JournalId, Arc<Journal>>,
}

impl Layers<'_> {
    /// Finds all layers that stacks name.
    fn find<'r>(&mut self, stacks: impl Iterator<Item = (&'r String, &'r StackRecord)>) -> Result<(), VolumeError> {
        let mut ranges: BTreeMap<JournalId, BTreeMap<LayerId, LayerRecord>> = BTreeMap::new();
        let mut files = BTreeMap::new();
        for (owner, id) in stacks.flat_map(|(name, stack)| stack.layers.iter().map(move |id| (name, *id))) {
            let name = records::layer_name(id);
            let bytes = self.context.store.roots().get(&name).ok_or_else(|| VolumeError::Contradiction {
                name: owner.clone(),
                what: "it refers to a layer that has no record",
            })?;
            match records::decode_layer(&name, &bytes)? {
                AnyLayerRecord::Range(record) => drop(ranges.entry(record.journal).or_default().insert(id, record)),
                AnyLayerRecord::File(record) => drop(files.insert(id, record)),
            }
        }
        let mut known = BTreeMap::new();
        for (name, bytes) in self.context.store.roots().list(JOURNAL_PREFIX) {
            let record: JournalRecord = records::decode(&name, &bytes)?;
            known.insert(records::id_of(JOURNAL_PREFIX, &name)?, record);
        }
        known.retain(|id, _| ranges.contains_key(id));
        let mut journals = segments::find(self.context, known)?;
        for (id, layers) in ranges {
            let found = journals.remove(&id).ok_or_else(|| VolumeError::Contradiction {
                name: records::journal_name(id),
                what: "a layer lies in it, and it has no record",
            })?;
            self.enter(id, &found, layers);
        }
        files.into_iter().try_for_each(|(id, record)| self.enter_file(id, &record))
    }

    /// Makes the layers of a journal of what was found in it.
    fn enter(&mut self, id: JournalId, found: &FoundJournal, layers: BTreeMap<LayerId, LayerRecord>) {
        let mut next = found.next_sequence;
        for (layer, record) in layers {
            next = next.max(record.first_sequence).max(record.last_sequence.map_or(1, |last| last.saturating_add(1)));
            let map = found.map(record.first_sequence, record.last_sequence);
            let (first, last) = (record.first_sequence, record.last_sequence);
            let made = Layer::with_map(found.journal.clone(), layer, first, last, map);
            if let Some(path) = found.damage_in(first, last.unwrap_or(u64::MAX)) {
                made.mark_damaged(path);
            }
            made.found_written(found.bytes(first, last));
            self.found.insert(layer, made);
        }
        self.next.insert(id, next);
        self.journals.insert(id, found.journal.clone());
    }

    /// Makes a layer of version 1.
    fn enter_file(&mut self, id: LayerId, record: &FileLayerRecord) -> Result<(), VolumeError> {
        let layer = segments::file_layer(self.context, id, record)?;
        self.found.insert(id, layer);
        Ok(())
    }

    fn stack(&self, name: &str, record: &StackRecord) -> Result<Stack, VolumeError> {
        let base = record.check(name)?;
        let layers = record.layers.iter().filter_map(|id| self.found.get(id).cloned()).collect();
        Ok(Stack::new(self.context.clone(), record.size_bytes, base, layers))
    }

    /// A volume's stack, its open layer, and its next sequence number.
    fn volume_stack(
        &mut self,
        id: VolumeId,
        name: &str,
        record: &VolumeRecord,
        past: &mut Vec<(String, HistoryRecord)>,
    ) -> Result<(Stack, Arc<Layer>, u64), VolumeError> {
        let stack = self.stack(name, &record.stack)?;
        let contradiction = |what| VolumeError::Contradiction { name: name.to_owned(), what };
        let open = stack.layers.first().cloned().ok_or_else(|| contradiction("it has no open layer"))?;
        let next = self.next.get(&open.journal.id()).copied();
        match next {
            Some(_) if open.range().1.is_some() => Err(contradiction("its open layer is frozen")),
            Some(next) => Ok((stack, open, next)),
            None => self.upgrade(id, record, stack, &open, past),
        }
    }

    /// Freezes the open layer of version 1, and puts one of the present version over it. Where the volume is protected, the
    /// old one becomes part of its past.
    fn upgrade(
        &mut self,
        id: VolumeId,
        record: &VolumeRecord,
        stack: Stack,
        old: &Arc<Layer>,
        past: &mut Vec<(String, HistoryRecord)>,
    ) -> Result<(Stack, Arc<Layer>, u64), VolumeError> {
        old.journal.sync()?;
        let journal = Arc::new(Journal::new(self.context.files.clone(), JournalId(random()?), Secret(random()?)));
        let open = Layer::new(journal.clone(), LayerId(random()?), 1);
        let mut changes = vec![
            records::put(records::journal_name(journal.id()), &journal.record(&std::collections::BTreeSet::new())),
            records::put(records::layer_name(open.id()), &open.record()),
        ];
        let mut layers = vec![open.clone()];
        layers.extend(stack.layers.iter().skip(usize::from(old.is_empty())).cloned());
        changes.push(match old.journal.segments().first().filter(|_| !old.is_empty()) {
            None => (records::layer_name(old.id()), None),
            Some(segment) => {
                let (first_sequence, last) = old.range();
                let end =
                    JournalEnd { bytes: segment.tail(), sequence: last.unwrap_or(0), torn_bytes: segment.torn_bytes() };
                let secret = old.journal.secret().0;
                let record = FileLayerRecord { version: 1, secret, first_sequence, end: Some(end) };
                records::put(records::layer_name(old.id()), &record)
            }
        });
        if !old.is_empty() {
            let before = stack.with_layers(stack.layers[1..].to_vec());
            let ended = crate::history::ended_by_upgrade(past, id, &before, old)?;
            changes.extend(ended.iter().map(|(name, record)| records::put(name.clone(), record)));
            past.extend(ended);
        }
        let stack = stack.with_layers(layers);
        let upgraded = VolumeRecord { stack: stack.record(), version: records::VERSION, ..record.clone() };
        changes.push(records::put(records::volume_name(id), &upgraded));
        self.context.store.roots().apply(changes)?;
        tracing::info!(volume = %record.name, "its journal is of version 1: it goes on with one of version 2");
        self.found.insert(open.id(), open.clone());
        self.journals.insert(journal.id(), journal);
        Ok((stack, open, 1))
    }

    /// Deletes the records of layers and journals that nothing refers to, and the files of layers.
    fn drop_unreferenced(&self) -> Result<(), VolumeError> {
        let roots = self.context.store.roots();
        let mut changes = Vec::new();
        for (name, _) in roots.list(LAYER_PREFIX) {
            if !self.found.contains_key(&records::id_of(LAYER_PREFIX, &name)?) {
                changes.push((name, None));
            }
        }
        for (name, _) in roots.list(JOURNAL_PREFIX) {
            if !self.journals.contains_key(&records::id_of(JOURNAL_PREFIX, &name)?) {
                changes.push((name, None));
            }
        }
        if !changes.is_empty() {
            roots.apply(changes)?;
        }
        segments::delete_stray_files(self.context, |id| self.found.contains_key(&id))
    }
}

/// Makes the directory of the journals and the one it is in, only for their owner, durably.
fn make_directory(context: &Context) -> Result<(), VolumeError> {
    let directory = &context.files.directory;
    for path in directory.parent().into_iter().chain([directory.as_path()]) {
        let error = |source| VolumeError::Io { operation: "make", path: path.to_owned(), source };
        context.files.medium.make_directory(path).map_err(error)?;
    }
    Ok(())
}

//! Volumes that were deleted: kept for a while, so that they can be taken back.
//!
//! Invariants: a deleted volume is closed, and its record says that it is deleted; its layers and its tree are kept as
//! those of any other. Its name is free. How long it is kept is for the caller to say, who also tells the time.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard};

use store::RootChange;
use types::{Name, SECTOR_BYTES, VolumeId};

use crate::difference::DiskState;
use crate::error::VolumeError;
use crate::history::layers_of;
use crate::records::{self, DeletedRecord};
use crate::stack::Stack;
use crate::volume::{Volume, VolumeStatus, Writer};
use crate::volumes::{Owner, Volumes};

/// A volume that was removed, or what one was before it was reverted.
#[derive(Clone, Debug)]
pub struct Deleted {
    volume: Arc<Volume>,
    record: DeletedRecord,
}

impl Deleted {
    fn new(volume: Arc<Volume>) -> Option<Self> {
        let record = volume.deleted.read().clone()?;
        Some(Self { volume, record })
    }

    pub(crate) fn of(volume: Arc<Volume>, record: DeletedRecord) -> Self {
        Self { volume, record }
    }

    /// Its id, which it had as a volume and has again once it is taken back.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.volume.id()
    }

    /// The name that it had; another volume may have it now.
    #[must_use]
    pub fn name(&self) -> &Name {
        self.volume.name()
    }

    /// When it was deleted, in milliseconds since 1970.
    #[must_use]
    pub fn deleted_ms(&self) -> u64 {
        self.record.at_ms
    }

    /// What it was deleted for, in words.
    #[must_use]
    pub fn note(&self) -> &str {
        &self.record.note
    }

    /// What it consists of.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        self.volume.status()
    }

    /// Its content.
    #[must_use]
    pub fn state(&self) -> DiskState {
        self.volume.state()
    }
}

impl Volume {
    /// Makes it a deleted one: its requests fail from now on, and its records say so.
    pub(crate) fn mark_deleted(&self, record: DeletedRecord) {
        *self.deleted.write() = Some(record);
        self.close();
    }
}

impl Volumes {
    /// Deletes a volume so that it can be taken back. Its requests fail from now on, and its name is free.
    ///
    /// # Errors
    /// A volume that is not there, a journal that cannot be made durable, or a store that fails; then nothing changed.
    pub fn delete(&self, name: &Name, now_ms: u64, note: &str) -> Result<Deleted, VolumeError> {
        let changing = self.changes.lock();
        let volume = self.get(name).ok_or_else(|| VolumeError::NotFound(name.clone()))?;
        let writer = volume.writer.lock();
        self.delete_held(&changing, &volume, writer, DeletedRecord { at_ms: now_ms, note: note.to_owned() }, Vec::new())
    }

    /// Deletes a volume whose writer is held, and makes other changes in the same step.
    pub(crate) fn delete_held(
        &self,
        _: &MutexGuard<'_, ()>,
        volume: &Arc<Volume>,
        mut writer: MutexGuard<'_, Writer>,
        record: DeletedRecord,
        further: Vec<RootChange>,
    ) -> Result<Deleted, VolumeError> {
        // What is taken back later is all that was acknowledged, whatever happens until then.
        writer.open.journal.sync()?;
        let mut changes = further;
        changes.push(volume.record_as(&volume.cell.stack(), Some(record.clone())));
        self.context.store.roots().apply(changes)?;
        writer.closed = true;
        drop(writer);
        volume.mark_deleted(record.clone());
        let mut registry = self.registry.write();
        registry.volumes.remove(volume.name());
        registry.deleted.insert(volume.id(), volume.clone());
        Ok(Deleted { volume: volume.clone(), record })
    }

    /// The deleted volumes that can be taken back, the oldest deletion first.
    #[must_use]
    pub fn deleted(&self) -> Vec<Deleted> {
        let mut all: Vec<_> = self.registry.read().deleted.values().cloned().filter_map(Deleted::new).collect();
        all.sort_by_key(|deleted| (deleted.deleted_ms(), deleted.id()));
        all
    }

    /// Takes a deleted volume back, under its old name or another.
    ///
    /// # Errors
    /// A volume that is not there, a name that is taken, or a store that fails; then nothing changed.
    pub fn restore(&self, id: VolumeId, name: &Name) -> Result<Arc<Volume>, VolumeError> {
        let _changing = self.changes.lock();
        let deleted = self.find_deleted(id)?;
        if self.get(name).is_some() {
            return Err(VolumeError::Exists(name.clone()));
        }
        let (open, next_sequence) = {
            let writer = deleted.writer.lock();
            (writer.open.clone(), writer.next_sequence)
        };
        // Whoever knew it as it was before it was deleted knows another one.
        let born_ms = Some(self.context.options.clock.now_ms());
        let stack = Stack::clone(&deleted.cell.stack());
        let volume = Volume::new(id, name.clone(), stack, (open, next_sequence), born_ms);
        self.context.store.roots().apply(vec![volume.record(&volume.cell.stack())])?;
        *volume.history.lock() = deleted.history.lock().take();
        let mut registry = self.registry.write();
        registry.deleted.remove(&id);
        registry.volumes.insert(name.clone(), volume.clone());
        Ok(volume)
    }

    /// Deletes a deleted volume for good; layers that nothing else refers to are deleted.
    ///
    /// # Errors
    /// A volume that is not there, or a store that fails.
    pub fn purge(&self, id: VolumeId) -> Result<(), VolumeError> {
        let changing = self.changes.lock();
        let deleted = self.find_deleted(id)?;
        self.erase(&changing, &deleted)
    }

    /// Deletes for good what was deleted up to a moment, and returns what that was.
    ///
    /// # Errors
    /// A store that fails; what is left is deleted the next time.
    pub fn expire(&self, deleted_until_ms: u64) -> Result<Vec<Deleted>, VolumeError> {
        let mut expired = self.deleted();
        expired.retain(|deleted| deleted.deleted_ms() <= deleted_until_ms);
        for deleted in &expired {
            match self.purge(deleted.id()) {
                // Somebody took it back, or was faster.
                Err(VolumeError::UnknownDeleted(_)) => {}
                outcome => outcome?,
            }
        }
        Ok(expired)
    }

    /// How many bytes of journals are kept for one volume only.
    #[must_use]
    pub fn own_journal_bytes(&self, id: VolumeId) -> u64 {
        let registry = self.registry.read();
        let kept = registry.referenced(|owner, stack| match owner {
            Owner::Volume(other) | Owner::History(other, _) if other == id => None,
            _ => Some(stack),
        });
        let stack = registry.all_volumes().find(|volume| volume.id() == id).map(|volume| volume.cell.stack());
        let own = stack.map(|stack| kept.unreferenced(&stack.layers)).unwrap_or_default();
        let journals: BTreeMap<_, _> = own.iter().map(|layer| (layer.journal.id(), &layer.journal)).collect();
        let alone = journals.iter().filter(|(id, _)| !kept.journals.contains(id));
        let shared = own.iter().filter(|layer| kept.journals.contains(&layer.journal.id()));
        alone.map(|(_, journal)| journal.bytes()).sum::<u64>()
            + shared.map(|layer| layer.data_sectors() * SECTOR_BYTES).sum::<u64>()
    }

    pub(crate) fn find_deleted(&self, id: VolumeId) -> Result<Arc<Volume>, VolumeError> {
        self.registry.read().deleted.get(&id).cloned().ok_or(VolumeError::UnknownDeleted(id))
    }

    /// Deletes a volume for good.
    pub(crate) fn erase(&self, changing: &MutexGuard<'_, ()>, volume: &Volume) -> Result<(), VolumeError> {
        let id = volume.id();
        let kept = self.registry.read().referenced(|owner, stack| match owner {
            Owner::Volume(other) | Owner::History(other, _) if other == id => None,
            _ => Some(stack),
        });
        let entries = volume.entries();
        let mut layers = volume.cell.stack().layers.clone();
        layers.extend(layers_of(entries.iter().map(|(_, entry)| entry)));
        layers.sort_by_key(|layer| layer.id());
        layers.dedup_by_key(|layer| layer.id());
        let freed = kept.unreferenced(&layers);
        let mut changes = vec![(records::volume_name(id), None), (records::protection_name(id), None)];
        changes.extend(entries.iter().map(|(number, _)| (records::history_name(id, *number), None)));
        let removal = Self::removal(&kept, freed);
        changes.extend(removal.changes.iter().cloned());
        self.context.store.roots().apply(changes)?;
        volume.close();
        let mut registry = self.registry.write();
        if registry.deleted.remove(&volume.id()).is_none() {
            registry.volumes.remove(volume.name());
        }
        drop(registry);
        self.let_go(changing, removal);
        Ok(())
    }
}

//! Volumes that change their node: taken over as they are, and given up for good.
//!
//! Invariant: a volume is given up in one step with the records that say to whom, and only if nothing was written since the disk
//! was frozen that the other node has. Whatever was acknowledged is in that disk.

use std::sync::Arc;

use store::{Origin, RootChange};
use types::{FrozenId, Name};

use crate::base::TreeBase;
use crate::cloning::CloneOf;
use crate::deleted::Deleted;
use crate::error::VolumeError;
use crate::records::DeletedRecord;
use crate::stack::Stack;
use crate::volume::Volume;
use crate::volumes::Volumes;

impl Volumes {
    /// Makes a volume of a tree that came from another node, and other changes of the roots in the same step.
    ///
    /// # Errors
    /// A name that is taken, a size that cannot be, or a store that fails; then nothing has changed.
    pub fn adopt(&self, name: &Name, base: TreeBase, further: Vec<RootChange>) -> Result<Arc<Volume>, VolumeError> {
        self.clone_with(name, CloneOf::Tree(base), None, None, further)
    }

    /// Deletes a volume so that it can be taken back, and makes other changes of the roots in the same step: if it is still what
    /// a frozen disk of it is. `None` where it is not, as something was written to it since or it has grown.
    ///
    /// # Errors
    /// A volume or frozen disk that is not there, a journal that cannot be made durable, or a store that fails; then nothing has
    /// changed.
    pub fn give_up(
        &self,
        volume: &Arc<Volume>,
        frozen: FrozenId,
        now_ms: u64,
        note: &str,
        further: Vec<RootChange>,
    ) -> Result<Option<Deleted>, VolumeError> {
        let changing = self.changes.lock();
        self.check_present(volume)?;
        let disk = self.frozen(frozen).ok_or(VolumeError::UnknownFrozen(frozen))?.cell.stack();
        let writer = volume.writer.lock();
        let stack = volume.cell.stack();
        let under = stack.layers.get(1..).unwrap_or_default();
        let same_layers = under.iter().map(|layer| layer.id()).eq(disk.layers.iter().map(|layer| layer.id()));
        if !writer.open.is_empty() || !same_layers || stack.base != disk.base || stack.size_bytes != disk.size_bytes {
            return Ok(None);
        }
        self.delete_held(&changing, volume, writer, DeletedRecord { at_ms: now_ms, note: note.to_owned() }, further)
            .map(Some)
    }

    /// Says where what a volume's tree lacks can be asked for: once nothing is lacking, where it came from in the first place.
    ///
    /// # Errors
    /// A volume that is not there, or a store that fails; then nothing has changed.
    pub fn set_origin(
        &self,
        volume: &Volume,
        origin: Option<Origin>,
        further: Vec<RootChange>,
    ) -> Result<(), VolumeError> {
        let _changing = self.changes.lock();
        self.check_present(volume)?;
        let stack = volume.cell.stack();
        let base = TreeBase { origin, ..stack.base.clone() };
        let next = Stack::new(self.context.clone(), stack.size_bytes, base, stack.layers.clone());
        let mut changes = further;
        changes.push(volume.record(&next));
        self.context.store.roots().apply(changes)?;
        volume.cell.replace(next);
        Ok(())
    }
}

//! Putting a volume back to what a snapshot, or a deleted volume, is.
//!
//! Invariants: it takes the same time for any size; the volume stays the same volume, with its id, name and
//! attachments; what it was before is a deleted volume from then on, in the same step, and can be taken back.

use std::sync::Arc;

use types::{FrozenId, VolumeId};

use crate::base::TreeBase;
use crate::deleted::Deleted;
use crate::error::VolumeError;
use crate::layer::Secret;
use crate::records::{self, DeletedRecord};
use crate::stack::Stack;
use crate::volume::Volume;
use crate::volumes::{Exchange, Volumes, random};

/// What a volume is reverted to.
#[derive(Clone, Debug)]
pub enum RevertTo {
    /// A sealed snapshot's disk.
    Tree(TreeBase),
    /// A disk that is not sealed yet.
    Frozen(FrozenId),
    /// A deleted volume, which stays as it is.
    Deleted(VolumeId),
}

impl Volumes {
    /// Makes a volume's disk another one, in constant time, and returns what it was. It may get another size.
    ///
    /// Requests of other threads see either the one disk or the other; whether anyone uses it is the caller's to know.
    ///
    /// # Errors
    /// What is not there, journals that cannot be made durable, or a store that fails; then nothing has changed.
    pub fn revert(&self, volume: &Volume, to: RevertTo, now_ms: u64, note: &str) -> Result<Deleted, VolumeError> {
        let _changing = self.changes.lock();
        self.check_present(volume)?;
        let under = self.state_of(to)?;
        under.record().check(volume.name().as_str())?;
        let mut writer = volume.writer.lock();
        let before = volume.cell.stack();
        // The past of a protected volume has to say when it became another one, also if nobody had written to it.
        let needed = volume.is_protected() || !writer.open.journal.is_empty();
        let exchange = self.exchange_if(needed, volume, &before, &writer)?;
        let record = DeletedRecord { at_ms: now_ms, note: note.to_owned() };
        let (kept, kept_layer) = self.keep(volume, &before, &exchange)?;
        let open = exchange.stack.as_ref().map_or_else(|| writer.open.clone(), |(_, open)| open.clone());
        let mut layers = vec![open];
        layers.extend(under.layers.iter().cloned());
        let next = under.with_layers(layers);
        let mut changes = exchange.changes.clone();
        changes.push(kept_layer);
        changes.push(kept.record_as(&kept.cell.stack(), Some(record.clone())));
        // After the exchange's own record of this volume: the later one counts.
        changes.push(volume.record(&next));
        self.context.store.roots().apply(changes)?;
        exchange.finish(volume, &mut writer);
        volume.cell.replace(next);
        kept.mark_deleted(record.clone());
        self.registry.write().deleted.insert(kept.id(), kept.clone());
        Ok(Deleted::of(kept, record))
    }

    /// The layers and tree to stand on.
    fn state_of(&self, to: RevertTo) -> Result<Arc<Stack>, VolumeError> {
        match to {
            RevertTo::Tree(base) => Ok(Arc::new(Stack::new(self.context.clone(), base.size_bytes, base, Vec::new()))),
            RevertTo::Frozen(id) => {
                self.frozen(id).map(|frozen| frozen.cell.stack()).ok_or(VolumeError::UnknownFrozen(id))
            }
            RevertTo::Deleted(id) => {
                let deleted = self.find_deleted(id)?;
                let mut writer = deleted.writer.lock();
                let stack = deleted.cell.stack();
                // Its open layer is shared from now on, so it gets another one.
                let exchange = self.exchange(&deleted, &stack, &writer)?;
                if !exchange.changes.is_empty() {
                    self.context.store.roots().apply(exchange.changes.clone())?;
                }
                let frozen = stack.with_layers(exchange.frozen.clone());
                exchange.finish(&deleted, &mut writer);
                Ok(Arc::new(frozen))
            }
        }
    }

    /// What a volume is, as a volume of its own, and the record of its open layer.
    fn keep(
        &self,
        volume: &Volume,
        before: &Stack,
        exchange: &Exchange,
    ) -> Result<(Arc<Volume>, store::RootChange), VolumeError> {
        let open = Arc::new(self.new_layer(Secret(random()?), 1)?);
        let mut layers = vec![open.clone()];
        layers.extend(exchange.frozen.iter().cloned());
        let record = records::put(records::layer_name(open.id()), &open.record(None));
        let id = VolumeId(random()?);
        Ok((Volume::new(id, volume.name().clone(), before.with_layers(layers), open, 1), record))
    }
}

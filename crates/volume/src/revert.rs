//! Putting a volume back to what a snapshot, or a deleted volume, is.
//!
//! Invariants: it takes the same time for any size; the volume stays the same volume, with its id, name and
//! attachments; what it was before is a deleted volume from then on, in the same step, and can be taken back.

use std::sync::Arc;

use types::{FrozenId, LayerId, VolumeId};

use crate::base::TreeBase;
use crate::deleted::Deleted;
use crate::error::VolumeError;
use crate::layer::Layer;
use crate::records::DeletedRecord;
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
    pub fn revert(&self, volume: &Arc<Volume>, to: RevertTo, now_ms: u64, note: &str) -> Result<Deleted, VolumeError> {
        let changing = self.changes.lock();
        self.check_present(volume)?;
        let under = self.state_of(to)?;
        under.record().check(volume.name().as_str())?;
        if volume.is_protected() {
            self.end_layer(&changing, volume)?;
        }
        let mut writer = volume.writer.lock();
        // What is taken back later is all that was acknowledged. It keeps the journal; the volume gets another.
        writer.open.journal.sync()?;
        let record = DeletedRecord { at_ms: now_ms, note: note.to_owned() };
        let before = Stack::clone(&volume.cell.stack());
        let before_pause = before.with_layers(before.layers[1..].to_vec());
        let name = volume.name().clone();
        let appended = (writer.open.clone(), writer.next_sequence);
        let kept = Volume::new(VolumeId(random()?), name, before, appended, volume.born_ms());
        let (open, mut changes) = self.begin_journal(writer.open.journal.secret())?;
        let layers = std::iter::once(&open).chain(&under.layers).cloned().collect();
        let next = under.with_layers(layers);
        // The past of a protected volume has to say when it became another one, also if nobody had written to it.
        let ending = volume.pause(&before_pause);
        let (ending, past) = ending.unzip();
        changes.extend(past);
        changes.push(kept.record_as(&kept.cell.stack(), Some(record.clone())));
        changes.push(volume.record(&next));
        self.context.store.roots().apply(changes)?;
        writer.open.keep_whole(false);
        open.keep_whole(volume.is_protected());
        if let Some(ending) = ending {
            volume.ended(ending);
        }
        writer.open = open;
        writer.next_sequence = 1;
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
                // Its open layer is shared from now on, so it gets another one.
                let journal = deleted.cell.stack().layers[0].journal.clone();
                let open = Layer::new(journal, LayerId(random()?), u64::MAX);
                let exchange = Exchange::begin(&deleted, &mut deleted.writer.lock(), open);
                let frozen = Arc::new(exchange.frozen.clone());
                self.complete(vec![(&*deleted, exchange)], Vec::new())?;
                Ok(frozen)
            }
        }
    }
}

//! Making a volume that begins as another disk: a sealed snapshot's, a frozen one's, or what a volume is now.
//!
//! Invariants: it takes the same time for any size; the new volume has its name, its content and its size in one step, or
//! is not there at all.

use std::sync::Arc;

use store::RootChange;
use types::{FrozenId, Name};

use crate::base::TreeBase;
use crate::error::VolumeError;
use crate::stack::Stack;
use crate::volume::Volume;
use crate::volumes::Volumes;

/// What a volume begins as.
#[derive(Clone, Debug)]
pub enum CloneOf {
    /// A sealed snapshot's disk.
    Tree(TreeBase),
    /// A disk that is not sealed yet.
    Frozen(FrozenId),
    /// What a volume is at this moment, between two requests.
    Volume(Arc<Volume>),
}

impl Volumes {
    /// Makes a volume that begins as another disk, and is larger where a size is given; what is added reads as zeroes.
    ///
    /// # Errors
    /// A name that is taken, a disk that is not there or is larger than the size, a size that cannot be, journals that
    /// cannot be made durable, or a store that fails.
    pub fn clone_disk(&self, name: &Name, of: CloneOf, size_bytes: Option<u64>) -> Result<Arc<Volume>, VolumeError> {
        self.clone_with(name, of, size_bytes, Some(self.context.options.clock.now_ms()), Vec::new())
    }

    /// As [`clone_disk`](Self::clone_disk), with other changes of the roots in the same step; `born_ms` is as in [`Volume::born_ms`].
    pub(crate) fn clone_with(
        &self,
        name: &Name,
        of: CloneOf,
        size_bytes: Option<u64>,
        born_ms: Option<u64>,
        further: Vec<RootChange>,
    ) -> Result<Arc<Volume>, VolumeError> {
        if let CloneOf::Volume(volume) = &of {
            // Most of what the kernel has not written yet is written before others are kept waiting.
            volume.cell.open()?.layers[0].journal.sync()?;
        }
        let changing = self.changes.lock();
        if self.get(name).is_some() {
            return Err(VolumeError::Exists(name.clone()));
        }
        let mut under = match of {
            CloneOf::Tree(base) => Stack::new(self.context.clone(), base.size_bytes, base, Vec::new()),
            CloneOf::Frozen(id) => {
                let frozen = self.frozen(id).ok_or(VolumeError::UnknownFrozen(id))?;
                Stack::clone(&frozen.cell.stack())
            }
            CloneOf::Volume(volume) => {
                self.check_present(&volume)?;
                self.end_layer(&changing, &volume)?;
                let stack = volume.cell.stack();
                stack.with_layers(stack.layers[1..].to_vec())
            }
        };
        if let Some(wanted_bytes) = size_bytes {
            if wanted_bytes < under.size_bytes {
                return Err(VolumeError::TooSmall { size_bytes: under.size_bytes, wanted_bytes });
            }
            under.size_bytes = wanted_bytes;
        }
        self.add(&changing, name, &under, born_ms, further)
    }
}

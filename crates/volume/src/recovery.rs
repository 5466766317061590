//! Finding all volumes again: from the root records, and from the journals that they name.
//!
//! Invariant: what no record names was never acknowledged, or is not needed any more; it is deleted. A journal that a
//! record names is never deleted here.

use std::collections::BTreeMap;
use std::sync::Arc;

use types::LayerId;

use crate::error::VolumeError;
use crate::frozen::Frozen;
use crate::journal;
use crate::layer::Layer;
use crate::records::{
    self, FROZEN_PREFIX, FrozenRecord, LAYER_PREFIX, LayerRecord, StackRecord, VOLUME_PREFIX, VolumeRecord,
};
use crate::stack::{Context, Stack};
use crate::volume::Volume;
use crate::volumes::Registry;

/// Reads everything that there is.
pub(crate) fn recover(context: &Arc<Context>) -> Result<Registry, VolumeError> {
    make_directory(context)?;
    let roots = context.store.roots();
    let mut layers = Layers { context, found: BTreeMap::new() };
    let mut registry = Registry::default();
    for (name, bytes) in roots.list(VOLUME_PREFIX) {
        let record: VolumeRecord = records::decode(&name, &bytes)?;
        let id = records::id_of(VOLUME_PREFIX, &name)?;
        let stack = layers.stack(&name, &record.stack)?;
        let next = layers.next_sequence(&record.stack);
        let contradiction = |what| VolumeError::Contradiction { name: name.clone(), what };
        let open = stack.layers.first().cloned().ok_or_else(|| contradiction("it has no open layer"))?;
        let volume = Volume::new(id, record.name.clone(), stack, open, next);
        if let Some(deleted) = record.deleted {
            volume.mark_deleted(deleted);
            registry.deleted.insert(id, volume);
            continue;
        }
        if registry.volumes.insert(record.name, volume).is_some() {
            return Err(contradiction("another volume has its name"));
        }
    }
    for (name, bytes) in roots.list(FROZEN_PREFIX) {
        let record: FrozenRecord = records::decode(&name, &bytes)?;
        let id = records::id_of(FROZEN_PREFIX, &name)?;
        registry.frozen.insert(id, Frozen::new(id, layers.stack(&name, &record.stack)?));
    }
    let volumes = registry.all_volumes().map(|volume| (volume.id(), volume.clone())).collect();
    crate::history::recover(context, &volumes, &mut |name, record| {
        let none = || VolumeError::Contradiction { name: name.to_owned(), what: "it names no layer" };
        Ok((layers.stack(name, &record.before)?, layers.layer(name, record.layer.ok_or_else(none)?)?))
    })?;
    layers.drop_unreferenced()?;
    Ok(registry)
}

struct Layers<'c> {
    context: &'c Arc<Context>,
    /// The layers that were named so far, with the next sequence number of each.
    found: BTreeMap<LayerId, (Arc<Layer>, u64)>,
}

impl Layers<'_> {
    fn stack(&mut self, name: &str, record: &StackRecord) -> Result<Stack, VolumeError> {
        let base = record.check(name)?;
        let layers = record.layers.iter().map(|id| self.layer(name, *id)).collect::<Result<_, _>>()?;
        Ok(Stack::new(self.context.clone(), record.size_bytes, base, layers))
    }

    fn layer(&mut self, owner: &str, id: LayerId) -> Result<Arc<Layer>, VolumeError> {
        if let Some((layer, _)) = self.found.get(&id) {
            return Ok(layer.clone());
        }
        let name = records::layer_name(id);
        let bytes = self.context.store.roots().get(&name).ok_or_else(|| VolumeError::Contradiction {
            name: owner.to_owned(),
            what: "it refers to a layer that has no record",
        })?;
        let record: LayerRecord = records::decode(&name, &bytes)?;
        let (layer, next) = Layer::recover(&self.context.medium, &self.context.layers, id, &record)?;
        let layer = Arc::new(layer);
        self.found.insert(id, (layer.clone(), next));
        Ok(layer)
    }

    /// The sequence number that follows all of a volume's.
    fn next_sequence(&self, record: &StackRecord) -> u64 {
        let open = record.layers.first().and_then(|id| self.found.get(id));
        open.map_or(1, |(_, next)| *next)
    }

    /// Deletes the records and journals of layers that nothing refers to.
    fn drop_unreferenced(&self) -> Result<(), VolumeError> {
        let roots = self.context.store.roots();
        let mut changes = Vec::new();
        for (name, _) in roots.list(LAYER_PREFIX) {
            if !self.found.contains_key(&records::id_of(LAYER_PREFIX, &name)?) {
                changes.push((name, None));
            }
        }
        if !changes.is_empty() {
            roots.apply(changes)?;
        }
        let directory = &self.context.layers;
        let error = |source| VolumeError::Io { operation: "list", path: directory.clone(), source };
        for file in self.context.medium.list(directory).map_err(error)? {
            let path = directory.join(file);
            let is_journal = path.extension().is_some_and(|extension| extension == "journal");
            let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if let Some(id) = id.filter(|id| is_journal && !self.found.contains_key(id)) {
                tracing::info!(layer = %id, "deletes a journal that nothing refers to");
                journal::delete(&*self.context.medium, &path);
            }
        }
        Ok(())
    }
}

/// Makes the directory of the journals and the one it is in, only for their owner, durably.
fn make_directory(context: &Context) -> Result<(), VolumeError> {
    let layers = &context.layers;
    for path in layers.parent().into_iter().chain([layers.as_path()]) {
        let error = |source| VolumeError::Io { operation: "make", path: path.to_owned(), source };
        context.medium.make_directory(path).map_err(error)?;
    }
    Ok(())
}

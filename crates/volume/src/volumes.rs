//! All volumes and frozen disks of a node.
//!
//! Invariants: what is here agrees with the root records, which change first, all or none in one step; `changes` is
//! held from reading what is until the records and the memory agree again. Locks are taken in this order: `changes`,
//! writers by volume id, `registry`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, MutexGuard};

use medium::{Host, Medium};
use store::{ChunkSource, ChunkStore, Domain, NodeCache, RootChange};
use tokio::sync::Notify;
use types::{FrozenId, LayerId, Name, VolumeId};

use crate::base::TreeBase;
use crate::clock::Clock;
use crate::error::VolumeError;
use crate::frozen::{Frozen, TreeView};
use crate::history::Ending;
use crate::layer::{Layer, Secret};
use crate::locks::{Mutex, RwLock};
use crate::reading::StackCell;
use crate::records::{self, is_disk_size};
use crate::stack::{Context, Stack};
use crate::volume::{Volume, Writer};
use crate::workers::Workers;

/// How many threads may compose and hash chunks for sealing at once.
const WORKERS: usize = 2;

/// Settings of all volumes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VolumeOptions {
    /// How long a volume's journals may grow before a fold is due, in bytes; less where the file system has less than
    /// twice as much left. From twice that on writes are slowed down, unless a fold may have to wait for data elsewhere.
    pub journal_limit_bytes: u64,
    /// What writes leave free on the file system, for folding, the roots and others, in bytes; at most a sixteenth of it.
    /// From four times that on writes are slowed down.
    pub reserve_bytes: u64,
    /// How much memory decoded tree nodes may take, in bytes.
    pub node_cache_bytes: u64,
    /// What tells the time of writes.
    pub clock: Clock,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            journal_limit_bytes: 1 << 30,
            reserve_bytes: 256 << 20,
            node_cache_bytes: 16 << 20,
            clock: Clock::default(),
        }
    }
}

/// All volumes and frozen disks of a node.
#[derive(Debug)]
pub struct Volumes {
    pub(crate) context: Arc<Context>,
    pub(crate) changes: Mutex<()>,
    pub(crate) registry: RwLock<Registry>,
}

/// What there is.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) volumes: BTreeMap<Name, Arc<Volume>>,
    /// Those that were deleted and can be taken back.
    pub(crate) deleted: BTreeMap<VolumeId, Arc<Volume>>,
    pub(crate) frozen: BTreeMap<FrozenId, Arc<Frozen>>,
}

impl Registry {
    /// All volumes, the deleted ones too.
    pub(crate) fn all_volumes(&self) -> impl Iterator<Item = &Arc<Volume>> {
        self.volumes.values().chain(self.deleted.values())
    }

    /// The layers that the stacks refer to, after `next` has said what becomes of each.
    pub(crate) fn referenced(&self, next: impl Fn(Owner, Arc<Stack>) -> Option<Arc<Stack>>) -> BTreeSet<LayerId> {
        let volumes = self.all_volumes().map(|volume| next(Owner::Volume(volume.id()), volume.cell.stack()));
        let mut past = BTreeSet::new();
        for volume in self.all_volumes() {
            for (number, entry) in volume.entries() {
                if let Some(before) = next(Owner::History(volume.id(), number), entry.before.stack()) {
                    past.insert(entry.layer.id());
                    past.extend(before.layers.iter().map(|layer| layer.id()));
                }
            }
        }
        let frozen = self.frozen.values().map(|disk| next(Owner::Frozen(disk.id()), disk.cell.stack()));
        let layers = |stack: Arc<Stack>| stack.layers.iter().map(|layer| layer.id()).collect::<Vec<_>>();
        past.extend(volumes.chain(frozen).flatten().flat_map(layers));
        past
    }
}

/// Whose stack it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    Volume(VolumeId),
    Frozen(FrozenId),
    /// The disk before a layer of a volume's past.
    History(VolumeId, u64),
}

impl Volumes {
    /// Opens all volumes, recovering them from the store's roots and the journals in a directory of the host.
    ///
    /// # Errors
    /// Records or journals that cannot be read or understood. A torn end of a journal is no error.
    pub fn open(
        directory: &Path,
        store: Arc<dyn ChunkStore>,
        source: Arc<dyn ChunkSource>,
        options: VolumeOptions,
    ) -> Result<Arc<Self>, VolumeError> {
        Self::open_on(Host::shared(), directory, store, source, options)
    }

    /// Opens all volumes, whose journals lie in a directory of some file system.
    ///
    /// # Errors
    /// As [`Volumes::open`].
    pub fn open_on(
        medium: Arc<dyn Medium>,
        directory: &Path,
        store: Arc<dyn ChunkStore>,
        source: Arc<dyn ChunkSource>,
        options: VolumeOptions,
    ) -> Result<Arc<Self>, VolumeError> {
        let context = Context {
            store,
            source,
            nodes: NodeCache::new(options.node_cache_bytes),
            medium,
            layers: directory.join("layers"),
            workers: Workers::new(WORKERS),
            journal_limit_bytes: options.journal_limit_bytes,
            clock: options.clock,
            reserve_bytes: options.reserve_bytes,
            room_due: Notify::new(),
        };
        let context = Arc::new(context);
        let registry = RwLock::new(crate::recovery::recover(&context)?);
        Ok(Arc::new(Self { context, changes: Mutex::new(()), registry }))
    }

    /// Makes an empty volume.
    ///
    /// # Errors
    /// A name that is taken, a size that cannot be, or a store that fails.
    pub fn create(&self, name: &Name, size_bytes: u64) -> Result<Arc<Volume>, VolumeError> {
        self.clone_tree(name, TreeBase::empty(size_bytes, Domain::OWN))
    }

    /// Makes a volume whose content is a tree's, in constant time.
    ///
    /// # Errors
    /// As [`Volumes::create`].
    pub fn clone_tree(&self, name: &Name, base: TreeBase) -> Result<Arc<Volume>, VolumeError> {
        let changing = self.changes.lock();
        self.add(&changing, name, &Stack::new(self.context.clone(), base.size_bytes, base, Vec::new()))
    }

    /// Makes a volume whose content is a frozen disk's, sealed or not, in constant time.
    ///
    /// # Errors
    /// As [`Volumes::create`], and a frozen disk that is not there.
    pub fn clone_frozen(&self, name: &Name, frozen: FrozenId) -> Result<Arc<Volume>, VolumeError> {
        let changing = self.changes.lock();
        let frozen = self.frozen(frozen).ok_or(VolumeError::UnknownFrozen(frozen))?;
        self.add(&changing, name, &frozen.cell.stack())
    }

    fn add(&self, changing: &MutexGuard<'_, ()>, name: &Name, under: &Stack) -> Result<Arc<Volume>, VolumeError> {
        if !is_disk_size(under.size_bytes) {
            return Err(VolumeError::Size(under.size_bytes));
        }
        if self.get(name).is_some() {
            return Err(VolumeError::Exists(name.clone()));
        }
        // What could not be recovered must not be made.
        under.record().check(name.as_str())?;
        let open = Arc::new(self.new_layer(Secret(random()?), 1)?);
        self.add_over(changing, name, under, open, 1)
    }

    /// Makes a volume of a disk and an open layer over it.
    pub(crate) fn add_over(
        &self,
        _: &MutexGuard<'_, ()>,
        name: &Name,
        under: &Stack,
        open: Arc<Layer>,
        next_sequence: u64,
    ) -> Result<Arc<Volume>, VolumeError> {
        let mut layers = vec![open.clone()];
        layers.extend(under.layers.iter().cloned());
        let stack = under.with_layers(layers);
        let layer = records::put(records::layer_name(open.id()), &open.record(None));
        let volume = Volume::new(VolumeId(random()?), name.clone(), stack, open, next_sequence);
        self.context.store.roots().apply(vec![layer, volume.record(&volume.cell.stack())])?;
        self.registry.write().volumes.insert(name.clone(), volume.clone());
        Ok(volume)
    }

    /// The volume of a name.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<Arc<Volume>> {
        self.registry.read().volumes.get(name).cloned()
    }

    /// All volumes, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Volume>> {
        self.registry.read().volumes.values().cloned().collect()
    }

    /// The frozen disk of an id.
    #[must_use]
    pub fn frozen(&self, id: FrozenId) -> Option<Arc<Frozen>> {
        self.registry.read().frozen.get(&id).cloned()
    }

    /// Shows a sealed snapshot's disk.
    #[must_use]
    pub fn view(&self, base: TreeBase) -> Arc<TreeView> {
        let stack = Stack::new(self.context.clone(), base.size_bytes, base, Vec::new());
        Arc::new(TreeView { cell: StackCell::new(stack) })
    }

    /// Resolves when a write has found that [`Volumes::fold`] or [`Volumes::expire_history`] is due for some volume.
    pub async fn room_due(&self) {
        self.context.room_due.notified().await;
    }

    /// Volumes whose journals have grown so long that [`Volumes::fold`] is due.
    #[must_use]
    pub fn needs_fold(&self) -> Vec<Arc<Volume>> {
        self.list().into_iter().filter(|volume| volume.needs_fold()).collect()
    }

    /// Makes a volume larger; what is added reads as zeroes.
    ///
    /// # Errors
    /// A size that cannot be or is smaller, or a store that fails.
    pub fn grow(&self, volume: &Volume, size_bytes: u64) -> Result<(), VolumeError> {
        let _changing = self.changes.lock();
        self.check_present(volume)?;
        let stack = volume.cell.stack();
        if !is_disk_size(size_bytes) {
            return Err(VolumeError::Size(size_bytes));
        }
        if size_bytes < stack.size_bytes {
            return Err(VolumeError::Shrinks { size_bytes: stack.size_bytes, wanted_bytes: size_bytes });
        }
        let grown = Stack { size_bytes, ..Stack::clone(&stack) };
        self.context.store.roots().apply(vec![volume.record(&grown)])?;
        volume.cell.replace(grown);
        Ok(())
    }

    /// Removes a volume for good. Its open requests fail from now on; layers that nothing else refers to are deleted.
    ///
    /// # Errors
    /// A volume that is not there, or a store that fails.
    pub fn remove(&self, name: &Name) -> Result<(), VolumeError> {
        let changing = self.changes.lock();
        let volume = self.get(name).ok_or_else(|| VolumeError::NotFound(name.clone()))?;
        self.erase(&changing, &volume)
    }

    /// Lets go of a frozen disk; layers that nothing else refers to are deleted.
    ///
    /// # Errors
    /// A frozen disk that is not there, or a store that fails.
    pub fn forget_frozen(&self, id: FrozenId) -> Result<(), VolumeError> {
        let _changing = self.changes.lock();
        let frozen = self.frozen(id).ok_or(VolumeError::UnknownFrozen(id))?;
        let kept = self.referenced_without(Owner::Frozen(id));
        let freed = unreferenced(&frozen.cell.stack().layers, &kept);
        let mut changes = vec![(records::frozen_name(id), None)];
        changes.extend(freed.iter().map(|layer| (records::layer_name(layer.id()), None)));
        self.context.store.roots().apply(changes)?;
        frozen.cell.close();
        self.registry.write().frozen.remove(&id);
        self.context.delete_journals(&freed);
        Ok(())
    }

    /// Freezes several volumes at one moment between two requests. `records` are further root changes that are made
    /// in the same atomic step. The frozen disks are in the order of the volumes.
    ///
    /// # Errors
    /// Volumes that are not there or named twice, journals that cannot be made durable, or a store that fails; then
    /// nothing has changed.
    pub fn freeze(
        &self,
        volumes: &[Arc<Volume>],
        records: impl FnOnce(&[FrozenId]) -> Vec<RootChange>,
    ) -> Result<Vec<Arc<Frozen>>, VolumeError> {
        // Most of what the kernel has not written yet is written while writes go on.
        for volume in volumes {
            volume.cell.open()?.layers[0].journal.sync()?;
        }
        let _changing = self.changes.lock();
        let ids = volumes.iter().map(|_| random().map(FrozenId)).collect::<Result<Vec<_>, _>>()?;
        let mut writers = self.hold_writers(volumes)?;
        let mut changes = Vec::new();
        let mut next = Vec::new();
        for (volume, id) in volumes.iter().zip(&ids) {
            let writer = &writers[&volume.id()];
            let stack = volume.cell.stack();
            let exchange = self.exchange(volume, &stack, writer)?;
            let frozen = stack.with_layers(exchange.frozen.clone());
            changes.push(Frozen::record(*id, &frozen));
            changes.extend(exchange.changes.iter().cloned());
            next.push((exchange, Frozen::new(*id, frozen)));
        }
        changes.extend(records(&ids));
        self.context.store.roots().apply(changes)?;
        let mut frozen = Vec::with_capacity(volumes.len());
        for (volume, (exchange, disk)) in volumes.iter().zip(next) {
            if let Some(writer) = writers.get_mut(&volume.id()) {
                exchange.finish(volume, writer);
            }
            self.registry.write().frozen.insert(disk.id(), disk.clone());
            frozen.push(disk);
        }
        Ok(frozen)
    }

    pub(crate) fn referenced_without(&self, owner: Owner) -> BTreeSet<LayerId> {
        self.registry.read().referenced(|other, stack| (other != owner).then_some(stack))
    }

    /// Stops all writes to some volumes, which must be there and differ.
    fn hold_writers<'v>(
        &self,
        volumes: &'v [Arc<Volume>],
    ) -> Result<BTreeMap<VolumeId, MutexGuard<'v, Writer>>, VolumeError> {
        let mut sorted: BTreeMap<VolumeId, &Arc<Volume>> = BTreeMap::new();
        for volume in volumes {
            self.check_present(volume)?;
            if sorted.insert(volume.id(), volume).is_some() {
                return Err(VolumeError::Repeated(volume.name().clone()));
            }
        }
        Ok(sorted.into_iter().map(|(id, volume)| (id, volume.writer.lock())).collect())
    }

    pub(crate) fn check_present(&self, volume: &Volume) -> Result<(), VolumeError> {
        match self.get(volume.name()) {
            // Not by its id: a volume that was taken back is another one in memory.
            Some(found) if std::ptr::eq(Arc::as_ptr(&found), volume) => Ok(()),
            _ => Err(VolumeError::NotFound(volume.name().clone())),
        }
    }

    /// Prepares to put an empty open layer over the one there is, whose journal is made durable. A layer that nobody
    /// has written to stays open.
    pub(crate) fn exchange(&self, volume: &Volume, stack: &Stack, writer: &Writer) -> Result<Exchange, VolumeError> {
        self.exchange_if(!writer.open.journal.is_empty(), volume, stack, writer)
    }

    /// As [`Volumes::exchange`], for who knows whether there has to be another layer.
    pub(crate) fn exchange_if(
        &self,
        needed: bool,
        volume: &Volume,
        stack: &Stack,
        writer: &Writer,
    ) -> Result<Exchange, VolumeError> {
        if !needed {
            let frozen = stack.layers[1..].to_vec();
            return Ok(Exchange { frozen, changes: Vec::new(), stack: None, ending: None });
        }
        writer.open.journal.sync()?;
        let open = Arc::new(self.new_layer(writer.open.secret(), writer.next_sequence)?);
        let mut layers = vec![open.clone()];
        layers.extend(stack.layers.iter().cloned());
        let next = stack.with_layers(layers);
        let last = writer.next_sequence - 1;
        let (ending, past) = volume.ending(stack).unzip();
        let mut changes = vec![
            records::put(records::layer_name(writer.open.id()), &writer.open.record(Some(last))),
            records::put(records::layer_name(open.id()), &open.record(None)),
            volume.record(&next),
        ];
        changes.extend(past);
        Ok(Exchange { frozen: stack.layers.clone(), changes, stack: Some((next, open)), ending })
    }

    pub(crate) fn new_layer(&self, secret: Secret, first_sequence: u64) -> Result<Layer, VolumeError> {
        Ok(Layer::new(&self.context.medium, &self.context.layers, LayerId(random()?), secret, first_sequence))
    }
}

/// A stack with a new open layer, not yet in place.
pub(crate) struct Exchange {
    /// The layers that are frozen with it, newest first.
    pub(crate) frozen: Vec<Arc<Layer>>,
    /// The records to change first.
    pub(crate) changes: Vec<RootChange>,
    pub(crate) stack: Option<(Stack, Arc<Layer>)>,
    /// What becomes part of the past of a protected volume.
    ending: Option<Ending>,
}

impl Exchange {
    /// Puts the stack in place, once the records are durable.
    pub(crate) fn finish(self, volume: &Volume, writer: &mut Writer) {
        if let Some((stack, open)) = self.stack {
            writer.open = open;
            volume.cell.replace(stack);
        }
        if let Some(ending) = self.ending {
            volume.ended(ending);
        }
    }
}

/// Those of some layers that nothing refers to.
pub(crate) fn unreferenced(layers: &[Arc<Layer>], kept: &BTreeSet<LayerId>) -> Vec<Arc<Layer>> {
    layers.iter().filter(|layer| !kept.contains(&layer.id())).cloned().collect()
}

pub(crate) fn random<const BYTES: usize>() -> Result<[u8; BYTES], VolumeError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(VolumeError::Random)?;
    Ok(bytes)
}

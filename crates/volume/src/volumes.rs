//! All volumes and frozen disks of a node.
//!
//! Invariants: what is here agrees with the root records, which change first, all or none in one step; `changes` is
//! held from reading what is until the records and the memory agree again. Locks are taken in this order: `changes`,
//! writers by volume id, `registry`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, MutexGuard, OnceLock};

use medium::{Host, Medium};
use store::{ChunkSource, ChunkStore, Domain, NodeCache, RootChange};
use tokio::sync::Notify;
use types::{FrozenId, JournalId, LayerId, Name, VolumeId};

use crate::base::TreeBase;
use crate::clock::Clock;
use crate::cloning::CloneOf;
use crate::device::Durability;
use crate::error::VolumeError;
use crate::frozen::{Frozen, TreeView};
use crate::journal::{Journal, Secret};
use crate::layer::Layer;
use crate::locks::{Mutex, RwLock};
use crate::observer::Change;
use crate::pressure::{FoldDue, Limits};
use crate::reading::StackCell;
use crate::records::{self, JournalRecord, is_disk_size};
use crate::segment::SegmentFiles;
use crate::stack::{Context, Stack};
use crate::volume::{Volume, Writer};
use crate::workers::{self, Workers};

/// How many threads may compose and hash chunks for sealing at once.
const WORKERS: usize = 2;

/// One file of a journal is at most this part of the file system.
const SEGMENT_PART: u64 = 64;

/// The files that are kept to be used again take at most this part of it.
const POOL_PART: u64 = 32;

/// Settings of all volumes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct VolumeOptions {
    /// How much may count in a volume's journals before a fold is due even while it is written to, in bytes; less where the
    /// file system has less than twice as much left as a fold may write. From twice that length on, or twice the length of
    /// what counts, writes are slowed down, unless a fold may have to wait for data elsewhere.
    pub journal_limit_bytes: u64,
    /// How much may count in them before a fold is due when the volume rests, in bytes.
    pub resting_limit_bytes: u64,
    /// What writes leave free on the file system, for folding, the roots and others, in bytes; at most a sixteenth of it.
    /// From four times that on writes are slowed down.
    pub reserve_bytes: u64,
    /// How much memory decoded tree nodes may take, in bytes.
    pub node_cache_bytes: u64,
    /// How long one file of a journal may grow, in bytes; at most a 64th of the file system.
    pub segment_bytes: u64,
    /// How much room may be kept in files that are to be used again, in bytes; at most a 32nd of the file system.
    pub pool_bytes: u64,
    /// Whether journals are tidied in the background; without it only [`Volumes::tidy`] does.
    pub tidy_in_background: bool,
    /// What tells the time of writes.
    pub clock: Clock,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            journal_limit_bytes: 8 << 30,
            resting_limit_bytes: 1 << 30,
            reserve_bytes: 256 << 20,
            node_cache_bytes: 16 << 20,
            segment_bytes: 32 << 20,
            pool_bytes: 256 << 20,
            tidy_in_background: true,
            clock: Clock::default(),
        }
    }
}

impl VolumeOptions {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            journal_bytes: self.journal_limit_bytes,
            resting_bytes: self.resting_limit_bytes.min(self.journal_limit_bytes),
            reserve_bytes: self.reserve_bytes,
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
    pub(crate) fn referenced(&self, next: impl Fn(Owner, Arc<Stack>) -> Option<Arc<Stack>>) -> Kept {
        let volumes = self.all_volumes().map(|volume| next(Owner::Volume(volume.id()), volume.cell.stack()));
        let frozen = self.frozen.values().map(|disk| next(Owner::Frozen(disk.id()), disk.cell.stack()));
        let mut kept = Kept::default();
        for volume in self.all_volumes() {
            for (number, entry) in volume.entries() {
                if let Some(before) = next(Owner::History(volume.id(), number), entry.before.stack()) {
                    before.layers.iter().chain(&entry.layer).for_each(|layer| kept.keep(layer));
                }
            }
        }
        for stack in volumes.chain(frozen).flatten() {
            stack.layers.iter().for_each(|layer| kept.keep(layer));
        }
        kept
    }
}

/// What stacks refer to.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    layers: BTreeSet<LayerId>,
    pub(crate) journals: BTreeSet<JournalId>,
}

impl Kept {
    fn keep(&mut self, layer: &Layer) {
        self.layers.insert(layer.id());
        self.journals.insert(layer.journal.id());
    }

    /// Those of some layers that nothing refers to.
    pub(crate) fn unreferenced(&self, layers: &[Arc<Layer>]) -> Vec<Arc<Layer>> {
        layers.iter().filter(|layer| !self.layers.contains(&layer.id())).cloned().collect()
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
        let layers = directory.join("layers");
        let mut options = options;
        if let Ok(room) = medium.room(directory) {
            // On a small file system a file is small, too: it comes back as a whole.
            options.segment_bytes = options.segment_bytes.min(room.total_bytes / SEGMENT_PART);
            options.pool_bytes = options.pool_bytes.min(room.total_bytes / POOL_PART);
        }
        let files = SegmentFiles::new(medium, layers, options.segment_bytes, options.pool_bytes);
        let context = Context {
            store,
            source,
            nodes: NodeCache::new(options.node_cache_bytes),
            files: Arc::new(files),
            workers: Workers::new(WORKERS, "fold", workers::LATER),
            tidiers: Workers::new(1, "tidy", workers::SOON),
            options,
            volumes: OnceLock::new(),
            room_due: Notify::new(),
        };
        let context = Arc::new(context);
        let registry = RwLock::new(crate::recovery::recover(&context)?);
        let volumes = Arc::new(Self { context: context.clone(), changes: Mutex::new(()), registry });
        context.volumes.get_or_init(|| Arc::downgrade(&volumes));
        volumes.ask_for_all();
        Ok(volumes)
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
        self.clone_disk(name, CloneOf::Tree(base), None)
    }

    /// Makes a volume whose content is a frozen disk's, sealed or not, in constant time.
    ///
    /// # Errors
    /// As [`Volumes::create`], and a frozen disk that is not there.
    pub fn clone_frozen(&self, name: &Name, frozen: FrozenId) -> Result<Arc<Volume>, VolumeError> {
        self.clone_disk(name, CloneOf::Frozen(frozen), None)
    }

    /// Makes a volume over a disk, under a name that is free, and other changes in the same step.
    pub(crate) fn add(
        &self,
        changing: &MutexGuard<'_, ()>,
        name: &Name,
        under: &Stack,
        born_ms: Option<u64>,
        further: Vec<RootChange>,
    ) -> Result<Arc<Volume>, VolumeError> {
        if !is_disk_size(under.size_bytes) {
            return Err(VolumeError::Size(under.size_bytes));
        }
        // What could not be recovered must not be made.
        under.record().check(name.as_str())?;
        let (open, mut changes) = self.begin_journal(Secret(random()?))?;
        changes.extend(further);
        self.add_over(changing, name, under, (open, 1), born_ms, changes)
    }

    /// Makes a volume of a disk, an open layer over it with the next sequence number, and the records of that.
    pub(crate) fn add_over(
        &self,
        _: &MutexGuard<'_, ()>,
        name: &Name,
        under: &Stack,
        (open, next_sequence): (Arc<Layer>, u64),
        born_ms: Option<u64>,
        mut changes: Vec<RootChange>,
    ) -> Result<Arc<Volume>, VolumeError> {
        let mut layers = vec![open.clone()];
        layers.extend(under.layers.iter().cloned());
        let stack = under.with_layers(layers);
        let volume = Volume::new(VolumeId(random()?), name.clone(), stack, (open, next_sequence), born_ms);
        changes.push(volume.record(&volume.cell.stack()));
        self.context.store.roots().apply(changes)?;
        self.registry.write().volumes.insert(name.clone(), volume.clone());
        Ok(volume)
    }

    /// An empty open layer in a journal of its own, and their records.
    pub(crate) fn begin_journal(&self, secret: Secret) -> Result<(Arc<Layer>, Vec<RootChange>), VolumeError> {
        let journal = Arc::new(Journal::new(self.context.files.clone(), JournalId(random()?), secret));
        let open = Layer::new(journal.clone(), LayerId(random()?), 1);
        let changes = vec![
            records::put(records::journal_name(journal.id()), &journal.record(&BTreeSet::new())),
            records::put(records::layer_name(open.id()), &open.record()),
        ];
        Ok((open, changes))
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

    /// Volumes whose journals have grown so long that [`Volumes::fold`] is due, and why.
    #[must_use]
    pub fn needs_fold(&self) -> Vec<(Arc<Volume>, FoldDue)> {
        self.list().into_iter().filter_map(|volume| volume.needs_fold().map(|due| (volume, due))).collect()
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
        // Nobody can write to what is added before the observer knows of it; nobody waits for it either.
        let writer = volume.writer.lock();
        volume.cell.replace(grown);
        let _told = volume.tell(&writer, [Change::Grow { size_bytes }], Durability::Process);
        Ok(())
    }

    /// Gives a volume another name, and makes other changes of the roots in the same step. What was acknowledged is durable then; open
    /// requests to it under its old name fail from now on.
    ///
    /// # Errors
    /// A volume that is not there, a name that is taken, a journal that cannot be made durable, or a store that fails; then
    /// nothing has changed.
    pub fn rename(
        &self,
        volume: &Arc<Volume>,
        name: &Name,
        further: Vec<RootChange>,
    ) -> Result<Arc<Volume>, VolumeError> {
        let _changing = self.changes.lock();
        self.check_present(volume)?;
        if self.get(name).is_some() {
            return Err(VolumeError::Exists(name.clone()));
        }
        let mut writer = volume.writer.lock();
        writer.open.journal.sync()?;
        let stack = Stack::clone(&volume.cell.stack());
        let appended = (writer.open.clone(), writer.next_sequence);
        let renamed = Volume::new(volume.id(), name.clone(), stack, appended, None);
        let mut changes = further;
        changes.push(renamed.record(&renamed.cell.stack()));
        self.context.store.roots().apply(changes)?;
        *renamed.history.lock() = volume.history.lock().take();
        let mut registry = self.registry.write();
        registry.volumes.remove(volume.name());
        registry.volumes.insert(name.clone(), renamed.clone());
        drop(registry);
        writer.closed = true;
        drop(writer);
        volume.close();
        Ok(renamed)
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

    /// Lets go of a frozen disk; layers that nothing else refers to are deleted. Who still has one that is sealed reads it from its
    /// tree for as long as the store keeps that; of one that is not, all requests fail from now on.
    ///
    /// # Errors
    /// A frozen disk that is not there, or a store that fails.
    pub fn forget_frozen(&self, id: FrozenId) -> Result<(), VolumeError> {
        let changing = self.changes.lock();
        let frozen = self.frozen(id).ok_or(VolumeError::UnknownFrozen(id))?;
        let kept = self.referenced_without(Owner::Frozen(id));
        let freed = kept.unreferenced(&frozen.cell.stack().layers);
        let mut changes = vec![(records::frozen_name(id), None)];
        let removal = Self::removal(&kept, freed);
        changes.extend(removal.changes.iter().cloned());
        self.context.store.roots().apply(changes)?;
        if frozen.sealed().is_none() {
            frozen.cell.close();
        }
        self.registry.write().frozen.remove(&id);
        self.let_go(&changing, removal);
        Ok(())
    }

    /// Freezes several volumes at one moment between two requests. `records` are further root changes that are made
    /// in the same atomic step. The frozen disks are in the order of the volumes. Writes go on meanwhile.
    ///
    /// # Errors
    /// Volumes that are not there or named twice, journals that cannot be made durable, or a store that fails; then
    /// nothing has changed.
    pub fn freeze(
        &self,
        volumes: &[Arc<Volume>],
        records: impl FnOnce(&[FrozenId]) -> Vec<RootChange>,
    ) -> Result<Vec<Arc<Frozen>>, VolumeError> {
        // Most of what the kernel has not written yet is written before others are kept waiting.
        for volume in volumes {
            volume.cell.open()?.layers[0].journal.sync()?;
        }
        let changing = self.changes.lock();
        let ids = volumes.iter().map(|_| random().map(FrozenId)).collect::<Result<Vec<_>, _>>()?;
        let exchanges = self.exchange(&changing, volumes)?;
        let frozen: Vec<_> =
            ids.iter().zip(&exchanges).map(|(id, (_, exchange))| (*id, exchange.frozen.clone())).collect();
        let mut changes: Vec<_> = frozen.iter().map(|(id, stack)| Frozen::record(*id, stack)).collect();
        changes.extend(records(&ids));
        self.complete(exchanges, changes)?;
        let frozen: Vec<_> = frozen.into_iter().map(|(id, stack)| Frozen::new(id, stack)).collect();
        self.registry.write().frozen.extend(frozen.iter().map(|disk| (disk.id(), disk.clone())));
        Ok(frozen)
    }

    pub(crate) fn referenced_without(&self, owner: Owner) -> Kept {
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

    /// Puts an empty open layer over the one that some volumes have, at one moment between two requests, in memory only:
    /// until it is completed, both are one to a recovery. A layer that nobody has written to stays open.
    pub(crate) fn exchange<'v>(
        &self,
        _: &MutexGuard<'_, ()>,
        volumes: &'v [Arc<Volume>],
    ) -> Result<Vec<(&'v Volume, Exchange)>, VolumeError> {
        // All that takes time is done before anyone is kept from writing.
        let layer = |volume: &Arc<Volume>| -> Result<_, VolumeError> {
            let journal = volume.cell.open()?.layers[0].journal.clone();
            Ok(Layer::new(journal, LayerId(random()?), u64::MAX))
        };
        let spare = volumes.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
        let mut writers = self.hold_writers(volumes)?;
        let mut exchanges = Vec::with_capacity(volumes.len());
        for (volume, open) in volumes.iter().zip(spare) {
            let Some(writer) = writers.get_mut(&volume.id()) else { continue };
            exchanges.push((&**volume, Exchange::begin(volume, writer, open)));
        }
        Ok(exchanges)
    }

    /// Makes exchanges durable, with further changes in the same step; where that fails, nothing has changed.
    pub(crate) fn complete(
        &self,
        exchanges: Vec<(&Volume, Exchange)>,
        further: Vec<RootChange>,
    ) -> Result<(), VolumeError> {
        let apply = || -> Result<_, VolumeError> {
            let mut changes = further;
            let mut recorded: Vec<(Arc<Journal>, JournalRecord)> = Vec::new();
            let mut endings = Vec::new();
            for (volume, exchange) in &exchanges {
                let Some((ended, open)) = &exchange.layers else { continue };
                ended.journal.sync()?;
                let record = ended.journal.record(&BTreeSet::new());
                changes.push(records::put(records::journal_name(ended.journal.id()), &record));
                for layer in [ended, open] {
                    changes.push(records::put(records::layer_name(layer.id()), &layer.record()));
                }
                changes.push(volume.record(&volume.cell.stack()));
                recorded.push((ended.journal.clone(), record));
                if let Some((ending, change)) = volume.ending(&exchange.frozen).filter(|_| ended.is_whole()) {
                    changes.push(change);
                    endings.push((*volume, ending));
                }
            }
            // Whatever becomes of it: what a record may name is not given up without one that does not.
            recorded.iter().for_each(|(journal, record)| journal.may_be_recorded(record));
            if !changes.is_empty() {
                self.context.store.roots().apply(changes)?;
            }
            Ok((recorded, endings))
        };
        match apply() {
            Ok((recorded, endings)) => {
                recorded.iter().for_each(|(journal, record)| journal.recorded(record));
                endings.into_iter().for_each(|(volume, ending)| volume.ended(ending));
                Ok(())
            }
            Err(error) => {
                exchanges.into_iter().for_each(|(volume, exchange)| exchange.undo(volume));
                Err(error)
            }
        }
    }
}

/// A layer that has ended, and one that has begun.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The disk at the moment between them.
    pub(crate) frozen: Stack,
    layers: Option<(Arc<Layer>, Arc<Layer>)>,
}

impl Exchange {
    pub(crate) fn begin(volume: &Volume, writer: &mut Writer, open: Arc<Layer>) -> Self {
        let stack = volume.cell.stack();
        // The open layer of a protected volume is kept whole from its first record on.
        open.keep_whole(volume.is_protected());
        if writer.open.is_empty() {
            writer.open.keep_whole(volume.is_protected());
            open.journal.forget_layer(&open);
            return Self { frozen: stack.with_layers(stack.layers[1..].to_vec()), layers: None };
        }
        open.begin_at(writer.next_sequence);
        writer.open.end_with(Some(writer.next_sequence - 1));
        let layers = std::iter::once(&open).chain(&stack.layers).cloned().collect();
        volume.cell.replace(stack.with_layers(layers));
        let ended = std::mem::replace(&mut writer.open, open.clone());
        Self { frozen: Stack::clone(&stack), layers: Some((ended, open)) }
    }

    /// Makes the two layers one again.
    fn undo(self, volume: &Volume) {
        let Some((ended, open)) = self.layers else { return };
        let mut writer = volume.writer.lock();
        ended.absorb(&open);
        ended.end_with(None);
        let stack = volume.cell.stack();
        volume.cell.replace(stack.with_layers(stack.layers[1..].to_vec()));
        open.journal.forget_layer(&open);
        writer.open = ended;
    }
}

pub(crate) fn random<const BYTES: usize>() -> Result<[u8; BYTES], VolumeError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(VolumeError::Random)?;
    Ok(bytes)
}

//! Folding frozen layers into a disk tree: what gives a snapshot its content id, and a volume its space back.
//!
//! Chunks that a layer touches are composed, hashed and stored, the nodes above them made anew, and everything is
//! durable before a record changes. All of it can be done again: after a crash, a cancel, or when another fold came
//! first. Where a chunk was written only in part and its base is elsewhere, the work waits for the base; writes do not.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use format::tree::{self, Edit, TreeError};
use format::{Shape, chunk_id, is_zero};
use futures_util::stream::{FuturesOrdered, StreamExt};
use store::{Domain, StoreError, Urgency};
use types::{CHUNK_BYTES, ChunkId, FrozenId, Progress, SECTOR_BYTES};

use crate::base::{Absent, CHUNK, TreeBase};
use crate::device::DeviceError;
use crate::error::VolumeError;
use crate::frozen::Frozen;
use crate::reading::Patience;
use crate::stack::{From, Lack, Stack, absent_node};
use crate::steps::{Step, batches, over};
use crate::volume::Volume;
use crate::volumes::{Owner, Volumes};

/// How many batches are composed at once.
const BATCHES: usize = 2;

/// How many absent nodes are asked for at once.
const NODES_AT_ONCE: usize = 64;

/// How often waiting work looks whether it was cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

impl Volumes {
    /// Folds a frozen disk's layers into its tree, durably, and returns the tree. What stands on the same layers is
    /// put on the new tree too. Can be repeated, and started again after a crash or cancel; waits for what is absent.
    ///
    /// # Errors
    /// A frozen disk that is not there, damaged journals, a store that fails, or a cancel.
    pub async fn seal(&self, id: FrozenId, progress: &Progress) -> Result<TreeBase, VolumeError> {
        let present = || self.frozen(id).ok_or(VolumeError::UnknownFrozen(id));
        let frozen = present()?;
        let _one = or_cancelled(progress, frozen.sealing.lock()).await?;
        // What is put is kept until a record refers to it.
        let _hold = self.context.store.hold();
        loop {
            // Sealing an older snapshot of the same volume may have put this one on another tree meanwhile.
            let stack = present()?.cell.stack();
            if stack.is_sealed() {
                return Ok(stack.base.clone());
            }
            let base = fold_stack(&stack, progress).await?;
            self.rebase(&stack, &base)?;
        }
    }

    /// Folds all that was written to a volume so far into its own tree, which gives the journals' space back. One that
    /// fails leaves no more layers than there were.
    ///
    /// # Errors
    /// As [`Volumes::seal`].
    pub async fn fold(&self, volume: &Arc<Volume>, progress: &Progress) -> Result<(), VolumeError> {
        let one = or_cancelled(progress, volume.folding.clone().lock_owned()).await?;
        let folded = self.fold_layers(volume, progress).await;
        if let (Err(_), Some(volumes)) = (&folded, self.context.volumes.get().and_then(Weak::upgrade)) {
            let volume = volume.clone();
            let merge = move || {
                let merged = volumes.merge_unfolded_layers(&volume);
                // Nobody began before with two layers that say the same: they would count twice.
                drop(one);
                merged
            };
            let merged = self.context.workers.run(merge).await;
            // What the fold failed by is what counts.
            if let Err(error) = merged.map_err(VolumeError::from).flatten() {
                tracing::debug!(%error, "layers could not be made one");
            }
        }
        folded
    }

    async fn fold_layers(&self, volume: &Arc<Volume>, progress: &Progress) -> Result<(), VolumeError> {
        let _hold = self.context.store.hold();
        self.end_open_layer(volume)?;
        loop {
            let stack = volume.cell.open()?;
            let frozen = Arc::new(stack.with_layers(stack.layers[1..].to_vec()));
            if frozen.layers.is_empty() {
                return Ok(());
            }
            let base = fold_stack(&frozen, progress).await?;
            if self.rebase(&frozen, &base)? {
                return Ok(());
            }
        }
    }

    fn end_open_layer(&self, volume: &Arc<Volume>) -> Result<(), VolumeError> {
        volume.cell.open()?.layers[0].journal.sync()?;
        let changing = self.changes.lock();
        let exchanges = self.exchange(&changing, std::slice::from_ref(volume))?;
        self.complete(exchanges, Vec::new())
    }

    /// Puts every volume and frozen disk that stands on exactly these layers and tree on the tree they were folded
    /// into, in one step, and says whether there was one.
    fn rebase(&self, folded: &Stack, base: &TreeBase) -> Result<bool, VolumeError> {
        let changing = self.changes.lock();
        let (volumes, frozen): (Vec<_>, Vec<_>) = {
            let registry = self.registry.read();
            (registry.all_volumes().cloned().collect(), registry.frozen.values().cloned().collect())
        };
        let volumes: Vec<_> = volumes
            .into_iter()
            .filter_map(|volume| Some((volume.cell.stack().rebased(folded, base)?, volume)))
            .collect();
        let frozen: Vec<_> =
            frozen.into_iter().filter_map(|disk| Some((disk.cell.stack().rebased(folded, base)?, disk))).collect();
        let mut past = Vec::new();
        for volume in self.registry.read().all_volumes() {
            for (number, entry) in volume.entries() {
                let next = entry.before.stack().rebased(folded, base);
                past.extend(next.map(|next| (next, volume.id(), number, entry)));
            }
        }
        if volumes.is_empty() && frozen.is_empty() && past.is_empty() {
            return Ok(false);
        }
        let kept = self.registry.read().referenced(|owner, stack| {
            let volume = volumes.iter().find(|(_, volume)| owner == Owner::Volume(volume.id())).map(|(next, _)| next);
            let disk = frozen.iter().find(|(_, disk)| owner == Owner::Frozen(disk.id())).map(|(next, _)| next);
            let before = past.iter().find(|(_, id, number, _)| owner == Owner::History(*id, *number));
            Some(volume.or(disk).or(before.map(|(next, ..)| next)).cloned().map_or(stack, Arc::new))
        });
        let freed = kept.unreferenced(&folded.layers);
        let mut changes: Vec<_> = volumes.iter().map(|(next, volume)| volume.record(next)).collect();
        changes.extend(frozen.iter().map(|(next, disk)| Frozen::record(disk.id(), next)));
        let removal = Self::removal(&kept, freed);
        changes.extend(removal.changes.iter().cloned());
        changes.extend(past.iter().map(|(next, id, number, entry)| entry.change(*id, *number, next)));
        self.context.store.roots().apply(changes)?;
        for (next, _, _, entry) in past {
            entry.before.replace(next);
        }
        for (next, volume) in volumes {
            volume.cell.replace(next);
        }
        for (next, disk) in frozen {
            disk.cell.replace(next);
        }
        self.let_go(&changing, removal);
        Ok(true)
    }
}

impl Stack {
    /// This stack on the tree that its lowest layers were folded into; `None` where it stands on others.
    fn rebased(&self, folded: &Self, base: &TreeBase) -> Option<Self> {
        let over = self.layers.len().checked_sub(folded.layers.len())?;
        let same = self.layers[over..].iter().zip(&folded.layers).all(|(own, other)| own.id() == other.id());
        // A disk that was frozen before the volume grew cannot stand on the larger tree.
        (same && self.base == folded.base && base.size_bytes <= self.size_bytes)
            .then(|| Self::new(self.context.clone(), self.size_bytes, base.clone(), self.layers[..over].to_vec()))
    }
}

/// Folds all layers of a stack, and returns the tree once it is durable.
async fn fold_stack(stack: &Arc<Stack>, progress: &Progress) -> Result<TreeBase, VolumeError> {
    let planned = stack.clone();
    let steps = stack.context.workers.run(move || plan(&planned)).await??;
    progress.set_total_bytes(steps.iter().map(Step::composed).sum::<u64>() * CHUNK);
    bring_nodes(stack, &steps, progress).await?;

    let mut batches = batches(steps);
    let mut running = FuturesOrdered::new();
    let mut edits = Vec::new();
    loop {
        while running.len() < BATCHES
            && let Some(batch) = batches.pop_front()
        {
            running.push_back(compose_batch(stack.clone(), batch));
        }
        let Some(composed) = or_cancelled(progress, running.next()).await? else { break };
        let composed = composed?;
        progress.advance(composed.done_bytes, composed.moved_bytes);
        edits.extend(composed.edits);
    }
    write_tree(stack, edits, progress).await
}

/// What has to be done for the layers, in ascending order.
fn plan(stack: &Stack) -> Result<Vec<Step>, VolumeError> {
    let mut steps = Vec::new();
    for layer in stack.layers.iter().rev() {
        layer.verify()?;
        steps = over(layer.steps(stack.size_bytes / SECTOR_BYTES), steps);
    }
    Ok(steps)
}

/// Brings the nodes that will be made anew and are elsewhere, a level per round.
async fn bring_nodes(stack: &Arc<Stack>, steps: &[Step], progress: &Progress) -> Result<(), VolumeError> {
    if stack.base.origin.is_none() {
        return Ok(());
    }
    let steps: Arc<[Step]> = steps.into();
    let mut patience = Patience::default();
    loop {
        let (looked, steps) = (stack.clone(), steps.clone());
        let absent = stack.context.workers.run(move || lacking_nodes(&looked, &steps)).await??;
        if absent.is_empty() {
            return Ok(());
        }
        patience.check(stack, &absent)?;
        for absent in absent.chunks(NODES_AT_ONCE) {
            or_cancelled(progress, stack.fetch(absent, Urgency::Bulk)).await??;
        }
    }
}

fn lacking_nodes(stack: &Stack, steps: &[Step]) -> Result<Vec<Absent>, DeviceError> {
    let edits = steps.iter().flat_map(|step| {
        let (chunks, cleared) = match step {
            Step::Compose(range) => (range.clone(), None),
            Step::Clear(range) => (0..0, Some(Edit::Clear(range.clone()))),
        };
        // Which chunk it will be does not matter for what has to be read.
        chunks.map(|index| Edit::Set(index, ChunkId([0; 32]))).chain(cleared)
    });
    let old = (stack.shape, stack.base.root);
    match tree::lacking(&stack.nodes, old, Shape::of(stack.size_bytes), edits) {
        Ok(nodes) => Ok(nodes.into_iter().map(|node| Absent::Node(node.position, node.id)).collect()),
        Err(error) => absent_node(error).map(|node| vec![Absent::Node(node.position, node.id)]),
    }
}

/// Composed chunks, stored.
#[derive(Debug, Default)]
struct Composed {
    edits: Vec<Edit>,
    done_bytes: u64,
    moved_bytes: u64,
}

enum Attempt {
    Done(Composed),
    Lacks(Vec<Absent>),
}

async fn compose_batch(stack: Arc<Stack>, batch: Vec<Step>) -> Result<Composed, VolumeError> {
    let batch: Arc<[Step]> = batch.into();
    let mut patience = Patience::default();
    loop {
        let (looked_in, all) = (stack.clone(), batch.clone());
        match stack.context.workers.run(move || compose(&looked_in, &all)).await?? {
            Attempt::Done(composed) => return Ok(composed),
            Attempt::Lacks(absent) => {
                patience.check(&stack, &absent)?;
                stack.fetch(&absent, Urgency::Bulk).await?;
            }
        }
    }
}

fn compose(stack: &Stack, batch: &[Step]) -> Result<Attempt, DeviceError> {
    let absent = lacking_chunks(stack, batch)?;
    if !absent.is_empty() {
        return Ok(Attempt::Lacks(absent));
    }
    let mut composed = Composed::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut absent = Vec::new();
    for step in batch {
        let range = match step {
            Step::Clear(range) => {
                composed.edits.push(Edit::Clear(range.clone()));
                continue;
            }
            Step::Compose(range) => range.clone(),
        };
        for index in range {
            let length = usize::try_from(CHUNK.min(stack.size_bytes - index * CHUNK)).unwrap_or(CHUNK_BYTES);
            buffer[length..].fill(0);
            if !stack.read(index * CHUNK, &mut buffer[..length], &mut Lack::Collect(&mut absent))? {
                return Ok(Attempt::Lacks(absent));
            }
            composed.done_bytes += CHUNK;
            composed.edits.push(put_chunk(stack, index, &buffer, &mut composed.moved_bytes)?);
        }
    }
    Ok(Attempt::Done(composed))
}

fn put_chunk(stack: &Stack, index: u64, plain: &[u8], moved_bytes: &mut u64) -> Result<Edit, StoreError> {
    if is_zero(plain) {
        return Ok(Edit::Clear(index..index + 1));
    }
    let id = chunk_id(plain);
    let put = stack.context.store.put(&id.into(), stack.base.written, plain)?;
    if put.new {
        *moved_bytes += u64::from(put.stored_bytes);
    }
    Ok(Edit::Set(index, id))
}

/// The chunks of the tree that show through what was written, and are elsewhere.
fn lacking_chunks(stack: &Stack, batch: &[Step]) -> Result<Vec<Absent>, DeviceError> {
    let mut absent = Vec::new();
    if stack.base.origin.is_none() {
        return Ok(absent);
    }
    for step in batch {
        let Step::Compose(range) = step else { continue };
        for index in range.clone() {
            if shows_through(stack, index) {
                absent.extend(stack.absent_chunk(index)?);
            }
        }
    }
    Ok(absent)
}

/// Whether any sector of a chunk comes from the tree.
fn shows_through(stack: &Stack, index: u64) -> bool {
    let mut sector = index * CHUNK / SECTOR_BYTES;
    let end = ((index + 1) * CHUNK).min(stack.size_bytes) / SECTOR_BYTES;
    while sector < end {
        let (from, next) = stack.find(sector, end);
        if matches!(from, From::Tree) {
            return true;
        }
        sector = next;
    }
    false
}

/// Makes the nodes above the composed chunks, and everything durable.
async fn write_tree(stack: &Arc<Stack>, edits: Vec<Edit>, progress: &Progress) -> Result<TreeBase, VolumeError> {
    let edits: Arc<[Edit]> = edits.into();
    let mut patience = Patience::default();
    loop {
        progress.check()?;
        let (rewritten, edits) = (stack.clone(), edits.clone());
        match stack.context.workers.run(move || rewrite(&rewritten, &edits)).await? {
            Ok(base) => return Ok(base),
            Err(TreeError::Absent(node)) => {
                let absent = [Absent::Node(node.position, node.id)];
                patience.check(stack, &absent)?;
                or_cancelled(progress, stack.fetch(&absent, Urgency::Bulk)).await??;
            }
            Err(TreeError::Invalid(error)) => return Err(VolumeError::Tree(error)),
            Err(TreeError::Read(error)) => return Err(VolumeError::Store(error)),
        }
    }
}

fn rewrite(stack: &Stack, edits: &[Edit]) -> Result<TreeBase, TreeError<StoreError>> {
    let (store, domain): (_, Domain) = (&stack.context.store, stack.base.written);
    let old = (stack.shape, stack.base.root);
    let mut emit = |id, bytes: Vec<u8>| store.put(&store::Key::from(id), domain, &bytes).map(drop);
    let root = tree::rewrite(&stack.nodes, old, Shape::of(stack.size_bytes), edits.iter().cloned(), &mut emit)?;
    store.commit().map_err(TreeError::Read)?;
    Ok(TreeBase { size_bytes: stack.size_bytes, root, ..stack.base.clone() })
}

/// Waits for something, but not longer than until the work is cancelled.
async fn or_cancelled<F: Future>(progress: &Progress, future: F) -> Result<F::Output, VolumeError> {
    let mut future = pin!(future);
    loop {
        progress.check()?;
        if let Ok(output) = tokio::time::timeout(CANCEL_INTERVAL, &mut future).await {
            return Ok(output);
        }
    }
}

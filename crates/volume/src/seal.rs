//! Folding frozen layers into a disk tree: what gives a snapshot its content id, and a volume its space back.
//!
//! Chunks that a layer touches are composed, hashed and stored, the nodes above them made anew, and everything is
//! durable before a record changes. All of it can be done again: after a crash, a cancel, or when another fold came
//! first. Where a chunk was written only in part and its base is elsewhere, the work waits for the base; writes do not.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use format::tree::{self, Edit, TreeError};
use format::{Shape, chunk_id, is_zero};
use futures_util::stream::{FuturesOrdered, StreamExt};
use store::{Domain, StoreError, Urgency};
use types::{CHUNK_BYTES, ChunkId, FrozenId, Progress, SECTOR_BYTES};

use crate::base::{Absent, CHUNK, CHUNK_SECTORS, TreeBase};
use crate::device::DeviceError;
use crate::error::VolumeError;
use crate::extent_map::ExtentMap;
use crate::frozen::Frozen;
use crate::reading::Patience;
use crate::stack::{From, Lack, Stack, absent_node};
use crate::volume::Volume;
use crate::volumes::{Owner, Volumes};

/// How many chunks are composed in one go.
const BATCH_CHUNKS: u64 = 64;

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
        let folded = self.fold_once(volume, progress).await;
        if let (Err(_), Some(volumes)) = (&folded, self.context.volumes.get().and_then(Weak::upgrade)) {
            let volume = volume.clone();
            let merged = self.context.workers.run(move || volumes.merge_layers(&volume)).await;
            // What the fold failed by is what counts.
            if let Err(error) = merged.map_err(VolumeError::from).flatten() {
                tracing::debug!(%error, "layers could not be made one");
            }
        }
        folded
    }

    async fn fold_once(&self, volume: &Arc<Volume>, progress: &Progress) -> Result<(), VolumeError> {
        let _one = or_cancelled(progress, volume.folding.lock()).await?;
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

/// Something to do to a range of chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Some of it was written.
    Compose(Range<u64>),
    /// All of it was zeroed.
    Clear(Range<u64>),
}

/// Folds all layers of a stack, and returns the tree once it is durable.
async fn fold_stack(stack: &Arc<Stack>, progress: &Progress) -> Result<TreeBase, VolumeError> {
    let planned = stack.clone();
    let steps = stack.context.workers.run(move || plan(&planned)).await??;
    let compose = |step: &Step| if let Step::Compose(range) = step { range.end - range.start } else { 0 };
    progress.set_total_bytes(steps.iter().map(compose).sum::<u64>() * CHUNK);
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

/// What the layers touch, in ascending order.
fn plan(stack: &Stack) -> Result<Vec<Step>, VolumeError> {
    let mut map = ExtentMap::default();
    for layer in stack.layers.iter().rev() {
        layer.verify()?;
        layer.overlay(&mut map);
    }
    Ok(steps(&map, stack.size_bytes))
}

fn steps(map: &ExtentMap, size_bytes: u64) -> Vec<Step> {
    let disk_end = size_bytes / SECTOR_BYTES;
    let mut steps: Vec<Step> = Vec::new();
    let mut done = 0;
    let mut compose = |steps: &mut Vec<Step>, chunks: Range<u64>| {
        let start = chunks.start.max(done);
        if start >= chunks.end {
            return;
        }
        match steps.last_mut() {
            Some(Step::Compose(last)) if last.end == start => last.end = chunks.end,
            _ => steps.push(Step::Compose(start..chunks.end)),
        }
        done = chunks.end;
    };
    for (start, end, zero) in map.outline() {
        let touched = start / CHUNK_SECTORS..end.div_ceil(CHUNK_SECTORS);
        let whole = start.div_ceil(CHUNK_SECTORS)..if end == disk_end { touched.end } else { end / CHUNK_SECTORS };
        if zero && whole.start < whole.end {
            compose(&mut steps, touched.start..whole.start);
            steps.push(Step::Clear(whole.clone()));
            compose(&mut steps, whole.end..touched.end);
        } else {
            compose(&mut steps, touched);
        }
    }
    steps
}

/// Cuts steps into batches that are composed in one go.
fn batches(steps: Vec<Step>) -> VecDeque<Vec<Step>> {
    let mut batches = VecDeque::new();
    let mut batch = Vec::new();
    let mut room = BATCH_CHUNKS;
    for step in steps {
        let Step::Compose(mut range) = step else {
            batch.push(step);
            continue;
        };
        while range.start < range.end {
            let end = range.end.min(range.start + room);
            room -= end - range.start;
            batch.push(Step::Compose(range.start..end));
            range.start = end;
            if room == 0 {
                batches.push_back(std::mem::take(&mut batch));
                room = BATCH_CHUNKS;
            }
        }
    }
    if !batch.is_empty() {
        batches.push_back(batch);
    }
    batches
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::collections::BTreeSet;

    use types::{JournalId, LayerId};

    use super::*;
    use crate::extent_map::Place;
    use crate::journal::{Journal, Secret};
    use crate::layer::Layer;
    use crate::segment::SegmentFiles;

    const SECTORS: u64 = CHUNK_SECTORS;

    proptest! {
        /// Every chunk that a layer touches is in one step, cleared only if all of it is zero, and no other chunk is.
        #[test]
        fn steps_are_what_was_touched(
            runs in prop::collection::vec((0..6 * SECTORS, 1..3 * SECTORS, any::<bool>(), any::<bool>()), 0..20),
            size in 1..6 * SECTORS,
        ) {
            let mut map = ExtentMap::default();
            for (start, length, zero, aligned) in runs {
                let start = if aligned { start / SECTORS * SECTORS } else { start };
                let end = (start + if aligned { length.next_multiple_of(SECTORS) } else { length }).min(size);
                if start < end {
                    let place = if zero { Place::zero(1, 64) } else { Place::data(1, 64) };
                    map.insert(start, end, place);
                }
            }
            let steps = steps(&map, size * SECTOR_BYTES);
            let cut: Vec<_> = batches(steps.clone()).into_iter().flatten().collect();
            for steps in [steps, cut] {
                let mut found = vec![None; 6];
                for step in steps {
                    let (range, clear) = match step {
                        Step::Compose(range) => (range, false),
                        Step::Clear(range) => (range, true),
                    };
                    prop_assert!(range.start < range.end);
                    for index in range {
                        let before = found[usize::try_from(index).unwrap()].replace(clear);
                        prop_assert_eq!(before, None, "each chunk is in one step");
                    }
                }
                for (index, found) in (0..).zip(found) {
                    let (start, end) = (index * SECTORS, ((index + 1) * SECTORS).min(size));
                    let places: Vec<_> = (start..end).map(|sector| map.find(sector, end).place).collect();
                    let all_zero = !places.is_empty() && places.iter().all(|place| place.is_some_and(Place::is_zero));
                    let touched = places.iter().any(Option::is_some);
                    prop_assert_eq!(found, touched.then_some(all_zero));
                }
            }
        }
    }

    fn map_of(runs: &[(u64, u64, bool)]) -> ExtentMap {
        let mut map = ExtentMap::default();
        for (start, length, zero) in runs {
            let place = if *zero { Place::zero(1, 64) } else { Place::data(1, 64) };
            map.insert(*start, start + length, place);
        }
        map
    }

    fn layer_of(map: ExtentMap) -> Arc<Layer> {
        let files = SegmentFiles::new(medium::Simulated::new(1).shared(), "/layers".into(), 4096, 0);
        let journal = Arc::new(Journal::new(Arc::new(files), JournalId([1; 16]), Secret([1; 32])));
        Layer::with_map(journal, LayerId([1; 16]), 1, Some(2), map)
    }

    fn composed(steps: &[Step]) -> BTreeSet<u64> {
        let ranges = steps.iter().filter_map(|step| if let Step::Compose(range) = step { Some(range) } else { None });
        ranges.cloned().flatten().collect()
    }

    #[test]
    fn what_a_fold_composes_is_counted_by_the_chunk() {
        let runs: Vec<_> = (0..100).map(|chunk| (chunk * SECTORS + 8, 8, false)).collect();
        let map = map_of(&runs);
        let chunks = composed(&steps(&map, 1 << 30)).len() as u64;
        let layer = layer_of(map);
        assert_eq!((layer.chunks(), chunks), (100, 100));
        assert!(layer.most_chunks() >= 100);
        assert_eq!(layer_of(map_of(&[(8, 1000 * SECTORS, true)])).chunks(), 2, "zeroes are made of nothing");
    }

    #[test]
    fn a_batch_has_so_many_chunks_and_clearing_costs_nothing() {
        let steps = vec![Step::Compose(0..100), Step::Clear(100..1 << 30), Step::Compose(1 << 30..(1 << 30) + 30)];
        let batches = batches(steps);
        assert_eq!(batches.len(), 3);
        assert_eq!(batches[0], [Step::Compose(0..64)]);
        assert_eq!(batches[1].len(), 3);
        assert_eq!(batches[2], [Step::Compose((1 << 30) + 28..(1 << 30) + 30)]);
    }
}

//! Whatever is done to volumes, in whatever order, every disk says the same as an array of bytes: through snapshots,
//! clones, sealing, folding, growing, removing, and opening everything again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::sync::Arc;

use fixture::{Node, noise, read, read_all, run};
use proptest::prelude::*;
use types::{FrozenId, Name, Progress};
use volume::{BlockDevice, Durability, ExtentKind, Frozen, Volume, Volumes};

const SECTOR: usize = 512;
/// Five chunks and a part of a sixth.
const SECTORS: usize = 5 * 128 + 37;

#[derive(Clone, Debug)]
enum Step {
    Write { volume: usize, sector: usize, sectors: usize, seed: u64, durable: bool },
    Zero { volume: usize, sector: usize, sectors: usize, discard: bool },
    Flush(usize),
    Freeze(Vec<usize>),
    Clone(usize),
    Seal(usize),
    Fold(usize),
    Grow { volume: usize, sectors: usize },
    Remove(usize),
    Forget(usize),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let volume = 0..4_usize;
    let length = prop_oneof![1..9_usize, 100..300_usize, Just(SECTORS)];
    let step = prop_oneof![
        8 => (volume.clone(), 0..SECTORS, length.clone(), 1..9_u64, any::<bool>())
            .prop_map(|(volume, sector, sectors, seed, durable)| Step::Write { volume, sector, sectors, seed, durable }),
        3 => (volume.clone(), 0..SECTORS, length, any::<bool>())
            .prop_map(|(volume, sector, sectors, discard)| Step::Zero { volume, sector, sectors, discard }),
        1 => volume.clone().prop_map(Step::Flush),
        3 => prop::collection::vec(volume.clone(), 1..3).prop_map(Step::Freeze),
        2 => (0..6_usize).prop_map(Step::Clone),
        2 => (0..6_usize).prop_map(Step::Seal),
        1 => volume.clone().prop_map(Step::Fold),
        1 => (volume.clone(), 1..200_usize).prop_map(|(volume, sectors)| Step::Grow { volume, sectors }),
        1 => volume.prop_map(Step::Remove),
        1 => (0..6_usize).prop_map(Step::Forget),
        2 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// The volumes and frozen disks that there should be, with their content.
struct Model {
    node: Node,
    volumes: Arc<Volumes>,
    disks: Vec<(Name, Vec<u8>)>,
    frozen: Vec<(FrozenId, Vec<u8>)>,
    named: usize,
}

impl Model {
    fn new() -> Self {
        let node = Node::new();
        let volumes = node.open();
        let mut model = Self { node, volumes, disks: Vec::new(), frozen: Vec::new(), named: 0 };
        let name = model.name();
        model.volumes.create(&name, (SECTORS * SECTOR) as u64).unwrap();
        model.disks.push((name, vec![0; SECTORS * SECTOR]));
        model
    }

    fn name(&mut self) -> Name {
        self.named += 1;
        format!("disk-{}", self.named).parse().unwrap()
    }

    fn volume(&mut self, number: usize) -> Option<(Arc<Volume>, &mut Vec<u8>)> {
        let count = self.disks.len().max(1);
        let (name, bytes) = self.disks.get_mut(number % count)?;
        Some((self.volumes.get(name).unwrap(), bytes))
    }

    fn frozen(&self, number: usize) -> Option<(Arc<Frozen>, &Vec<u8>)> {
        let (id, bytes) = self.frozen.get(number % self.frozen.len().max(1))?;
        Some((self.volumes.frozen(*id).unwrap(), bytes))
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Write { volume, sector, sectors, seed, durable } => {
                let Some((volume, bytes)) = self.volume(volume) else { return };
                let end = (sector + sectors).min(bytes.len() / SECTOR);
                let data = noise(seed, (end - sector) * SECTOR);
                let durability = if durable { Durability::Power } else { Durability::Process };
                volume.write((sector * SECTOR) as u64, &data, durability).unwrap();
                bytes[sector * SECTOR..end * SECTOR].copy_from_slice(&data);
            }
            Step::Zero { volume, sector, sectors, discard } => {
                let Some((volume, bytes)) = self.volume(volume) else { return };
                let end = (sector + sectors).min(bytes.len() / SECTOR);
                let (offset, length) = ((sector * SECTOR) as u64, ((end - sector) * SECTOR) as u64);
                if discard {
                    volume.discard(offset, length, Durability::Process).unwrap();
                } else {
                    volume.write_zeroes(offset, length, Durability::Process).unwrap();
                }
                bytes[sector * SECTOR..end * SECTOR].fill(0);
            }
            Step::Flush(volume) => self.volume(volume).map_or((), |(volume, _)| volume.flush().unwrap()),
            Step::Freeze(numbers) => self.freeze(&numbers),
            Step::Clone(number) => {
                let Some((frozen, bytes)) = self.frozen(number) else { return };
                let bytes = bytes.clone();
                let name = self.name();
                self.volumes.clone_frozen(&name, frozen.id()).unwrap();
                self.disks.push((name, bytes));
            }
            Step::Seal(number) => {
                let Some((frozen, bytes)) = self.frozen(number) else { return };
                let base = run(self.volumes.seal(frozen.id(), &Progress::default())).unwrap();
                assert_eq!(frozen.sealed(), Some(base.clone()));
                assert!(read_all(&*self.volumes.view(base)) == *bytes, "a sealed tree says what the disk did");
            }
            Step::Fold(number) => {
                let Some((volume, _)) = self.volume(number) else { return };
                run(self.volumes.fold(&volume, &Progress::default())).unwrap();
                assert_eq!(volume.status().layers, 1);
            }
            Step::Grow { volume, sectors } => {
                let volumes = self.volumes.clone();
                let Some((volume, bytes)) = self.volume(volume) else { return };
                bytes.resize(bytes.len() + sectors * SECTOR, 0);
                volumes.grow(&volume, bytes.len() as u64).unwrap();
            }
            Step::Remove(number) => {
                if self.disks.len() > 1 {
                    let (name, _) = self.disks.remove(number % self.disks.len());
                    self.volumes.remove(&name).unwrap();
                }
            }
            Step::Forget(number) => {
                if !self.frozen.is_empty() {
                    let (id, _) = self.frozen.remove(number % self.frozen.len());
                    self.volumes.forget_frozen(id).unwrap();
                }
            }
            Step::Reopen => {
                let before = std::mem::replace(&mut self.volumes, Node::new().open());
                end(before);
                self.volumes = self.node.open();
            }
        }
    }

    fn freeze(&mut self, numbers: &[usize]) {
        let mut numbers: Vec<_> = numbers.iter().map(|number| number % self.disks.len()).collect();
        numbers.dedup();
        if numbers.first() == numbers.last() {
            numbers.truncate(1);
        }
        let volumes: Vec<_> = numbers.iter().map(|number| self.volumes.get(&self.disks[*number].0).unwrap()).collect();
        let frozen = self.volumes.freeze(&volumes, |_| Vec::new()).unwrap();
        for (number, frozen) in numbers.iter().zip(frozen) {
            self.frozen.push((frozen.id(), self.disks[*number].1.clone()));
        }
    }

    fn check(&self) {
        assert_eq!(self.volumes.list().len(), self.disks.len());
        for (name, bytes) in &self.disks {
            let volume = self.volumes.get(name).unwrap();
            check_disk(&*volume, bytes);
        }
        for (id, bytes) in &self.frozen {
            check_disk(&*self.volumes.frozen(*id).unwrap(), bytes);
        }
    }

    /// Every layer that is left is one that somebody needs.
    fn check_nothing_is_left_behind(&mut self) {
        for (id, _) in std::mem::take(&mut self.frozen) {
            self.volumes.forget_frozen(id).unwrap();
        }
        for (name, _) in std::mem::take(&mut self.disks) {
            self.volumes.remove(&name).unwrap();
        }
        assert_eq!(self.node.journals(), Vec::<std::path::PathBuf>::new());
        use store::ChunkStore;
        assert_eq!(self.node.store.roots().list(""), Vec::new());
    }
}

/// Ends volumes as a process ends: what tidies in the background must not go on beside those that are opened next.
fn end(mut volumes: Arc<Volumes>) {
    while let Err(still) = Arc::try_unwrap(volumes) {
        volumes = still;
        std::thread::yield_now();
    }
}

fn check_disk(device: &dyn BlockDevice, bytes: &[u8]) {
    assert_eq!(device.size_bytes(), bytes.len() as u64);
    assert!(read_all(device) == bytes, "the disk and its array differ");
    let middle = SECTORS / 2 * SECTOR;
    assert_eq!(read(device, middle as u64, 3 * SECTOR), bytes[middle..middle + 3 * SECTOR]);
    let extents = device.extents(0, bytes.len() as u64, usize::MAX).unwrap();
    let mut offset = 0;
    for extent in &extents {
        let length = usize::try_from(extent.length).unwrap();
        if matches!(extent.kind, ExtentKind::Zero | ExtentKind::Hole) {
            assert!(bytes[offset..(offset + length).min(bytes.len())].iter().all(|byte| *byte == 0));
        }
        assert!(!matches!(extent.kind, ExtentKind::Absent), "all is here");
        offset += length;
    }
    assert_eq!(offset, bytes.len(), "extents cover the disk exactly");
    assert!(extents.windows(2).all(|pair| pair[0].kind != pair[1].kind), "neighbours of one kind are one extent");
    assert_eq!(device.extents(0, bytes.len() as u64, 1).unwrap()[..], extents[..1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn disks_are_arrays(steps in steps()) {
        let mut model = Model::new();
        for step in steps {
            model.apply(step);
        }
        model.check();
        model.apply(Step::Reopen);
        model.check();
        model.check_nothing_is_left_behind();
    }
}

//! While a volume is protected, any moment of its past can be cloned, whatever happened since: folds, snapshots,
//! reverts, restarts. What is older than it is protected for goes, and so does its space.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fixture::{Node, noise, read_all, run};
use proptest::prelude::*;
use store::ChunkStore;
use types::{Name, Progress};
use volume::{BlockDevice, Clock, Durability, Protection, RevertTo, Volume, VolumeError, VolumeOptions, Volumes};

const SIZE: usize = 192 << 10;
const BEGIN: u64 = 1_763_877_012_345;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A node whose clock stands until it is put on.
struct Timed {
    node: Node,
    now: Arc<AtomicU64>,
    volumes: Arc<Volumes>,
    disk: Arc<Volume>,
    clones: u64,
}

impl Timed {
    fn new(protection: Protection) -> Self {
        let (node, now) = (Node::new(), Arc::new(AtomicU64::new(BEGIN)));
        let volumes = open(&node, &now);
        let disk = volumes.create(&name("a"), SIZE as u64).unwrap();
        disk.write(0, &noise(99, 8192), Durability::Process).unwrap();
        now.fetch_add(5, Ordering::SeqCst);
        volumes.protect(&disk, protection).unwrap();
        Self { node, now, volumes, disk, clones: 0 }
    }

    fn now(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    fn pass(&self, ms: u64) {
        self.now.fetch_add(ms, Ordering::SeqCst);
    }

    /// As a kill does: nothing is closed, flushed or told before.
    fn reopen(&mut self) {
        self.volumes = open(&self.node, &self.now);
        self.disk = self.volumes.get(&name("a")).unwrap();
    }

    fn at(&mut self, moment: u64) -> Vec<u8> {
        self.clones += 1;
        let clone = name(&format!("clone-{}", self.clones));
        let bytes = read_all(&*self.volumes.clone_at(&self.disk, moment, &clone).unwrap());
        self.volumes.remove(&clone).unwrap();
        bytes
    }

    fn from(&self) -> u64 {
        self.disk.window().unwrap().from_ms
    }
}

fn open(node: &Node, now: &Arc<AtomicU64>) -> Arc<Volumes> {
    let now = Arc::clone(now);
    let mut options = VolumeOptions::default();
    options.clock = Clock::new(move || now.load(Ordering::SeqCst));
    Volumes::open(node.directory.path(), node.store.clone(), node.source.clone(), options).unwrap()
}

const LONG: Protection = Protection { for_ms: 1 << 40, space_bytes: None };

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u64),
    Zero(usize, usize),
    Pass(u64),
    Freeze,
    Seal(usize),
    Fold,
    Revert(usize),
    Cut,
    Reopen,
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE / 512 - 40, 1..40_usize);
    prop_oneof![
        8 => (range(), any::<u64>()).prop_map(|((start, length), seed)| Step::Write(start, length, seed)),
        2 => range().prop_map(|(start, length)| Step::Zero(start, length)),
        6 => (0..5000_u64).prop_map(Step::Pass),
        2 => Just(Step::Freeze),
        1 => any::<usize>().prop_map(Step::Seal),
        2 => Just(Step::Fold),
        1 => any::<usize>().prop_map(Step::Revert),
        1 => Just(Step::Cut),
        1 => Just(Step::Reopen),
        1 => Just(Step::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("BRANT_TEST_FULL").is_some() { 400 } else { 40 }))]

    #[test]
    fn is_what_the_disk_was(steps in prop::collection::vec(step(), 1..40), moments in prop::collection::vec(any::<u64>(), 12)) {
        let mut timed = Timed::new(LONG);
        let mut content = read_all(&*timed.disk);
        let mut past = vec![(timed.now(), content.clone())];
        let mut frozen = Vec::new();
        for step in steps {
            match step {
                Step::Write(start, length, seed) => {
                    let data = noise(seed, length * 512);
                    timed.disk.write(start as u64 * 512, &data, Durability::Process).unwrap();
                    content[start * 512..(start + length) * 512].copy_from_slice(&data);
                }
                Step::Zero(start, length) => {
                    timed.disk.discard(start as u64 * 512, length as u64 * 512, Durability::Process).unwrap();
                    content[start * 512..(start + length) * 512].fill(0);
                }
                Step::Pass(ms) => timed.pass(ms),
                Step::Freeze => {
                    let disk = timed.volumes.freeze(std::slice::from_ref(&timed.disk), |_| Vec::new()).unwrap();
                    frozen.push((disk[0].id(), content.clone()));
                }
                Step::Seal(number) if !frozen.is_empty() => {
                    let id = frozen[number % frozen.len()].0;
                    run(timed.volumes.seal(id, &Progress::default())).unwrap();
                }
                Step::Fold => run(timed.volumes.fold(&timed.disk, &Progress::default())).unwrap(),
                Step::Revert(number) if !frozen.is_empty() => {
                    let (id, bytes) = &frozen[number % frozen.len()];
                    let now = timed.now();
                    timed.volumes.revert(&timed.disk, RevertTo::Frozen(*id), now, "").unwrap();
                    content.clone_from(bytes);
                }
                Step::Seal(_) | Step::Revert(_) => {}
                Step::Cut => drop(timed.at(timed.now())),
                Step::Reopen => timed.reopen(),
                Step::Restore => {
                    let deleted = timed.volumes.delete(&name("a"), timed.now(), "").unwrap();
                    timed.disk = timed.volumes.restore(deleted.id(), &name("a")).unwrap();
                }
            }
            past.push((timed.now(), content.clone()));
        }
        timed.pass(1);
        let from = timed.from();
        prop_assert!(from <= past[0].0, "nothing of the window is gone");
        prop_assert!(read_all(&*timed.disk) == content);
        for moment in moments {
            let moment = past[0].0 + moment % (timed.now() - past[0].0 + 1);
            let expected = past.iter().rev().find(|(then, _)| *then <= moment).map(|(_, bytes)| bytes);
            prop_assert!(Some(&timed.at(moment)) == expected, "{} ms after the beginning", moment - past[0].0);
        }
    }
}

#[test]
fn a_moment_outside_is_refused_with_the_window() {
    let mut timed = Timed::new(LONG);
    let from = timed.from();
    timed.pass(1000);
    for moment in [0, from - 1, timed.now() + 1] {
        let refused = timed.volumes.clone_at(&timed.disk, moment, &name("copy"));
        let Err(VolumeError::OutsideWindow { from_ms, to_ms }) = refused else { panic!("{moment}: {refused:?}") };
        assert_eq!((from_ms, to_ms), (from, timed.now()));
    }
    assert!(timed.at(from) == timed.at(timed.now()));
    assert!(matches!(timed.volumes.clone_at(&timed.disk, from, &name("a")), Err(VolumeError::Exists(_))));
    let other = timed.volumes.create(&name("other"), 4096).unwrap();
    let refused = timed.volumes.clone_at(&other, timed.now(), &name("copy"));
    assert!(matches!(refused, Err(VolumeError::NotProtected(_))) && other.window().is_none());
}

/// Writes a block each second, with a layer for each.
fn write_seconds(timed: &mut Timed, seconds: u64) -> Vec<(u64, Vec<u8>)> {
    let mut past = Vec::new();
    for second in 0..seconds {
        timed.pass(500);
        let offset = second % 8 * 4096;
        timed.disk.write(offset, &noise(second + 1, 4096), Durability::Process).unwrap();
        past.push((timed.now(), read_all(&*timed.disk)));
        timed.pass(500);
        drop(timed.at(timed.now()));
    }
    past
}

#[test]
fn what_is_too_old_goes_with_its_space_and_the_rest_stays() {
    let mut timed = Timed::new(Protection { for_ms: 10_000, space_bytes: None });
    let past = write_seconds(&mut timed, 30);
    let (bytes, from) = (timed.disk.window().unwrap().bytes, timed.from());
    timed.volumes.expire_history().unwrap();
    let window = timed.disk.window().unwrap();
    assert!(window.bytes < bytes / 2 && window.from_ms > from);
    assert!(window.from_ms <= timed.now() - 10_000, "all that was asked for is there");
    assert!(window.from_ms > timed.now() - 12_000, "and not much more");
    timed.reopen();
    assert_eq!(timed.disk.window(), Some(window));
    let kept: Vec<_> = past.iter().filter(|(then, _)| *then >= window.from_ms).collect();
    assert!(kept.len() >= 10);
    for (then, bytes) in kept {
        assert!(timed.at(*then) == *bytes);
    }
    assert!(timed.volumes.clone_at(&timed.disk, window.from_ms - 1, &name("copy")).is_err());

    // Once a fold has come between, what nobody can go back to takes no room.
    run(timed.volumes.fold(&timed.disk, &Progress::default())).unwrap();
    timed.pass(20_000);
    timed.volumes.expire_history().unwrap();
    assert_eq!((timed.disk.window().unwrap().bytes, timed.node.journals().len()), (0, 0));
    assert!(read_all(&*timed.disk) == past.last().unwrap().1);
    let now = timed.now();
    assert!(timed.at(now) == past.last().unwrap().1);
}

#[test]
fn what_takes_too_much_space_goes_the_oldest_first() {
    let mut timed = Timed::new(Protection { for_ms: 1 << 40, space_bytes: Some(50_000) });
    let past = write_seconds(&mut timed, 30);
    timed.volumes.expire_history().unwrap();
    let window = timed.disk.window().unwrap();
    assert!(window.bytes <= 50_000 && window.bytes > 40_000, "{window:?}");
    let kept: Vec<_> = past.iter().filter(|(then, _)| *then >= window.from_ms).collect();
    assert_eq!(kept.len(), 12);
    for (then, bytes) in kept {
        assert!(timed.at(*then) == *bytes);
    }
    // More may be kept from now on, and then nothing any more.
    timed.volumes.protect(&timed.disk, LONG).unwrap();
    assert_eq!(timed.from(), window.from_ms);
    timed.volumes.unprotect(&timed.disk).unwrap();
    run(timed.volumes.fold(&timed.disk, &Progress::default())).unwrap();
    assert_eq!((timed.disk.window(), timed.node.journals().len()), (None, 0));
    timed.reopen();
    assert!(timed.disk.window().is_none() && read_all(&*timed.disk) == past.last().unwrap().1);
}

#[test]
fn nothing_is_kept_of_what_is_not_protected_and_all_goes_with_the_volume() {
    let mut timed = Timed::new(LONG);
    write_seconds(&mut timed, 5);
    assert!(!timed.node.journals().is_empty());
    timed.volumes.remove(&name("a")).unwrap();
    assert_eq!(timed.node.journals().len(), 0);
    let disk = timed.volumes.create(&name("a"), SIZE as u64).unwrap();
    disk.write(0, &noise(1, 4096), Durability::Process).unwrap();
    run(timed.volumes.fold(&disk, &Progress::default())).unwrap();
    assert_eq!(timed.node.journals().len(), 0);
    timed.reopen();
    assert!(timed.disk.window().is_none());
}

#[test]
fn a_long_layer_ends_and_many_are_folded() {
    let mut timed = Timed::new(LONG);
    write_seconds(&mut timed, 20);
    assert!(timed.disk.needs_fold().is_some(), "reads must not go through ever more layers");
    run(timed.volumes.fold(&timed.disk, &Progress::default())).unwrap();
    assert!(timed.disk.needs_fold().is_none());
    let first = timed.from();
    assert!(timed.at(first)[..8192] == noise(99, 8192), "and the past is what it was");

    // Whoever collects the store learns of the trees that the past stands on.
    let root = timed.disk.base().root.unwrap();
    timed.disk.discard(0, SIZE as u64, Durability::Process).unwrap();
    drop(timed.at(timed.now()));
    run(timed.volumes.fold(&timed.disk, &Progress::default())).unwrap();
    assert_eq!(timed.disk.base().root, None);
    let records = timed.node.store.roots().list("");
    let trees = records.iter().flat_map(|(name, value)| {
        let trees = volume::live_trees(name, value).unwrap();
        trees.unwrap_or_else(|| panic!("{name} is of this crate"))
    });
    assert!(trees.map(|tree| tree.root).any(|live| live == root));
}

//! Two disks differ where their chunks do, and nowhere else: volumes, frozen disks and sealed ones, in pages of any
//! length; what cannot be told is said to be unknown; and equal parts cost nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/fixture.rs"]
mod fixture;

use std::sync::Arc;

use fixture::{Gate, Node, Through, noise, read_all, run};
use proptest::prelude::*;
use store::{Domain, MemoryStore, Origin};
use types::{CHUNK_BYTES, MAX_DISK_BYTES, Name, Progress, SnapshotId};
use volume::{BlockDevice, Changed, ChangedKind, DiskState, Durability, TreeBase};

const CHUNKS: usize = 6;
const SECTORS: u64 = (CHUNKS * CHUNK_BYTES / 512) as u64;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// All changes, asked for in pages.
fn changes(before: &DiskState, after: &DiskState, limit: usize) -> Vec<Changed> {
    let mut all = Vec::new();
    let mut at = Some(0);
    while let Some(offset) = at {
        let page = before.changes(after, offset, limit).unwrap();
        assert!(page.extents.len() <= limit);
        assert!(page.next.is_none_or(|next| next > offset), "it goes on");
        all.extend(page.extents);
        at = page.next;
    }
    all
}

/// What became of each chunk.
fn by_chunk(changes: &[Changed], chunks: usize) -> Vec<Option<ChangedKind>> {
    let mut kinds = vec![None; chunks];
    for change in changes {
        assert!(change.length > 0);
        let first = usize::try_from(change.offset).unwrap() / CHUNK_BYTES;
        let count = usize::try_from(change.length).unwrap().div_ceil(CHUNK_BYTES);
        for kind in &mut kinds[first..first + count] {
            assert_eq!(kind.replace(change.kind), None, "no chunk is named twice");
        }
    }
    kinds
}

fn expected(before: &[u8], after: &[u8]) -> Vec<Option<ChangedKind>> {
    let chunk = |bytes: &[u8], index: usize| {
        let mut chunk = vec![0; CHUNK_BYTES];
        let start = (index * CHUNK_BYTES).min(bytes.len());
        let part = &bytes[start..((index + 1) * CHUNK_BYTES).min(bytes.len())];
        chunk[..part.len()].copy_from_slice(part);
        chunk
    };
    let kind = |index| {
        let (before, after) = (chunk(before, index), chunk(after, index));
        let kind = if after.iter().all(|byte| *byte == 0) { ChangedKind::Zero } else { ChangedKind::Data };
        (before != after).then_some(kind)
    };
    (0..before.len().max(after.len()).div_ceil(CHUNK_BYTES)).map(kind).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u64),
    Zero(u64, u64),
    Grow(u64),
    Freeze,
    Seal(usize),
    Fold,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SECTORS, 1..200_u64);
    prop_oneof![
        4 => (range(), 0..3_u64).prop_map(|((start, length), seed)| Step::Write(start, length, seed)),
        2 => range().prop_map(|(start, length)| Step::Zero(start, length)),
        1 => (1..300_u64).prop_map(Step::Grow),
        3 => Just(Step::Freeze),
        1 => any::<usize>().prop_map(Step::Seal),
        1 => Just(Step::Fold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("BRANT_TEST_FULL").is_some() { 400 } else { 40 }))]

    #[test]
    fn any_two_moments_of_a_disk(steps in prop::collection::vec(step(), 1..24), limit in 1..4_usize) {
        let node = Node::new();
        let volumes = node.open();
        let disk = volumes.create(&name("a"), (SECTORS - 77) * 512).unwrap();
        let mut frozen = Vec::new();
        let fit = |start: u64, length: u64| {
            let sectors = disk.size_bytes() / 512;
            let start = start % sectors;
            (start * 512, length.min(sectors - start) * 512)
        };
        for step in steps {
            match step {
                Step::Write(start, length, seed) => {
                    let (offset, length) = fit(start, length);
                    let data = noise(seed + start % 2, usize::try_from(length).unwrap());
                    disk.write(offset, &data, Durability::Process).unwrap();
                }
                Step::Zero(start, length) => {
                    let (offset, length) = fit(start, length * 2);
                    disk.discard(offset, length, Durability::Process).unwrap();
                }
                Step::Grow(sectors) => volumes.grow(&disk, disk.size_bytes() + sectors * 512).unwrap(),
                Step::Freeze => frozen.extend(volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap()),
                Step::Seal(number) if !frozen.is_empty() => {
                    let id = frozen[number % frozen.len()].id();
                    run(volumes.seal(id, &Progress::default())).unwrap();
                }
                Step::Seal(_) => {}
                Step::Fold => run(volumes.fold(&disk, &Progress::default())).unwrap(),
            }
        }
        let mut states: Vec<_> = frozen.iter().map(|frozen| (frozen.state(), read_all(&**frozen))).collect();
        states.push((disk.state(), read_all(&*disk)));
        for (before, old) in &states {
            for (after, new) in &states {
                let found = changes(before, after, limit);
                let wanted = expected(old, new);
                prop_assert_eq!(by_chunk(&found, wanted.len()), wanted);
                let end = found.last().map_or(0, |last| last.offset + last.length);
                prop_assert!(end <= old.len().max(new.len()) as u64);
            }
        }
    }
}

#[test]
fn the_largest_disk_costs_what_differs() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("large"), MAX_DISK_BYTES).unwrap();
    let empty = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
    // Everything is zeroed where there was nothing, but for one sector.
    disk.discard(0, MAX_DISK_BYTES, Durability::Process).unwrap();
    disk.write(1 << 40, &[7; 512], Durability::Process).unwrap();
    let page = empty.state().changes(&disk.state(), 0, 10).unwrap();
    let chunk = CHUNK_BYTES as u64;
    let written = Changed { offset: 1 << 40, length: chunk, kind: ChangedKind::Data };
    assert_eq!((page.extents, page.next), (vec![written], None));
    let page = disk.state().changes(&empty.state(), 0, 10).unwrap();
    let zeroed = Changed { kind: ChangedKind::Zero, ..written };
    assert_eq!((page.extents, page.next), (vec![zeroed], None));
    let page = disk.state().changes(&disk.state(), 0, 10).unwrap();
    assert_eq!((page.extents, page.next), (vec![], None));
}

#[test]
fn a_page_ends_although_much_has_to_be_compared() {
    let node = Node::new();
    let volumes = node.open();
    let disk = volumes.create(&name("a"), 1 << 30).unwrap();
    let before = volumes.freeze(std::slice::from_ref(&disk), |_| Vec::new()).unwrap().remove(0);
    // Sectors of zeroes, written: each chunk has to be read to see that nothing differs.
    for index in 0..5000_u64 {
        disk.write(index * CHUNK_BYTES as u64, &[0; 512], Durability::Process).unwrap();
    }
    let page = before.state().changes(&disk.state(), 0, 10).unwrap();
    assert!(page.extents.is_empty() && page.next.is_some_and(|next| next < 5000 * CHUNK_BYTES as u64), "{page:?}");
    assert!(changes(&before.state(), &disk.state(), 10).is_empty());
}

#[test]
fn what_is_elsewhere_is_unknown_only_where_it_may_differ() {
    let there = Node::new();
    let volumes = there.open();
    let source = volumes.create(&name("source"), (600 * CHUNK_BYTES) as u64).unwrap();
    for index in 0..600_u64 {
        source.write(index * CHUNK_BYTES as u64, &noise(index + 1, CHUNK_BYTES), Durability::Process).unwrap();
    }
    let first = volumes.freeze(std::slice::from_ref(&source), |_| Vec::new()).unwrap().remove(0);
    let first = run(volumes.seal(first.id(), &Progress::default())).unwrap();
    source.write(300 * CHUNK_BYTES as u64, &[1; 512], Durability::Process).unwrap();
    let second = volumes.freeze(std::slice::from_ref(&source), |_| Vec::new()).unwrap().remove(0);
    let second = run(volumes.seal(second.id(), &Progress::default())).unwrap();

    let store = Arc::new(MemoryStore::new());
    let gate = Gate::new(there.store.clone(), store.clone());
    let here = Node::with_source(store, Arc::new(Through(gate.clone())));
    let volumes = here.open();
    let elsewhere = |base: TreeBase, snapshot: u8| TreeBase {
        origin: Some(Origin { snapshot: SnapshotId([snapshot; 32]), disk: 0 }),
        domains: Domain::OWN.into(),
        written: Domain::OWN,
        ..base
    };
    let views = [elsewhere(first, 1), elsewhere(second, 2)].map(|base| volumes.view(base));
    let clone = volumes.clone_tree(&name("clone"), views[0].base()).unwrap();
    clone.write(0, &noise(9, CHUNK_BYTES), Durability::Process).unwrap();
    clone.write(CHUNK_BYTES as u64, &noise(9, 512), Durability::Process).unwrap();

    let whole = Changed { offset: 0, length: (600 * CHUNK_BYTES) as u64, kind: ChangedKind::Unknown };
    assert_eq!(changes(&views[0].state(), &views[1].state(), 5), [whole], "not even the roots are here");
    assert!(changes(&views[0].state(), &views[0].state(), 5).is_empty());
    let written = Changed { length: 2 * CHUNK_BYTES as u64, ..whole };
    assert_eq!(changes(&views[0].state(), &clone.state(), 5), [written]);

    // Once what the comparison needs has come, it is known.
    gate.open();
    run(views[0].read(0, 512)).unwrap();
    run(clone.read(CHUNK_BYTES as u64, 512)).unwrap();
    run(clone.read(CHUNK_BYTES as u64 + 512, 512)).unwrap();
    let written = Changed { kind: ChangedKind::Data, ..written };
    assert_eq!(changes(&views[0].state(), &clone.state(), 5), [written]);
    run(views[1].read(300 * CHUNK_BYTES as u64, 512)).unwrap();
    run(views[0].read(300 * CHUNK_BYTES as u64, 512)).unwrap();
    let one = Changed { offset: 300 * CHUNK_BYTES as u64, length: CHUNK_BYTES as u64, kind: ChangedKind::Data };
    assert_eq!(changes(&views[0].state(), &views[1].state(), 5), [one]);
}

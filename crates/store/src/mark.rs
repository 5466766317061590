//! Marking: which objects are reachable from the roots, and for which trust domains.
//!
//! Invariants: whatever is reachable is marked; what is not may be, rarely (marks are 64-bit numbers that can collide)
//! or where more kinds of domains meet than are told apart. Each node is read once, whatever number of trees share it:
//! trees are walked level by level from the top, so that a node is read when all that leads to it is known. A mark takes
//! 10 to 20 bytes of memory, and a node that is still to be read about 45.

use std::collections::HashMap;

use bytes::Bytes;
use format::node::MAX_LEVELS;
use format::{Node, Shape};
use types::{NodeId, Progress};

use crate::pins::Mixer;
use crate::{CollectError, Domain, Domains, Key, Kind, Live, LiveRoots, LiveTree, StoreError};

/// How many sets of domains are told apart; beyond, the rest is one set.
const MAX_SETS: usize = 62;

/// How many nodes are read by one thread at a time.
const NODES_AT_ONCE: usize = 256;

/// How many threads read nodes.
const READERS: usize = 2;

/// A set of 64-bit numbers: open addressing, at most four fifths full.
#[derive(Debug)]
pub(crate) struct NumberSet {
    slots: Vec<u64>,
    used: usize,
}

impl NumberSet {
    fn new() -> Self {
        Self { slots: vec![0; 1 << 10], used: 0 }
    }

    /// Where a number is, or the free place for it. Zero stands for a free place, and one for zero.
    fn place(slots: &[u64], number: u64) -> Result<usize, usize> {
        let number = number.max(1);
        let mask = slots.len() - 1;
        let mut at = usize::try_from(number >> 20).unwrap_or(0) & mask;
        loop {
            match slots[at] {
                0 => return Err(at),
                found if found == number => return Ok(at),
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn insert(&mut self, number: u64) {
        let Err(free) = Self::place(&self.slots, number) else { return };
        self.slots[free] = number.max(1);
        self.used += 1;
        if self.used * 5 > self.slots.len() * 4 {
            let mut larger = vec![0; self.slots.len() * 2];
            for number in self.slots.iter().filter(|number| **number != 0) {
                if let Err(free) = Self::place(&larger, *number) {
                    larger[free] = *number;
                }
            }
            self.slots = larger;
        }
    }

    fn find(&self, number: u64) -> Option<usize> {
        Self::place(&self.slots, number).ok()
    }
}

/// Sets of domains, by number.
#[derive(Debug, Default)]
struct DomainSets {
    sets: Vec<Vec<Domain>>,
}

impl DomainSets {
    fn intern(&mut self, mut domains: Vec<Domain>) -> u8 {
        domains.sort_unstable();
        domains.dedup();
        let number = match self.sets.iter().position(|set| *set == domains) {
            Some(known) => known,
            None if self.sets.len() < MAX_SETS => {
                self.sets.push(domains);
                self.sets.len() - 1
            }
            None => {
                let last = &mut self.sets[MAX_SETS - 1];
                last.extend(domains);
                last.sort_unstable();
                last.dedup();
                MAX_SETS - 1
            }
        };
        u8::try_from(number).expect("there are few sets")
    }

    fn union(&mut self, one: u8, other: u8) -> u8 {
        if one == other {
            return one;
        }
        let mut all = self.sets[usize::from(one)].clone();
        all.extend(&self.sets[usize::from(other)]);
        self.intern(all)
    }
}

/// How a node that is to be read was reached.
#[derive(Clone, Copy, Debug)]
struct Reached {
    set: u8,
    chunks: bool,
    partial: bool,
}

type Level = HashMap<NodeId, Reached>;

/// A node that was to be read, and what was found.
type Visited = ((NodeId, Reached), Option<Node>);

/// Reads a node's bytes in some domains.
pub(crate) type ReadNodeBytes<'a> = &'a (dyn Fn(&NodeId, &Domains) -> Result<Option<Bytes>, StoreError> + Sync);

/// What is live.
#[derive(Debug)]
pub(crate) struct Marks {
    mixer: Mixer,
    numbers: NumberSet,
    sets: DomainSets,
    most_memory_bytes: u64,
}

impl Marks {
    /// Marks everything that is reachable.
    pub(crate) fn of(
        roots: &dyn LiveRoots,
        read: ReadNodeBytes<'_>,
        progress: &Progress,
    ) -> Result<Self, CollectError> {
        let mut marks =
            Self { mixer: Mixer::new(), numbers: NumberSet::new(), sets: DomainSets::default(), most_memory_bytes: 0 };
        let mut levels: [Level; MAX_LEVELS as usize] = Default::default();
        roots.visit(&mut |live| marks.root(&mut levels, live))?;
        for level in (0..levels.len()).rev() {
            let nodes = std::mem::take(&mut levels[level]);
            let mut below = level.checked_sub(1).map(|below| std::mem::take(&mut levels[below]));
            marks.level(level, &nodes, below.as_mut(), read, progress)?;
            if let (Some(nodes), Some(below)) = (below, level.checked_sub(1)) {
                levels[below] = nodes;
            }
        }
        Ok(marks)
    }

    fn root(&mut self, levels: &mut [Level], live: Live) {
        match live {
            Live::Object { key, domains } => {
                let set = self.sets.intern(domains.iter().collect());
                self.mark(&key, set);
            }
            Live::Tree(LiveTree { root, size_bytes, domains, chunks, partial }) => {
                let set = self.sets.intern(domains.iter().collect());
                let level = usize::from(Shape::of(size_bytes).root().level);
                reach(&mut self.sets, &mut levels[level], root, Reached { set, chunks, partial });
            }
        }
    }

    fn level(
        &mut self,
        level: usize,
        nodes: &Level,
        mut below: Option<&mut Level>,
        read: ReadNodeBytes<'_>,
        progress: &Progress,
    ) -> Result<(), CollectError> {
        let mut rest = nodes.iter().map(|(id, reached)| (*id, *reached)).peekable();
        while rest.peek().is_some() {
            progress.check()?;
            let batches: Vec<Vec<(NodeId, Reached)>> =
                (0..READERS).map(|_| rest.by_ref().take(NODES_AT_ONCE).collect()).collect();
            for ((id, reached), node) in self.read(batches, read)? {
                self.mark(&id.into(), reached.set);
                let Some(node) = node.filter(|node| usize::from(node.level()) == level) else { continue };
                for (_, hash) in node.children() {
                    match &mut below {
                        Some(below) => reach(&mut self.sets, below, NodeId(*hash), reached),
                        None if reached.chunks => {
                            self.mark(&Key { kind: Kind::Chunk, hash: *hash }, reached.set);
                        }
                        None => {}
                    }
                }
            }
            let waiting = nodes.capacity() + below.as_ref().map_or(0, |below| below.capacity());
            self.count_memory(waiting * (size_of::<(NodeId, Reached)>() + 1) * 8 / 7);
        }
        Ok(())
    }

    /// Reads nodes, some by each thread.
    fn read(
        &self,
        batches: Vec<Vec<(NodeId, Reached)>>,
        read: ReadNodeBytes<'_>,
    ) -> Result<Vec<Visited>, CollectError> {
        let sets: Vec<Domains> = self.sets.sets.iter().map(|set| Domains::new(set)).collect();
        let one = |batch: Vec<(NodeId, Reached)>| -> Result<Vec<Visited>, CollectError> {
            let node = |(id, reached): (NodeId, Reached)| {
                let node = read_node(&id, reached, &sets[usize::from(reached.set)], read)?;
                Ok(((id, reached), node))
            };
            batch.into_iter().map(node).collect()
        };
        let one = &one;
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = batches.into_iter().map(|batch| scope.spawn(move || one(batch))).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut all = Vec::new();
        for result in results {
            match result {
                Ok(nodes) => all.extend(nodes?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    }

    fn mark(&mut self, key: &Key, set: u8) {
        self.numbers.insert(self.mixer.mix(key, set.into()));
    }

    fn count_memory(&mut self, others: usize) {
        // While the numbers grow, old and new table are there.
        let numbers = self.numbers.slots.len() * size_of::<u64>() * 3 / 2;
        self.most_memory_bytes = self.most_memory_bytes.max((numbers + others) as u64);
    }

    /// Where a live object is marked: a number below [`Marks::places`] that no other object has.
    pub(crate) fn find(&self, key: &Key) -> Option<usize> {
        (0..self.sets.sets.len() as u64).find_map(|set| self.numbers.find(self.mixer.mix(key, set)))
    }

    pub(crate) fn places(&self) -> usize {
        self.numbers.slots.len()
    }

    /// Whether an object is live in a domain.
    pub(crate) fn contains_in(&self, key: &Key, domain: Domain) -> bool {
        let of_domain = (0..).zip(&self.sets.sets).filter(|(_, set)| set.binary_search(&domain).is_ok());
        of_domain.into_iter().any(|(set, _)| self.numbers.find(self.mixer.mix(key, set)).is_some())
    }

    pub(crate) fn most_memory_bytes(&self) -> u64 {
        self.most_memory_bytes.max((self.numbers.slots.len() * size_of::<u64>() * 3 / 2) as u64)
    }
}

fn reach(sets: &mut DomainSets, level: &mut Level, id: NodeId, reached: Reached) {
    let known = level.entry(id).or_insert(reached);
    known.set = sets.union(known.set, reached.set);
    known.chunks |= reached.chunks;
    known.partial &= reached.partial;
}

/// Reads a node. One that is not a node has nothing below it that anybody could read.
fn read_node(
    id: &NodeId,
    reached: Reached,
    domains: &Domains,
    read: ReadNodeBytes<'_>,
) -> Result<Option<Node>, CollectError> {
    match read(id, domains) {
        Ok(None) if reached.partial => Ok(None),
        Ok(None) => Err(CollectError::Node(*id, None)),
        Ok(Some(bytes)) => Ok(Node::decode(&bytes).inspect_err(|error| tracing::warn!(%id, %error, "no node")).ok()),
        Err(error @ StoreError::Damaged { .. }) => Err(CollectError::Node(*id, Some(Box::new(error)))),
        Err(error) => Err(error.into()),
    }
}

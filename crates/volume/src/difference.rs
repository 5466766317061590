//! How two disks differ, chunk by chunk: volumes, frozen disks and sealed snapshots alike.
//!
//! Trees are compared by their ids, so that equal parts are never entered; what was written in layers that only one
//! of the two has is composed and hashed, as sealing would do. Nothing is fetched: what cannot be told from what is
//! here is said to be unknown. A request costs a bounded time, and answers where to go on.

use std::iter::Peekable;
use std::ops::Range;
use std::sync::Arc;

use format::tree::{self, Differences, Differing, Found};
use format::{chunk_id, is_zero};
use store::Nodes;
use types::{CHUNK_BYTES, ChunkId, SECTOR_BYTES};

use crate::base::{CHUNK, CHUNK_SECTORS};
use crate::device::DeviceError;
use crate::frozen::{Frozen, TreeView};
use crate::layer::Layer;
use crate::stack::{From, Lack, Stack, absent_node};
use crate::volume::Volume;

/// How many chunks are composed and hashed for one request at most.
const MOST_COMPOSED: usize = 2048;

/// How many places are looked at for one request at most.
const MOST_STEPS: usize = 1 << 16;

/// What a disk is at a moment; of a volume, what is written from now on shows all the same.
#[derive(Clone, Debug)]
pub struct DiskState(pub(crate) Arc<Stack>);

impl Volume {
    /// What it is now.
    #[must_use]
    pub fn state(&self) -> DiskState {
        DiskState(self.cell.stack())
    }
}

impl Frozen {
    /// What it is.
    #[must_use]
    pub fn state(&self) -> DiskState {
        DiskState(self.cell.stack())
    }
}

impl TreeView {
    /// What it is.
    #[must_use]
    pub fn state(&self) -> DiskState {
        DiskState(self.cell.stack())
    }
}

/// What became of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedKind {
    /// It has other data.
    Data,
    /// It is zero, and was not.
    Zero,
    /// Whether it changed cannot be told from what is here.
    Unknown,
}

/// A range in which a disk differs from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes: whole chunks, but for the end of the disk.
    pub length: u64,
    /// What became of it.
    pub kind: ChangedKind,
}

/// Some of the ranges in which two disks differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// In ascending order; neighbours of one kind are one.
    pub extents: Vec<Changed>,
    /// Where to go on, in bytes; `None` when there are no more.
    pub next: Option<u64>,
}

impl DiskState {
    /// The disk's size, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// Finds what differs in `after`, from a place on, in at most `limit` extents. The longer disk's end counts: what
    /// is beyond the shorter one's is zero there.
    ///
    /// # Errors
    /// See [`DeviceError`]; what is absent is no error.
    pub fn changes(&self, after: &Self, offset: u64, limit: usize) -> Result<Changes, DeviceError> {
        let (before, after) = (&*self.0, &*after.0);
        before.check_layers()?;
        after.check_layers()?;
        let common = common_layers(before, after);
        let sides = [Side::new(before, common), Side::new(after, common)];
        let chunks = before.size_bytes.max(after.size_bytes).div_ceil(CHUNK);
        let at = offset / CHUNK;
        let trees = [before, after].map(|stack| (stack.shape, stack.base.root));
        let trees = tree::differences([&before.nodes, &after.nodes], trees, at..chunks).peekable();
        let size_bytes = before.size_bytes.max(after.size_bytes);
        let report = Report { extents: Vec::new(), limit: limit.max(1), size_bytes };
        Comparison { sides, trees, report, at, chunks, composed: 0 }.run()
    }
}

/// How many of the lowest layers both disks have over the same tree: they differ in nothing.
fn common_layers(before: &Stack, after: &Stack) -> usize {
    if before.base != after.base {
        return 0;
    }
    let pairs = before.layers.iter().rev().zip(after.layers.iter().rev());
    pairs.take_while(|(left, right)| left.id() == right.id()).count()
}

struct Side<'s> {
    stack: &'s Stack,
    /// The layers that the other disk has not.
    own: &'s [Arc<Layer>],
    /// Up to which chunk the disk is known to be zero from where the comparison stands.
    blank: u64,
}

impl<'s> Side<'s> {
    fn new(stack: &'s Stack, common: usize) -> Self {
        Self { stack, own: &stack.layers[..stack.layers.len() - common], blank: 0 }
    }

    /// The first chunk, from one on, that a layer of its own says something of.
    fn touched(&self, from: u64, end: u64) -> u64 {
        let (start, stop) = (from * CHUNK_SECTORS, end * CHUNK_SECTORS);
        let first = |layer: &Arc<Layer>| {
            let run = layer.find(start, stop);
            if run.place.is_some() { from } else { run.end / CHUNK_SECTORS }
        };
        self.own.iter().map(first).min().unwrap_or(end)
    }

    /// Up to which chunk everything from one on is zero, as far as that can be seen without reading.
    fn blank_until(&mut self, from: u64, end: u64) -> Result<u64, DeviceError> {
        if self.blank <= from {
            self.blank = self.stack.blank_until(from, end)?;
        }
        Ok(self.blank)
    }
}

struct Comparison<'s> {
    sides: [Side<'s>; 2],
    trees: Peekable<Differences<'s, Nodes>>,
    report: Report,
    /// The first chunk that was not compared yet.
    at: u64,
    chunks: u64,
    composed: usize,
}

impl Comparison<'_> {
    fn run(mut self) -> Result<Changes, DeviceError> {
        for _ in 0..MOST_STEPS {
            if self.composed >= MOST_COMPOSED {
                break;
            }
            let (at, chunks) = (self.at, self.chunks);
            let touched = self.sides.iter().map(|side| side.touched(at, chunks)).min().unwrap_or(chunks);
            let differing = self.differing()?;
            let next = differing.as_ref().map_or(chunks, |(range, _)| range.start.max(at)).min(touched);
            if next >= chunks {
                return Ok(self.report.end(chunks));
            }
            self.at = next;
            let (until, kind) = match differing {
                Some((range, kind)) if next < touched => (range.end.min(touched), Some(kind)),
                _ => self.compare_written()?,
            };
            if kind.is_some_and(|kind| !self.report.push(next..until, kind)) {
                break;
            }
            self.at = until;
        }
        Ok(self.report.end(self.at))
    }

    /// The next range in which the trees differ, of which something is not compared yet.
    fn differing(&mut self) -> Result<Option<(Range<u64>, ChangedKind)>, DeviceError> {
        loop {
            let (range, kind) = match self.trees.peek() {
                None => return Ok(None),
                Some(Ok(Differing::Chunk(difference))) => {
                    let kind = if difference.right.is_some() { ChangedKind::Data } else { ChangedKind::Zero };
                    (difference.index..difference.index + 1, kind)
                }
                Some(Ok(Differing::Absent(node))) => (node.position.chunks(), ChangedKind::Unknown),
                Some(Err(_)) => match self.trees.next() {
                    Some(Err(error)) => {
                        return Err(absent_node(error).map_or_else(|error| error, |_| DeviceError::Closed));
                    }
                    _ => continue,
                },
            };
            if range.end > self.at {
                return Ok(Some((range.start..range.end.min(self.chunks), kind)));
            }
            self.trees.next();
        }
    }

    /// Compares what was written in layers, from where the comparison stands: up to where, and how it differs.
    fn compare_written(&mut self) -> Result<(u64, Option<ChangedKind>), DeviceError> {
        let (at, chunks) = (self.at, self.chunks);
        let [before, after] = &mut self.sides;
        let blank = before.blank_until(at, chunks)?.min(after.blank_until(at, chunks)?);
        if blank > at {
            return Ok((blank, None));
        }
        let ids = [before.stack.chunk_at(at, &mut self.composed)?, after.stack.chunk_at(at, &mut self.composed)?];
        let kind = match ids {
            [Some(before), Some(after)] if before == after => None,
            [Some(_), Some(None)] => Some(ChangedKind::Zero),
            [Some(_), Some(Some(_))] => Some(ChangedKind::Data),
            _ => Some(ChangedKind::Unknown),
        };
        Ok((at + 1, kind))
    }
}

impl Stack {
    /// The id of the chunk at an index, `None` within where it is zero; `None` where that needs what is not here.
    fn chunk_at(&self, index: u64, composed: &mut usize) -> Result<Option<Option<ChunkId>>, DeviceError> {
        let (start, end) = (index * CHUNK, ((index + 1) * CHUNK).min(self.size_bytes));
        if start >= end {
            return Ok(Some(None));
        }
        let sectors = start / SECTOR_BYTES..end / SECTOR_BYTES;
        if let (From::Tree, next) = self.find(sectors.start, sectors.end)
            && next == sectors.end
        {
            return match tree::lookup(&self.nodes, self.shape, self.base.root, index) {
                Ok(id) => Ok(Some(id)),
                Err(error) => absent_node(error).map(|_| None),
            };
        }
        *composed += 1;
        let mut chunk = vec![0; CHUNK_BYTES];
        let length = usize::try_from(end - start).unwrap_or(CHUNK_BYTES);
        if !self.read(start, &mut chunk[..length], &mut Lack::Stop)? {
            return Ok(None);
        }
        Ok(Some((!is_zero(&chunk)).then(|| chunk_id(&chunk))))
    }

    /// Up to which chunk everything from one on is zero, as far as that can be seen without reading data.
    fn blank_until(&self, from: u64, end: u64) -> Result<u64, DeviceError> {
        let stop = self.size_bytes / SECTOR_BYTES;
        let mut sector = from * CHUNK_SECTORS;
        while sector < stop {
            let (found, next) = self.find(sector, stop);
            match found {
                From::Zero => sector = next,
                From::Journal(..) => break,
                From::Tree => match self.first_in_tree(sector / CHUNK_SECTORS..next.div_ceil(CHUNK_SECTORS))? {
                    None => sector = next,
                    Some(chunk) => {
                        sector = (chunk * CHUNK_SECTORS).clamp(sector, next);
                        break;
                    }
                },
            }
        }
        Ok(if sector >= stop { end } else { sector / CHUNK_SECTORS })
    }

    /// The first chunk of a range that the tree has, or may have below what is absent.
    fn first_in_tree(&self, chunks: Range<u64>) -> Result<Option<u64>, DeviceError> {
        let start = chunks.start;
        for found in tree::walk(&self.nodes, self.shape, self.base.root, chunks) {
            match found {
                Ok(Found::Node { .. }) => {}
                Ok(Found::Chunk { index, .. }) => return Ok(Some(index)),
                Ok(Found::Absent(node)) => return Ok(Some(node.position.chunks().start.max(start))),
                Err(error) => return absent_node(error).map(|_| None),
            }
        }
        Ok(None)
    }
}

/// Extents in the making.
struct Report {
    extents: Vec<Changed>,
    limit: usize,
    size_bytes: u64,
}

impl Report {
    /// Adds chunks, and says whether there was room.
    fn push(&mut self, chunks: Range<u64>, kind: ChangedKind) -> bool {
        let offset = chunks.start * CHUNK;
        let length = chunks.end.saturating_mul(CHUNK).min(self.size_bytes) - offset;
        let full = self.extents.len() >= self.limit;
        match self.extents.last_mut() {
            Some(last) if last.kind == kind && last.offset + last.length == offset => last.length += length,
            _ if full => return false,
            _ => self.extents.push(Changed { offset, length, kind }),
        }
        true
    }

    fn end(self, at: u64) -> Changes {
        let next = at.saturating_mul(CHUNK);
        Changes { extents: self.extents, next: (next < self.size_bytes).then_some(next) }
    }
}

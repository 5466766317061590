//! A disk as it is read: layers, newest first, over a tree.
//!
//! Invariant: a stack never changes. A volume that is frozen or sealed gets another one, and whoever still reads the
//! old one reads the same bytes: journals are immutable where they have been written, and open files outlive their
//! names.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use format::tree::{self, AbsentNode, TreeError};
use format::{NodeError, Shape};
use medium::Room;
use store::{ChunkSource, ChunkStore, NodeCache, Nodes, StoreError};
use tokio::sync::Notify;
use types::{CHUNK_BYTES, ChunkId, SECTOR_BYTES};

use crate::base::{Absent, CHUNK, TreeBase};
use crate::device::DeviceError;
use crate::journal::failure;
use crate::layer::{Layer, Source};
use crate::records::StackRecord;
use crate::segment::{Segment, SegmentFiles};
use crate::volumes::{VolumeOptions, Volumes};
use crate::workers::Workers;

/// What all volumes of a node share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) store: Arc<dyn ChunkStore>,
    pub(crate) source: Arc<dyn ChunkSource>,
    pub(crate) nodes: Arc<NodeCache>,
    /// Where the journals lie.
    pub(crate) files: Arc<SegmentFiles>,
    /// The threads that compose and hash chunks.
    pub(crate) workers: Workers,
    /// The thread that tidies journals.
    pub(crate) tidiers: Workers,
    pub(crate) options: VolumeOptions,
    /// Whom to ask for work in the background.
    pub(crate) volumes: OnceLock<Weak<Volumes>>,
    /// Told when a volume should be folded, or some of its past given up.
    pub(crate) room_due: Notify,
}

impl Context {
    /// The room on the file system of the journals, where it can be told.
    pub(crate) fn room(&self) -> Option<Room> {
        self.files.room()
    }

    /// Gives room on the medium back that can be done without, and says whether it did.
    pub(crate) fn make_room(&self) -> bool {
        // Both, whatever the first has to give.
        let files = self.files.give_room();
        self.store.make_room() | files
    }
}

/// Layers over a tree.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    pub(crate) context: Arc<Context>,
    pub(crate) size_bytes: u64,
    pub(crate) base: TreeBase,
    pub(crate) shape: Shape,
    pub(crate) nodes: Nodes,
    /// Newest first.
    pub(crate) layers: Vec<Arc<Layer>>,
}

/// What a run of sectors is read from.
#[derive(Debug)]
pub(crate) enum From {
    /// Data at a position of a segment, which is there unless a file was lost.
    Journal(Option<Arc<Segment>>, u64),
    Zero,
    Tree,
}

/// Whether something was read, and what has to be fetched first where it was not.
#[derive(Debug)]
pub(crate) enum Lack<'a> {
    /// Stop at the first thing that is absent.
    Stop,
    /// Collect everything that is absent.
    Collect(&'a mut Vec<Absent>),
}

impl Stack {
    pub(crate) fn new(context: Arc<Context>, size_bytes: u64, base: TreeBase, layers: Vec<Arc<Layer>>) -> Self {
        let nodes = Nodes::with_cache(context.store.clone(), base.domains.clone(), context.nodes.clone());
        Self { context, size_bytes, shape: base.shape(), base, nodes, layers }
    }

    /// The same tree under other layers.
    pub(crate) fn with_layers(&self, layers: Vec<Arc<Layer>>) -> Self {
        Self { layers, ..self.clone() }
    }

    /// The length of the journal that is written to, and what counts in the layers of others, in bytes.
    pub(crate) fn journal_bytes(&self) -> u64 {
        let Some(own) = self.layers.first().map(|open| &open.journal) else { return 0 };
        let others = self.layers.iter().filter(|layer| layer.journal.id() != own.id());
        own.bytes() + others.map(|layer| layer.data_sectors() * SECTOR_BYTES).sum::<u64>()
    }

    /// How much was written over the tree, in bytes; what lies in several layers is counted in each.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.data_sectors() * SECTOR_BYTES).sum()
    }

    /// What folding the layers writes at most, in bytes; not more exact than needed where it is not more than `enough`.
    pub(crate) fn folded_bytes(&self, enough: u64) -> u64 {
        let most: u64 = self.layers.iter().map(|layer| layer.most_chunks()).sum();
        let most = (most * CHUNK).min(self.size_bytes);
        if most <= enough {
            return most;
        }
        let end = self.size_bytes / SECTOR_BYTES;
        (self.layers.iter().map(|layer| layer.chunks(end)).sum::<u64>() * CHUNK).min(self.size_bytes)
    }

    /// Whether the tree says it all: no layers, and not grown since.
    pub(crate) fn is_sealed(&self) -> bool {
        self.layers.is_empty() && self.base.size_bytes == self.size_bytes
    }

    pub(crate) fn record(&self) -> StackRecord {
        StackRecord {
            size_bytes: self.size_bytes,
            base: (&self.base).into(),
            layers: self.layers.iter().map(|layer| layer.id()).collect(),
        }
    }

    /// Checks that a request lies within the disk and consists of whole sectors.
    pub(crate) fn check_range(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let whole = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
        if whole && offset.checked_add(length).is_some_and(|end| end <= self.size_bytes) {
            return Ok(());
        }
        Err(DeviceError::OutOfRange { offset, length, size_bytes: self.size_bytes })
    }

    /// Finds what begins at a sector, at most to `end`, and returns it with the sector after it.
    pub(crate) fn find(&self, start: u64, end: u64) -> (From, u64) {
        let mut end = end;
        for layer in &self.layers {
            let (run_end, source) = layer.locate(start, end);
            end = run_end;
            match source {
                Some(Source::Data(segment, position)) => return (From::Journal(segment, position), end),
                Some(Source::Zero) => return (From::Zero, end),
                None => {}
            }
        }
        (From::Tree, end)
    }

    /// Fills the buffer as far as everything is here, and says whether it was.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8], lack: &mut Lack<'_>) -> Result<bool, DeviceError> {
        self.check_layers()?;
        let end = (offset + buffer.len() as u64) / SECTOR_BYTES;
        let mut sector = offset / SECTOR_BYTES;
        let mut rest = buffer;
        let mut complete = true;
        while sector < end {
            let (from, next) = self.find(sector, end);
            let length = usize::try_from((next - sector) * SECTOR_BYTES).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at_mut(length);
            match from {
                From::Journal(segment, position) => read_segment(segment, position, part)?,
                From::Zero => part.fill(0),
                From::Tree => complete &= self.read_tree(sector * SECTOR_BYTES, part, lack)?,
            }
            if !complete && matches!(lack, Lack::Stop) {
                return Ok(false);
            }
            (sector, rest) = (next, after);
        }
        Ok(complete)
    }

    /// Has what is here of a range fetched from the medium.
    pub(crate) fn will_read(&self, offset: u64, length: u64) {
        let end = (offset + length) / SECTOR_BYTES;
        let mut sector = offset / SECTOR_BYTES;
        while sector < end {
            let (from, next) = self.find(sector, end);
            let length = (next - sector) * SECTOR_BYTES;
            match from {
                From::Journal(Some(segment), position) => segment.file().will_read(position, length),
                From::Journal(None, _) | From::Zero => {}
                From::Tree => self.will_read_tree(sector * SECTOR_BYTES, length),
            }
            sector = next;
        }
    }

    fn will_read_tree(&self, offset: u64, length: u64) {
        let end = offset + length;
        let mut offset = offset;
        while offset < end {
            let next = (offset - offset % CHUNK + CHUNK).min(end);
            if let Ok(Some(id)) = self.look_up(offset / CHUNK) {
                let within = |distance: u64| usize::try_from(distance).unwrap_or(0);
                let (start, length) = (within(offset % CHUNK), within(next - offset));
                self.context.store.will_read(&id.into(), &self.base.domains, start, length);
            }
            offset = next;
        }
    }

    /// Refuses to read over a layer whose journal was found damaged.
    pub(crate) fn check_layers(&self) -> Result<(), DeviceError> {
        match self.layers.iter().find_map(|layer| layer.damaged()) {
            None => Ok(()),
            Some(path) => Err(StoreError::Damaged { what: "a journal".to_owned(), path: path.clone() }.into()),
        }
    }

    fn read_tree(&self, offset: u64, buffer: &mut [u8], lack: &mut Lack<'_>) -> Result<bool, DeviceError> {
        let mut offset = offset;
        let mut rest = buffer;
        let mut complete = true;
        while !rest.is_empty() {
            let within = usize::try_from(offset % CHUNK).unwrap_or(0);
            let length = (CHUNK_BYTES - within).min(rest.len());
            let (part, after) = rest.split_at_mut(length);
            if let Some(absent) = self.read_chunk(offset / CHUNK, within, part)? {
                complete = false;
                match lack {
                    Lack::Stop => return Ok(false),
                    Lack::Collect(all) if all.last() != Some(&absent) => all.push(absent),
                    Lack::Collect(_) => {}
                }
            }
            (offset, rest) = (offset + length as u64, after);
        }
        Ok(complete)
    }

    /// Reads part of the tree's chunk at an index, or returns what is absent.
    fn read_chunk(&self, index: u64, within: usize, part: &mut [u8]) -> Result<Option<Absent>, DeviceError> {
        let id = match self.look_up(index) {
            Ok(None) => {
                part.fill(0);
                return Ok(None);
            }
            Ok(Some(id)) => id,
            Err(error) => return absent_node(error).map(|node| Some(Absent::Node(node.position, node.id))),
        };
        match self.context.store.read_at(&id.into(), &self.base.domains, within, part) {
            Ok(Some(CHUNK_BYTES)) => Ok(None),
            Ok(Some(_)) => Err(DeviceError::Tree(NodeError::NotCanonical)),
            Ok(None) => Ok(Some(Absent::Chunk(index, id))),
            // The store has made it absent, and the origin may have it.
            Err(StoreError::Damaged { .. }) if self.base.origin.is_some() => Ok(Some(Absent::Chunk(index, id))),
            Err(error) => Err(error.into()),
        }
    }

    /// Finds the chunk at an index. A damaged node is looked for once more: the store has made it absent, and the origin
    /// may have it.
    fn look_up(&self, index: u64) -> Result<Option<ChunkId>, TreeError<StoreError>> {
        let once = || tree::lookup(&self.nodes, self.shape, self.base.root, index);
        match once() {
            Err(TreeError::Read(StoreError::Damaged { .. })) if self.base.origin.is_some() => once(),
            found => found,
        }
    }

    /// What is absent of the tree's chunks in a range: each node or chunk once.
    pub(crate) fn absent_chunks(&self, chunks: Range<u64>) -> Result<Vec<Absent>, DeviceError> {
        let mut all: Vec<Absent> = Vec::new();
        for index in chunks {
            all.extend(self.absent_chunk(index)?.filter(|absent| all.last() != Some(absent)));
        }
        Ok(all)
    }

    /// What is absent of the tree's chunk at an index: the chunk, or a node on the way to it.
    pub(crate) fn absent_chunk(&self, index: u64) -> Result<Option<Absent>, DeviceError> {
        match tree::lookup(&self.nodes, self.shape, self.base.root, index) {
            Ok(None) => Ok(None),
            Ok(Some(id)) => {
                let here = self.context.store.contains(&id.into(), &self.base.domains)?;
                Ok((!here).then_some(Absent::Chunk(index, id)))
            }
            Err(error) => absent_node(error).map(|node| Some(Absent::Node(node.position, node.id))),
        }
    }
}

fn read_segment(segment: Option<Arc<Segment>>, position: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
    let segment = segment.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
    let read = segment.and_then(|segment| segment.read(position, buffer));
    read.map_err(|source| failure("read", source))
}

/// The absent node of a tree error, or the error for the request.
pub(crate) fn absent_node(error: TreeError<StoreError>) -> Result<AbsentNode, DeviceError> {
    match error {
        TreeError::Absent(node) => Ok(node),
        TreeError::Invalid(error) => Err(DeviceError::Tree(error)),
        TreeError::Read(error) => Err(DeviceError::Store(error)),
    }
}

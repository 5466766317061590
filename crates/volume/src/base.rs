//! The disk tree under a volume's layers, parts of which may be elsewhere.

use format::{Position, Shape};
use store::{Domain, Domains, Key, Origin, Part, Urgency, Wanted};
use types::{CHUNK_BYTES, ChunkId, NodeId, SECTOR_BYTES};

/// A disk tree, where it came from, and in whose trust domains it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeBase {
    /// The disk's size, in bytes.
    pub size_bytes: u64,
    /// The root; `None` where the whole disk is a hole.
    pub root: Option<NodeId>,
    /// The published disk at which absent parts can be asked for, at the same place. Without one everything is here.
    pub origin: Option<Origin>,
    /// Where its parts count as present; what is fetched is put into the first.
    pub domains: Domains,
    /// Where what was written over it is put when it is sealed: one of `domains`.
    pub written: Domain,
}

impl TreeBase {
    /// The tree of a disk without any data.
    #[must_use]
    pub fn empty(size_bytes: u64, domain: Domain) -> Self {
        Self { size_bytes, root: None, origin: None, domains: domain.into(), written: domain }
    }

    /// The shape of the tree.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape::of(self.size_bytes)
    }
}

/// A part of a tree that is known by id but is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Absent {
    Node(Position, NodeId),
    Chunk(u64, ChunkId),
}

impl Absent {
    pub(crate) fn key(self) -> Key {
        match self {
            Self::Node(_, id) => id.into(),
            Self::Chunk(_, id) => id.into(),
        }
    }

    /// How to ask for it; `None` for a tree without origin.
    pub(crate) fn wanted(self, base: &TreeBase, urgency: Urgency) -> Option<Wanted> {
        let part = match self {
            Self::Node(position, _) => Part::Node(position),
            Self::Chunk(index, _) => Part::Chunk(index),
        };
        base.origin.map(|origin| Wanted { origin, part, key: self.key(), domains: base.domains.clone(), urgency })
    }
}

/// What a disk lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Chunks that are known but not here.
    pub chunks: u64,
    /// Their length, in bytes.
    pub bytes: u64,
    /// Tree nodes that are not here; how many chunks are below them is not known.
    pub nodes: u64,
}

/// The length of a chunk as a file offset.
pub(crate) const CHUNK: u64 = CHUNK_BYTES as u64;

/// The size of a chunk in sectors.
pub(crate) const CHUNK_SECTORS: u64 = CHUNK / SECTOR_BYTES;

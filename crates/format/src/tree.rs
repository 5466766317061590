//! Disk trees: finding a chunk, walking a range, comparing two trees, and making a changed tree.
//!
//! A tree is canonical for its disk: the least number of levels, no empty nodes. A tree may be **partly absent**: some
//! nodes are known by id only. Every operation here says which node it lacks, so that the caller can fetch it and ask
//! again. Equal subtrees have equal ids and are never entered, so comparing costs the difference.

use std::ops::Range;
use std::sync::Arc;

use types::{CHUNK_BYTES, ChunkId, NodeId};

mod holders;

pub use holders::{Held, Tree, held};

use crate::node::{FAN_OUT, MAX_LEVELS, Node, NodeError};

/// What a disk's size says of its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    chunks: u64,
    levels: u8,
}

impl Shape {
    /// The shape of the tree of a disk of so many bytes, at most [`types::MAX_DISK_BYTES`].
    ///
    /// # Panics
    /// For a disk that is larger than a tree can hold.
    #[must_use]
    pub fn of(size_bytes: u64) -> Self {
        let chunks = size_bytes.div_ceil(CHUNK_BYTES as u64);
        let levels = (1..=MAX_LEVELS).find(|levels| chunks <= span(*levels));
        Self { chunks, levels: levels.expect("a disk is at most 256 TiB") }
    }

    /// How many chunks the disk has, holes included.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// How many levels of nodes the tree has, at least one. The root's level is one less.
    #[must_use]
    pub fn levels(&self) -> u8 {
        self.levels
    }

    /// The place of the root.
    #[must_use]
    pub fn root(&self) -> Position {
        Position { level: self.levels - 1, index: 0 }
    }

    /// Whether the tree of a disk of this size has a place for such a node.
    #[must_use]
    pub fn contains(&self, position: Position) -> bool {
        position.level < self.levels && position.chunks().start < self.chunks
    }

    /// Checks that a decoded node may stand at a place: its level, and that no child lies beyond the disk's end.
    ///
    /// # Errors
    /// [`NodeError::OutOfPlace`].
    pub fn check(&self, position: Position, node: &Node) -> Result<(), NodeError> {
        let last = position.chunks().start + u64::from(node.last_slot()) * span(position.level);
        if node.level() == position.level && self.contains(position) && last < self.chunks {
            Ok(())
        } else {
            Err(NodeError::OutOfPlace(node.level()))
        }
    }
}

/// How many chunks a node of so many levels covers.
const fn span(levels: u8) -> u64 {
    (FAN_OUT as u64).pow(levels as u32)
}

/// The place of a node in a tree: its level, and its number among that level's nodes, holes included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// 0 for the nodes whose children are chunks.
    pub level: u8,
    /// From 0, left to right.
    pub index: u64,
}

impl Position {
    /// The chunks that this node covers, by index.
    #[must_use]
    pub fn chunks(&self) -> Range<u64> {
        let each = span(self.level + 1);
        self.index.saturating_mul(each)..(self.index.saturating_add(1)).saturating_mul(each)
    }

    fn child(&self, slot: u8) -> Self {
        Self { level: self.level - 1, index: self.index * FAN_OUT as u64 + u64::from(slot) }
    }

    /// The slot in this node that leads to a chunk.
    fn slot(&self, chunk: u64) -> u8 {
        (chunk / span(self.level) % FAN_OUT as u64).to_le_bytes()[0]
    }
}

/// A node that is known by id but is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tree node {id} is not here")]
pub struct AbsentNode {
    /// Where it stands.
    pub position: Position,
    /// Its id.
    pub id: NodeId,
}

/// A tree operation could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TreeError<E> {
    /// A node is not here: fetch it and ask again.
    #[error(transparent)]
    Absent(#[from] AbsentNode),
    /// A node is not one, or does not belong where it stands.
    #[error("damaged disk tree")]
    Invalid(#[from] NodeError),
    /// The reader failed.
    #[error("could not read a tree node")]
    Read(#[source] E),
}

/// Gives nodes by id, already checked against it.
pub trait ReadNode {
    /// Why reading failed.
    type Error;

    /// Reads a node; `None` where it is not here.
    ///
    /// # Errors
    /// Whatever the implementation says.
    fn read_node(&self, id: &NodeId) -> Result<Option<Arc<Node>>, Self::Error>;
}

fn read<R: ReadNode + ?Sized>(
    reader: &R,
    shape: Shape,
    position: Position,
    id: NodeId,
) -> Result<Arc<Node>, TreeError<R::Error>> {
    let node = reader.read_node(&id).map_err(TreeError::Read)?.ok_or(AbsentNode { position, id })?;
    shape.check(position, &node)?;
    Ok(node)
}

/// Finds the chunk at an index; `None` is a hole, also beyond the disk's end.
///
/// # Errors
/// See [`TreeError`]; the absent node is the one to fetch next on the way to this chunk.
pub fn lookup<R: ReadNode + ?Sized>(
    reader: &R,
    shape: Shape,
    root: Option<NodeId>,
    chunk: u64,
) -> Result<Option<ChunkId>, TreeError<R::Error>> {
    let Some(mut id) = root.filter(|_| chunk < shape.chunks) else { return Ok(None) };
    let mut position = shape.root();
    loop {
        let node = read(reader, shape, position, id)?;
        let slot = position.slot(chunk);
        let Some(hash) = node.child(slot) else { return Ok(None) };
        if position.level == 0 {
            return Ok(Some(ChunkId(*hash)));
        }
        (position, id) = (position.child(slot), NodeId(*hash));
    }
}

/// Finds the node at a place; `None` is a hole, also beyond the disk's end.
///
/// # Errors
/// See [`TreeError`]; the absent node is the next one on the way to this place.
pub fn lookup_node<R: ReadNode + ?Sized>(
    reader: &R,
    shape: Shape,
    root: Option<NodeId>,
    place: Position,
) -> Result<Option<NodeId>, TreeError<R::Error>> {
    let Some(mut id) = root.filter(|_| shape.contains(place)) else { return Ok(None) };
    let mut position = shape.root();
    while position.level > place.level {
        let node = read(reader, shape, position, id)?;
        let slot = position.slot(place.chunks().start);
        let Some(hash) = node.child(slot) else { return Ok(None) };
        (position, id) = (position.child(slot), NodeId(*hash));
    }
    Ok(Some(id))
}

/// What a walk meets, left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A chunk.
    Chunk {
        /// Its index in the disk.
        index: u64,
        /// Its id.
        id: ChunkId,
    },
    /// A node that is here, before what is under it.
    Node {
        /// Where it stands.
        position: Position,
        /// Its id.
        id: NodeId,
    },
    /// A node that is not here; what is under it is skipped.
    Absent(AbsentNode),
}

/// Walks the chunks and nodes that cover a range of chunk indexes, holes left out, left to right.
pub fn walk<R: ReadNode + ?Sized>(reader: &R, shape: Shape, root: Option<NodeId>, chunks: Range<u64>) -> Walk<'_, R> {
    let stack = root.map(|id| (shape.root(), id.0)).into_iter().collect();
    Walk { reader, shape, chunks, stack }
}

/// The iterator of [`walk`]. Holds at most a node's children per level.
#[derive(Debug)]
pub struct Walk<'r, R: ?Sized> {
    reader: &'r R,
    shape: Shape,
    chunks: Range<u64>,
    /// What is still to be entered, the leftmost last. A chunk stands as level `CHUNK_LEVEL`.
    stack: Vec<(Position, [u8; 32])>,
}

const CHUNK_LEVEL: u8 = u8::MAX;

impl<R: ReadNode + ?Sized> Iterator for Walk<'_, R> {
    type Item = Result<Found, TreeError<R::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        let (position, hash) = self.stack.pop()?;
        if position.level == CHUNK_LEVEL {
            return Some(Ok(Found::Chunk { index: position.index, id: ChunkId(hash) }));
        }
        let id = NodeId(hash);
        let node = match read(self.reader, self.shape, position, id) {
            Ok(node) => node,
            Err(TreeError::Absent(absent)) => return Some(Ok(Found::Absent(absent))),
            Err(error) => return Some(Err(error)),
        };
        let first = self.stack.len();
        for (slot, hash) in node.children() {
            let (place, covers) = if position.level == 0 {
                let index = position.index * FAN_OUT as u64 + u64::from(slot);
                (Position { level: CHUNK_LEVEL, index }, index..index + 1)
            } else {
                let child = position.child(slot);
                (child, child.chunks())
            };
            if covers.start < self.chunks.end && self.chunks.start < covers.end {
                self.stack.push((place, *hash));
            }
        }
        self.stack[first..].reverse();
        Some(Ok(Found::Node { position, id }))
    }
}

/// A place where two disks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The chunk's index.
    pub index: u64,
    /// The left disk's chunk; `None` is a hole.
    pub left: Option<ChunkId>,
    /// The right disk's chunk.
    pub right: Option<ChunkId>,
}

/// Compares two disks, which may differ in size, and calls `visit` with every chunk that differs, left to right.
///
/// Reads only nodes on which the disks differ.
///
/// # Errors
/// See [`TreeError`]; `visit` has then been called for what is left of the absent node.
pub fn diff<R: ReadNode + ?Sized>(
    reader: &R,
    left: (Shape, Option<NodeId>),
    right: (Shape, Option<NodeId>),
    visit: &mut dyn FnMut(Difference),
) -> Result<(), TreeError<R::Error>> {
    for differing in differences([reader, reader], [left, right], 0..u64::MAX) {
        match differing? {
            Differing::Chunk(difference) => visit(difference),
            Differing::Absent(node) => return Err(node.into()),
        }
    }
    Ok(())
}

/// Where two disks differ, as far as can be seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Differing {
    /// In a chunk.
    Chunk(Difference),
    /// Somewhere below a node that is not here; nothing more is said of what is below.
    Absent(AbsentNode),
}

/// Compares two disks, which may differ in size, in a range of chunk indexes: what differs, left to right.
///
/// Each disk has its own reader. Only nodes are read on which the disks differ.
pub fn differences<'r, R: ReadNode + ?Sized>(
    readers: [&'r R; 2],
    trees: [(Shape, Option<NodeId>); 2],
    chunks: Range<u64>,
) -> Differences<'r, R> {
    let level = trees[0].0.levels.max(trees[1].0.levels) - 1;
    let sides = trees.map(|tree| Side::top(tree, level));
    let top = Pair::Nodes(Position { level, index: 0 }, sides);
    let stack = if Side::equal(&sides) { Vec::new() } else { vec![top] };
    Differences { readers, chunks, stack }
}

/// The iterator of [`differences`]. Holds at most a node's children per level.
#[derive(Debug)]
pub struct Differences<'r, R: ?Sized> {
    readers: [&'r R; 2],
    chunks: Range<u64>,
    /// What is still to be entered, the leftmost last.
    stack: Vec<Pair>,
}

/// What differs at some place.
#[derive(Clone, Copy, Debug)]
enum Pair {
    Nodes(Position, [Side; 2]),
    Chunks(Difference),
}

impl<R: ReadNode + ?Sized> Iterator for Differences<'_, R> {
    type Item = Result<Differing, TreeError<R::Error>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.stack.pop()? {
                Pair::Chunks(difference) => return Some(Ok(Differing::Chunk(difference))),
                Pair::Nodes(place, sides) => match self.enter(place, sides) {
                    Ok(()) => {}
                    Err(TreeError::Absent(node)) => return Some(Ok(Differing::Absent(node))),
                    Err(error) => return Some(Err(error)),
                },
            }
        }
    }
}

impl<R: ReadNode + ?Sized> Differences<'_, R> {
    fn enter(&mut self, place: Position, sides: [Side; 2]) -> Result<(), TreeError<R::Error>> {
        let opened = [sides[0].open(self.readers[0], place)?, sides[1].open(self.readers[1], place)?];
        for slot in (0..=u8::MAX).rev() {
            let hashes = [opened[0].get(slot), opened[1].get(slot)];
            if place.level == 0 {
                let index = place.index * FAN_OUT as u64 + u64::from(slot);
                if hashes[0] != hashes[1] && self.chunks.contains(&index) {
                    let [left, right] = hashes.map(|hash| hash.map(ChunkId));
                    self.stack.push(Pair::Chunks(Difference { index, left, right }));
                }
                continue;
            }
            let (child, below) = (place.child(slot), [0, 1].map(|side| sides[side].below(&opened[side], slot)));
            let covers = child.chunks();
            if !Side::equal(&below) && covers.start < self.chunks.end && self.chunks.start < covers.end {
                self.stack.push(Pair::Nodes(child, below));
            }
        }
        Ok(())
    }
}

/// One side of a comparison at some place: a node of its tree, a root that stands lower than this place, or nothing.
#[derive(Clone, Copy, Debug)]
struct Side {
    shape: Shape,
    id: Option<NodeId>,
    /// How many levels the root lies below this place: the two trees may differ in height.
    lift: u8,
}

impl Side {
    fn top((shape, id): (Shape, Option<NodeId>), level: u8) -> Self {
        Self { shape, id, lift: level + 1 - shape.levels }
    }

    /// What is below it in a slot.
    fn below(&self, children: &Children, slot: u8) -> Self {
        Self { id: children.get(slot).map(NodeId), lift: self.lift.saturating_sub(1), ..*self }
    }

    /// Whether there is the same on both sides.
    fn equal([left, right]: &[Self; 2]) -> bool {
        left.id == right.id && (left.id.is_none() || left.lift == right.lift)
    }

    fn open<R: ReadNode + ?Sized>(&self, reader: &R, place: Position) -> Result<Children, TreeError<R::Error>> {
        Ok(match self.id {
            None => Children::None,
            Some(id) if self.lift > 0 => Children::Lifted(id),
            Some(id) => Children::Node(read(reader, self.shape, place, id)?),
        })
    }
}

enum Children {
    None,
    Lifted(NodeId),
    Node(Arc<Node>),
}

impl Children {
    fn get(&self, slot: u8) -> Option<[u8; 32]> {
        match self {
            Self::None => None,
            Self::Lifted(id) => (slot == 0).then_some(id.0),
            Self::Node(node) => node.child(slot).copied(),
        }
    }
}

/// A chunk to set in a tree, or to make a hole.
pub type Change = (u64, Option<ChunkId>);

/// A change to a tree, of one chunk or of a whole range at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Sets the chunk at an index.
    Set(u64, ChunkId),
    /// Makes a range of chunks a hole, without reading the nodes that lie wholly in it.
    Clear(Range<u64>),
}

impl Edit {
    fn chunks(&self) -> Range<u64> {
        match self {
            Self::Set(index, _) => *index..index.saturating_add(1),
            Self::Clear(range) => range.clone(),
        }
    }
}

/// Makes the tree of a disk that differs from an old one in some chunks, and returns its root.
///
/// As [`rewrite`], for single chunks.
///
/// # Errors
/// See [`rewrite`].
///
/// # Panics
/// See [`rewrite`].
pub fn update<R, I>(
    reader: &R,
    old: (Shape, Option<NodeId>),
    new: Shape,
    changes: I,
    emit: &mut dyn FnMut(NodeId, Vec<u8>) -> Result<(), R::Error>,
) -> Result<Option<NodeId>, TreeError<R::Error>>
where
    R: ReadNode + ?Sized,
    I: IntoIterator<Item = Change>,
{
    let edit = |(index, id): Change| id.map_or(Edit::Clear(index..index + 1), |id| Edit::Set(index, id));
    rewrite(reader, old, new, changes.into_iter().map(edit), emit)
}

/// Makes the tree of a disk that differs from an old one in some ranges, and returns its root.
///
/// `edits` ascend and do not overlap. Every new node is given to `emit`, children before parents; those that stayed
/// are named by id and never read unless an edit lies under them. The disk may have grown, not shrunk.
///
/// # Errors
/// See [`TreeError`]. What was emitted before an error is harmless: the same nodes are emitted again later.
///
/// # Panics
/// When edits overlap, descend, are empty, or lie beyond the disk's end, or the disk shrinks: errors of the caller.
pub fn rewrite<R, I>(
    reader: &R,
    old: (Shape, Option<NodeId>),
    new: Shape,
    edits: I,
    emit: &mut dyn FnMut(NodeId, Vec<u8>) -> Result<(), R::Error>,
) -> Result<Option<NodeId>, TreeError<R::Error>>
where
    R: ReadNode + ?Sized,
    I: IntoIterator<Item = Edit>,
{
    assert!(old.0.chunks <= new.chunks, "disks do not shrink");
    let mut edits = Edits { edits: edits.into_iter(), current: None, end: 0, chunks: new.chunks };
    edits.advance();
    let top = new.root();
    Rewrite { reader, new, emit }.node(Side::top(old, top.level), top, &mut edits)
}

/// Finds the nodes that a [`rewrite`] would read and that are not here, as far as can be seen from here.
///
/// After they have been fetched others may be seen below them: ask again until there are none, at most once per level.
///
/// # Errors
/// See [`TreeError`]; an absent node is no error here.
///
/// # Panics
/// As [`rewrite`].
pub fn lacking<R, I>(
    reader: &R,
    old: (Shape, Option<NodeId>),
    new: Shape,
    edits: I,
) -> Result<Vec<AbsentNode>, TreeError<R::Error>>
where
    R: ReadNode + ?Sized,
    I: IntoIterator<Item = Edit>,
{
    let mut edits = Edits { edits: edits.into_iter(), current: None, end: 0, chunks: new.chunks };
    edits.advance();
    let mut absent = Vec::new();
    if let (shape, Some(id)) = old {
        lacking_below(reader, shape, shape.root(), id, &mut edits, &mut absent)?;
    }
    Ok(absent)
}

fn lacking_below<R: ReadNode + ?Sized, I: Iterator<Item = Edit>>(
    reader: &R,
    shape: Shape,
    place: Position,
    id: NodeId,
    edits: &mut Edits<I>,
    absent: &mut Vec<AbsentNode>,
) -> Result<(), TreeError<R::Error>> {
    let covers = place.chunks();
    let on_disk = covers.start..covers.end.min(edits.chunks);
    match edits.touching(&covers) {
        None => return Ok(()),
        Some(Edit::Clear(range)) if range.start <= on_disk.start && on_disk.end <= range.end => return Ok(()),
        Some(_) => {}
    }
    let node = match read(reader, shape, place, id) {
        Ok(node) => node,
        Err(TreeError::Absent(node)) => {
            absent.push(node);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    if place.level > 0 {
        for (slot, hash) in node.children() {
            lacking_below(reader, shape, place.child(slot), NodeId(*hash), edits, absent)?;
        }
    }
    Ok(())
}

/// The edits still to come; `current` is the first that is not wholly to the left of where the work stands.
struct Edits<I> {
    edits: I,
    current: Option<Edit>,
    end: u64,
    chunks: u64,
}

impl<I: Iterator<Item = Edit>> Edits<I> {
    fn advance(&mut self) {
        self.current = self.edits.next();
        if let Some(edit) = &self.current {
            let range = edit.chunks();
            assert!(self.end <= range.start && range.start < range.end, "edits ascend and do not overlap");
            assert!(range.end <= self.chunks, "edits lie within the disk");
            self.end = range.end;
        }
    }

    /// The first edit that touches a range; what lies to its left is done with.
    fn touching(&mut self, range: &Range<u64>) -> Option<&Edit> {
        while self.current.as_ref().is_some_and(|edit| edit.chunks().end <= range.start) {
            self.advance();
        }
        self.current.as_ref().filter(|edit| edit.chunks().start < range.end)
    }
}

struct Rewrite<'a, R: ReadNode + ?Sized> {
    reader: &'a R,
    new: Shape,
    emit: &'a mut dyn FnMut(NodeId, Vec<u8>) -> Result<(), R::Error>,
}

impl<R: ReadNode + ?Sized> Rewrite<'_, R> {
    fn node<I: Iterator<Item = Edit>>(
        &mut self,
        old: Side,
        place: Position,
        edits: &mut Edits<I>,
    ) -> Result<Option<NodeId>, TreeError<R::Error>> {
        let covers = place.chunks();
        let on_disk = covers.start..covers.end.min(self.new.chunks);
        match edits.touching(&covers) {
            None if old.lift == 0 => return Ok(old.id),
            Some(Edit::Clear(range)) if range.start <= on_disk.start && on_disk.end <= range.end => return Ok(None),
            _ => {}
        }
        let opened = old.open(self.reader, place)?;
        let mut children = Vec::with_capacity(FAN_OUT);
        for slot in 0..=u8::MAX {
            let before = opened.get(slot);
            let after = if place.level == 0 {
                let index = covers.start + u64::from(slot);
                match edits.touching(&(index..index + 1)) {
                    None => before,
                    Some(Edit::Set(_, id)) => Some(id.0),
                    Some(Edit::Clear(_)) => None,
                }
            } else {
                let below = Side { id: before.map(NodeId), lift: old.lift.saturating_sub(1), ..old };
                let child = place.child(slot);
                // Below a lifted root only the first child has anything, and it may have to be lifted further.
                if edits.touching(&child.chunks()).is_some() || (below.lift > 0 && below.id.is_some()) {
                    self.node(below, child, edits)?.map(|id| id.0)
                } else {
                    before
                }
            };
            children.extend(after.map(|hash| (slot, hash)));
        }
        let Some(node) = Node::new(place.level, &children) else { return Ok(None) };
        let (id, bytes) = node.identify();
        if old.lift > 0 || old.id != Some(id) {
            (self.emit)(id, bytes).map_err(TreeError::Read)?;
        }
        Ok(Some(id))
    }
}

//! How much of a tree other trees hold as well: what only it holds would be free without it.

use types::NodeId;

use super::{Children, Position, ReadNode, Shape, Side, TreeError};

/// A tree and who reads it.
#[derive(Debug)]
pub struct Tree<'r, R: ?Sized> {
    /// Reads its nodes.
    pub reader: &'r R,
    /// Its shape.
    pub shape: Shape,
    /// Its root; `None` is a hole.
    pub root: Option<NodeId>,
}

impl<R: ?Sized> Clone for Tree<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R: ?Sized> Copy for Tree<'_, R> {}

/// Chunks of a tree, by who holds them at the same place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Those that no other tree has there, as far as can be seen from here.
    pub alone: u64,
    /// Those that another tree has there as well.
    pub shared: u64,
    /// Nodes that are not here: what is below them is not counted.
    pub absent_nodes: u64,
}

/// Counts the chunks of a tree by who holds them; `None` where that would mean to read more than `most_nodes` nodes.
///
/// # Errors
/// See [`TreeError`]; an absent node is no error here.
pub fn held<R: ReadNode + ?Sized>(
    tree: Tree<'_, R>,
    others: &[Tree<'_, R>],
    most_nodes: usize,
) -> Result<Option<Held>, TreeError<R::Error>> {
    let levels = others.iter().map(|other| other.shape.levels).fold(tree.shape.levels, u8::max);
    let level = levels - 1;
    let top = |tree: &Tree<'_, R>| Side::top((tree.shape, tree.root), level);
    let sides = others.iter().map(|other| (other.reader, top(other))).collect();
    let mut count = Count { reader: tree.reader, nodes_left: most_nodes, held: Held::default() };
    let counted = count.enter(Position { level, index: 0 }, top(&tree), sides, false)?;
    Ok(counted.then_some(count.held))
}

struct Count<'r, R: ?Sized> {
    reader: &'r R,
    nodes_left: usize,
    held: Held,
}

impl<'r, R: ReadNode + ?Sized> Count<'r, R> {
    /// Counts what is below a place, and says whether that was within the limit.
    fn enter(
        &mut self,
        place: Position,
        side: Side,
        others: Vec<(&'r R, Side)>,
        shared: bool,
    ) -> Result<bool, TreeError<R::Error>> {
        if side.id.is_none() {
            return Ok(true);
        }
        let shared = shared || others.iter().any(|(_, other)| Side::equal(&[side, *other]));
        let Some(opened) = self.open(self.reader, side, place)? else {
            self.held.absent_nodes += 1;
            return Ok(self.nodes_left > 0);
        };
        let mut opened_others = Vec::new();
        for (reader, other) in others.into_iter().filter(|_| !shared) {
            opened_others.extend(self.open(reader, other, place)?.map(|children| (reader, other, children)));
        }
        if self.nodes_left == 0 {
            return Ok(false);
        }
        for slot in 0..=u8::MAX {
            let Some(hash) = opened.get(slot) else { continue };
            if place.level == 0 {
                let found = shared || opened_others.iter().any(|(_, _, children)| children.get(slot) == Some(hash));
                *(if found { &mut self.held.shared } else { &mut self.held.alone }) += 1;
                continue;
            }
            let mut below: Vec<(&'r R, Side)> = Vec::new();
            for (reader, other, children) in &opened_others {
                let child = other.below(children, slot);
                if child.id.is_some() && !below.iter().any(|(_, known)| Side::equal(&[*known, child])) {
                    below.push((*reader, child));
                }
            }
            if !self.enter(place.child(slot), side.below(&opened, slot), below, shared)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a node; `None` where it is not here.
    fn open(&mut self, reader: &R, side: Side, place: Position) -> Result<Option<Children>, TreeError<R::Error>> {
        self.nodes_left = self.nodes_left.saturating_sub(1);
        match side.open(reader, place) {
            Ok(children) => Ok(Some(children)),
            Err(TreeError::Absent(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

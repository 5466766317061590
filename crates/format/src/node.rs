//! A node of a disk tree: up to 256 children, told apart from holes by a presence bitmap.
//!
//! Level 0 nodes have chunks as children, higher ones nodes. A node without children does not exist: its place in the
//! parent is a hole. The layout is in `docs/format.md`, "Tree node".

use types::{CHUNK_BYTES, ChunkId, NodeId};

use crate::hash;

/// The number of children that a node has room for.
pub const FAN_OUT: usize = 256;

/// The most levels that a tree can have: 256⁴ chunks of 64 KiB are 256 TiB.
pub const MAX_LEVELS: u8 = 4;

/// The longest encoding of a node, in bytes.
pub const MAX_NODE_BYTES: usize = HEADER_BYTES + BITMAP_BYTES + FAN_OUT * 32;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 4;
const BITMAP_BYTES: usize = FAN_OUT / 8;
const CHUNK_SHIFT: u8 = CHUNK_BYTES.trailing_zeros().to_le_bytes()[0];

/// Bytes were not a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Too short, or not as long as its bitmap says.
    #[error("a tree node of {0} bytes")]
    Length(usize),
    /// A version, level or chunk size that this version does not know.
    #[error("a tree node with an unknown header {0:02x?}")]
    Header([u8; HEADER_BYTES]),
    /// A node that must not exist: without children, or with an all-zero chunk for a child.
    #[error("a tree node that is not canonical")]
    NotCanonical,
    /// A node that does not fit where it was found.
    #[error("a tree node of level {0} out of place")]
    OutOfPlace(u8),
}

/// A decoded node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    level: u8,
    present: [u64; 4],
    children: Vec<[u8; 32]>,
}

impl Node {
    /// Makes a node of the given children, in ascending order of slot; `None` where there are none.
    ///
    /// # Panics
    /// When slots repeat or descend, or the level is too high: these are errors of the caller.
    #[must_use]
    pub fn new(level: u8, children: &[(u8, [u8; 32])]) -> Option<Self> {
        assert!(level < MAX_LEVELS, "level {level} of a tree");
        assert!(children.is_sorted_by(|left, right| left.0 < right.0), "children are in ascending order");
        let mut present = [0; 4];
        for (slot, _) in children {
            present[usize::from(slot / 64)] |= 1 << (slot % 64);
        }
        let children: Vec<_> = children.iter().map(|(_, hash)| *hash).collect();
        (!children.is_empty()).then_some(Self { level, present, children })
    }

    /// The level: 0 where the children are chunks.
    #[must_use]
    pub fn level(&self) -> u8 {
        self.level
    }

    /// The hash of the child at a slot, or `None` for a hole.
    #[must_use]
    pub fn child(&self, slot: u8) -> Option<&[u8; 32]> {
        let (word, bit) = (usize::from(slot / 64), slot % 64);
        if self.present[word] >> bit & 1 == 0 {
            return None;
        }
        let before: u32 = self.present[..word].iter().map(|word| word.count_ones()).sum();
        let before = before + (self.present[word] & ((1 << bit) - 1)).count_ones();
        self.children.get(before as usize)
    }

    /// The children that are not holes, with their slots, ascending.
    pub fn children(&self) -> impl Iterator<Item = (u8, &[u8; 32])> {
        (0..=u8::MAX).filter(|slot| self.present[usize::from(slot / 64)] >> (slot % 64) & 1 == 1).zip(&self.children)
    }

    /// The highest slot that is not a hole.
    #[must_use]
    pub fn last_slot(&self) -> u8 {
        (0..=u8::MAX).rev().find(|slot| self.child(*slot).is_some()).unwrap_or(0)
    }

    /// Encodes the node.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + BITMAP_BYTES + 32 * self.children.len());
        bytes.extend([VERSION, self.level, CHUNK_SHIFT, 0]);
        bytes.extend(self.present.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(self.children.iter().flatten());
        bytes
    }

    /// Encodes the node and names it.
    #[must_use]
    pub fn identify(&self) -> (NodeId, Vec<u8>) {
        let bytes = self.encode();
        (hash::node_id(&bytes), bytes)
    }

    /// Decodes a node; any bytes may be given.
    ///
    /// # Errors
    /// Everything that [`Node::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, NodeError> {
        let length = NodeError::Length(bytes.len());
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(length)?;
        let (bitmap, rest) = rest.split_first_chunk::<BITMAP_BYTES>().ok_or(length)?;
        let level = header[1];
        if *header != [VERSION, level, CHUNK_SHIFT, 0] || level >= MAX_LEVELS {
            return Err(NodeError::Header(*header));
        }
        let mut present = [0; 4];
        for (word, bytes) in present.iter_mut().zip(bitmap.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let (children, remainder) = rest.as_chunks::<32>();
        let expected: u32 = present.iter().map(|word: &u64| word.count_ones()).sum();
        if !remainder.is_empty() || children.len() != expected as usize {
            return Err(length);
        }
        if children.is_empty() || (level == 0 && children.contains(&zero_chunk().0)) {
            return Err(NodeError::NotCanonical);
        }
        Ok(Self { level, present, children: children.to_vec() })
    }
}

/// The id that an all-zero chunk would have: it never stands in a tree.
pub fn zero_chunk() -> ChunkId {
    static ZERO: std::sync::OnceLock<ChunkId> = std::sync::OnceLock::new();
    *ZERO.get_or_init(|| hash::chunk_id(&[0; CHUNK_BYTES]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_there_and_back() {
        let children: Vec<_> = [0, 1, 63, 64, 127, 200, 255].map(|slot| (slot, [slot; 32])).to_vec();
        let node = Node::new(2, &children).unwrap();
        let (id, bytes) = node.identify();
        let decoded = Node::decode(&bytes).unwrap();
        assert_eq!(decoded, node);
        assert_eq!(decoded.identify().0, id);
        assert_eq!(decoded.children().map(|(slot, hash)| (slot, *hash)).collect::<Vec<_>>(), children);
        assert_eq!(decoded.child(200), Some(&[200; 32]));
        assert_eq!(decoded.child(201), None);
        assert_eq!(decoded.last_slot(), 255);
    }

    #[test]
    fn only_one_form_is_accepted() {
        let good = Node::new(0, &[(3, [9; 32])]).unwrap().encode();
        assert!(Node::decode(&good).is_ok());
        for (position, byte) in [(0, 2), (1, 4), (2, 17), (3, 1), (4, 0)] {
            let mut bad = good.clone();
            bad[position] = byte;
            assert!(Node::decode(&bad).is_err(), "byte {position}");
        }
        assert!(Node::decode(&good[..good.len() - 1]).is_err());
        assert!(Node::decode(&[good.clone(), vec![0]].concat()).is_err());
        assert_eq!(Node::decode(&good[..36]), Err(NodeError::Length(36)));
        let zero = Node::new(0, &[(0, zero_chunk().0)]).unwrap();
        assert_eq!(Node::decode(&zero.encode()), Err(NodeError::NotCanonical));
        assert_eq!(Node::new(0, &[]), None);
    }
}

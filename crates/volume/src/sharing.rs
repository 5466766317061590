//! How much of a volume's tree only it holds: counted when somebody asks, by comparing it with all other trees.

use std::collections::BTreeSet;

use format::tree::{self, Held, Tree};
use store::Nodes;

use crate::base::{CHUNK, TreeBase};
use crate::device::DeviceError;
use crate::stack::absent_node;
use crate::volume::Volume;
use crate::volumes::Volumes;

/// How many tree nodes are read to count: enough for a terabyte of data.
const MOST_NODES: usize = 1 << 16;

/// A volume's tree, by who else holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sharing {
    /// What nothing else holds at the same place, in bytes.
    pub own_bytes: u64,
    /// What others hold as well, in bytes.
    pub shared_bytes: u64,
}

impl Volumes {
    /// Counts what of a volume's tree only it holds. Others are all other volumes, the deleted ones too, all frozen
    /// disks, and the trees of sealed snapshots, which the caller knows. What is below absent nodes is not counted;
    /// `None` where the tree is too large to be counted while somebody waits.
    ///
    /// # Errors
    /// See [`DeviceError`]; what is absent is no error.
    pub fn sharing(&self, volume: &Volume, snapshots: &[TreeBase]) -> Result<Option<Sharing>, DeviceError> {
        let base = volume.base();
        let mut others: Vec<TreeBase> = Vec::new();
        let mut known = BTreeSet::new();
        {
            let registry = self.registry.read();
            let volumes = registry.all_volumes().filter(|other| other.id() != volume.id()).map(|other| other.base());
            let frozen = registry.frozen.values().map(|frozen| frozen.base());
            for other in volumes.chain(frozen).chain(snapshots.iter().cloned()) {
                if other.root.is_some() && known.insert((other.root, other.shape().levels())) {
                    others.push(other);
                }
            }
        }
        let nodes = |base: &TreeBase| {
            Nodes::with_cache(self.context.store.clone(), base.domains.clone(), self.context.nodes.clone())
        };
        let readers: Vec<Nodes> = others.iter().map(nodes).collect();
        let own = nodes(&base);
        let tree = |(reader, base)| tree_of(reader, base);
        let others: Vec<_> = readers.iter().zip(&others).map(tree).collect();
        match tree::held(tree_of(&own, &base), &others, MOST_NODES) {
            Ok(held) => Ok(held.map(|held| in_bytes(held, base.size_bytes))),
            Err(error) => absent_node(error).map(|_| None),
        }
    }
}

fn tree_of<'r>(reader: &'r Nodes, base: &TreeBase) -> Tree<'r, Nodes> {
    Tree { reader, shape: base.shape(), root: base.root }
}

fn in_bytes(held: Held, size_bytes: u64) -> Sharing {
    let own_bytes = (held.alone * CHUNK).min(size_bytes);
    Sharing { own_bytes, shared_bytes: (held.shared * CHUNK).min(size_bytes - own_bytes) }
}

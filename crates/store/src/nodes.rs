//! Reads tree nodes through a bounded cache of decoded ones.
//!
//! Invariant: a node is given only to who may see it: the cache remembers for each trust domain which nodes are present
//! in it, and a node that is present only elsewhere is as good as absent.

use std::sync::Arc;

use format::Node;
use format::tree::ReadNode;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use types::NodeId;

use crate::{ChunkStore, Domain, Domains, Key, StoreError};

/// What a [`Nodes`] of its own may cache, in bytes.
const DEFAULT_CACHE_BYTES: u64 = 16 << 20;

/// What a cached node takes beside its children, in bytes: entry, key and bitmap.
const NODE_OVERHEAD_BYTES: u64 = 160;

/// Decoded tree nodes, bounded, shared by any number of readers.
#[derive(Debug)]
pub struct NodeCache {
    nodes: Cache<(Domain, NodeId), Known, ByBytes>,
}

/// A node, and how often objects had been removed from the store before it was found there.
#[derive(Clone, Debug)]
struct Known {
    node: Arc<Node>,
    removals: u64,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<(Domain, NodeId), Known> for ByBytes {
    fn weight(&self, _: &(Domain, NodeId), known: &Known) -> u64 {
        NODE_OVERHEAD_BYTES + 32 * known.node.children().count() as u64
    }
}

impl NodeCache {
    /// Makes a cache that holds about so many bytes.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Arc<Self> {
        let full_node = NODE_OVERHEAD_BYTES + 32 * format::FAN_OUT as u64;
        let items = usize::try_from(capacity_bytes / full_node).unwrap_or(usize::MAX).clamp(16, 1 << 20);
        Arc::new(Self { nodes: Cache::with_weighter(items, capacity_bytes, ByBytes) })
    }
}

/// Reads the tree nodes that are present in some domains. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Nodes {
    store: Arc<dyn ChunkStore>,
    domains: Domains,
    /// Each domain alone, so that what is found is remembered for the domain that it was found in.
    each: Arc<[(Domain, Domains)]>,
    cache: Arc<NodeCache>,
}

impl Nodes {
    /// Makes a reader with a cache of its own.
    #[must_use]
    pub fn new(store: Arc<dyn ChunkStore>, domains: Domains) -> Self {
        Self::with_cache(store, domains, NodeCache::new(DEFAULT_CACHE_BYTES))
    }

    /// Makes a reader that shares a cache with other readers of the same store.
    #[must_use]
    pub fn with_cache(store: Arc<dyn ChunkStore>, domains: Domains, cache: Arc<NodeCache>) -> Self {
        let each = domains.iter().map(|domain| (domain, domain.into())).collect();
        Self { store, domains, each, cache }
    }

    /// The store that the nodes come from.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn ChunkStore> {
        &self.store
    }

    /// The domains that are looked in.
    #[must_use]
    pub fn domains(&self) -> &Domains {
        &self.domains
    }
}

impl ReadNode for Nodes {
    type Error = StoreError;

    fn read_node(&self, id: &NodeId) -> Result<Option<Arc<Node>>, StoreError> {
        // A node that has left the store may have left the cache as well.
        let removals = self.store.removals();
        let known = |(domain, _): &(Domain, Domains)| self.cache.nodes.get(&(*domain, *id));
        let current = |known: &Known| known.removals == removals;
        if let Some(known) = self.each.iter().filter_map(known).find(current) {
            return Ok(Some(known.node));
        }
        let key = Key::from(*id);
        for (domain, only) in self.each.iter() {
            if let Some(plain) = self.store.get(&key, only)? {
                let node = Node::decode(&plain).map_err(|source| StoreError::Malformed { id: *id, source })?;
                let node = Arc::new(node);
                self.cache.nodes.insert((*domain, *id), Known { node: node.clone(), removals });
                return Ok(Some(node));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStore;

    #[test]
    fn a_node_is_seen_only_in_its_domains_even_when_cached() {
        let store = Arc::new(MemoryStore::new());
        let (id, bytes) = Node::new(0, &[(3, [7; 32])]).unwrap().identify();
        let secret = Domain(9);
        store.put(&id.into(), secret, &bytes).unwrap();
        let cache = NodeCache::new(1 << 20);
        let insider = Nodes::with_cache(store.clone(), secret.into(), cache.clone());
        let outsider = Nodes::with_cache(store.clone(), Domain::OWN.into(), cache);
        assert!(insider.read_node(&id).unwrap().is_some());
        assert!(insider.read_node(&id).unwrap().is_some());
        assert!(outsider.read_node(&id).unwrap().is_none());
        let both = Nodes::new(store.clone(), Domains::new(&[Domain::OWN, secret]));
        assert!(both.read_node(&id).unwrap().is_some());
        store.put(&id.into(), Domain::OWN, &bytes).unwrap();
        assert!(outsider.read_node(&id).unwrap().is_some());
    }

    #[test]
    fn bytes_that_are_no_node_are_an_error_though_their_hash_is_right() {
        let store = Arc::new(MemoryStore::new());
        let id = format::node_id(b"no node");
        store.put(&id.into(), Domain::OWN, b"no node").unwrap();
        let nodes = Nodes::new(store, Domain::OWN.into());
        assert!(matches!(nodes.read_node(&id), Err(StoreError::Malformed { .. })));
    }

    #[test]
    fn the_cache_is_bounded() {
        let store = Arc::new(MemoryStore::new());
        let cache = NodeCache::new(64 << 10);
        let nodes = Nodes::with_cache(store.clone(), Domain::OWN.into(), cache.clone());
        for number in 0..1000_u32 {
            let hash = *blake3::hash(&number.to_le_bytes()).as_bytes();
            let (id, bytes) = Node::new(0, &[(3, hash)]).unwrap().identify();
            store.put(&id.into(), Domain::OWN, &bytes).unwrap();
            assert!(nodes.read_node(&id).unwrap().is_some());
        }
        assert!(cache.nodes.weight() <= 64 << 10);
        assert!(!cache.nodes.is_empty());
    }
}

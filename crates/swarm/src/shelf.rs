//! What a provider has of one disk of a snapshot: from a place in its tree to stored bytes. Blocking; no network.
//!
//! Invariant: everything is reached from the manifest's root through nodes present in the served trust domains, so
//! that a request can get at nothing but what stands in the snapshot that it names.

use std::sync::Arc;

use bytes::Bytes;
use format::tree::{TreeError, lookup, lookup_node};
use format::{Manifest, Shape, Stored};
use store::{ChunkStore, Domains, Key, NodeCache, Nodes, Part, StoreError};
use types::{NodeId, SnapshotId};

use crate::message::Place;

/// One disk of a snapshot, or, without a disk, its manifest.
#[derive(Debug)]
pub(crate) struct Shelf {
    nodes: Nodes,
    snapshot: SnapshotId,
    disk: Option<(Shape, Option<NodeId>)>,
}

/// What stands at a place.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing: a hole.
    Hole,
    /// An object.
    Stored(Stored),
    /// Something that is not here; the part that would have to be fetched first, and its key.
    Absent(Part, Key),
    /// Something that cannot be read here, and will not come by fetching it.
    Damaged,
}

impl Shelf {
    /// Finds the disk; `None` where the manifest is not here or has no such disk.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) fn open(
        store: &Arc<dyn ChunkStore>,
        cache: &Arc<NodeCache>,
        domains: &Domains,
        snapshot: SnapshotId,
        disk: Option<u32>,
    ) -> Result<Option<Self>, StoreError> {
        let nodes = Nodes::with_cache(Arc::clone(store), domains.clone(), Arc::clone(cache));
        let Some(disk) = disk else {
            let here = store.contains(&snapshot.into(), domains)?;
            return Ok(here.then_some(Self { nodes, snapshot, disk: None }));
        };
        let Some(bytes) = store.get(&snapshot.into(), domains)? else { return Ok(None) };
        let Ok(manifest) = Manifest::decode(&bytes) else { return Ok(None) };
        let disk = usize::try_from(disk).ok().and_then(|disk| manifest.disks.get(disk));
        Ok(disk.map(|disk| Self { nodes, snapshot, disk: Some((Shape::of(disk.size_bytes), disk.root)) }))
    }

    /// Finds what stands at a place.
    ///
    /// # Errors
    /// When the store cannot be read, or the tree is damaged.
    pub(crate) fn find(&self, place: Place) -> Result<Found, StoreError> {
        let (key, part) = match (place, self.disk) {
            (Place::Manifest, _) => (self.snapshot.into(), Part::Chunk(0)),
            (_, None) => return Ok(Found::Hole),
            (Place::Chunk(index), Some((shape, root))) => match lookup(&self.nodes, shape, root, index) {
                Ok(None) => return Ok(Found::Hole),
                Ok(Some(id)) => (Key::from(id), Part::Chunk(index)),
                Err(error) => return absent(error),
            },
            (Place::Node(position), Some((shape, root))) => match lookup_node(&self.nodes, shape, root, position) {
                Ok(None) => return Ok(Found::Hole),
                Ok(Some(id)) => (Key::from(id), Part::Node(position)),
                Err(error) => return absent(error),
            },
        };
        let stored = self.nodes.store().get_stored(&key, self.nodes.domains())?;
        Ok(stored.map_or(Found::Absent(part, key), Found::Stored))
    }
}

fn absent(error: TreeError<StoreError>) -> Result<Found, StoreError> {
    match error {
        TreeError::Absent(node) => Ok(Found::Absent(Part::Node(node.position), node.id.into())),
        // The publisher made such a tree: nobody can have anything below it.
        TreeError::Invalid(_) => Ok(Found::Hole),
        TreeError::Read(error) => Err(error),
    }
}

/// Appends an item of a reply to what will be sent.
pub(crate) fn append(reply: &mut Vec<u8>, number: u32, found: &Found) {
    use crate::message::{Content, Item};
    let (content, bytes) = match found {
        Found::Hole => (Content::Hole, Bytes::new()),
        Found::Absent(..) | Found::Damaged => (Content::Absent, Bytes::new()),
        Found::Stored(Stored { codec, plain_bytes, bytes }) => {
            let stored_bytes = u32::try_from(bytes.len()).expect("a stored object is shorter than 4 GiB");
            (Content::Stored { codec: *codec, plain_bytes: *plain_bytes, stored_bytes }, bytes.clone())
        }
    };
    reply.extend_from_slice(&Item { number, content }.encode());
    reply.extend_from_slice(&bytes);
}

//! How what is not here is asked for: the one thing that volumes and the swarm share.

use std::fmt::Debug;

use format::Position;
use futures_util::future::BoxFuture;
use types::SnapshotId;

use crate::{Domains, Key};

/// A disk of a published snapshot: where absent parts of a tree can be asked for.
///
/// A volume's tree may have changed since it was cloned; what has changed is here, and what is absent stands at the
/// same place in the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The disk's number in its manifest, from 0.
    pub disk: u32,
}

/// A part of a disk, by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// A node of its tree.
    Node(Position),
    /// A chunk, by index.
    Chunk(u64),
}

/// How soon something is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// A guest or a person waits for it.
    Lazy,
    /// It shall come some time.
    Bulk,
}

/// Something that is not here and shall come.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where it can be asked for.
    pub origin: Origin,
    /// Its place there.
    pub part: Part,
    /// What it must hash to.
    pub key: Key,
    /// Where it counts as present; it is put in the first of these.
    pub domains: Domains,
    /// How soon.
    pub urgency: Urgency,
}

/// Why something will not come. A passing fault is not an error: the source waits and tries again.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// This node has no way to fetch anything.
    #[error("{0} is not here and this node fetches from nobody")]
    NoSource(Key),
    /// The source is shutting down.
    #[error("the node is shutting down")]
    Closed,
    /// What came could not be stored.
    #[error("what was fetched could not be stored")]
    Store(#[source] std::sync::Arc<crate::StoreError>),
}

/// Brings what is not here.
pub trait ChunkSource: Send + Sync + Debug {
    /// Brings one object into the store and then resolves. Waits as long as nobody has it; dropping the future cancels
    /// the wait. Many waits for one object cause one transfer.
    fn fetch(&self, wanted: Wanted) -> BoxFuture<'static, Result<(), FetchError>>;
}

/// The source of a node that fetches from nobody: everything must be here.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSource;

impl ChunkSource for NoSource {
    fn fetch(&self, wanted: Wanted) -> BoxFuture<'static, Result<(), FetchError>> {
        Box::pin(async move { Err(FetchError::NoSource(wanted.key)) })
    }
}

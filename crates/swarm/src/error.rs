//! Why the swarm could not do what it was asked for. Passing faults of the network are not among these.

use std::sync::Arc;

use format::NodeError;
use format::manifest::ManifestError;
use store::{FetchError, StoreError};
use types::Cancelled;

use crate::transport::TransportError;

/// The swarm could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwarmError {
    /// The endpoint could not be started.
    #[error("could not start the swarm's endpoint")]
    Start(#[source] TransportError),
    /// The work was cancelled by whoever watches it.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The swarm is closed.
    #[error("the node is shutting down")]
    Closed,
    /// What came could not be stored, or what is here not be read.
    #[error("the store failed")]
    Store(#[source] Arc<StoreError>),
    /// A snapshot's manifest, of the right hash, is not one: who published it is at fault.
    #[error("the snapshot's manifest cannot be used")]
    Manifest(#[from] ManifestError),
    /// A tree's node, of the right hash, is not one: who published it is at fault.
    #[error("the disk's tree cannot be used")]
    Tree(#[source] NodeError),
    /// Something will not come.
    #[error("could not fetch")]
    Fetch(#[source] FetchError),
}

impl From<StoreError> for SwarmError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Malformed { source, .. } => Self::Tree(source),
            error => Self::Store(Arc::new(error)),
        }
    }
}

impl From<FetchError> for SwarmError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Closed => Self::Closed,
            FetchError::Store(error) => Self::Store(error),
            error => Self::Fetch(error),
        }
    }
}

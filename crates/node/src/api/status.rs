//! The node as a whole.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::bucket::Login;
use super::store::{CollectionStatus, ScrubStatus};

/// The node as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// brant's version.
    pub version: String,
    /// The process id of the node.
    #[serde(default)]
    pub pid: u32,
    /// Why the last attempt to restart it came to nothing, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_failure: Option<String>,
    /// The node's id among peers.
    pub endpoint: String,
    /// Where peers reach it.
    pub addresses: Vec<String>,
    /// Its directory.
    pub directory: String,
    /// The Indexers it has accounts at.
    pub logins: Vec<Login>,
    /// How many volumes it has.
    pub volumes: u64,
    /// How many of them have a replica.
    #[serde(default)]
    pub replicated: u64,
    /// How many of those replicas cannot take over now, as they are not current.
    #[serde(default)]
    pub replicas_not_current: u64,
    /// How many buckets it has.
    pub buckets: u64,
    /// How many tasks run.
    pub running_tasks: u64,
    /// Its store.
    pub store: StoreStatus,
    /// What it exchanged with peers since it started.
    pub swarm: SwarmStatus,
    /// Resident memory of the process, in bytes.
    pub memory_bytes: u64,
}

/// A restart that was begun: the new process, which goes on with all connections as soon as it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Restart {
    /// The process id of the node that was asked.
    pub pid: u32,
    /// The process id of its successor.
    pub successor: u32,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// Where it is.
    pub directory: String,
    /// Chunks, tree nodes and manifests.
    pub objects: u64,
    /// Their plain length, in bytes.
    pub plain_bytes: u64,
    /// Their length as stored, in bytes.
    pub stored_bytes: u64,
    /// What it takes on disk, in bytes.
    pub allocated_bytes: u64,
    /// What the last collection since the node started found.
    #[serde(default)]
    pub collection: Option<CollectionStatus>,
    /// What scrubs found since the node started.
    #[serde(default)]
    pub scrub: ScrubStatus,
}

/// What was exchanged with peers since the node started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwarmStatus {
    /// Bytes of chunks, nodes and manifests sent, as sent.
    pub sent_bytes: u64,
    /// Bytes of chunks, nodes and manifests received, as sent.
    pub received_bytes: u64,
    /// Peers connected now.
    pub peers: u64,
    /// Chunks received that were not what was asked for.
    pub bad_chunks: u64,
}

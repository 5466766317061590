//! Replicas of volumes, which other members of the cluster keep.

use serde::{Deserialize, Serialize};
use types::{ByteSize, Name};
use utoipa::ToSchema;

use super::Volume;

/// Whether a replica is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicationMode {
    /// Nothing is answered before the replica has it.
    Sync,
    /// The replica may be behind, within a bound.
    Async,
}

impl ReplicationMode {
    pub(crate) fn of(sync: bool) -> Self {
        if sync { Self::Sync } else { Self::Async }
    }
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicationState {
    /// It can take over, with what its mode promises.
    Current,
    /// It was current, and does not answer. With `sync`, writes wait.
    Away,
    /// It is being brought up to date, and nothing waits for it.
    Syncing,
    /// It is not current, and does not answer. Nothing waits for it.
    Behind,
}

/// Asks that a member keeps a replica of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReplicateRequest {
    /// The member.
    #[schema(value_type = String)]
    pub to: Name,
    /// Whether it is waited for.
    pub mode: ReplicationMode,
    /// A third member, which says who goes on alone when the two do not hear of each other.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub witness: Option<Name>,
    /// How far the replica may be behind, in bytes: 1 MiB to 1 GiB, 64 MiB where none is given.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub most_lag_bytes: Option<ByteSize>,
}

/// How a replica of a volume is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replication {
    /// The member that keeps it.
    pub to: String,
    /// Whether it is waited for.
    pub mode: ReplicationMode,
    /// The member that says who goes on alone.
    pub witness: Option<String>,
    /// How far it may be behind, in bytes.
    pub most_lag_bytes: u64,
    /// What it is now.
    pub state: ReplicationState,
    /// How far it is behind, in bytes.
    pub lag_bytes: u64,
    /// How long the oldest change has waited that it lacks, in milliseconds.
    pub lag_ms: u64,
}

/// Asks that a replica takes over.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PromoteRequest {
    /// Whether what was written last may be lost.
    #[serde(default)]
    pub accept_loss: bool,
}

/// A replica that has taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Promoted {
    /// The volume.
    pub volume: Volume,
    /// Whether everything that was answered is there.
    pub lossless: bool,
}

/// A replica of another member's volume that is kept here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// The volume.
    #[schema(value_type = String)]
    pub volume: Name,
    /// The member where the volume is.
    pub home: String,
    /// Whether the replica is waited for.
    pub mode: ReplicationMode,
    /// The member that says who goes on alone.
    pub witness: Option<String>,
    /// Its size in bytes, once there is something of it.
    pub size_bytes: Option<u64>,
    /// Whether it was current when the home was last heard.
    pub current: bool,
}

//! Volumes.

use serde::{Deserialize, Serialize};
use types::{ByteSize, Name, VolumeId};
use utoipa::ToSchema;

/// Asks for a new, empty volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateVolumeRequest {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its size in bytes, a multiple of 512, at most 64 TiB.
    #[schema(value_type = u64)]
    pub size_bytes: ByteSize,
}

/// A volume, as in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its id on this node.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it was cloned from, as `BUCKET/OBJECT@VERSION` or a snapshot id.
    pub origin: Option<String>,
    /// Bytes written here that no sealed snapshot holds yet.
    pub dirty_bytes: u64,
    /// Where it is attached.
    pub attached: Vec<String>,
}

/// What of a disk is not here yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Missing {
    /// Chunks that are known and not here.
    pub chunks: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Tree nodes that are not here: what lies below them is not counted yet.
    pub nodes: u64,
}

/// A volume, in detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub volume: Volume,
    /// What is not here yet.
    pub missing: Missing,
    /// Bytes that its journals take on disk.
    pub journal_bytes: u64,
    /// How many layers lie over its tree.
    pub layers: u64,
    /// The root of its tree.
    pub root: Option<String>,
}

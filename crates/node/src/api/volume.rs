//! Volumes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::{ByteSize, Name, VolumeId};
use utoipa::ToSchema;

use super::Replication;
use super::schedule::Schedule;

/// Asks for a new, empty volume.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateVolumeRequest {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its size in bytes, a multiple of 512, at most 64 TiB.
    #[schema(value_type = u64)]
    pub size_bytes: ByteSize,
    /// Its labels.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<Name, String>,
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
    /// Its labels: texts that whoever drives the node keeps with it.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<Name, String>,
    /// How a replica of it is kept.
    #[serde(default)]
    pub replication: Option<Replication>,
    /// The member where it is, where that is not the node that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
}

/// Asks to change the labels of a volume; those that are not named stay.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct LabelRequest {
    /// By key: at most 1,000 bytes of text, without control characters; none removes the label.
    #[schema(value_type = BTreeMap<String, Option<String>>)]
    pub labels: BTreeMap<Name, Option<String>>,
}

/// Asks to make a volume larger.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResizeRequest {
    /// Its new size in bytes, a multiple of 512, at most 64 TiB, and not smaller than it is.
    #[schema(value_type = u64)]
    pub size_bytes: ByteSize,
}

/// Asks to put a volume back.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RevertRequest {
    /// To what: `BUCKET/OBJECT[@VERSION]`, a snapshot id, or the id of a deleted volume.
    pub to: String,
    /// The disk of a snapshot that has several.
    #[serde(default)]
    pub disk: Option<String>,
}

/// Asks to keep what is written to a volume, so that any moment of it can be cloned.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProtectRequest {
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// In how much space at most, in bytes; the oldest goes first.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub space_bytes: Option<ByteSize>,
}

/// What is kept of a volume's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rewind {
    /// For how long it is kept, in milliseconds.
    pub for_ms: u64,
    /// In how much space at most, in bytes.
    pub space_bytes: Option<u64>,
    /// The earliest moment that can be cloned.
    pub from_ms: u64,
    /// How long the journals are that are kept for it, in bytes.
    pub bytes: u64,
}

/// Asks to take a deleted volume back.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RestoreRequest {
    /// The name that it gets; the one that it had where none is given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub name: Option<Name>,
}

/// A deleted volume, which is kept for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeletedVolume {
    /// The name that it had.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its id on this node.
    #[schema(value_type = String)]
    pub id: VolumeId,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it was deleted for, in words.
    pub note: String,
    /// When it was deleted.
    pub deleted_ms: u64,
    /// When it will be gone for good.
    pub expires_ms: u64,
    /// Bytes of journals that are kept for it alone.
    pub journal_bytes: u64,
}

/// A volume that was put back, and what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reverted {
    /// The volume.
    pub volume: Volume,
    /// What it was, as a deleted volume: it can be taken back.
    pub kept: DeletedVolume,
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
    /// Bytes of its tree that snapshots or other volumes hold as well; none where there is too much to count.
    #[serde(default)]
    pub shared_bytes: Option<u64>,
    /// Bytes of its tree that nothing else here holds; none where there is too much to count.
    #[serde(default)]
    pub own_bytes: Option<u64>,
    /// Bytes that its journals take on disk.
    pub journal_bytes: u64,
    /// Bytes of those that nothing else holds.
    #[serde(default)]
    pub own_journal_bytes: u64,
    /// Bytes of journals beyond which they are folded into its tree.
    #[serde(default)]
    pub journal_limit_bytes: u64,
    /// What is kept of its past, where it is protected.
    #[serde(default)]
    pub rewind: Option<Rewind>,
    /// When snapshots of it are taken by themselves, where they are.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// How many clients are connected to it.
    #[serde(default)]
    pub clients: u64,
    /// How many layers lie over its tree.
    pub layers: u64,
    /// The root of its tree.
    pub root: Option<String>,
}

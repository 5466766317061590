//! Snapshots: taking, importing, cloning and materializing them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use types::{ByteSize, Name, SnapshotId};
use utoipa::ToSchema;

use super::volume::Missing;

/// A machine's description, as its platform wrote it: kept with a snapshot and given back, and not understood here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Its media type, for example `application/vnd.brant.ganeti+json`.
    pub media_type: String,
    /// The description; what is no UTF-8 in it is replaced where it is shown.
    pub description: String,
}

/// Asks for a snapshot of volumes at one moment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TakeSnapshotRequest {
    /// The volumes.
    #[schema(value_type = Vec<String>)]
    pub volumes: Vec<Name>,
    /// Where the version goes: `BUCKET/OBJECT`.
    pub path: String,
    /// A note.
    #[serde(default)]
    pub message: String,
    /// What the disks are called in the snapshot, one name for each volume; where none are given, the disk of one volume has
    /// the object's name, and those of several have the volumes' names.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub disks: Vec<Name>,
    /// The machine whose disks they are; at most 64 KiB.
    #[serde(default)]
    pub machine: Option<Machine>,
}

/// The state of a snapshot here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotState {
    /// Usable here, not yet published: its content id is being computed.
    Sealing,
    /// It has its content id and is in the bucket's log.
    Sealed,
    /// Withdrawn.
    Retired,
}

/// A snapshot, as in a list: a version of an object in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// The bucket.
    #[schema(value_type = String)]
    pub bucket: Name,
    /// The object.
    #[schema(value_type = String)]
    pub object: Name,
    /// The version, from 1.
    pub version: u64,
    /// The snapshot's id, once it is sealed.
    #[schema(value_type = Option<String>)]
    pub id: Option<SnapshotId>,
    /// Its state here.
    pub state: SnapshotState,
    /// The sum of its disks' sizes, in bytes.
    pub size_bytes: u64,
    /// When it was taken.
    pub taken_ms: u64,
    /// A note.
    pub message: String,
    /// Whether a schedule took it, which may withdraw it again.
    #[serde(default)]
    pub scheduled: bool,
}

/// A disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskDetail {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The root of its tree; none while it is being sealed, or where the whole disk is a hole.
    pub root: Option<String>,
    /// What is not here yet.
    pub missing: Missing,
}

/// A snapshot, in detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// The snapshot that it was derived from.
    #[schema(value_type = Option<String>)]
    pub base: Option<SnapshotId>,
    /// Its disks.
    pub disks: Vec<DiskDetail>,
    /// The machine whose disks they are, where it was described.
    #[serde(default)]
    pub machine: Option<Machine>,
}

/// The format of a foreign image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The plain bytes of the disk.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
    /// VirtualBox's.
    Vdi,
}

/// Whether room is shared with a local file, on a file system that can (XFS, btrfs), in the words of cp(1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Reflink {
    /// Where it can be.
    #[default]
    Auto,
    /// It must be, or nothing is done.
    Always,
    /// It is not.
    Never,
}

/// Where a foreign disk is read from.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceSpec {
    /// A file or device that the caller has opened and passed over the descriptor socket, which gave this ticket.
    Descriptor {
        /// The ticket.
        ticket: String,
        /// The file's name, for messages.
        name: String,
    },
    /// An NBD export.
    Nbd {
        /// Its URI.
        uri: String,
    },
}

/// Asks to read a foreign disk into a bucket.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImportRequest {
    /// Where from.
    pub source: SourceSpec,
    /// Its format; found out where it is not given.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// Where the version goes: `BUCKET/OBJECT`.
    pub path: String,
    /// A note.
    #[serde(default)]
    pub message: String,
    /// Whether the store shares the room of a raw file, and then keeps what is new uncompressed.
    #[serde(default)]
    pub reflink: Reflink,
}

/// Where a snapshot is written out to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetSpec {
    /// A new file or a device that the caller has opened for reading and writing and passed over the descriptor socket.
    Descriptor {
        /// The ticket.
        ticket: String,
        /// The file's name, for messages.
        name: String,
    },
    /// An NBD export.
    Nbd {
        /// Its URI.
        uri: String,
    },
}

/// Asks to write a snapshot or volume out to foreign storage.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MaterializeRequest {
    /// A volume's name, `BUCKET/OBJECT[@VERSION]`, or a snapshot id.
    pub snapshot: String,
    /// The disk of a snapshot that has several.
    #[serde(default)]
    pub disk: Option<String>,
    /// Where to.
    pub target: TargetSpec,
    /// The format to write; raw where it is not given.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// Whether a raw file shares the room of what the store has uncompressed.
    #[serde(default)]
    pub reflink: Reflink,
}

/// Asks for a volume that begins as a snapshot, or as what another volume is now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CloneRequest {
    /// `BUCKET/OBJECT[@VERSION]`, a snapshot id, a volume's name, or `VOLUME@MOMENT` of a protected volume, the moment as in
    /// RFC 3339.
    pub snapshot: String,
    /// The disk of a snapshot that has several.
    #[serde(default)]
    pub disk: Option<String>,
    /// The new volume's name.
    #[schema(value_type = String)]
    pub volume: Name,
    /// Its size in bytes, where it shall be larger than what it begins as; it cannot be smaller.
    #[serde(default)]
    #[schema(value_type = Option<u64>)]
    pub size_bytes: Option<ByteSize>,
    /// Its labels.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<Name, String>,
}

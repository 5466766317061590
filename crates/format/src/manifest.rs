//! Manifests: what a sealed snapshot consists of. The hash of a manifest's bytes is the snapshot's id.

use minicbor::{Decode, Encode};
use types::{CHUNK_BYTES, MAX_DISK_BYTES, Name, NodeId, SECTOR_BYTES, SnapshotId};

use crate::canonical::{CanonicalError, from_canonical, to_canonical};
use crate::hash::snapshot_id;

/// The version of manifests that is written.
pub const VERSION: u16 = 1;

/// The longest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: usize = 1 << 20;

/// The most disks in one snapshot.
pub const MAX_DISKS: usize = 64;

/// Bytes were not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the encoding of one.
    #[error(transparent)]
    Encoding(#[from] CanonicalError),
    /// Made by a later version of brant.
    #[error("manifest version {0} is newer than this brant understands")]
    Newer(u16),
    /// A value that cannot be.
    #[error("a manifest whose {0} cannot be")]
    Invalid(&'static str),
}

/// A snapshot: one or more disks at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Manifest {
    /// The version of this format.
    #[n(0)]
    pub version: u16,
    /// When the snapshot was taken, in milliseconds since 1970.
    #[n(1)]
    pub taken_ms: u64,
    /// The disks, at least one.
    #[n(2)]
    pub disks: Vec<Disk>,
    /// The snapshot that this one was derived from: whoever has it has most of this one.
    #[n(3)]
    pub base: Option<SnapshotId>,
    /// A note by whoever took it.
    #[n(4)]
    pub message: String,
    /// The machine's description, as its platform wrote it, with its media type.
    #[n(5)]
    pub machine: Option<Machine>,
}

/// One disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Disk {
    /// What the disk is called, unique in the snapshot.
    #[n(0)]
    pub name: Name,
    /// Its size in bytes, a multiple of 512.
    #[n(1)]
    pub size_bytes: u64,
    /// The size of its chunks in bytes.
    #[n(2)]
    pub chunk_bytes: u32,
    /// The root of its tree; `None` where the whole disk is a hole.
    #[n(3)]
    pub root: Option<NodeId>,
}

/// A machine's description.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Machine {
    /// Its media type, for example `application/vnd.brant.ganeti+json`.
    #[n(0)]
    pub media_type: String,
    /// The description itself.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub description: Vec<u8>,
}

impl Manifest {
    /// Encodes the manifest and names it.
    #[must_use]
    pub fn identify(&self) -> (SnapshotId, Vec<u8>) {
        let bytes = to_canonical(self);
        (snapshot_id(&bytes), bytes)
    }

    /// Decodes a manifest; any bytes may be given.
    ///
    /// # Errors
    /// Everything that [`Manifest::identify`] would not have written, and sizes that cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        // The version comes first, so that a newer manifest is told from a damaged one.
        let mut head = minicbor::Decoder::new(bytes);
        if let (Ok(Some(_)), Ok(version)) = (head.array(), head.u16())
            && version > VERSION
        {
            return Err(ManifestError::Newer(version));
        }
        let manifest: Self = from_canonical(bytes, MAX_MANIFEST_BYTES)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let invalid = |what| Err(ManifestError::Invalid(what));
        if self.version != VERSION {
            return invalid("version");
        }
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return invalid("number of disks");
        }
        for (position, disk) in self.disks.iter().enumerate() {
            if disk.size_bytes == 0 || disk.size_bytes > MAX_DISK_BYTES || disk.size_bytes % SECTOR_BYTES != 0 {
                return invalid("disk size");
            }
            if disk.chunk_bytes as usize != CHUNK_BYTES {
                return invalid("chunk size");
            }
            if self.disks[..position].iter().any(|other| other.name == disk.name) {
                return invalid("disk name");
            }
        }
        Ok(())
    }
}

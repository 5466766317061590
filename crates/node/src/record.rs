//! The node's root records: what it must know after any crash, in deterministic CBOR.
//!
//! They are records of the store, durable before anything is acknowledged. The catalog is derived from them. Their
//! names: `bucket/ID`, `snapshot/BUCKET/OBJECT/VERSION`, `attachment/TARGET`, `domain/OWNER`,
//! `labels/VOLUME`, `scrub/position`; those of a cluster are in `cluster/records.rs`.

use format::manifest::Machine;
use format::{CanonicalError, from_canonical, to_canonical};
use minicbor::{Decode, Encode};
use store::{ChunkStore, Domain, Domains, Origin, RootChange, StoreError};
use types::{BucketId, FrozenId, Name, NodeId, SnapshotId};

use crate::cluster::RemoteRecord;

const MAX_RECORD_BYTES: usize = 1 << 20;

/// A root record was not one.
#[derive(Debug, thiserror::Error)]
#[error("the record {name} is damaged")]
pub struct RecordError {
    name: String,
    #[source]
    source: CanonicalError,
}

/// A value that is kept as a root record.
pub(crate) trait Record: Encode<()> + for<'b> Decode<'b, ()> {
    /// Reads a record from its bytes.
    fn from_bytes(bytes: &[u8]) -> Result<Self, CanonicalError> {
        from_canonical(bytes, MAX_RECORD_BYTES)
    }

    /// The change that writes this record under a name.
    fn change(&self, name: String) -> RootChange {
        (name, Some(to_canonical(self)))
    }

    /// Writes this record, durably.
    fn write(&self, store: &dyn ChunkStore, name: String) -> Result<(), StoreError> {
        store.roots().apply(vec![self.change(name)])
    }

    /// Reads a record by its name.
    fn read(store: &dyn ChunkStore, name: String) -> Result<Option<Self>, RecordError> {
        let Some(bytes) = store.roots().get(&name) else { return Ok(None) };
        match Self::from_bytes(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(source) => Err(RecordError { name, source }),
        }
    }

    /// Reads all records under a prefix, by what follows it in their names.
    fn read_all(store: &dyn ChunkStore, prefix: &str) -> Result<Vec<(String, Self)>, RecordError> {
        let decode = |(name, bytes): (String, Vec<u8>)| match Self::from_bytes(&bytes) {
            Ok(record) => Ok((name[prefix.len()..].to_owned(), record)),
            Err(source) => Err(RecordError { name, source }),
        };
        store.roots().list(prefix).into_iter().map(decode).collect()
    }
}

/// A bucket that this node knows.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct BucketRecord {
    /// Its name here.
    #[n(0)]
    pub(crate) name: Name,
    /// The trust domain of its data.
    #[n(1)]
    pub(crate) domain: u32,
    /// Where this node publishes it.
    #[n(2)]
    pub(crate) published: Option<String>,
    /// Where this node follows it.
    #[n(3)]
    pub(crate) subscribed: Option<SubscribedRecord>,
}

/// How a bucket is followed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SubscribedRecord {
    /// The reference.
    #[n(0)]
    pub(crate) reference: String,
    /// How much of it is brought.
    #[n(1)]
    pub(crate) policy: PolicyRecord,
}

/// [`crate::api::Policy`], as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum PolicyRecord {
    #[n(0)]
    Tree,
    #[n(1)]
    Lazy,
    #[n(2)]
    Full,
}

/// A version that this node took or imported.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SnapshotRecord {
    /// When it was taken.
    #[n(0)]
    pub(crate) taken_ms: u64,
    /// A note.
    #[n(1)]
    pub(crate) message: String,
    /// Its disks.
    #[n(2)]
    pub(crate) disks: Vec<DiskRecord>,
    /// Where its data may be found.
    #[n(3)]
    pub(crate) domains: Vec<u32>,
    /// What it was derived from.
    #[n(4)]
    pub(crate) base: Option<SnapshotId>,
    /// Its id, once every disk is sealed and the manifest is stored.
    #[n(5)]
    pub(crate) snapshot: Option<SnapshotId>,
    /// The machine whose disks they are.
    #[n(6)]
    pub(crate) machine: Option<Machine>,
}

/// A disk of such a version.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct DiskRecord {
    /// Its name in the snapshot.
    #[n(0)]
    pub(crate) name: Name,
    /// Its size in bytes.
    #[n(1)]
    pub(crate) size_bytes: u64,
    /// The frozen layers, until the disk is sealed.
    #[n(2)]
    pub(crate) frozen: Option<FrozenId>,
    /// The root of its tree, once it is sealed; `None` then means a hole.
    #[n(3)]
    pub(crate) root: Option<NodeId>,
    /// Where absent parts can be asked for.
    #[n(4)]
    pub(crate) origin: Option<OriginRecord>,
}

/// [`Origin`], as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct OriginRecord {
    #[n(0)]
    pub(crate) snapshot: SnapshotId,
    #[n(1)]
    pub(crate) disk: u32,
}

/// An attachment, which comes back by itself after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct AttachmentRecord {
    /// What is attached: a volume's name, a snapshot's path with its version, or a snapshot id.
    #[n(0)]
    pub(crate) target: String,
    /// The disk of a snapshot that has several.
    #[n(1)]
    pub(crate) disk: Option<String>,
    /// Where it listens, as `IP:PORT`, `unix:PATH` or `fd:NAME`; at a unix socket in the node's directory where it is not said.
    #[n(2)]
    pub(crate) listen: Option<String>,
    /// After how long a read of what nobody has fails.
    #[n(3)]
    pub(crate) read_timeout_ms: Option<u64>,
    /// The directory of the certificates, where TLS is used.
    #[n(4)]
    pub(crate) tls_certificates: Option<String>,
    /// Whether clients without TLS are served beside those with it.
    #[n(5)]
    pub(crate) plain_allowed: Option<bool>,
    /// How it is a device of the kernel, if it is one.
    #[n(6)]
    pub(crate) kernel: Option<KernelRecord>,
    /// That it is a volume of another member of the cluster.
    #[n(7)]
    pub(crate) remote: Option<RemoteRecord>,
}

/// How something is a device of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum KernelRecord {
    /// A loop device over a file that is served by FUSE.
    #[n(0)]
    Fuse {
        /// The loop device's number, which it has again where that is free.
        #[n(0)]
        number: u32,
    },
}

/// The number of a trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct DomainRecord {
    #[n(0)]
    pub(crate) number: u32,
}

/// The labels of a volume, whose id its name says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LabelsRecord {
    #[n(0)]
    pub(crate) labels: std::collections::BTreeMap<Name, String>,
}

/// How far the scrub is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ScrubRecord {
    /// The pack up to which everything was read; 0 where none is under way.
    #[n(0)]
    pub(crate) after: u32,
    /// When the last one ended.
    #[n(1)]
    pub(crate) ended_ms: u64,
}

impl Record for ScrubRecord {}
impl Record for BucketRecord {}
impl Record for SnapshotRecord {}
impl Record for AttachmentRecord {}
impl Record for DomainRecord {}
impl Record for LabelsRecord {}

/// Trust domains by their numbers; this node's own where there are none.
pub(crate) fn domains_of(numbers: &[u32]) -> Domains {
    let domains: Vec<Domain> = numbers.iter().copied().map(Domain).collect();
    if domains.is_empty() { Domain::OWN.into() } else { Domains::new(&domains) }
}

impl SnapshotRecord {
    /// The name of the record of a version.
    pub(crate) fn name(bucket: BucketId, object: &Name, version: u64) -> String {
        format!("snapshot/{bucket}/{object}/{version:020}")
    }

    /// Where its data may be found.
    pub(crate) fn domains(&self) -> Domains {
        domains_of(&self.domains)
    }

    /// The sum of its disks' sizes, in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size_bytes).sum()
    }
}

impl From<Origin> for OriginRecord {
    fn from(origin: Origin) -> Self {
        Self { snapshot: origin.snapshot, disk: origin.disk }
    }
}

impl From<OriginRecord> for Origin {
    fn from(record: OriginRecord) -> Self {
        Self { snapshot: record.snapshot, disk: record.disk }
    }
}

//! The node's root records: what it must know after any crash, in deterministic CBOR.
//!
//! They are records of the store, durable before anything is acknowledged. The catalog is derived from them. Their
//! names: `bucket/ID`, `snapshot/BUCKET/OBJECT/VERSION`, `attachment/TARGET`, `domain/OWNER`,
//! `labels/VOLUME`, `schedule/VOLUME`, `scrub/position`; those of a cluster are in `cluster/records.rs`.

use cluster::message::Schedule;
use format::manifest::Machine;
use format::{CanonicalError, from_canonical, to_canonical};
use minicbor::{Decode, Encode};
use store::{ChunkStore, Domain, Domains, Origin, RootChange, StoreError};
use types::{BucketId, FrozenId, JournalId, Keep, Name, NodeId, SnapshotId};
use volume::Position;

use crate::api::Transport;
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
    /// That a schedule took it, which may withdraw it again.
    #[n(7)]
    pub(crate) scheduled: Option<bool>,
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
    /// That it is served by vhost-user, and how.
    #[n(8)]
    pub(crate) vhost_user: Option<VhostUserRecord>,
}

/// How something is served by vhost-user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct VhostUserRecord {
    /// Whether a guest has turned the write cache off: who takes over from a dead node is not told again.
    #[n(0)]
    pub(crate) write_through: bool,
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
    /// A device of the kernel's own NBD driver.
    #[n(1)]
    Nbd {
        /// Its number, which it has again where that is free.
        #[n(0)]
        number: u32,
    },
    /// A device of the kernel's ublk driver.
    #[n(2)]
    Ublk {
        /// Its number, which it has again where that is free.
        #[n(0)]
        number: u32,
    },
}

impl KernelRecord {
    /// The record of a device with a number; nothing where the transport makes none.
    pub(crate) fn of(transport: Transport, number: u32) -> Option<Self> {
        match transport {
            Transport::Nbd | Transport::VhostUser => None,
            Transport::Fuse => Some(Self::Fuse { number }),
            Transport::NbdKernel => Some(Self::Nbd { number }),
            Transport::Ublk => Some(Self::Ublk { number }),
        }
    }

    /// In which way it is a device.
    pub(crate) fn transport(self) -> Transport {
        match self {
            Self::Fuse { .. } => Transport::Fuse,
            Self::Nbd { .. } => Transport::NbdKernel,
            Self::Ublk { .. } => Transport::Ublk,
        }
    }

    /// Its number.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Fuse { number } | Self::Nbd { number } | Self::Ublk { number } => number,
        }
    }
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

/// When snapshots of a volume are taken, whose id its name says, and what is kept of them.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ScheduleRecord {
    /// The bucket that they go to, by its name here.
    #[n(0)]
    pub(crate) bucket: Name,
    /// The object. Volumes with the same one are snapshotted together.
    #[n(1)]
    pub(crate) object: Name,
    /// What the disk is called in them, where that was said.
    #[n(2)]
    pub(crate) disk: Option<Name>,
    /// How often, in milliseconds.
    #[n(3)]
    pub(crate) every_ms: u64,
    /// Which are kept; all of them where nothing was said.
    #[n(4)]
    pub(crate) keep: Option<Keep>,
    /// Since when: there is none for what was before.
    #[n(5)]
    pub(crate) since_ms: u64,
    /// The last one that was taken here.
    #[n(6)]
    pub(crate) last: Option<ScheduledRecord>,
}

/// The last snapshot of a volume that its schedule took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ScheduledRecord {
    /// When.
    #[n(0)]
    pub(crate) taken_ms: u64,
    /// As which version.
    #[n(1)]
    pub(crate) version: u64,
    /// How far the volume had been written before: its journal, and the next number in it.
    #[n(2)]
    journal: JournalId,
    #[n(3)]
    sequence: u64,
    /// How large the volume was, in bytes.
    #[n(4)]
    pub(crate) size_bytes: u64,
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
impl Record for ScheduleRecord {}

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

impl ScheduleRecord {
    /// When the last snapshot was taken, or since when there shall be some.
    pub(crate) fn latest_ms(&self) -> u64 {
        self.last.map_or(self.since_ms, |last| last.taken_ms)
    }

    /// The schedule as it goes to another member. What was taken here stays here.
    pub(crate) fn to_message(&self) -> Schedule {
        let (latest_ms, Self { bucket, object, disk, every_ms, keep, .. }) = (self.latest_ms(), self.clone());
        Schedule { bucket, object, disk, every_ms, keep, latest_ms }
    }

    /// The schedule of a volume that was given to this node.
    pub(crate) fn of_message(schedule: Schedule) -> Self {
        let Schedule { bucket, object, disk, every_ms, keep, latest_ms } = schedule;
        Self { bucket, object, disk, every_ms: every_ms.max(1), keep, since_ms: latest_ms, last: None }
    }
}

impl ScheduledRecord {
    pub(crate) fn new(taken_ms: u64, version: u64, position: Position, size_bytes: u64) -> Self {
        Self { taken_ms, version, journal: position.journal, sequence: position.sequence, size_bytes }
    }

    /// How far the volume had been written.
    pub(crate) fn position(&self) -> Position {
        Position { journal: self.journal, sequence: self.sequence }
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

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// What a version of brant wrote, for ever.
    pub(crate) fn golden(file: &str, written: &[u8]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
        if std::env::var_os("BRANT_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, written).unwrap();
        }
        assert!(std::fs::read(&path).unwrap() == written, "what is written as {file} has changed");
    }

    fn disk() -> DiskRecord {
        let origin = Some(OriginRecord { snapshot: SnapshotId([4; 32]), disk: 1 });
        let root = Some(NodeId([3; 32]));
        DiskRecord { name: "disk0".parse().unwrap(), size_bytes: 1 << 30, frozen: None, root, origin }
    }

    /// [`SnapshotRecord`], as it was before machines were described and snapshots scheduled.
    #[derive(Encode, Decode)]
    struct SnapshotRecordAtFirst {
        #[n(0)]
        taken_ms: u64,
        #[n(1)]
        message: String,
        #[n(2)]
        disks: Vec<DiskRecord>,
        #[n(3)]
        domains: Vec<u32>,
        #[n(4)]
        base: Option<SnapshotId>,
        #[n(5)]
        snapshot: Option<SnapshotId>,
    }

    #[test]
    fn versions_that_were_taken_at_first_are_still_read() {
        for (file, snapshot) in [("snapshot-1.cbor", Some(SnapshotId([6; 32]))), ("snapshot-sealing-1.cbor", None)] {
            let written = to_canonical(&SnapshotRecordAtFirst {
                taken_ms: 1_790_000_000_000,
                message: "before the upgrade".to_owned(),
                disks: vec![disk()],
                domains: vec![0, 3],
                base: Some(SnapshotId([5; 32])),
                snapshot,
            });
            golden(file, &written);
            let read = SnapshotRecord::from_bytes(&written).unwrap();
            assert_eq!((read.snapshot, read.machine.as_ref(), read.scheduled), (snapshot, None, None));
            assert_eq!((read.taken_ms, &read.disks[..]), (1_790_000_000_000, &[disk()][..]));
            assert!(to_canonical(&read) == written, "and written as they were");
        }
    }

    #[test]
    fn versions_and_schedules_are_written_as_documented() {
        let record = SnapshotRecord {
            taken_ms: 1_790_000_000_000,
            message: "scheduled".to_owned(),
            disks: vec![disk()],
            domains: vec![0],
            base: None,
            snapshot: None,
            machine: Some(Machine { media_type: "text/plain".to_owned(), description: b"a machine".to_vec() }),
            scheduled: Some(true),
        };
        golden("snapshot-2.cbor", &to_canonical(&record));
        assert_eq!(SnapshotRecord::from_bytes(&to_canonical(&record)).unwrap(), record);
        let position = Position { journal: JournalId([7; 16]), sequence: 12 };
        let schedule = ScheduleRecord {
            bucket: "vms".parse().unwrap(),
            object: "web1".parse().unwrap(),
            disk: Some("disk0".parse().unwrap()),
            every_ms: 3_600_000,
            keep: "3,24h,7d,4w".parse().ok(),
            since_ms: 1_790_000_000_000,
            last: Some(ScheduledRecord::new(1_790_003_600_000, 9, position, 1 << 30)),
        };
        let written = to_canonical(&schedule);
        golden("schedule-1.cbor", &written);
        assert_eq!(ScheduleRecord::from_bytes(&written).unwrap(), schedule);
        for length in 0..written.len() {
            assert!(ScheduleRecord::from_bytes(&written[..length]).is_err());
        }
    }

    #[test]
    fn attachments_say_how_they_are_visible() {
        let of = |kernel| AttachmentRecord {
            target: "web".to_owned(),
            disk: None,
            listen: None,
            read_timeout_ms: None,
            tls_certificates: None,
            plain_allowed: None,
            kernel: KernelRecord::of(kernel, 3),
            remote: None,
            vhost_user: (kernel == Transport::VhostUser).then_some(VhostUserRecord { write_through: true }),
        };
        let ways = [("fuse", Transport::Fuse), ("nbd", Transport::NbdKernel), ("ublk", Transport::Ublk)];
        for (file, transport) in ways {
            let bytes = to_canonical(&of(transport));
            golden(&format!("attachment-{file}-1.cbor"), &bytes);
            let read = AttachmentRecord::from_bytes(&bytes).unwrap();
            assert_eq!(read, of(transport));
            assert_eq!(read.kernel.map(|kernel| (kernel.transport(), kernel.number())), Some((transport, 3)));
        }
        assert_eq!(of(Transport::Nbd).kernel, None);
        let shared = to_canonical(&of(Transport::VhostUser));
        golden("attachment-vhost-user-1.cbor", &shared);
        assert_eq!(AttachmentRecord::from_bytes(&shared).unwrap(), of(Transport::VhostUser));
    }
}

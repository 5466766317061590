//! The root records of volumes, layers and frozen disks: what survives of them beside the journals.
//!
//! All are canonical CBOR with the version first (`docs/format.md`, "Journal and layers"). Layers are listed newest
//! first; the first of a volume is its open one.

use std::fmt::Display;

use format::{from_canonical, to_canonical};
use minicbor::{Decode, Encode};
use store::{Domain, Domains, Origin, RootChange};
use types::{FrozenId, JournalId, LayerId, MAX_DISK_BYTES, Name, NodeId, SECTOR_BYTES, SnapshotId, VolumeId};

use crate::base::TreeBase;
use crate::error::VolumeError;

/// The version of all these records but those of layers. Version 1 had no deleted volumes, and is read as well.
pub(crate) const VERSION: u8 = 2;

/// The version of the records of layers.
pub(crate) const LAYER_VERSION: u8 = 3;

/// The longest record, in bytes: what the store allows.
const MAX_RECORD_BYTES: usize = 1 << 20;

pub(crate) const VOLUME_PREFIX: &str = "volume/";
pub(crate) const LAYER_PREFIX: &str = "layer/";
pub(crate) const FROZEN_PREFIX: &str = "frozen/";
pub(crate) const JOURNAL_PREFIX: &str = "journal/";
pub(crate) const PROTECTION_PREFIX: &str = "protection/";
pub(crate) const HISTORY_PREFIX: &str = "history/";

pub(crate) fn volume_name(id: VolumeId) -> String {
    name(VOLUME_PREFIX, id)
}

pub(crate) fn layer_name(id: LayerId) -> String {
    name(LAYER_PREFIX, id)
}

pub(crate) fn frozen_name(id: FrozenId) -> String {
    name(FROZEN_PREFIX, id)
}

pub(crate) fn journal_name(id: JournalId) -> String {
    name(JOURNAL_PREFIX, id)
}

pub(crate) fn protection_name(id: VolumeId) -> String {
    name(PROTECTION_PREFIX, id)
}

/// The name of the record of a layer of a volume's past; they are numbered in order.
pub(crate) fn history_name(id: VolumeId, number: u64) -> String {
    format!("{HISTORY_PREFIX}{id}/{number:016x}")
}

/// Whose past a record is of, and its number.
pub(crate) fn history_of(name: &str) -> Option<(VolumeId, u64)> {
    let (id, number) = name.strip_prefix(HISTORY_PREFIX)?.split_once('/')?;
    Some((id.parse().ok()?, u64::from_str_radix(number, 16).ok()?))
}

fn name(prefix: &str, id: impl Display) -> String {
    format!("{prefix}{id}")
}

/// A tree, as a volume or frozen disk keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct BaseRecord {
    #[n(0)]
    size_bytes: u64,
    #[n(1)]
    root: Option<NodeId>,
    #[n(2)]
    origin: Option<OriginRecord>,
    #[n(3)]
    domains: Vec<u32>,
    #[n(4)]
    written: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct OriginRecord {
    #[n(0)]
    snapshot: SnapshotId,
    #[n(1)]
    disk: u32,
}

impl From<&TreeBase> for BaseRecord {
    fn from(base: &TreeBase) -> Self {
        Self {
            size_bytes: base.size_bytes,
            root: base.root,
            origin: base.origin.map(|origin| OriginRecord { snapshot: origin.snapshot, disk: origin.disk }),
            domains: base.domains.iter().map(|domain| domain.0).collect(),
            written: base.written.0,
        }
    }
}

impl BaseRecord {
    /// The tree, or what is wrong with it.
    fn base(&self) -> Result<TreeBase, &'static str> {
        if !self.domains.contains(&self.written) {
            return Err("what is written to it belongs to a trust domain that it is not read in");
        }
        if !is_disk_size(self.size_bytes) {
            return Err("its tree has an impossible size");
        }
        Ok(TreeBase {
            size_bytes: self.size_bytes,
            root: self.root,
            origin: self.origin.as_ref().map(|origin| Origin { snapshot: origin.snapshot, disk: origin.disk }),
            domains: Domains::new(&self.domains.iter().map(|domain| Domain(*domain)).collect::<Vec<_>>()),
            written: Domain(self.written),
        })
    }
}

/// Whether a disk may have so many bytes.
pub(crate) fn is_disk_size(size_bytes: u64) -> bool {
    size_bytes > 0 && size_bytes <= MAX_DISK_BYTES && size_bytes.is_multiple_of(SECTOR_BYTES)
}

/// A tree and the layers over it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StackRecord {
    #[n(0)]
    pub(crate) size_bytes: u64,
    #[n(1)]
    pub(crate) base: BaseRecord,
    #[n(2)]
    pub(crate) layers: Vec<LayerId>,
}

impl StackRecord {
    /// The tree, after checking what can be checked of a record alone.
    pub(crate) fn check(&self, name: &str) -> Result<TreeBase, VolumeError> {
        let contradiction = |what| VolumeError::Contradiction { name: name.to_owned(), what };
        let base = self.base.base().map_err(contradiction)?;
        if !is_disk_size(self.size_bytes) || self.size_bytes < base.size_bytes {
            return Err(contradiction("it has an impossible size"));
        }
        Ok(base)
    }
}

/// `volume/<id>`
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct VolumeRecord {
    #[n(0)]
    pub(crate) version: u8,
    #[n(1)]
    pub(crate) name: Name,
    #[n(2)]
    pub(crate) stack: StackRecord,
    /// When and why it was deleted; it is kept for a while, so that it can be taken back.
    #[n(3)]
    pub(crate) deleted: Option<DeletedRecord>,
    /// When it was made here, in milliseconds since 1970.
    #[n(4)]
    pub(crate) born_ms: Option<u64>,
}

/// That a volume was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct DeletedRecord {
    /// When, in milliseconds since 1970.
    #[n(0)]
    pub(crate) at_ms: u64,
    /// What it was deleted for, in words.
    #[n(1)]
    pub(crate) note: String,
}

/// `frozen/<id>`
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct FrozenRecord {
    #[n(0)]
    pub(crate) version: u8,
    #[n(1)]
    pub(crate) stack: StackRecord,
}

/// `protection/<VolumeId>`: what is written to a volume is kept.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ProtectionRecord {
    #[n(0)]
    pub(crate) version: u8,
    /// For how long, in milliseconds.
    #[n(1)]
    pub(crate) for_ms: u64,
    /// The earliest moment that can be cloned, in milliseconds since 1970.
    #[n(2)]
    pub(crate) since_ms: u64,
    /// In how much space at most, in bytes.
    #[n(3)]
    pub(crate) space_bytes: Option<u64>,
}

/// `history/<VolumeId>/<number>`: a layer of a protected volume's past.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct HistoryRecord {
    #[n(0)]
    pub(crate) version: u8,
    /// The disk before it.
    #[n(1)]
    pub(crate) before: StackRecord,
    /// When it began, in milliseconds since 1970.
    #[n(2)]
    pub(crate) from_ms: u64,
    /// When it ended.
    #[n(3)]
    pub(crate) to_ms: u64,
    /// How long its records are, in bytes.
    #[n(4)]
    pub(crate) bytes: u64,
    /// The layer, with all its records; `None` where nothing was written.
    #[n(5)]
    pub(crate) layer: Option<LayerId>,
}

/// `layer/<id>`: a range of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LayerRecord {
    #[n(0)]
    pub(crate) version: u8,
    /// The journal that its records lie in.
    #[n(1)]
    pub(crate) journal: JournalId,
    /// The sequence number of its first record, if it gets one.
    #[n(2)]
    pub(crate) first_sequence: u64,
    /// The sequence number of its last record; `None` while it grows.
    #[n(3)]
    pub(crate) last_sequence: Option<u64>,
}

/// `layer/<id>` of versions 1 and 2: a layer with a journal of its own, in one file.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct FileLayerRecord {
    #[n(0)]
    pub(crate) version: u8,
    /// What the journal's checksums are keyed with.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(crate) secret: [u8; 32],
    /// The sequence number of its first record, if it gets one.
    #[n(2)]
    pub(crate) first_sequence: u64,
    /// Where the journal ends; `None` while it grows.
    #[n(3)]
    pub(crate) end: Option<JournalEnd>,
}

impl std::fmt::Debug for FileLayerRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileLayerRecord").field("end", &self.end).finish_non_exhaustive()
    }
}

/// A layer's record of either version.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AnyLayerRecord {
    File(FileLayerRecord),
    Range(LayerRecord),
}

/// `journal/<id>`: what a frozen layer needs of a journal, and what its checksums are keyed with.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct JournalRecord {
    #[n(0)]
    pub(crate) version: u8,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(crate) secret: [u8; 32],
    /// Segments that must be found again as they are described.
    #[n(2)]
    pub(crate) segments: Vec<SegmentRecord>,
}

impl std::fmt::Debug for JournalRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalRecord").field("segments", &self.segments).finish_non_exhaustive()
    }
}

/// A segment, as far as it was durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct SegmentRecord {
    #[n(0)]
    pub(crate) number: u32,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(crate) generation: [u8; 16],
    /// Where a record in it ends, in bytes.
    #[n(2)]
    pub(crate) end: u64,
    /// How much before that is in no record, in bytes.
    #[n(3)]
    pub(crate) torn_bytes: u64,
    /// The lowest and the highest sequence number in it.
    #[n(4)]
    pub(crate) first_sequence: u64,
    #[n(5)]
    pub(crate) last_sequence: u64,
}

/// Where a frozen layer ends that has a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct JournalEnd {
    /// Its length, in bytes.
    #[n(0)]
    pub(crate) bytes: u64,
    /// The sequence number of its last record.
    #[n(1)]
    pub(crate) sequence: u64,
    /// How much of it is in no record that counts, in bytes.
    #[n(2)]
    pub(crate) torn_bytes: u64,
}

/// Encodes a record as a change to the roots.
pub(crate) fn put<T: Encode<()>>(name: String, record: &T) -> RootChange {
    (name, Some(to_canonical(record)))
}

/// Decodes a record; a newer one is told from a damaged one.
pub(crate) fn decode<T>(name: &str, bytes: &[u8]) -> Result<T, VolumeError>
where
    T: Encode<()> + for<'b> Decode<'b, ()>,
{
    check_version(name, bytes, VERSION)?;
    decode_any(name, bytes)
}

/// Decodes the record of a layer, of either version.
pub(crate) fn decode_layer(name: &str, bytes: &[u8]) -> Result<AnyLayerRecord, VolumeError> {
    match check_version(name, bytes, LAYER_VERSION)? {
        LAYER_VERSION => decode_any(name, bytes).map(AnyLayerRecord::Range),
        _ => decode_any(name, bytes).map(AnyLayerRecord::File),
    }
}

/// The version of a record, 0 where it has none; a newer one than is known is refused.
fn check_version(name: &str, bytes: &[u8], known: u8) -> Result<u8, VolumeError> {
    let mut head = minicbor::Decoder::new(bytes);
    let (Ok(Some(_)), Ok(version)) = (head.array(), head.u8()) else { return Ok(0) };
    if version > known {
        return Err(VolumeError::Newer { path: name.into(), version });
    }
    Ok(version)
}

fn decode_any<T>(name: &str, bytes: &[u8]) -> Result<T, VolumeError>
where
    T: Encode<()> + for<'b> Decode<'b, ()>,
{
    from_canonical(bytes, MAX_RECORD_BYTES).map_err(|source| VolumeError::Record { name: name.to_owned(), source })
}

/// The id in a record's name.
pub(crate) fn id_of<T: std::str::FromStr>(prefix: &str, name: &str) -> Result<T, VolumeError> {
    let id = name.strip_prefix(prefix).and_then(|id| id.parse().ok());
    id.ok_or_else(|| VolumeError::Contradiction { name: name.to_owned(), what: "its name is not an id" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack() -> StackRecord {
        let base = TreeBase {
            size_bytes: 1 << 30,
            root: Some(NodeId([3; 32])),
            origin: Some(Origin { snapshot: SnapshotId([4; 32]), disk: 2 }),
            domains: Domains::new(&[Domain::OWN, Domain::PUBLIC]),
            written: Domain::OWN,
        };
        StackRecord { size_bytes: 1 << 31, base: (&base).into(), layers: vec![LayerId([5; 16]), LayerId([6; 16])] }
    }

    fn check_golden(name: &str, bytes: &[u8]) {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
        if std::env::var_os("BRANT_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, bytes).unwrap();
        }
        assert!(std::fs::read(&golden).unwrap() == bytes, "the encoding in {name} has changed");
    }

    #[test]
    fn golden_of_when_a_volume_was_made() {
        let (name, version) = ("web-1".parse().unwrap(), VERSION);
        let volume = VolumeRecord { version, name, stack: stack(), deleted: None, born_ms: Some(1_790_000_000_000) };
        let bytes = to_canonical(&volume);
        assert_eq!(decode::<VolumeRecord>("volume/x", &bytes).unwrap(), volume);
        check_golden("volume-born.cbor", &bytes);
    }

    /// The bytes of a version, for ever.
    fn golden(version: u8, deleted: Option<DeletedRecord>) {
        let volume = VolumeRecord { version, name: "web-1".parse().unwrap(), stack: stack(), deleted, born_ms: None };
        let frozen = FrozenRecord { version, stack: stack() };
        let end = Some(JournalEnd { bytes: 640, sequence: 9, torn_bytes: 64 });
        let layer = FileLayerRecord { version, secret: [7; 32], first_sequence: 4, end };
        let (volume_bytes, frozen_bytes) = (to_canonical(&volume), to_canonical(&frozen));
        let layer_bytes = to_canonical(&layer);
        assert_eq!(decode::<VolumeRecord>("volume/x", &volume_bytes).unwrap(), volume);
        assert_eq!(decode::<FrozenRecord>("frozen/x", &frozen_bytes).unwrap(), frozen);
        assert_eq!(decode_layer("layer/x", &layer_bytes).unwrap(), AnyLayerRecord::File(layer));
        check_golden(&format!("roots-v{version}.cbor"), &[volume_bytes, frozen_bytes, layer_bytes].concat());
    }

    #[test]
    fn golden_files() {
        golden(1, None);
        golden(2, Some(DeletedRecord { at_ms: 1_763_877_012_345, note: "removed".to_owned() }));
    }

    /// The bytes of layers of version 3 and of their journals, for ever.
    #[test]
    fn golden_of_journals() {
        let segment = SegmentRecord {
            number: 3,
            generation: [9; 16],
            end: 640,
            torn_bytes: 64,
            first_sequence: 4,
            last_sequence: 9,
        };
        let journal = JournalRecord { version: 2, secret: [7; 32], segments: vec![segment] };
        let layer =
            |last_sequence| LayerRecord { version: 3, journal: JournalId([5; 16]), first_sequence: 4, last_sequence };
        let (open, frozen, journal_bytes) =
            (to_canonical(&layer(None)), to_canonical(&layer(Some(9))), to_canonical(&journal));
        assert_eq!(decode_layer("layer/x", &open).unwrap(), AnyLayerRecord::Range(layer(None)));
        assert_eq!(decode_layer("layer/x", &frozen).unwrap(), AnyLayerRecord::Range(layer(Some(9))));
        assert_eq!(decode::<JournalRecord>("journal/x", &journal_bytes).unwrap(), journal);
        check_golden("layers-v3.cbor", &[open, frozen, journal_bytes].concat());
        let newer = LayerRecord { version: LAYER_VERSION + 1, ..layer(None) };
        let result = decode_layer("layer/x", &to_canonical(&newer));
        assert!(matches!(result, Err(VolumeError::Newer { version: 4, .. })));
    }

    /// The bytes of a volume's past, for ever.
    #[test]
    fn golden_of_history() {
        let protection =
            ProtectionRecord { version: 2, for_ms: 7_200_000, since_ms: 1_763_877_012_345, space_bytes: Some(1 << 30) };
        let history = HistoryRecord {
            version: 2,
            before: stack(),
            from_ms: 1_763_877_012_345,
            to_ms: 1_763_877_013_000,
            bytes: 4160,
            layer: Some(LayerId([8; 16])),
        };
        let (protection_bytes, history_bytes) = (to_canonical(&protection), to_canonical(&history));
        assert_eq!(decode::<ProtectionRecord>("protection/x", &protection_bytes).unwrap(), protection);
        assert_eq!(decode::<HistoryRecord>("history/x", &history_bytes).unwrap(), history);
        check_golden("history-v2.cbor", &[protection_bytes, history_bytes].concat());
    }

    #[test]
    fn a_past_is_named_by_volume_and_number() {
        let name = history_name(VolumeId([7; 16]), 300);
        assert_eq!(history_of(&name), Some((VolumeId([7; 16]), 300)));
        for bad in ["history/07", "history/x/1", "frozen/x", "history/07070707070707070707070707070707/zz"] {
            assert_eq!(history_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(stack().check("x").is_ok());
        let bad = |change: fn(&mut StackRecord)| {
            let mut stack = stack();
            change(&mut stack);
            stack.check("x").is_err()
        };
        assert!(bad(|stack| stack.size_bytes = 1 << 29));
        assert!(bad(|stack| stack.size_bytes = 1000));
        assert!(bad(|stack| stack.base.domains.clear()));
        assert!(bad(|stack| stack.base.size_bytes = 0));
        let newer = FrozenRecord { version: VERSION + 1, stack: stack() };
        let result = decode::<FrozenRecord>("frozen/x", &to_canonical(&newer));
        assert!(matches!(result, Err(VolumeError::Newer { version: 3, .. })));
        assert!(decode::<FrozenRecord>("frozen/x", b"\xff").is_err());
    }
}

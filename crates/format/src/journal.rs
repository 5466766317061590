//! Records of a journal: what a guest wrote, in order, each bound to its place by a secret.
//!
//! A record is a header of 64 bytes, followed by the data where there are any. Both checksums are keyed with the
//! volume's secret, and the header's covers where it stands: the segment with its generation, and the position in it. So
//! neither guest data that look like a record, nor a true record copied elsewhere, nor what a file held before it was
//! used again, are ever taken for one. The layout is in `docs/format.md`, "Journal and layers". Nothing here does I/O:
//! positions and times come in as arguments.

mod segment;

use highway::{HighwayHash, HighwayHasher, Key};
use types::{JournalId, LayerId, MAX_DISK_BYTES, SECTOR_BYTES};

pub use segment::{
    FOOTER_ENTRY_BYTES, FooterEntry, MAX_FOOTER_ENTRIES, SegmentHeader, decode_footer, encode_footer, footer_entries,
};

/// The version of journals that is written.
pub const VERSION: u8 = 2;

/// The version whose layers each had a file of their own; it is read, and not written any more.
const VERSION_OF_FILES: u8 = 1;

/// The length of a record's header, and of the file's, in bytes. Every record begins at a multiple of it.
pub const HEADER_BYTES: usize = 64;

/// The length of what a segment begins with, in bytes: its header, and once more with where its records end.
pub const SEGMENT_HEAD_BYTES: usize = 2 * HEADER_BYTES;

/// The most data in one record, in bytes.
pub const MAX_DATA_BYTES: usize = 32 << 20;

/// The length of the checksum of a record's data, in bytes.
pub const DATA_CHECKSUM_BYTES: usize = 16;

const FILE_MAGIC: [u8; 8] = *b"brantjnl";
const RECORD_MAGIC: [u8; 4] = *b"bjrc";
/// Where the header's own checksum begins; it covers what is before it.
const COVERED_BYTES: usize = HEADER_BYTES - 8;

/// A segment of a journal: a file, as long as it is used for the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentId {
    /// Whose it is.
    pub journal: JournalId,
    /// Its number in the journal.
    pub number: u32,
    /// Random: tells what is written now from what the file held before.
    pub generation: [u8; 16],
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In the file of a layer (version 1).
    Layer(LayerId),
    /// In a segment (version 2).
    Segment(SegmentId),
}

impl Home {
    /// Where the first record stands.
    #[must_use]
    pub fn first_record(&self) -> u64 {
        match self {
            Self::Layer(_) => HEADER_BYTES as u64,
            Self::Segment(_) => SEGMENT_HEAD_BYTES as u64,
        }
    }

    /// The version of what is written there.
    #[must_use]
    pub fn version(&self) -> u8 {
        match self {
            Self::Layer(_) => VERSION_OF_FILES,
            Self::Segment(_) => VERSION,
        }
    }
}

/// Bytes were not a record of this journal at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Too short for a header, or for the data that the header promises.
    #[error("a journal record that is cut short")]
    Short,
    /// No record begins here.
    #[error("no journal record")]
    Magic,
    /// A version that this brant does not know.
    #[error("a journal of version {0}")]
    Version(u8),
    /// The header was damaged, forged, or copied from elsewhere.
    #[error("a journal record whose header does not have its checksum")]
    HeaderChecksum,
    /// The data were damaged or never completely written.
    #[error("a journal record whose data do not have their checksum")]
    DataChecksum,
    /// A value that is never written.
    #[error("a journal record whose {0} cannot be")]
    Invalid(&'static str),
}

/// What a record does to a range of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// Writes the data that follow.
    Write = 1,
    /// Makes it zero.
    Zero = 2,
    /// Makes it zero because it is not needed any more.
    Discard = 3,
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it does.
    pub kind: RecordKind,
    /// Its number in the volume, ascending.
    pub sequence: u64,
    /// When it was written, in milliseconds since 1970.
    pub time_ms: u64,
    /// The first sector.
    pub sector: u64,
    /// How many sectors, at least one.
    pub sectors: u64,
    /// The checksum of the data that follow; zero where none follow.
    pub data_checksum: [u8; DATA_CHECKSUM_BYTES],
}

impl Record {
    /// The length of the data that follow the header, in bytes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        if self.kind == RecordKind::Write { self.sectors * SECTOR_BYTES } else { 0 }
    }

    fn check(&self) -> Result<(), RecordError> {
        let invalid = |what| Err(RecordError::Invalid(what));
        let last = self.sector.checked_add(self.sectors);
        if self.sectors == 0 || last.is_none_or(|last| last > MAX_DISK_BYTES / SECTOR_BYTES) {
            return invalid("range");
        }
        if self.kind == RecordKind::Write {
            if self.sectors > MAX_DATA_BYTES as u64 / SECTOR_BYTES {
                return invalid("length");
            }
        } else if self.data_checksum != [0; DATA_CHECKSUM_BYTES] {
            return invalid("checksum of no data");
        }
        Ok(())
    }
}

/// The keys that a volume's records are sealed with, derived from its secret.
#[derive(Clone)]
pub struct JournalKeys {
    /// Of version 1.
    header_of_files: [u8; 32],
    /// Of version 1.
    data_of_files: [u8; 32],
    header: Key,
    data: Key,
    segment: Key,
}

impl std::fmt::Debug for JournalKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JournalKeys(…)")
    }
}

impl JournalKeys {
    /// Derives the keys from a volume's random secret.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        let key = |context| {
            let bytes = blake3::derive_key(context, secret);
            Key(std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|byte| bytes[8 * word + byte]))))
        };
        Self {
            header_of_files: blake3::derive_key("brant 2026-11 journal record header v1", secret),
            data_of_files: blake3::derive_key("brant 2026-11 journal record data v1", secret),
            header: key("brant 2026-11 journal record header v2"),
            data: key("brant 2026-11 journal record data v2"),
            segment: key("brant 2026-11 journal segment v2"),
        }
    }

    /// Computes the checksum of the data of a record in a segment.
    #[must_use]
    pub fn data_checksum(&self, data: &[u8]) -> [u8; DATA_CHECKSUM_BYTES] {
        words(HighwayHasher::new(self.data).hash128(data))
    }

    /// Begins the checksum of data that come piece by piece, for a record that stands somewhere.
    #[must_use]
    pub fn data_hasher(&self, home: &Home) -> DataHasher {
        DataHasher(match home {
            Home::Layer(_) => Hasher::Blake3(Box::new(blake3::Hasher::new_keyed(&self.data_of_files))),
            Home::Segment(_) => Hasher::Highway(Box::new(HighwayHasher::new(self.data))),
        })
    }

    /// Encodes the header of a record that begins at a position.
    #[must_use]
    pub fn encode(&self, home: &Home, position: u64, record: &Record) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4] = home.version();
        bytes[5] = record.kind as u8;
        for (place, number) in [(8, record.sequence), (16, record.time_ms), (24, record.sector), (32, record.sectors)] {
            bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[40..COVERED_BYTES].copy_from_slice(&record.data_checksum);
        let checksum = self.header_checksum(home, position, &bytes);
        bytes[COVERED_BYTES..].copy_from_slice(&checksum);
        bytes
    }

    /// Decodes the header of a record at a position; any bytes may be given.
    ///
    /// # Errors
    /// Everything that [`JournalKeys::encode`] would not have written there.
    pub fn decode_header(&self, home: &Home, position: u64, bytes: &[u8; HEADER_BYTES]) -> Result<Record, RecordError> {
        if bytes[..4] != RECORD_MAGIC {
            return Err(RecordError::Magic);
        }
        if bytes[COVERED_BYTES..] != self.header_checksum(home, position, bytes) {
            return Err(RecordError::HeaderChecksum);
        }
        if bytes[4] != home.version() {
            return Err(RecordError::Version(bytes[4]));
        }
        decode_fields(bytes)
    }

    /// Decodes a whole record at a position, and returns its data; any bytes may be given, and what follows the record
    /// is left alone.
    ///
    /// # Errors
    /// As [`JournalKeys::decode_header`], and data that are not all there or do not have their checksum.
    pub fn decode<'b>(&self, home: &Home, position: u64, bytes: &'b [u8]) -> Result<(Record, &'b [u8]), RecordError> {
        let (header, rest) = bytes.split_first_chunk().ok_or(RecordError::Short)?;
        let record = self.decode_header(home, position, header)?;
        let length = usize::try_from(record.data_bytes()).map_err(|_| RecordError::Short)?;
        let data = rest.get(..length).ok_or(RecordError::Short)?;
        let mut hasher = self.data_hasher(home);
        hasher.update(data);
        if record.kind == RecordKind::Write && hasher.finalize() != record.data_checksum {
            return Err(RecordError::DataChecksum);
        }
        Ok((record, data))
    }

    fn header_checksum(&self, home: &Home, position: u64, header: &[u8; HEADER_BYTES]) -> [u8; 8] {
        let position = position.to_le_bytes();
        let header = &header[..COVERED_BYTES];
        match home {
            Home::Layer(layer) => {
                let covered = [&layer.0[..], &position, header].concat();
                let hash = blake3::keyed_hash(&self.header_of_files, &covered);
                std::array::from_fn(|byte| hash.as_bytes()[byte])
            }
            Home::Segment(segment) => {
                let mut covered = [0; 16 + 4 + 16 + 8 + COVERED_BYTES];
                covered[..16].copy_from_slice(&segment.journal.0);
                covered[16..20].copy_from_slice(&segment.number.to_le_bytes());
                covered[20..36].copy_from_slice(&segment.generation);
                covered[36..44].copy_from_slice(&position);
                covered[44..].copy_from_slice(header);
                HighwayHasher::new(self.header).hash64(&covered).to_le_bytes()
            }
        }
    }
}

/// Decodes what a record's header says, without its checksum.
fn decode_fields(bytes: &[u8; HEADER_BYTES]) -> Result<Record, RecordError> {
    let kind = match bytes[5] {
        1 => RecordKind::Write,
        2 => RecordKind::Zero,
        3 => RecordKind::Discard,
        _ => return Err(RecordError::Invalid("kind")),
    };
    if bytes[6..8] != [0; 2] {
        return Err(RecordError::Invalid("reserved field"));
    }
    let number = |place: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[place + byte]));
    let record = Record {
        kind,
        sequence: number(8),
        time_ms: number(16),
        sector: number(24),
        sectors: number(32),
        data_checksum: std::array::from_fn(|byte| bytes[40 + byte]),
    };
    record.check()?;
    Ok(record)
}

fn words(hash: [u64; 2]) -> [u8; 16] {
    let [low, high] = hash.map(u64::to_le_bytes);
    std::array::from_fn(|byte| if byte < 8 { low[byte] } else { high[byte - 8] })
}

/// The checksum of data that come piece by piece.
#[derive(Clone, Debug)]
pub struct DataHasher(Hasher);

#[derive(Clone, Debug)]
enum Hasher {
    Blake3(Box<blake3::Hasher>),
    Highway(Box<HighwayHasher>),
}

impl DataHasher {
    /// Adds a piece.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.0 {
            Hasher::Blake3(hasher) => drop(hasher.update(data)),
            Hasher::Highway(hasher) => hasher.append(data),
        }
    }

    /// The checksum of all pieces.
    #[must_use]
    pub fn finalize(self) -> [u8; DATA_CHECKSUM_BYTES] {
        match self.0 {
            Hasher::Blake3(hasher) => {
                let hash = hasher.finalize();
                std::array::from_fn(|byte| hash.as_bytes()[byte])
            }
            Hasher::Highway(hasher) => words(hasher.finalize128()),
        }
    }
}

/// Encodes the header of the file of a layer, as version 1 did.
#[must_use]
pub fn encode_file_header(layer: LayerId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&FILE_MAGIC);
    bytes[8] = VERSION_OF_FILES;
    bytes[16..32].copy_from_slice(&layer.0);
    bytes
}

/// Checks whether the file of a layer can be understood. A torn header is no obstacle: records speak for themselves.
///
/// # Errors
/// [`RecordError::Version`] where a later version of brant wrote it.
pub fn check_file_header(bytes: &[u8; HEADER_BYTES]) -> Result<(), RecordError> {
    match bytes[8] {
        version if bytes[..8] == FILE_MAGIC && version > VERSION_OF_FILES => Err(RecordError::Version(version)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: Home = Home::Layer(LayerId([7; 16]));

    fn segment(number: u32, generation: u8) -> Home {
        Home::Segment(SegmentId { journal: JournalId([7; 16]), number, generation: [generation; 16] })
    }

    fn checksum(keys: &JournalKeys, home: &Home, data: &[u8]) -> [u8; DATA_CHECKSUM_BYTES] {
        let mut hasher = keys.data_hasher(home);
        hasher.update(data);
        hasher.finalize()
    }

    fn keys() -> JournalKeys {
        JournalKeys::new(&[42; 32])
    }

    fn encode(keys: &JournalKeys, home: &Home, position: u64, kind: RecordKind, sectors: u64, data: &[u8]) -> Vec<u8> {
        let data_checksum = if data.is_empty() { [0; 16] } else { checksum(keys, home, data) };
        let record = Record { kind, sequence: 9, time_ms: 1_700_000_000_000, sector: 2048, sectors, data_checksum };
        [&keys.encode(home, position, &record), data].concat()
    }

    #[test]
    fn records_there_and_back() {
        let keys = keys();
        let data: Vec<u8> = (0..1024_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        for home in [LAYER, segment(3, 9)] {
            let bytes = encode(&keys, &home, 64, RecordKind::Write, 2, &data);
            let (record, found) = keys.decode(&home, 64, &bytes).unwrap();
            assert_eq!((record.kind, record.sequence, record.sector, record.sectors), (RecordKind::Write, 9, 2048, 2));
            assert_eq!(found, data);
            for kind in [RecordKind::Zero, RecordKind::Discard] {
                let bytes = encode(&keys, &home, 128, kind, 1 << 36, &[]);
                assert_eq!(keys.decode(&home, 128, &bytes).unwrap().0.kind, kind);
            }
        }
        assert_eq!(keys.data_checksum(&data), checksum(&keys, &segment(3, 9), &data));
    }

    #[test]
    fn a_record_counts_only_where_it_was_written() {
        let keys = keys();
        let elsewhere = Err(RecordError::HeaderChecksum);
        for home in [LAYER, segment(3, 9)] {
            let bytes = encode(&keys, &home, 64, RecordKind::Zero, 2, &[]);
            assert!(keys.decode(&home, 64, &bytes).is_ok());
            assert_eq!(keys.decode(&home, 128, &bytes), elsewhere, "another position");
            assert_eq!(keys.decode(&Home::Layer(LayerId([8; 16])), 64, &bytes), elsewhere, "another layer");
            assert_eq!(keys.decode(&segment(4, 9), 64, &bytes), elsewhere, "another segment");
            assert_eq!(keys.decode(&segment(3, 8), 64, &bytes), elsewhere, "what the file held before");
            assert_eq!(JournalKeys::new(&[43; 32]).decode(&home, 64, &bytes), elsewhere, "another secret");
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed_and_any_cut() {
        let keys = keys();
        for home in [LAYER, segment(3, 9)] {
            let bytes = encode(&keys, &home, 64, RecordKind::Write, 1, &[5; 512]);
            for bit in 0..8 * bytes.len() {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(keys.decode(&home, 64, &bad).is_err(), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert_eq!(keys.decode(&home, 64, &bytes[..length]), Err(RecordError::Short));
            }
        }
    }

    #[test]
    fn what_is_never_written_is_rejected_even_with_a_good_checksum() {
        let keys = keys();
        let base = Record {
            kind: RecordKind::Zero,
            sequence: 1,
            time_ms: 1,
            sector: 0,
            sectors: 1,
            data_checksum: [0; DATA_CHECKSUM_BYTES],
        };
        for record in [
            Record { sectors: 0, ..base },
            Record { sector: u64::MAX, sectors: 2, ..base },
            Record { sector: MAX_DISK_BYTES / SECTOR_BYTES, ..base },
            Record { data_checksum: [1; DATA_CHECKSUM_BYTES], ..base },
            Record { kind: RecordKind::Write, sectors: MAX_DATA_BYTES as u64 / SECTOR_BYTES + 1, ..base },
        ] {
            for home in [LAYER, segment(3, 9)] {
                let bytes = keys.encode(&home, 64, &record);
                assert!(matches!(keys.decode_header(&home, 64, &bytes), Err(RecordError::Invalid(_))), "{record:?}");
            }
        }
    }

    #[test]
    fn a_newer_journal_is_told_from_a_torn_one() {
        let mut header = encode_file_header(LayerId([7; 16]));
        assert_eq!(check_file_header(&header), Ok(()));
        header[8] = 2;
        assert_eq!(check_file_header(&header), Err(RecordError::Version(2)));
        assert_eq!(check_file_header(&[0; HEADER_BYTES]), Ok(()));
    }

    fn check_golden(name: &str, bytes: &[u8]) {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
        if std::env::var_os("BRANT_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, bytes).unwrap();
        }
        assert!(std::fs::read(&golden).unwrap() == bytes, "the encoding in {name} has changed");
    }

    fn records(home: &Home) -> Vec<u8> {
        let first = home.first_record();
        [
            encode(&keys(), home, first, RecordKind::Write, 1, &[5; 512]),
            encode(&keys(), home, first + 576, RecordKind::Zero, 16, &[]),
            encode(&keys(), home, first + 640, RecordKind::Discard, 16, &[]),
        ]
        .concat()
    }

    /// The bytes of each version, for ever.
    #[test]
    fn golden() {
        let file = [&encode_file_header(LayerId([7; 16]))[..], &records(&LAYER)].concat();
        check_golden("journal-v1.bin", &file);

        let home = segment(3, 9);
        let Home::Segment(id) = home else { panic!("a segment") };
        let records = records(&home);
        let entries = [128, 704, 768].map(|position: u64| {
            let at = usize::try_from(position).unwrap() - SEGMENT_HEAD_BYTES;
            FooterEntry { position, record: keys().decode(&home, position, &records[at..]).unwrap().0 }
        });
        let header = SegmentHeader { id, end: None }.encode(&keys());
        let end = SegmentHeader { id, end: Some(832) }.encode(&keys());
        let footer = encode_footer(&keys(), &id, 832, &entries);
        check_golden("segment-v2.bin", &[&header[..], &end, &records, &footer].concat());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_may_be_given(mut bytes: Vec<u8>, magic: bool) {
            if let (true, Some(start)) = (magic, bytes.get_mut(..4)) {
                start.copy_from_slice(&RECORD_MAGIC);
            }
            proptest::prop_assert!(keys().decode(&LAYER, 64, &bytes).is_err());
            proptest::prop_assert!(keys().decode(&segment(3, 9), 64, &bytes).is_err());
        }
    }
}

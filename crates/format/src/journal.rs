//! Records of a layer's journal: what a guest wrote, in order, each bound to its place by a secret.
//!
//! A record is a header of 64 bytes, followed by the data where there are any. Both checksums are keyed with the
//! volume's secret, and the header's covers the layer and the position in the file. So neither guest data that look
//! like a record, nor a true record copied elsewhere, are ever taken for one. The layout is in `docs/format.md`,
//! "Journal and layers". Nothing here does I/O: positions and times come in as arguments.

use types::{LayerId, MAX_DISK_BYTES, SECTOR_BYTES};

/// The version of journals that is written.
pub const VERSION: u8 = 1;

/// The length of a record's header, and of the file's, in bytes. Every record begins at a multiple of it.
pub const HEADER_BYTES: usize = 64;

/// The most data in one record, in bytes.
pub const MAX_DATA_BYTES: usize = 32 << 20;

/// The length of the checksum of a record's data, in bytes.
pub const DATA_CHECKSUM_BYTES: usize = 16;

const FILE_MAGIC: [u8; 8] = *b"brantjnl";
const RECORD_MAGIC: [u8; 4] = *b"bjrc";
/// Where the header's own checksum begins; it covers what is before it.
const COVERED_BYTES: usize = HEADER_BYTES - 8;

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
    header: [u8; 32],
    data: [u8; 32],
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
        Self {
            header: blake3::derive_key("brant 2026-11 journal record header v1", secret),
            data: blake3::derive_key("brant 2026-11 journal record data v1", secret),
        }
    }

    /// Computes the checksum of a record's data.
    #[must_use]
    pub fn data_checksum(&self, data: &[u8]) -> [u8; DATA_CHECKSUM_BYTES] {
        let mut hasher = self.data_hasher();
        hasher.update(data);
        hasher.finalize()
    }

    /// Begins the checksum of data that come piece by piece.
    #[must_use]
    pub fn data_hasher(&self) -> DataHasher {
        DataHasher(blake3::Hasher::new_keyed(&self.data))
    }

    /// Encodes the header of a record that begins at a position of a layer's journal.
    #[must_use]
    pub fn encode(&self, layer: LayerId, position: u64, record: &Record) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4] = VERSION;
        bytes[5] = record.kind as u8;
        for (place, number) in [(8, record.sequence), (16, record.time_ms), (24, record.sector), (32, record.sectors)] {
            bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[40..COVERED_BYTES].copy_from_slice(&record.data_checksum);
        let checksum = self.header_checksum(layer, position, &bytes);
        bytes[COVERED_BYTES..].copy_from_slice(&checksum);
        bytes
    }

    /// Decodes the header of a record at a position of a layer's journal; any bytes may be given.
    ///
    /// # Errors
    /// Everything that [`JournalKeys::encode`] would not have written there.
    pub fn decode_header(
        &self,
        layer: LayerId,
        position: u64,
        bytes: &[u8; HEADER_BYTES],
    ) -> Result<Record, RecordError> {
        if bytes[..4] != RECORD_MAGIC {
            return Err(RecordError::Magic);
        }
        if bytes[COVERED_BYTES..] != self.header_checksum(layer, position, bytes) {
            return Err(RecordError::HeaderChecksum);
        }
        if bytes[4] != VERSION {
            return Err(RecordError::Version(bytes[4]));
        }
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

    /// Decodes a whole record at a position of a layer's journal, and returns its data; any bytes may be given, and
    /// what follows the record is left alone.
    ///
    /// # Errors
    /// As [`JournalKeys::decode_header`], and data that are not all there or do not have their checksum.
    pub fn decode<'b>(
        &self,
        layer: LayerId,
        position: u64,
        bytes: &'b [u8],
    ) -> Result<(Record, &'b [u8]), RecordError> {
        let (header, rest) = bytes.split_first_chunk().ok_or(RecordError::Short)?;
        let record = self.decode_header(layer, position, header)?;
        let length = usize::try_from(record.data_bytes()).map_err(|_| RecordError::Short)?;
        let data = rest.get(..length).ok_or(RecordError::Short)?;
        if record.kind == RecordKind::Write && self.data_checksum(data) != record.data_checksum {
            return Err(RecordError::DataChecksum);
        }
        Ok((record, data))
    }

    fn header_checksum(&self, layer: LayerId, position: u64, header: &[u8; HEADER_BYTES]) -> [u8; 8] {
        let mut covered = [0; 16 + 8 + COVERED_BYTES];
        covered[..16].copy_from_slice(&layer.0);
        covered[16..24].copy_from_slice(&position.to_le_bytes());
        covered[24..].copy_from_slice(&header[..COVERED_BYTES]);
        let hash = blake3::keyed_hash(&self.header, &covered);
        std::array::from_fn(|byte| hash.as_bytes()[byte])
    }
}

/// The checksum of data that come piece by piece.
#[derive(Clone, Debug)]
pub struct DataHasher(blake3::Hasher);

impl DataHasher {
    /// Adds a piece.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The checksum of all pieces.
    #[must_use]
    pub fn finalize(&self) -> [u8; DATA_CHECKSUM_BYTES] {
        let hash = self.0.finalize();
        std::array::from_fn(|byte| hash.as_bytes()[byte])
    }
}

/// Encodes the header of a journal's file.
#[must_use]
pub fn encode_file_header(layer: LayerId) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&FILE_MAGIC);
    bytes[8] = VERSION;
    bytes[16..32].copy_from_slice(&layer.0);
    bytes
}

/// Checks whether a journal's file can be understood. A torn header is no obstacle: records speak for themselves.
///
/// # Errors
/// [`RecordError::Version`] where a later version of brant wrote it.
pub fn check_file_header(bytes: &[u8; HEADER_BYTES]) -> Result<(), RecordError> {
    match bytes[8] {
        version if bytes[..8] == FILE_MAGIC && version > VERSION => Err(RecordError::Version(version)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: LayerId = LayerId([7; 16]);

    fn keys() -> JournalKeys {
        JournalKeys::new(&[42; 32])
    }

    fn encode(keys: &JournalKeys, position: u64, kind: RecordKind, sectors: u64, data: &[u8]) -> Vec<u8> {
        let data_checksum = if data.is_empty() { [0; 16] } else { keys.data_checksum(data) };
        let record = Record { kind, sequence: 9, time_ms: 1_700_000_000_000, sector: 2048, sectors, data_checksum };
        [&keys.encode(LAYER, position, &record), data].concat()
    }

    #[test]
    fn records_there_and_back() {
        let keys = keys();
        let data: Vec<u8> = (0..1024_u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let bytes = encode(&keys, 64, RecordKind::Write, 2, &data);
        let (record, found) = keys.decode(LAYER, 64, &bytes).unwrap();
        assert_eq!((record.kind, record.sequence, record.sector, record.sectors), (RecordKind::Write, 9, 2048, 2));
        assert_eq!(found, data);
        for kind in [RecordKind::Zero, RecordKind::Discard] {
            let bytes = encode(&keys, 128, kind, 1 << 36, &[]);
            assert_eq!(keys.decode(LAYER, 128, &bytes).unwrap().0.kind, kind);
        }
    }

    #[test]
    fn a_record_counts_only_where_it_was_written() {
        let keys = keys();
        let bytes = encode(&keys, 64, RecordKind::Zero, 2, &[]);
        assert!(keys.decode(LAYER, 64, &bytes).is_ok());
        let elsewhere = Err(RecordError::HeaderChecksum);
        assert_eq!(keys.decode(LAYER, 128, &bytes), elsewhere, "another position");
        assert_eq!(keys.decode(LayerId([8; 16]), 64, &bytes), elsewhere, "another layer");
        assert_eq!(JournalKeys::new(&[43; 32]).decode(LAYER, 64, &bytes), elsewhere, "another secret");
    }

    #[test]
    fn any_flipped_bit_is_noticed_and_any_cut() {
        let keys = keys();
        let bytes = encode(&keys, 64, RecordKind::Write, 1, &[5; 512]);
        for bit in 0..8 * bytes.len() {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(keys.decode(LAYER, 64, &bad).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_eq!(keys.decode(LAYER, 64, &bytes[..length]), Err(RecordError::Short));
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
            let bytes = keys.encode(LAYER, 64, &record);
            assert!(matches!(keys.decode_header(LAYER, 64, &bytes), Err(RecordError::Invalid(_))), "{record:?}");
        }
    }

    #[test]
    fn a_newer_journal_is_told_from_a_torn_one() {
        let mut header = encode_file_header(LAYER);
        assert_eq!(check_file_header(&header), Ok(()));
        header[8] = 2;
        assert_eq!(check_file_header(&header), Err(RecordError::Version(2)));
        assert_eq!(check_file_header(&[0; HEADER_BYTES]), Ok(()));
    }

    /// The bytes of version 1, for ever.
    #[test]
    fn golden() {
        let keys = keys();
        let mut bytes = encode_file_header(LAYER).to_vec();
        bytes.extend(encode(&keys, 64, RecordKind::Write, 1, &[5; 512]));
        bytes.extend(encode(&keys, 640, RecordKind::Zero, 16, &[]));
        bytes.extend(encode(&keys, 704, RecordKind::Discard, 16, &[]));
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/journal-v1.bin");
        if std::env::var_os("BRANT_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, &bytes).unwrap();
        }
        assert!(std::fs::read(&golden).unwrap() == bytes, "the encoding of version 1 has changed");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_may_be_given(mut bytes: Vec<u8>, magic: bool) {
            if let (true, Some(start)) = (magic, bytes.get_mut(..4)) {
                start.copy_from_slice(&RECORD_MAGIC);
            }
            proptest::prop_assert!(keys().decode(LAYER, 64, &bytes).is_err());
        }
    }
}

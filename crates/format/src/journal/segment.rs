//! The header of a segment, and the footer that a full one gets: where its records are, so that nobody need read it all.

use highway::{HighwayHash, HighwayHasher};
use types::JournalId;

use super::{
    COVERED_BYTES, HEADER_BYTES, JournalKeys, RECORD_MAGIC, Record, RecordError, RecordKind, SEGMENT_HEAD_BYTES,
    SegmentId, VERSION, decode_fields, words,
};

const SEGMENT_MAGIC: [u8; 8] = *b"brantseg";
const FOOTER_MAGIC: [u8; 4] = *b"bjft";

/// The length of an entry in a footer, in bytes.
pub const FOOTER_ENTRY_BYTES: usize = 8 + COVERED_BYTES;

/// The most entries that are read from a footer.
pub const MAX_FOOTER_ENTRIES: usize = 1 << 20;

/// What a segment begins with, twice: the first is not changed as long as the file is that segment, the second gets the end
/// once there is one. So nothing is written over without which the segment would not be known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Which it is.
    pub id: SegmentId,
    /// Where its records end, once none follow any more: the footer is there, where there is one.
    pub end: Option<u64>,
}

impl SegmentHeader {
    /// Encodes the header.
    ///
    /// # Panics
    /// If records end beyond what 2^32 steps of a header's length reach.
    #[must_use]
    pub fn encode(&self, keys: &JournalKeys) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8] = VERSION;
        bytes[16..32].copy_from_slice(&self.id.journal.0);
        bytes[32..48].copy_from_slice(&self.id.generation);
        bytes[48..52].copy_from_slice(&self.id.number.to_le_bytes());
        let end = u32::try_from(self.end.unwrap_or(0) / HEADER_BYTES as u64).expect("a segment is not that long");
        bytes[52..COVERED_BYTES].copy_from_slice(&end.to_le_bytes());
        let checksum = header_checksum(keys, &bytes);
        bytes[COVERED_BYTES..].copy_from_slice(&checksum);
        bytes
    }

    /// Whose a segment says it is, without its checksum, which needs that journal's keys.
    ///
    /// # Errors
    /// Other bytes, and [`RecordError::Version`] where a later version of brant wrote them.
    pub fn journal(bytes: &[u8; HEADER_BYTES]) -> Result<JournalId, RecordError> {
        if bytes[..8] != SEGMENT_MAGIC {
            return Err(RecordError::Magic);
        }
        if bytes[8] > VERSION {
            return Err(RecordError::Version(bytes[8]));
        }
        Ok(JournalId(std::array::from_fn(|byte| bytes[16 + byte])))
    }

    /// Whose a segment may be that begins with some bytes.
    ///
    /// # Errors
    /// [`RecordError::Version`] where a later version of brant wrote it.
    pub fn journals(bytes: &[u8; SEGMENT_HEAD_BYTES]) -> Result<Vec<JournalId>, RecordError> {
        let mut journals = Vec::new();
        for header in bytes.as_chunks().0 {
            match Self::journal(header) {
                Ok(journal) => journals.push(journal),
                Err(RecordError::Version(version)) => return Err(RecordError::Version(version)),
                Err(_) => {}
            }
        }
        Ok(journals)
    }

    /// Decodes what a segment begins with, of which one half is enough; any bytes may be given.
    ///
    /// # Errors
    /// As [`SegmentHeader::decode`], of both halves.
    pub fn decode_head(keys: &JournalKeys, bytes: &[u8; SEGMENT_HEAD_BYTES]) -> Result<Self, RecordError> {
        let [first, second] = bytes.as_chunks().0 else { return Err(RecordError::Short) };
        match (Self::decode(keys, first), Self::decode(keys, second)) {
            (Ok(first), Ok(second)) if first.id == second.id => Ok(second),
            (Ok(first), _) => Ok(first),
            (Err(_), second) => second,
        }
    }

    /// Decodes a header; any bytes may be given.
    ///
    /// # Errors
    /// Everything that [`SegmentHeader::encode`] would not have written with these keys.
    pub fn decode(keys: &JournalKeys, bytes: &[u8; HEADER_BYTES]) -> Result<Self, RecordError> {
        let journal = Self::journal(bytes)?;
        if bytes[COVERED_BYTES..] != header_checksum(keys, bytes) {
            return Err(RecordError::HeaderChecksum);
        }
        if bytes[8] != VERSION || bytes[9..16] != [0; 7] {
            return Err(RecordError::Invalid("reserved field"));
        }
        let word = |place: usize| u32::from_le_bytes(std::array::from_fn(|byte| bytes[place + byte]));
        let generation = std::array::from_fn(|byte| bytes[32 + byte]);
        let end = u64::from(word(52)) * HEADER_BYTES as u64;
        Ok(Self { id: SegmentId { journal, number: word(48), generation }, end: (end > 0).then_some(end) })
    }
}

fn header_checksum(keys: &JournalKeys, bytes: &[u8; HEADER_BYTES]) -> [u8; 8] {
    HighwayHasher::new(keys.segment).hash64(&bytes[..COVERED_BYTES]).to_le_bytes()
}

/// A record, and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// The position of its header.
    pub position: u64,
    /// What it says.
    pub record: Record,
}

/// Encodes the footer of a segment whose records end somewhere: 64 bytes, and 64 for each record.
///
/// # Panics
/// For more records than a footer may have.
#[must_use]
pub fn encode_footer(keys: &JournalKeys, segment: &SegmentId, end: u64, entries: &[FooterEntry]) -> Vec<u8> {
    assert!(entries.len() <= MAX_FOOTER_ENTRIES, "a footer has a bounded length");
    let mut bytes = vec![0; HEADER_BYTES + entries.len() * FOOTER_ENTRY_BYTES];
    let (head, rest) = bytes.split_at_mut(HEADER_BYTES);
    for (entry, bytes) in entries.iter().zip(rest.as_chunks_mut::<FOOTER_ENTRY_BYTES>().0) {
        bytes[..8].copy_from_slice(&entry.position.to_le_bytes());
        encode_fields(&entry.record, &mut bytes[8..]);
    }
    head[..4].copy_from_slice(&FOOTER_MAGIC);
    head[4] = VERSION;
    head[8..16].copy_from_slice(&(entries.len() as u64).to_le_bytes());
    let checksum = footer_checksum(keys, segment, end, &head[..16], rest);
    head[16..32].copy_from_slice(&checksum);
    bytes
}

/// How many entries follow the first 64 bytes of a footer, if they are that; a footer is not believed before its
/// checksum was checked.
#[must_use]
pub fn footer_entries(head: &[u8; HEADER_BYTES]) -> Option<usize> {
    if head[..4] != FOOTER_MAGIC || head[4] != VERSION || head[5..8] != [0; 3] || head[32..] != [0; 32] {
        return None;
    }
    let entries = u64::from_le_bytes(std::array::from_fn(|byte| head[8 + byte]));
    usize::try_from(entries).ok().filter(|entries| *entries <= MAX_FOOTER_ENTRIES)
}

/// Decodes the footer of a segment whose records end somewhere; any bytes may be given.
///
/// # Errors
/// Everything that [`encode_footer`] would not have written there, and records that do not lie before the footer, one
/// behind the other.
pub fn decode_footer(
    keys: &JournalKeys,
    segment: &SegmentId,
    end: u64,
    bytes: &[u8],
) -> Result<Vec<FooterEntry>, RecordError> {
    let (head, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(RecordError::Short)?;
    let entries = footer_entries(head).ok_or(RecordError::Magic)?;
    let rest = rest.get(..entries * FOOTER_ENTRY_BYTES).ok_or(RecordError::Short)?;
    if head[16..32] != footer_checksum(keys, segment, end, &head[..16], rest) {
        return Err(RecordError::HeaderChecksum);
    }
    let mut after = SEGMENT_HEAD_BYTES as u64;
    rest.as_chunks::<FOOTER_ENTRY_BYTES>()
        .0
        .iter()
        .map(|bytes| {
            let position = u64::from_le_bytes(std::array::from_fn(|byte| bytes[byte]));
            let mut header = [0; HEADER_BYTES];
            header[..COVERED_BYTES].copy_from_slice(&bytes[8..]);
            if header[..4] != RECORD_MAGIC || header[4] != VERSION {
                return Err(RecordError::Magic);
            }
            let record = decode_fields(&header)?;
            let inside = position >= after && position.is_multiple_of(HEADER_BYTES as u64);
            after = position.saturating_add(HEADER_BYTES as u64 + record.data_bytes());
            if !inside || after > end {
                return Err(RecordError::Invalid("place"));
            }
            Ok(FooterEntry { position, record })
        })
        .collect()
}

/// What a record's header says, without its checksum.
fn encode_fields(record: &Record, bytes: &mut [u8]) {
    bytes[..4].copy_from_slice(&RECORD_MAGIC);
    bytes[4] = VERSION;
    bytes[5] = match record.kind {
        RecordKind::Write => 1,
        RecordKind::Zero => 2,
        RecordKind::Discard => 3,
    };
    for (place, number) in [(8, record.sequence), (16, record.time_ms), (24, record.sector), (32, record.sectors)] {
        bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
    }
    bytes[40..COVERED_BYTES].copy_from_slice(&record.data_checksum);
}

fn footer_checksum(keys: &JournalKeys, segment: &SegmentId, end: u64, head: &[u8], entries: &[u8]) -> [u8; 16] {
    let mut hasher = HighwayHasher::new(keys.segment);
    for part in [&segment.journal.0[..], &segment.number.to_le_bytes(), &segment.generation, &end.to_le_bytes()] {
        hasher.append(part);
    }
    hasher.append(head);
    hasher.append(entries);
    words(hasher.finalize128())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::DATA_CHECKSUM_BYTES;

    const ID: SegmentId = SegmentId { journal: JournalId([3; 16]), number: 7, generation: [9; 16] };

    fn keys() -> JournalKeys {
        JournalKeys::new(&[42; 32])
    }

    fn entry(position: u64) -> FooterEntry {
        let record = Record {
            kind: RecordKind::Zero,
            sequence: position,
            time_ms: 5,
            sector: 8,
            sectors: 8,
            data_checksum: [0; DATA_CHECKSUM_BYTES],
        };
        FooterEntry { position, record }
    }

    #[test]
    fn headers_and_footers_there_and_back() {
        for end in [None, Some(64), Some(1 << 30)] {
            let header = SegmentHeader { id: ID, end };
            assert_eq!(SegmentHeader::decode(&keys(), &header.encode(&keys())), Ok(header));
        }
        let entries = [entry(128), entry(192), entry(640)];
        let bytes = encode_footer(&keys(), &ID, 704, &entries);
        assert_eq!(decode_footer(&keys(), &ID, 704, &bytes).unwrap(), entries);
        assert_eq!(decode_footer(&keys(), &ID, 704, &[&bytes[..], b"more"].concat()).unwrap(), entries);
        let another = SegmentId { generation: [8; 16], ..ID };
        assert!(decode_footer(&keys(), &another, 704, &bytes).is_err(), "what the file held before");
        assert!(decode_footer(&keys(), &ID, 768, &bytes).is_err(), "another place");
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let header = SegmentHeader { id: ID, end: Some(704) }.encode(&keys());
        let footer = encode_footer(&keys(), &ID, 704, &[entry(128), entry(192)]);
        for bit in 0..8 * header.len() {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&keys(), &bad).is_err(), "bit {bit}");
        }
        for bit in 0..8 * footer.len() {
            let mut bad = footer.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_footer(&keys(), &ID, 704, &bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn records_lie_one_behind_the_other_before_the_footer() {
        for entries in
            [vec![entry(0)], vec![entry(64)], vec![entry(128), entry(128)], vec![entry(704)], vec![entry(129)]]
        {
            let bytes = encode_footer(&keys(), &ID, 704, &entries);
            assert_eq!(decode_footer(&keys(), &ID, 704, &bytes), Err(RecordError::Invalid("place")), "{entries:?}");
        }
    }

    #[test]
    fn half_of_what_a_segment_begins_with_is_enough() {
        let head = |first: [u8; HEADER_BYTES], second: [u8; HEADER_BYTES]| {
            let bytes = std::array::from_fn(|byte| [first, second].as_flattened()[byte]);
            SegmentHeader::decode_head(&keys(), &bytes)
        };
        let (open, ended) = (SegmentHeader { id: ID, end: None }, SegmentHeader { id: ID, end: Some(704) });
        let (first, second) = (open.encode(&keys()), ended.encode(&keys()));
        assert_eq!(head(first, first), Ok(open));
        assert_eq!(head(first, second), Ok(ended));
        for length in 0..COVERED_BYTES {
            let mut torn = first;
            torn[..length].copy_from_slice(&second[..length]);
            torn[length] ^= 1;
            assert_eq!(head(first, torn), Ok(open), "{length}");
            assert_eq!(head(torn, second), Ok(ended), "{length}");
            assert!(head(torn, torn).is_err(), "{length}");
        }
        let before = SegmentHeader { id: SegmentId { generation: [8; 16], ..ID }, end: Some(704) };
        assert_eq!(head(first, before.encode(&keys())), Ok(open), "what the file was before");
        let bytes = std::array::from_fn(|byte| [[0; HEADER_BYTES], first].as_flattened()[byte]);
        assert_eq!(SegmentHeader::journals(&bytes), Ok(vec![ID.journal]));
        assert_eq!(SegmentHeader::journals(&[0; SEGMENT_HEAD_BYTES]), Ok(Vec::new()));
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut header = SegmentHeader { id: ID, end: None }.encode(&keys());
        header[8] = VERSION + 1;
        assert_eq!(SegmentHeader::decode(&keys(), &header), Err(RecordError::Version(VERSION + 1)));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_may_be_given(bytes: Vec<u8>, head: [u8; 32]) {
            proptest::prop_assert!(decode_footer(&keys(), &ID, 704, &bytes).is_err());
            let mut header = [0; HEADER_BYTES];
            header[..32].copy_from_slice(&head);
            proptest::prop_assert!(SegmentHeader::decode(&keys(), &header).is_err());
        }
    }
}

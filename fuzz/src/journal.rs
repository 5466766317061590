//! Records of a journal, and the headers and footers of its segments, as they are found when a volume is recovered.

use format::journal::{
    FOOTER_ENTRY_BYTES, FooterEntry, HEADER_BYTES, Home, JournalKeys, Record, RecordKind, SegmentHeader, SegmentId,
    check_file_header, decode_footer, encode_file_header, encode_footer, footer_entries,
};
use types::{JournalId, LayerId};

const SEGMENT: SegmentId = SegmentId { journal: JournalId([7; 16]), number: 3, generation: [9; 16] };
const HOMES: [Home; 2] = [Home::Segment(SEGMENT), Home::Layer(LayerId([7; 16]))];
const POSITION: u64 = 640;
/// Where the records of a segment end that has a footer.
const END: u64 = 1 << 20;
const VOLUME_SECRET: [u8; 32] = [1; 32];

/// A record of either version, and once more with both checksums made right.
pub(crate) fn record(data: &[u8]) -> bool {
    let keys = JournalKeys::new(&VOLUME_SECRET);
    let check = |home: &Home, bytes: &[u8]| {
        let Ok((record, content)) = keys.decode(home, POSITION, bytes) else { return false };
        assert_eq!(keys.encode(home, POSITION, &record)[..], bytes[..HEADER_BYTES], "one form");
        assert_eq!(content.len() as u64, record.data_bytes());
        assert!(keys.decode(home, POSITION + 64, bytes).is_err(), "a record stands at one place");
        let other = if *home == HOMES[0] { HOMES[1] } else { HOMES[0] };
        assert!(keys.decode(&other, POSITION, bytes).is_err(), "and in one file");
        true
    };
    let home = HOMES[usize::from(data.get(4) == Some(&HOMES[1].version()))];
    check(&home, data) | right(&keys, &home, data).is_some_and(|right| check(&home, &right))
}

/// The record that the fields of some bytes make, with the data behind them, if there can be one.
fn right(keys: &JournalKeys, home: &Home, data: &[u8]) -> Option<Vec<u8>> {
    let number = |place: usize| Some(u64::from_le_bytes(*data.get(place..place + 8)?.first_chunk()?));
    let kind = match data.get(5)? {
        1 => RecordKind::Write,
        2 => RecordKind::Zero,
        _ => RecordKind::Discard,
    };
    let sectors = number(32)?;
    let length = usize::try_from(sectors.checked_mul(512)?).ok()?;
    let content =
        if kind == RecordKind::Write { data.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)? } else { &[] };
    let mut hasher = keys.data_hasher(home);
    hasher.update(content);
    let data_checksum = if kind == RecordKind::Write { hasher.finalize() } else { [0; 16] };
    let record =
        Record { kind, sequence: number(8)?, time_ms: number(16)?, sector: number(24)?, sectors, data_checksum };
    Some([&keys.encode(home, POSITION, &record)[..], content].concat())
}

pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    let keys = JournalKeys::new(&VOLUME_SECRET);
    let make = |home: &Home, kind, sectors, content: &[u8]| {
        let mut hasher = keys.data_hasher(home);
        hasher.update(content);
        let data_checksum = if content.is_empty() { [0; 16] } else { hasher.finalize() };
        let record = Record { kind, sequence: 9, time_ms: 1_790_000_000_000, sector: 64, sectors, data_checksum };
        [&keys.encode(home, POSITION, &record)[..], content].concat()
    };
    let of = |home: &Home| {
        [
            make(home, RecordKind::Write, 2, &[5; 1024]),
            make(home, RecordKind::Zero, 1 << 20, &[]),
            make(home, RecordKind::Discard, 1, &[]),
        ]
    };
    HOMES.iter().flat_map(of).collect()
}

pub(crate) fn header(data: &[u8]) -> bool {
    let keys = JournalKeys::new(&VOLUME_SECRET);
    let Some(bytes) = data.first_chunk() else { return false };
    if let Ok(header) = SegmentHeader::decode(&keys, bytes) {
        assert_eq!(header.encode(&keys), *bytes, "one form");
        assert_eq!(SegmentHeader::journal(bytes), Ok(header.id.journal));
    }
    check_file_header(bytes).is_ok()
}

pub(crate) fn header_seeds() -> Vec<Vec<u8>> {
    let keys = JournalKeys::new(&VOLUME_SECRET);
    let segment = |end| SegmentHeader { id: SEGMENT, end }.encode(&keys).to_vec();
    vec![encode_file_header(LayerId([7; 16])).to_vec(), segment(None), segment(Some(END))]
}

/// A footer, and once more the one that its entries would make.
pub(crate) fn footer(data: &[u8]) -> bool {
    let keys = JournalKeys::new(&VOLUME_SECRET);
    let check = |bytes: &[u8]| {
        let Ok(entries) = decode_footer(&keys, &SEGMENT, END, bytes) else { return false };
        let length = HEADER_BYTES + entries.len() * FOOTER_ENTRY_BYTES;
        assert_eq!(encode_footer(&keys, &SEGMENT, END, &entries), bytes[..length], "one form");
        assert!(entries.is_sorted_by(|left, right| left.position < right.position));
        true
    };
    if let Some(head) = data.first_chunk() {
        assert!(footer_entries(head).is_none_or(|entries| entries <= format::journal::MAX_FOOTER_ENTRIES));
    }
    let entry = |bytes: &[u8; FOOTER_ENTRY_BYTES]| {
        let number = |place: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[place + byte]));
        let record = Record {
            kind: if bytes[13] == 1 { RecordKind::Write } else { RecordKind::Zero },
            sequence: number(16),
            time_ms: number(24),
            sector: number(32),
            sectors: number(40),
            data_checksum: std::array::from_fn(|byte| bytes[48 + byte]),
        };
        FooterEntry { position: number(0), record }
    };
    let entries: Vec<_> =
        data.get(HEADER_BYTES..).unwrap_or_default().as_chunks().0.iter().take(64).map(entry).collect();
    check(data) | check(&encode_footer(&keys, &SEGMENT, END, &entries))
}

pub(crate) fn footer_seeds() -> Vec<Vec<u8>> {
    let keys = JournalKeys::new(&VOLUME_SECRET);
    let entry = |position: u64, kind: RecordKind| {
        let data_checksum = if kind == RecordKind::Write { [3; 16] } else { [0; 16] };
        let record = Record { kind, sequence: 9, time_ms: 1_790_000_000_000, sector: 64, sectors: 2, data_checksum };
        FooterEntry { position, record }
    };
    let entries = [entry(128, RecordKind::Write), entry(1216, RecordKind::Zero), entry(4096, RecordKind::Write)];
    vec![encode_footer(&keys, &SEGMENT, END, &entries), encode_footer(&keys, &SEGMENT, END, &[])]
}

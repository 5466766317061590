//! Records of a layer's journal, as they are found when a volume is recovered.

use format::journal::{HEADER_BYTES, JournalKeys, Record, RecordKind, check_file_header, encode_file_header};
use types::LayerId;

const LAYER: LayerId = LayerId([7; 16]);
const POSITION: u64 = 640;
const VOLUME_SECRET: [u8; 32] = [1; 32];

/// A record, and once more with both checksums made right.
pub(crate) fn record(data: &[u8]) -> bool {
    let keys = JournalKeys::new(&VOLUME_SECRET);
    let check = |bytes: &[u8]| {
        let Ok((record, content)) = keys.decode(LAYER, POSITION, bytes) else { return false };
        assert_eq!(keys.encode(LAYER, POSITION, &record)[..], bytes[..HEADER_BYTES], "one form");
        assert_eq!(content.len() as u64, record.data_bytes());
        assert!(keys.decode(LAYER, POSITION + 64, bytes).is_err(), "a record stands at one place");
        true
    };
    check(data) | right(&keys, data).is_some_and(|right| check(&right))
}

/// The header's checksum covers layer and position, with a key that is derived from the secret (docs/format.md).
fn right(keys: &JournalKeys, data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let sectors = u64::from_le_bytes(*bytes.get(32..40)?.first_chunk()?);
    let length = usize::try_from(sectors.checked_mul(512)?).ok()?;
    if let Some(content) = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?) {
        let checksum = keys.data_checksum(content);
        bytes.get_mut(40..56)?.copy_from_slice(&checksum);
    }
    let key = blake3::derive_key("brant 2026-11 journal record header v1", &VOLUME_SECRET);
    let covered = [&LAYER.0[..], &POSITION.to_le_bytes(), bytes.get(..56)?].concat();
    let checksum = blake3::keyed_hash(&key, &covered);
    bytes.get_mut(56..64)?.copy_from_slice(&checksum.as_bytes()[..8]);
    Some(bytes)
}

pub(crate) fn record_seeds() -> Vec<Vec<u8>> {
    let keys = JournalKeys::new(&VOLUME_SECRET);
    let make = |kind, sectors, content: &[u8]| {
        let data_checksum = if content.is_empty() { [0; 16] } else { keys.data_checksum(content) };
        let record = Record { kind, sequence: 9, time_ms: 1_790_000_000_000, sector: 64, sectors, data_checksum };
        [&keys.encode(LAYER, POSITION, &record)[..], content].concat()
    };
    vec![
        make(RecordKind::Write, 2, &[5; 1024]),
        make(RecordKind::Zero, 1 << 20, &[]),
        make(RecordKind::Discard, 1, &[]),
    ]
}

pub(crate) fn header(data: &[u8]) -> bool {
    data.first_chunk().is_some_and(|header| check_file_header(header).is_ok())
}

pub(crate) fn header_seeds() -> Vec<Vec<u8>> {
    vec![encode_file_header(LAYER).to_vec()]
}

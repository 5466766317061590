//! A store's files: packs, roots log, format file.

use format::Codec;
use format::features::StoreFormat;
use format::pack::{
    FooterEntry, PACK_HEADER_BYTES, PackHeader, PackSecret, RECORD_HEADER_BYTES, RecordHeader, RecordType,
    TRAILER_BYTES, decode_footer, decode_trailer, encode_footer,
};
use format::roots::{Transaction, decode_header, encode_header};

const SECRET: PackSecret = [0x5e; 32];
const PLACE: u64 = 64;
/// Behind a room with one content.
const APART_PLACE: u64 = 4096 + 65536;

/// Bytes as they are, and once more with some of them replaced.
fn with_checksum(data: &[u8], at: usize, checksum: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    bytes.get_mut(at..at + checksum.len())?.copy_from_slice(checksum);
    Some(bytes)
}

pub(crate) fn pack_header(data: &[u8]) -> bool {
    let check = |bytes: &[u8]| {
        let Ok(header) = PackHeader::decode(bytes) else { return false };
        assert_eq!(header.encode()[..], bytes[..PACK_HEADER_BYTES], "one form");
        true
    };
    let hash = data.get(..56).map(blake3::hash);
    let right = hash.and_then(|hash| with_checksum(data, 56, &hash.as_bytes()[..8]));
    check(data) | right.is_some_and(|right| check(&right))
}

pub(crate) fn pack_header_seeds() -> Vec<Vec<u8>> {
    [1, 2].map(|version| PackHeader { version, number: 7, secret: SECRET }.encode().to_vec()).to_vec()
}

fn record_checksum(covered: &[u8], place: u64) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new_keyed(&SECRET);
    hasher.update(covered).update(&place.to_le_bytes());
    let hash = hasher.finalize();
    std::array::from_fn(|byte| hash.as_bytes()[byte])
}

pub(crate) fn pack_record(data: &[u8]) -> bool {
    let check = |bytes: &[u8], place: u64| {
        let Ok(header) = RecordHeader::decode(bytes, &SECRET, place) else { return false };
        assert_eq!(header.encode(&SECRET, place)[..], bytes[..RECORD_HEADER_BYTES], "one form");
        assert!(RecordHeader::decode(bytes, &SECRET, place + 1).is_err(), "a record stands at one place");
        assert!(header.end(place) > place, "reading goes on behind it");
        if header.record == RecordType::Apart {
            assert!(header.content_place(place) + u64::from(header.stored_bytes) <= place, "a content lies before it");
        }
        true
    };
    let mut found = false;
    for place in [PLACE, APART_PLACE] {
        let checksum = data.get(..56).map(|covered| record_checksum(covered, place));
        let right = checksum.and_then(|checksum| with_checksum(data, 56, &checksum));
        found |= check(data, place) | right.is_some_and(|right| check(&right, place));
    }
    found
}

fn record(record: RecordType) -> RecordHeader {
    let stored_bytes = if record == RecordType::Claim { 0 } else { 1234 };
    let (kind, codec) = (1, Codec::Zstd);
    RecordHeader {
        record,
        kind,
        codec,
        cipher: 0,
        domain: 1,
        stored_bytes,
        plain_bytes: 65536,
        key_id: 0,
        content: 0,
        hash: [4; 32],
    }
}

pub(crate) fn pack_record_seeds() -> Vec<Vec<u8>> {
    let apart = apart().encode(&SECRET, APART_PLACE);
    let room = RecordHeader::room_for(PLACE, 65536).map(|room| room.encode(&SECRET, PLACE));
    let others = [RecordType::Object, RecordType::Claim].map(|kind| record(kind).encode(&SECRET, PLACE));
    others.into_iter().chain(room).chain([apart]).map(Vec::from).collect()
}

/// A record whose content lies in a room before it.
fn apart() -> RecordHeader {
    let (record_type, codec, stored_bytes) = (RecordType::Apart, Codec::Plain, 65536);
    RecordHeader { record: record_type, codec, stored_bytes, content: 4096, ..record(RecordType::Object) }
}

/// A footer's entries behind a header that has their hash, and a trailer.
pub(crate) fn pack_footer(data: &[u8]) -> bool {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let hash = blake3::derive_key("brant 2026-11 pack footer v1", data);
    let header = RecordHeader {
        record: RecordType::Footer,
        kind: 0,
        codec: Codec::Plain,
        cipher: 0,
        domain: 0,
        stored_bytes: length,
        plain_bytes: length,
        key_id: 0,
        content: 0,
        hash,
    };
    let _: Result<u64, _> = decode_trailer(data, &SECRET);
    let Ok(entries) = decode_footer(&header, data) else { return false };
    let encoded = encode_footer(&entries, &SECRET, PLACE);
    assert_eq!(encoded[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + data.len()], *data, "one form");
    let trailer = &encoded[encoded.len() - TRAILER_BYTES..];
    assert_eq!(decode_trailer(trailer, &SECRET), Ok(PLACE));
    true
}

pub(crate) fn pack_footer_seeds() -> Vec<Vec<u8>> {
    let mut entries =
        [RecordType::Object, RecordType::Claim].map(|kind| FooterEntry { header: record(kind), place: 64 }).to_vec();
    entries.push(FooterEntry { header: apart(), place: u32::try_from(APART_PLACE).unwrap_or(u32::MAX) });
    let footer = encode_footer(&entries, &SECRET, PLACE);
    let trailer = footer.len() - TRAILER_BYTES;
    vec![footer[RECORD_HEADER_BYTES..trailer].to_vec(), footer[trailer..].to_vec()]
}

pub(crate) fn roots(data: &[u8]) -> bool {
    let header = decode_header(data).is_ok_and(|secret| encode_header(&secret)[..] == data[..64]);
    let check = |bytes: &[u8]| {
        let Ok((transaction, length)) = Transaction::decode(bytes, &SECRET) else { return false };
        assert_eq!(transaction.encode(&SECRET), bytes[..length], "one form");
        true
    };
    // The length of the changes is made that of what follows, and the checksum right.
    let changes = data.len().saturating_sub(32);
    let right = with_checksum(data, 4, &u32::try_from(changes).unwrap_or(0).to_le_bytes()).and_then(|data| {
        let mut hasher = blake3::Hasher::new_keyed(&SECRET);
        hasher.update(data.get(..16)?).update(data.get(32..)?);
        with_checksum(&data, 16, &hasher.finalize().as_bytes()[..16])
    });
    header | check(data) | right.is_some_and(|right| check(&right))
}

pub(crate) fn roots_seeds() -> Vec<Vec<u8>> {
    let changes = vec![("volume/00".to_owned(), Some(b"value".to_vec())), ("layer/11".to_owned(), None)];
    vec![encode_header(&SECRET).to_vec(), Transaction { sequence: 3, changes }.encode(&SECRET)]
}

pub(crate) fn store_format(data: &[u8]) -> bool {
    let Ok(format) = StoreFormat::decode(data) else { return false };
    assert_eq!(format.encode().as_bytes(), data, "one form");
    true
}

pub(crate) fn store_format_seeds() -> Vec<Vec<u8>> {
    let plain = StoreFormat::new(SECRET);
    let features = StoreFormat { incompatible: vec!["encryption".into()], ..plain.clone() };
    [plain, features].map(|format| format.encode().into_bytes()).to_vec()
}

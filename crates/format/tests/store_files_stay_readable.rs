//! What each version wrote in a store's directory is written the same, and read, for ever: packs, roots log, format file.
//!
//! The golden files are hexadecimal; `BRANT_WRITE_GOLDEN=1` writes them, which is right only for a new version.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write;
use std::path::Path;

use format::Codec;
use format::features::StoreFormat;
use format::pack::{
    FooterEntry, PACK_HEADER_BYTES, PackHeader, PackSecret, RECORD_HEADER_BYTES, RecordHeader, RecordType,
    TRAILER_BYTES, decode_footer, decode_trailer, encode_footer,
};
use format::roots::{ROOTS_HEADER_BYTES, Transaction, decode_header, encode_header};

const SECRET: PackSecret = *b"thirty-two bytes of a secret....";
const CONTENT: &[u8] = b"the content of a chunk";

/// Compares bytes with a golden file, 32 of them a line.
fn compare(name: &str, bytes: &[u8]) {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BRANT_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{name} is not what that version wrote");
}

fn object() -> RecordHeader {
    let length = u32::try_from(CONTENT.len()).unwrap();
    RecordHeader {
        record: RecordType::Object,
        kind: 1,
        codec: Codec::Plain,
        cipher: 0,
        domain: 0,
        stored_bytes: length,
        plain_bytes: length,
        key_id: 0,
        content: 0,
        hash: format::chunk_id(CONTENT).0,
    }
}

#[test]
fn packs() {
    let claim = RecordHeader { record: RecordType::Claim, domain: 1, stored_bytes: 0, ..object() };
    let mut pack = PackHeader { version: 1, number: 1, secret: SECRET }.encode().to_vec();
    pack.extend(object().encode(&SECRET, pack.len() as u64));
    pack.extend(CONTENT);
    let claim_place = pack.len();
    pack.extend(claim.encode(&SECRET, claim_place as u64));
    let footer_place = pack.len();
    let entries = [
        FooterEntry { header: object(), place: u32::try_from(PACK_HEADER_BYTES).unwrap() },
        FooterEntry { header: claim, place: u32::try_from(claim_place).unwrap() },
    ];
    pack.extend(encode_footer(&entries, &SECRET, footer_place as u64));
    compare("pack-v1.hex", &pack);

    assert_eq!(PackHeader::decode(&pack), Ok(PackHeader { version: 1, number: 1, secret: SECRET }));
    assert_eq!(RecordHeader::decode(&pack[PACK_HEADER_BYTES..], &SECRET, 64), Ok(object()));
    assert_eq!(RecordHeader::decode(&pack[claim_place..], &SECRET, claim_place as u64), Ok(claim));
    let trailer_place = pack.len() - TRAILER_BYTES;
    assert_eq!(decode_trailer(&pack[trailer_place..], &SECRET), Ok(footer_place as u64));
    let footer = RecordHeader::decode(&pack[footer_place..], &SECRET, footer_place as u64).unwrap();
    assert_eq!(decode_footer(&footer, &pack[footer_place + RECORD_HEADER_BYTES..trailer_place]).unwrap(), entries);
}

/// One chunk whose content lies in a room, and its record behind that.
#[test]
fn packs_with_rooms() {
    let content = CONTENT.repeat(200)[..4096].to_vec();
    let room = RecordHeader::room_for(PACK_HEADER_BYTES as u64, content.len() as u64).unwrap();
    let mut pack = PackHeader { version: 2, number: 1, secret: SECRET }.encode().to_vec();
    pack.extend(room.encode(&SECRET, pack.len() as u64));
    pack.resize(4096, 0);
    pack.extend(&content);
    let place = pack.len();
    assert_eq!(room.end(PACK_HEADER_BYTES as u64), place as u64);
    let apart = RecordHeader {
        record: RecordType::Apart,
        stored_bytes: 4096,
        plain_bytes: 4096,
        content: 4096,
        hash: format::chunk_id(&content).0,
        ..object()
    };
    pack.extend(apart.encode(&SECRET, place as u64));
    let footer_place = pack.len();
    let entries = [FooterEntry { header: apart, place: u32::try_from(place).unwrap() }];
    pack.extend(encode_footer(&entries, &SECRET, footer_place as u64));
    compare("pack-v2.hex", &pack);

    assert_eq!(PackHeader::decode(&pack), Ok(PackHeader { version: 2, number: 1, secret: SECRET }));
    assert_eq!(RecordHeader::decode(&pack[PACK_HEADER_BYTES..], &SECRET, 64), Ok(room));
    assert_eq!(RecordHeader::decode(&pack[place..], &SECRET, place as u64), Ok(apart));
    let footer = RecordHeader::decode(&pack[footer_place..], &SECRET, footer_place as u64).unwrap();
    let payload = &pack[footer_place + RECORD_HEADER_BYTES..pack.len() - TRAILER_BYTES];
    assert_eq!(decode_footer(&footer, payload).unwrap(), entries);
}

#[test]
fn hollow_packs() {
    let mut pack = PackHeader { version: 1, number: 1, secret: SECRET }.encode().to_vec();
    let rooms: Vec<_> = RecordHeader::rooms(PACK_HEADER_BYTES as u64, 100).collect();
    let [(room_place, room)] = rooms[..] else { panic!("one room") };
    pack.extend(room.encode(&SECRET, room_place));
    pack.extend([0; 36]);
    let place = pack.len();
    pack.extend(object().encode(&SECRET, place as u64));
    pack.extend(CONTENT);
    let footer_place = pack.len() as u64;
    let entries = [FooterEntry { header: object(), place: u32::try_from(place).unwrap() }];
    pack.extend(encode_footer(&entries, &SECRET, footer_place));
    compare("pack-v1-hollow.hex", &pack);
    assert_eq!(RecordHeader::decode(&pack[PACK_HEADER_BYTES..], &SECRET, 64), Ok(room));
}

#[test]
fn roots_logs() {
    let transaction = Transaction {
        sequence: 1,
        changes: vec![("volume/1".to_owned(), Some(b"value".to_vec())), ("layer/2".to_owned(), None)],
    };
    let log = [&encode_header(&SECRET)[..], &transaction.encode(&SECRET)].concat();
    compare("roots-v1.hex", &log);
    assert_eq!(decode_header(&log), Ok(SECRET));
    let length = log.len() - ROOTS_HEADER_BYTES;
    assert_eq!(Transaction::decode(&log[ROOTS_HEADER_BYTES..], &SECRET), Ok((transaction, length)));
}

#[test]
fn format_files() {
    let format = StoreFormat::new(SECRET);
    compare("store-format-v1.hex", format.encode().as_bytes());
    assert_eq!(StoreFormat::decode(format.encode().as_bytes()), Ok(format));
}

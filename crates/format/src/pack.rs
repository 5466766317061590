//! Packs: the append-only files of a local store, and the records in them.
//!
//! A record's header has a checksum that is keyed with the store's secret and covers its place, so that no content of
//! a chunk, however chosen, can be taken for a record when a damaged pack is searched. The content has no checksum of
//! its own: its hash is its name. Contents that share the room of another file lie apart from their records, in a
//! room that begins at a block of the file system. The layouts are in `docs/format.md`, "Pack".

use crate::codec::Codec;

/// The length of a pack's header, in bytes.
pub const PACK_HEADER_BYTES: usize = 64;

/// The length of a record's header, in bytes.
pub const RECORD_HEADER_BYTES: usize = 64;

/// The length of what ends a full pack, in bytes.
pub const TRAILER_BYTES: usize = 24;

/// The length of one entry of a footer, in bytes.
pub const FOOTER_ENTRY_BYTES: usize = 56;

/// What every record begins with: where a damaged pack is searched for records, this is looked for.
pub const RECORD_MAGIC: [u8; 4] = *b"bRec";

/// The largest pack, in bytes: places in it are 32-bit.
pub const MAX_PACK_BYTES: u64 = 1 << 31;

/// The most bytes that may follow a record's header: a manifest's 1 MiB, or a footer.
pub const MAX_STORED_BYTES: u32 = 1 << 26;

/// The version of new packs.
pub const PACK_VERSION: u32 = 2;

/// The first version that has records apart from their contents.
pub const APART_VERSION: u32 = 2;

/// Where contents begin in a room, in bytes: file systems share whole blocks, at most so long.
pub const ROOM_ALIGNMENT: u64 = 4096;

const PACK_MAGIC: [u8; 8] = *b"brantPCK";
const TRAILER_MAGIC: [u8; 8] = *b"brantEND";
const FOOTER_CONTEXT: &str = "brant 2026-11 pack footer v1";

/// What the checksums of a store's packs are keyed with. It is no secret from who can read the store, only from guests.
pub type PackSecret = [u8; 32];

/// Bytes were not what a pack consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Too short, or of the wrong length.
    #[error("{0} bytes where another number was expected")]
    Length(usize),
    /// They do not begin as they must.
    #[error("no magic number")]
    Magic,
    /// The checksum is wrong.
    #[error("wrong checksum")]
    Checksum,
    /// Written by a later version of brant.
    #[error("pack version {0} is newer than this brant understands")]
    Newer(u32),
    /// A value that this version does not know or that cannot be.
    #[error("a pack record whose {0} cannot be")]
    Invalid(&'static str),
}

/// What a pack begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackHeader {
    /// The version of what the pack may hold, from 1 to [`PACK_VERSION`].
    pub version: u32,
    /// The pack's number, as in its file's name.
    pub number: u32,
    /// The secret of the store that wrote it.
    pub secret: PackSecret,
}

impl PackHeader {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> [u8; PACK_HEADER_BYTES] {
        let mut bytes = [0; PACK_HEADER_BYTES];
        bytes[..8].copy_from_slice(&PACK_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.secret);
        let checksum = short(blake3::hash(&bytes[..56]));
        bytes[56..].copy_from_slice(&checksum);
        bytes
    }

    /// Decodes it from the first bytes of a pack.
    ///
    /// # Errors
    /// Everything that [`PackHeader::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, PackError> {
        let header = bytes.first_chunk::<PACK_HEADER_BYTES>().ok_or(PackError::Length(bytes.len()))?;
        if header[..8] != PACK_MAGIC {
            return Err(PackError::Magic);
        }
        if header[56..] != short(blake3::hash(&header[..56])) {
            return Err(PackError::Checksum);
        }
        let version = u32_at(header, 8);
        if version > PACK_VERSION {
            return Err(PackError::Newer(version));
        }
        if version == 0 {
            return Err(PackError::Invalid("version"));
        }
        if header[48..56] != [0; 8] {
            return Err(PackError::Invalid("reserved field"));
        }
        let mut secret = [0; 32];
        secret.copy_from_slice(&header[16..48]);
        Ok(Self { version, number: u32_at(header, 12), secret })
    }
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordType {
    /// An object: its stored bytes follow.
    Object = 1,
    /// A claim: an object that is there already is present in one more domain. Nothing follows.
    Claim = 2,
    /// The index footer of a full pack: its entries follow.
    Footer = 3,
    /// Room: what follows is nothing that this record knows of. Contents of later records may lie in it.
    Room = 4,
    /// An object whose plain bytes lie in a room before it. Nothing follows.
    Apart = 5,
}

impl RecordType {
    const ALL: [Self; 5] = [Self::Object, Self::Claim, Self::Footer, Self::Room, Self::Apart];
}

/// What a record says of what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What the record is.
    pub record: RecordType,
    /// The kind of the object: chunk, node, manifest as the store numbers them; 0 in a footer.
    pub kind: u8,
    /// How the object's bytes are stored.
    pub codec: Codec,
    /// How the stored bytes are encrypted: always 0, not at all, in this version.
    pub cipher: u8,
    /// The domain that the object is present in.
    pub domain: u32,
    /// How many bytes follow; of a record apart, how long its content is.
    pub stored_bytes: u32,
    /// The length of the object's plain bytes.
    pub plain_bytes: u32,
    /// Which key the stored bytes are encrypted with; 0 without a cipher.
    pub key_id: u32,
    /// Of a record apart, where its content lies, in bytes from the beginning of the pack; else 0.
    pub content: u32,
    /// The object's hash; a footer's is over its entries.
    pub hash: [u8; 32],
}

impl RecordHeader {
    const EMPTY_ROOM: Self = Self {
        record: RecordType::Room,
        kind: 0,
        codec: Codec::Plain,
        cipher: 0,
        domain: 0,
        stored_bytes: 0,
        plain_bytes: 0,
        key_id: 0,
        content: 0,
        hash: [0; 32],
    };

    /// Rooms that fill a gap of at least a header's length from a place on, with their places.
    pub fn rooms(mut place: u64, mut length: u64) -> impl Iterator<Item = (u64, Self)> {
        let header = RECORD_HEADER_BYTES as u64;
        std::iter::from_fn(move || {
            let most = u64::from(MAX_STORED_BYTES);
            let follows = length.checked_sub(header)?;
            // What is left behind a room must have room for a header, too.
            let follows = if follows <= most { follows } else { follows.saturating_sub(header).min(most) };
            let room = Self { stored_bytes: u32::try_from(follows).ok()?, ..Self::EMPTY_ROOM };
            let here = place;
            place += header + follows;
            length -= header + follows;
            Some((here, room))
        })
    }

    /// A room for contents of so many bytes at a place, with the gap before them, or `None` where they are too long for one.
    #[must_use]
    pub fn room_for(place: u64, content_bytes: u64) -> Option<Self> {
        let begin = place + RECORD_HEADER_BYTES as u64;
        let gap = begin.next_multiple_of(ROOM_ALIGNMENT) - begin;
        let stored_bytes = u32::try_from(gap + content_bytes).ok().filter(|length| *length <= MAX_STORED_BYTES)?;
        Some(Self { stored_bytes, ..Self::EMPTY_ROOM })
    }

    /// Whether it is of an object, wherever that one's bytes lie.
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self.record, RecordType::Object | RecordType::Apart)
    }

    /// Where the content of the record at a place lies.
    #[must_use]
    pub fn content_place(&self, place: u64) -> u64 {
        match self.record {
            RecordType::Apart => self.content.into(),
            _ => place + RECORD_HEADER_BYTES as u64,
        }
    }

    /// Where the record at a place ends, and the next begins.
    #[must_use]
    pub fn end(&self, place: u64) -> u64 {
        let follows = if self.record == RecordType::Apart { 0 } else { self.stored_bytes };
        place + RECORD_HEADER_BYTES as u64 + u64::from(follows)
    }

    /// Encodes it for its place, in bytes from the beginning of the pack.
    #[must_use]
    pub fn encode(&self, secret: &PackSecret, place: u64) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4..56].copy_from_slice(&self.fields());
        let checksum = header_checksum(secret, place, &bytes[..56]);
        bytes[56..].copy_from_slice(&checksum);
        bytes
    }

    /// Decodes it from the bytes at its place.
    ///
    /// # Errors
    /// Everything that [`RecordHeader::encode`] would not have written for this secret and place.
    pub fn decode(bytes: &[u8], secret: &PackSecret, place: u64) -> Result<Self, PackError> {
        let header = bytes.first_chunk::<RECORD_HEADER_BYTES>().ok_or(PackError::Length(bytes.len()))?;
        if header[..4] != RECORD_MAGIC {
            return Err(PackError::Magic);
        }
        if header[56..] != header_checksum(secret, place, &header[..56]) {
            return Err(PackError::Checksum);
        }
        Self::from_fields(&header[4..56], place)
    }

    fn fields(&self) -> [u8; 52] {
        let mut bytes = [0; 52];
        bytes[..4].copy_from_slice(&[self.record as u8, self.kind, self.codec as u8, self.cipher]);
        let last = if self.record == RecordType::Apart { self.content } else { self.key_id };
        for (at, value) in [(4, self.domain), (8, self.stored_bytes), (12, self.plain_bytes), (16, last)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes[20..].copy_from_slice(&self.hash);
        bytes
    }

    fn from_fields(bytes: &[u8], place: u64) -> Result<Self, PackError> {
        let bytes = bytes.first_chunk::<52>().ok_or(PackError::Length(bytes.len()))?;
        let mut types = RecordType::ALL.into_iter();
        let record = types.find(|record| *record as u8 == bytes[0]).ok_or(PackError::Invalid("type"))?;
        let mut hash = [0; 32];
        hash.copy_from_slice(&bytes[20..]);
        let last = u32_at(bytes, 16);
        let (key_id, content) = if record == RecordType::Apart { (0, last) } else { (last, 0) };
        let header = Self {
            record,
            kind: bytes[1],
            codec: Codec::try_from(bytes[2]).map_err(|_| PackError::Invalid("codec"))?,
            cipher: bytes[3],
            domain: u32_at(bytes, 4),
            stored_bytes: u32_at(bytes, 8),
            plain_bytes: u32_at(bytes, 12),
            key_id,
            content,
            hash,
        };
        header.check(place)?;
        Ok(header)
    }

    /// Refuses what no record is.
    fn check(&self, place: u64) -> Result<(), PackError> {
        if self.cipher != 0 || self.key_id != 0 {
            return Err(PackError::Invalid("cipher"));
        }
        if self.stored_bytes > MAX_STORED_BYTES || (self.record == RecordType::Claim && self.stored_bytes != 0) {
            return Err(PackError::Invalid("length"));
        }
        let blank = Self { stored_bytes: self.stored_bytes, ..Self::EMPTY_ROOM };
        if self.record == RecordType::Room && *self != blank {
            return Err(PackError::Invalid("room"));
        }
        if self.record == RecordType::Apart {
            let content = u64::from(self.content);
            let before = content + u64::from(self.stored_bytes) <= place;
            if self.codec != Codec::Plain || self.plain_bytes != self.stored_bytes {
                return Err(PackError::Invalid("codec"));
            }
            if !before || !content.is_multiple_of(ROOM_ALIGNMENT) || content == 0 {
                return Err(PackError::Invalid("content"));
            }
        }
        Ok(())
    }
}

/// A record's header and place, as a footer lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// The record's header.
    pub header: RecordHeader,
    /// Its place, in bytes from the beginning of the pack.
    pub place: u32,
}

/// Encodes a footer: its record, header included, and the trailer that ends the pack.
///
/// # Panics
/// With more entries than [`MAX_STORED_BYTES`] has room for: a pack is sealed long before.
#[must_use]
pub fn encode_footer(entries: &[FooterEntry], secret: &PackSecret, place: u64) -> Vec<u8> {
    let mut payload = Vec::with_capacity(entries.len() * FOOTER_ENTRY_BYTES);
    for entry in entries {
        payload.extend(entry.header.fields());
        payload.extend(entry.place.to_le_bytes());
    }
    let stored_bytes = u32::try_from(payload.len()).ok().filter(|length| *length <= MAX_STORED_BYTES);
    let stored_bytes = stored_bytes.expect("a pack is sealed before its footer grows too long");
    let header = RecordHeader {
        record: RecordType::Footer,
        kind: 0,
        codec: Codec::Plain,
        cipher: 0,
        domain: 0,
        stored_bytes,
        plain_bytes: stored_bytes,
        key_id: 0,
        content: 0,
        hash: blake3::derive_key(FOOTER_CONTEXT, &payload),
    };
    let mut bytes = header.encode(secret, place).to_vec();
    bytes.extend(payload);
    bytes.extend(encode_trailer(secret, place));
    bytes
}

/// Decodes the entries that follow a footer's header.
///
/// # Errors
/// Entries that do not have the header's hash, or that cannot be.
pub fn decode_footer(header: &RecordHeader, payload: &[u8]) -> Result<Vec<FooterEntry>, PackError> {
    if header.record != RecordType::Footer {
        return Err(PackError::Invalid("type"));
    }
    let (entries, rest) = payload.as_chunks::<FOOTER_ENTRY_BYTES>();
    if payload.len() != header.stored_bytes as usize || !rest.is_empty() {
        return Err(PackError::Length(payload.len()));
    }
    if header.hash != blake3::derive_key(FOOTER_CONTEXT, payload) {
        return Err(PackError::Checksum);
    }
    entries
        .iter()
        .map(|entry| {
            let place = u32_at(entry, 52);
            Ok(FooterEntry { header: RecordHeader::from_fields(entry, place.into())?, place })
        })
        .collect()
}

fn encode_trailer(secret: &PackSecret, footer_place: u64) -> [u8; TRAILER_BYTES] {
    let mut bytes = [0; TRAILER_BYTES];
    bytes[..8].copy_from_slice(&TRAILER_MAGIC);
    bytes[8..16].copy_from_slice(&footer_place.to_le_bytes());
    let checksum = header_checksum(secret, footer_place, &bytes[..16]);
    bytes[16..].copy_from_slice(&checksum);
    bytes
}

/// Decodes the last bytes of a full pack, and returns the place of its footer.
///
/// # Errors
/// Everything else: then the pack is not full, or damaged.
pub fn decode_trailer(bytes: &[u8], secret: &PackSecret) -> Result<u64, PackError> {
    let trailer = bytes.first_chunk::<TRAILER_BYTES>().ok_or(PackError::Length(bytes.len()))?;
    if bytes.len() != TRAILER_BYTES {
        return Err(PackError::Length(bytes.len()));
    }
    if trailer[..8] != TRAILER_MAGIC {
        return Err(PackError::Magic);
    }
    let (low, high) = (u32_at(trailer, 8), u32_at(trailer, 12));
    let place = u64::from(low) | u64::from(high) << 32;
    if *trailer == encode_trailer(secret, place) { Ok(place) } else { Err(PackError::Checksum) }
}

fn header_checksum(secret: &PackSecret, place: u64, bytes: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(bytes).update(&place.to_le_bytes());
    short(hasher.finalize())
}

fn short(hash: blake3::Hash) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    first
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: PackSecret = [0x5e; 32];

    fn header() -> RecordHeader {
        RecordHeader {
            record: RecordType::Object,
            kind: 1,
            codec: Codec::Zstd,
            cipher: 0,
            domain: 7,
            stored_bytes: 1000,
            plain_bytes: 65536,
            key_id: 0,
            content: 0,
            hash: [0xab; 32],
        }
    }

    #[test]
    fn rooms_fill_a_gap_and_say_nothing_else() {
        let most = u64::from(MAX_STORED_BYTES);
        for length in [64, 65, 127, 128, 4096, most + 63, most + 64, most + 65, most + 127, most + 128, 5 * most + 1] {
            let mut end = 1000;
            for (place, room) in RecordHeader::rooms(1000, length) {
                assert_eq!(place, end, "{length}");
                assert_eq!(RecordHeader::decode(&room.encode(&SECRET, place), &SECRET, place), Ok(room), "{length}");
                end = place + RECORD_HEADER_BYTES as u64 + u64::from(room.stored_bytes);
            }
            assert_eq!(end, 1000 + length);
        }
        let (place, room) = RecordHeader::rooms(64, 100).next().unwrap();
        let decode = |room: RecordHeader| RecordHeader::decode(&room.encode(&SECRET, place), &SECRET, place);
        assert_eq!(decode(RecordHeader { domain: 1, ..room }), Err(PackError::Invalid("room")));
        assert_eq!(decode(RecordHeader { hash: [1; 32], ..room }), Err(PackError::Invalid("room")));
    }

    #[test]
    fn every_changed_bit_of_a_header_is_seen() {
        let pack = PackHeader { version: 2, number: 3, secret: SECRET }.encode();
        let record = header().encode(&SECRET, 64);
        assert_eq!(PackHeader::decode(&pack), Ok(PackHeader { version: 2, number: 3, secret: SECRET }));
        assert_eq!(RecordHeader::decode(&record, &SECRET, 64), Ok(header()));
        for bit in 0..8 * 64 {
            let mut bad = pack;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(PackHeader::decode(&bad).is_err(), "bit {bit}");
            let mut bad = record;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode(&bad, &SECRET, 64).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_is_none_at_another_place_or_in_another_store() {
        let record = header().encode(&SECRET, 64);
        assert_eq!(RecordHeader::decode(&record, &SECRET, 128), Err(PackError::Checksum));
        assert_eq!(RecordHeader::decode(&record, &[1; 32], 64), Err(PackError::Checksum));
    }

    #[test]
    fn a_footer_comes_back_and_no_damage_to_it_goes_unseen() {
        let entries = [FooterEntry { header: header(), place: 64 }, FooterEntry { header: header(), place: 2000 }];
        let bytes = encode_footer(&entries, &SECRET, 5000);
        let place = decode_trailer(&bytes[bytes.len() - TRAILER_BYTES..], &SECRET).unwrap();
        assert_eq!(place, 5000);
        let head = RecordHeader::decode(&bytes, &SECRET, place).unwrap();
        let payload = &bytes[RECORD_HEADER_BYTES..bytes.len() - TRAILER_BYTES];
        assert_eq!(decode_footer(&head, payload).unwrap(), entries);
        for position in 0..payload.len() {
            let mut bad = payload.to_vec();
            bad[position] ^= 1;
            assert!(decode_footer(&head, &bad).is_err(), "{position}");
        }
        assert!(decode_footer(&head, &payload[..FOOTER_ENTRY_BYTES]).is_err());
    }

    #[test]
    fn a_record_apart_points_back_to_a_block_of_plain_bytes_and_a_room_says_nothing_else() {
        let apart = RecordHeader {
            record: RecordType::Apart,
            codec: Codec::Plain,
            stored_bytes: 65536,
            content: 4096,
            ..header()
        };
        let decode = |header: RecordHeader, place| RecordHeader::decode(&header.encode(&SECRET, place), &SECRET, place);
        assert_eq!(decode(apart, 4096 + 65536), Ok(apart));
        assert_eq!((apart.content_place(80_000), apart.end(80_000)), (4096, 80_064));
        assert_eq!(decode(apart, 4096 + 65535), Err(PackError::Invalid("content")), "it reaches into its record");
        for content in [0, 64, 4095, 69_632] {
            assert_eq!(decode(RecordHeader { content, ..apart }, 70_000), Err(PackError::Invalid("content")));
        }
        let compressed = RecordHeader { codec: Codec::Zstd, ..apart };
        assert_eq!(decode(compressed, 1 << 20), Err(PackError::Invalid("codec")));
        assert_eq!(decode(RecordHeader { plain_bytes: 1, ..apart }, 1 << 20), Err(PackError::Invalid("codec")));
        let room = RecordHeader::room_for(64, 3 << 16).unwrap();
        assert_eq!(decode(room, 64), Ok(room));
        assert_eq!(room.end(64), 4096 + (3 << 16), "the gap is part of it");
        assert_eq!(
            RecordHeader::room_for(4096 - 64, 8192).unwrap().stored_bytes,
            8192,
            "without a gap where none is needed"
        );
        assert_eq!(decode(RecordHeader { domain: 1, ..room }, 64), Err(PackError::Invalid("room")));
        assert_eq!(RecordHeader::room_for(64, u64::from(MAX_STORED_BYTES)), None);
    }

    proptest! {
        #[test]
        fn any_record_apart_comes_back(
            kind: u8, domain: u32, block in 1..1_u32 << 18, blocks in 0..=MAX_STORED_BYTES / 4096, behind in 0..1_u64 << 20,
            hash: [u8; 32],
        ) {
            let (content, stored_bytes) = (block * 4096, blocks * 4096);
            let (record, codec, plain_bytes) = (RecordType::Apart, Codec::Plain, stored_bytes);
            let header = RecordHeader { record, kind, codec, domain, stored_bytes, plain_bytes, content, hash, ..header() };
            let place = u64::from(content) + u64::from(stored_bytes) + behind;
            prop_assert_eq!(RecordHeader::decode(&header.encode(&SECRET, place), &SECRET, place), Ok(header));
        }

        #[test]
        fn any_header_comes_back(
            record in prop::sample::select(vec![RecordType::Object, RecordType::Footer]),
            kind: u8, domain: u32, stored_bytes in 0..=MAX_STORED_BYTES, plain_bytes: u32, hash: [u8; 32],
            secret: [u8; 32], place: u64,
        ) {
            let header = RecordHeader { record, kind, domain, stored_bytes, plain_bytes, hash, ..header() };
            let bytes = header.encode(&secret, place);
            prop_assert_eq!(RecordHeader::decode(&bytes, &secret, place), Ok(header));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>, secret: [u8; 32], place: u64) {
            let _ = PackHeader::decode(&bytes);
            let _ = RecordHeader::decode(&bytes, &secret, place);
            let _ = decode_trailer(&bytes, &secret);
            let footer = RecordHeader { record: RecordType::Footer, ..header() };
            let _ = decode_footer(&footer, &bytes);
        }
    }
}

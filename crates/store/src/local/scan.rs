//! Reads a pack from record to record, across damage.
//!
//! Invariant: whatever the bytes are, every intact record is found: where one is damaged, the next is looked for, by
//! its length, else by searching. What follows the last intact record is the torn tail of a write that was never
//! committed. A room is passed over by its length, or searched where its header is damaged: what lies in it is some
//! guest's, and cannot be taken for a record.

use std::ops::Range;

use bytes::Bytes;
use format::pack::{RECORD_HEADER_BYTES, RECORD_MAGIC, RecordHeader, RecordType, TRAILER_BYTES};

use super::pack::{Pack, checked_content};
use crate::{Key, Kind, StoreError};

/// How much is searched at a time for the next record, in bytes.
const SEARCH_BYTES: usize = 1 << 20;

/// A record's header and place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) header: RecordHeader,
    pub(crate) place: u64,
}

/// What is found in a pack, in order.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// An object or a claim.
    Record(Record),
    /// Bytes between intact records that are none; the key where the header is intact.
    Damage { key: Option<Key>, place: u64, length: u64 },
}

/// Where a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScanEnd {
    /// Behind the last intact record, or the file's end where the pack is sealed.
    pub(crate) end: u64,
    /// Whether the pack has its footer.
    pub(crate) sealed: bool,
    /// How many bytes follow that are no record.
    pub(crate) torn_bytes: u64,
}

/// What a scan believes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Records with an intact header.
    Headers,
    /// Records whose content has its hash, too.
    Content,
}

/// Names the object of a record, if its kind is known.
pub(crate) fn key_of(header: &RecordHeader) -> Option<Key> {
    Some(Key { kind: Kind::from_byte(header.kind)?, hash: header.hash })
}

/// Reads a pack within a range of places and shows everything to `visit`.
pub(crate) fn scan(
    pack: &Pack,
    range: Range<u64>,
    check: Check,
    visit: &mut dyn FnMut(Found) -> Result<(), StoreError>,
) -> Result<ScanEnd, StoreError> {
    let length = range.end;
    let mut place = range.start;
    let mut end = range.start;
    // Damage is known as such only when something intact follows it.
    let mut suspects = Vec::new();
    while place < length {
        let Some(header) = pack.header_at(place)? else {
            let next = search(pack, place + 1, length)?;
            suspects.push(Found::Damage { key: None, place, length: next - place });
            place = next;
            continue;
        };
        let next = header.end(place);
        if header.record == RecordType::Room && next <= length {
            // Only the records of what lies in it count: behind the last of them nothing was committed.
            place = next;
            continue;
        }
        if header.record == RecordType::Footer {
            if next + TRAILER_BYTES as u64 == length && pack.footer()?.is_some() {
                return sealed(suspects, length, visit);
            }
        } else if next <= length && is_intact(pack, &header, place, check)? {
            suspects.drain(..).try_for_each(&mut *visit)?;
            visit(Found::Record(Record { header, place }))?;
            end = next;
            place = next;
            continue;
        }
        // The length is believed, but what follows need not be a record: then it is searched from there.
        let next = if next < length { next } else { length };
        suspects.push(Found::Damage { key: key_of(&header), place, length: next - place });
        place = next;
    }
    Ok(ScanEnd { end, sealed: false, torn_bytes: length.saturating_sub(end) })
}

fn sealed(
    mut suspects: Vec<Found>,
    length: u64,
    visit: &mut dyn FnMut(Found) -> Result<(), StoreError>,
) -> Result<ScanEnd, StoreError> {
    suspects.drain(..).try_for_each(visit)?;
    Ok(ScanEnd { end: length, sealed: true, torn_bytes: 0 })
}

fn is_intact(pack: &Pack, header: &RecordHeader, place: u64, check: Check) -> Result<bool, StoreError> {
    let Some(key) = key_of(header) else { return Ok(false) };
    if header.record == RecordType::Claim || check == Check::Headers {
        return Ok(true);
    }
    if header.stored_bytes as usize > key.kind.max_plain_bytes() {
        return Ok(false);
    }
    let content = pack.read(header.content_place(place), header.stored_bytes as usize)?;
    Ok(content.is_some_and(|content| checked_content(&key, header, Bytes::from(content)).is_some()))
}

/// The next place that has an intact header, or the end.
fn search(pack: &Pack, from: u64, length: u64) -> Result<u64, StoreError> {
    let mut start = from;
    while start < length {
        let window = usize::try_from(length - start).unwrap_or(usize::MAX).min(SEARCH_BYTES);
        let Some(bytes) = pack.read(start, window)? else { break };
        for (offset, candidate) in bytes.windows(RECORD_MAGIC.len()).enumerate() {
            let place = start + offset as u64;
            if candidate != RECORD_MAGIC {
                continue;
            }
            let intact = match bytes[offset..].first_chunk::<RECORD_HEADER_BYTES>() {
                Some(header) => RecordHeader::decode(header, &pack.secret, place).is_ok(),
                None => pack.header_at(place)?.is_some(),
            };
            if intact {
                return Ok(place);
            }
        }
        // Windows overlap, so that a record that begins across their border is seen.
        start += (window - window.min(RECORD_MAGIC.len() - 1)).max(1) as u64;
    }
    Ok(length)
}

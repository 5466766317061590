//! Hollows packs: the room of what is dead in them is given back where it lies, and what is live stays.
//!
//! In this order, each step durable before the next: the dead have left the index; the footer is written anew, without
//! them; rooms are put in their place, and the blocks in these are given back. A crash in between leaves a pack without
//! a footer, in which all is as it was, or one that still takes more than it must, which the next collection sees.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use format::pack::{
    FOOTER_ENTRY_BYTES, FooterEntry, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, RecordType, TRAILER_BYTES,
    encode_footer,
};

use super::committer::Core;
use super::disk::failed;
use super::pack::{Pack, apart};
use crate::StoreError;

/// What file systems give back in one piece, in bytes.
const BLOCK_BYTES: u64 = 4096;

/// The range of a record with what follows it; `None` for one that no footer lists.
fn range(record: &FooterEntry) -> Option<Range<u64>> {
    let begin = u64::from(record.place);
    match record.header.record {
        RecordType::Object | RecordType::Claim | RecordType::Apart => Some(begin..record.header.end(begin)),
        RecordType::Footer | RecordType::Room => None,
    }
}

/// The range of a content that lies apart from its record.
fn content(record: &FooterEntry) -> Option<Range<u64>> {
    let begin = u64::from(apart(&record.header)?);
    Some(begin..begin + u64::from(record.header.stored_bytes))
}

fn footer_bytes(records: usize) -> u64 {
    (RECORD_HEADER_BYTES + records * FOOTER_ENTRY_BYTES + TRAILER_BYTES) as u64
}

/// What a pack would take on the medium if all but some of its records went.
#[derive(Debug)]
pub(crate) struct Remainder {
    blocks: u64,
    /// The block behind the last one that was counted.
    next_block: u64,
    records: usize,
    kept: usize,
    /// The end of the last record.
    end: u64,
    gaps: bool,
    simple: bool,
}

impl Remainder {
    pub(crate) fn new() -> Self {
        Self { blocks: 1, next_block: 1, records: 0, kept: 0, end: PACK_HEADER_BYTES as u64, gaps: false, simple: true }
    }

    /// Counts the next record of the pack.
    pub(crate) fn add(&mut self, record: &FooterEntry, kept: bool) {
        self.records += 1;
        let Some(range) = range(record).filter(|range| range.start >= self.end) else {
            self.simple = false;
            return;
        };
        self.gaps |= range.start > self.end;
        self.end = range.end;
        if kept {
            self.kept += 1;
            self.count(&range);
            // It has its blocks for itself.
            self.blocks += content(record).map_or(0, |content| (content.end - content.start).div_ceil(BLOCK_BYTES));
        }
    }

    fn count(&mut self, range: &Range<u64>) {
        let first = (range.start / BLOCK_BYTES).max(self.next_block);
        self.next_block = range.end.div_ceil(BLOCK_BYTES).max(self.next_block);
        self.blocks += self.next_block.saturating_sub(first);
    }

    /// Whether there are gaps between the records already.
    pub(crate) fn has_gaps(&self) -> bool {
        self.gaps
    }

    /// How long the footer of all records is, in bytes.
    pub(crate) fn footer_bytes(&self) -> u64 {
        footer_bytes(self.records)
    }

    /// What would be left with its footer, in bytes; `None` where this pack must be copied, or nothing in it is kept.
    pub(crate) fn bytes(mut self) -> Option<u64> {
        let end = self.end;
        self.count(&(end..end + footer_bytes(self.kept)));
        (self.simple && self.kept > 0).then_some(self.blocks * BLOCK_BYTES)
    }
}

/// A stretch of a pack in which no record lies, though contents of records behind it may.
#[derive(Debug, PartialEq, Eq)]
struct Gap {
    range: Range<u64>,
    contents: Vec<Range<u64>>,
}

/// The stretches up to `end` in which none of these records lies; `None` where they cannot be told.
fn gaps(kept: &[FooterEntry], end: u64) -> Option<Vec<Gap>> {
    let mut gaps: Vec<Gap> = Vec::new();
    let mut position = PACK_HEADER_BYTES as u64;
    for record in kept {
        let range = range(record).filter(|range| range.start >= position)?;
        if range.start > position {
            gaps.push(Gap { range: position..range.start, contents: Vec::new() });
        }
        position = range.end;
        if let Some(content) = content(record) {
            let holds = |gap: &&mut Gap| gap.range.start < content.start && content.end <= gap.range.end;
            gaps.iter_mut().rev().find(holds)?.contents.push(content);
        }
    }
    if position < end {
        gaps.push(Gap { range: position..end, contents: Vec::new() });
    }
    let header = RECORD_HEADER_BYTES as u64;
    (position <= end && gaps.iter().all(|gap| gap.range.end - gap.range.start >= header)).then_some(gaps)
}

/// A room that is put in the place of what is dead.
#[derive(Debug)]
struct NewRoom {
    place: u64,
    header: RecordHeader,
    /// The blocks in it that can be given back.
    free: Vec<Range<u64>>,
}

/// The rooms that fill a gap; `None` where contents are in the way of their headers.
fn rooms(gap: &Gap) -> Option<Vec<NewRoom>> {
    let header = RECORD_HEADER_BYTES as u64;
    let Range { start, end } = gap.range;
    let first = gap.contents.iter().map(|content| content.start).min().unwrap_or(end);
    // All contents lie in the last room, whose header is in front of them.
    let last = first.checked_sub(header).filter(|last| *last >= start + header).unwrap_or(start);
    let before = RecordHeader::rooms(start, last - start);
    let rooms: Vec<_> = before.chain(RecordHeader::rooms(last, end - last)).collect();
    let with_free = |(place, room): (u64, RecordHeader)| {
        let blocks = without(place + header..room.end(place), &gap.contents);
        let whole = |range: Range<u64>| {
            let range = range.start.next_multiple_of(BLOCK_BYTES)..range.end / BLOCK_BYTES * BLOCK_BYTES;
            (range.start < range.end).then_some(range)
        };
        NewRoom { place, header: room, free: blocks.into_iter().filter_map(whole).collect() }
    };
    let is_clear = |(place, _): &(u64, RecordHeader)| {
        gap.contents.iter().all(|content| content.end <= *place || place + header <= content.start)
    };
    rooms.iter().all(is_clear).then(|| rooms.into_iter().map(with_free).collect())
}

/// What is left of a range without others.
fn without(range: Range<u64>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut others = others.to_vec();
    others.sort_unstable_by_key(|other| other.start);
    let mut left = Vec::new();
    let mut position = range.start;
    for other in others {
        left.push(position..other.start.min(range.end));
        position = position.max(other.end);
    }
    left.push(position..range.end);
    left.retain(|range| range.start < range.end);
    left
}

impl Core {
    /// Whether packs can be hollowed, as far as is known.
    pub(crate) fn can_hollow(&self) -> bool {
        !self.cannot_punch.load(Ordering::Acquire)
    }

    /// Gives the room of all records but those that are kept back, and returns how many bytes that was; `None` where it
    /// cannot be done in this pack, and nothing was. The index refers to none of them any more, durably.
    pub(crate) fn hollow(
        &self,
        pack: &Pack,
        is_kept: impl Fn(&FooterEntry) -> Result<bool, StoreError>,
    ) -> Result<Option<u64>, StoreError> {
        let Some((listed, place)) = pack.footer()? else { return Ok(None) };
        let mut entries = Vec::with_capacity(listed.len());
        for entry in listed {
            if is_kept(&entry)? {
                entries.push(entry);
            }
        }
        let rooms = gaps(&entries, place).and_then(|gaps| gaps.iter().map(rooms).collect::<Option<Vec<_>>>());
        let Some(rooms) = rooms else { return Ok(None) };
        // Who counts what the packs allocate counts it before or after.
        let mut sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        let allocated = || pack.file.allocated_bytes().map_err(failed("examine", &pack.path));
        let before = allocated()?;
        self.write_footer(pack, &entries, place)?;
        for room in rooms.iter().flatten() {
            self.make_room(pack, room)?;
        }
        self.sync_pack(pack)?;
        let freed = before.saturating_sub(allocated()?);
        if pack.number < sealed.next {
            sealed.bytes = sealed.bytes.saturating_sub(freed);
        }
        Ok(Some(freed))
    }

    /// Writes a shorter footer in the place of the one there is, durably.
    fn write_footer(&self, pack: &Pack, entries: &[FooterEntry], place: u64) -> Result<(), StoreError> {
        let footer = encode_footer(entries, &pack.secret, place);
        pack.file.write_all_at(&[&footer], place).map_err(failed("write", &pack.path))?;
        pack.file.set_length(place + footer.len() as u64).map_err(failed("truncate", &pack.path))?;
        self.sync_pack(pack)
    }

    /// Puts a room in the place of what is dead, and gives back what is free in it.
    fn make_room(&self, pack: &Pack, room: &NewRoom) -> Result<(), StoreError> {
        let header = room.header.encode(&pack.secret, room.place);
        pack.file.write_all_at(&[&header], room.place).map_err(failed("write", &pack.path))?;
        for blocks in room.free.iter().filter(|_| self.can_hollow()) {
            match pack.file.punch(blocks.start, blocks.end - blocks.start) {
                Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                    tracing::info!(pack = %pack.path.display(), "no holes can be punched here: packs are copied instead");
                    self.cannot_punch.store(true, Ordering::Release);
                }
                punched => punched.map_err(failed("punch a hole into", &pack.path))?,
            }
        }
        Ok(())
    }

    /// As in a commit, nothing is written any more after a failure: nobody can say what the medium holds.
    fn sync_pack(&self, pack: &Pack) -> Result<(), StoreError> {
        pack.file.sync_data().map_err(|error| {
            self.stopped.store(true, Ordering::Release);
            failed("synchronise", &pack.path)(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use format::Codec;

    use super::*;

    fn object(place: u32, stored_bytes: u32) -> FooterEntry {
        let record = RecordType::Object;
        let header = RecordHeader {
            record,
            kind: 1,
            codec: Codec::Plain,
            cipher: 0,
            domain: 0,
            stored_bytes,
            plain_bytes: stored_bytes,
            key_id: 0,
            content: 0,
            hash: [0; 32],
        };
        FooterEntry { header, place }
    }

    fn record_apart(place: u32, content: u32, stored_bytes: u32) -> FooterEntry {
        let FooterEntry { header, .. } = object(place, stored_bytes);
        FooterEntry { header: RecordHeader { record: RecordType::Apart, content, ..header }, place }
    }

    #[test]
    fn gaps_are_what_no_record_has() {
        let whole = 64..1000;
        let gaps = |kept: &[FooterEntry], end| {
            gaps(kept, end).map(|gaps| gaps.into_iter().map(|gap| gap.range).collect::<Vec<_>>())
        };
        assert_eq!(gaps(&[], 1000), Some(vec![whole]));
        assert_eq!(gaps(&[object(64, 936)], 1064), Some(vec![]));
        assert_eq!(gaps(&[object(164, 100), object(628, 308)], 1000), Some(vec![64..164, 328..628]));
        assert_eq!(gaps(&[object(64, 100), object(200, 36)], 300), None, "36 bytes are no room");
        assert_eq!(gaps(&[object(64, 100), object(200, 50)], 300), None, "one reaches behind the end");
        assert_eq!(gaps(&[object(64, 500), object(200, 50)], 1000), None, "one lies in another");
        let room = RecordHeader::rooms(64, 100).next().unwrap().1;
        assert_eq!(gaps(&[FooterEntry { header: room, place: 64 }], 1000), None);
    }

    #[test]
    fn what_is_left_is_counted_in_blocks() {
        let left = |records: &[(u32, u32, bool)]| {
            let mut remainder = Remainder::new();
            records.iter().for_each(|(place, length, kept)| remainder.add(&object(*place, *length), *kept));
            (remainder.has_gaps(), remainder.bytes())
        };
        let block = BLOCK_BYTES;
        assert_eq!(left(&[(64, 936, true)]), (false, Some(block)), "header, record and footer share a block");
        assert_eq!(left(&[(64, 936, false)]), (false, None), "nothing is kept");
        let sparse = [(64, 40_000, false), (40_128, 8000, true), (48_192, 40_000, false)];
        // The header's; 9 to 11; and 21 with the footer.
        assert_eq!(left(&sparse), (false, Some(5 * block)));
        assert_eq!(left(&[(4096, 936, true)]), (true, Some(2 * block)));
        assert_eq!(left(&[(64, 936, true), (500, 10, true)]).1, None, "records that overlap are left alone");
    }

    #[test]
    fn contents_apart_stay_where_they_are_and_the_blocks_around_them_go() {
        // A room with four contents of two blocks each, and the second and the last are kept.
        let block = BLOCK_BYTES;
        let behind = 9 * 4096;
        let kept = [record_apart(behind + 64, 3 * 4096, 8192), record_apart(behind + 192, 7 * 4096, 8192)];
        let gaps = gaps(&kept, u64::from(behind) + 256).unwrap();
        assert_eq!(gaps.len(), 2);
        assert_eq!((gaps[0].contents.len(), gaps[1].contents.len()), (2, 0));
        let found = rooms(&gaps[0]).unwrap();
        let end = u64::from(behind) + 64;
        // What lies before the contents, and a room whose header is in front of the first of them.
        assert_eq!(found.iter().map(|room| room.place).collect::<Vec<_>>(), [64, 3 * block - 64]);
        assert_eq!(found[0].header.end(64), 3 * block - 64);
        assert_eq!(found[1].header.end(3 * block - 64), end);
        assert_eq!(found[0].free, vec![block..2 * block]);
        assert_eq!(found[1].free, vec![5 * block..7 * block]);
        let mut remainder = Remainder::new();
        let all = [1, 3, 5, 7].map(|first| first * 4096);
        for (place, content) in (behind..).step_by(64).zip(all) {
            remainder.add(&record_apart(place, content, 8192), content == 3 * 4096 || content == 7 * 4096);
        }
        assert_eq!(remainder.bytes(), Some(6 * block), "the pack's header, the records' block and four of contents");
        let lost = [record_apart(behind, 4096, 8192), record_apart(behind + 64, 8192, behind - 8192 + 64)];
        assert_eq!(super::gaps(&lost, u64::from(behind) + 128), None, "a content that lies in no gap");
    }

    #[test]
    fn a_room_is_left_without_what_lies_in_it() {
        let left = |range: Range<u64>, others: &[(u64, u64)]| {
            let others: Vec<_> = others.iter().map(|(start, end)| *start..*end).collect();
            without(range, &others).into_iter().map(|range| (range.start, range.end)).collect::<Vec<_>>()
        };
        assert_eq!(left(10..100, &[]), [(10, 100)]);
        assert_eq!(left(10..100, &[(90, 120), (30, 40)]), [(10, 30), (40, 90)]);
        assert_eq!(left(10..100, &[(0, 10), (30, 40), (40, 50), (90, 120)]), [(10, 30), (50, 90)]);
        assert_eq!(left(30..40, &[(20, 50)]), []);
    }
}

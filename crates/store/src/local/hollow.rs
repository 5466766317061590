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
use super::pack::Pack;
use crate::StoreError;

/// What file systems give back in one piece, in bytes.
const BLOCK_BYTES: u64 = 4096;

/// The range of a record with what follows it; `None` for one whose content may lie elsewhere.
fn range(record: &FooterEntry) -> Option<Range<u64>> {
    let begin = u64::from(record.place);
    match record.header.record {
        RecordType::Object | RecordType::Claim => {
            Some(begin..begin + RECORD_HEADER_BYTES as u64 + u64::from(record.header.stored_bytes))
        }
        RecordType::Footer | RecordType::Room => None,
    }
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

/// The ranges up to `end` in which none of these records lies; `None` where they cannot be told.
fn gaps(kept: &[FooterEntry], end: u64) -> Option<Vec<Range<u64>>> {
    let mut gaps = Vec::new();
    let mut position = PACK_HEADER_BYTES as u64;
    for record in kept {
        let range = range(record).filter(|range| range.start >= position)?;
        if range.start > position {
            gaps.push(position..range.start);
        }
        position = range.end;
    }
    if position < end {
        gaps.push(position..end);
    }
    let header = RECORD_HEADER_BYTES as u64;
    (position <= end && gaps.iter().all(|gap| gap.end - gap.start >= header)).then_some(gaps)
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
        is_kept: impl Fn(&FooterEntry) -> bool,
    ) -> Result<Option<u64>, StoreError> {
        let Some((mut entries, place)) = pack.footer()? else { return Ok(None) };
        entries.retain(is_kept);
        let Some(gaps) = gaps(&entries, place) else { return Ok(None) };
        // Who counts what the packs allocate counts it before or after.
        let mut sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        let allocated = || pack.file.allocated_bytes().map_err(failed("examine", &pack.path));
        let before = allocated()?;
        self.write_footer(pack, &entries, place)?;
        for gap in gaps {
            self.empty_gap(pack, gap)?;
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

    fn empty_gap(&self, pack: &Pack, gap: Range<u64>) -> Result<(), StoreError> {
        for (place, room) in RecordHeader::rooms(gap.start, gap.end - gap.start) {
            let header = room.encode(&pack.secret, place);
            pack.file.write_all_at(&[&header], place).map_err(failed("write", &pack.path))?;
            let content = place + RECORD_HEADER_BYTES as u64;
            let begin = content.next_multiple_of(BLOCK_BYTES);
            let end = (content + u64::from(room.stored_bytes)) / BLOCK_BYTES * BLOCK_BYTES;
            if begin >= end || !self.can_hollow() {
                continue;
            }
            match pack.file.punch(begin, end - begin) {
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
            hash: [0; 32],
        };
        FooterEntry { header, place }
    }

    #[test]
    fn gaps_are_what_no_record_has() {
        let whole = 64..1000;
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
}

//! Appends records to packs.
//!
//! Invariant: a record is either whole or, after a failed write, cut off again. A full pack gets its footer from the
//! commit that has made its content durable, so that what a footer lists is there even after a loss of power. Room is kept in reserve, so that a full disk stops puts before it stops the index,
//! the roots and the catalog.

use std::sync::Arc;

use format::pack::{
    APART_VERSION, FOOTER_ENTRY_BYTES, FooterEntry, MAX_STORED_BYTES, PACK_HEADER_BYTES, RECORD_HEADER_BYTES,
    ROOM_ALIGNMENT, RecordHeader, RecordType, encode_footer,
};
use medium::{File, cannot_share};

use super::disk::{available_bytes, failed};
use super::index::Checkpoint;
use super::pack::{Pack, Packs};
use super::scan::{Check, Found, scan};
use crate::StoreError;

/// The most records in a pack: its footer must fit a record.
const MAX_RECORDS: u64 = 1 << 18;

const _: () = assert!(MAX_RECORDS * FOOTER_ENTRY_BYTES as u64 <= MAX_STORED_BYTES as u64);

/// How much is written before the room on the file system is asked for again, in bytes.
const ROOM_STEP_BYTES: u64 = 1 << 20;

/// How much is appended before the medium is told to begin with it, in bytes.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// What is written to the medium in one piece, in bytes: a last part of one is written with what follows.
const PAGE_BYTES: u64 = 4096;

/// A pack that is appended to.
#[derive(Debug)]
pub(crate) struct OpenPack {
    pub(crate) pack: Arc<Pack>,
    pub(crate) end: u64,
    pub(crate) records: u64,
    /// Whether it was found at opening: only what lies behind the index's checkpoint was looked at then.
    pub(crate) found: bool,
}

/// Where a record and its content lie, apart from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) place: u32,
    pub(crate) content: u32,
}

/// A pack that was written to.
#[derive(Debug)]
pub(crate) struct Dirty {
    pub(crate) pack: Arc<Pack>,
    /// Where its footer goes, if it is full.
    pub(crate) full_at: Option<u64>,
    /// Whether some of its records may be damaged, so that what its footer lists must be looked at.
    pub(crate) damaged: bool,
}

/// What a commit must make durable, and what it has covered then.
#[derive(Debug)]
pub(crate) struct Unsynced {
    pub(crate) packs: Vec<Dirty>,
    pub(crate) directory: bool,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) sequence: u64,
}

/// The end of the store where records are added.
#[derive(Debug)]
pub(crate) struct Writer {
    packs: Arc<Packs>,
    open: Option<OpenPack>,
    /// The end of what was written, also where no pack is open.
    position: Checkpoint,
    next_number: u32,
    pack_bytes: u64,
    reserve_bytes: u64,
    /// How much may be written before the room is asked for again.
    room_bytes: u64,
    dirty: Vec<Dirty>,
    directory_dirty: bool,
    sequence: u64,
    /// The pack that the medium was told to begin with, and up to where.
    written_back: (u32, u64),
    buffer: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(
        packs: Arc<Packs>,
        (open, dirty): (Option<OpenPack>, Vec<Dirty>),
        position: Checkpoint,
        next_number: u32,
        limits: (u64, u64),
    ) -> Self {
        let (pack_bytes, reserve_bytes) = limits;
        let sequence = dirty.len() as u64;
        Self {
            packs,
            open,
            position,
            next_number,
            pack_bytes,
            reserve_bytes,
            room_bytes: 0,
            dirty,
            directory_dirty: false,
            sequence,
            written_back: (position.pack, position.end),
            buffer: Vec::new(),
        }
    }

    /// Counts the records written since the store was opened.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The end of what was written.
    pub(crate) fn position(&self) -> Checkpoint {
        self.position
    }

    /// Appends a record and returns its pack and place.
    pub(crate) fn append(&mut self, header: &RecordHeader, content: &[u8]) -> Result<(u32, u32), StoreError> {
        let length = (RECORD_HEADER_BYTES + content.len()) as u64;
        self.require_room(length)?;
        let open = self.pack_for(length, 1, 1)?;
        let place = u32::try_from(open.end).expect("packs are full long before 4 GiB");
        let (pack, end) = (open.pack.clone(), open.end);
        self.buffer.clear();
        self.buffer.extend(header.encode(&pack.secret, end));
        self.buffer.extend(content);
        write_or_cut(&pack, &self.buffer, end)?;
        self.advance(&pack, end + length, 1);
        self.room_bytes = self.room_bytes.saturating_sub(length);
        Ok((pack.number, place))
    }

    /// Has a room share contents that lie one behind the other in a file, appends their records behind it, and returns
    /// the pack and the places of record and content; `None` where the file system does not share them.
    pub(crate) fn append_shared(
        &mut self,
        headers: &[RecordHeader],
        source: &dyn File,
        offset: u64,
    ) -> Result<Option<(u32, Vec<Shared>)>, StoreError> {
        let content_bytes: u64 = headers.iter().map(|header| u64::from(header.stored_bytes)).sum();
        let records = headers.len() as u64;
        let written = ROOM_ALIGNMENT + (records + 1) * RECORD_HEADER_BYTES as u64;
        // What is shared takes no room, but what describes it does.
        self.require_room(written)?;
        let open = self.pack_for(written + content_bytes, records, APART_VERSION)?;
        let (pack, begin) = (open.pack.clone(), open.end);
        let Some(room) = RecordHeader::room_for(begin, content_bytes) else { return Ok(None) };
        let behind = room.end(begin);
        let mut shared = Vec::with_capacity(headers.len());
        self.buffer.clear();
        let (mut place, mut content) = (behind, behind - content_bytes);
        for header in headers {
            let at = |place| u32::try_from(place).expect("packs are full long before 4 GiB");
            shared.push(Shared { place: at(place), content: at(content) });
            let header = RecordHeader { record: RecordType::Apart, content: at(content), ..*header };
            self.buffer.extend(header.encode(&pack.secret, place));
            place += RECORD_HEADER_BYTES as u64;
            content += u64::from(header.stored_bytes);
        }
        let cloned = pack
            .file
            .write_all_at(&[&room.encode(&pack.secret, begin)], begin)
            .and_then(|()| pack.file.clone_range(behind - content_bytes, source, offset, content_bytes));
        if let Err(error) = cloned {
            // As in `write_or_cut`.
            let _ = pack.file.set_length(begin);
            return if cannot_share(&error) { Ok(None) } else { Err(failed("share room with", &pack.path)(error)) };
        }
        if let Err(error) = write_or_cut(&pack, &self.buffer, behind) {
            let _ = pack.file.set_length(begin);
            return Err(error);
        }
        self.advance(&pack, place, records);
        self.room_bytes = self.room_bytes.saturating_sub(written);
        Ok(Some((pack.number, shared)))
    }

    /// The pack to append to, with room for so many bytes and records of a version.
    fn pack_for(&mut self, length: u64, records: u64, version: u32) -> Result<&mut OpenPack, StoreError> {
        let is_full = |open: &mut OpenPack| {
            let full = open.end + length > self.pack_bytes || open.records + records > MAX_RECORDS;
            (open.records > 0 && full) || open.pack.version < version
        };
        if let Some(full) = self.open.take_if(is_full) {
            self.mark_dirty(&full.pack, Some(full.end), full.found);
        }
        if self.open.is_none() {
            self.begin_pack()?;
        }
        let Some(open) = &mut self.open else { unreachable!("a pack has just been opened") };
        Ok(open)
    }

    /// Counts what was appended to the open pack.
    fn advance(&mut self, pack: &Arc<Pack>, end: u64, records: u64) {
        let Some(open) = &mut self.open else { unreachable!("a pack is open") };
        open.end = end;
        open.records += records;
        self.position = Checkpoint { pack: pack.number, end, records: open.records };
        self.sequence += records;
        self.mark_dirty(pack, None, false);
        self.write_back(pack);
    }

    /// Has the medium begin with what was appended, so that a commit finds little left to wait for.
    fn write_back(&mut self, pack: &Pack) {
        if self.written_back.0 != pack.number {
            self.written_back = (pack.number, 0);
        }
        let (begin, end) = (self.written_back.1, self.position.end / PAGE_BYTES * PAGE_BYTES);
        if end >= begin + WRITE_BACK_BYTES {
            pack.file.begin_writing(begin, end - begin);
            self.written_back.1 = end;
        }
    }

    /// Begins another pack, so that the one there is grows no more.
    pub(crate) fn begin_another(&mut self) -> Result<(), StoreError> {
        self.require_room(PACK_HEADER_BYTES as u64)?;
        if let Some(full) = self.open.take() {
            self.mark_dirty(&full.pack, Some(full.end), full.found);
        }
        self.begin_pack()?;
        let Some(open) = &self.open else { unreachable!("a pack has just been opened") };
        self.position = Checkpoint { pack: open.pack.number, end: open.end, records: 0 };
        self.sequence += 1;
        let pack = open.pack.clone();
        self.mark_dirty(&pack, None, false);
        Ok(())
    }

    /// Takes what has to be made durable.
    pub(crate) fn take_unsynced(&mut self) -> Unsynced {
        Unsynced {
            packs: std::mem::take(&mut self.dirty),
            directory: std::mem::take(&mut self.directory_dirty),
            checkpoint: self.position,
            sequence: self.sequence,
        }
    }

    fn require_room(&mut self, length: u64) -> Result<(), StoreError> {
        if self.room_bytes < length {
            let spare = available_bytes(&*self.packs.medium, &self.packs.directory)?.saturating_sub(self.reserve_bytes);
            if spare < length {
                return Err(StoreError::Full { path: self.packs.directory.clone() });
            }
            self.room_bytes = spare.min(ROOM_STEP_BYTES.max(length));
        }
        Ok(())
    }

    fn begin_pack(&mut self) -> Result<(), StoreError> {
        let pack = Pack::create(&self.packs, self.next_number)?;
        self.next_number += 1;
        self.directory_dirty = true;
        self.open = Some(OpenPack { pack, end: PACK_HEADER_BYTES as u64, records: 0, found: false });
        Ok(())
    }

    fn mark_dirty(&mut self, pack: &Arc<Pack>, full_at: Option<u64>, damaged: bool) {
        match self.dirty.last_mut().filter(|last| last.pack.number == pack.number) {
            Some(last) => {
                last.full_at = full_at;
                last.damaged |= damaged;
            }
            None => self.dirty.push(Dirty { pack: pack.clone(), full_at, damaged }),
        }
    }
}

/// Ends a full pack, whose content is durable, with its footer. Without one it is as good, but slower to read anew.
pub(crate) fn seal(pack: &Pack, end: u64, check: Check) -> Result<(), StoreError> {
    let mut entries = Vec::new();
    scan(pack, PACK_HEADER_BYTES as u64..end, check, &mut |found| {
        if let Found::Record(record) = found {
            let place = u32::try_from(record.place).expect("packs are full long before 4 GiB");
            entries.push(FooterEntry { header: record.header, place });
        }
        Ok(())
    })?;
    write_or_cut(pack, &encode_footer(&entries, &pack.secret, end), end)?;
    pack.file.sync_data().map_err(failed("synchronise", &pack.path))
}

/// Writes at the end of a pack; what could be written only in part is cut off.
fn write_or_cut(pack: &Pack, bytes: &[u8], end: u64) -> Result<(), StoreError> {
    pack.file.write_all_at(&[bytes], end).map_err(|error| {
        // Where even this fails, the remainder is overwritten by the next record or passed over by the next scan.
        let _ = pack.file.set_length(end);
        failed("write", &pack.path)(error)
    })
}

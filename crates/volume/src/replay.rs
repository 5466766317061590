//! Reading a segment again, from the first record to the last, as recovery and sealing do.
//!
//! Invariant: a record counts only if its header and data have their checksums at this place. What is no record is
//! skipped in steps of a header's length until the next one that counts: a torn record hides nothing that was flushed
//! after it.

use std::io;

use format::journal::{
    FOOTER_ENTRY_BYTES, FooterEntry, HEADER_BYTES, Home, JournalKeys, Record, RecordError, RecordKind, SegmentId,
    decode_footer, footer_entries,
};
use medium::File;

use crate::segment::{FIRST_RECORD, Found, RECORD_HEADER, Segment};

/// How much is read at a time.
const WINDOW_BYTES: usize = 256 * 1024;

/// What a segment says.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// The records that count, by place.
    pub(crate) entries: Vec<FooterEntry>,
    /// Where the last record that counts ends; where the first would begin if there is none.
    pub(crate) end: u64,
    /// How many bytes before `end` are in no record that counts.
    pub(crate) torn_bytes: u64,
    /// The version, where a record is of a later one; what follows has not been read then.
    pub(crate) newer: Option<u8>,
}

impl Replay {
    /// What a footer says.
    pub(crate) fn from_footer(entries: Vec<FooterEntry>, end: u64) -> Self {
        let records: u64 = entries.iter().map(|entry| RECORD_HEADER + entry.record.data_bytes()).sum();
        let torn_bytes = end.saturating_sub(FIRST_RECORD + records);
        Self { entries, end, torn_bytes, newer: None }
    }

    /// Whether a record ends at a position, with so many torn bytes before.
    pub(crate) fn is_whole_to(&self, end: u64, torn_bytes: u64) -> bool {
        let before = self.entries.iter().take_while(|entry| entry.position < end);
        let records: u64 = before.map(|entry| RECORD_HEADER + entry.record.data_bytes()).sum();
        FIRST_RECORD + records + torn_bytes == end
    }

    pub(crate) fn found(&self) -> Found {
        let sequences = || self.entries.iter().map(|entry| entry.record.sequence);
        Found {
            end: self.end,
            torn_bytes: self.torn_bytes,
            first_sequence: sequences().min().unwrap_or(u64::MAX),
            last_sequence: sequences().max().unwrap_or(0),
        }
    }
}

/// Reads the records of a file, up to a position.
pub(crate) fn replay(file: &dyn File, keys: &JournalKeys, home: &Home, limit: u64) -> io::Result<Replay> {
    replay_from(file, keys, home, home.first_record(), limit)
}

fn replay_from(file: &dyn File, keys: &JournalKeys, home: &Home, start: u64, limit: u64) -> io::Result<Replay> {
    let length = file.length()?.min(limit);
    let mut window = Window { file, length, start: 0, bytes: Vec::with_capacity(WINDOW_BYTES) };
    let mut replay = Replay { end: start, ..Replay::default() };
    let mut position = start;
    while let Some(header) = window.header(position)? {
        let record = match keys.decode_header(home, position, &header) {
            Ok(record) if may_follow(home, &replay, &record) => record,
            Err(RecordError::Version(version)) if version > home.version() => {
                replay.newer = Some(version);
                return Ok(replay);
            }
            _ => {
                position += RECORD_HEADER;
                continue;
            }
        };
        if !window.data_match(position, &record, keys, home)? {
            position += RECORD_HEADER;
            continue;
        }
        replay.torn_bytes += position - replay.end;
        replay.entries.push(FooterEntry { position, record });
        replay.end = position + RECORD_HEADER + record.data_bytes();
        position = replay.end;
    }
    Ok(replay)
}

/// In the file of a layer sequence numbers ascend; in a segment there may be records that were moved.
fn may_follow(home: &Home, replay: &Replay, record: &Record) -> bool {
    let last = replay.entries.last().map(|entry| entry.record.sequence);
    matches!(home, Home::Segment(_)) || last.is_none_or(|last| last < record.sequence)
}

/// Reads the footer of a segment whose records end somewhere; `None` where there is none that counts.
pub(crate) fn read_footer(
    file: &dyn File,
    keys: &JournalKeys,
    id: &SegmentId,
    end: u64,
) -> io::Result<Option<Vec<FooterEntry>>> {
    let length = file.length()?;
    let mut head = [0; HEADER_BYTES];
    if end.checked_add(RECORD_HEADER).is_none_or(|after| after > length) {
        return Ok(None);
    }
    file.read_exact_at(&mut head, end)?;
    let Some(entries) = footer_entries(&head) else { return Ok(None) };
    let bytes = HEADER_BYTES + entries * FOOTER_ENTRY_BYTES;
    if end + bytes as u64 > length {
        return Ok(None);
    }
    let mut footer = vec![0; bytes];
    file.read_exact_at(&mut footer, end)?;
    Ok(decode_footer(keys, id, end, &footer).ok())
}

/// The records of a segment that is in use.
pub(crate) fn entries_of(segment: &Segment, keys: &JournalKeys) -> io::Result<Vec<FooterEntry>> {
    let end = segment.tail();
    if let Home::Segment(id) = &segment.home
        && let Some(entries) = read_footer(segment.file(), keys, id, end)?
    {
        return Ok(entries);
    }
    Ok(replay(segment.file(), keys, &segment.home, end)?.entries)
}

/// Whether a segment has what it should have between two places where records end, with all data.
pub(crate) fn check_segment(segment: &Segment, keys: &JournalKeys, start: u64, end: u64) -> io::Result<bool> {
    if segment.file().length()? < end {
        return Ok(false);
    }
    let found = replay_from(segment.file(), keys, &segment.home, start, end)?;
    // What is torn was found at once, by a recovery, and nothing was appended since.
    let torn_bytes = if start == segment.home.first_record() { segment.torn_bytes() } else { 0 };
    Ok(found.end == end && found.torn_bytes == torn_bytes)
}

/// A sliding window over the file.
struct Window<'f> {
    file: &'f dyn File,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// The bytes at a position, at least one and at most `most`; none at the file's end.
    fn bytes(&mut self, position: u64, most: usize) -> io::Result<&[u8]> {
        let inside = |start: u64, length: usize| position >= start && position < start + length as u64;
        if !inside(self.start, self.bytes.len()) {
            let rest = self.length.saturating_sub(position);
            let length = usize::try_from(rest).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            self.bytes.resize(length, 0);
            self.start = position;
            self.file.read_exact_at(&mut self.bytes, position)?;
        }
        let from = usize::try_from(position - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        let bytes = &self.bytes[from..];
        Ok(&bytes[..bytes.len().min(most)])
    }

    /// The header at a position; `None` where the file ends before.
    fn header(&mut self, position: u64) -> io::Result<Option<[u8; HEADER_BYTES]>> {
        // Positions and windows are multiples of a header's length, so that only the file's end can cut one.
        Ok(self.bytes(position, HEADER_BYTES)?.try_into().ok())
    }

    fn data_match(&mut self, position: u64, record: &Record, keys: &JournalKeys, home: &Home) -> io::Result<bool> {
        let mut from = position + RECORD_HEADER;
        let end = from + record.data_bytes();
        if end > self.length {
            return Ok(false);
        }
        let mut hasher = keys.data_hasher(home);
        while from < end {
            let most = usize::try_from(end - from).unwrap_or(usize::MAX);
            let bytes = self.bytes(from, most)?;
            hasher.update(bytes);
            from += bytes.len() as u64;
        }
        Ok(record.kind != RecordKind::Write || hasher.finalize() == record.data_checksum)
    }
}

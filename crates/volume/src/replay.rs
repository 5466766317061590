//! Reading a journal again, from the first record to the last, as recovery and sealing do.
//!
//! Invariant: a record counts only if its header and data have their checksums at this place of this layer, and its
//! sequence number is higher than all before. What is no record is skipped in steps of a header's length until the
//! next one that counts: a torn record hides nothing that was flushed after it.

use std::io;
use std::num::NonZeroU64;
use std::ops::ControlFlow;

use format::journal::{HEADER_BYTES, JournalKeys, Record, RecordError, RecordKind, check_file_header};
use medium::File;
use types::LayerId;

use crate::extent_map::{ExtentMap, Place};
use crate::journal::FIRST_RECORD;

/// How much is read at a time.
const WINDOW_BYTES: usize = 256 * 1024;

/// What a journal says.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    pub(crate) map: ExtentMap,
    /// Where the last record that counts ends; where the first would begin if there is none.
    pub(crate) end: u64,
    /// The sequence number of the last record that counts.
    pub(crate) last_sequence: Option<u64>,
    /// How many bytes before `end` are in no record that counts.
    pub(crate) torn_bytes: u64,
    /// The version, where the file is of a later one; it has not been read then.
    pub(crate) newer: Option<u8>,
}

/// What is done with each record that counts, and the place of its data.
pub(crate) type Visit<'v> = dyn FnMut(&Record, u64) -> ControlFlow<()> + 'v;

/// Reads a journal.
pub(crate) fn replay(file: &dyn File, keys: &JournalKeys, layer: LayerId) -> io::Result<Replay> {
    let mut map = ExtentMap::default();
    let found = scan(file, keys, layer, &mut |record, data| {
        let place = match record.kind {
            RecordKind::Write => NonZeroU64::new(data).map_or(Place::Zero, Place::Journal),
            RecordKind::Zero | RecordKind::Discard => Place::Zero,
        };
        map.insert(record.sector, record.sector + record.sectors, place);
        ControlFlow::Continue(())
    })?;
    Ok(Replay { map, ..found })
}

/// Reads a journal record by record; the map stays empty.
pub(crate) fn scan(file: &dyn File, keys: &JournalKeys, layer: LayerId, visit: &mut Visit<'_>) -> io::Result<Replay> {
    let length = file.length()?;
    let mut window = Window { file, length, start: 0, bytes: Vec::with_capacity(WINDOW_BYTES) };
    let mut replay = Replay { end: FIRST_RECORD, ..Replay::default() };
    let Some(head) = window.header(0)? else { return Ok(replay) };
    if let Err(RecordError::Version(version)) = check_file_header(&head) {
        replay.newer = Some(version);
        return Ok(replay);
    }
    let mut position = FIRST_RECORD;
    while let Some(header) = window.header(position)? {
        let record = match keys.decode_header(layer, position, &header) {
            Ok(record) if replay.last_sequence.is_none_or(|last| last < record.sequence) => record,
            Err(RecordError::Version(version)) => {
                replay.newer = Some(version);
                return Ok(replay);
            }
            _ => {
                position += FIRST_RECORD;
                continue;
            }
        };
        if !window.data_match(position, &record, keys)? {
            position += FIRST_RECORD;
            continue;
        }
        replay.torn_bytes += position - replay.end;
        replay.end = position + FIRST_RECORD + record.data_bytes();
        replay.last_sequence = Some(record.sequence);
        if visit(&record, position + FIRST_RECORD).is_break() {
            break;
        }
        position = replay.end;
    }
    Ok(replay)
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

    fn data_match(&mut self, position: u64, record: &Record, keys: &JournalKeys) -> io::Result<bool> {
        let mut from = position + FIRST_RECORD;
        let end = from + record.data_bytes();
        if end > self.length {
            return Ok(false);
        }
        let mut hasher = keys.data_hasher();
        while from < end {
            let most = usize::try_from(end - from).unwrap_or(usize::MAX);
            let bytes = self.bytes(from, most)?;
            hasher.update(bytes);
            from += bytes.len() as u64;
        }
        Ok(record.kind != RecordKind::Write || hasher.finalize() == record.data_checksum)
    }
}

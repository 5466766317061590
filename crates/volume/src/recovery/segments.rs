//! Finding the segments of journals again, and what is in them.
//!
//! What is not found must not come back when others have taken its numbers: a segment that goes on is closed durably where
//! its records end, and the file of one that has none is deleted, not used again. So it never grows, and a record that
//! lacked only length stays torn.
//!
//! Invariant: what a segment's header says counts, and its name only where the header is damaged: a file that is used
//! again gets its new name and its new header without waiting for either to be durable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use format::journal::{
    FooterEntry, HEADER_BYTES, Home, RecordError, SEGMENT_HEAD_BYTES, SegmentHeader, SegmentId, check_file_header,
};
use medium::{File, Open};
use types::{JournalId, LayerId};

use crate::error::VolumeError;
use crate::extent_map::ExtentMap;
use crate::journal::{Journal, Secret, place_of};
use crate::layer::Layer;
use crate::records::{FileLayerRecord, JournalRecord};
use crate::replay::{Replay, read_footer, replay};
use crate::segment::{FIRST_RECORD, LAYER_EXTENSION, RECORD_HEADER, SEGMENT_EXTENSION, Segment};
use crate::stack::Context;

/// A journal, and what was found in it.
pub(super) struct FoundJournal {
    pub(super) journal: Arc<Journal>,
    /// All records by sequence number, each with its segment.
    entries: Vec<(u32, FooterEntry)>,
    pub(super) next_sequence: u64,
    /// The sequence numbers that are missing something, and where.
    damaged: Vec<(u64, u64, PathBuf)>,
}

impl FoundJournal {
    /// What a range of the journal says.
    pub(super) fn map(&self, first: u64, last: Option<u64>) -> ExtentMap {
        let start = self.entries.partition_point(|(_, entry)| entry.record.sequence < first);
        let mut map = ExtentMap::default();
        let within = |(_, entry): &&(u32, FooterEntry)| last.is_none_or(|last| entry.record.sequence <= last);
        for (segment, entry) in self.entries[start..].iter().take_while(within) {
            let record = &entry.record;
            map.insert(record.sector, record.sector + record.sectors, place_of(record, *segment, entry.position));
        }
        map
    }

    /// How long the records of a range are, in bytes.
    pub(super) fn bytes(&self, first: u64, last: Option<u64>) -> u64 {
        let start = self.entries.partition_point(|(_, entry)| entry.record.sequence < first);
        let within = |(_, entry): &&(u32, FooterEntry)| last.is_none_or(|last| entry.record.sequence <= last);
        let own = self.entries[start..].iter().take_while(within);
        own.map(|(_, entry)| RECORD_HEADER + entry.record.data_bytes()).sum()
    }

    /// The damaged file that a range of the journal needs.
    pub(super) fn damage_in(&self, first: u64, last: u64) -> Option<PathBuf> {
        let damaged = self.damaged.iter().find(|(from, to, _)| *from <= last && first <= *to);
        damaged.map(|(.., path)| path.clone())
    }
}

/// A file that belongs to a journal.
struct Candidate {
    path: PathBuf,
    file: Arc<dyn File>,
    id: SegmentId,
    /// Where its records end, if it says so.
    end: Option<u64>,
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VolumeError {
    move |source| VolumeError::Io { operation, path: path.to_owned(), source }
}

/// Finds the segments of journals; the files of others are deleted, and free ones are kept to be used again.
pub(super) fn find(
    context: &Context,
    records: BTreeMap<JournalId, JournalRecord>,
) -> Result<BTreeMap<JournalId, FoundJournal>, VolumeError> {
    let mut journals: BTreeMap<_, _> = records
        .into_iter()
        .map(|(id, record)| {
            let journal = Arc::new(Journal::new(context.files.clone(), id, Secret(record.secret)));
            journal.recorded(&record);
            (id, (journal, record, BTreeMap::new()))
        })
        .collect();
    let directory = &context.files.directory;
    for name in context.files.medium.list(directory).map_err(io("list", directory))? {
        let path = directory.join(name);
        let extension = path.extension().and_then(|extension| extension.to_str());
        if extension != Some(SEGMENT_EXTENSION) {
            continue;
        }
        let keys = |id: JournalId| journals.get(&id).map(|(journal, ..)| journal.clone());
        let Some(candidate) = identify(context, &path, keys)? else { continue };
        let Some((_, record, candidates)) = journals.get_mut(&candidate.id.journal) else { continue };
        // Where two say that they are the same, the one that the record names is.
        let named = record.segments.iter().any(|segment| segment.generation == candidate.id.generation);
        let number = candidate.id.number;
        let other = if named || !candidates.contains_key(&number) {
            candidates.insert(number, candidate)
        } else {
            Some(candidate)
        };
        if let Some(other) = other {
            context.files.delete(&other.path);
        }
    }
    journals
        .into_iter()
        .map(|(id, (journal, record, candidates))| Ok((id, take_in(context, journal, &record, candidates)?)))
        .collect()
}

/// Tells whose a file is. One that was given back is kept to be used again, and one of no journal that is known is
/// deleted; one whose header is damaged stays until its journal goes.
fn identify(
    context: &Context,
    path: &Path,
    journal: impl Fn(JournalId) -> Option<Arc<Journal>>,
) -> Result<Option<Candidate>, VolumeError> {
    let file = context.files.medium.open(path, Open::Existing).map_err(io("open", path))?;
    let mut head = [0; SEGMENT_HEAD_BYTES];
    if file.length().map_err(io("read", path))? >= FIRST_RECORD {
        file.read_exact_at(&mut head, 0).map_err(io("read", path))?;
    }
    let journals = match SegmentHeader::journals(&head) {
        Err(RecordError::Version(version)) => return Err(VolumeError::Newer { path: path.to_owned(), version }),
        journals => journals.unwrap_or_default().into_iter().filter_map(journal).collect::<Vec<_>>(),
    };
    if journals.is_empty() {
        if head == [0; SEGMENT_HEAD_BYTES] {
            context.files.keep(path.to_owned(), file);
        } else {
            context.files.delete(path);
        }
        return Ok(None);
    }
    let decoded =
        |journal: &Arc<Journal>| Some((journal.clone(), SegmentHeader::decode_head(journal.keys(), &head).ok()?));
    let Some((journal, SegmentHeader { id, end })) = journals.iter().find_map(decoded) else {
        tracing::warn!(path = %path.display(), "nobody knows which part of its journal a damaged file is");
        let stray = Arc::new(path.to_owned());
        journals.iter().for_each(|journal| journal.keep_stray(stray.clone()));
        return Ok(None);
    };
    // Before the second header is written over, the first is made whole.
    let first = SegmentHeader { id, end: None }.encode(journal.keys());
    if !head.starts_with(&first) {
        file.write_all_at(&[&first], 0).map_err(io("mend", path))?;
    }
    Ok(Some(Candidate { path: path.to_owned(), file, id, end }))
}

/// Reads the segments of a journal, and closes those that were being filled.
fn take_in(
    context: &Context,
    journal: Arc<Journal>,
    record: &JournalRecord,
    candidates: BTreeMap<u32, Candidate>,
) -> Result<FoundJournal, VolumeError> {
    let mut found = FoundJournal { journal, entries: Vec::new(), next_sequence: 1, damaged: Vec::new() };
    for listed in &record.segments {
        found.journal.number_is_used(listed.number);
        let there = candidates.get(&listed.number).is_some_and(|other| other.id.generation == listed.generation);
        if !there {
            let path = context.files.directory.clone();
            found.journal.keep_listed(*listed);
            found.damaged.push((listed.first_sequence, listed.last_sequence, path));
        }
    }
    for (number, candidate) in candidates {
        let Candidate { path, file, id, end } = candidate;
        found.journal.number_is_used(number);
        let keys = found.journal.keys();
        let footer = match end {
            Some(end) => read_footer(&*file, keys, &id, end).map_err(io("read", &path))?.map(|entries| (entries, end)),
            None => None,
        };
        let has_footer = footer.is_some();
        let content = match footer {
            Some((entries, end)) => Replay::from_footer(entries, end),
            None => replay(&*file, keys, &Home::Segment(id), end.unwrap_or(u64::MAX)).map_err(io("read", &path))?,
        };
        if let Some(version) = content.newer {
            return Err(VolumeError::Newer { path, version });
        }
        let listed = record.segments.iter().find(|listed| listed.generation == id.generation);
        let whole = listed.is_none_or(|listed| content.is_whole_to(listed.end, listed.torn_bytes));
        if let (false, Some(listed)) = (whole, listed) {
            found.journal.keep_listed(*listed);
            found.damaged.push((listed.first_sequence, listed.last_sequence, path.clone()));
        }
        if content.entries.is_empty() && listed.is_none() {
            context.files.delete(&path);
            continue;
        }
        if content.torn_bytes > 0 {
            let (torn_bytes, path) = (content.torn_bytes, path.display());
            tracing::warn!(%path, torn_bytes, "skipped torn records, which nobody had flushed, before later ones");
        }
        let mut segment = Segment::found(Home::Segment(id), path, file, content.found());
        segment.listed = listed.filter(|_| whole).map(|listed| (listed.end, listed.torn_bytes));
        if has_footer {
            segment.has_footer.store(true, Ordering::Release);
            segment.is_durable(segment.tail());
        } else if whole && end != Some(segment.tail()) {
            let closed = segment.end_here(keys).and_then(|()| segment.file().sync_data());
            closed.map_err(io("end", segment.path()))?;
        }
        if let Some(listed) = listed.filter(|_| whole) {
            segment.is_durable(listed.end);
        }
        let last = content.entries.iter().map(|entry| entry.record.sequence).max().unwrap_or(0);
        found.next_sequence = found.next_sequence.max(last.saturating_add(1));
        found.journal.take_in(segment, listed.is_some());
        found.entries.extend(content.entries.into_iter().map(|entry| (number, entry)));
    }
    found.entries.sort_by_key(|(_, entry)| entry.record.sequence);
    Ok(found)
}

/// Finds a layer of version 1, which has a file of its own.
pub(super) fn file_layer(context: &Context, id: LayerId, record: &FileLayerRecord) -> Result<Arc<Layer>, VolumeError> {
    let path = context.files.directory.join(format!("{id}.{LAYER_EXTENSION}"));
    let journal = Arc::new(Journal::new(context.files.clone(), JournalId(id.0), Secret(record.secret)));
    let layer = |map, last| Layer::with_map(journal.clone(), id, record.first_sequence, Some(last), map);
    let before_first = record.first_sequence.saturating_sub(1);
    let file = match context.files.medium.open(&path, Open::Existing) {
        Ok(file) => file,
        // Nobody had written yet; or, where the layer was frozen with data, they are lost.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let layer = layer(ExtentMap::default(), before_first);
            if record.end.is_some_and(|end| end.bytes > RECORD_HEADER) {
                layer.mark_damaged(path);
            }
            return Ok(layer);
        }
        Err(source) => return Err(io("open", &path)(source)),
    };
    let home = Home::Layer(id);
    let limit = record.end.map_or(u64::MAX, |end| end.bytes);
    let mut head = [0; HEADER_BYTES];
    if file.length().map_err(io("read", &path))? >= RECORD_HEADER {
        file.read_exact_at(&mut head, 0).map_err(io("read", &path))?;
    }
    let newer = |version| VolumeError::Newer { path: path.clone(), version };
    if let Err(RecordError::Version(version)) = check_file_header(&head) {
        return Err(newer(version));
    }
    let content = replay(&*file, journal.keys(), &home, limit).map_err(io("read", &path))?;
    if let Some(version) = content.newer {
        return Err(newer(version));
    }
    let last = content.entries.last().map_or(before_first, |entry| entry.record.sequence);
    let mut map = ExtentMap::default();
    for entry in &content.entries {
        let record = &entry.record;
        map.insert(record.sector, record.sector + record.sectors, place_of(record, 0, entry.position));
    }
    let whole = record
        .end
        .is_none_or(|end| content.end == end.bytes && last == end.sequence && content.torn_bytes == end.torn_bytes);
    journal.take_in(Segment::found(home, path.clone(), file, content.found()), false);
    let layer = layer(map, last);
    layer.found_written(content.entries.iter().map(|entry| RECORD_HEADER + entry.record.data_bytes()).sum());
    if !whole {
        layer.mark_damaged(path);
    }
    Ok(layer)
}

/// Deletes the files of layers that nothing refers to.
pub(super) fn delete_stray_files(context: &Context, is_known: impl Fn(LayerId) -> bool) -> Result<(), VolumeError> {
    let directory = &context.files.directory;
    for name in context.files.medium.list(directory).map_err(io("list", directory))? {
        let path = directory.join(name);
        let is_layer = path.extension().is_some_and(|extension| extension == LAYER_EXTENSION);
        let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let Some(id) = id.filter(|id| is_layer && !is_known(*id)) {
            tracing::info!(layer = %id, "deletes a journal that nothing refers to");
            context.files.delete(&path);
        }
    }
    Ok(())
}

//! Brings the index up to the packs: what is behind its checkpoint, or everything where it must be rebuilt.
//!
//! Invariants: a replay adds the packs' records in order, so that it can be broken off and gone on with at any record;
//! bytes are cut off only from the last pack, and only behind its last intact record; damage is reported and passed
//! over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use format::pack::{FooterEntry, PACK_HEADER_BYTES, RecordHeader, RecordType};

use super::disk::{failed, sync_directory};
use super::fjall_index::FjallIndex;
use super::index::{Checkpoint, Entry, Index, IndexError, State, Totals, index_error, is_passing};
use super::memory_index::MemoryIndex;
use super::pack::{Pack, Packs, apart, list_packs};
use super::scan::{Check, Found, key_of, scan};
use super::writer::{Dirty, OpenPack};
use crate::{Domain, Key, StoreError};

/// How many entries are given to the index at once.
const BATCH_ENTRIES: usize = 4096;

/// How many damaged places a report names; all are counted.
const MAX_NAMED_DAMAGES: usize = 100;

/// A damaged place in a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The pack's file.
    pub path: PathBuf,
    /// The object that was there, where that can still be told.
    pub object: Option<Key>,
    /// Where, in bytes from the beginning of the file.
    pub place: u64,
    /// How long, in bytes.
    pub length: u64,
}

/// What opening a store or rebuilding its index found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the index was built anew from the packs.
    pub index_rebuilt: bool,
    /// How many packs there are.
    pub packs: u64,
    /// How many records were taken from packs into the index.
    pub records: u64,
    /// How many places are damaged; what was there is not present any more.
    pub damages: u64,
    /// The first hundred of them.
    pub named_damages: Vec<Damage>,
    /// How many bytes of writes that were never committed were cut off.
    pub torn_bytes: u64,
}

/// A store's index with everything in it that the packs have, and where to go on writing.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) index: Box<dyn Index>,
    pub(crate) state: State,
    pub(crate) open: Option<OpenPack>,
    /// Packs that are to get their footer, and nothing more.
    pub(crate) unsealed: Vec<Dirty>,
    pub(crate) next_number: u32,
    pub(crate) report: RecoveryReport,
}

/// Where the index lies.
#[derive(Clone, Debug)]
pub(crate) enum IndexPlace {
    /// In a directory of the host.
    Host(PathBuf),
    /// In memory, and built anew at every opening: the medium under the packs is not the host. The path is the store's.
    Memory(PathBuf),
}

impl IndexPlace {
    fn open(&self) -> Result<Box<dyn Index>, IndexError> {
        match self {
            Self::Host(directory) => FjallIndex::open(directory),
            Self::Memory(_) => Ok(Box::new(MemoryIndex::default())),
        }
    }

    /// Whether there is an index from earlier.
    fn is_there(&self) -> bool {
        matches!(self, Self::Host(directory) if fs::exists(directory).unwrap_or(true))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Host(path) | Self::Memory(path) => path,
        }
    }
}

/// Opens the index and brings it up to the packs, or to `limit` where the store is in use. An index that fails over its
/// files is rebuilt.
pub(crate) fn recover(place: &IndexPlace, packs: &Packs, limit: Option<Checkpoint>) -> Result<Recovered, StoreError> {
    match attempt(place, packs, limit) {
        Err(StoreError::Index(error)) if !is_passing(&error) => {
            tracing::warn!(%error, index = %place.path().display(), "chunk index failed and is rebuilt");
            set_index_aside(place)?;
            attempt(place, packs, limit)
        }
        result => result,
    }
}

fn attempt(place: &IndexPlace, packs: &Packs, limit: Option<Checkpoint>) -> Result<Recovered, StoreError> {
    let numbers = list_packs(&*packs.medium, &packs.directory)?;
    let (index, state, rebuilt) = open_index(place, packs, &numbers)?;
    let report = RecoveryReport { index_rebuilt: rebuilt, packs: numbers.len() as u64, ..RecoveryReport::default() };
    let mut replay =
        Replay { index, packs, directory: place.path(), batch: BTreeMap::new(), state, report, unsealed: Vec::new() };
    sync_directory(&*packs.medium, &packs.directory)?;
    let mut open = None;
    let last = numbers.last().copied().unwrap_or(0);
    for number in numbers {
        if number < state.checkpoint.pack || limit.is_some_and(|limit| number > limit.pack) {
            continue;
        }
        let pack = Pack::open(packs, number)?;
        open = replay.pack(&pack, limit, number == last)?;
    }
    replay.flush()?;
    let Replay { index, state, report, unsealed, .. } = replay;
    Ok(Recovered { index, state, open, unsealed, next_number: last + 1, report })
}

/// Moves the index away, so that the next opening builds it anew. One such index is kept, to be looked at.
pub(crate) fn set_index_aside(place: &IndexPlace) -> Result<(), StoreError> {
    let IndexPlace::Host(directory) = place else { return Ok(()) };
    if !fs::exists(directory).map_err(failed("examine", directory))? {
        return Ok(());
    }
    let aside = directory.with_extension("damaged");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &aside)(error)),
        _ => fs::rename(directory, &aside).map_err(failed("move aside", directory)),
    }
}

/// What tells one store's index from another's.
pub(crate) fn store_tag(packs: &Packs) -> [u8; 8] {
    let mut tag = [0; 8];
    tag.copy_from_slice(&blake3::hash(&packs.secret).as_bytes()[..8]);
    tag
}

fn open_index(place: &IndexPlace, packs: &Packs, numbers: &[u32]) -> Result<(Box<dyn Index>, State, bool), StoreError> {
    let usable = || -> Result<(Box<dyn Index>, State), IndexError> {
        let index = place.open()?;
        let state = index.state()?.ok_or("the index is empty")?;
        fits(&state, packs)?;
        Ok((index, state))
    };
    if place.is_there() {
        match usable() {
            Ok((index, state)) => return Ok((index, state, false)),
            Err(error) if is_passing(&error) => return Err(index_error(place.path())(error)),
            Err(error) => tracing::warn!(%error, index = %place.path().display(), "chunk index is rebuilt"),
        }
    } else if !numbers.is_empty() && matches!(place, IndexPlace::Host(_)) {
        tracing::warn!(index = %place.path().display(), "chunk index is missing and is rebuilt");
    }
    set_index_aside(place)?;
    let index = place.open().map_err(index_error(place.path()))?;
    let state = State { store_tag: store_tag(packs), checkpoint: Checkpoint::default(), totals: Totals::default() };
    // An index without state would be taken for a damaged one.
    index.apply(&BTreeMap::new(), &state).map_err(index_error(place.path()))?;
    Ok((index, state, !numbers.is_empty()))
}

/// Whether a state is of these packs, and not of more than they hold.
fn fits(state: &State, packs: &Packs) -> Result<(), IndexError> {
    if state.store_tag != store_tag(packs) {
        return Err("the index is of another store".into());
    }
    let Checkpoint { pack, end, .. } = state.checkpoint;
    if pack == 0 {
        return Ok(());
    }
    let length = Pack::open(packs, pack)?.length()?;
    if length < end { Err(format!("pack {pack} is shorter than it was at the last commit").into()) } else { Ok(()) }
}

struct Replay<'a> {
    packs: &'a Packs,
    index: Box<dyn Index>,
    directory: &'a Path,
    batch: BTreeMap<Key, Entry>,
    state: State,
    report: RecoveryReport,
    unsealed: Vec<Dirty>,
}

impl Replay<'_> {
    /// Replays one pack from the checkpoint on; returns it where it can be appended to.
    fn pack(
        &mut self,
        pack: &Arc<Pack>,
        limit: Option<Checkpoint>,
        is_last: bool,
    ) -> Result<Option<OpenPack>, StoreError> {
        let damages = self.report.damages;
        let length = pack.length()?;
        let end = limit.filter(|limit| limit.pack == pack.number).map_or(length, |limit| limit.end.min(length));
        let before = self.state.checkpoint;
        let begun = before.pack == pack.number;
        let from = if begun { self.state.checkpoint.end } else { PACK_HEADER_BYTES as u64 };
        if !begun {
            self.state.checkpoint = Checkpoint { pack: pack.number, end: from, records: 0 };
        }
        if from < end {
            // What a killed process had written counts from now on, so it must survive the loss of power from now on.
            pack.file.sync_data().map_err(failed("synchronise", &pack.path))?;
        }
        if pack.header_damaged && !pack.never_written()? {
            self.damage(pack, None, 0, PACK_HEADER_BYTES as u64);
        }
        if end == length
            && let Some((entries, _)) = pack.footer()?
        {
            if from < length {
                self.footer(pack.number, from, &entries)?;
                self.state.checkpoint.end = length;
            }
            return Ok(None);
        }
        let scanned = scan(pack, from..end, Check::Content, &mut |found| match found {
            Found::Record(record) => self.record(pack.number, &record.header, record.place),
            Found::Damage { key, place, length } => {
                self.damage(pack, key, place, length);
                Ok(())
            }
        })?;
        if limit.is_some() || scanned.sealed {
            return Ok(None);
        }
        self.report.torn_bytes += scanned.torn_bytes;
        if scanned.torn_bytes > 0 {
            let torn_bytes = scanned.torn_bytes;
            tracing::warn!(pack = %pack.path.display(), torn_bytes, "pack ends in writes that were never committed");
        }
        if !is_last {
            if !pack.header_damaged {
                // Behind all that is there: damage is left as it is, but not listed.
                self.unsealed.push(Dirty { pack: pack.clone(), full_at: Some(length), damaged: true });
            }
            return Ok(None);
        }
        if pack.header_damaged {
            if !begun && self.state.checkpoint.records == 0 && pack.never_written()? {
                self.packs.medium.remove(&pack.path).map_err(failed("remove", &pack.path))?;
                self.state.checkpoint = before;
            }
            return Ok(None);
        }
        if scanned.torn_bytes > 0 {
            pack.file.set_length(scanned.end).map_err(failed("truncate", &pack.path))?;
        }
        let records = self.state.checkpoint.records;
        if self.report.damages > damages {
            self.unsealed.push(Dirty { pack: pack.clone(), full_at: Some(scanned.end), damaged: true });
            return Ok(None);
        }
        Ok(Some(OpenPack { pack: pack.clone(), end: scanned.end, records, found: true }))
    }

    fn footer(&mut self, number: u32, from: u64, entries: &[FooterEntry]) -> Result<(), StoreError> {
        let mut new = entries.iter().filter(|entry| u64::from(entry.place) >= from);
        new.try_for_each(|entry| self.record(number, &entry.header, entry.place.into()))
    }

    fn record(&mut self, number: u32, header: &RecordHeader, place: u64) -> Result<(), StoreError> {
        let (Some(key), Ok(at)) = (key_of(header), u32::try_from(place)) else { return Ok(()) };
        let known = match self.batch.get(&key) {
            Some(entry) => Some(entry.clone()),
            None => self.index.get(&key).map_err(index_error(self.directory))?,
        };
        let mut domains = known.as_ref().map(|entry| entry.domains.clone()).unwrap_or_default();
        if !domains.contains(&Domain(header.domain)) {
            domains.push(Domain(header.domain));
        }
        let entry = match (header.record, known) {
            (RecordType::Claim, Some(known)) => Some(Entry { domains, ..known }),
            (RecordType::Object | RecordType::Apart, known) => {
                // Of two copies the later one counts: the earlier one was damaged when it was written.
                let (stored_bytes, plain_bytes) = (header.stored_bytes, header.plain_bytes);
                let (codec, content) = (header.codec, apart(header));
                let entry = Entry { pack: number, place: at, codec, stored_bytes, plain_bytes, content, domains };
                known.iter().for_each(|known| self.state.totals.subtract(known));
                self.state.totals.add(&entry);
                Some(entry)
            }
            // What is claimed was damaged, and is not there.
            (RecordType::Claim, None) | (RecordType::Footer | RecordType::Room, _) => None,
        };
        self.batch.extend(entry.map(|entry| (key, entry)));
        self.state.checkpoint.end = header.end(place);
        self.state.checkpoint.records += 1;
        self.report.records += 1;
        if self.batch.len() >= BATCH_ENTRIES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.index.apply(&self.batch, &self.state).map_err(index_error(self.directory))?;
        self.batch.clear();
        Ok(())
    }

    fn damage(&mut self, pack: &Pack, object: Option<Key>, place: u64, length: u64) {
        tracing::error!(pack = %pack.path.display(), place, length, ?object, "pack is damaged");
        self.report.damages += 1;
        if self.report.named_damages.len() < MAX_NAMED_DAMAGES {
            self.report.named_damages.push(Damage { path: pack.path.clone(), object, place, length });
        }
    }
}

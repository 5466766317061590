//! Where each object lies: what an index engine must do, and what it keeps.
//!
//! The index is disposable: everything in it can be had again from the packs. It carries a checkpoint, written in the
//! same batch as the entries, which says up to where the packs are in it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{self, ErrorKind};
use std::path::Path;

use format::Codec;

use super::disk::is_full;
use crate::{Domain, Domains, Key, StoreError};

/// Why an engine failed.
pub(crate) type IndexError = Box<dyn std::error::Error + Send + Sync>;

/// Set beside the codec where a content does not follow its record.
const APART: u8 = 0x80;

/// Where an object lies, and in which domains it is present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) pack: u32,
    /// The place of its record, in bytes from the beginning of the pack.
    pub(crate) place: u32,
    pub(crate) codec: Codec,
    pub(crate) stored_bytes: u32,
    pub(crate) plain_bytes: u32,
    /// Where its content lies, where that does not follow the record.
    pub(crate) content: Option<u32>,
    /// At least one, each once.
    pub(crate) domains: Vec<Domain>,
}

impl Entry {
    pub(crate) fn is_present(&self, domains: &Domains) -> bool {
        domains.meet(&self.domains)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.codec as u8 | if self.content.is_some() { APART } else { 0 }];
        for field in [self.pack, self.place, self.stored_bytes, self.plain_bytes].into_iter().chain(self.content) {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(self.domains.iter().flat_map(|domain| domain.0.to_le_bytes()));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (codec, rest) = bytes.split_first()?;
        let (fields, remainder) = rest.as_chunks::<4>();
        let mut fields = fields.iter().map(|field| u32::from_le_bytes(*field));
        let entry = Self {
            codec: Codec::try_from(*codec & !APART).ok()?,
            pack: fields.next()?,
            place: fields.next()?,
            stored_bytes: fields.next()?,
            plain_bytes: fields.next()?,
            content: if *codec & APART == 0 { None } else { Some(fields.next()?) },
            domains: fields.map(Domain).collect(),
        };
        (remainder.is_empty() && !entry.domains.is_empty()).then_some(entry)
    }
}

/// What is held, without what it allocates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) objects: u64,
    pub(crate) plain_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, entry: &Entry) {
        self.objects += 1;
        self.plain_bytes += u64::from(entry.plain_bytes);
        self.stored_bytes += u64::from(entry.stored_bytes);
    }

    pub(crate) fn subtract(&mut self, entry: &Entry) {
        let mut one = Self::default();
        one.add(entry);
        self.subtract_all(&one);
    }

    pub(crate) fn subtract_all(&mut self, others: &Self) {
        self.objects = self.objects.saturating_sub(others.objects);
        self.plain_bytes = self.plain_bytes.saturating_sub(others.plain_bytes);
        self.stored_bytes = self.stored_bytes.saturating_sub(others.stored_bytes);
    }
}

/// Up to where the packs are in the index: all packs before `pack`, and this one up to `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) pack: u32,
    pub(crate) end: u64,
    /// How many records that part of the pack has, damaged ones not counted.
    pub(crate) records: u64,
}

/// The checkpoint, the totals at it, and which store they are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) store_tag: [u8; 8],
    pub(crate) checkpoint: Checkpoint,
    pub(crate) totals: Totals,
}

const STATE_VERSION: u8 = 1;

impl State {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![STATE_VERSION];
        bytes.extend(self.store_tag);
        let (checkpoint, totals) = (self.checkpoint, self.totals);
        for field in [
            u64::from(checkpoint.pack),
            checkpoint.end,
            checkpoint.records,
            totals.objects,
            totals.plain_bytes,
            totals.stored_bytes,
        ] {
            bytes.extend(field.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (fields, rest) = bytes.strip_prefix(&[STATE_VERSION])?.as_chunks::<8>();
        let [store_tag, fields @ ..] = fields else { return None };
        let mut fields = fields.iter().map(|field| u64::from_le_bytes(*field));
        let state = Self {
            store_tag: *store_tag,
            checkpoint: Checkpoint {
                pack: fields.next()?.try_into().ok()?,
                end: fields.next()?,
                records: fields.next()?,
            },
            totals: Totals { objects: fields.next()?, plain_bytes: fields.next()?, stored_bytes: fields.next()? },
        };
        (rest.is_empty() && fields.next().is_none()).then_some(state)
    }
}

/// Whether a failure says nothing of the index's files: they are left alone then, and tried again later.
pub(crate) fn is_passing(error: &IndexError) -> bool {
    has_cause(error, |cause| {
        let exhausted = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
        matches!(cause.kind(), ErrorKind::PermissionDenied | ErrorKind::OutOfMemory)
            || is_full(cause)
            || exhausted.contains(&cause.raw_os_error())
    })
}

/// The failure of an index; a full disk is told apart.
pub(crate) fn index_error(directory: &Path) -> impl FnOnce(IndexError) -> StoreError {
    move |error| match has_cause(&error, is_full) {
        true => StoreError::Full { path: directory.to_owned() },
        false => StoreError::Index(error),
    }
}

fn has_cause(error: &IndexError, is_it: impl Fn(&io::Error) -> bool) -> bool {
    let first: &(dyn std::error::Error + 'static) = error.as_ref();
    let mut causes = std::iter::successors(Some(first), |cause| cause.source());
    causes.any(|cause| cause.downcast_ref::<io::Error>().is_some_and(&is_it))
}

/// An embedded index engine. Any number of threads may call at once.
pub(crate) trait Index: Send + Sync + Debug {
    /// Finds an object.
    fn get(&self, key: &Key) -> Result<Option<Entry>, IndexError>;

    /// Shows entries in the order of their keys, from the first one behind `after` on, until `visit` says that it has
    /// enough.
    fn visit(&self, after: Option<&Key>, visit: &mut dyn FnMut(Key, Entry) -> bool) -> Result<(), IndexError>;

    /// Writes entries and the state, all or none; it need not survive the loss of power, but nothing later may survive
    /// without it.
    fn apply(&self, entries: &BTreeMap<Key, Entry>, state: &State) -> Result<(), IndexError>;

    /// Removes entries and writes the state, all or none.
    fn remove(&self, keys: &[Key], state: &State) -> Result<(), IndexError>;

    /// Makes everything that was written survive the loss of power.
    fn persist(&self) -> Result<(), IndexError>;

    /// The state last written; `None` in a new index.
    fn state(&self) -> Result<Option<State>, IndexError>;
}

#[cfg(test)]
mod tests {
    use super::super::fjall_index::FjallIndex;
    use super::super::memory_index::MemoryIndex;
    use super::*;
    use crate::Kind;

    #[test]
    fn entries_are_shown_in_order_from_any_key_on() {
        let directory = tempfile::tempdir().unwrap();
        let engines: [Box<dyn Index>; 2] =
            [FjallIndex::open(directory.path()).unwrap(), Box::new(MemoryIndex::default())];
        let entry = |place| {
            let domains = vec![Domain::OWN];
            Entry { pack: 1, place, codec: Codec::Plain, stored_bytes: 1, plain_bytes: 1, content: None, domains }
        };
        let key = |place: u32| Key { kind: Kind::Chunk, hash: *blake3::hash(&place.to_le_bytes()).as_bytes() };
        let entries: BTreeMap<Key, Entry> = (0..100).map(|place| (key(place), entry(place))).collect();
        let state = State { store_tag: [0; 8], checkpoint: Checkpoint::default(), totals: Totals::default() };
        for index in engines {
            index.apply(&entries, &state).unwrap();
            let mut seen = BTreeMap::new();
            let mut after = None;
            loop {
                let (before, from) = (seen.len(), after);
                let mut visit = |key, entry| {
                    assert!(after.is_none_or(|after| key > after), "in order");
                    after = Some(key);
                    seen.insert(key, entry);
                    seen.len() < before + 7
                };
                index.visit(from.as_ref(), &mut visit).unwrap();
                if seen.len() < before + 7 {
                    break;
                }
            }
            assert_eq!(seen, entries);
        }
    }

    #[test]
    fn entries_and_states_come_back_and_other_bytes_do_not() {
        let entry = Entry {
            pack: 3,
            place: 64,
            codec: Codec::Zstd,
            stored_bytes: 1000,
            plain_bytes: 65536,
            content: None,
            domains: vec![Domain(0), Domain(9)],
        };
        let apart = Entry { codec: Codec::Plain, content: Some(4096), domains: vec![Domain(4)], ..entry.clone() };
        let bytes = apart.encode();
        assert_eq!(Entry::decode(&bytes), Some(apart));
        assert_eq!(Entry::decode(&bytes[..21]), None, "no domain");
        let bytes = entry.encode();
        assert_eq!(Entry::decode(&bytes), Some(entry));
        for length in [0, 1, 16, 17, 18, bytes.len() - 1] {
            assert_eq!(Entry::decode(&bytes[..length]), None, "{length}");
        }
        let state = State {
            store_tag: [7; 8],
            checkpoint: Checkpoint { pack: 1, end: 2, records: 3 },
            totals: Totals { objects: 4, plain_bytes: 5, stored_bytes: 6 },
        };
        let bytes = state.encode();
        assert_eq!(State::decode(&bytes), Some(state));
        for length in 0..bytes.len() {
            assert_eq!(State::decode(&bytes[..length]), None, "{length}");
        }
    }
}

//! The index in fjall, a log-structured merge tree: measured best at writing.
//!
//! One keyspace holds both entries and state, so that what survives is always a prefix of the batches. Nothing is
//! synchronised but before packs are removed: the packs are what is durable, and what the index lost is replayed from them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fjall::config::{BloomConstructionPolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::index::{Entry, Index, IndexError, State};
use crate::{Key, Kind};

const KEYSPACE: &str = "objects";

/// Kinds begin with 1: no object has this key.
const STATE_KEY: [u8; 1] = [0];

/// What the engine may keep in memory for reading, in bytes.
const BLOCK_CACHE_BYTES: u64 = 16 << 20;

/// What may wait in memory to be written as a table, in bytes.
const MEMTABLE_BYTES: u64 = 4 << 20;

/// The engine's least allowed journal limit, in bytes; a journal file is sparse until it is written.
const JOURNAL_BYTES: u64 = 64 << 20;

pub(crate) struct FjallIndex {
    database: Database,
    objects: Keyspace,
}

impl fmt::Debug for FjallIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallIndex").finish_non_exhaustive()
    }
}

impl FjallIndex {
    /// Opens or creates it.
    pub(crate) fn open(directory: &Path) -> Result<Box<dyn Index>, IndexError> {
        let open = || -> fjall::Result<Self> {
            let database = Database::builder(directory)
                .cache_size(BLOCK_CACHE_BYTES)
                .max_journaling_size(JOURNAL_BYTES)
                .max_cached_files(Some(64))
                .worker_threads(1)
                .manual_journal_persist(true)
                .open()?;
            let objects = database.keyspace(KEYSPACE, || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(MEMTABLE_BYTES)
                    .manual_journal_persist(true)
                    .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(
                        10.0,
                    ))))
            })?;
            Ok(Self { database, objects })
        };
        Ok(Box::new(guarded(open)?))
    }
}

/// Turns a panic of the engine into an error: it panics over some damaged files.
fn guarded<T>(work: impl FnOnce() -> fjall::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Ok(result?),
        Err(_) => Err("the index engine panicked over its files".into()),
    }
}

fn bytes_of(key: &Key) -> [u8; 33] {
    let mut bytes = [0; 33];
    bytes[0] = key.kind as u8;
    bytes[1..].copy_from_slice(&key.hash);
    bytes
}

fn key_of(bytes: &[u8]) -> Option<Key> {
    let (kind, hash) = bytes.split_first()?;
    Some(Key { kind: Kind::from_byte(*kind)?, hash: hash.try_into().ok()? })
}

impl Index for FjallIndex {
    fn get(&self, key: &Key) -> Result<Option<Entry>, IndexError> {
        let Some(bytes) = guarded(|| self.objects.get(bytes_of(key)))? else { return Ok(None) };
        Ok(Some(Entry::decode(&bytes).ok_or("a malformed index entry")?))
    }

    fn visit(&self, after: Option<&Key>, visit: &mut dyn FnMut(Key, Entry) -> bool) -> Result<(), IndexError> {
        let begin = after.map_or(Bound::Excluded(STATE_KEY.to_vec()), |key| Bound::Excluded(bytes_of(key).to_vec()));
        let mut entries = guarded(|| Ok(self.objects.range((begin, Bound::Unbounded))))?;
        while let Some((key, entry)) = guarded(|| entries.next().map(fjall::Guard::into_inner).transpose())? {
            let key = key_of(&key).ok_or("a malformed index key")?;
            if !visit(key, Entry::decode(&entry).ok_or("a malformed index entry")?) {
                break;
            }
        }
        Ok(())
    }

    fn apply(&self, entries: &BTreeMap<Key, Entry>, state: &State) -> Result<(), IndexError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        for (key, entry) in entries {
            batch.insert(&self.objects, bytes_of(key), entry.encode());
        }
        batch.insert(&self.objects, STATE_KEY, state.encode());
        guarded(|| batch.commit())
    }

    fn remove(&self, keys: &[Key], state: &State) -> Result<(), IndexError> {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        for key in keys {
            batch.remove(&self.objects, bytes_of(key));
        }
        batch.insert(&self.objects, STATE_KEY, state.encode());
        guarded(|| batch.commit())
    }

    fn persist(&self) -> Result<(), IndexError> {
        guarded(|| self.database.persist(PersistMode::SyncAll))
    }

    fn state(&self) -> Result<Option<State>, IndexError> {
        let Some(bytes) = guarded(|| self.objects.get(STATE_KEY))? else { return Ok(None) };
        Ok(Some(State::decode(&bytes).ok_or("a malformed index state")?))
    }
}

//! Puts, commits and finding: what the index, the pending entries and the writer do together.
//!
//! Locks are taken in this order: committer, writer, pending; the index slot last. Compression, hashing and reading of
//! objects happen outside all of them.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use format::Stored;
use format::pack::{MAX_PACK_BYTES, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, RecordType};

use super::LocalOptions;
use super::directory::Directory;
use super::disk::{allocated_bytes, directory_bytes, failed, sync_directory};
use super::index::{Checkpoint, Entry, Index, IndexError, State, index_error, is_passing};
use super::pack::Packs;
use super::pending::Pending;
use super::recovery::{IndexPlace, Recovered, RecoveryReport, recover, set_index_aside, store_tag};
use super::writer::{Dirty, Unsynced, Writer, seal};
use crate::{Domain, Key, Put, StoreError, StoreStatistics};

/// How many entries may wait for a commit before a put makes one.
const MAX_PENDING: usize = 1 << 14;

/// The heart of a local store.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) directory: Directory,
    packs: Arc<Packs>,
    pending: Pending,
    writer: Mutex<Writer>,
    committed: Mutex<Committed>,
    index_place: IndexPlace,
    index: RwLock<Option<Box<dyn Index>>>,
    /// Counts how often pending entries went to the index: a search that saw one count all the time missed nothing.
    moves: AtomicU64,
    /// A write could not be made durable.
    pub(crate) stopped: AtomicBool,
    /// The pack of the last commit: those before it do not change any more.
    current_pack: AtomicU32,
    sealed: Mutex<SealedBytes>,
}

/// What has been committed.
#[derive(Debug)]
struct Committed {
    sequence: u64,
    checkpoint: Checkpoint,
}

/// What the packs before `next` allocate; they do not change any more.
#[derive(Debug, Default)]
struct SealedBytes {
    next: u32,
    bytes: u64,
}

impl Core {
    pub(crate) fn open(
        directory: Directory,
        index_place: IndexPlace,
        options: &LocalOptions,
    ) -> Result<(Self, RecoveryReport), StoreError> {
        let packs = Arc::new(Packs::new(directory.medium.clone(), directory.packs_path(), directory.secret));
        let Recovered { index, state, open, next_number, report } = recover(&index_place, &packs, None)?;
        let smallest = (PACK_HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
        let limits = (options.pack_bytes.clamp(smallest, MAX_PACK_BYTES), options.reserve_bytes);
        let writer = Writer::new(packs.clone(), open, state.checkpoint, next_number, limits);
        let core = Self {
            directory,
            packs,
            pending: Pending::new(state.totals),
            writer: Mutex::new(writer),
            committed: Mutex::new(Committed { sequence: 0, checkpoint: state.checkpoint }),
            index_place,
            index: RwLock::new(Some(index)),
            moves: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            current_pack: AtomicU32::new(state.checkpoint.pack),
            sealed: Mutex::default(),
        };
        Ok((core, report))
    }

    /// Builds the index anew.
    pub(crate) fn rebuild(directory: Directory) -> Result<RecoveryReport, StoreError> {
        let packs = Packs::new(directory.medium.clone(), directory.packs_path(), directory.secret);
        let place = IndexPlace::Host(directory.index_path());
        set_index_aside(&place)?;
        let mut report = recover(&place, &packs, None)?.report;
        report.index_rebuilt = true;
        Ok(report)
    }

    /// Finds an object; where the index fails, it is opened again, or rebuilt.
    pub(crate) fn find(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        self.find_once(key).or_else(|error| {
            let committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have repaired it meanwhile.
            self.find_once(key).or_else(|_| self.repair_index(committed.checkpoint, &error, |index| index.get(key)))
        })
    }

    fn find_once(&self, key: &Key) -> Result<Option<Entry>, IndexError> {
        match self.pending.get(key) {
            Some(entry) => Ok(Some(entry)),
            None => self.with_index(|index| index.get(key)),
        }
    }

    fn with_index<T>(&self, work: impl FnOnce(&dyn Index) -> Result<T, IndexError>) -> Result<T, IndexError> {
        let slot = self.index.read().unwrap_or_else(PoisonError::into_inner);
        work(slot.as_deref().ok_or("the index could not be opened again")?)
    }

    /// Opens a failed index again, brings it up to a checkpoint, and tries again what failed; where that fails over its
    /// files once more, rebuilds it. The committer's lock is held.
    fn repair_index<T>(
        &self,
        checkpoint: Checkpoint,
        error: &IndexError,
        retry: impl Fn(&dyn Index) -> Result<T, IndexError>,
    ) -> Result<T, StoreError> {
        tracing::error!(%error, "chunk index failed and is opened again");
        let mut slot = self.index.write().unwrap_or_else(PoisonError::into_inner);
        *slot = None;
        let recovered = recover(&self.index_place, &self.packs, Some(checkpoint))?;
        let first = retry(&*recovered.index);
        let (index, result) = match first {
            Err(error) if !is_passing(&error) => {
                tracing::error!(%error, "chunk index failed again and is rebuilt");
                drop(recovered);
                set_index_aside(&self.index_place)?;
                let rebuilt = recover(&self.index_place, &self.packs, Some(checkpoint))?;
                let second = retry(&*rebuilt.index);
                (rebuilt.index, second)
            }
            result => (recovered.index, result),
        };
        *slot = Some(index);
        result.map_err(index_error(&self.directory.path))
    }

    /// Reads an object, as stored and plain.
    pub(crate) fn read(&self, key: &Key, entry: &Entry) -> Result<(Stored, Bytes), StoreError> {
        let pack = self.packs.pack(entry.pack).map_err(|error| match error {
            StoreError::Io { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                StoreError::Damaged { what: format!("{key} is lost: its pack"), path }
            }
            error => error,
        })?;
        pack.read_object(key, entry)
    }

    /// Stores an object; `encode` is called, outside all locks, if its bytes are needed.
    pub(crate) fn put(&self, key: &Key, domain: Domain, encode: impl FnOnce() -> Stored) -> Result<Put, StoreError> {
        let moves = self.moves.load(Ordering::Acquire);
        if let Some(entry) = self.find(key)? {
            if entry.domains.contains(&domain) {
                return Ok(Put { new: false, stored_bytes: entry.stored_bytes });
            }
            return self.add(key, domain, None, moves);
        }
        let stored = encode();
        self.add(key, domain, Some(stored), moves)
    }

    /// Appends the object or, where it is there by now, a claim.
    fn add(&self, key: &Key, domain: Domain, stored: Option<Stored>, moves: u64) -> Result<Put, StoreError> {
        let mut writer = self.lock_writer();
        self.require_running()?;
        let mut known = self.pending.get(key);
        if known.is_none() && (stored.is_none() || self.moves.load(Ordering::Acquire) != moves) {
            known = self.find_once(key).map_err(index_error(&self.directory.path))?;
        }
        let waiting = match (known, stored) {
            (Some(entry), _) if entry.domains.contains(&domain) => {
                return Ok(Put { new: false, stored_bytes: entry.stored_bytes });
            }
            (Some(mut entry), _) => {
                let claim = header(RecordType::Claim, key, domain, &entry);
                writer.append(&RecordHeader { stored_bytes: 0, ..claim }, &[])?;
                entry.domains.push(domain);
                let put = Put { new: false, stored_bytes: entry.stored_bytes };
                (self.pending.replace(*key, entry), put)
            }
            (None, Some(stored)) => {
                let stored_bytes = u32::try_from(stored.bytes.len()).expect("an object is at most 1 MiB");
                let (codec, plain_bytes) = (stored.codec, stored.plain_bytes);
                let domains = vec![domain];
                let mut entry = Entry { pack: 0, place: 0, codec, stored_bytes, plain_bytes, domains };
                let object = header(RecordType::Object, key, domain, &entry);
                (entry.pack, entry.place) = writer.append(&object, &stored.bytes)?;
                (self.pending.insert(*key, entry), Put { new: true, stored_bytes })
            }
            (None, None) => return Err(StoreError::Index(format!("the index has lost {key}").into())),
        };
        drop(writer);
        let (waiting, put) = waiting;
        if waiting >= MAX_PENDING {
            self.commit()?;
        }
        Ok(put)
    }

    fn require_running(&self) -> Result<(), StoreError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(StoreError::Stopped { path: self.directory.path.clone() });
        }
        Ok(())
    }

    /// Makes every put that has returned durable. Threads that wait for another's commit share the next one.
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        let target = self.lock_writer().sequence();
        let mut committed = self.committed.lock().unwrap_or_else(PoisonError::into_inner);
        self.require_running()?;
        if committed.sequence >= target {
            return Ok(());
        }
        let (unsynced, entries, totals) = {
            let mut writer = self.lock_writer();
            let (entries, totals) = self.pending.begin();
            (writer.take_unsynced(), entries, totals)
        };
        if let Err(error) = self.synchronise(&unsynced) {
            self.stopped.store(true, Ordering::Release);
            self.pending.take_back();
            return Err(error);
        }
        let state = State { store_tag: store_tag(&self.packs), checkpoint: unsynced.checkpoint, totals };
        let apply = |index: &dyn Index| index.apply(&entries, &state);
        let applied = self.with_index(apply).or_else(|error| self.repair_index(committed.checkpoint, &error, apply));
        drop(entries);
        if let Err(error) = applied {
            // The packs are durable: only the index must be tried again.
            self.pending.take_back();
            return Err(error);
        }
        self.moves.fetch_add(1, Ordering::AcqRel);
        self.pending.finish();
        self.current_pack.store(unsynced.checkpoint.pack, Ordering::Release);
        *committed = Committed { sequence: unsynced.sequence, checkpoint: unsynced.checkpoint };
        Ok(())
    }

    fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synchronise(&self, unsynced: &Unsynced) -> Result<(), StoreError> {
        for Dirty { pack, full_at } in &unsynced.packs {
            pack.file.sync_data().map_err(failed("synchronise", &pack.path))?;
            if let Some(end) = full_at
                && let Err(error) = seal(pack, *end)
            {
                tracing::warn!(%error, pack = %pack.path.display(), "a full pack stays without its footer");
            }
        }
        if unsynced.directory { sync_directory(&*self.packs.medium, &self.packs.directory) } else { Ok(()) }
    }

    pub(crate) fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        let totals = self.pending.totals();
        let current = self.current_pack.load(Ordering::Acquire);
        let mut sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        while sealed.next < current {
            sealed.bytes += allocated_bytes(&*self.packs.medium, &self.packs.path(sealed.next))?;
            sealed.next += 1;
        }
        let mut allocated = sealed.bytes;
        for number in current..=self.lock_writer().position().pack {
            allocated += allocated_bytes(&*self.packs.medium, &self.packs.path(number))?;
        }
        allocated += allocated_bytes(&*self.packs.medium, &self.directory.roots_path())?;
        if let IndexPlace::Host(path) = &self.index_place {
            allocated += directory_bytes(path)?;
        }
        Ok(StoreStatistics {
            objects: totals.objects,
            plain_bytes: totals.plain_bytes,
            stored_bytes: totals.stored_bytes,
            allocated_bytes: allocated,
        })
    }
}

fn header(record: RecordType, key: &Key, domain: Domain, entry: &Entry) -> RecordHeader {
    RecordHeader {
        record,
        kind: key.kind as u8,
        codec: entry.codec,
        cipher: 0,
        domain: domain.0,
        stored_bytes: entry.stored_bytes,
        plain_bytes: entry.plain_bytes,
        key_id: 0,
        hash: key.hash,
    }
}

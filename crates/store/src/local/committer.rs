//! Puts, commits and finding: what the index, the pending entries and the writer do together.
//!
//! Locks are taken in this order: condemned packs, committer, writer, pending; the index slot last. Compression, hashing and reading of
//! objects happen outside all of them.

mod sharing;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use format::Stored;
use format::pack::{MAX_PACK_BYTES, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, RecordType};

pub(crate) use self::sharing::append_shared;

use super::LocalOptions;
use super::condemned::{Asking, Condemned};
use super::directory::Directory;
use super::disk::{allocated_bytes, directory_bytes, failed, sync_directory};
use super::index::{Checkpoint, Entry, Index, IndexError, State, Totals, index_error, is_passing};
use super::pack::Packs;
use super::pending::Pending;
use super::recovery::{IndexPlace, Recovered, RecoveryReport, recover, set_index_aside, store_tag};
use super::scan::Check;
use super::writer::{Dirty, Unsynced, Writer, seal};
use crate::holding::Holding;
use crate::{Domain, Domains, Key, Put, StoreError, StoreStatistics};

/// How many entries may wait for a commit before a put makes one.
const MAX_PENDING: usize = 1 << 14;

/// The heart of a local store.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) directory: Directory,
    pub(crate) packs: Arc<Packs>,
    pub(crate) pending: Pending,
    writer: Mutex<Writer>,
    committed: Mutex<Committed>,
    pub(crate) holding: Holding,
    pub(crate) condemned: Condemned,
    /// Held by the one collection that there can be.
    pub(crate) collecting: Mutex<()>,
    /// Counts how often objects may have ceased to be present.
    pub(crate) removals: AtomicU64,
    index_place: IndexPlace,
    index: RwLock<Option<Box<dyn Index>>>,
    /// Counts how often the index was opened again or rebuilt.
    pub(crate) repairs: AtomicU64,
    /// Counts how often pending entries went to the index: a search that saw one count all the time missed nothing.
    moves: AtomicU64,
    /// A write could not be made durable.
    pub(crate) stopped: AtomicBool,
    /// The file system has been found to give no room inside a file back.
    pub(crate) cannot_punch: AtomicBool,
    /// The pack of the last commit: those before it do not change any more.
    current_pack: AtomicU32,
    pub(crate) sealed: Mutex<SealedBytes>,
}

/// What has been committed.
#[derive(Debug)]
pub(crate) struct Committed {
    sequence: u64,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) totals: Totals,
}

/// What the packs before `next` allocate; they do not change any more.
#[derive(Debug, Default)]
pub(crate) struct SealedBytes {
    pub(crate) next: u32,
    pub(crate) bytes: u64,
}

impl Core {
    pub(crate) fn open(
        directory: Directory,
        index_place: IndexPlace,
        options: &LocalOptions,
    ) -> Result<(Self, RecoveryReport), StoreError> {
        let packs = Arc::new(Packs::new(directory.medium.clone(), directory.packs_path(), directory.secret));
        let Recovered { index, state, open, unsealed, next_number, report } = recover(&index_place, &packs, None)?;
        let smallest = (PACK_HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
        let limits = (options.pack_bytes.clamp(smallest, MAX_PACK_BYTES), options.reserve_bytes);
        let writer = Writer::new(packs.clone(), (open, unsealed), state.checkpoint, next_number, limits);
        let core = Self {
            directory,
            packs,
            pending: Pending::new(state.totals),
            writer: Mutex::new(writer),
            committed: Mutex::new(Committed { sequence: 0, checkpoint: state.checkpoint, totals: state.totals }),
            holding: Holding::default(),
            condemned: Condemned::default(),
            collecting: Mutex::default(),
            removals: AtomicU64::new(0),
            index_place,
            index: RwLock::new(Some(index)),
            repairs: AtomicU64::new(0),
            moves: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            cannot_punch: AtomicBool::new(false),
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

    pub(crate) fn find_once(&self, key: &Key) -> Result<Option<Entry>, IndexError> {
        match self.pending.get(key) {
            Some(entry) => Ok(Some(entry)),
            None => self.with_index(|index| index.get(key)),
        }
    }

    pub(crate) fn with_index<T>(
        &self,
        work: impl FnOnce(&dyn Index) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        let slot = self.index.read().unwrap_or_else(PoisonError::into_inner);
        work(slot.as_deref().ok_or("the index could not be opened again")?)
    }

    /// Opens a failed index again, brings it up to a checkpoint, and tries again what failed; where that fails over its
    /// files once more, rebuilds it. The committer's lock is held.
    pub(crate) fn repair_index<T>(
        &self,
        checkpoint: Checkpoint,
        error: &IndexError,
        retry: impl Fn(&dyn Index) -> Result<T, IndexError>,
    ) -> Result<T, StoreError> {
        tracing::error!(%error, "chunk index failed and is opened again");
        let mut slot = self.index.write().unwrap_or_else(PoisonError::into_inner);
        self.repairs.fetch_add(1, Ordering::AcqRel);
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

    /// Finds and reads an object, as stored and plain. One that is moved meanwhile is looked for again.
    pub(crate) fn load(&self, key: &Key, domains: &Domains) -> Result<Option<(Entry, Stored, Bytes)>, StoreError> {
        loop {
            let Some(entry) = self.find(key)?.filter(|entry| entry.is_present(domains)) else { return Ok(None) };
            match self.read(key, &entry) {
                Ok((stored, plain)) => return Ok(Some((entry, stored, plain))),
                Err(error) => {
                    let now = self.find(key)?;
                    if now.is_some_and(|now| (now.pack, now.place) == (entry.pack, entry.place)) {
                        self.make_absent(key, &entry, &error);
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Puts an object that a read has found damaged in quarantine: who reads it next sees that it is not here, and may
    /// have it from elsewhere.
    fn make_absent(&self, key: &Key, entry: &Entry, error: &StoreError) {
        if matches!(error, StoreError::Damaged { .. })
            && let Err(error) = self.quarantine(key, (entry.pack, entry.place))
        {
            tracing::warn!(%error, %key, "a damaged object could not be made absent");
        }
    }

    /// Reads an object, as stored and plain.
    fn read(&self, key: &Key, entry: &Entry) -> Result<(Stored, Bytes), StoreError> {
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
        let asking = self.condemned.ask();
        let found = self.find(key)?.and_then(|entry| asking.apply(entry));
        if let Some(entry) = found.as_ref().filter(|entry| entry.domains.contains(&domain)) {
            self.holding.pin(key, [domain]);
            return Ok(Put { new: false, stored_bytes: entry.stored_bytes });
        }
        drop(asking);
        if found.is_some()
            && let Some(put) = self.add(key, domain, None, moves)?
        {
            return Ok(put);
        }
        let stored = encode();
        let lost = || StoreError::Index(format!("the index has lost {key}").into());
        self.add(key, domain, Some(stored), moves)?.ok_or_else(lost)
    }

    /// Whether an object is present, for who counts on it.
    pub(crate) fn contains(&self, key: &Key, domains: &Domains) -> Result<bool, StoreError> {
        let asking = self.condemned.ask();
        let Some(entry) = self.find(key)?.and_then(|entry| asking.apply(entry)) else { return Ok(false) };
        let present = entry.is_present(domains);
        if present {
            self.holding.pin(key, entry.domains.into_iter().filter(|domain| domains.contains(*domain)));
        }
        Ok(present)
    }

    /// Appends the object or, where it is there by now, a claim; `None` where its bytes are needed for that.
    fn add(&self, key: &Key, domain: Domain, stored: Option<Stored>, moves: u64) -> Result<Option<Put>, StoreError> {
        let asking = self.condemned.ask();
        let mut writer = self.lock_writer();
        self.require_running()?;
        let mut found = self.pending.get(key);
        if found.is_none() && (stored.is_none() || self.moves.load(Ordering::Acquire) != moves || asking.any()) {
            found = self.find_once(key).map_err(index_error(&self.directory.path))?;
        }
        let known = found.clone().and_then(|entry| asking.apply(entry));
        let (waiting, put) = match (known, stored) {
            (Some(entry), _) if entry.domains.contains(&domain) => {
                (0, Put { new: false, stored_bytes: entry.stored_bytes })
            }
            (Some(entry), _) => self.claim(&mut writer, &asking, key, domain, entry)?,
            (None, Some(stored)) => {
                let entry = append_object(&mut writer, key, domain, &stored)?;
                let put = Put { new: true, stored_bytes: entry.stored_bytes };
                (self.pending.enter(*key, found.as_ref(), entry), put)
            }
            (None, None) => return Ok(None),
        };
        self.holding.pin(key, [domain]);
        drop(writer);
        drop(asking);
        if waiting >= MAX_PENDING {
            self.commit()?;
        }
        Ok(Some(put))
    }

    /// Notes that an object is present in one more domain.
    fn claim(
        &self,
        writer: &mut Writer,
        asking: &Asking<'_>,
        key: &Key,
        domain: Domain,
        mut entry: Entry,
    ) -> Result<(usize, Put), StoreError> {
        append_claim(writer, key, domain, &entry)?;
        asking.add(&entry, domain);
        entry.domains.push(domain);
        let put = Put { new: false, stored_bytes: entry.stored_bytes };
        Ok((self.pending.replace(*key, entry), put))
    }

    pub(crate) fn require_running(&self) -> Result<(), StoreError> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(StoreError::Stopped { path: self.directory.path.clone() });
        }
        Ok(())
    }

    /// Makes every put that has returned durable. Threads that wait for another's commit share the next one.
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        let target = self.lock_writer().sequence();
        let mut committed = self.lock_committed();
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
        *committed = Committed { sequence: unsynced.sequence, checkpoint: unsynced.checkpoint, totals };
        Ok(())
    }

    pub(crate) fn lock_committed(&self) -> MutexGuard<'_, Committed> {
        self.committed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn lock_writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn synchronise(&self, unsynced: &Unsynced) -> Result<(), StoreError> {
        for Dirty { pack, full_at, damaged } in &unsynced.packs {
            pack.file.sync_data().map_err(failed("synchronise", &pack.path))?;
            if let Some(end) = full_at
                && let Err(error) = seal(pack, *end, if *damaged { Check::Content } else { Check::Headers })
            {
                tracing::warn!(%error, pack = %pack.path.display(), "a full pack stays without its footer");
            }
        }
        if unsynced.directory { sync_directory(&*self.packs.medium, &self.packs.directory) } else { Ok(()) }
    }

    /// Removes a pack that the index does not refer to any more.
    pub(crate) fn remove_pack(&self, number: u32) -> Result<(), StoreError> {
        let mut sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = allocated_bytes(&*self.packs.medium, &self.packs.path(number))?;
        self.packs.remove(number)?;
        if number < sealed.next {
            sealed.bytes = sealed.bytes.saturating_sub(bytes);
        }
        Ok(())
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

/// Appends an object, and returns where it is.
pub(crate) fn append_object(
    writer: &mut Writer,
    key: &Key,
    domain: Domain,
    stored: &Stored,
) -> Result<Entry, StoreError> {
    let stored_bytes = u32::try_from(stored.bytes.len()).expect("an object is at most 1 MiB");
    let (codec, plain_bytes) = (stored.codec, stored.plain_bytes);
    let mut entry = Entry { pack: 0, place: 0, codec, stored_bytes, plain_bytes, content: None, domains: vec![domain] };
    let object = header(RecordType::Object, key, domain, &entry);
    (entry.pack, entry.place) = writer.append(&object, &stored.bytes)?;
    Ok(entry)
}

/// Appends that an object is present in one more domain.
pub(crate) fn append_claim(writer: &mut Writer, key: &Key, domain: Domain, entry: &Entry) -> Result<(), StoreError> {
    let claim = header(RecordType::Claim, key, domain, entry);
    writer.append(&RecordHeader { stored_bytes: 0, ..claim }, &[]).map(drop)
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
        content: 0,
        hash: key.hash,
    }
}

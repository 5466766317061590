//! A store in a directory: append-only packs, an index over them, and the roots.
//!
//! ```text
//! format            version, features, secret
//! lock              held while the store is open
//! packs/00000001.pack …
//! index/            disposable: rebuilt from the packs
//! roots             the roots log
//! (no name)         the hot tier: plain copies of chunks of which parts are read often; gone with the process
//! ```
//!
//! Invariants: the packs and the roots log are the truth, and what `commit` or `apply` covered is in them, durably; the
//! index never has what the packs have not. One process uses the directory at a time. A write that could not be made
//! durable stops all writes: after that nobody can say what the medium holds (Rebello et al., "Can applications
//! recover from fsync failures?", ATC 2020).

mod collection;
mod committer;
mod condemned;
mod directory;
mod disk;
mod fjall_index;
mod hollow;
mod hot;
mod index;
mod memory_index;
mod pack;
mod pending;
mod recovery;
mod removal;
mod roots_log;
mod scan;
mod scrubbing;
mod survey;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use format::codec::Compressor;
use format::{Codec, Stored};
use medium::{File, Host, Medium};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use types::{ChunkId, Progress};

use self::committer::Core;
use self::directory::Directory;
use self::hot::HotTier;
use self::recovery::IndexPlace;
use self::roots_log::RootsLog;
use crate::{
    ChunkStore, CollectError, CollectOptions, CollectReport, Domain, Domains, FreezeError, FrozenFile, Hold, InFile,
    Key, Kind, LiveRoots, Put, RootChange, Roots, ScrubError, ScrubOptions, ScrubReport, Scrubbed, StoreError,
    StoreStatistics, checked_plain, copy_part,
};

pub use self::recovery::{Damage, RecoveryReport};

/// How many compressors are kept for reuse; each is about 1 MiB.
const KEPT_COMPRESSORS: usize = 8;

/// What a local store may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalOptions {
    /// How long a pack grows before the next is begun, in bytes.
    pub pack_bytes: u64,
    /// What the cache of decompressed objects holds, in bytes.
    pub cache_bytes: u64,
    /// What the hot tier may hold: plain copies on disk of chunks of which parts are read often, in bytes.
    pub hot_bytes: u64,
    /// How much room is left on the file system for index, roots and catalog when puts are refused, in bytes.
    pub reserve_bytes: u64,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self { pack_bytes: 256 << 20, cache_bytes: 64 << 20, hot_bytes: 4 << 30, reserve_bytes: 64 << 20 }
    }
}

/// A store in a directory.
pub struct LocalStore {
    core: Arc<Core>,
    roots: LocalRoots,
    compressors: Mutex<Vec<Compressor>>,
    cache: Cache<Key, Cached, ByBytes>,
    hot: HotTier,
    recovery: RecoveryReport,
}

/// Plain bytes, and the domains in which they were present when they were cached.
#[derive(Clone)]
struct Cached {
    plain: Bytes,
    domains: Arc<[Domain]>,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<Key, Cached> for ByBytes {
    fn weight(&self, _: &Key, cached: &Cached) -> u64 {
        cached.plain.len() as u64 + 128
    }
}

impl LocalStore {
    /// Opens the store in a directory, or makes one where the directory is empty or missing.
    ///
    /// An index that is missing, damaged or of another store is rebuilt from the packs, which can take a while.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Newer`], [`StoreError::NotAStore`], [`StoreError::Damaged`] for what cannot
    /// be rebuilt, and failures of the file system.
    pub fn open(directory: impl AsRef<Path>, options: LocalOptions) -> Result<Arc<Self>, StoreError> {
        let directory = Directory::open(Host::shared(), directory.as_ref())?;
        let index = IndexPlace::Host(directory.index_path());
        Self::assemble(directory, index, &options)
    }

    /// Opens the store in a directory of a medium that is not the host, or makes one there. Its index is in memory,
    /// built from the packs at every opening, and it has no hot tier.
    ///
    /// # Errors
    /// As [`open`](LocalStore::open).
    pub fn open_on(
        medium: Arc<dyn Medium>,
        directory: impl AsRef<Path>,
        options: LocalOptions,
    ) -> Result<Arc<Self>, StoreError> {
        let directory = Directory::open(medium, directory.as_ref())?;
        let index = IndexPlace::Memory(directory.path.clone());
        Self::assemble(directory, index, &LocalOptions { hot_bytes: 0, ..options })
    }

    fn assemble(directory: Directory, index: IndexPlace, options: &LocalOptions) -> Result<Arc<Self>, StoreError> {
        let hot = HotTier::new(&directory.path, options.hot_bytes, options.reserve_bytes);
        let roots = RootsLog::open(directory.medium.clone(), &directory.roots_path())?;
        let (core, recovery) = Core::open(directory, index, options)?;
        let core = Arc::new(core);
        let roots = LocalRoots { core: core.clone(), log: roots };
        let items = usize::try_from(options.cache_bytes / types::CHUNK_BYTES as u64).unwrap_or(usize::MAX);
        let cache = Cache::with_weighter(items.clamp(16, 1 << 20), options.cache_bytes, ByBytes);
        Ok(Arc::new(Self { core, roots, compressors: Mutex::default(), cache, hot, recovery }))
    }

    /// Builds the index of a store that is not in use anew from its packs.
    ///
    /// # Errors
    /// As [`open`](LocalStore::open); a directory without a store is [`StoreError::NotAStore`].
    pub fn rebuild_index(directory: impl AsRef<Path>) -> Result<RecoveryReport, StoreError> {
        let directory = Directory::open_existing(Host::shared(), directory.as_ref())?;
        Core::rebuild(directory)
    }

    /// What was found when the store was opened.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// Reads an object from its pack, unless it was cached for others, and caches it.
    fn load(&self, key: &Key, domains: &Domains) -> Result<Option<Cached>, StoreError> {
        let removals = self.core.removals.load(Ordering::Acquire);
        let (entry, plain) = match self.cache.peek(key) {
            Some(cached) => {
                let Some(entry) = self.core.find(key)?.filter(|entry| entry.is_present(domains)) else {
                    return Ok(None);
                };
                (entry, cached.plain)
            }
            None => {
                let Some((entry, _, plain)) = self.core.load(key, domains)? else { return Ok(None) };
                (entry, plain)
            }
        };
        let loaded = Cached { plain, domains: entry.domains.into() };
        self.cache.insert(*key, loaded.clone());
        // What was removed meanwhile is not cached.
        if self.core.removals.load(Ordering::Acquire) != removals {
            self.cache.remove(key);
        }
        Ok(Some(loaded))
    }

    /// Lets go of copies of what is not present any more.
    fn forget(&self, key: &Key) {
        self.cache.remove(key);
        self.hot.forget(key);
    }

    fn remember(&self, key: &Key, domain: Domain, plain: &Bytes) {
        if !self.cache.peek(key).is_some_and(|cached| cached.domains.contains(&domain)) {
            self.cache.insert(*key, Cached { plain: plain.clone(), domains: [domain].into() });
        }
    }

    /// Puts, and where there is no room, once more with the room of the hot tier.
    fn with_room<T>(&self, put: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        match put() {
            Err(StoreError::Full { .. }) if self.hot.release() => put(),
            outcome => outcome,
        }
    }

    fn compress(&self, kind: Kind, plain: &[u8]) -> Stored {
        // Nodes are hashes: there is nothing to be saved.
        if kind == Kind::Node {
            return Stored::plain(Bytes::copy_from_slice(plain));
        }
        let kept = || self.compressors.lock().unwrap_or_else(PoisonError::into_inner);
        let mut compressor = kept().pop().unwrap_or_default();
        let stored = compressor.compress(plain);
        let mut kept = kept();
        if kept.len() < KEPT_COMPRESSORS {
            kept.push(compressor);
        }
        stored
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore").field("directory", &self.core.directory.path).finish_non_exhaustive()
    }
}

impl ChunkStore for LocalStore {
    fn contains(&self, key: &Key, domains: &Domains) -> Result<bool, StoreError> {
        self.core.contains(key, domains)
    }

    fn get(&self, key: &Key, domains: &Domains) -> Result<Option<Bytes>, StoreError> {
        if let Some(cached) = self.cache.get(key).filter(|cached| domains.meet(&cached.domains)) {
            return Ok(Some(cached.plain));
        }
        Ok(self.load(key, domains)?.map(|loaded| loaded.plain))
    }

    fn read_at(
        &self,
        key: &Key,
        domains: &Domains,
        offset: usize,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, StoreError> {
        if let Some(cached) = self.cache.get(key).filter(|cached| domains.meet(&cached.domains)) {
            return Ok(Some(copy_part(&cached.plain, offset, buffer)));
        }
        if self.hot.read(key, domains, offset, buffer) {
            return Ok(Some(types::CHUNK_BYTES));
        }
        let removals = self.core.removals.load(Ordering::Acquire);
        let Some(loaded) = self.load(key, domains)? else { return Ok(None) };
        if self.hot.missed(key, &loaded.plain, &loaded.domains, buffer.len() < loaded.plain.len()) {
            // The page cache has it from now on: twice would be once too often.
            self.cache.remove(key);
        }
        if self.core.removals.load(Ordering::Acquire) != removals {
            self.hot.forget(key);
        }
        Ok(Some(copy_part(&loaded.plain, offset, buffer)))
    }

    fn will_read(&self, key: &Key, domains: &Domains, offset: usize, length: usize) {
        if self.cache.contains_key(key) || self.hot.will_read(key, offset, length) {
            return;
        }
        // What is wrong, the read itself will say.
        let entry = self.core.find_once(key).ok().flatten().filter(|entry| entry.is_present(domains));
        if let Some(entry) = entry
            && let Ok(pack) = self.core.packs.pack(entry.pack)
        {
            pack.will_read(&entry);
        }
    }

    fn get_stored(&self, key: &Key, domains: &Domains) -> Result<Option<Stored>, StoreError> {
        let Some((entry, stored, plain)) = self.core.load(key, domains)? else { return Ok(None) };
        Ok(Some(if entry.content.is_some() { self.compress(key.kind, &plain) } else { stored }))
    }

    fn put(&self, key: &Key, domain: Domain, plain: &[u8]) -> Result<Put, StoreError> {
        if plain.len() > key.kind.max_plain_bytes() {
            return Err(StoreError::WrongHash(*key));
        }
        self.with_room(|| self.core.put(key, domain, || self.compress(key.kind, plain)))
    }

    fn put_stored(&self, key: &Key, domain: Domain, stored: &Stored) -> Result<Put, StoreError> {
        let plain = checked_plain(key, stored).ok_or(StoreError::WrongHash(*key))?;
        // What came compressed is kept so, unless someone made it longer than it was.
        let keep = stored.codec != Codec::Plain && stored.bytes.len() < plain.len();
        let encode = || if keep { stored.clone() } else { self.compress(key.kind, &plain) };
        let put = self.with_room(|| self.core.put(key, domain, encode))?;
        // Whoever it was fetched for reads it next.
        self.remember(key, domain, &plain);
        Ok(put)
    }

    fn freeze(&self, source: &dyn File) -> Result<FrozenFile, FreezeError> {
        self.core.freeze(source)
    }

    fn share(
        &self,
        domain: Domain,
        chunks: &[ChunkId],
        frozen: &FrozenFile,
        offset: u64,
    ) -> Result<Vec<Put>, StoreError> {
        self.with_room(|| self.core.share(domain, chunks, frozen, offset))
    }

    fn find_in_file(&self, chunk: &ChunkId, domains: &Domains) -> Result<Option<InFile>, StoreError> {
        self.core.find_in_file(chunk, domains)
    }

    fn lend(&self, key: &Key, domain: Domain, stored: &Stored) -> Result<bool, StoreError> {
        let plain = checked_plain(key, stored).ok_or(StoreError::WrongHash(*key))?;
        self.remember(key, domain, &plain);
        Ok(self.cache.contains_key(key))
    }

    fn commit(&self) -> Result<(), StoreError> {
        self.core.commit()
    }

    fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        self.core.statistics()
    }

    fn make_room(&self) -> bool {
        self.hot.release()
    }

    fn roots(&self) -> &dyn Roots {
        &self.roots
    }

    fn hold(&self) -> Hold {
        self.core.holding.hold()
    }

    fn collect(
        &self,
        roots: &dyn LiveRoots,
        options: &CollectOptions,
        progress: &Progress,
    ) -> Result<CollectReport, CollectError> {
        self.core.collect(roots, options, progress, &|key| self.forget(key))
    }

    fn scrub(
        &self,
        options: &ScrubOptions,
        progress: &Progress,
        tell: &mut dyn FnMut(Scrubbed),
    ) -> Result<ScrubReport, ScrubError> {
        self.core.scrub(options, progress, &|key| self.forget(key), tell)
    }

    fn quarantined(&self) -> Vec<Key> {
        self.core.quarantined()
    }

    fn removals(&self) -> u64 {
        self.core.removals.load(Ordering::Acquire)
    }
}

/// The roots of a local store.
struct LocalRoots {
    core: Arc<Core>,
    log: RootsLog,
}

impl fmt::Debug for LocalRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRoots").finish_non_exhaustive()
    }
}

impl Roots for LocalRoots {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.log.get(name)
    }

    fn list(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        self.log.list(prefix)
    }

    fn apply(&self, changes: Vec<RootChange>) -> Result<(), StoreError> {
        self.core.commit()?;
        self.log.apply(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{chunk_key, sample};

    #[test]
    fn after_a_write_that_did_not_reach_the_medium_nothing_is_written_but_all_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
        let (old, new) = (sample(1, 3000), sample(2, 3000));
        store.put(&chunk_key(&old), Domain::OWN, &old).unwrap();
        store.core.stopped.store(true, Ordering::Release);
        let refused = store.put(&chunk_key(&new), Domain::OWN, &new);
        assert!(matches!(refused, Err(StoreError::Stopped { .. })), "{refused:?}");
        assert!(matches!(store.commit(), Err(StoreError::Stopped { .. })));
        let root = ("volume/1".to_owned(), Some(Vec::new()));
        assert!(matches!(store.roots().apply(vec![root]), Err(StoreError::Stopped { .. })));
        assert_eq!(store.roots().get("volume/1"), None);
        assert_eq!(store.get(&chunk_key(&old), &Domain::OWN.into()).unwrap().unwrap(), old);
    }

    #[test]
    fn the_cache_is_bounded_and_what_it_holds_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let options = LocalOptions { cache_bytes: 300_000, ..LocalOptions::default() };
        let store = LocalStore::open(directory.path(), options).unwrap();
        let samples: Vec<_> = (0..20).map(|number| sample(number, 60_000)).collect();
        for plain in &samples {
            store.put(&chunk_key(plain), Domain::OWN, plain).unwrap();
            store.get(&chunk_key(plain), &Domain::OWN.into()).unwrap().unwrap();
            assert!(store.cache.weight() <= 300_000);
        }
        let cached = samples.iter().find(|plain| store.cache.contains_key(&chunk_key(plain))).expect("one is cached");
        std::fs::write(directory.path().join("packs/00000001.pack"), b"").unwrap();
        assert_eq!(store.get(&chunk_key(cached), &Domain::OWN.into()).unwrap().unwrap(), *cached);
    }

    #[test]
    fn what_has_a_copy_in_the_hot_tier_is_not_in_memory_too() {
        let directory = tempfile::tempdir().unwrap();
        let options = LocalOptions { reserve_bytes: 0, ..LocalOptions::default() };
        let store = LocalStore::open(directory.path(), options).unwrap();
        let plain = sample(1, 65536);
        let key = chunk_key(&plain);
        store.put(&key, Domain::OWN, &plain).unwrap();
        for _ in 0..2 {
            let mut part = [0; 512];
            assert_eq!(store.read_at(&key, &Domain::OWN.into(), 1024, &mut part).unwrap(), Some(65536));
            assert_eq!(part, plain[1024..1536]);
            let hot = store.hot.read(&key, &Domain::OWN.into(), 0, &mut part);
            assert!(hot && !store.cache.contains_key(&key));
        }
    }

    #[test]
    fn what_is_lent_is_read_but_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
        let plain = sample(1, 65536);
        let (key, stored) = (chunk_key(&plain), Compressor::new().compress(&plain));
        assert!(store.lend(&key, Domain(3), &stored).unwrap());
        assert_eq!(store.get(&key, &Domain(3).into()).unwrap().unwrap(), plain);
        let mut part = [0; 512];
        assert_eq!(store.read_at(&key, &Domain(3).into(), 1024, &mut part).unwrap(), Some(65536));
        assert_eq!(part, plain[1024..1536]);
        assert_eq!(store.get(&key, &Domain::OWN.into()).unwrap(), None);
        assert!(!store.contains(&key, &Domain(3).into()).unwrap());
        assert!(store.put(&key, Domain(3), &plain).unwrap().new);
        let other = Compressor::new().compress(&sample(2, 65536));
        assert!(matches!(store.lend(&key, Domain(3), &other), Err(StoreError::WrongHash(_))));
    }

    #[test]
    fn what_came_compressed_is_kept_so_unless_it_is_longer() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path(), LocalOptions::default()).unwrap();
        let plain = sample(1, 10_000);
        let sent = Compressor::new().compress(&plain);
        store.put_stored(&chunk_key(&plain), Domain::OWN, &sent).unwrap();
        assert_eq!(store.get_stored(&chunk_key(&plain), &Domain::OWN.into()).unwrap().unwrap(), sent);
        // A frame may be as long as one likes: empty blocks add nothing to its content.
        let plain = [7; 4];
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 4];
        (0..50).for_each(|_| frame.extend([0, 0, 0]));
        frame.extend([0x21, 0, 0]);
        frame.extend(plain);
        let bloated = Stored { codec: Codec::Zstd, plain_bytes: 4, bytes: frame.into() };
        assert_eq!(bloated.to_plain().unwrap(), plain[..]);
        let put = store.put_stored(&chunk_key(&plain), Domain::OWN, &bloated).unwrap();
        assert_eq!(put.stored_bytes, 4);
    }
}

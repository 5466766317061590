//! A store in memory: for tests, and as the proof that the trait does not lean on files.
//!
//! It keeps every promise of [`ChunkStore`] but durability, which memory cannot give. Nothing is evicted but by collection.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use format::Stored;
use types::Progress;

use crate::holding::Holding;
use crate::mark::Marks;
use crate::roots::{check_changes, list_prefix};
use crate::{
    ChunkStore, CollectError, CollectOptions, CollectReport, Domain, Domains, Hold, Key, LiveRoots, Put, RootChange,
    Roots, StoreError, StoreStatistics, checked_plain,
};

/// Keeps objects and roots in memory.
#[derive(Default)]
pub struct MemoryStore {
    objects: RwLock<Objects>,
    holding: Holding,
    removals: AtomicU64,
    roots: MemoryRoots,
}

#[derive(Default)]
struct Objects {
    by_key: HashMap<Key, Object>,
    statistics: StoreStatistics,
}

struct Object {
    plain: Bytes,
    domains: Vec<Domain>,
}

impl MemoryStore {
    /// Makes an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self) -> RwLockReadGuard<'_, Objects> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Objects> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, key: &Key, domain: Domain, plain: &Bytes) -> Put {
        let mut objects = self.write();
        let Objects { by_key, statistics } = &mut *objects;
        let stored_bytes = u32::try_from(plain.len()).expect("an object is at most 1 MiB");
        let mut new = false;
        let object = by_key.entry(*key).or_insert_with(|| {
            new = true;
            Object { plain: plain.clone(), domains: Vec::new() }
        });
        if !object.domains.contains(&domain) {
            object.domains.push(domain);
        }
        self.holding.pin(key, [domain]);
        if new {
            statistics.objects += 1;
            statistics.plain_bytes += u64::from(stored_bytes);
            statistics.stored_bytes += u64::from(stored_bytes);
            statistics.allocated_bytes += u64::from(stored_bytes);
        }
        Put { new, stored_bytes }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("statistics", &self.read().statistics).finish_non_exhaustive()
    }
}

impl ChunkStore for MemoryStore {
    fn contains(&self, key: &Key, domains: &Domains) -> Result<bool, StoreError> {
        let objects = self.read();
        let Some(object) = objects.by_key.get(key).filter(|object| domains.meet(&object.domains)) else {
            return Ok(false);
        };
        self.holding.pin(key, object.domains.iter().copied().filter(|domain| domains.contains(*domain)));
        Ok(true)
    }

    fn get(&self, key: &Key, domains: &Domains) -> Result<Option<Bytes>, StoreError> {
        let objects = self.read();
        let object = objects.by_key.get(key).filter(|object| domains.meet(&object.domains));
        Ok(object.map(|object| object.plain.clone()))
    }

    fn get_stored(&self, key: &Key, domains: &Domains) -> Result<Option<Stored>, StoreError> {
        Ok(self.get(key, domains)?.map(Stored::plain))
    }

    fn put(&self, key: &Key, domain: Domain, plain: &[u8]) -> Result<Put, StoreError> {
        self.put_stored(key, domain, &Stored::plain(Bytes::copy_from_slice(plain)))
    }

    fn put_stored(&self, key: &Key, domain: Domain, stored: &Stored) -> Result<Put, StoreError> {
        let plain = checked_plain(key, stored).ok_or(StoreError::WrongHash(*key))?;
        Ok(self.insert(key, domain, &plain))
    }

    fn commit(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn statistics(&self) -> Result<StoreStatistics, StoreError> {
        Ok(self.read().statistics)
    }

    fn roots(&self) -> &dyn Roots {
        &self.roots
    }

    fn hold(&self) -> Hold {
        self.holding.hold()
    }

    fn collect(
        &self,
        roots: &dyn LiveRoots,
        options: &CollectOptions,
        progress: &Progress,
    ) -> Result<CollectReport, CollectError> {
        let _hold = self.holding.hold();
        let Some(pins) = self.holding.pins() else { unreachable!("there is a hold") };
        let read = |id: &types::NodeId, domains: &Domains| self.get(&(*id).into(), domains);
        let marks = Marks::of(roots, &read, progress)?;
        let mut objects = self.write();
        let Objects { by_key, statistics } = &mut *objects;
        let mut report = CollectReport { memory_bytes: marks.most_memory_bytes(), ..CollectReport::default() };
        by_key.retain(|key, object| {
            let live = |domain: &Domain| marks.contains_in(key, *domain) || pins.contains_in(key, *domain);
            let bytes = object.plain.len() as u64;
            if object.domains.iter().any(live) {
                (report.live_objects, report.live_bytes) = (report.live_objects + 1, report.live_bytes + bytes);
                if !options.dry_run {
                    object.domains.retain(live);
                }
                return true;
            }
            (report.dead_objects, report.dead_bytes) = (report.dead_objects + 1, report.dead_bytes + bytes);
            options.dry_run
        });
        if !options.dry_run {
            report.freed_bytes = report.dead_bytes;
            statistics.objects -= report.dead_objects;
            for counted in [&mut statistics.plain_bytes, &mut statistics.stored_bytes, &mut statistics.allocated_bytes]
            {
                *counted -= report.dead_bytes;
            }
            self.removals.fetch_add(1, Ordering::AcqRel);
        }
        Ok(report)
    }

    fn removals(&self) -> u64 {
        self.removals.load(Ordering::Acquire)
    }
}

/// Root records in memory.
#[derive(Default)]
struct MemoryRoots {
    records: RwLock<BTreeMap<String, Vec<u8>>>,
}

impl fmt::Debug for MemoryRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRoots").finish_non_exhaustive()
    }
}

impl Roots for MemoryRoots {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn list(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        list_prefix(&self.records.read().unwrap_or_else(PoisonError::into_inner), prefix)
    }

    fn apply(&self, changes: Vec<RootChange>) -> Result<(), StoreError> {
        check_changes(&changes)?;
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        for (name, value) in changes {
            match value {
                Some(value) => drop(records.insert(name, value)),
                None => drop(records.remove(&name)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_have_the_hash_they_are_named_by() {
        let store = MemoryStore::new();
        let key = Key::from(format::chunk_id(b"one"));
        assert!(matches!(store.put(&key, Domain::OWN, b"two"), Err(StoreError::WrongHash(_))));
        assert!(!store.contains(&key, &Domain::OWN.into()).unwrap());
    }
}

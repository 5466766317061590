//! What was put and is not in the index yet.
//!
//! Invariant: an object that was put is found, from the moment of its put, in one of the maps here or in the index:
//! entries leave these maps only after the index has them.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::index::{Entry, Totals};
use crate::Key;

#[derive(Debug, Default)]
struct Maps {
    /// Since the last commit began. An entry here is newer than one of the same key below.
    fresh: BTreeMap<Key, Entry>,
    /// Being committed.
    committing: Arc<BTreeMap<Key, Entry>>,
    totals: Totals,
}

/// Entries on their way to the index, and the totals with them.
#[derive(Debug)]
pub(crate) struct Pending {
    maps: RwLock<Maps>,
}

impl Pending {
    pub(crate) fn new(totals: Totals) -> Self {
        Self { maps: RwLock::new(Maps { totals, ..Maps::default() }) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Entry> {
        let maps = self.read();
        maps.fresh.get(key).or_else(|| maps.committing.get(key)).cloned()
    }

    /// Enters an object that was not there, or only as one that does not count any more; returns how many wait for a commit.
    pub(crate) fn enter(&self, key: Key, dead: Option<&Entry>, entry: Entry) -> usize {
        let mut maps = self.write();
        if let Some(dead) = dead {
            maps.totals.subtract(dead);
        }
        maps.totals.add(&entry);
        maps.fresh.insert(key, entry);
        maps.fresh.len()
    }

    /// Enters the new state of an object that was there.
    pub(crate) fn replace(&self, key: Key, entry: Entry) -> usize {
        let mut maps = self.write();
        maps.fresh.insert(key, entry);
        maps.fresh.len()
    }

    /// Counts objects no more that leave the index.
    pub(crate) fn subtract(&self, removed: &Totals) {
        self.write().totals.subtract_all(removed);
    }

    pub(crate) fn totals(&self) -> Totals {
        self.read().totals
    }

    /// Begins a commit of everything that is here.
    pub(crate) fn begin(&self) -> (Arc<BTreeMap<Key, Entry>>, Totals) {
        let mut maps = self.write();
        assert!(maps.committing.is_empty(), "one commit at a time");
        maps.committing = Arc::new(std::mem::take(&mut maps.fresh));
        (maps.committing.clone(), maps.totals)
    }

    /// Ends a commit that the index has.
    pub(crate) fn finish(&self) {
        self.write().committing = Arc::default();
    }

    /// Takes a failed commit's entries back, to be committed later.
    pub(crate) fn take_back(&self) {
        let mut maps = self.write();
        let mut all = Arc::unwrap_or_clone(std::mem::take(&mut maps.committing));
        all.append(&mut maps.fresh);
        maps.fresh = all;
    }
}

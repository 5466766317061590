//! Takes what is dead out of the index.
//!
//! Invariants: an entry leaves the index only where it refers to the place that is dead: what was put anew meanwhile
//! stays. Each batch leaves in one step with the totals, so that these are right whatever comes in between. Commits wait
//! for one batch at a time.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use format::pack::FooterEntry;

use super::collection::{Victim, records};
use super::committer::{Committed, Core};
use super::index::{Entry, State, Totals, index_error};
use super::recovery::store_tag;
use super::scan::key_of;
use crate::{Key, StoreError};

/// How many entries leave the index while writers wait.
const REMOVE_AT_ONCE: usize = 512;

/// How many entries are looked at while commits wait.
const LOOK_AT_ONCE: usize = 1 << 15;

/// Looking one object up costs about as much as going over so many entries.
const LOOKUP_ENTRIES: u64 = 8;

impl Core {
    /// Takes the dead of condemned packs out of the index. `gone` is told of each, and maybe of some more.
    pub(crate) fn remove_dead(&self, victims: &[Victim], gone: &dyn Fn(&Key)) -> Result<(), StoreError> {
        let dead: usize = victims.iter().map(Victim::dead_objects).sum();
        if dead as u64 * LOOKUP_ENTRIES > self.pending.totals().objects {
            return self.go_over_index(victims, gone);
        }
        for victim in victims.iter().filter(|victim| victim.dead_objects() > 0) {
            let pack = self.packs.pack(victim.number)?;
            let records = records(&pack, pack.length()?)?.unwrap_or_default();
            let is_dead = |record: &&FooterEntry| record.header.is_object() && victim.is_dead(record.place);
            let dead: Vec<(Key, u32)> = records
                .iter()
                .filter(is_dead)
                .filter_map(|record| Some((key_of(&record.header)?, record.place)))
                .collect();
            for dead in dead.chunks(REMOVE_AT_ONCE) {
                self.remove_entries(&mut self.lock_committed(), victim.number, dead)?;
                dead.iter().for_each(|(key, _)| gone(key));
            }
        }
        Ok(())
    }

    /// Takes the dead out in the order of the index, which is faster where they are many.
    fn go_over_index(&self, victims: &[Victim], gone: &dyn Fn(&Key)) -> Result<(), StoreError> {
        let mut victims: Vec<&Victim> = victims.iter().collect();
        victims.sort_unstable_by_key(|victim| victim.number);
        let is_dead = |entry: &Entry| {
            let victim = victims.binary_search_by_key(&entry.pack, |victim| victim.number);
            victim.is_ok_and(|found| victims[found].is_dead(entry.place))
        };
        let mut after = None;
        loop {
            let mut committed = self.lock_committed();
            let (mut looked, mut last, mut dead) = (0, None, Vec::new());
            let mut visit = |key, entry| {
                looked += 1;
                last = Some(key);
                if is_dead(&entry) {
                    dead.push((key, entry));
                }
                looked < LOOK_AT_ONCE
            };
            self.with_index(|index| index.visit(after.as_ref(), &mut visit))
                .map_err(index_error(&self.directory.path))?;
            for dead in dead.chunks(REMOVE_AT_ONCE) {
                self.remove_found(&mut committed, dead)?;
            }
            drop(committed);
            dead.iter().for_each(|(key, _)| gone(key));
            if looked < LOOK_AT_ONCE {
                return Ok(());
            }
            after = last;
        }
    }

    /// Takes dead objects out of the index that still lie in a pack. The committer's lock is held.
    pub(crate) fn remove_entries(
        &self,
        committed: &mut Committed,
        number: u32,
        dead: &[(Key, u32)],
    ) -> Result<(), StoreError> {
        let mut found = Vec::with_capacity(dead.len());
        for (key, place) in dead {
            let entry = self.with_index(|index| index.get(key)).map_err(index_error(&self.directory.path))?;
            found
                .extend(entry.filter(|entry| (entry.pack, entry.place) == (number, *place)).map(|entry| (*key, entry)));
        }
        self.remove_found(committed, &found)
    }

    /// Takes entries out of the index. The committer's lock has been held since they were found there.
    fn remove_found(&self, committed: &mut Committed, found: &[(Key, Entry)]) -> Result<(), StoreError> {
        if found.is_empty() {
            return Ok(());
        }
        // Nobody puts one of them meanwhile.
        let _writer = self.lock_writer();
        // Also of what was put anew meanwhile and is not committed: the index must not name a pack that is on its way out.
        let keys: Vec<Key> = found.iter().map(|(key, _)| *key).collect();
        let (mut left, mut removed) = (Totals::default(), Totals::default());
        for (key, entry) in found {
            left.add(entry);
            // Who put it anew has counted this one no more.
            if self.pending.get(key).is_none() {
                removed.add(entry);
            }
        }
        let mut totals = committed.totals;
        totals.subtract_all(&left);
        let state = State { store_tag: store_tag(&self.packs), checkpoint: committed.checkpoint, totals };
        self.with_index(|index| index.remove(&keys, &state)).map_err(index_error(&self.directory.path))?;
        committed.totals = totals;
        self.pending.subtract(&removed);
        Ok(())
    }

    /// Makes what left the index leave it durably.
    pub(crate) fn persist_index(&self) -> Result<(), StoreError> {
        self.with_index(|index| index.persist()).map_err(index_error(&self.directory.path))
    }

    /// Takes the committer's lock, if the index was not repaired since: it may have taken up again what left it.
    pub(crate) fn lock_unrepaired(&self, repairs: u64) -> Result<MutexGuard<'_, Committed>, StoreError> {
        let committed = self.lock_committed();
        if self.repairs() != repairs {
            return Err(StoreError::Index("it was repaired while the dead were taken out of it".into()));
        }
        Ok(committed)
    }

    /// How often the index was opened again or rebuilt.
    pub(crate) fn repairs(&self) -> u64 {
        self.repairs.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::{Entry, Key};
    use crate::conformance::{chunk_key, collect, live_tree, put_tree, sample};
    use crate::{ChunkStore, Domain, LocalOptions, LocalStore};

    /// Collects a store of so many live and one dead disk, and returns how many objects are left.
    fn left_of(live_disks: u32, directory: &std::path::Path) -> u64 {
        let options = LocalOptions { pack_bytes: 20_000, hot_bytes: 0, ..LocalOptions::default() };
        let store = LocalStore::open(directory, options).unwrap();
        let own = Domain::OWN.into();
        let disk = |first: u32| (100 * first..100 * first + 8).map(|number| sample(number, 1000)).collect::<Vec<_>>();
        let roots: Vec<_> =
            (1..=live_disks).map(|first| live_tree(put_tree(&*store, Domain::OWN, &disk(first)), 8, &own)).collect();
        put_tree(&*store, Domain::OWN, &disk(0));
        let report = collect(&*store, &roots).unwrap();
        assert_eq!((report.live_objects, report.dead_objects), (u64::from(live_disks) * 9, 9));
        for first in 0..=live_disks {
            let here = disk(first).iter().filter(|plain| store.contains(&chunk_key(plain), &own).unwrap()).count();
            assert_eq!(here, if first == 0 { 0 } else { 8 }, "disk {first} of {live_disks}");
        }
        store.statistics().unwrap().objects
    }

    #[test]
    fn the_dead_leave_the_index_whether_they_are_few_or_many() {
        for live_disks in [0, 1, 3, 20] {
            let directory = tempfile::tempdir().unwrap();
            assert_eq!(left_of(live_disks, directory.path()), u64::from(live_disks) * 9);
        }
    }

    #[test]
    fn what_is_put_anew_and_not_committed_leaves_the_index_too() {
        let directory = tempfile::tempdir().unwrap();
        let store =
            LocalStore::open(directory.path(), LocalOptions { hot_bytes: 0, ..LocalOptions::default() }).unwrap();
        let core = &store.core;
        let plain = sample(1, 1000);
        let key: Key = chunk_key(&plain);
        store.put(&key, Domain::OWN, &plain).unwrap();
        store.commit().unwrap();
        let dead: Entry = core.find(&key).unwrap().unwrap();
        // As whoever puts it finds it while its pack is condemned.
        let anew = Entry { place: dead.place + 4096, ..dead.clone() };
        core.pending.enter(key, Some(&dead), anew);
        core.remove_entries(&mut core.lock_committed(), dead.pack, &[(key, dead.place)]).unwrap();
        assert!(core.with_index(|index| index.get(&key)).unwrap().is_none(), "a crash now must not find its old place");
        assert_eq!((core.lock_committed().totals.objects, core.pending.totals().objects), (0, 1));
    }
}

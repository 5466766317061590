//! Schedules of volumes: snapshots that are taken by themselves, and withdrawn again.
//!
//! Invariants: a schedule is a record of the store, by the volume's id, so that it survives restarts, growing, deleting and taking
//! back, and goes with a volume that is given to another member; no failure removes it. That a snapshot was taken is recorded in
//! the step that takes it. Nothing is withdrawn but what a schedule took, and only by the rules of [`retention`]. Volumes whose
//! snapshots go to one object are one group: they are taken at one moment ([`plan`]).

mod plan;
mod request;
mod retention;
mod run;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use store::{ChunkStore, RootChange};
use types::VolumeId;
use volume::Volumes;

use self::plan::{Group, Runs, Target, groups};
use crate::api::ApiError;
use crate::error::store_error;
use crate::record::{Record, RecordError, ScheduleRecord};

const PREFIX: &str = "schedule/";

/// The schedules of all volumes.
#[derive(Debug)]
pub(crate) struct Schedules {
    store: Arc<dyn ChunkStore>,
    /// Held by who changes records, until the memory agrees with them again.
    changes: Mutex<()>,
    all: Mutex<BTreeMap<VolumeId, ScheduleRecord>>,
    runs: Mutex<BTreeMap<Target, Runs>>,
    /// Held while what is due is run.
    running: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record_name(id: VolumeId) -> String {
    format!("{PREFIX}{id}")
}

impl Schedules {
    /// Reads all schedules, and drops those of volumes that there are no more.
    pub(crate) fn open(store: Arc<dyn ChunkStore>, volumes: &Volumes) -> Result<Self, RecordError> {
        let records = ScheduleRecord::read_all(&*store, PREFIX)?;
        let all = records.into_iter().filter_map(|(id, record)| Some((id.parse().ok()?, record))).collect();
        let schedules = Self {
            store,
            changes: Mutex::default(),
            all: Mutex::new(all),
            runs: Mutex::default(),
            running: tokio::sync::Mutex::default(),
        };
        schedules.forget_but(volumes);
        Ok(schedules)
    }

    /// The schedule of a volume.
    pub(crate) fn of(&self, id: VolumeId) -> Option<ScheduleRecord> {
        lock(&self.all).get(&id).cloned()
    }

    /// Keeps everybody else from changing schedules. Blocks.
    pub(crate) fn change(&self) -> Changing<'_> {
        Changing { schedules: self, _held: lock(&self.changes) }
    }

    /// The groups of the volumes that there are. What is deleted waits until it is taken back.
    fn groups(&self, volumes: &Volumes) -> BTreeMap<Target, Group> {
        let all = lock(&self.all);
        if all.is_empty() {
            return BTreeMap::new();
        }
        groups(volumes.list().iter().filter_map(|volume| Some((volume.id(), all.get(&volume.id())?.clone()))))
    }

    /// What became of a group's runs.
    fn runs(&self, target: &Target) -> Runs {
        lock(&self.runs).get(target).cloned().unwrap_or_default()
    }

    fn note_runs(&self, target: Target, runs: Runs) {
        lock(&self.runs).insert(target, runs);
    }

    /// Drops the schedules of volumes that are gone for good.
    pub(crate) fn forget_but(&self, volumes: &Volumes) {
        // Held first: whoever has a schedule by now has been made before.
        let mut changing = self.change();
        let mut kept: Vec<VolumeId> = volumes.list().iter().map(|volume| volume.id()).collect();
        kept.extend(volumes.deleted().iter().map(volume::Deleted::id));
        let gone: Vec<VolumeId> = lock(&self.all).keys().filter(|id| !kept.contains(id)).copied().collect();
        for id in gone {
            if let Err(error) = changing.remove(id) {
                // It is in nobody's way, and the next start tries again.
                tracing::warn!(%error, "the schedule of a volume that is gone could not be removed");
            }
        }
    }
}

/// That only its holder changes schedules.
#[derive(Debug)]
pub(crate) struct Changing<'s> {
    schedules: &'s Schedules,
    _held: MutexGuard<'s, ()>,
}

impl Changing<'_> {
    /// The schedule of a volume, as long as this is held.
    pub(crate) fn of(&self, id: VolumeId) -> Option<ScheduleRecord> {
        self.schedules.of(id)
    }

    /// Puts a volume on a schedule, durably.
    pub(crate) fn put(&mut self, id: VolumeId, record: ScheduleRecord) -> Result<(), ApiError> {
        record.write(&*self.schedules.store, record_name(id)).map_err(store_error)?;
        self.note(id, record);
        Ok(())
    }

    /// The change that puts a volume on a schedule, to be noted by [`Self::note`].
    pub(crate) fn putting(&self, id: VolumeId, record: &ScheduleRecord) -> RootChange {
        record.change(record_name(id))
    }

    /// Notes what was recorded in another step.
    pub(crate) fn note(&mut self, id: VolumeId, record: ScheduleRecord) {
        lock(&self.schedules.all).insert(id, record);
    }

    /// The change that takes a volume off its schedule, to be noted by [`Self::removed`].
    pub(crate) fn removal(&self, id: VolumeId) -> Option<RootChange> {
        self.of(id).map(|_| (record_name(id), None))
    }

    /// Notes that a volume has no schedule any more.
    pub(crate) fn removed(&mut self, id: VolumeId) {
        lock(&self.schedules.all).remove(&id);
    }

    /// Takes a volume off its schedule, durably.
    fn remove(&mut self, id: VolumeId) -> Result<(), ApiError> {
        let Some(change) = self.removal(id) else { return Ok(()) };
        self.schedules.store.roots().apply(vec![change]).map_err(store_error)?;
        self.removed(id);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

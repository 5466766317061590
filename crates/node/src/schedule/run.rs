//! Running what is due: taking snapshots, and withdrawing those that nothing keeps.

use std::sync::Arc;
use std::time::Duration;

use format::entry::Action;
use futures_util::StreamExt as _;
use types::{Keep, Name};
use volume::Volume;

use super::plan::{Failed, Group, Runs, Target};
use super::{record_name, retention};
use crate::api::ApiError;
use crate::buckets::BucketState;
use crate::error::blocking;
use crate::node::Node;
use crate::record::{Record as _, ScheduleRecord, ScheduledRecord};
use crate::snapshots::{NewVersion, disk_names};

/// How often it is looked at what is due.
const LOOK: Duration = Duration::from_secs(1);

/// How many groups are snapshotted at a time: each waits for the disk.
const AT_ONCE: usize = 4;

/// The note of a snapshot that a schedule took.
const MESSAGE: &str = "scheduled";

/// What came of looking at a group that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ran {
    /// A snapshot was taken, with this version.
    Taken(u64),
    /// Nothing was written since the last one.
    Unchanged,
    /// It has been changed since it was looked at; it is looked at again.
    Changed,
}

impl Node {
    /// Runs what is due until the node stops.
    pub(crate) fn spawn_scheduler(self: &Arc<Self>) {
        let node = Arc::clone(self);
        self.spawn(async move {
            let mut interval = tokio::time::interval(LOOK);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                interval.tick().await;
                node.run_schedules().await;
            }
        });
    }

    /// Runs what is due now, and returns when all of it was tried.
    pub(crate) async fn run_schedules(self: &Arc<Self>) {
        let _running = self.schedules.running.lock().await;
        let now_ms = self.options.clock.now_ms();
        let groups = self.schedules.groups(&self.volumes).into_iter();
        let ready = groups.filter(|(target, group)| group.is_ready(&self.schedules.runs(target), now_ms));
        let run = |(target, group)| async move { self.run_group(target, group, now_ms).await };
        futures_util::stream::iter(ready).for_each_concurrent(AT_ONCE, run).await;
    }

    async fn run_group(self: &Arc<Self>, target: Target, group: Group, now_ms: u64) {
        let mut runs = self.schedules.runs(&target);
        match self.try_group(&target, &group, &runs, now_ms).await {
            Ok(ran) => {
                runs.failed = None;
                if ran == Some(Ran::Unchanged) {
                    runs.unchanged_ms = Some(now_ms);
                }
            }
            Err(error) => {
                tracing::warn!(%error, bucket = %target.0, object = %target.1, "a scheduled snapshot failed");
                runs.failed = Some(Failed::after(runs.failed.as_ref(), now_ms, error));
            }
        }
        self.schedules.note_runs(target, runs);
    }

    async fn try_group(
        self: &Arc<Self>,
        target: &Target,
        group: &Group,
        runs: &Runs,
        now_ms: u64,
    ) -> Result<Option<Ran>, ApiError> {
        let bucket = self.buckets.find(&target.0)?;
        let mut ran = None;
        if group.is_due(runs, now_ms) {
            let (node, taking, object, group) =
                (Arc::clone(self), Arc::clone(&bucket), target.1.clone(), group.clone());
            ran = Some(blocking(move || node.take_scheduled(&taking, object, &group, now_ms)).await?);
        }
        if let Some(Ran::Taken(version)) = ran {
            self.start_sealing(&bucket, &target.1, version).await?;
        }
        if let Some(keep) = group.keep {
            self.withdraw(&bucket, &target.1, keep).await?;
        }
        Ok(ran)
    }

    /// Takes a snapshot of a group, if anything was written since the last one. Blocks.
    fn take_scheduled(&self, bucket: &BucketState, object: Name, group: &Group, now_ms: u64) -> Result<Ran, ApiError> {
        let mut changing = self.schedules.change();
        let volumes: Vec<Arc<Volume>> =
            self.volumes.list().into_iter().filter(|volume| group.volumes.contains_key(&volume.id())).collect();
        let same = group.volumes.iter().all(|(id, record)| changing.of(*id).as_ref() == Some(record));
        if !same || volumes.len() != group.volumes.len() {
            return Ok(Ran::Changed);
        }
        let records = volumes.iter().filter_map(|volume| group.volumes.get(&volume.id()));
        let written: Vec<_> = volumes
            .iter()
            .zip(records)
            .map(|(volume, record)| (volume.id(), record, volume.position(), volume.status().size_bytes))
            .collect();
        let last = |record: &ScheduleRecord| record.last.map(|last| (last.position(), last.size_bytes));
        let unchanged = written.iter().all(|(_, record, position, size)| last(record) == Some((*position, *size)));
        if unchanged && self.has_last(bucket, &object, group) {
            return Ok(Ran::Unchanged);
        }
        let name = |record: &ScheduleRecord, volume: &Volume| match &record.disk {
            Some(disk) => disk.clone(),
            None if volumes.len() == 1 => object.clone(),
            None => volume.name().clone(),
        };
        let given = written.iter().zip(&volumes).map(|((_, record, ..), volume)| name(record, volume)).collect();
        let new = NewVersion {
            names: disk_names(&object, &volumes, given)?,
            object,
            volumes,
            taken_ms: now_ms,
            message: MESSAGE.to_owned(),
            machine: None,
            scheduled: true,
        };
        let after = |version| {
            let after = written.iter().map(move |(id, record, position, size)| {
                let last = Some(ScheduledRecord::new(now_ms, version, *position, *size));
                (*id, ScheduleRecord { last, ..(*record).clone() })
            });
            after.collect::<Vec<_>>()
        };
        let changes = |version| after(version).iter().map(|(id, record)| record.change(record_name(*id))).collect();
        let version = self.freeze(bucket, new, changes)?;
        after(version).into_iter().for_each(|(id, record)| changing.note(id, record));
        drop(changing);
        self.settings_went_on(group.volumes.keys().copied());
        Ok(Ran::Taken(version))
    }

    /// Whether all volumes of a group have the same last snapshot, and it is still there.
    fn has_last(&self, bucket: &BucketState, object: &Name, group: &Group) -> bool {
        let mut versions = group.volumes.values().map(|record| record.last.map(|last| last.version));
        let Some(Some(version)) = versions.next() else { return false };
        versions.all(|other| other == Some(version))
            && self.versions.find(bucket.id, object, version).is_some_and(|record| record.scheduled == Some(true))
            && bucket.history().log.version(object, version).is_none_or(|found| !found.retired)
    }

    /// Withdraws the scheduled snapshots of an object that no rule keeps. One that is attached, that a peer reads, or that is not sealed
    /// yet, has time.
    async fn withdraw(self: &Arc<Self>, bucket: &Arc<BucketState>, object: &Name, keep: Keep) -> Result<(), ApiError> {
        let (node, withdrawing, object) = (Arc::clone(self), Arc::clone(bucket), object.clone());
        let withdrawn = blocking(move || {
            let outdated = node.outdated(&withdrawing, &object, keep);
            for version in &outdated {
                withdrawing.append(Action::Retire { object: object.clone(), version: *version })?;
            }
            Ok(outdated.len())
        })
        .await?;
        if withdrawn > 0 {
            self.index_bucket(bucket).await?;
        }
        Ok(())
    }

    /// The scheduled versions of an object that can be withdrawn, and that no rule keeps.
    fn outdated(&self, bucket: &BucketState, object: &Name, keep: Keep) -> Vec<u64> {
        let name = bucket.name();
        let mut scheduled = self.versions.scheduled(bucket.id, object);
        let history = bucket.history();
        scheduled.retain(|one| history.log.version(object, one.version).is_none_or(|found| !found.retired));
        scheduled.reverse();
        let taken_ms: Vec<u64> = scheduled.iter().map(|one| one.taken_ms).collect();
        let shared = history.log.readers().next().is_some() || bucket.published().is_some();
        let unkept = scheduled.into_iter().zip(retention::kept(keep, &taken_ms)).filter(|(_, kept)| !kept);
        let may_go = |version: &u64| {
            let Some(logged) = history.log.version(object, *version) else { return false };
            if shared && self.readers.may_be_reading(&logged.snapshot) {
                return false;
            }
            let names = [format!("{name}/{object}@{version}"), logged.snapshot.to_string()];
            names.iter().all(|target| self.attachments.find(target).is_none())
        };
        unkept.map(|(one, _)| one.version).filter(may_go).collect()
    }
}

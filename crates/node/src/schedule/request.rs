//! What the API asks of schedules: to put a volume on one, to take it off, and what there is.

use std::sync::Arc;

use types::{Name, VolumeId};

use super::plan::{Group, Target};
use crate::api::{self, ApiError, ErrorCode};
use crate::error::{blocking, not_found};
use crate::node::Node;
use crate::record::ScheduleRecord;
use crate::snapshots::parse_new_path;

/// How often snapshots may be taken at most, in milliseconds.
pub(crate) const EVERY_LEAST_MS: u64 = 1000;

/// How seldom, in milliseconds: ten years.
const EVERY_MOST_MS: u64 = 3653 * 24 * 3_600_000;

impl Node {
    /// Puts a volume on a schedule, or changes the one that it is on.
    pub(crate) async fn schedule_volume(
        self: &Arc<Self>,
        name: &Name,
        request: api::ScheduleRequest,
    ) -> Result<api::Schedule, ApiError> {
        let volume = self.find_volume(name)?;
        let path = parse_new_path(&request.into)?;
        if !(EVERY_LEAST_MS..=EVERY_MOST_MS).contains(&request.every_ms) {
            let message = format!("every {} ms is too often or too seldom", request.every_ms);
            return Err(ApiError::new(ErrorCode::Invalid, message).hint("from every second to every ten years"));
        }
        let bucket = self.buckets.find(&path.bucket)?;
        if !bucket.writable() {
            let error = ApiError::new(ErrorCode::Forbidden, format!("{} is somebody else's bucket", bucket.name()));
            return Err(error.hint("use a bucket of your own: brant bucket create NAME"));
        }
        let (node, id, now_ms) = (Arc::clone(self), volume.id(), self.options.clock.now_ms());
        let record = ScheduleRecord {
            bucket: path.bucket,
            object: path.object,
            disk: request.disk,
            every_ms: request.every_ms,
            keep: request.keep,
            since_ms: now_ms,
            last: None,
        };
        blocking(move || node.put_schedule(id, record)).await?;
        self.settings_changed(name).await?;
        self.schedule_of(id).ok_or_else(|| not_found("schedule of", name))
    }

    /// Records the schedule of a volume. Blocks.
    fn put_schedule(&self, id: VolumeId, mut record: ScheduleRecord) -> Result<(), ApiError> {
        let mut changing = self.schedules.change();
        let target = (record.bucket.clone(), record.object.clone());
        let others = self.schedules.groups(&self.volumes).remove(&target);
        let same_name = others
            .iter()
            .flat_map(|group| &group.volumes)
            .find(|(other, theirs)| **other != id && theirs.disk.is_some() && theirs.disk == record.disk);
        if let Some((other, _)) = same_name {
            let message = format!("the disk of another volume is called so in {}/{}", target.0, target.1);
            tracing::debug!(%other, %message, "a schedule was refused");
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .hint("choose another name or another object; see: brant volume schedule"));
        }
        if let Some(before) = changing.of(id).filter(|before| before.bucket == target.0 && before.object == target.1) {
            (record.since_ms, record.last) = (before.since_ms, before.last);
        }
        changing.put(id, record)?;
        // What has failed may have been mended by this, and is tried again at once.
        let mut runs = self.schedules.runs(&target);
        if let Some(failed) = &mut runs.failed {
            failed.again_ms = failed.at_ms;
            self.schedules.note_runs(target, runs);
        }
        Ok(())
    }

    /// Takes a volume off its schedule, which is returned as it was. The snapshots stay.
    pub(crate) async fn unschedule_volume(self: &Arc<Self>, name: &Name) -> Result<api::Schedule, ApiError> {
        let (id, shown) = (self.find_volume(name)?.id(), self.find_schedule(name)?);
        let node = Arc::clone(self);
        blocking(move || node.schedules.change().remove(id)).await?;
        self.settings_changed(name).await?;
        Ok(shown)
    }

    /// The schedule of a volume.
    pub(crate) fn find_schedule(&self, name: &Name) -> Result<api::Schedule, ApiError> {
        let volume = self.find_volume(name)?;
        self.schedule_of(volume.id()).ok_or_else(|| {
            let message = format!("no snapshots of {name} are taken by themselves");
            let hint = format!("begin with: brant volume schedule {name} --every 1h --into BUCKET/OBJECT");
            ApiError::new(ErrorCode::NotFound, message).hint(hint)
        })
    }

    /// The schedule of a volume, with the others of its group.
    pub(crate) fn schedule_of(&self, id: VolumeId) -> Option<api::Schedule> {
        let groups = self.schedules.groups(&self.volumes);
        groups.iter().find(|(_, group)| group.volumes.contains_key(&id)).map(|found| self.show_schedule(found))
    }

    /// All schedules, by where their snapshots go.
    pub(crate) fn list_schedules(&self) -> Vec<api::Schedule> {
        self.schedules.groups(&self.volumes).iter().map(|found| self.show_schedule(found)).collect()
    }

    fn show_schedule(&self, (target, group): (&Target, &Group)) -> api::Schedule {
        let runs = self.schedules.runs(target);
        let into = format!("{}/{}", target.0, target.1);
        let last = group.volumes.values().filter_map(|record| record.last).max_by_key(|last| last.version);
        let names = self.volumes.list().into_iter().filter(|volume| group.volumes.contains_key(&volume.id()));
        api::Schedule {
            volumes: names.map(|volume| volume.name().clone()).collect(),
            every_ms: group.every_ms,
            keep: group.keep,
            last: last.map(|last| api::LastScheduled {
                snapshot: format!("{into}@{}", last.version),
                taken_ms: last.taken_ms,
            }),
            next_ms: group.next_ms(&runs, self.options.clock.now_ms()),
            unchanged_ms: runs.unchanged_ms,
            failure: runs.failed.map(|failed| api::ScheduleFailure {
                at_ms: failed.at_ms,
                times: failed.times,
                error: failed.error,
            }),
            into,
        }
    }
}

//! What was set for a volume, wherever it goes: its labels, its schedule, and for how long its past is kept.
//!
//! Invariants: it goes with a volume that is given, and the replica of a volume has it, so that who takes over has the same volume. It
//! is told after it was recorded here; where the replica is waited for, who has set something hears when the replica does not
//! know it. The snapshots and the past themselves stay where they were made.

use std::sync::Arc;
use std::time::Duration;

use cluster::message::{Protection, Settings};
use types::{Name, VolumeId};
use volume::Volume;

use crate::api::{ApiError, ErrorCode};
use crate::error::blocking;
use crate::node::Node;
use crate::record::ScheduleRecord;
use crate::snapshots::volume_error;

/// How long a replica that is waited for may take to record it.
const HEARD: Duration = Duration::from_secs(8);

fn protection_of(volume: &Volume) -> Option<Protection> {
    let volume::Protection { for_ms, space_bytes } = volume.window()?.protection;
    Some(Protection { for_ms, space_bytes })
}

impl Node {
    /// What was set for a volume that is here.
    pub(super) fn settings_of(&self, volume: &Volume) -> Settings {
        Settings {
            labels: self.labels.of(volume.id()),
            schedule: self.schedules.of(volume.id()).as_ref().map(ScheduleRecord::to_message),
            protection: protection_of(volume),
        }
    }

    /// Sets for a volume that came here what was set for it where it was. Blocks.
    pub(super) fn settle_in(&self, volume: &Arc<Volume>, settings: Settings) -> Result<(), ApiError> {
        self.protect_as(volume, settings.protection)?;
        let labels = settings.labels.into_iter().map(|(key, value)| (key, Some(value))).collect();
        self.labels.change(volume.id(), &labels)?;
        match settings.schedule {
            Some(schedule) => self.schedules.change().put(volume.id(), ScheduleRecord::of_message(schedule)),
            None => Ok(()),
        }
    }

    /// Keeps the past of a volume as it was kept elsewhere, from now on. Blocks.
    pub(super) fn protect_as(&self, volume: &Arc<Volume>, protection: Option<Protection>) -> Result<(), ApiError> {
        let Some(Protection { for_ms, space_bytes }) = protection else { return Ok(()) };
        let protection = volume::Protection { for_ms, space_bytes };
        self.volumes.protect(volume, protection).map_err(volume_error)
    }

    /// Tells the replica of a volume, if it has one, what is set for the volume by now.
    ///
    /// # Errors
    /// A replica that is waited for and does not answer. What was set is set here all the same.
    pub(crate) async fn settings_changed(self: &Arc<Self>, name: &Name) -> Result<(), ApiError> {
        let Some(mirror) = self.cluster.mirrors.mirror(name) else { return Ok(()) };
        let (node, telling) = (Arc::clone(self), name.clone());
        let heard = blocking(move || {
            let number = mirror.tell_settings(|| node.settings_of_named(&telling))?;
            Ok(mirror.has_within(number, HEARD))
        });
        if heard.await? {
            return Ok(());
        }
        let member = self.cluster.mirrors.member(name).map(|member| self.cluster.moves.name_of(member));
        let message = format!(
            "it is set here; {}, which keeps the replica of {name}, does not answer",
            member.as_deref().unwrap_or("the member")
        );
        Err(ApiError::new(ErrorCode::Unreachable, message).hint(format!(
            "it hears of it when it answers again, but not if it takes over before; see: brant volume show {name}"
        )))
    }

    /// Tells the replicas of some volumes what is set for these by now, and waits for nobody. Blocks.
    pub(crate) fn settings_went_on(&self, ids: impl IntoIterator<Item = VolumeId>) {
        let ids: Vec<_> = ids.into_iter().collect();
        for volume in self.volumes.list().into_iter().filter(|volume| ids.contains(&volume.id())) {
            let Some(mirror) = self.cluster.mirrors.mirror(volume.name()) else { continue };
            let told = mirror.tell_settings(|| Ok::<_, std::convert::Infallible>(self.settings_of(&volume)));
            told.map(drop).unwrap_or_else(|never| match never {});
        }
    }

    pub(super) fn settings_of_named(&self, name: &Name) -> Result<Settings, ApiError> {
        self.find_volume(name).map(|volume| self.settings_of(&volume))
    }
}

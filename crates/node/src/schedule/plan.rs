//! When a schedule is due. Nothing here looks at a clock.
//!
//! A schedule has slots: every hour is one from each full hour to the next, in UTC. It is due once in each slot, so what was
//! missed while the node was down is made up for once. A clock that was put back by more than a slot does not silence it.

use std::collections::BTreeMap;

use types::{Keep, Name, VolumeId};

use crate::api::ApiError;
use crate::record::ScheduleRecord;

/// How soon a run that failed is tried again for the first time; then after twice as long, and so on.
const AGAIN_FIRST_MS: u64 = 10_000;

/// How long that is at most.
const AGAIN_MOST_MS: u64 = 3_600_000;

/// Where a schedule's snapshots go: volumes that have it in common are one group.
pub(super) type Target = (Name, Name);

/// The volumes whose snapshots are taken together, and when, and what is kept of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// The volumes, with their records.
    pub(super) volumes: BTreeMap<VolumeId, ScheduleRecord>,
    /// The shortest time of all volumes.
    pub(super) every_ms: u64,
    /// What keeps everything that one of the volumes asks to keep; everything where one does not say.
    pub(super) keep: Option<Keep>,
    /// When the volume that has waited longest had its last snapshot, or was put on the schedule.
    pub(super) latest_ms: u64,
}

/// Puts volumes together whose snapshots have the same target.
pub(super) fn groups(records: impl IntoIterator<Item = (VolumeId, ScheduleRecord)>) -> BTreeMap<Target, Group> {
    let mut groups: BTreeMap<Target, Group> = BTreeMap::new();
    for (id, record) in records {
        let target = (record.bucket.clone(), record.object.clone());
        let (every_ms, keep, latest_ms) = (record.every_ms, record.keep, record.latest_ms());
        match groups.get_mut(&target) {
            None => drop(groups.insert(target, Group { volumes: [(id, record)].into(), every_ms, keep, latest_ms })),
            Some(group) => {
                group.every_ms = group.every_ms.min(every_ms);
                group.keep = group.keep.zip(keep).map(|(one, other)| one.most(other));
                group.latest_ms = group.latest_ms.min(latest_ms);
                group.volumes.insert(id, record);
            }
        }
    }
    groups
}

/// What became of a group's runs since the node started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// When nothing was found to have been written since the last snapshot.
    pub(super) unchanged_ms: Option<u64>,
    /// How the last run failed, and the runs before it.
    pub(super) failed: Option<Failed>,
}

/// A run that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// When.
    pub(super) at_ms: u64,
    /// When it is tried again.
    pub(super) again_ms: u64,
    /// How many runs have failed one after another.
    pub(super) times: u32,
    /// Why.
    pub(super) error: ApiError,
}

impl Failed {
    /// The failure after those that there were.
    pub(super) fn after(before: Option<&Self>, at_ms: u64, error: ApiError) -> Self {
        let times = before.map_or(0, |before| before.times);
        let wait_ms = (AGAIN_FIRST_MS << times.min(16)).min(AGAIN_MOST_MS);
        Self { at_ms, again_ms: at_ms.saturating_add(wait_ms), times: times.saturating_add(1), error }
    }

    fn may_try(&self, now_ms: u64) -> bool {
        // Also where the clock was put back.
        now_ms >= self.again_ms || now_ms < self.at_ms
    }
}

impl Group {
    /// When something was last found out about it.
    fn looked_ms(&self, runs: &Runs) -> u64 {
        self.latest_ms.max(runs.unchanged_ms.unwrap_or(0))
    }

    /// Whether a snapshot is due.
    pub(super) fn is_due(&self, runs: &Runs, now_ms: u64) -> bool {
        let looked_ms = self.looked_ms(runs);
        now_ms / self.every_ms > looked_ms / self.every_ms || now_ms.saturating_add(self.every_ms) < looked_ms
    }

    /// Whether there is something to do: a snapshot is due, or something failed, and it is time to try.
    pub(super) fn is_ready(&self, runs: &Runs, now_ms: u64) -> bool {
        match &runs.failed {
            Some(failed) => failed.may_try(now_ms),
            None => self.is_due(runs, now_ms),
        }
    }

    /// When there will be something to do.
    pub(super) fn next_ms(&self, runs: &Runs, now_ms: u64) -> u64 {
        if self.is_ready(runs, now_ms) {
            return now_ms;
        }
        match &runs.failed {
            Some(failed) => failed.again_ms,
            None => (self.looked_ms(runs) / self.every_ms).saturating_add(1).saturating_mul(self.every_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ErrorCode;
    use crate::record::ScheduledRecord;

    const HOUR: u64 = 3_600_000;

    fn record(object: &str, every_ms: u64, keep: &str, last_ms: Option<u64>) -> ScheduleRecord {
        let position = volume::Position { journal: types::JournalId([1; 16]), sequence: 1 };
        ScheduleRecord {
            bucket: "vms".parse().unwrap(),
            object: object.parse().unwrap(),
            disk: None,
            every_ms,
            keep: keep.parse().ok(),
            since_ms: 10 * HOUR + 5,
            last: last_ms.map(|taken_ms| ScheduledRecord::new(taken_ms, 1, position, 512)),
        }
    }

    fn group(every_ms: u64, last_ms: Option<u64>) -> Group {
        groups([(VolumeId([1; 16]), record("web", every_ms, "", last_ms))]).into_values().next().unwrap()
    }

    #[test]
    fn it_is_due_once_in_each_slot() {
        let runs = Runs::default();
        let new = group(HOUR, None);
        assert!(!new.is_ready(&runs, 10 * HOUR + 6) && !new.is_ready(&runs, 11 * HOUR - 1));
        assert!(new.is_ready(&runs, 11 * HOUR));
        assert_eq!((new.next_ms(&runs, 10 * HOUR + 6), new.next_ms(&runs, 11 * HOUR + 7)), (11 * HOUR, 11 * HOUR + 7));
        let late = group(HOUR, Some(11 * HOUR + 1234));
        assert!(!late.is_ready(&runs, 12 * HOUR - 1) && late.is_ready(&runs, 12 * HOUR), "delays do not add up");
        // Ten were missed: one is made up for, and it is the next slot's turn.
        assert!(late.is_ready(&runs, 21 * HOUR + 5));
        assert_eq!(group(HOUR, Some(21 * HOUR + 5)).next_ms(&runs, 21 * HOUR + 6), 22 * HOUR);
        let looked = Runs { unchanged_ms: Some(21 * HOUR + 5), failed: None };
        assert!(!late.is_ready(&looked, 21 * HOUR + 6), "nor is one looked at again that was not written to");
    }

    #[test]
    fn a_clock_that_jumps_neither_silences_nor_multiplies() {
        let runs = Runs::default();
        let ahead = group(HOUR, Some(100_000 * HOUR));
        assert!(ahead.is_ready(&runs, 20 * HOUR), "it had been years ahead");
        let corrected = group(HOUR, Some(20 * HOUR));
        assert!(!corrected.is_ready(&runs, 20 * HOUR - 1) && !corrected.is_ready(&runs, 19 * HOUR + 1));
        assert_eq!(corrected.next_ms(&runs, 19 * HOUR + 1), 21 * HOUR);
        let failed = Failed::after(None, 100_000 * HOUR, ApiError::new(ErrorCode::Full, "full"));
        assert!(ahead.is_ready(&Runs { unchanged_ms: None, failed: Some(failed) }, 20 * HOUR));
        assert!(group(u64::MAX, Some(u64::MAX)).next_ms(&runs, 0) > 0, "no number is too large");
    }

    #[test]
    fn what_failed_is_tried_again_less_and_less_often() {
        let group = group(HOUR, None);
        let mut failed: Option<Failed> = None;
        let mut now_ms = 11 * HOUR;
        let mut waits = Vec::new();
        for _ in 0..40 {
            let error = ApiError::new(ErrorCode::Full, "full");
            failed = Some(Failed::after(failed.as_ref(), now_ms, error));
            let runs = Runs { unchanged_ms: None, failed: failed.clone() };
            let next_ms = group.next_ms(&runs, now_ms);
            assert!(!group.is_ready(&runs, next_ms - 1) && group.is_ready(&runs, next_ms));
            waits.push(next_ms - now_ms);
            now_ms = next_ms;
        }
        assert_eq!(waits[..4], [10_000, 20_000, 40_000, 80_000]);
        assert!(waits.is_sorted() && waits.last() == Some(&AGAIN_MOST_MS));
    }

    #[test]
    fn volumes_with_one_target_are_one_group() {
        let records = [
            (VolumeId([1; 16]), record("web", 2 * HOUR, "24h", Some(12 * HOUR))),
            (VolumeId([2; 16]), record("web", HOUR, "7d,2h", None)),
            (VolumeId([3; 16]), record("db", HOUR, "1", None)),
        ];
        let together = groups(records);
        assert_eq!(together.len(), 2);
        let web = &together[&("vms".parse().unwrap(), "web".parse().unwrap())];
        assert_eq!((web.volumes.len(), web.every_ms, web.latest_ms), (2, HOUR, 10 * HOUR + 5));
        assert_eq!(web.keep, Some("24h,7d".parse().unwrap()), "what one of them wants kept is kept");
        let all =
            [(VolumeId([1; 16]), record("web", HOUR, "", None)), (VolumeId([2; 16]), record("web", HOUR, "7d", None))];
        assert_eq!(groups(all).into_values().next().unwrap().keep, None, "and everything where one does not say");
    }
}

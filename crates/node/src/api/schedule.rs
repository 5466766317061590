//! Schedules: snapshots that are taken by themselves.

use serde::{Deserialize, Serialize};
use types::{Keep, Name};
use utoipa::ToSchema;

use super::ApiError;

/// Asks for snapshots of a volume that are taken by themselves.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ScheduleRequest {
    /// Where they go: `BUCKET/OBJECT`. Volumes with the same one are snapshotted together, at one moment.
    pub into: String,
    /// How often, in milliseconds: at the beginning of each such span of time, counted from 1970 in UTC.
    pub every_ms: u64,
    /// Which are kept, such as `3,24h,7d,4w,12m,1y`: the last three (`keep-last`), and the latest one of each of 24 hours
    /// (`keep-hourly`), 7 days, 4 weeks, 12 months, 1 year in which there are some. All of them where it is left out.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub keep: Option<Keep>,
    /// What the disk is called in them; where it is left out, the disk of one volume has the object's name, and those of several have
    /// the volumes' names.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub disk: Option<Name>,
}

/// A schedule, with all volumes that have it in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// Where the snapshots go: `BUCKET/OBJECT`.
    pub into: String,
    /// The volumes.
    #[schema(value_type = Vec<String>)]
    pub volumes: Vec<Name>,
    /// How often, in milliseconds: the shortest that one of the volumes asks for.
    pub every_ms: u64,
    /// Which are kept: what any of the volumes asks to keep; all of them where nothing is said.
    #[schema(value_type = Option<String>)]
    pub keep: Option<Keep>,
    /// The last one that was taken.
    pub last: Option<LastScheduled>,
    /// When it was last found that nothing was written since, so that none was taken; nothing where the node has not found that since
    /// it started.
    pub unchanged_ms: Option<u64>,
    /// When the next one is due, or what failed is tried again.
    pub next_ms: u64,
    /// Why the last run failed, if it did.
    pub failure: Option<ScheduleFailure>,
}

/// The last snapshot that a schedule took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastScheduled {
    /// Its path, with its version.
    pub snapshot: String,
    /// When it was taken.
    pub taken_ms: u64,
}

/// How a schedule's run failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleFailure {
    /// When.
    pub at_ms: u64,
    /// How many have failed one after another.
    pub times: u32,
    /// Why.
    pub error: ApiError,
}

//! The node's HTTP API as values: what requests and answers consist of.
//!
//! JSON over a unix socket, described by OpenAPI at `/v1/openapi.json`. Names and units are those of the command line's
//! `--json`, which prints these values: fields are added, never renamed or removed within `v1`. Sizes are in bytes,
//! times in milliseconds since 1970 (UTC).
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`NodeStatus`] |
//! | `GET /v1/buckets`, `POST`, `GET …/{bucket}`, `DELETE …/{bucket}` | [`CreateBucketRequest`] | [`Bucket`], [`BucketDetail`] |
//! | `GET /v1/buckets/{bucket}/log` | | `[LogEntry]` |
//! | `POST /v1/buckets/{bucket}/grant`, `…/revoke` | [`GrantRequest`] | [`BucketDetail`] |
//! | `POST /v1/buckets/{bucket}/publish`, `…/unpublish` | [`PublishRequest`] | [`Publication`] |
//! | `GET /v1/subscriptions`, `POST`, `DELETE …/{bucket}` | [`SubscribeRequest`] | [`Subscription`] |
//! | `POST /v1/imports`, `/v1/materializations` | [`ImportRequest`], [`MaterializeRequest`] | [`Task`] |
//! | `POST /v1/hydrations/{target}` | | [`Task`] |
//! | `GET /v1/volumes`, `POST`, `GET …/{volume}`, `DELETE …/{volume}` | [`CreateVolumeRequest`] | [`Volume`], [`VolumeDetail`] |
//! | `POST /v1/volumes/{volume}/resize`, `…/revert` | [`ResizeRequest`], [`RevertRequest`] | [`Volume`], [`Reverted`] |
//! | `POST /v1/volumes/{volume}/labels` | [`LabelRequest`] | [`Volume`] |
//! | `POST /v1/volumes/{volume}/protect`, `DELETE` | [`ProtectRequest`] | [`VolumeDetail`] |
//! | `GET /v1/volumes/{volume}/schedule`, `POST`, `DELETE` | [`ScheduleRequest`] | [`Schedule`] |
//! | `GET /v1/schedules` | | `[Schedule]` |
//! | `GET /v1/deleted-volumes`, `DELETE …/{deleted}` | | [`DeletedVolume`] |
//! | `POST /v1/deleted-volumes/{deleted}/restore` | [`RestoreRequest`] | [`Volume`] |
//! | `POST /v1/clones` | [`CloneRequest`] | [`Volume`] |
//! | `GET /v1/snapshots[?bucket=B]`, `POST` | [`TakeSnapshotRequest`] | [`Snapshot`] |
//! | `GET /v1/snapshots/{snapshot}`, `DELETE` (retires) | | [`SnapshotDetail`] |
//! | `GET /v1/differences?from=A&to=B[&disk=D][&offset=N][&limit=N]` | | [`Differences`] |
//! | `GET /v1/attachments`, `POST`, `DELETE …/{target}` | [`AttachRequest`] | [`Attachment`] |
//! | `GET /v1/tasks`, `GET …/{id}[?wait_ms=N]`, `POST …/{id}/cancel` | | [`Task`] |
//! | `GET /v1/logins`, `POST` | [`LoginRequest`] | [`Login`] |
//! | `POST /v1/restart` | | [`Restart`] |
//! | `POST /v1/store/collections`, `/v1/store/scrubs` | [`CollectRequest`], [`ScrubRequest`] | [`Task`] |
//! | `GET /v1/openapi.json`, `GET /v1/health`, `GET /metrics` | | |
//!
//! `DELETE /v1/volumes/{volume}` keeps the volume for a while, unless `?now=true`; a `{deleted}` one is named by its id,
//! the first digits of it, or the name that it had: the latest of that name is meant.
//!
//! A `{target}` or `{snapshot}` that contains a slash is percent-encoded. `wait_ms` answers early when the task ends.
//! Errors are [`ApiError`] with a fitting HTTP status.
//!
//! **Descriptors.** A local file is opened by whoever asks, not by the node: the caller connects to `descriptors.sock`
//! beside `node.sock`, sends one byte with one descriptor (`SCM_RIGHTS`), and reads a ticket of 32 hexadecimal digits,
//! good for one request within a minute.

mod attachment;
mod bucket;
mod cluster;
mod difference;
mod error;
mod replication;
mod schedule;
mod snapshot;
mod status;
mod store;
mod task;
mod volume;

pub use attachment::{AttachRequest, Attachment, TlsPolicy, Transport, Via};
pub use bucket::{
    Bucket, BucketDetail, BucketObject, CreateBucketRequest, GrantRequest, LogEntry, Login, LoginRequest, Policy,
    Publication, PublishRequest, SubscribeRequest, Subscription,
};
pub use cluster::{AddMemberRequest, Cluster, Member};
pub use difference::{DifferenceExtent, DifferenceKind, Differences};
pub use error::{ApiError, ErrorCode};
pub use replication::{
    PromoteRequest, Promoted, Replica, ReplicateRequest, Replication, ReplicationMode, ReplicationState,
};
pub use schedule::{LastScheduled, Schedule, ScheduleFailure, ScheduleRequest};
pub use snapshot::{
    CloneRequest, DiskDetail, ImageFormat, ImportRequest, Machine, MaterializeRequest, Reflink, Snapshot,
    SnapshotDetail, SnapshotState, SourceSpec, TakeSnapshotRequest, TargetSpec,
};
pub use status::{NodeStatus, Restart, StoreStatus, SwarmStatus};
pub use store::{CollectRequest, CollectionStatus, ScrubRequest, ScrubStatus};
pub use task::{Task, TaskKind, TaskState};
pub use volume::{
    CreateVolumeRequest, DeletedVolume, LabelRequest, Missing, ProtectRequest, ResizeRequest, RestoreRequest,
    RevertRequest, Reverted, Rewind, Volume, VolumeDetail,
};

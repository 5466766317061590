//! `/v1/snapshots`, and what makes and uses them: imports, clones, materializations, hydrations.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use format::entry::Action;
use serde::Deserialize;
use types::ObjectPath;
use utoipa::IntoParams;

use super::reply::{Body, Reply, name};
use crate::api::{
    ApiError, CloneRequest, ErrorCode, ImportRequest, MaterializeRequest, Snapshot, SnapshotDetail,
    TakeSnapshotRequest, Task, Volume,
};
use crate::error::catalog_error;
use crate::node::Node;

/// Which versions to list.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct ListQuery {
    /// Only those of this bucket.
    #[serde(default)]
    bucket: Option<String>,
}

/// Lists the versions of a bucket, or of all.
#[utoipa::path(get, path = "/v1/snapshots", params(ListQuery),
    responses((status = 200, body = [Snapshot]), (status = 404, body = ApiError)))]
pub(super) async fn list(State(node): State<Arc<Node>>, Query(query): Query<ListQuery>) -> Reply<Vec<Snapshot>> {
    if let Some(bucket) = &query.bucket {
        node.buckets.find(&name(bucket)?)?;
    }
    node.catalog.versions(query.bucket.as_deref()).await.map(Json).map_err(catalog_error)
}

/// Takes a snapshot of volumes at one moment.
#[utoipa::path(post, path = "/v1/snapshots", request_body = TakeSnapshotRequest,
    responses((status = 200, body = Snapshot), (status = "4XX", body = ApiError)))]
pub(super) async fn take(State(node): State<Arc<Node>>, Body(request): Body<TakeSnapshotRequest>) -> Reply<Snapshot> {
    node.take_snapshot(request).await.map(Json)
}

/// Shows a version, by path or id.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}", params(("snapshot" = String, Path)),
    responses((status = 200, body = SnapshotDetail), (status = 404, body = ApiError)))]
pub(super) async fn show(State(node): State<Arc<Node>>, Path(snapshot): Path<String>) -> Reply<SnapshotDetail> {
    let resolved = node.resolve(&snapshot)?;
    node.show_snapshot(&resolved).await.map(Json)
}

/// Withdraws a version: it stays in the bucket's history, but is no longer offered.
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot}", params(("snapshot" = String, Path)),
    responses((status = 200, body = SnapshotDetail), (status = "4XX", body = ApiError)))]
pub(super) async fn retire(State(node): State<Arc<Node>>, Path(snapshot): Path<String>) -> Reply<SnapshotDetail> {
    let resolved = node.resolve(&snapshot)?;
    // What cannot be taken back is not done to whichever version happens to be the latest.
    if snapshot.parse::<ObjectPath>().is_ok_and(|path| path.version.is_none()) {
        let error = ApiError::new(ErrorCode::Invalid, format!("{snapshot} does not say which version"));
        return Err(error.hint(format!("the latest is {}; see: brant snapshot list", resolved.path())));
    }
    node.check_detached(&resolved.path())?;
    if resolved.snapshot.is_none() {
        return Err(ApiError::new(ErrorCode::Conflict, format!("{} is still being sealed", resolved.path()))
            .hint("wait until brant snapshot list shows it as sealed"));
    }
    let mut shown = node.show_snapshot(&resolved).await?;
    let action = Action::Retire { object: resolved.object.clone(), version: resolved.version };
    node.append(&resolved.bucket, action).await?;
    shown.snapshot.state = crate::api::SnapshotState::Retired;
    Ok(Json(shown))
}

/// Reads a foreign disk into a bucket.
#[utoipa::path(post, path = "/v1/imports", request_body = ImportRequest,
    responses((status = 200, body = Task), (status = "4XX", body = ApiError)))]
pub(super) async fn import(State(node): State<Arc<Node>>, Body(request): Body<ImportRequest>) -> Reply<Task> {
    node.start_import(request).await.map(Json)
}

/// Writes a snapshot or volume out to foreign storage.
#[utoipa::path(post, path = "/v1/materializations", request_body = MaterializeRequest,
    responses((status = 200, body = Task), (status = "4XX", body = ApiError)))]
pub(super) async fn materialize(State(node): State<Arc<Node>>, Body(request): Body<MaterializeRequest>) -> Reply<Task> {
    node.start_materialization(request).await.map(Json)
}

/// Brings what is not here of a volume or snapshot.
#[utoipa::path(post, path = "/v1/hydrations/{target}", params(("target" = String, Path)),
    responses((status = 200, body = Task), (status = "4XX", body = ApiError)))]
pub(super) async fn hydrate(State(node): State<Arc<Node>>, Path(target): Path<String>) -> Reply<Task> {
    node.start_hydration(target).await.map(Json)
}

/// Makes a volume that begins as a snapshot.
#[utoipa::path(post, path = "/v1/clones", request_body = CloneRequest,
    responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn clone(State(node): State<Arc<Node>>, Body(request): Body<CloneRequest>) -> Reply<Volume> {
    let volume = node.clone_snapshot(request).await?;
    Ok(Json(node.show_volume(&volume)))
}

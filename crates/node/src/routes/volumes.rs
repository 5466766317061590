//! `/v1/volumes`, `/v1/deleted-volumes` and `/v1/differences`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::reply::{Body, Reply, name};
use crate::api::{
    ApiError, CreateVolumeRequest, DeletedVolume, Differences, LabelRequest, PromoteRequest, Promoted, ProtectRequest,
    Replica, ReplicateRequest, Replication, ResizeRequest, RestoreRequest, RevertRequest, Reverted, Task, Volume,
    VolumeDetail,
};
use crate::error::blocking;
use crate::node::Node;
use crate::snapshots::volume_error;
use crate::volumes::DifferencesQuery;

/// How a volume is deleted.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct RemoveQuery {
    /// Whether it is gone for good at once.
    #[serde(default)]
    now: bool,
}

/// Lists the volumes.
#[utoipa::path(get, path = "/v1/volumes", responses((status = 200, body = [Volume])))]
pub(super) async fn list(State(node): State<Arc<Node>>) -> Json<Vec<Volume>> {
    let mut volumes = node.volumes.list();
    volumes.retain(|volume| !node.cluster.replicas.holds(volume.name()));
    Json(volumes.iter().map(|volume| node.show_volume(volume)).collect())
}

/// Makes an empty volume.
#[utoipa::path(post, path = "/v1/volumes", request_body = CreateVolumeRequest,
    responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn create(State(node): State<Arc<Node>>, Body(request): Body<CreateVolumeRequest>) -> Reply<Volume> {
    node.check_not_given(&request.name).await?;
    let making = Arc::clone(&node);
    let create = move || {
        let volume = making.volumes.create(&request.name, request.size_bytes.0).map_err(volume_error)?;
        making.label_new(&volume, request.labels).map(|()| volume)
    };
    let volume = blocking(create).await?;
    Ok(Json(node.show_volume(&volume)))
}

/// Shows a volume.
#[utoipa::path(get, path = "/v1/volumes/{volume}", params(("volume" = String, Path)),
    responses((status = 200, body = VolumeDetail), (status = 404, body = ApiError)))]
pub(super) async fn show(State(node): State<Arc<Node>>, Path(volume): Path<String>) -> Reply<VolumeDetail> {
    let volume = node.find_volume(&name(&volume)?)?;
    node.show_volume_detail(&volume).await.map(Json)
}

/// Deletes a volume that is not attached. It is kept for a while, so that it can be taken back.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", params(("volume" = String, Path), RemoveQuery),
    responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn remove(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Query(query): Query<RemoveQuery>,
) -> Reply<Volume> {
    node.remove_volume(&name(&volume)?, query.now).await.map(Json)
}

/// Makes a volume larger, also while it is in use.
#[utoipa::path(post, path = "/v1/volumes/{volume}/resize", params(("volume" = String, Path)),
    request_body = ResizeRequest, responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn resize(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Body(request): Body<ResizeRequest>,
) -> Reply<Volume> {
    node.resize_volume(&name(&volume)?, request.size_bytes.0).await.map(Json)
}

/// Puts a volume back to a snapshot, or to what it was before that. Refused while a client is connected.
#[utoipa::path(post, path = "/v1/volumes/{volume}/revert", params(("volume" = String, Path)),
    request_body = RevertRequest, responses((status = 200, body = Reverted), (status = "4XX", body = ApiError)))]
pub(super) async fn revert(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Body(request): Body<RevertRequest>,
) -> Reply<Reverted> {
    node.revert_volume(&name(&volume)?, request).await.map(Json)
}

/// Changes the labels of a volume.
#[utoipa::path(post, path = "/v1/volumes/{volume}/labels", params(("volume" = String, Path)),
    request_body = LabelRequest, responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn label(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Body(request): Body<LabelRequest>,
) -> Reply<Volume> {
    node.label_volume(&name(&volume)?, request).await.map(Json)
}

/// Has a member of the cluster keep a replica of a volume.
#[utoipa::path(post, path = "/v1/volumes/{volume}/replicate", params(("volume" = String, Path)),
    request_body = ReplicateRequest, responses((status = 200, body = Replication), (status = "4XX", body = ApiError)))]
pub(super) async fn replicate(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Body(request): Body<ReplicateRequest>,
) -> Reply<Replication> {
    node.replicate(&name(&volume)?, request).await.map(Json)
}

/// How the replica of a volume is ended.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct StopReplicatingQuery {
    /// Whether it is ended although its member cannot be told.
    #[serde(default)]
    force: bool,
}

/// Ends the replica of a volume, and removes it.
#[utoipa::path(delete, path = "/v1/volumes/{volume}/replicate", params(("volume" = String, Path), StopReplicatingQuery),
    responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn stop_replicating(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Query(query): Query<StopReplicatingQuery>,
) -> Reply<Volume> {
    let name = name(&volume)?;
    node.stop_replicating(&name, query.force).await?;
    let volume = node.find_volume(&name)?;
    Ok(Json(node.show_volume(&volume)))
}

/// Makes this node the home of a volume of which it keeps a replica, as the home is gone.
#[utoipa::path(post, path = "/v1/volumes/{volume}/promote", params(("volume" = String, Path)),
    request_body = PromoteRequest, responses((status = 200, body = Promoted), (status = "4XX", body = ApiError)))]
pub(super) async fn promote(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Body(request): Body<PromoteRequest>,
) -> Reply<Promoted> {
    node.promote(&name(&volume)?, request).await.map(Json)
}

/// Lists the replicas of other members' volumes that are kept here.
#[utoipa::path(get, path = "/v1/replicas", responses((status = 200, body = [Replica])))]
pub(super) async fn list_replicas(State(node): State<Arc<Node>>) -> Json<Vec<Replica>> {
    Json(node.list_replicas())
}

/// Removes a replica that is kept here.
#[utoipa::path(delete, path = "/v1/replicas/{volume}", params(("volume" = String, Path)),
    responses((status = 200, body = Replica), (status = "4XX", body = ApiError)))]
pub(super) async fn remove_replica(State(node): State<Arc<Node>>, Path(volume): Path<String>) -> Reply<Replica> {
    node.remove_replica(&name(&volume)?).await.map(Json)
}

/// Starts to take a volume from the member of the cluster that has it. One that is here already is a task that ends at once.
#[utoipa::path(post, path = "/v1/volumes/{volume}/take", params(("volume" = String, Path)),
    responses((status = 200, body = Task), (status = "4XX", body = ApiError)))]
pub(super) async fn take(State(node): State<Arc<Node>>, Path(volume): Path<String>) -> Reply<Task> {
    node.start_take(&name(&volume)?).await.map(Json)
}

/// Keeps what is written to a volume from now on, so that any moment of it can be cloned.
#[utoipa::path(post, path = "/v1/volumes/{volume}/protect", params(("volume" = String, Path)),
    request_body = ProtectRequest, responses((status = 200, body = VolumeDetail), (status = "4XX", body = ApiError)))]
pub(super) async fn protect(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Body(request): Body<ProtectRequest>,
) -> Reply<VolumeDetail> {
    node.protect_volume(&name(&volume)?, request).await.map(Json)
}

/// Keeps nothing of a volume's past any more.
#[utoipa::path(delete, path = "/v1/volumes/{volume}/protect", params(("volume" = String, Path)),
    responses((status = 200, body = VolumeDetail), (status = "4XX", body = ApiError)))]
pub(super) async fn unprotect(State(node): State<Arc<Node>>, Path(volume): Path<String>) -> Reply<VolumeDetail> {
    node.unprotect_volume(&name(&volume)?).await.map(Json)
}

/// Lists the deleted volumes that are kept, the oldest deletion first.
#[utoipa::path(get, path = "/v1/deleted-volumes", responses((status = 200, body = [DeletedVolume])))]
pub(super) async fn list_deleted(State(node): State<Arc<Node>>) -> Json<Vec<DeletedVolume>> {
    Json(node.list_deleted())
}

/// Deletes a deleted volume for good.
#[utoipa::path(delete, path = "/v1/deleted-volumes/{deleted}", params(("deleted" = String, Path)),
    responses((status = 200, body = DeletedVolume), (status = "4XX", body = ApiError)))]
pub(super) async fn purge(State(node): State<Arc<Node>>, Path(deleted): Path<String>) -> Reply<DeletedVolume> {
    node.purge_volume(&deleted).await.map(Json)
}

/// Takes a deleted volume back.
#[utoipa::path(post, path = "/v1/deleted-volumes/{deleted}/restore", params(("deleted" = String, Path)),
    request_body = RestoreRequest, responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn restore(
    State(node): State<Arc<Node>>,
    Path(deleted): Path<String>,
    Body(request): Body<RestoreRequest>,
) -> Reply<Volume> {
    node.restore_volume(&deleted, request.name).await.map(Json)
}

/// Tells where two disks differ.
#[utoipa::path(get, path = "/v1/differences", params(DifferencesQuery),
    responses((status = 200, body = Differences), (status = "4XX", body = ApiError)))]
pub(super) async fn differences(
    State(node): State<Arc<Node>>,
    Query(query): Query<DifferencesQuery>,
) -> Reply<Differences> {
    node.differences(query).await.map(Json)
}

//! `/v1/volumes`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::reply::{Body, Reply, name};
use crate::api::{ApiError, CreateVolumeRequest, Volume, VolumeDetail};
use crate::error::{blocking, not_found};
use crate::node::Node;
use crate::snapshots::volume_error;

fn find(node: &Node, text: &str) -> Result<Arc<volume::Volume>, ApiError> {
    let name = name(text)?;
    node.volumes.get(&name).ok_or_else(|| not_found("volume", name).hint("see: brant volume list"))
}

/// Lists the volumes.
#[utoipa::path(get, path = "/v1/volumes", responses((status = 200, body = [Volume])))]
pub(super) async fn list(State(node): State<Arc<Node>>) -> Json<Vec<Volume>> {
    Json(node.volumes.list().iter().map(|volume| node.show_volume(volume)).collect())
}

/// Makes an empty volume.
#[utoipa::path(post, path = "/v1/volumes", request_body = CreateVolumeRequest,
    responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn create(State(node): State<Arc<Node>>, Body(request): Body<CreateVolumeRequest>) -> Reply<Volume> {
    let making = Arc::clone(&node);
    let create = move || making.volumes.create(&request.name, request.size_bytes.0).map_err(volume_error);
    let volume = blocking(create).await?;
    Ok(Json(node.show_volume(&volume)))
}

/// Shows a volume.
#[utoipa::path(get, path = "/v1/volumes/{volume}", params(("volume" = String, Path)),
    responses((status = 200, body = VolumeDetail), (status = 404, body = ApiError)))]
pub(super) async fn show(State(node): State<Arc<Node>>, Path(volume): Path<String>) -> Reply<VolumeDetail> {
    let volume = find(&node, &volume)?;
    node.show_volume_detail(&volume).await.map(Json)
}

/// Removes a volume that is not attached.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", params(("volume" = String, Path)),
    responses((status = 200, body = Volume), (status = "4XX", body = ApiError)))]
pub(super) async fn remove(State(node): State<Arc<Node>>, Path(volume): Path<String>) -> Reply<Volume> {
    let volume = find(&node, &volume)?;
    let name = volume.name().clone();
    node.check_detached(name.as_str())?;
    let shown = node.show_volume(&volume);
    blocking(move || node.volumes.remove(&name).map_err(volume_error)).await?;
    Ok(Json(shown))
}

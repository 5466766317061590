//! `/v1/schedules` and `/v1/volumes/{volume}/schedule`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::reply::{Body, Reply, name};
use crate::api::{ApiError, Schedule, ScheduleRequest};
use crate::node::Node;

/// Lists the schedules of this node's volumes, by where their snapshots go.
#[utoipa::path(get, path = "/v1/schedules", responses((status = 200, body = [Schedule])))]
pub(super) async fn list(State(node): State<Arc<Node>>) -> Json<Vec<Schedule>> {
    Json(node.list_schedules())
}

/// Shows the schedule of a volume.
#[utoipa::path(get, path = "/v1/volumes/{volume}/schedule", params(("volume" = String, Path)),
    responses((status = 200, body = Schedule), (status = 404, body = ApiError)))]
pub(super) async fn show(State(node): State<Arc<Node>>, Path(volume): Path<String>) -> Reply<Schedule> {
    node.find_schedule(&name(&volume)?).map(Json)
}

/// Takes snapshots of a volume by itself, or changes how. Those of volumes with the same target are taken together.
#[utoipa::path(post, path = "/v1/volumes/{volume}/schedule", params(("volume" = String, Path)),
    request_body = ScheduleRequest, responses((status = 200, body = Schedule), (status = "4XX", body = ApiError)))]
pub(super) async fn put(
    State(node): State<Arc<Node>>,
    Path(volume): Path<String>,
    Body(request): Body<ScheduleRequest>,
) -> Reply<Schedule> {
    node.schedule_volume(&name(&volume)?, request).await.map(Json)
}

/// Takes no more snapshots of a volume by itself. Those that there are stay.
#[utoipa::path(delete, path = "/v1/volumes/{volume}/schedule", params(("volume" = String, Path)),
    responses((status = 200, body = Schedule), (status = "4XX", body = ApiError)))]
pub(super) async fn remove(State(node): State<Arc<Node>>, Path(volume): Path<String>) -> Reply<Schedule> {
    node.unschedule_volume(&name(&volume)?).await.map(Json)
}

//! `/v1/attachments`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::reply::{Body, Reply};
use crate::api::{ApiError, AttachRequest, Attachment};
use crate::node::Node;

/// How an attachment is ended.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct DetachQuery {
    /// Whether connections are closed that are in use.
    #[serde(default)]
    force: bool,
}

/// Lists the attachments.
#[utoipa::path(get, path = "/v1/attachments", responses((status = 200, body = [Attachment])))]
pub(super) async fn list(State(node): State<Arc<Node>>) -> Json<Vec<Attachment>> {
    Json(node.list_attachments())
}

/// Makes a volume or snapshot visible as a block device.
#[utoipa::path(post, path = "/v1/attachments", request_body = AttachRequest,
    responses((status = 200, body = Attachment), (status = "4XX", body = ApiError)))]
pub(super) async fn create(State(node): State<Arc<Node>>, Body(request): Body<AttachRequest>) -> Reply<Attachment> {
    node.attach(request).await.map(Json)
}

/// Ends an attachment.
#[utoipa::path(delete, path = "/v1/attachments/{target}", params(("target" = String, Path), DetachQuery),
    responses((status = 200, body = Attachment), (status = "4XX", body = ApiError)))]
pub(super) async fn remove(
    State(node): State<Arc<Node>>,
    Path(target): Path<String>,
    Query(query): Query<DetachQuery>,
) -> Reply<Attachment> {
    node.detach(&target, query.force).await.map(Json)
}

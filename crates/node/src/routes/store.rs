//! `/v1/store`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::reply::{Body, Reply};
use crate::api::{ApiError, CollectRequest, ScrubRequest, Task};
use crate::node::Node;

/// Gives the room of what nothing refers to back.
#[utoipa::path(post, path = "/v1/store/collections", request_body = CollectRequest,
    responses((status = 200, body = Task), (status = "4XX", body = ApiError)))]
pub(super) async fn collect(State(node): State<Arc<Node>>, Body(request): Body<CollectRequest>) -> Reply<Task> {
    node.start_collection(request).await.map(Json)
}

/// Reads everything again, and fetches what is damaged from peers.
#[utoipa::path(post, path = "/v1/store/scrubs", request_body = ScrubRequest,
    responses((status = 200, body = Task), (status = "4XX", body = ApiError)))]
pub(super) async fn scrub(State(node): State<Arc<Node>>, Body(request): Body<ScrubRequest>) -> Reply<Task> {
    node.start_scrub(request).await.map(Json)
}

//! `/v1/tasks`

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::reply::Reply;
use crate::api::{ApiError, Task};
use crate::node::Node;

/// The longest that a request waits for a task's end.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How long to wait for a task.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct WaitQuery {
    /// Answer when the task ends, or after so many milliseconds, at most 60,000.
    #[serde(default)]
    wait_ms: u64,
}

/// Lists the latest tasks, newest first.
#[utoipa::path(get, path = "/v1/tasks", responses((status = 200, body = [Task])))]
pub(super) async fn list(State(node): State<Arc<Node>>) -> Reply<Vec<Task>> {
    node.tasks.list().await.map(Json)
}

/// Shows a task.
#[utoipa::path(get, path = "/v1/tasks/{id}", params(("id" = u64, Path), WaitQuery),
    responses((status = 200, body = Task), (status = 404, body = ApiError)))]
pub(super) async fn show(
    State(node): State<Arc<Node>>,
    Path(id): Path<u64>,
    Query(query): Query<WaitQuery>,
) -> Reply<Task> {
    node.tasks.find(id, Duration::from_millis(query.wait_ms).min(MAX_WAIT)).await.map(Json)
}

/// Asks a task to stop, and answers when it has, or after some seconds.
#[utoipa::path(post, path = "/v1/tasks/{id}/cancel", params(("id" = u64, Path)),
    responses((status = 200, body = Task), (status = 404, body = ApiError)))]
pub(super) async fn cancel(State(node): State<Arc<Node>>, Path(id): Path<u64>) -> Reply<Task> {
    node.tasks.cancel(id).await.map(Json)
}

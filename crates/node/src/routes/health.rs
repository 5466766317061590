//! `/v1/status`, `/v1/health`, `/metrics` and the API's description.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::reply::Reply;
use crate::api::{ApiError, NodeStatus, Restart, StoreStatus, SwarmStatus};
use crate::error::{blocking, store_error};
use crate::node::Node;

/// Shows the node as a whole.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = NodeStatus)))]
pub(super) async fn status(State(node): State<Arc<Node>>) -> Reply<NodeStatus> {
    let store = Arc::clone(&node.store);
    let statistics = blocking(move || store.statistics().map_err(store_error)).await?;
    let swarm = node.swarm.statistics();
    let (replicated, replicas_not_current) = node.count_replicas();
    Ok(Json(NodeStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        restart_failure: node.restart_failure(),
        endpoint: node.swarm.endpoint().to_string(),
        addresses: node.swarm.addresses().iter().map(ToString::to_string).collect(),
        directory: node.options.directory.display().to_string(),
        logins: node.indexers.logins(),
        volumes: node.volumes.list().len() as u64,
        replicated,
        replicas_not_current,
        buckets: node.buckets.list().len() as u64,
        running_tasks: node.tasks.running() as u64,
        store: StoreStatus {
            directory: node.options.directory.join("store").display().to_string(),
            objects: statistics.objects,
            plain_bytes: statistics.plain_bytes,
            stored_bytes: statistics.stored_bytes,
            allocated_bytes: statistics.allocated_bytes,
            scrub: *node.scrubbed.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            collection: *node.collection.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
        },
        swarm: SwarmStatus {
            sent_bytes: swarm.total.served_bytes(),
            received_bytes: swarm.total.fetched_bytes(),
            peers: swarm.connected_peers as u64,
            bad_chunks: swarm.total.bad_objects,
        },
        memory_bytes: resident_bytes().unwrap_or(0),
    }))
}

/// The resident memory of this process, in bytes.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// Starts this node's successor, which takes all connections over.
#[utoipa::path(post, path = "/v1/restart",
    responses((status = 200, body = Restart), (status = "4XX", body = ApiError)))]
pub(super) async fn restart(State(node): State<Arc<Node>>) -> Reply<Restart> {
    node.restart().map(Json)
}

/// Says that the node answers.
#[utoipa::path(get, path = "/v1/health", responses((status = 200, body = String)))]
pub(super) async fn health() -> &'static str {
    "ok"
}

/// Figures in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String)))]
pub(super) async fn metrics(state: State<Arc<Node>>) -> Result<impl IntoResponse, ApiError> {
    let schedules = state.list_schedules();
    let failing = schedules.iter().filter(|schedule| schedule.failure.is_some()).count() as u64;
    let Json(status) = status(state).await?;
    let rows = [
        ("brant_store_objects", "gauge", "Chunks, tree nodes and manifests in the store.", status.store.objects),
        ("brant_store_stored_bytes", "gauge", "Their length as stored.", status.store.stored_bytes),
        ("brant_store_allocated_bytes", "gauge", "What the store takes on disk.", status.store.allocated_bytes),
        ("brant_store_scrubbed_bytes_total", "counter", "Bytes that scrubs have read.", status.store.scrub.read_bytes),
        (
            "brant_store_damaged_objects_total",
            "counter",
            "Objects that scrubs found damaged.",
            status.store.scrub.damaged,
        ),
        ("brant_store_healed_objects_total", "counter", "Objects fetched again from peers.", status.store.scrub.healed),
        ("brant_store_unhealed_objects", "gauge", "Damaged objects that nobody could give.", status.store.scrub.absent),
        ("brant_volumes", "gauge", "Volumes.", status.volumes),
        ("brant_volumes_replicated", "gauge", "Volumes that have a replica.", status.replicated),
        (
            "brant_replicas_not_current",
            "gauge",
            "Replicas of volumes here that could not take over now.",
            status.replicas_not_current,
        ),
        ("brant_buckets", "gauge", "Buckets.", status.buckets),
        ("brant_schedules_failing", "gauge", "Schedules whose last run failed.", failing),
        ("brant_tasks_running", "gauge", "Tasks that run.", status.running_tasks),
        ("brant_swarm_sent_bytes_total", "counter", "Bytes sent to peers.", status.swarm.sent_bytes),
        ("brant_swarm_received_bytes_total", "counter", "Bytes received from peers.", status.swarm.received_bytes),
        (
            "brant_swarm_bad_chunks_total",
            "counter",
            "Chunks that were not what was asked for.",
            status.swarm.bad_chunks,
        ),
        ("brant_swarm_peers", "gauge", "Peers connected.", status.swarm.peers),
        ("brant_resident_memory_bytes", "gauge", "Resident memory.", status.memory_bytes),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in rows {
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// The API's description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(super) async fn openapi() -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], super::openapi())
}

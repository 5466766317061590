//! The HTTP API: a handler for each route, by resource. What they take and answer is in [`crate::api`].

mod attachments;
mod buckets;
mod cluster;
mod health;
mod reply;
mod schedules;
mod snapshots;
mod store;
mod tasks;
mod volumes;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use utoipa::OpenApi;

use crate::node::Node;

/// The largest request body, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;

/// The API's description.
#[derive(OpenApi, Debug)]
#[openapi(
    info(title = "brant node", description = "Volumes, snapshots and buckets of one node. Errors are ApiError."),
    paths(
        attachments::list,
        attachments::create,
        attachments::remove,
        buckets::list,
        buckets::create,
        buckets::show,
        buckets::remove,
        buckets::log,
        buckets::grant,
        buckets::revoke,
        buckets::publish,
        buckets::unpublish,
        buckets::subscriptions,
        buckets::subscribe,
        buckets::unsubscribe,
        buckets::logins,
        buckets::login,
        cluster::show,
        cluster::add,
        cluster::remove,
        health::status,
        health::health,
        health::metrics,
        health::openapi,
        health::restart,
        schedules::list,
        schedules::show,
        schedules::put,
        schedules::remove,
        snapshots::list,
        snapshots::take,
        snapshots::show,
        snapshots::retire,
        snapshots::import,
        snapshots::materialize,
        snapshots::hydrate,
        snapshots::clone,
        store::collect,
        store::scrub,
        tasks::list,
        tasks::show,
        tasks::cancel,
        volumes::list,
        volumes::create,
        volumes::show,
        volumes::remove,
        volumes::resize,
        volumes::revert,
        volumes::label,
        volumes::take,
        volumes::replicate,
        volumes::stop_replicating,
        volumes::promote,
        volumes::list_replicas,
        volumes::remove_replica,
        volumes::protect,
        volumes::unprotect,
        volumes::list_deleted,
        volumes::purge,
        volumes::restore,
        volumes::differences,
    )
)]
struct Description;

/// The API's description, as JSON.
///
/// # Panics
/// Never: the description is fixed.
#[must_use]
pub fn openapi() -> String {
    Description::openapi().to_pretty_json().expect("a fixed document can be written as JSON")
}

/// All routes.
pub(crate) fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/v1/status", get(health::status))
        .route("/v1/health", get(health::health))
        .route("/v1/openapi.json", get(health::openapi))
        .route("/v1/restart", post(health::restart))
        .route("/metrics", get(health::metrics))
        .route("/v1/buckets", get(buckets::list).post(buckets::create))
        .route("/v1/buckets/{bucket}", get(buckets::show).delete(buckets::remove))
        .route("/v1/buckets/{bucket}/log", get(buckets::log))
        .route("/v1/buckets/{bucket}/grant", post(buckets::grant))
        .route("/v1/buckets/{bucket}/revoke", post(buckets::revoke))
        .route("/v1/buckets/{bucket}/publish", post(buckets::publish))
        .route("/v1/buckets/{bucket}/unpublish", post(buckets::unpublish))
        .route("/v1/subscriptions", get(buckets::subscriptions).post(buckets::subscribe))
        .route("/v1/subscriptions/{bucket}", axum::routing::delete(buckets::unsubscribe))
        .route("/v1/logins", get(buckets::logins).post(buckets::login))
        .route("/v1/cluster", get(cluster::show))
        .route("/v1/cluster/members", post(cluster::add))
        .route("/v1/cluster/members/{member}", axum::routing::delete(cluster::remove))
        .route("/v1/volumes", get(volumes::list).post(volumes::create))
        .route("/v1/volumes/{volume}", get(volumes::show).delete(volumes::remove))
        .route("/v1/volumes/{volume}/resize", post(volumes::resize))
        .route("/v1/volumes/{volume}/revert", post(volumes::revert))
        .route("/v1/volumes/{volume}/labels", post(volumes::label))
        .route("/v1/volumes/{volume}/take", post(volumes::take))
        .route("/v1/volumes/{volume}/replicate", post(volumes::replicate).delete(volumes::stop_replicating))
        .route("/v1/volumes/{volume}/promote", post(volumes::promote))
        .route("/v1/replicas", get(volumes::list_replicas))
        .route("/v1/replicas/{volume}", axum::routing::delete(volumes::remove_replica))
        .route("/v1/volumes/{volume}/protect", post(volumes::protect).delete(volumes::unprotect))
        .route("/v1/volumes/{volume}/schedule", get(schedules::show).post(schedules::put).delete(schedules::remove))
        .route("/v1/schedules", get(schedules::list))
        .route("/v1/deleted-volumes", get(volumes::list_deleted))
        .route("/v1/deleted-volumes/{deleted}", axum::routing::delete(volumes::purge))
        .route("/v1/deleted-volumes/{deleted}/restore", post(volumes::restore))
        .route("/v1/differences", get(volumes::differences))
        .route("/v1/clones", post(snapshots::clone))
        .route("/v1/snapshots", get(snapshots::list).post(snapshots::take))
        .route("/v1/snapshots/{snapshot}", get(snapshots::show).delete(snapshots::retire))
        .route("/v1/imports", post(snapshots::import))
        .route("/v1/materializations", post(snapshots::materialize))
        .route("/v1/hydrations/{target}", post(snapshots::hydrate))
        .route("/v1/attachments", get(attachments::list).post(attachments::create))
        .route("/v1/attachments/{target}", axum::routing::delete(attachments::remove))
        .route("/v1/store/collections", post(store::collect))
        .route("/v1/store/scrubs", post(store::scrub))
        .route("/v1/tasks", get(tasks::list))
        .route("/v1/tasks/{id}", get(tasks::show))
        .route("/v1/tasks/{id}/cancel", post(tasks::cancel))
        .fallback(reply::no_such_route)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&node), crate::cluster::forward))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(node)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_description_names_every_route_once() {
        let text = super::openapi();
        for path in ["/v1/clones", "/v1/snapshots/{snapshot}", "/v1/buckets/{bucket}/publish", "/v1/tasks/{id}/cancel"]
        {
            assert!(text.contains(&format!("\"{path}\"")), "{path}");
        }
    }
}

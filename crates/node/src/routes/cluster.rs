//! `/v1/cluster`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::reply::{Body, Reply, name};
use crate::api::{AddMemberRequest, ApiError, Cluster, Member};
use crate::node::Node;

/// Shows this node and the members of its cluster; asks each of them whether it is there.
#[utoipa::path(get, path = "/v1/cluster", responses((status = 200, body = Cluster)))]
pub(super) async fn show(State(node): State<Arc<Node>>) -> Json<Cluster> {
    Json(node.show_cluster().await)
}

/// Adds a member, which may use and take every volume of this node from now on.
#[utoipa::path(post, path = "/v1/cluster/members", request_body = AddMemberRequest,
    responses((status = 200, body = Member), (status = "4XX", body = ApiError)))]
pub(super) async fn add(State(node): State<Arc<Node>>, Body(request): Body<AddMemberRequest>) -> Reply<Member> {
    node.add_member(request).await.map(Json)
}

/// Removes a member.
#[utoipa::path(delete, path = "/v1/cluster/members/{member}", params(("member" = String, Path)),
    responses((status = 200, body = Member), (status = "4XX", body = ApiError)))]
pub(super) async fn remove(State(node): State<Arc<Node>>, Path(member): Path<String>) -> Reply<Member> {
    node.remove_member(&name(&member)?).await.map(Json)
}

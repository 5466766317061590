//! The cluster of this node: others of the same operator, which may use and take its volumes.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use types::{EndpointId, Name};
use utoipa::ToSchema;

/// This node and the members that it knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// This node's own endpoint.
    #[schema(value_type = String)]
    pub endpoint: EndpointId,
    /// Where it is reached, as far as it knows itself.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
    /// The others.
    pub members: Vec<Member>,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// Its name at this node.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its endpoint.
    #[schema(value_type = String)]
    pub endpoint: EndpointId,
    /// Where it is reached, by UDP.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
    /// Whether it has just answered, and knows this node as a member.
    pub reachable: bool,
}

/// Asks to add a member, which may use and take every volume of this node from then on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddMemberRequest {
    /// Its name at this node.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its endpoint, as `brant cluster show` there tells it.
    #[schema(value_type = String)]
    pub endpoint: EndpointId,
    /// Where it is reached, by UDP: at least one.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<SocketAddr>,
}

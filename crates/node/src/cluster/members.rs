//! Who the members are: added and removed by the operator, on each node.

use std::sync::Arc;
use std::time::Duration;

use cluster::message::Request;
use futures_util::future::join_all;
use types::Name;

use super::moves::Member;
use super::records::{MEMBER, MemberRecord};
use crate::api::{self, ApiError, ErrorCode};
use crate::error::{blocking, not_found, store_error};
use crate::node::Node;
use crate::record::Record as _;

/// How long a member may take to show that it is there.
const GREETING: Duration = Duration::from_secs(2);

impl Node {
    /// This node and the members.
    pub(crate) async fn show_cluster(self: &Arc<Self>) -> api::Cluster {
        let members = join_all(self.cluster.moves.members().into_iter().map(|member| self.show_member(member))).await;
        api::Cluster { endpoint: self.swarm.endpoint(), addresses: self.swarm.addresses(), members }
    }

    async fn show_member(&self, member: Member) -> api::Member {
        // A name that no volume has: what counts is that there is an answer.
        let greeting = Request::Find { volume: member.name.clone() };
        let reachable = self.cluster.peers.ask(member.endpoint, &greeting, GREETING).await.is_ok();
        let Member { name, endpoint, addresses } = member;
        api::Member { name, endpoint, addresses, reachable }
    }

    /// Adds a member, who may use and take every volume of this node from now on.
    pub(crate) async fn add_member(self: &Arc<Self>, request: api::AddMemberRequest) -> Result<api::Member, ApiError> {
        let api::AddMemberRequest { name, endpoint, addresses } = request;
        if endpoint == self.swarm.endpoint() {
            return Err(ApiError::new(ErrorCode::Invalid, "that is this node's own endpoint")
                .hint("run the line that `brant cluster show` prints on the other nodes"));
        }
        if addresses.is_empty() {
            return Err(ApiError::new(ErrorCode::Invalid, "a member needs an address at which it is reached"));
        }
        let member = Member { name, endpoint, addresses };
        let known = self.cluster.moves.members();
        if let Some(other) = known.iter().find(|other| other.name == member.name || other.endpoint == endpoint)
            && (other.name != member.name || other.endpoint != endpoint)
        {
            let message = format!("there is a member {} already, with the endpoint {}", other.name, other.endpoint);
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .hint(format!("remove it first: brant cluster remove {}", other.name)));
        }
        let record = MemberRecord { endpoint, addresses: member.addresses.iter().map(ToString::to_string).collect() };
        let (node, adding) = (Arc::clone(self), member.clone());
        blocking(move || {
            record.write(&*node.store, format!("{MEMBER}{}", adding.name)).map_err(store_error)?;
            node.cluster.moves.add_member(adding);
            Ok(())
        })
        .await?;
        Ok(self.show_member(member).await)
    }

    /// Removes a member. What it uses here ends.
    pub(crate) async fn remove_member(self: &Arc<Self>, name: &Name) -> Result<api::Member, ApiError> {
        let member = self.cluster.moves.members().into_iter().find(|member| member.name == *name);
        let member = member.ok_or_else(|| not_found("member", name).hint("see: brant cluster show"))?;
        let (node, removing) = (Arc::clone(self), member.clone());
        blocking(move || {
            node.store.roots().apply(vec![(format!("{MEMBER}{}", removing.name), None)]).map_err(store_error)?;
            node.cluster.moves.remove_member(removing.endpoint);
            Ok(())
        })
        .await?;
        self.cluster.peers.forget(member.endpoint);
        let Member { name, endpoint, addresses } = member;
        Ok(api::Member { name, endpoint, addresses, reachable: false })
    }
}

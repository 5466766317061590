//! The node as a member of a cluster: who the others are, where volumes are, and how they are used and given from node to node.
//!
//! Invariants: a volume has one home, and all writes to it go there. Who is home is decided by the home alone: it gives a volume up in
//! one step with the record that says to whom (`given/VOLUME`). Every step of a move is durable before the next begins, and each is
//! repeated until it is answered, so that a move goes on whoever dies ([`taking`]).

mod find;
mod forward;
mod giving;
mod home;
mod leaving;
mod members;
mod moves;
mod promoting;
mod records;
mod replicas;
mod replicating;
mod settings;
mod taking;
mod using;
mod witness;

use std::sync::Arc;

use cluster::{Peers, Service};
use store::ChunkStore;
use swarm::Swarm;

use crate::api::{ApiError, ErrorCode};
use crate::node::Node;
use crate::record::RecordError;

pub(crate) use forward::forward;
pub(crate) use moves::Moves;
pub(crate) use records::live;
pub(crate) use using::RemoteRecord;

/// What a node keeps of its cluster.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Who may fetch what, from whom what is fetched, and where members are: the swarm asks.
    pub(crate) moves: Arc<Moves>,
    peers: Arc<Peers>,
    /// The volumes of others that are attached here.
    uses: using::Uses,
    /// The volumes that are being given.
    giving: giving::Giving,
    /// The replicas of this node's volumes.
    pub(crate) mirrors: replicating::Mirrors,
    /// The replicas of others' volumes.
    pub(crate) replicas: replicas::Replicas,
    /// Held while something is witnessed.
    witnessing: std::sync::Mutex<()>,
}

impl Cluster {
    /// Reads the members and the moves that are under way.
    pub(crate) fn open(store: &dyn ChunkStore, moves: Arc<Moves>, swarm: &Arc<Swarm>) -> Result<Self, RecordError> {
        moves.read(store)?;
        let peers = Arc::new(Peers::new(Arc::<Swarm>::clone(swarm)));
        let (uses, giving) = (using::Uses::default(), giving::Giving::default());
        let (mirrors, replicas) = (replicating::Mirrors::default(), replicas::Replicas::default());
        Ok(Self { moves, peers, uses, giving, mirrors, replicas, witnessing: std::sync::Mutex::default() })
    }
}

impl Node {
    /// Serves members, and goes on with the moves that were under way.
    pub(crate) async fn join_cluster(self: &Arc<Self>) -> Result<(), ApiError> {
        self.drop_unfinished_offers().await?;
        let service = Service::new(Arc::new(home::NodeHome(Arc::downgrade(self))));
        let node = Arc::clone(self);
        self.spawn(async move {
            while let Some(connection) = node.swarm.visitor().await {
                let member = connection.peer();
                if node.cluster.moves.member(member).is_none() {
                    tracing::warn!(%member, "an endpoint that is no member asks for volumes");
                    connection.close();
                    continue;
                }
                let (service, moves) = (Arc::clone(&service), Arc::clone(&node.cluster.moves));
                node.spawn(async move {
                    tokio::select! {
                        () = service.serve(Arc::clone(&connection)) => {}
                        () = moves.gone(member) => connection.close(),
                    }
                });
            }
        });
        Ok(())
    }
}

/// An error of the API for a member that did not do what it was asked.
fn asked(error: cluster::AskError, member: &types::Name) -> ApiError {
    match error {
        cluster::AskError::Refused(refusal) => home::api_error(refusal),
        error => {
            let error = ApiError::from_error(ErrorCode::Unreachable, &error);
            ApiError { message: format!("the member {member}: {}", error.message), ..error }
                .hint(format!("is its node running, and reachable at the address of `brant cluster show`? {member}"))
        }
    }
}

//! What the swarm asks of its node: what may be served to whom, who provides what, and where endpoints are.
//!
//! The swarm enforces what the library says and decides nothing about rights itself.

use std::fmt::Debug;
use std::net::SocketAddr;

use bucket::SignedCertificate;
use futures_util::future::BoxFuture;
use store::{Domain, Domains, Key, Origin, Part};
use types::{EndpointId, Name, PublicKey, SnapshotId};

/// Who asks: an endpoint, proven by its connection, and the accounts that Indexers certify it to belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Each Indexer's key with the account there. The certificates were verified against the endpoint and the clock.
    pub accounts: Vec<(PublicKey, Name)>,
}

/// How a snapshot may be served to a peer.
#[derive(Clone, Debug)]
pub struct Served {
    /// The trust domains in which its parts count as present.
    pub domains: Domains,
    /// By disk number, where parts that are absent here can be fetched through: the snapshot itself at other providers,
    /// or the one that it was derived from. Disks beyond the end are not fetched through.
    pub upstream: Vec<Option<Origin>>,
}

/// What the swarm asks of its node.
pub trait Library: Send + Sync + Debug {
    /// Says how a peer may read a snapshot; `None` both for what it may not read and for what is not known here.
    ///
    /// Called off the async threads, once per request.
    fn serve(&self, peer: &Peer, snapshot: &SnapshotId) -> Option<Served>;

    /// Whether [`claim`](Library::claim) might find anything for a snapshot. Must be quick and not block: it is asked
    /// before every fetch.
    fn may_claim(&self, snapshot: &SnapshotId) -> bool {
        let _ = snapshot;
        false
    }

    /// Puts an absent part, which must hash to `key`, into `domain` from what is here in other domains, if nobody learns
    /// anything by that. Says whether it did. Called off the async threads, before anyone is asked.
    fn claim(&self, origin: Origin, part: Part, key: &Key, domain: Domain) -> bool {
        let _ = (origin, part, key, domain);
        false
    }

    /// Finds out who may have a snapshot, in no order. Called again after a while when all of them failed.
    fn providers(&self, snapshot: SnapshotId) -> BoxFuture<'static, Vec<EndpointId>>;

    /// This node's certificates, to show to peers that it asks. Those that have expired are not believed anywhere.
    fn certificates(&self) -> BoxFuture<'static, Vec<SignedCertificate>>;

    /// Finds out where an endpoint can be reached.
    fn resolve(&self, endpoint: EndpointId) -> BoxFuture<'static, Option<Vec<SocketAddr>>>;

    /// Is told where this node's endpoint can be reached, whenever that changes. Must not block.
    fn publish(&self, addresses: Vec<SocketAddr>);
}

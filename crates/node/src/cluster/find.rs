//! Where a volume is: the members are asked, all at once.

use std::sync::{Arc, Weak};
use std::time::Duration;

use cluster::message::{Reply, Request};
use cluster::{AskError, Members};
use futures_util::future::{BoxFuture, join_all};
use swarm::transport::{Connection, TransportError};
use types::{EndpointId, Name};

use super::home::api_error;
use super::moves::Member;
use crate::api::{ApiError, ErrorCode};
use crate::node::Node;

/// How long a member may take to say whether it has a volume.
const ANSWER: Duration = Duration::from_secs(3);

/// Where a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// At a member.
    At { home: Member, size_bytes: u64, epoch: u64 },
    /// It was given to this node, which has not yet begun with it.
    Mine { from: Member },
    /// All members have answered, and none has it.
    Nowhere,
    /// It may be at one of those who did not answer, in words.
    Unknown(String),
}

impl Node {
    /// Finds a volume that is not here.
    pub(super) async fn locate(&self, volume: &Name) -> Location {
        let members = self.cluster.moves.members();
        let ask = async |member: Member| {
            let request = Request::Find { volume: volume.clone() };
            let answer = self.cluster.peers.ask_anew(member.endpoint, &request, ANSWER).await;
            if matches!(answer, Err(AskError::TimedOut)) {
                self.cluster.peers.forget(member.endpoint);
            }
            (member, answer)
        };
        let answers = join_all(members.into_iter().map(ask)).await;
        let (mut here, mut elsewhere, mut silent, mut taking) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (member, answer) in answers {
            match answer {
                Ok(Reply::Here { size_bytes, epoch }) => here.push((epoch, member, size_bytes)),
                Ok(Reply::Elsewhere { home, epoch }) => elsewhere.push((epoch, home, Some(member))),
                Ok(Reply::Absent) => {}
                Err(AskError::Refused(refusal)) if api_error(refusal.clone()).code == ErrorCode::Conflict => {
                    taking.push(member.endpoint);
                }
                Ok(_) | Err(_) => silent.push(member.name.to_string()),
            }
        }
        // What this node knows itself: a member that was asked may remember an earlier move only.
        elsewhere.extend(self.last_known(volume).map(|(home, epoch)| (epoch, home, None)));
        here.sort_by_key(|(epoch, ..)| *epoch);
        if here.len() > 1 {
            tracing::error!(%volume, "several members have a volume of this name: the one that was given latest counts");
        }
        let latest = elsewhere.iter().max_by_key(|(epoch, ..)| *epoch).map(|(epoch, home, _)| (*epoch, *home));
        if let Some((epoch, home, size_bytes)) = here.pop() {
            // Whoever has it later does not answer: this one may not have heard of it.
            return match latest.filter(|(later, _)| *later > epoch).map(|(_, later)| self.cluster.moves.name_of(later))
            {
                Some(later) if silent.contains(&later) => {
                    Location::Unknown(format!("it is at {later}, which does not answer"))
                }
                _ => Location::At { home, size_bytes, epoch },
            };
        }
        // Who has it last tells of an earlier move only: it is on its way there.
        if let Some((_, home)) = latest
            && elsewhere.iter().any(|(_, _, from)| from.as_ref().is_some_and(|from| from.endpoint == home))
        {
            return Location::Unknown(format!("it is about to arrive at {}", self.cluster.moves.name_of(home)));
        }
        match elsewhere.into_iter().max_by_key(|(epoch, ..)| *epoch) {
            Some((_, home, Some(from))) if home == self.swarm.endpoint() => Location::Mine { from },
            // It was given, and whoever got it has not yet begun with it.
            Some((_, home, _)) if taking.contains(&home) => {
                Location::Unknown(format!("it is about to arrive at {}", self.cluster.moves.name_of(home)))
            }
            Some((_, home, _)) if silent.contains(&self.cluster.moves.name_of(home)) => {
                Location::Unknown(format!("it is at {}, which does not answer", self.cluster.moves.name_of(home)))
            }
            _ if silent.is_empty() => Location::Nowhere,
            _ => Location::Unknown(format!("it may be at {}, which does not answer", silent.join(" or "))),
        }
    }

    /// The member that a volume was at when this node last heard of it, and the epoch.
    pub(super) fn last_known(&self, volume: &Name) -> Option<(EndpointId, u64)> {
        let given = self.given_record(volume).ok().flatten().map(|given| (given.to, given.epoch));
        let followed = self.cluster.replicas.get(volume).map(|kept| kept.record()).map(|kept| (kept.home, kept.epoch));
        given.into_iter().chain(followed).max_by_key(|(_, epoch)| *epoch)
    }

    /// The member that has a volume, which is not here.
    pub(super) async fn home_of(&self, volume: &Name) -> Result<(Member, u64), ApiError> {
        self.home_at(self.locate(volume).await, volume)
    }

    /// The member that has a volume, or why none is known, and what can be done where a replica is here.
    pub(super) fn home_at(&self, found: Location, volume: &Name) -> Result<(Member, u64), ApiError> {
        let is_lost = matches!(found, Location::Unknown(_));
        found.home(volume).map_err(|error| match self.cluster.replicas.kept().contains_key(volume) {
            true if is_lost => error.hint(format!(
                "a replica of it is here (brant volume replicas); where its home is gone for good: brant volume promote {volume}"
            )),
            _ => error,
        })
    }
}

impl Location {
    /// The member that has a volume, or why none is known.
    pub(super) fn home(self, volume: &Name) -> Result<(Member, u64), ApiError> {
        let message = format!("there is no volume {volume} at this node");
        match self {
            Location::At { home, size_bytes, .. } => Ok((home, size_bytes)),
            Location::Mine { .. } => {
                // It is not gone.
                Err(ApiError::new(ErrorCode::Conflict, format!("{volume} is about to arrive here"))
                    .hint(format!("go on with: brant volume take {volume}")))
            }
            Location::Nowhere => {
                Err(ApiError::new(ErrorCode::NotFound, format!("{message} or at a member of the cluster"))
                    .hint("see: brant volume list, and brant volume list --deleted"))
            }
            Location::Unknown(why) => Err(ApiError::new(ErrorCode::Unreachable, format!("{message}: {why}"))
                .hint("start that node, or see that it can be reached; brant cluster show tells of all")),
        }
    }
}

/// The node, as volumes that are used from here ask it for their home.
#[derive(Clone, Debug)]
pub(super) struct NodeMembers(pub(super) Weak<Node>);

impl Members for NodeMembers {
    fn home(&self, volume: &Name) -> BoxFuture<'static, Result<Option<Arc<dyn Connection>>, AskError>> {
        let (node, volume) = (self.0.upgrade(), volume.clone());
        Box::pin(async move {
            let node = node.ok_or(TransportError::Closed)?;
            match node.locate(&volume).await {
                Location::At { home, .. } => Ok(Some(node.cluster.peers.connection(home.endpoint, &volume).await?)),
                Location::Nowhere if node.volumes.get(&volume).is_none() => Ok(None),
                Location::Mine { .. } => {
                    // The move was decided, and whoever was at it has ended: it is gone on with.
                    if let Err(error) = node.start_take(&volume).await {
                        tracing::warn!(%error, %volume, "a volume that was given to this node could not be taken");
                    }
                    Err(AskError::TimedOut)
                }
                Location::Nowhere | Location::Unknown(_) => Err(AskError::TimedOut),
            }
        })
    }
}

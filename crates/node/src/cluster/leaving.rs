//! Replicas of this node's volumes when the node ends as planned: its next process goes on with them where they are.
//!
//! Invariant: where a volume and its replica stand is recorded when no change is under way and none may begin, and only while the replica is
//! recorded as current. It is taken back before anybody can change the volume again ([`Node::begin_mirrors`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::Standing;
use types::Name;

use super::records::{REPLICATE, ReplicateRecord, StandingRecord};
use super::replicating::Kept;
use crate::api::{ApiError, ErrorCode};
use crate::error::{blocking, store_error};
use crate::node::Node;
use crate::record::Record as _;

/// How long replicas may take to catch up before anybody waits for that.
const CATCHING_UP: Duration = Duration::from_secs(10);

/// How long they may take to have everything when the node stops.
const STOPPING: Duration = Duration::from_secs(10);

/// A volume and its replica, which stand.
#[derive(Debug)]
pub(crate) struct Left {
    volume: Name,
    kept: Kept,
    standing: Standing,
}

impl Node {
    /// Has replicas make durable what they lack, while guests go on. Blocks.
    pub(crate) fn have_replicas_catch_up(&self) {
        let until = Instant::now() + CATCHING_UP;
        self.cluster.mirrors.all().iter().for_each(|(_, kept)| kept.mirror.catch_up(until));
    }

    /// Lets no change of a replicated volume begin any more, and waits until replicas have everything; but not for those that are
    /// away, and for none longer than that. Blocks.
    pub(crate) fn bring_replicas_to_a_stand(&self, patience: Duration) -> Vec<Left> {
        let (until, all) = (Instant::now() + patience, self.cluster.mirrors.all());
        all.iter().for_each(|(_, kept)| kept.mirror.hold());
        let stand = |(volume, kept): (Name, Kept)| {
            let standing = self.volumes.get(&volume).and_then(|found| kept.mirror.stand(&found, until));
            if standing.is_none() {
                tracing::info!(%volume, "the replica does not have everything now, and will be made anew");
            }
            Some(Left { standing: standing?, volume, kept })
        };
        all.into_iter().filter_map(stand).collect()
    }

    /// Lets changes begin again.
    pub(crate) fn go_on_with_replicas(&self) {
        self.cluster.mirrors.all().iter().for_each(|(_, kept)| kept.mirror.release());
    }

    /// Records where replicas stand, for the next process. Where that fails, they are made anew.
    pub(crate) async fn record_left(self: &Arc<Self>, left: Vec<Left>) {
        let node = Arc::clone(self);
        if let Err(error) = blocking(move || node.write_left(&left)).await {
            tracing::warn!(%error, "replicas will be made anew: where they are could not be recorded");
        }
    }

    /// Blocks.
    fn write_left(&self, left: &[Left]) -> Result<(), ApiError> {
        // Whoever records meanwhile that one is left behind does so before or after this.
        let _recording = self.cluster.mirrors.recording();
        let mut changes = Vec::new();
        for Left { volume, kept, standing } in left {
            let key = format!("{REPLICATE}{volume}");
            let record = ReplicateRecord::read(&*self.store, key.clone())
                .map_err(|error| ApiError::from_error(ErrorCode::Damaged, &error))?;
            if record == Some(ReplicateRecord::new(kept.to, kept.terms, true)) {
                let left = Some(StandingRecord::new(*standing));
                changes.push(ReplicateRecord { left, ..ReplicateRecord::new(kept.to, kept.terms, true) }.change(key));
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.store.roots().apply(changes).map_err(store_error)
    }

    /// Leaves replicas for the next process, as this one stops.
    pub(crate) async fn leave_replicas(self: &Arc<Self>) {
        let node = Arc::clone(self);
        match blocking(move || Ok(node.bring_replicas_to_a_stand(STOPPING))).await {
            Ok(left) => self.record_left(left).await,
            Err(error) => tracing::warn!(%error, "replicas will be made anew"),
        }
    }
}

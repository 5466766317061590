//! Replicas of the volumes that are here, which other members keep.
//!
//! Invariant: `replicate/VOLUME` says whether the replica is current before anything is answered that depends on it. It is taken back only
//! after the replica itself, or the witness, has recorded that it is left behind; or because the operator says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cluster::message::{Reply, Request, Settings, Terms, Testimony};
use cluster::{AskError, Mirror, MirrorHost, MirrorState};
use futures_util::future::BoxFuture;
use swarm::transport::{Connection, TransportError};
use tokio_util::sync::CancellationToken;
use types::{EndpointId, Name};
use volume::{Observer, Volume};

use super::records::{GIVEN, GivenRecord, HOME, REPLICATE, ReplicateRecord, StandingRecord, offer_name};
use crate::api::{self, ApiError, ErrorCode};
use crate::error::{blocking, not_found, store_error};
use crate::node::Node;
use crate::record::Record as _;
use crate::snapshots::volume_error;
use crate::task::now_ms;

/// How long a member may take to record something.
const ANSWER: Duration = Duration::from_secs(5);

/// How far a replica may be behind where nobody says, and at least, in bytes.
const LAG_BYTES: u64 = 64 << 20;
const LEAST_LAG_BYTES: u64 = 1 << 20;

/// The most, in bytes: it is kept in memory.
const MOST_LAG_BYTES: u64 = 1 << 30;

/// The replicas of the volumes that are here.
#[derive(Debug, Default)]
pub(crate) struct Mirrors {
    kept: Mutex<BTreeMap<Name, Kept>>,
    /// Held while what is recorded of one is changed.
    recording: Mutex<()>,
}

#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) mirror: Arc<Mirror>,
    pub(super) to: EndpointId,
    pub(super) terms: Terms,
    stop: CancellationToken,
}

impl Mirrors {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<Name, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, as they are now.
    pub(super) fn all(&self) -> Vec<(Name, Kept)> {
        self.kept().iter().map(|(name, kept)| (name.clone(), kept.clone())).collect()
    }

    /// To be held while records are changed.
    pub(super) fn recording(&self) -> MutexGuard<'_, ()> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, volume: &Name) -> Option<Kept> {
        self.kept().get(volume).cloned()
    }

    /// What a volume's changes go through, if it has a replica.
    pub(super) fn mirror(&self, volume: &Name) -> Option<Arc<Mirror>> {
        self.get(volume).map(|kept| kept.mirror)
    }

    /// Who keeps the replica of a volume.
    pub(super) fn member(&self, volume: &Name) -> Option<EndpointId> {
        self.get(volume).map(|kept| kept.to)
    }

    fn remove(&self, volume: &Name) -> Option<Kept> {
        let kept = self.kept().remove(volume)?;
        kept.stop.cancel();
        Some(kept)
    }

    /// Fails all that waits for replicas, as the node stops.
    pub(crate) fn abandon(&self) {
        self.kept().values().for_each(|kept| kept.mirror.abandon(true));
    }

    /// Fails all that waits for replicas that are away, as the node stops.
    pub(crate) fn abandon_lost(&self) {
        let lost = |kept: &&Kept| !kept.mirror.is_connected();
        self.kept().values().filter(lost).for_each(|kept| kept.mirror.abandon(true));
    }
}

/// The node, as the mirror of one volume sees it.
#[derive(Debug)]
struct MirrorOf {
    node: Weak<Node>,
    volume: Name,
    to: EndpointId,
    terms: Terms,
}

impl MirrorOf {
    fn node(&self) -> Result<Arc<Node>, String> {
        self.node.upgrade().ok_or_else(|| "the node is shutting down".to_owned())
    }

    /// Has the witness record something.
    async fn testify(&self, testimony: Testimony) -> Result<(), String> {
        let (node, Some(witness)) = (self.node()?, self.terms.witness) else { return Ok(()) };
        let mine = self.epoch()?;
        match node.ask_witness(witness, &self.volume, mine, self.to, testimony).await {
            Ok(Reply::Settled) => Ok(()),
            Ok(Reply::Elsewhere { home, epoch }) if cluster::supersedes(epoch, mine) => {
                self.superseded(home, epoch).await;
                Err("another member has taken the volume over".to_owned())
            }
            Ok(_) => Err("the witness answered something else than was asked".to_owned()),
            Err(error) => Err(format!("the witness: {error}")),
        }
    }
}

impl MirrorHost for MirrorOf {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, AskError>> {
        Box::pin(async {
            let node = self.node().map_err(|_| TransportError::Closed)?;
            Ok(node.cluster.peers.connection(self.to, &self.volume).await?)
        })
    }

    fn epoch(&self) -> Result<u64, String> {
        self.node()?.epoch_of(&self.volume).map_err(|error| error.to_string())
    }

    fn set_current(&self, current: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            if current {
                self.testify(Testimony::Current).await?;
            }
            let (node, key) = (self.node()?, format!("{REPLICATE}{}", self.volume));
            let (record, volume) = (ReplicateRecord::new(self.to, self.terms, current), self.volume.clone());
            let write = move || {
                let _recording = node.cluster.mirrors.recording();
                let mut changes = vec![record.change(key)];
                if current {
                    // What it was made of is not asked for any more.
                    node.cluster.moves.offer(&volume, record.to, None);
                    changes.push((offer_name(&volume, record.to), None));
                }
                node.store.roots().apply(changes).map_err(store_error)
            };
            blocking(write).await.map_err(|error| error.to_string())
        })
    }

    fn outdate(&self) -> BoxFuture<'_, bool> {
        Box::pin(async {
            if self.terms.witness.is_none() {
                return !self.terms.sync;
            }
            let outdated = self.testify(Testimony::Outdated).await;
            if let Err(error) = &outdated {
                tracing::warn!(volume = %self.volume, error, "the volume waits for its replica");
            }
            outdated.is_ok()
        })
    }

    fn settings(&self) -> Result<Settings, String> {
        self.node()?.settings_of_named(&self.volume).map_err(|error| error.to_string())
    }

    fn superseded(&self, home: EndpointId, epoch: u64) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Ok(node) = self.node() else { return };
            let (stepping_down, name) = (Arc::clone(&node), self.volume.clone());
            // Not here: the mirror is stopped by it.
            node.spawn(async move {
                if let Err(error) = stepping_down.step_down(&name, home, epoch).await {
                    tracing::error!(%error, volume = %name, "a volume that was taken over is still here");
                }
            });
        })
    }
}

impl Node {
    /// The epoch of a volume that is here ([`cluster::first_epoch`]).
    pub(super) fn epoch_of(&self, name: &Name) -> Result<u64, ApiError> {
        if let Some(born_ms) = self.volumes.get(name).and_then(|volume| volume.born_ms()) {
            return Ok(cluster::first_epoch(born_ms));
        }
        Ok(self.home_record(name)?.map_or(0, |home| home.epoch))
    }

    /// Has a witness record something of a replica.
    pub(super) async fn ask_witness(
        &self,
        witness: EndpointId,
        volume: &Name,
        epoch: u64,
        replica: EndpointId,
        testimony: Testimony,
    ) -> Result<Reply, AskError> {
        let request = Request::Witness { volume: volume.clone(), epoch, replica, testimony };
        self.cluster.peers.ask(witness, &request, ANSWER).await
    }

    /// Goes on with the replicas of the volumes that are here. Called before anybody can write to them.
    pub(crate) fn begin_mirrors(self: &Arc<Self>) -> Result<(), ApiError> {
        let damaged = |error| ApiError::from_error(ErrorCode::Damaged, &error);
        let records = ReplicateRecord::read_all(&*self.store, REPLICATE).map_err(damaged)?;
        // Who dies from here on leaves nothing to go on from.
        let left = records.iter().filter(|(_, record)| record.left.is_some());
        let taken_back: Vec<_> = left
            .map(|(name, record)| ReplicateRecord { left: None, ..*record }.change(format!("{REPLICATE}{name}")))
            .collect();
        if !taken_back.is_empty() {
            self.store.roots().apply(taken_back).map_err(store_error)?;
        }
        for (name, record) in records {
            match name.parse().ok().and_then(|name| self.volumes.get(&name)) {
                Some(volume) => self.begin_mirror(&volume, record),
                // It was removed or taken over when the node stopped.
                None => self.store.roots().apply(vec![(format!("{REPLICATE}{name}"), None)]).map_err(store_error)?,
            }
        }
        Ok(())
    }

    pub(super) fn begin_mirror(self: &Arc<Self>, volume: &Arc<Volume>, record: ReplicateRecord) {
        let ReplicateRecord { to, terms, current, left } = record;
        let (name, stop) = (volume.name().clone(), CancellationToken::new());
        let mirror = Mirror::begin(volume, terms, current, left.map(StandingRecord::standing));
        volume.observe(Some(Arc::<Mirror>::clone(&mirror)));
        let kept = Kept { mirror: Arc::clone(&mirror), to, terms, stop: stop.clone() };
        if let Some(before) = self.cluster.mirrors.kept().insert(name.clone(), kept) {
            // Nobody is to hear of two.
            before.stop.cancel();
        }
        let host = MirrorOf { node: Arc::downgrade(self), volume: name, to, terms };
        self.spawn(async move {
            tokio::select! {
                () = mirror.run(&host) => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Lets a mirror go, without a word to the member. What waits for it is answered.
    fn end_mirror(&self, name: &Name) {
        let Some(kept) = self.cluster.mirrors.remove(name) else { return };
        if let Some(volume) = self.volumes.get(name) {
            volume.observe(None);
        }
        kept.mirror.leave_behind();
    }

    /// How many volumes here have a replica, and how many of those are not current.
    pub(crate) fn count_replicas(&self) -> (u64, u64) {
        let all = self.cluster.mirrors.all();
        let current = all.iter().filter(|(_, kept)| kept.mirror.status().state == MirrorState::Current).count();
        (all.len() as u64, (all.len() - current) as u64)
    }

    /// How a replica of a volume is kept.
    pub(crate) fn show_replication(&self, volume: &Name) -> Option<api::Replication> {
        let kept = self.cluster.mirrors.get(volume)?;
        let status = kept.mirror.status();
        Some(api::Replication {
            to: self.cluster.moves.name_of(kept.to),
            mode: api::ReplicationMode::of(kept.terms.sync),
            witness: kept.terms.witness.map(|witness| self.cluster.moves.name_of(witness)),
            most_lag_bytes: kept.terms.lag_bytes,
            state: match status.state {
                MirrorState::Current => api::ReplicationState::Current,
                MirrorState::Away => api::ReplicationState::Away,
                MirrorState::Syncing => api::ReplicationState::Syncing,
                MirrorState::Behind => api::ReplicationState::Behind,
            },
            lag_bytes: status.lag_bytes,
            lag_ms: u64::try_from(status.lag.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn terms(&self, request: &api::ReplicateRequest) -> Result<(EndpointId, Terms), ApiError> {
        let members = self.cluster.moves.members();
        let endpoint = |name: &Name| {
            let member = members.iter().find(|member| member.name == *name).map(|member| member.endpoint);
            member.ok_or_else(|| not_found("member", name).hint("see: brant cluster show"))
        };
        let to = endpoint(&request.to)?;
        let witness = request.witness.as_ref().map(endpoint).transpose()?;
        if witness == Some(to) {
            return Err(ApiError::new(
                ErrorCode::Invalid,
                "the witness is another member than the one that keeps the replica",
            )
            .hint("name a third one, or none"));
        }
        let lag_bytes = request.most_lag_bytes.map_or(LAG_BYTES, |lag| lag.0);
        if !(LEAST_LAG_BYTES..=MOST_LAG_BYTES).contains(&lag_bytes) {
            return Err(ApiError::new(ErrorCode::Invalid, "a replica may be behind by 1 MiB to 1 GiB"));
        }
        Ok((to, Terms { sync: request.mode == api::ReplicationMode::Sync, witness, lag_bytes }))
    }

    /// Has a member keep a replica of a volume.
    pub(crate) async fn replicate(
        self: &Arc<Self>,
        name: &Name,
        request: api::ReplicateRequest,
    ) -> Result<api::Replication, ApiError> {
        let volume = self.find_volume(name)?;
        let (to, terms) = self.terms(&request)?;
        match self.cluster.mirrors.get(name) {
            Some(kept) if (kept.to, kept.terms) == (to, terms) => {}
            Some(kept) => {
                let message =
                    format!("{name} has a replica at {}, kept otherwise", self.cluster.moves.name_of(kept.to));
                return Err(ApiError::new(ErrorCode::Conflict, message)
                    .hint(format!("first: brant volume replicate {name} --stop")));
            }
            None => {
                let record = ReplicateRecord::new(to, terms, false);
                let (node, key) = (Arc::clone(self), format!("{REPLICATE}{name}"));
                blocking(move || record.write(&*node.store, key).map_err(store_error)).await?;
                self.begin_mirror(&volume, record);
            }
        }
        self.show_replication(name).ok_or_else(|| not_found("replica of", name))
    }

    /// Ends the replica of a volume. Where the member does not answer, that it is left behind is recorded by the witness, or the
    /// operator insists.
    pub(crate) async fn stop_replicating(self: &Arc<Self>, name: &Name, force: bool) -> Result<(), ApiError> {
        self.find_volume(name)?;
        let Some(kept) = self.cluster.mirrors.get(name) else {
            return Err(not_found("replica of", name).hint(format!("see: brant volume show {name}")));
        };
        let request = Request::Dismiss { volume: name.clone(), epoch: self.epoch_of(name)? };
        if let Err(error) = self.tell_replica(name, &kept, request).await
            // Where it was taken over, nobody may insist.
            && (!force || error.code == ErrorCode::Conflict)
        {
            if error.code == ErrorCode::Conflict {
                return Err(error);
            }
            return Err(error.hint(format!(
                "see that it can be reached; or, if nobody will ever promote what it has: brant volume replicate {name} --stop --force"
            )));
        }
        self.end_mirror(name);
        let (node, key) = (Arc::clone(self), format!("{REPLICATE}{name}"));
        blocking(move || {
            let _recording = node.cluster.mirrors.recording();
            node.store.roots().apply(vec![(key, None)]).map_err(store_error)
        })
        .await
    }

    /// Has the replica, or else the witness, record that what follows is answered without it. One that is not current need not be told.
    async fn tell_replica(self: &Arc<Self>, name: &Name, kept: &Kept, request: Request) -> Result<(), ApiError> {
        let reply = self.cluster.peers.ask(kept.to, &request, ANSWER).await;
        let member = self.cluster.moves.name_of(kept.to);
        let error = match reply {
            Ok(Reply::Settled) => return Ok(()),
            // It was taken over meanwhile: nothing may be answered without it.
            Ok(Reply::Elsewhere { home, epoch }) if cluster::supersedes(epoch, self.epoch_of(name)?) => {
                self.step_down(name, home, epoch).await?;
                let home = self.cluster.moves.name_of(home);
                return Err(ApiError::new(ErrorCode::Conflict, format!("{home} has taken {name} over"))
                    .hint(format!("use it there, or have it here: brant volume take {name}")));
            }
            Ok(_) => ApiError::new(ErrorCode::Unreachable, format!("{member} answered something else than was asked")),
            Err(error) => {
                ApiError::new(ErrorCode::Unreachable, format!("{member}, which keeps the replica of {name}: {error}"))
            }
        };
        if !kept.mirror.is_current() {
            return Ok(());
        }
        let Some(witness) = kept.terms.witness else { return Err(error) };
        match self.ask_witness(witness, name, self.epoch_of(name)?, kept.to, Testimony::Outdated).await {
            Ok(Reply::Settled) => Ok(()),
            _ => Err(error),
        }
    }

    /// Leaves the replica of a volume behind, as its home is about to change: who becomes the home makes it anew.
    pub(super) async fn leave_replica(self: &Arc<Self>, name: &Name) -> Result<Option<ReplicateRecord>, ApiError> {
        let Some(kept) = self.cluster.mirrors.get(name) else {
            let damaged = |error| ApiError::from_error(ErrorCode::Damaged, &error);
            return match ReplicateRecord::read(&*self.store, format!("{REPLICATE}{name}")).map_err(damaged)? {
                None => Ok(None),
                Some(_) => {
                    Err(ApiError::new(ErrorCode::Conflict, format!("{name} is being let go, as it was taken over")))
                }
            };
        };
        let request = Request::Outdate { volume: name.clone(), epoch: self.epoch_of(name)? };
        self.tell_replica(name, &kept, request).await.map_err(|error| {
            error.hint(format!(
                "see that it can be reached, or end the replica: brant volume replicate {name} --stop --force"
            ))
        })?;
        let record = ReplicateRecord::new(kept.to, kept.terms, false);
        let (node, key) = (Arc::clone(self), format!("{REPLICATE}{name}"));
        blocking(move || {
            let _recording = node.cluster.mirrors.recording();
            record.write(&*node.store, key).map_err(store_error)
        })
        .await?;
        self.end_mirror(name);
        Ok(Some(record))
    }

    /// An error where a replica is kept of a volume, which `what` would have to be told of.
    pub(crate) fn check_not_replicated(&self, name: &Name, what: &str) -> Result<(), ApiError> {
        let Some(kept) = self.cluster.mirrors.get(name) else { return Ok(()) };
        let message = format!("{name} has a replica at {}, and cannot be {what}", self.cluster.moves.name_of(kept.to));
        Err(ApiError::new(ErrorCode::Conflict, message).hint(format!("first: brant volume replicate {name} --stop")))
    }

    /// Lets a volume go that another member has taken over. What was written here and is not there is kept with the deleted volume.
    pub(super) async fn step_down(self: &Arc<Self>, name: &Name, home: EndpointId, epoch: u64) -> Result<(), ApiError> {
        if home == self.swarm.endpoint() {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} is said to be here, and is")));
        }
        if !cluster::supersedes(epoch, self.epoch_of(name)?) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} here is later, or another volume")));
        }
        let Some(kept) = self.cluster.mirrors.remove(name) else { return Ok(()) };
        // Whoever uses it here must not go on with a disk that may have been changed elsewhere.
        kept.mirror.abandon(true);
        match self.detach(name.as_str(), true).await {
            Err(error) if error.code == ErrorCode::NotFound => {}
            outcome => drop(outcome?),
        }
        let to = self.cluster.moves.name_of(home);
        let (node, name) = (Arc::clone(self), name.clone());
        blocking(move || {
            let id = node.volumes.get(&name).map(|volume| volume.id());
            let labels = id.map(|id| node.labels.of(id)).unwrap_or_default();
            let note = format!("{to} took over; this is what was here");
            match node.volumes.delete(&name, now_ms(), &note) {
                // It went when this was tried before.
                Err(volume::VolumeError::NotFound(_)) => {}
                outcome => drop(outcome.map_err(volume_error)?),
            }
            let given = GivenRecord { labels, ..GivenRecord::taken_over(home, epoch, now_ms()) };
            let mut changes = vec![
                given.change(format!("{GIVEN}{name}")),
                (format!("{REPLICATE}{name}"), None),
                (format!("{HOME}{name}"), None),
            ];
            // Its schedule goes on where it is now.
            let mut schedules = node.schedules.change();
            changes.extend(id.and_then(|id| schedules.removal(id)));
            let _recording = node.cluster.mirrors.recording();
            node.store.roots().apply(changes).map_err(store_error)?;
            id.into_iter().for_each(|id| schedules.removed(id));
            drop(schedules);
            tracing::warn!(volume = %name, %to, "another member has taken a volume over; see: brant volume list --deleted");
            Ok(())
        })
        .await
    }

    /// Whether a volume of this node is replicated to a member.
    pub(super) fn is_replicated_to(&self, name: &Name, member: EndpointId) -> bool {
        self.cluster.mirrors.get(name).is_some_and(|kept| kept.to == member)
    }
}

//! Replicas of other members' volumes, which are kept here: each in a volume that nobody can attach.
//!
//! Invariant: `replica/VOLUME` says that it is current, or a moment of the volume, only while that is so; what ends it is recorded before it is
//! done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cluster::message::{Refusal, Reply, Settings};
use cluster::{Asked, Position, Replica};
use futures_util::future::BoxFuture;
use store::Origin;
use types::{EndpointId, Name, Progress};
use volume::{BlockDevice, DeviceError, TreeBase, Volume};

use super::home::refusal;
use super::moves::Member;
use super::records::{REPLICA, ReplicaRecord};
use crate::api::{self, ApiError, ErrorCode, TaskKind};
use crate::error::{blocking, not_found, store_error};
use crate::node::Node;
use crate::record::Record as _;
use crate::snapshots::volume_error;

/// What the name of a volume that holds a replica begins with. It is one of this node alone, and nothing else depends on it.
const COPY: &str = "replica.";

/// The replicas that are kept here.
#[derive(Debug, Default)]
pub(crate) struct Replicas(Mutex<BTreeMap<Name, Arc<Kept>>>);

/// A replica.
#[derive(Debug)]
pub(super) struct Kept {
    node: Weak<Node>,
    volume: Name,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: ReplicaRecord,
    /// Up to which change it has come since this process began to follow.
    applied: Option<u64>,
    /// It was promoted or dismissed.
    ended: bool,
}

impl Replicas {
    pub(super) fn kept(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Kept>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, volume: &Name) -> Option<Arc<Kept>> {
        self.kept().get(volume).cloned()
    }

    /// Whether a volume of this node holds a replica, or did so.
    pub(crate) fn holds(&self, name: &Name) -> bool {
        let holds = |record: &ReplicaRecord| record.copy.as_ref() == Some(name) || record.stale.as_ref() == Some(name);
        self.kept().values().any(|kept| holds(&kept.state().record))
    }
}

impl Kept {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self) -> Result<Arc<Node>, ApiError> {
        self.node.upgrade().ok_or_else(|| ApiError::new(ErrorCode::Unreachable, "the node is shutting down"))
    }

    pub(super) fn record(&self) -> ReplicaRecord {
        self.state().record.clone()
    }

    /// Changes the record, durably, before that counts. Blocks.
    fn change(&self, change: impl FnOnce(&mut ReplicaRecord)) -> Result<(), ApiError> {
        let node = self.node()?;
        let mut state = self.state();
        if state.ended {
            return Err(ApiError::new(ErrorCode::Conflict, format!("the replica of {} has ended", self.volume)));
        }
        let mut record = state.record.clone();
        change(&mut record);
        if record != state.record {
            record.write(&*node.store, format!("{REPLICA}{}", self.volume)).map_err(store_error)?;
            state.record = record;
        }
        Ok(())
    }

    /// Keeps it from being changed any more.
    pub(super) fn end(&self) -> ReplicaRecord {
        let mut state = self.state();
        state.ended = true;
        state.record.clone()
    }

    /// Lets it go on after all.
    pub(super) fn revive(&self) {
        self.state().ended = false;
    }

    fn home(&self) -> Result<Member, ApiError> {
        let (node, home) = (self.node()?, self.record().home);
        node.cluster.moves.member(home).ok_or_else(|| not_found("member", home))
    }

    async fn fetch(&self) -> Result<(), ApiError> {
        let node = self.node()?;
        let _hold = node.store.hold();
        // What it has in its journal is known to the store afterwards, and need not come once more.
        let (sealing, copy) = (Arc::clone(&node), self.record().copy);
        if let Some(volume) = copy.and_then(|copy| node.volumes.get(&copy)) {
            // To its end, also where nobody waits for it any more.
            let sealed = tokio::spawn(async move { sealing.seal_replica(&volume).await }).await;
            sealed.map_err(|error| ApiError::new(ErrorCode::Internal, format!("a worker failed: {error}")))??;
        }
        node.fetch_rounds(&self.volume, &self.home()?, &Arc::new(Progress::default())).await
    }

    async fn make(self: &Arc<Self>, line: u64) -> Result<(), ApiError> {
        let node = self.node()?;
        let _hold = node.store.hold();
        let base = node.fetch_offer(&self.volume, &self.home()?, &Arc::new(Progress::default())).await?;
        let kept = Arc::clone(self);
        blocking(move || kept.put_in_place(&node, base, line)).await
    }

    /// Puts a new copy in place of the one before. Blocks.
    fn put_in_place(&self, node: &Node, base: TreeBase, line: u64) -> Result<(), ApiError> {
        self.remove_stale(node)?;
        let name = copy_name()?;
        let mut state = self.state();
        if state.ended {
            return Err(ApiError::new(ErrorCode::Conflict, format!("the replica of {} has ended", self.volume)));
        }
        let record = ReplicaRecord {
            copy: Some(name.clone()),
            line: Some(line),
            current: false,
            consistent: false,
            stale: state.record.copy.clone(),
            ..state.record.clone()
        };
        // All of it has come.
        let base = TreeBase { origin: None::<Origin>, ..base };
        let change = record.change(format!("{REPLICA}{}", self.volume));
        node.volumes.adopt(&name, base, vec![change]).map_err(volume_error)?;
        state.record = record;
        state.applied = None;
        drop(state);
        self.remove_stale(node)
    }

    /// Removes the volume that held it before. Blocks.
    fn remove_stale(&self, node: &Node) -> Result<(), ApiError> {
        let Some(stale) = self.record().stale else { return Ok(()) };
        if node.volumes.get(&stale).is_some() {
            node.volumes.remove(&stale).map_err(volume_error)?;
        }
        self.change(|record| record.stale = None)
    }

    fn copy(&self) -> Result<Arc<Volume>, ApiError> {
        let node = self.node()?;
        let copy = self.record().copy.and_then(|copy| node.volumes.get(&copy));
        copy.ok_or_else(|| not_found("replica of", &self.volume))
    }
}

fn copy_name() -> Result<Name, ApiError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::from_error(ErrorCode::Internal, &error))?;
    let name = format!("{COPY}{:016x}", u64::from_le_bytes(bytes));
    name.parse().map_err(|error: types::NameError| ApiError::from_error(ErrorCode::Internal, &error))
}

fn device_error(error: ApiError) -> DeviceError {
    tracing::error!(%error, "what a replica is could not be recorded");
    DeviceError::Home
}

/// A replica, in the session of a member.
#[derive(Debug)]
struct Following(Arc<Kept>);

impl Replica for Following {
    fn stand(&self, line: Option<u64>) -> Result<Position, Refusal> {
        let record = self.0.record();
        let stands = line.is_some() && record.line == line && self.0.copy().is_ok();
        if !stands {
            self.0.change(|record| record.current = false).map_err(refusal)?;
        }
        Ok(Position { line: record.line.filter(|_| stands), applied: self.0.state().applied })
    }

    fn prefetch(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async { self.0.fetch().await.map_err(refusal) })
    }

    fn begin(&self, line: u64) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move { self.0.make(line).await.map_err(refusal) })
    }

    fn go_on(&self, again: bool) -> Result<Arc<dyn BlockDevice>, Refusal> {
        if again {
            self.0.change(|record| record.consistent = false).map_err(refusal)?;
        }
        self.0.copy().map(|copy| copy as Arc<dyn BlockDevice>).map_err(refusal)
    }

    fn reached(&self, number: u64, consistent: bool) -> Result<(), DeviceError> {
        let known = {
            let mut state = self.0.state();
            state.applied = Some(number);
            state.record.consistent || !consistent
        };
        if known { Ok(()) } else { self.0.change(|record| record.consistent = true).map_err(device_error) }
    }

    fn grow(&self, size_bytes: u64) -> Result<(), DeviceError> {
        let grown = self.0.copy().and_then(|copy| {
            if copy.size_bytes() >= size_bytes {
                return Ok(());
            }
            self.0.node()?.volumes.grow(&copy, size_bytes).map_err(volume_error)
        });
        grown.map_err(device_error)
    }

    fn set(&self, settings: Settings) -> Result<(), DeviceError> {
        self.0.change(|record| record.settings = Some(settings)).map_err(device_error)
    }

    fn set_current(&self, current: bool) -> Result<(), DeviceError> {
        self.0.change(|record| record.current = current).map_err(device_error)
    }
}

impl Node {
    /// Reads the replicas that are kept here, and removes what is left of earlier ones.
    pub(crate) fn open_replicas(self: &Arc<Self>) -> Result<(), ApiError> {
        let damaged = |error| ApiError::from_error(ErrorCode::Damaged, &error);
        for (name, record) in ReplicaRecord::read_all(&*self.store, REPLICA).map_err(damaged)? {
            let Ok(volume) = name.parse::<Name>() else { continue };
            self.keep_replica(&volume, record).remove_stale(self)?;
        }
        Ok(())
    }

    fn keep_replica(self: &Arc<Self>, volume: &Name, record: ReplicaRecord) -> Arc<Kept> {
        let state = State { record, applied: None, ended: false };
        let kept = Arc::new(Kept { node: Arc::downgrade(self), volume: volume.clone(), state: Mutex::new(state) });
        self.cluster.replicas.kept().insert(volume.clone(), Arc::clone(&kept));
        kept
    }

    /// The replica of a member's volume, for the member.
    pub(super) async fn replica(self: &Arc<Self>, member: EndpointId, asked: Asked) -> Result<Arc<dyn Replica>, Reply> {
        let refused = |error: ApiError| Reply::Refused(refusal(error));
        let Asked { volume: name, epoch, terms } = asked;
        if self.volumes.get(&name).is_some() {
            let mine = self.epoch_of(&name).map_err(refused)?;
            if cluster::supersedes(mine, epoch) {
                return Err(Reply::Elsewhere { home: self.swarm.endpoint(), epoch: mine });
            }
            if !cluster::supersedes(epoch, mine) || !self.is_replicated_to(&name, member) {
                let message = format!("a volume {name} is here already, which is another one");
                return Err(refused(ApiError::new(ErrorCode::Conflict, message)));
            }
            // It was taken over while this node was away.
            self.step_down(&name, member, epoch).await.map_err(refused)?;
        }
        if let Some(given) =
            self.given_record(&name).map_err(refused)?.filter(|given| cluster::supersedes(given.epoch, epoch))
        {
            return Err(Reply::Elsewhere { home: given.to, epoch: given.epoch });
        }
        if self.tasks.find_running(TaskKind::Take, name.as_str()).is_some() {
            return Err(refused(ApiError::new(ErrorCode::Conflict, format!("{name} is being taken by this node"))));
        }
        let node = Arc::clone(self);
        let found = blocking(move || node.agree(member, &name, ReplicaRecord::agreed(member, epoch, terms)));
        match found.await.map_err(refused)? {
            Ok(kept) => Ok(Arc::new(Following(kept))),
            Err((home, epoch)) => Err(Reply::Elsewhere { home, epoch }),
        }
    }

    /// Begins with a replica, or goes on with it on the home's terms; or says who the home is. Blocks.
    fn agree(
        self: &Arc<Self>,
        member: EndpointId,
        name: &Name,
        wanted: ReplicaRecord,
    ) -> Result<Result<Arc<Kept>, (EndpointId, u64)>, ApiError> {
        let Some(kept) = self.cluster.replicas.get(name) else {
            wanted.write(&*self.store, format!("{REPLICA}{name}")).map_err(store_error)?;
            return Ok(Ok(self.keep_replica(name, wanted)));
        };
        let record = kept.record();
        let same = record.home == member && record.epoch == wanted.epoch;
        if cluster::supersedes(record.epoch, wanted.epoch) {
            return Ok(Err((record.home, record.epoch)));
        }
        // A home that has made it anew lets go of what it had before.
        let is_later =
            cluster::supersedes(wanted.epoch, record.epoch) || (record.home == member && wanted.epoch > record.epoch);
        if !is_later && !same {
            let home = self.cluster.moves.name_of(record.home);
            let message = format!("a replica of another volume {name} is kept here, which is at {home}");
            return Err(ApiError::new(ErrorCode::Conflict, message));
        }
        kept.change(|record| {
            (record.home, record.epoch, record.terms) = (wanted.home, wanted.epoch, wanted.terms);
            if !same {
                (record.current, record.line) = (false, None);
            }
        })?;
        Ok(Ok(kept))
    }

    /// Has what a replica has in its journal known to the store.
    async fn seal_replica(self: &Arc<Self>, volume: &Arc<Volume>) -> Result<(), ApiError> {
        let (node, freezing) = (Arc::clone(self), Arc::clone(volume));
        let frozen = blocking(move || {
            let frozen = node.volumes.freeze(std::slice::from_ref(&freezing), |_| Vec::new()).map_err(volume_error)?;
            Ok(frozen.first().map(|disk| disk.id()))
        })
        .await?;
        let Some(frozen) = frozen else { return Ok(()) };
        let sealed = self.volumes.seal(frozen, &Progress::default()).await.map_err(volume_error);
        let node = Arc::clone(self);
        blocking(move || node.volumes.forget_frozen(frozen).map_err(volume_error)).await?;
        sealed.map(drop)
    }

    /// Where a volume is in a later epoch than one, as far as this node knows: whoever believes to be its home is not any more.
    fn later_home(&self, name: &Name, epoch: u64) -> Result<Option<Reply>, ApiError> {
        let is_here = self.volumes.get(name).is_some() && !self.cluster.replicas.holds(name);
        let here = if is_here { Some((self.swarm.endpoint(), self.epoch_of(name)?)) } else { None };
        let given = self.given_record(name)?.map(|given| (given.to, given.epoch));
        let latest = here.into_iter().chain(given).max_by_key(|(_, epoch)| *epoch);
        Ok(latest
            .filter(|(_, later)| cluster::supersedes(*later, epoch))
            .map(|(home, epoch)| Reply::Elsewhere { home, epoch }))
    }

    /// Records that a replica is left behind, as its home says; or says who the home is by now. Blocks.
    pub(super) fn outdate_replica(&self, member: EndpointId, name: &Name, epoch: u64) -> Result<Reply, ApiError> {
        match self.cluster.replicas.get(name) {
            Some(kept) if self.is_of(&kept, member, epoch) => {
                kept.change(|record| record.current = false).map(|()| Reply::Settled)
            }
            _ => Ok(self.later_home(name, epoch)?.unwrap_or(Reply::Settled)),
        }
    }

    fn is_of(&self, kept: &Kept, member: EndpointId, epoch: u64) -> bool {
        let record = kept.record();
        record.home == member && record.epoch <= epoch
    }

    /// Lets a replica go, as its home says; or says who the home is by now. Blocks.
    pub(super) fn dismiss_replica(&self, member: EndpointId, name: &Name, epoch: u64) -> Result<Reply, ApiError> {
        match self.cluster.replicas.get(name) {
            Some(kept) if self.is_of(&kept, member, epoch) => self.drop_replica(name).map(|()| Reply::Settled),
            _ => Ok(self.later_home(name, epoch)?.unwrap_or(Reply::Settled)),
        }
    }

    /// Lets a replica go. Blocks.
    pub(super) fn drop_replica(&self, name: &Name) -> Result<(), ApiError> {
        let Some(kept) = self.cluster.replicas.get(name) else { return Ok(()) };
        kept.remove_stale(self)?;
        kept.change(|record| {
            (record.current, record.consistent, record.line) = (false, false, None);
            record.stale = record.copy.take();
        })?;
        kept.remove_stale(self)?;
        let _record = kept.end();
        self.store.roots().apply(vec![(format!("{REPLICA}{name}"), None)]).map_err(store_error)?;
        self.forget_replica(name);
        Ok(())
    }

    pub(super) fn forget_replica(&self, name: &Name) {
        self.cluster.replicas.kept().remove(name);
    }

    /// Lets a replica go whose volume the operator does not want any more.
    pub(crate) async fn remove_replica(self: &Arc<Self>, name: &Name) -> Result<api::Replica, ApiError> {
        let shown = self.list_replicas().into_iter().find(|replica| replica.volume == *name);
        let shown = shown.ok_or_else(|| not_found("replica of", name).hint("see: brant volume replicas"))?;
        let (node, name) = (Arc::clone(self), name.clone());
        blocking(move || node.drop_replica(&name)).await?;
        Ok(shown)
    }

    /// The size of a volume of which a replica is kept here, in bytes.
    pub(super) fn replica_size(&self, name: &Name) -> Option<u64> {
        self.cluster.replicas.get(name)?.copy().ok().map(|copy| copy.size_bytes())
    }

    /// The replicas that are kept here.
    pub(crate) fn list_replicas(&self) -> Vec<api::Replica> {
        let kept: Vec<_> =
            self.cluster.replicas.kept().iter().map(|(name, kept)| (name.clone(), kept.record())).collect();
        let show = |(volume, record): (Name, ReplicaRecord)| api::Replica {
            size_bytes: record.copy.as_ref().and_then(|copy| self.volumes.get(copy)).map(|copy| copy.size_bytes()),
            volume,
            home: self.cluster.moves.name_of(record.home),
            mode: api::ReplicationMode::of(record.terms.sync),
            witness: record.terms.witness.map(|witness| self.cluster.moves.name_of(witness)),
            current: record.current && record.consistent,
        };
        kept.into_iter().map(show).collect()
    }
}

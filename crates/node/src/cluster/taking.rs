//! Taking a volume from another member, while it is used here and where nobody uses it there any more.
//!
//! The steps: (1) `taking/VOLUME` says that it is meant. (2) The home makes a snapshot, all of it is fetched, and again, until little
//! changes meanwhile. (3) Changes are held here, and the home gives the volume up in one step, durably, with what was written last. (4)
//! This node makes a volume of that in one step with `home/VOLUME`, and goes on with the changes. (5) The rest is fetched, the
//! home told that it may let go, and the volume stands alone.
//!
//! Whoever dies between (3) and (4) finds `taking/VOLUME` at its next start and asks again; the home answers the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::message::{Given, Offered, Replicate, Reply, Request};
use store::{Domain, Origin};
use tokio::time::timeout;
use types::{EndpointId, Name, Progress, SnapshotId};
use volume::{TreeBase, Volume};

use super::asked;
use super::find::Location;
use super::moves::Member;
use super::records::{ArrivingRecord, GIVEN, HOME, HomeRecord, REPLICATE, ReplicateRecord, TAKING, TakingRecord};
use crate::api::{ApiError, ErrorCode, Task, TaskKind};
use crate::error::{blocking, store_error};
use crate::node::Node;
use crate::record::{AttachmentRecord, OriginRecord, Record as _};
use crate::snapshots::volume_error;
use crate::task::Outcome;

/// How many snapshots are fetched before the last one.
const ROUNDS: usize = 5;

/// A round that took no longer is the last one: what was written meanwhile is little.
const QUICK: Duration = Duration::from_millis(500);

/// How long the home may take to make a snapshot: as long as to seal what was written.
const OFFER: Duration = Duration::from_hours(1);

/// How long the home may take to give the volume, while changes are held here.
const GIVE: Duration = Duration::from_secs(30);

/// How long changes under way may take before it is given up for now.
const HOLD: Duration = Duration::from_secs(10);

/// How soon it is tried again, at first and at last.
const AGAIN: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

impl Node {
    /// Begins to take a volume from the member that has it, or finds that this is under way.
    pub(crate) async fn start_take(self: &Arc<Self>, name: &Name) -> Result<Task, ApiError> {
        if let Some(task) = self.tasks.find_running(TaskKind::Take, name.as_str()) {
            return Ok(task);
        }
        if self.volumes.get(name).is_none() {
            match self.locate(name).await {
                Location::Mine { .. } => {}
                location => drop(self.home_at(location, name)?),
            }
        }
        let (node, taking) = (Arc::clone(self), name.clone());
        let work = |progress| async move { node.take(&taking, progress).await };
        self.tasks.start(TaskKind::Take, name.to_string(), work).await
    }

    /// Goes on with what was being taken when the node stopped.
    pub(crate) async fn resume_taking(self: &Arc<Self>, tasks: Vec<Task>) -> Result<(), ApiError> {
        let mut unfinished = self.unfinished()?;
        for task in tasks {
            match task.subject.parse::<Name>().ok().filter(|name| unfinished.remove(name)) {
                None => self.tasks.interrupted(task).await?,
                // Whoever uses it here has begun it anew.
                Some(name) if self.tasks.find_running(TaskKind::Take, name.as_str()).is_some() => {
                    self.tasks.interrupted(task).await?;
                }
                Some(name) => {
                    let node = Arc::clone(self);
                    self.tasks.resume(task, |progress| async move { node.take(&name, progress).await });
                }
            }
        }
        let node = Arc::clone(self);
        self.spawn(async move {
            for name in unfinished {
                if let Err(error) = node.go_on_taking(&name).await {
                    tracing::warn!(%error, volume = %name, "a volume that was meant to be taken is let be");
                }
            }
        });
        Ok(())
    }

    /// Goes on with a move of which there is no task any more: it was cancelled, or the catalog is lost. One that was not decided yet is
    /// let be.
    async fn go_on_taking(self: &Arc<Self>, name: &Name) -> Result<(), ApiError> {
        let is_here = self.volumes.get(name).is_some();
        if !is_here && matches!(self.locate(name).await, Location::At { .. } | Location::Nowhere) {
            return self.forget_taking(name).await;
        }
        let (node, taking) = (Arc::clone(self), name.clone());
        let work = |progress| async move { node.take(&taking, progress).await };
        self.tasks.start(TaskKind::Take, name.to_string(), work).await.map(drop)
    }

    fn unfinished(&self) -> Result<BTreeSet<Name>, ApiError> {
        let damaged = |error: crate::record::RecordError| ApiError::from_error(ErrorCode::Damaged, &error);
        let taking = TakingRecord::read_all(&*self.store, TAKING).map_err(damaged)?;
        let homes = HomeRecord::read_all(&*self.store, HOME).map_err(damaged)?;
        let arriving = homes.into_iter().filter(|(_, home)| home.arriving.is_some()).map(|(name, _)| name);
        Ok(taking.into_iter().map(|(name, _)| name).chain(arriving).filter_map(|name| name.parse().ok()).collect())
    }

    async fn take(self: &Arc<Self>, name: &Name, progress: Arc<Progress>) -> Outcome {
        // What is fetched is kept until the volume refers to it.
        let _hold = self.store.hold();
        let mut wait = AGAIN[0];
        while let Err(error) = self.take_or_go_on(name, &progress).await {
            if !matches!(error.code, ErrorCode::Unreachable | ErrorCode::Conflict) {
                return Err(error);
            }
            if wait == AGAIN[0] {
                tracing::info!(volume = %name, why = %error, "a volume cannot be taken yet");
            }
            progress.check().map_err(|_| ApiError::new(ErrorCode::Cancelled, "cancelled"))?;
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN[1]);
        }
        let volume = self.find_volume(name)?;
        if volume.born_ms().is_some() && self.means_to_take(name)? {
            self.forget_taking(name).await?;
            let message = format!("a volume {name} was made here while another one of that name was taken");
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .hint("give it another name, or remove it, and take the other"));
        }
        self.finish_arrival(&volume, &progress).await?;
        Ok(format!("{name} is here"))
    }

    async fn take_or_go_on(self: &Arc<Self>, name: &Name, progress: &Arc<Progress>) -> Result<(), ApiError> {
        if self.volumes.get(name).is_none() {
            return self.take_once(name, progress).await;
        }
        // Where it was made of what was given, and the node stopped before what was set for it was, that is asked for again.
        let arriving = self.home_record(name)?.and_then(|home| home.arriving);
        match arriving.and_then(|arriving| self.cluster.moves.member(arriving.from)) {
            Some(from) if self.means_to_take(name)? => match self.receive(name, &from, true).await {
                // Who gave it has forgotten it: it is what it is.
                Err(error) if error.code == ErrorCode::NotFound => self.forget_taking(name).await,
                outcome => outcome,
            },
            _ => Ok(()),
        }
    }

    async fn take_once(self: &Arc<Self>, name: &Name, progress: &Arc<Progress>) -> Result<(), ApiError> {
        let (from, decided) = match self.locate(name).await {
            Location::Mine { from } => (from, true),
            location => {
                if let Location::At { epoch, .. } = &location
                    && let Some(kept) = self.cluster.replicas.get(name).filter(|kept| kept.record().epoch > *epoch)
                {
                    // Before it is given: what is kept here is let go when it has come.
                    return Err(self.is_kept_later(name, kept.record().home));
                }
                let (home, _) = location.home(name)?;
                self.begin_taking(name, home.endpoint).await?;
                self.fetch_rounds(name, &home, progress).await?;
                (home, false)
            }
        };
        // Decided at the home: it is not given up half way.
        let (node, name) = (Arc::clone(self), name.clone());
        let receiving = tokio::spawn(async move { node.receive(&name, &from, decided).await });
        receiving.await.map_err(|error| ApiError::new(ErrorCode::Internal, format!("a worker failed: {error}")))?
    }

    /// What is at a member is not what would be lost here for it.
    fn is_kept_later(&self, name: &Name, home: EndpointId) -> ApiError {
        let home = self.cluster.moves.name_of(home);
        let message = format!("a replica is kept here of {name} as it was at {home} later");
        let hint =
            format!("brant volume promote {name}; or, if nobody needs it: brant volume replicas --remove {name}");
        ApiError::new(ErrorCode::Invalid, message).hint(hint)
    }

    async fn begin_taking(self: &Arc<Self>, name: &Name, from: EndpointId) -> Result<(), ApiError> {
        let (node, key) = (Arc::clone(self), format!("{TAKING}{name}"));
        blocking(move || TakingRecord { from }.write(&*node.store, key).map_err(store_error)).await
    }

    /// Records that a volume is not meant to be taken any more.
    pub(crate) async fn forget_taking(self: &Arc<Self>, name: &Name) -> Result<(), ApiError> {
        if !self.means_to_take(name)? {
            return Ok(());
        }
        let (node, key) = (Arc::clone(self), format!("{TAKING}{name}"));
        blocking(move || node.store.roots().apply(vec![(key, None)]).map_err(store_error)).await
    }

    /// Fetches what the volume is, and what it has become meanwhile, until that is little.
    pub(super) async fn fetch_rounds(
        &self,
        name: &Name,
        home: &Member,
        progress: &Arc<Progress>,
    ) -> Result<(), ApiError> {
        for round in 0..ROUNDS {
            let begun = Instant::now();
            let later = Arc::default();
            self.fetch_offer(name, home, if round == 0 { progress } else { &later }).await?;
            tracing::debug!(volume = %name, round, took = ?begun.elapsed(), "a round of a move");
            if begun.elapsed() < QUICK {
                break;
            }
        }
        Ok(())
    }

    /// Fetches all of what the volume is now.
    pub(super) async fn fetch_offer(
        &self,
        name: &Name,
        home: &Member,
        progress: &Arc<Progress>,
    ) -> Result<TreeBase, ApiError> {
        let request = Request::Offer { volume: name.clone() };
        let reply = self.cluster.peers.ask(home.endpoint, &request, OFFER).await;
        let Reply::Offered(offered) = reply.map_err(|error| asked(error, &home.name))? else {
            return Err(asked(cluster::AskError::Unexpected, &home.name));
        };
        let base = self.arriving_base(name, &offered)?;
        self.cluster.moves.source(offered.snapshot, Some(home.endpoint));
        let fetched = self.hydrate_tree(&base, progress).await;
        self.cluster.moves.source(offered.snapshot, None);
        fetched.map(|()| base)
    }

    /// The tree of a volume that comes here.
    fn arriving_base(&self, name: &Name, offered: &Offered) -> Result<TreeBase, ApiError> {
        let domain = if offered.foreign { self.domains.of_volume(name)? } else { Domain::OWN };
        Ok(TreeBase {
            size_bytes: offered.size_bytes,
            root: offered.root,
            origin: Some(Origin { snapshot: offered.snapshot, disk: 0 }),
            domains: domain.into(),
            written: domain,
        })
    }

    /// Holds changes, has the home give the volume, and goes on with it here. Where the home has given it before, there is nothing to
    /// hold: nobody answers what is under way, until it is made again here.
    async fn receive(self: &Arc<Self>, name: &Name, from: &Member, decided: bool) -> Result<(), ApiError> {
        let busy = |_| ApiError::new(ErrorCode::Unreachable, format!("requests to {name} take too long"));
        let used = self.cluster.uses.get(name);
        let switching = match &used {
            Some(used) if !decided => {
                let switching = timeout(HOLD, used.placed.hold()).await.map_err(busy)?;
                timeout(HOLD, used.remote.drain()).await.map_err(busy)?;
                Some(switching)
            }
            _ => None,
        };
        let request = Request::Give { volume: name.clone() };
        let reply = self.cluster.peers.ask(from.endpoint, &request, GIVE).await;
        let Reply::Given(given) = reply.map_err(|error| asked(error, &from.name))? else {
            return Err(asked(cluster::AskError::Unexpected, &from.name));
        };
        let (node, adopting, endpoint) = (Arc::clone(self), name.clone(), from.endpoint);
        let volume = blocking(move || node.adopt(&adopting, endpoint, *given)).await?;
        if let Some(used) = used {
            match switching {
                Some(switching) => {
                    switching.to(volume);
                    used.remote.close();
                }
                None => used.placed.replace(&used.remote, volume).await,
            }
            self.cluster.uses.remove(name);
            let (node, target) = (Arc::clone(self), name.to_string());
            blocking(move || node.attachment_is_here(&target)).await?;
        }
        tracing::info!(volume = %name, from = %from.name, "a volume was taken");
        Ok(())
    }

    /// Makes a volume of what was given. Blocks.
    fn adopt(self: &Arc<Self>, name: &Name, from: EndpointId, given: Given) -> Result<Arc<Volume>, ApiError> {
        if let Some(kept) = self.cluster.replicas.get(name).filter(|kept| kept.record().epoch >= given.epoch) {
            return Err(self.is_kept_later(name, kept.record().home));
        }
        let base = self.arriving_base(name, &given.content)?;
        let origin = given.origin.map(|place| OriginRecord { snapshot: place.snapshot, disk: place.disk });
        let snapshot = given.content.snapshot;
        let arriving = Some(ArrivingRecord { from, snapshot, origin });
        let home = HomeRecord { epoch: given.epoch, arriving, since: Some(given.since).filter(|since| *since > 0) };
        self.cluster.moves.source(snapshot, Some(from));
        let mut further = vec![home.change(format!("{HOME}{name}")), (format!("{GIVEN}{name}"), None)];
        // Who kept the replica is the home now: the two change places.
        let replicate = given.replicate.map(|Replicate { to, terms }| {
            let to = if to == self.swarm.endpoint() { from } else { to };
            ReplicateRecord::new(to, terms, false)
        });
        further.extend(replicate.map(|record| record.change(format!("{REPLICATE}{name}"))));
        let volume = match self.volumes.get(name) {
            // It was begun with before. Anything else of the name has come in between.
            Some(volume) if self.is_arriving(name, snapshot)? => volume,
            Some(_) => {
                let message = format!("a volume {name} was made here while another one of that name was taken");
                return Err(ApiError::new(ErrorCode::Conflict, message).hint("remove it, or give it another name"));
            }
            None => {
                self.drop_replica(name)?;
                self.volumes.adopt(name, base, further).map_err(volume_error)?
            }
        };
        self.cluster.moves.give(name, None);
        self.settle_in(&volume, given.settings)?;
        self.store.roots().apply(vec![(format!("{TAKING}{name}"), None)]).map_err(store_error)?;
        if let Some(record) = replicate.filter(|_| self.cluster.mirrors.mirror(name).is_none()) {
            self.begin_mirror(&volume, record);
        }
        Ok(volume)
    }

    /// Whether a volume that is here is what was given as a snapshot.
    fn is_arriving(&self, name: &Name, snapshot: SnapshotId) -> Result<bool, ApiError> {
        let arriving = self.home_record(name)?.and_then(|home| home.arriving);
        Ok(arriving.is_some_and(|arriving| arriving.snapshot == snapshot))
    }

    /// Says in the record of an attachment that its volume is here. Blocks.
    pub(super) fn attachment_is_here(&self, target: &str) -> Result<(), ApiError> {
        let _records = self.attachments.records();
        let key = crate::attachments::record_name(target);
        let damaged = |error| ApiError::from_error(ErrorCode::Damaged, &error);
        let record = AttachmentRecord::read(&*self.store, key.clone()).map_err(damaged)?;
        let Some(record) = record.filter(|record| record.remote.is_some()) else { return Ok(()) };
        AttachmentRecord { remote: None, ..record }.write(&*self.store, key).map_err(store_error)
    }

    /// Lets what is still elsewhere of a volume be, as the volume is about to be removed; whoever has it is told.
    pub(crate) async fn forget_arrival(self: &Arc<Self>, name: &Name) -> Result<(), ApiError> {
        let Some(HomeRecord { epoch, arriving: Some(arriving), since }) = self.home_record(name)? else {
            return Ok(());
        };
        if let Some(task) = self.tasks.find_running(TaskKind::Take, name.as_str()) {
            self.tasks.cancel(task.id).await?;
        }
        let (node, key) = (Arc::clone(self), format!("{HOME}{name}"));
        let arrived = HomeRecord { epoch, arriving: None, since };
        blocking(move || arrived.write(&*node.store, key).map_err(store_error)).await?;
        self.cluster.moves.source(arriving.snapshot, None);
        let (node, settle) = (Arc::clone(self), Request::Settle { volume: name.clone(), epoch });
        self.spawn(async move { node.tell_settled(arriving.from, &settle).await });
        Ok(())
    }

    /// Tells a member that it may let go of what it gave, for as long as it is a member and does not hear.
    async fn tell_settled(&self, member: EndpointId, settle: &Request) {
        let mut wait = AGAIN[0];
        while let Err(error) = self.cluster.peers.ask(member, settle, HOLD).await {
            if self.cluster.moves.member(member).is_none() {
                return;
            }
            tracing::debug!(%error, ?settle, "who gave a volume could not be told that it has come");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN[1]);
        }
    }

    /// Fetches what of a volume is still elsewhere, and tells the member that gave it.
    async fn finish_arrival(self: &Arc<Self>, volume: &Arc<Volume>, progress: &Arc<Progress>) -> Result<(), ApiError> {
        let name = volume.name().clone();
        let Some(home) = self.home_record(&name)? else { return Ok(()) };
        let Some(arriving) = home.arriving else { return Ok(()) };
        self.cluster.moves.source(arriving.snapshot, Some(arriving.from));
        let base = TreeBase { origin: Some(Origin { snapshot: arriving.snapshot, disk: 0 }), ..volume.status().base };
        self.hydrate_tree(&base, progress).await?;
        let settle = Request::Settle { volume: name.clone(), epoch: home.epoch };
        self.tell_settled(arriving.from, &settle).await;
        let (node, volume) = (Arc::clone(self), Arc::clone(volume));
        blocking(move || {
            let settled = HomeRecord { arriving: None, ..home }.change(format!("{HOME}{name}"));
            let origin = arriving.origin.map(Origin::from);
            node.volumes.set_origin(&volume, origin, vec![settled]).map_err(volume_error)?;
            node.cluster.moves.source(arriving.snapshot, None);
            Ok(())
        })
        .await
    }
}

//! Giving a volume to another member: snapshots for it alone, and the step in which it becomes the home.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use cluster::message::{Given, Offered, Place, Replicate};
use store::{Domain, Domains};
use types::{EndpointId, FrozenId, Name, Progress};
use volume::{TreeBase, Volume};

use super::find::Location;
use super::records::{
    ContentRecord, GIVEN, GivenRecord, HOME, HomeRecord, OFFER, OfferRecord, REPLICATE, TAKING, offer_name,
};
use crate::api::{ApiError, ErrorCode, TaskKind};
use crate::error::{blocking, not_found, store_error};
use crate::node::Node;
use crate::record::{DiskRecord, OriginRecord, Record, SnapshotRecord};
use crate::snapshots::volume_error;
use crate::task::now_ms;
use crate::version::store_manifest;

/// How long an offer is kept at least, in milliseconds: a day. Longer ones go at a start of the node.
const OFFERED_MS: u64 = 24 * 3_600_000;

/// How often it is tried to find a moment in which nobody writes.
const TRIES: usize = 3;

/// The volumes of which a snapshot is made for somebody, or that are being given: one at a time each.
#[derive(Debug, Default)]
pub(super) struct Giving(Mutex<BTreeSet<Name>>);

/// That one of them is; dropped when it is done.
struct Turn<'g> {
    giving: &'g Giving,
    name: Name,
}

impl Giving {
    fn enter(&self, name: &Name) -> Result<Turn<'_>, ApiError> {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
            return Ok(Turn { giving: self, name: name.clone() });
        }
        Err(ApiError::new(ErrorCode::Conflict, format!("{name} is being prepared for another member"))
            .hint("try again in a moment"))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.giving.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

fn record_error(error: &crate::record::RecordError) -> ApiError {
    ApiError::from_error(ErrorCode::Damaged, error)
}

impl Node {
    /// The record of a volume that came from elsewhere. One that was left by an earlier volume of the name does not count.
    pub(super) fn home_record(&self, volume: &Name) -> Result<Option<HomeRecord>, ApiError> {
        if self.volumes.get(volume).is_some_and(|volume| volume.born_ms().is_some()) {
            return Ok(None);
        }
        HomeRecord::read(&*self.store, format!("{HOME}{volume}")).map_err(|error| record_error(&error))
    }

    /// The epoch from which on whoever uses a volume has seen nothing that it lacks: of an earlier volume of the name, everything.
    pub(super) fn since_of(&self, name: &Name) -> Result<Option<u64>, ApiError> {
        if self.volumes.get(name).is_some_and(|volume| volume.born_ms().is_some()) {
            return self.epoch_of(name).map(Some);
        }
        Ok(self.home_record(name)?.and_then(|home| home.since))
    }

    /// The record of a volume that was given away.
    pub(super) fn given_record(&self, volume: &Name) -> Result<Option<GivenRecord>, ApiError> {
        GivenRecord::read(&*self.store, format!("{GIVEN}{volume}")).map_err(|error| record_error(&error))
    }

    /// An error where a volume of this name was given away and is still there: there must not be two.
    pub(crate) async fn check_not_given(self: &Arc<Self>, name: &Name) -> Result<(), ApiError> {
        if self.tasks.find_running(TaskKind::Take, name.as_str()).is_some() {
            return Err(ApiError::new(ErrorCode::Conflict, format!("the volume {name} is being taken by this node"))
                .hint("choose another name, or see: brant task list"));
        }
        let Some(given) = self.given_record(name)? else { return Ok(()) };
        let to = self.cluster.moves.name_of(given.to);
        match self.locate(name).await {
            Location::Nowhere => {
                let (node, key) = (Arc::clone(self), format!("{GIVEN}{name}"));
                blocking(move || node.store.roots().apply(vec![(key, None)]).map_err(store_error)).await
            }
            Location::At { home, .. } => {
                Err(ApiError::new(ErrorCode::Conflict, format!("the volume {name} is at {}", home.name))
                    .hint(format!("choose another name, or have it here: brant volume take {name}")))
            }
            Location::Mine { .. } | Location::Unknown(_) => {
                Err(ApiError::new(ErrorCode::Conflict, format!("the volume {name} was given to {to}"))
                    .hint("choose another name, or see that all members can be reached: brant cluster show"))
            }
        }
    }

    /// Lets go of offers that were not finished when the node stopped, and of those that nobody can need any more.
    pub(super) async fn drop_unfinished_offers(self: &Arc<Self>) -> Result<(), ApiError> {
        let node = Arc::clone(self);
        blocking(move || {
            let offers = OfferRecord::read_all(&*node.store, OFFER).map_err(|error| record_error(&error))?;
            let outdated = now_ms().saturating_sub(OFFERED_MS);
            for (place, offer) in offers {
                // Those that say no member are of a version before this one.
                if offer.frozen.is_some() || offer.at_ms < outdated || !place.contains('/') {
                    node.forget_offer(format!("{OFFER}{place}"), offer.frozen)?;
                }
            }
            node.cluster.moves.read(&*node.store).map_err(|error| record_error(&error))
        })
        .await
    }

    /// Lets go of an offer. Blocks.
    fn forget_offer(&self, name: String, frozen: Option<FrozenId>) -> Result<(), ApiError> {
        if let Some(frozen) = frozen
            && self.volumes.frozen(frozen).is_some()
        {
            self.volumes.forget_frozen(frozen).map_err(volume_error)?;
        }
        self.store.roots().apply(vec![(name, None)]).map_err(store_error)
    }

    /// Makes a snapshot of a volume that one member may fetch, in place of the one that it had before.
    pub(super) async fn offer(self: &Arc<Self>, to: EndpointId, name: &Name) -> Result<Offered, ApiError> {
        let _place = self.cluster.giving.enter(name)?;
        let volume = self.find_volume(name)?;
        self.check_arrived(name)?;
        // Until a record refers to what is stored.
        let _hold = self.store.hold();
        let (frozen, content) = self.make_offer(&volume, to).await?;
        let offered = offered(&content);
        let (node, name) = (Arc::clone(self), name.clone());
        blocking(move || {
            let record = OfferRecord { to, frozen: None, content: Some(content.clone()), at_ms: now_ms() };
            record.write(&*node.store, offer_name(&name, to)).map_err(store_error)?;
            node.cluster.moves.offer(&name, to, Some(content));
            node.volumes.forget_frozen(frozen).map_err(volume_error)
        })
        .await?;
        Ok(offered)
    }

    /// Freezes and seals a volume, and makes a manifest of it, which nothing refers to yet. The record names the frozen disk until it is let
    /// go.
    async fn make_offer(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
        to: EndpointId,
    ) -> Result<(FrozenId, ContentRecord), ApiError> {
        let (node, freezing) = (Arc::clone(self), Arc::clone(volume));
        let frozen = blocking(move || {
            let key = offer_name(freezing.name(), to);
            let before = OfferRecord::read(&*node.store, key.clone()).map_err(|error| record_error(&error))?;
            if let Some(frozen) = before.and_then(|offer| offer.frozen) {
                node.forget_offer(key.clone(), Some(frozen))?;
            }
            let record = |ids: &[FrozenId]| {
                let offer = OfferRecord { to, frozen: ids.first().copied(), content: None, at_ms: now_ms() };
                vec![offer.change(key)]
            };
            let frozen = node.volumes.freeze(std::slice::from_ref(&freezing), record).map_err(volume_error)?;
            frozen.first().map(|disk| disk.id()).ok_or_else(|| ApiError::new(ErrorCode::Internal, "nothing was frozen"))
        })
        .await?;
        let sealed = self.volumes.seal(frozen, &Progress::default()).await.map_err(volume_error)?;
        let (node, name) = (Arc::clone(self), volume.name().clone());
        let content = blocking(move || node.store_manifest(name, &sealed)).await?;
        Ok((frozen, content))
    }

    fn store_manifest(&self, name: Name, sealed: &TreeBase) -> Result<ContentRecord, ApiError> {
        let domains = sealed.domains.with(&Domains::from(sealed.written));
        let origin = sealed.origin.map(OriginRecord::from);
        let (size_bytes, root) = (sealed.size_bytes, sealed.root);
        let record = SnapshotRecord {
            taken_ms: now_ms(),
            message: String::new(),
            disks: vec![DiskRecord { name, size_bytes, frozen: None, root, origin }],
            domains: domains.iter().map(|domain| domain.0).collect(),
            base: sealed.origin.map(|origin| origin.snapshot),
            snapshot: None,
            machine: None,
            scheduled: None,
        };
        let snapshot = store_manifest(&*self.store, &record)?;
        Ok(ContentRecord { snapshot, size_bytes, root, domains: record.domains, origin })
    }

    /// An error while a volume is still coming here: whoever takes it would have to ask two members.
    fn check_arrived(&self, name: &Name) -> Result<(), ApiError> {
        match self.home_record(name)?.and_then(|record| record.arriving) {
            None => Ok(()),
            Some(arriving) => {
                let from = self.cluster.moves.name_of(arriving.from);
                Err(ApiError::new(ErrorCode::Conflict, format!("{name} is still arriving from {from}"))
                    .hint("wait until it is there; brant task list shows how far it is"))
            }
        }
    }

    /// Makes a member the home of a volume, if nobody uses it here. Asked again, it answers again.
    pub(super) async fn give(self: &Arc<Self>, to: EndpointId, name: &Name) -> Result<Given, ApiError> {
        let _place = self.cluster.giving.enter(name)?;
        let Some(volume) = self.volumes.get(name) else {
            return match self.given_record(name)? {
                Some(given) if given.to == to => given_reply(&given).ok_or_else(|| not_found("volume", name)),
                _ => Err(not_found("volume", name)),
            };
        };
        self.check_arrived(name)?;
        if self.attachments.find(name.as_str()).is_some() {
            match self.detach(name.as_str(), false).await {
                // Whoever drives the node was faster.
                Err(error) if error.code == ErrorCode::NotFound => {}
                outcome => drop(outcome?),
            }
        }
        let left = self.leave_replica(name).await?;
        let given = self.give_now(to, &volume, left.map(|left| Replicate { to: left.to, terms: left.terms })).await;
        if let (Err(_), Some(left)) = (&given, left) {
            // It was left behind for nothing.
            self.begin_mirror(&volume, left);
        }
        given
    }

    async fn give_now(
        self: &Arc<Self>,
        to: EndpointId,
        volume: &Arc<Volume>,
        replicate: Option<Replicate>,
    ) -> Result<Given, ApiError> {
        let name = volume.name();
        // Until a record refers to what is stored.
        let _hold = self.store.hold();
        for _ in 0..TRIES {
            let (frozen, content) = self.make_offer(volume, to).await?;
            let (node, giving) = (Arc::clone(self), Arc::clone(volume));
            if let Some(given) = blocking(move || node.give_up(&giving, frozen, to, content, replicate)).await? {
                tracing::info!(volume = %name, to = %self.cluster.moves.name_of(to), epoch = given.epoch, "a volume was given");
                return given_reply(&given).ok_or_else(|| not_found("volume", name));
            }
        }
        Err(ApiError::new(ErrorCode::Conflict, format!("{name} is being written to"))
            .hint("stop whoever writes to it there; it is tried again"))
    }

    /// Gives a volume up, if it is still what was frozen of it. Blocks.
    fn give_up(
        &self,
        volume: &Arc<Volume>,
        frozen: FrozenId,
        to: EndpointId,
        content: ContentRecord,
        replicate: Option<Replicate>,
    ) -> Result<Option<GivenRecord>, ApiError> {
        let name = volume.name();
        // Somebody may have attached it since it was looked for.
        if self.attachments.find(name.as_str()).is_some() {
            self.forget_offer(offer_name(name, to), Some(frozen))?;
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} is attached again")));
        }
        let epoch = self.epoch_of(name)? + 1;
        let since = self.since_of(name)?;
        let (labels, protection) = (self.labels.of(volume.id()), self.settings_of(volume).protection);
        let mut schedules = self.schedules.change();
        let (schedule, at_ms) = (schedules.of(volume.id()), now_ms());
        let given = GivenRecord {
            to,
            epoch,
            content: Some(content.clone()),
            labels,
            settled: false,
            at_ms,
            schedule,
            replicate,
            since,
            protection,
        };
        let mut further = vec![
            given.change(format!("{GIVEN}{name}")),
            // Those of others stay for a while: who has begun to fetch one ends with it, and hears then where the volume is.
            (offer_name(name, to), None),
            (format!("{TAKING}{name}"), None),
            (format!("{HOME}{name}"), None),
            (format!("{REPLICATE}{name}"), None),
        ];
        // It goes with the volume: what is taken back here is a copy.
        further.extend(schedules.removal(volume.id()));
        let note = format!("given to {}", self.cluster.moves.name_of(to));
        let given_up = self.volumes.give_up(volume, frozen, at_ms, &note, further).map_err(volume_error)?;
        if given_up.is_none() {
            self.forget_offer(offer_name(name, to), Some(frozen))?;
            return Ok(None);
        }
        schedules.removed(volume.id());
        drop(schedules);
        self.cluster.moves.offer(name, to, None);
        self.cluster.moves.give(name, Some((to, content)));
        // The tree is kept by the record; where this fails, the disk stays, which takes room for its journal only.
        if let Err(error) = self.volumes.forget_frozen(frozen) {
            tracing::warn!(%error, volume = %name, "a frozen disk stays");
        }
        Ok(Some(given))
    }

    /// Notes that everything of a volume has come to the member that it was given to.
    pub(super) async fn settle(self: &Arc<Self>, to: EndpointId, name: &Name, epoch: u64) -> Result<(), ApiError> {
        let (node, name) = (Arc::clone(self), name.clone());
        blocking(move || {
            let Some(given) = node.given_record(&name)?.filter(|given| given.to == to && given.epoch == epoch) else {
                // It has come back meanwhile, or was forgotten: there is nothing to keep any more.
                return Ok(());
            };
            let settled = GivenRecord { settled: true, ..given };
            settled.write(&*node.store, format!("{GIVEN}{name}")).map_err(store_error)?;
            node.cluster.moves.give(&name, None);
            Ok(())
        })
        .await
    }
}

fn offered(content: &ContentRecord) -> Offered {
    Offered {
        snapshot: content.snapshot,
        size_bytes: content.size_bytes,
        root: content.root,
        foreign: content.domains().iter().any(|domain| domain != Domain::OWN),
    }
}

/// What who was given a volume is told; `None` where it was taken over.
fn given_reply(given: &GivenRecord) -> Option<Given> {
    let content = given.content.as_ref()?;
    Some(Given {
        content: offered(content),
        epoch: given.epoch,
        origin: content.origin.map(|origin| Place { snapshot: origin.snapshot, disk: origin.disk }),
        settings: given.settings(),
        replicate: given.replicate,
        since: given.since.unwrap_or(0),
    })
}

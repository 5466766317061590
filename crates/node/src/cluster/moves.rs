//! What the swarm has to know of a cluster: where members are, which snapshots are for whom, and whom to ask for what comes here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use store::{ChunkStore, Origin};
use swarm::Served;
use tokio::sync::Notify;
use types::{EndpointId, Name, SnapshotId};

use super::records::{ContentRecord, GIVEN, GivenRecord, HOME, HomeRecord, MEMBER, MemberRecord, OFFER, OfferRecord};
use crate::record::{Record as _, RecordError};

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Name,
    pub(crate) endpoint: EndpointId,
    pub(crate) addresses: Vec<SocketAddr>,
}

#[derive(Debug, Default)]
struct Known {
    members: BTreeMap<EndpointId, Member>,
    /// Snapshots of a volume that a member may fetch.
    offered: BTreeMap<(Name, EndpointId), ContentRecord>,
    given: BTreeMap<Name, (EndpointId, ContentRecord)>,
    /// Who has the snapshots that come here.
    sources: BTreeMap<SnapshotId, EndpointId>,
}

/// Members and moves, in memory. The records say the same, durably.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    known: RwLock<Known>,
    /// Told when somebody is no member any more.
    left: Notify,
}

impl Moves {
    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads everything from the records.
    pub(super) fn read(&self, store: &dyn ChunkStore) -> Result<(), RecordError> {
        let name = |text: &str| text.parse::<Name>().ok();
        let mut known = Known::default();
        for (text, record) in MemberRecord::read_all(store, MEMBER)? {
            let Some(name) = name(&text) else { continue };
            let addresses = record.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            known.members.insert(record.endpoint, Member { name, endpoint: record.endpoint, addresses });
        }
        for (volume, record) in OfferRecord::read_all(store, OFFER)? {
            let place = volume.split_once('/').and_then(|(volume, _)| Some((name(volume)?, record.to)));
            known.offered.extend(place.zip(record.content));
        }
        for (volume, record) in GivenRecord::read_all(store, GIVEN)?.into_iter().filter(|(_, given)| !given.settled) {
            known.given.extend(name(&volume).zip(record.content.map(|content| (record.to, content))));
        }
        for (_, record) in HomeRecord::read_all(store, HOME)? {
            known.sources.extend(record.arriving.map(|arriving| (arriving.snapshot, arriving.from)));
        }
        *self.change() = known;
        Ok(())
    }

    /// All members, by name.
    pub(crate) fn members(&self) -> Vec<Member> {
        let mut members: Vec<_> = self.known().members.values().cloned().collect();
        members.sort_by(|left, right| left.name.cmp(&right.name));
        members
    }

    /// The member of an endpoint.
    pub(crate) fn member(&self, endpoint: EndpointId) -> Option<Member> {
        self.known().members.get(&endpoint).cloned()
    }

    /// What a member, or an endpoint that was one, is called.
    pub(super) fn name_of(&self, endpoint: EndpointId) -> String {
        self.member(endpoint).map_or_else(|| endpoint.to_string(), |member| member.name.to_string())
    }

    pub(super) fn add_member(&self, member: Member) {
        self.change().members.insert(member.endpoint, member);
    }

    pub(super) fn remove_member(&self, endpoint: EndpointId) {
        self.change().members.remove(&endpoint);
        self.left.notify_waiters();
    }

    /// Resolves when an endpoint is no member any more.
    pub(super) async fn gone(&self, endpoint: EndpointId) {
        loop {
            let left = self.left.notified();
            if self.member(endpoint).is_none() {
                return;
            }
            left.await;
        }
    }

    pub(super) fn offer(&self, volume: &Name, to: EndpointId, content: Option<ContentRecord>) {
        let (mut known, place) = (self.change(), (volume.clone(), to));
        match content {
            Some(content) => drop(known.offered.insert(place, content)),
            None => drop(known.offered.remove(&place)),
        }
    }

    pub(super) fn give(&self, volume: &Name, given: Option<(EndpointId, ContentRecord)>) {
        let mut known = self.change();
        match given {
            Some(given) => drop(known.given.insert(volume.clone(), given)),
            None => drop(known.given.remove(volume)),
        }
    }

    /// Says whom to ask for a snapshot that comes here, or that it has come.
    pub(super) fn source(&self, snapshot: SnapshotId, from: Option<EndpointId>) {
        let mut known = self.change();
        match from {
            Some(from) => drop(known.sources.insert(snapshot, from)),
            None => drop(known.sources.remove(&snapshot)),
        }
    }

    /// Where a member is reached.
    pub(crate) fn addresses(&self, endpoint: EndpointId) -> Option<Vec<SocketAddr>> {
        let addresses = self.known().members.get(&endpoint)?.addresses.clone();
        (!addresses.is_empty()).then_some(addresses)
    }

    /// Who has a snapshot that comes here.
    pub(crate) fn provider(&self, snapshot: SnapshotId) -> Option<EndpointId> {
        self.known().sources.get(&snapshot).copied()
    }

    /// How a snapshot is served to a member that it is for.
    pub(crate) fn serve(&self, endpoint: EndpointId, snapshot: SnapshotId) -> Option<Served> {
        let known = self.known();
        known.members.get(&endpoint)?;
        let offered = known.offered.iter().map(|((_, to), content)| (to, content));
        let mut all = offered.chain(known.given.values().map(|(to, content)| (to, content)));
        let (_, content) = all.find(|(to, content)| **to == endpoint && content.snapshot == snapshot)?;
        Some(Served { domains: content.domains(), upstream: vec![content.origin.map(Origin::from)] })
    }
}

//! Turns the scheduler's state into actions: gives up what stalls, asks for what waits, looks up who provides it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use store::{Kind, Origin, Urgency};
use types::{EndpointId, SnapshotId};

use super::{Action, End, Entry, EntryId, InFlight, Moment, Order, OrderItem, RequestId, Scheduler, Whereabouts};
use crate::message::{MAX_ITEMS, Place};

/// The most chunks in one request: 1 MiB when plain.
const MAX_CHUNKS: usize = 16;
/// The most lazy requests in flight to one provider.
const MAX_LAZY_REQUESTS: usize = 64;
/// The bulk bytes in flight from a provider while lazy reads wait, in one request.
const YIELDING_BYTES: u64 = 128 << 10;
/// For how long after a lazy request bulk requests stay small: the next one is likely.
const YIELDING: Duration = Duration::from_millis(50);
/// How many waiting entries are considered beyond the first for one bulk request.
const LOOKAHEAD: usize = 64;

/// Collects the moment at which the scheduler must be polled again.
#[derive(Debug, Default)]
struct Wake(Option<Moment>);

impl Wake {
    fn at(&mut self, moment: Moment) {
        self.0 = Some(self.0.map_or(moment, |earlier| earlier.min(moment)));
    }
}

/// What one request can ask for together: parts of one disk, of one kind and level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    origin: Origin,
    kind: Kind,
    level: u8,
}

impl Group {
    fn of(whereabouts: Whereabouts) -> Self {
        let level = if let Place::Node(position) = whereabouts.place { position.level } else { 0 };
        Self { origin: whereabouts.origin, kind: whereabouts.place.kind(), level }
    }

    fn max_items(&self) -> usize {
        match self.kind {
            Kind::Chunk => MAX_CHUNKS,
            Kind::Node => MAX_ITEMS as usize / 4,
            Kind::Manifest => 1,
        }
    }
}

type Batch = BTreeMap<Place, EntryId>;

impl Scheduler {
    /// What to do now, and when to ask again if nothing happens before.
    pub(crate) fn poll(&mut self, now: Moment) -> (Vec<Action>, Option<Moment>) {
        let mut actions = Vec::new();
        let mut wake = Wake::default();
        self.stop_stalled(now, &mut actions, &mut wake);
        self.drain_abandoned(&mut actions);
        self.overtake(now, &mut wake);
        let mut hungry = BTreeSet::new();
        self.dispatch_lazy(now, &mut actions, &mut wake, &mut hungry);
        self.dispatch_bulk(now, &mut actions, &mut wake);
        self.find_hungry(now, &mut hungry, &mut wake);
        self.look_up(now, &hungry, &mut actions, &mut wake);
        (actions, wake.0)
    }

    fn stop_stalled(&mut self, now: Moment, actions: &mut Vec<Action>, wake: &mut Wake) {
        let mut stalled = Vec::new();
        for (id, request) in &self.requests {
            let patience = match request.urgency {
                Urgency::Lazy => self.timing.lazy_stall,
                Urgency::Bulk => self.timing.bulk_stall,
            };
            let deadline = request.progress + patience;
            if deadline <= now { stalled.push(*id) } else { wake.at(deadline) }
        }
        for request in stalled {
            self.ended(now, request, End::Failed);
            actions.push(Action::Abandon { request, stalled: true });
        }
    }

    fn drain_abandoned(&mut self, actions: &mut Vec<Action>) {
        for id in std::mem::take(&mut self.abandoned) {
            if let Some(request) = self.requests.remove(&id)
                && let Some(provider) = self.providers.get_mut(&request.provider)
            {
                provider.request_ended(request.urgency);
            }
            actions.push(Action::Abandon { request: id, stalled: false });
        }
    }

    /// Lets lazy waits ask on their own for what has been coming in bulk for too long.
    fn overtake(&mut self, now: Moment, wake: &mut Wake) {
        while let Some((at, id)) = self.overtaking.front().copied() {
            if at > now {
                wake.at(at);
                return;
            }
            self.overtaking.pop_front();
            let Some(entry) = self.entries.get(&id) else { continue };
            let requests = &self.requests;
            let lazily = |id: &RequestId| requests.get(id).is_some_and(|request| request.urgency == Urgency::Lazy);
            if !entry.in_flight.iter().any(lazily) {
                self.waiting_lazy.insert(id);
            }
        }
    }

    /// Where a provider can be asked for an entry now; otherwise notes when it can.
    fn usable(&self, now: Moment, entry: &Entry, id: EndpointId, wake: &mut Wake) -> Option<Whereabouts> {
        let provider = self.providers.get(&id)?;
        let mut until = provider.rests_until();
        if let Some((_, tried, _)) = entry.tried.iter().find(|(tried, _, _)| *tried == id) {
            until = until.max(*tried);
        }
        let mut found = None;
        for whereabouts in &entry.whereabouts {
            let Some(snapshot) = self.snapshots.get(&whereabouts.origin.snapshot) else { continue };
            if !snapshot.providers.contains(&id) {
                continue;
            }
            let refused = snapshot.refused.get(&id).map_or(Moment::ZERO, |(refused, _)| *refused);
            if refused.max(until) <= now {
                found = found.or(Some(*whereabouts));
            } else {
                wake.at(refused.max(until));
            }
        }
        found
    }

    fn candidates(&self, entry: &Entry) -> impl Iterator<Item = EndpointId> {
        let snapshots = entry.whereabouts.iter().filter_map(|place| self.snapshots.get(&place.origin.snapshot));
        snapshots.flat_map(|snapshot| snapshot.providers.iter().copied())
    }

    fn dispatch_lazy(
        &mut self,
        now: Moment,
        actions: &mut Vec<Action>,
        wake: &mut Wake,
        hungry: &mut BTreeSet<SnapshotId>,
    ) {
        let mut batches: BTreeMap<(EndpointId, Group), Vec<Batch>> = BTreeMap::new();
        for id in &self.waiting_lazy {
            let Some(entry) = self.entries.get(id) else { continue };
            let usable = self.candidates(entry).filter_map(|provider| {
                let whereabouts = self.usable(now, entry, provider, wake)?;
                let cost = self.providers.get(&provider)?;
                (cost.lazy_requests() < MAX_LAZY_REQUESTS).then(|| (cost.lazy_cost(), provider, whereabouts))
            });
            let Some((_, provider, whereabouts)) = usable.min_by_key(|(cost, _, _)| *cost) else {
                hungry.extend(entry.whereabouts.iter().map(|whereabouts| whereabouts.origin.snapshot));
                continue;
            };
            let group = Group::of(whereabouts);
            let batches = batches.entry((provider, group)).or_default();
            let fits = |batch: &&mut Batch| batch.len() < group.max_items() && !batch.contains_key(&whereabouts.place);
            match batches.last_mut().filter(fits) {
                Some(batch) => drop(batch.insert(whereabouts.place, *id)),
                None => batches.push(Batch::from([(whereabouts.place, *id)])),
            }
        }
        for ((provider, group), batches) in batches {
            for batch in batches {
                actions.push(self.send(now, provider, group, Urgency::Lazy, &batch, wake));
            }
        }
        if self.requests.values().any(|request| request.urgency == Urgency::Lazy) {
            self.lazy_at = Some(now);
        }
    }

    fn dispatch_bulk(&mut self, now: Moment, actions: &mut Vec<Action>, wake: &mut Wake) {
        let mut providers: Vec<_> = match self.waiting_bulk.is_empty() {
            true => return,
            false => self.snapshots.values().filter(|snapshot| snapshot.entries > 0),
        }
        .flat_map(|snapshot| snapshot.providers.iter().copied())
        .collect();
        providers.sort_unstable();
        providers.dedup();
        // Each takes one request in turn, so that all get a share of a short queue.
        while !providers.is_empty() {
            providers.retain(|provider| match self.bulk_batch(now, *provider, wake) {
                None => false,
                Some((group, batch)) => {
                    actions.push(self.send(now, *provider, group, Urgency::Bulk, &batch, wake));
                    true
                }
            });
        }
    }

    /// What to ask a provider for next in bulk, if there is room for a whole request.
    fn bulk_batch(&mut self, now: Moment, id: EndpointId, wake: &mut Wake) -> Option<(Group, Batch)> {
        let provider = self.providers.get(&id)?;
        let yielding = self.lazy_at.map(|at| at + YIELDING).filter(|until| *until > now);
        let mut limit = provider.window().limit_bytes();
        if let Some(until) = yielding {
            wake.at(until);
            limit = limit.min(YIELDING_BYTES);
            if provider.bulk_requests() > 0 {
                return None;
            }
        }
        let waiting = self.waiting_bulk.iter().filter_map(|entry| self.entries.get_key_value(entry));
        let mut usable = waiting.filter_map(|(entry_id, entry)| {
            self.usable(now, entry, id, wake).map(|whereabouts| (*entry_id, whereabouts))
        });
        let (first, whereabouts) = usable.next()?;
        let group = Group::of(whereabouts);
        let each = provider.expected_bytes(group.kind);
        // Two requests fill the window, so that one is on its way while the other arrives.
        let fitting = usize::try_from(limit / 2 / each).unwrap_or(usize::MAX);
        let items = fitting.clamp(1, group.max_items());
        let room = limit.saturating_sub(provider.window().in_flight_bytes());
        if provider.bulk_requests() > 0 && room < items as u64 * each {
            return None;
        }
        let mut batch = Batch::from([(whereabouts.place, first)]);
        for (entry, whereabouts) in usable.take(LOOKAHEAD) {
            if batch.len() == items {
                break;
            }
            if Group::of(whereabouts) == group {
                batch.entry(whereabouts.place).or_insert(entry);
            }
        }
        Some((group, batch))
    }

    fn send(
        &mut self,
        now: Moment,
        id: EndpointId,
        group: Group,
        urgency: Urgency,
        batch: &Batch,
        wake: &mut Wake,
    ) -> Action {
        let request = RequestId(self.next_id());
        let provider = self.providers.get_mut(&id).expect("a chosen provider is known");
        let item_bytes = provider.expected_bytes(group.kind);
        provider.request_began(urgency, item_bytes * batch.len() as u64);
        let mut items = Vec::with_capacity(batch.len());
        let mut hops = 0;
        for (place, entry_id) in batch {
            self.waiting_lazy.remove(entry_id);
            self.waiting_bulk.remove(entry_id);
            let entry = self.entries.get_mut(entry_id).expect("what waits exists");
            entry.in_flight.push(request);
            hops = hops.max(entry.hops);
            items.push(OrderItem { place: *place, key: entry.key, domain: entry.domain });
        }
        let open = batch.values().map(|entry| Some(*entry)).collect();
        let in_flight = InFlight {
            provider: id,
            urgency,
            snapshot: group.origin.snapshot,
            kind: group.kind,
            items: open,
            sent: now,
            progress: now,
            answered: false,
            item_bytes,
        };
        self.requests.insert(request, in_flight);
        wake.at(now + if urgency == Urgency::Lazy { self.timing.lazy_stall } else { self.timing.bulk_stall });
        Action::Send(Order { id: request, provider: id, urgency, origin: group.origin, hops, items })
    }

    /// Finds the snapshots of bulk entries that nobody can be asked for now.
    fn find_hungry(&self, now: Moment, hungry: &mut BTreeSet<SnapshotId>, wake: &mut Wake) {
        for id in self.waiting_bulk.iter().take(LOOKAHEAD) {
            let Some(entry) = self.entries.get(id) else { continue };
            if !self.candidates(entry).any(|provider| self.usable(now, entry, provider, wake).is_some()) {
                hungry.extend(entry.whereabouts.iter().map(|whereabouts| whereabouts.origin.snapshot));
            }
        }
    }

    fn look_up(&mut self, now: Moment, hungry: &BTreeSet<SnapshotId>, actions: &mut Vec<Action>, wake: &mut Wake) {
        for (id, snapshot) in &mut self.snapshots {
            if snapshot.looking || snapshot.entries == 0 {
                continue;
            }
            let due = if hungry.contains(id) { snapshot.next_lookup } else { snapshot.refresh };
            if due <= now {
                snapshot.looking = true;
                actions.push(Action::LookUp(*id));
            } else {
                wake.at(due);
            }
        }
    }
}

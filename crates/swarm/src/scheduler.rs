//! Which provider is asked for what, and when: pending objects, requests in flight, providers and their state.
//!
//! A state machine without I/O or clock: events come in with the time, [`Scheduler::poll`] gives actions out. Invariants:
//! an object that someone waits for is in flight, waiting to be asked for, or done, and never forgotten; it is in flight
//! once, except that a lazy wait may overtake a bulk request; nobody is asked while banned.

mod dispatch;
mod provider;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use store::{Domain, Key, Kind, Origin, Urgency};
use types::{EndpointId, SnapshotId};

use crate::message::Place;
use crate::options::Timing;
use provider::Provider;

/// A moment: the time since the swarm started.
pub(crate) type Moment = Duration;

/// Where an object can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whereabouts {
    /// The snapshot and disk.
    pub(crate) origin: Origin,
    /// The place there.
    pub(crate) place: Place,
}

/// Something that shall come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// What it must hash to.
    pub(crate) key: Key,
    /// The domain to put it in.
    pub(crate) domain: Domain,
    /// Where it can be asked for.
    pub(crate) whereabouts: Whereabouts,
    /// How soon.
    pub(crate) urgency: Urgency,
    /// How many peers the request may be passed on through.
    pub(crate) hops: u8,
}

/// Names an object that shall come. Ascending in the order in which they were first wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryId(u64);

/// Names a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestId(u64);

/// What the driver shall do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Find out who provides a snapshot, and say so by [`Scheduler::found`].
    LookUp(SnapshotId),
    /// Send a request, report its items, and say by [`Scheduler::ended`] when it is over.
    Send(Order),
    /// Give a request up; nothing need be reported any more. After a stall the connection is not to be used again.
    Abandon {
        /// The request.
        request: RequestId,
        /// Whether because nothing came of it.
        stalled: bool,
    },
}

/// A request to send.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// Its name.
    pub(crate) id: RequestId,
    /// Whom to ask.
    pub(crate) provider: EndpointId,
    /// On which connection.
    pub(crate) urgency: Urgency,
    /// Of which disk.
    pub(crate) origin: Origin,
    /// How many peers it may be passed on through.
    pub(crate) hops: u8,
    /// What for, ascending by place.
    pub(crate) items: Vec<OrderItem>,
}

/// One thing that a request asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrderItem {
    /// Where it stands.
    pub(crate) place: Place,
    /// What it must hash to.
    pub(crate) key: Key,
    /// The domain to put it in.
    pub(crate) domain: Domain,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The reply is complete.
    Complete,
    /// The provider does not know the snapshot, or does not let us know it.
    Unknown,
    /// The provider has too much to do.
    Busy,
    /// The provider could not be reached, or the connection was lost.
    Failed,
    /// The provider sent what it must not: bytes with another hash, or no message at all.
    Wrong,
}

/// An object that someone waits for.
#[derive(Debug)]
struct Entry {
    key: Key,
    domain: Domain,
    whereabouts: Vec<Whereabouts>,
    urgency: Urgency,
    hops: u8,
    waits: u32,
    in_flight: Vec<RequestId>,
    /// Who did not have it, until when not to ask again, and how often so far.
    tried: Vec<(EndpointId, Moment, u32)>,
}

/// The most places that one object is looked for in.
const MAX_WHEREABOUTS: usize = 4;

/// A request that was sent.
#[derive(Debug)]
struct InFlight {
    provider: EndpointId,
    urgency: Urgency,
    snapshot: SnapshotId,
    kind: Kind,
    items: Vec<Option<EntryId>>,
    sent: Moment,
    progress: Moment,
    answered: bool,
    /// What each open item counts in the provider's window.
    item_bytes: u64,
}

/// What is known of who provides a snapshot.
#[derive(Debug)]
struct Snapshot {
    providers: Vec<EndpointId>,
    /// Who said not to know it, until when not to ask again, and how often so far.
    refused: BTreeMap<EndpointId, (Moment, u32)>,
    entries: usize,
    looking: bool,
    next_lookup: Moment,
    backoff: Duration,
    /// When to look again though all is well.
    refresh: Moment,
}

/// How many snapshots are remembered that nothing is wanted of.
const IDLE_SNAPSHOTS: usize = 1024;

/// How long what has arrived is remembered, for those who saw it absent just before.
const RECENT: Duration = Duration::from_secs(1);

/// The state machine.
#[derive(Debug)]
pub(crate) struct Scheduler {
    me: EndpointId,
    timing: Timing,
    bulk_bytes: (u64, u64),
    rng: SmallRng,
    last_id: u64,
    by_key: HashMap<(Key, Domain), EntryId>,
    entries: BTreeMap<EntryId, Entry>,
    waiting_lazy: BTreeSet<EntryId>,
    waiting_bulk: BTreeSet<EntryId>,
    /// Lazy waits for what comes in bulk, and when they are asked for on their own.
    overtaking: VecDeque<(Moment, EntryId)>,
    requests: BTreeMap<RequestId, InFlight>,
    providers: BTreeMap<EndpointId, Provider>,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// What has arrived lately, for those who saw it absent just before.
    recent: HashSet<(Key, Domain)>,
    recent_order: VecDeque<(Moment, (Key, Domain))>,
    abandoned: Vec<RequestId>,
    /// When a lazy request was last wanted or in flight.
    lazy_at: Option<Moment>,
}

impl Scheduler {
    /// Makes one for the endpoint `me`. `bulk_bytes` are those in flight per provider, at first and at most.
    pub(crate) fn new(me: EndpointId, timing: Timing, bulk_bytes: (u64, u64), seed: u64) -> Self {
        Self {
            me,
            timing,
            bulk_bytes,
            rng: SmallRng::seed_from_u64(seed),
            last_id: 0,
            by_key: HashMap::new(),
            entries: BTreeMap::new(),
            waiting_lazy: BTreeSet::new(),
            waiting_bulk: BTreeSet::new(),
            overtaking: VecDeque::new(),
            requests: BTreeMap::new(),
            providers: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            recent: HashSet::new(),
            recent_order: VecDeque::new(),
            abandoned: Vec::new(),
            lazy_at: None,
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Someone waits for an object. `None` where it has arrived just now.
    pub(crate) fn want(&mut self, now: Moment, want: Want) -> Option<EntryId> {
        let name = (want.key, want.domain);
        while let Some((_, old)) = self.recent_order.pop_front_if(|(at, _)| *at + RECENT < now) {
            self.recent.remove(&old);
        }
        if self.recent.contains(&name) {
            return None;
        }
        if let Some(id) = self.by_key.get(&name).copied() {
            self.join(now, id, want);
            return Some(id);
        }
        let id = EntryId(self.next_id());
        self.by_key.insert(name, id);
        self.queue(want.urgency).insert(id);
        self.refer(now, want.whereabouts.origin.snapshot);
        let Want { key, domain, whereabouts, urgency, hops } = want;
        let whereabouts = vec![whereabouts];
        let (in_flight, tried) = (Vec::new(), Vec::new());
        self.entries.insert(id, Entry { key, domain, whereabouts, urgency, hops, waits: 1, in_flight, tried });
        Some(id)
    }

    /// One more waits for an object: perhaps sooner, or in another place.
    fn join(&mut self, now: Moment, id: EntryId, want: Want) {
        let entry = self.entries.get_mut(&id).expect("a named entry exists");
        entry.waits += 1;
        entry.hops = entry.hops.max(want.hops);
        let sooner = want.urgency < entry.urgency;
        entry.urgency = entry.urgency.min(want.urgency);
        let in_flight = !entry.in_flight.is_empty();
        if entry.whereabouts.len() < MAX_WHEREABOUTS && !entry.whereabouts.contains(&want.whereabouts) {
            entry.whereabouts.push(want.whereabouts);
            self.refer(now, want.whereabouts.origin.snapshot);
        }
        if sooner && in_flight {
            self.overtaking.push_back((now + self.timing.overtake, id));
        } else if sooner && self.waiting_bulk.remove(&id) {
            self.waiting_lazy.insert(id);
        }
    }

    fn refer(&mut self, now: Moment, snapshot: SnapshotId) {
        let known = self.snapshots.entry(snapshot).or_insert_with(|| Snapshot {
            providers: Vec::new(),
            refused: BTreeMap::new(),
            entries: 0,
            looking: false,
            next_lookup: now,
            backoff: self.timing.first_retry,
            refresh: now + self.timing.refresh,
        });
        known.entries += 1;
    }

    fn queue(&mut self, urgency: Urgency) -> &mut BTreeSet<EntryId> {
        match urgency {
            Urgency::Lazy => &mut self.waiting_lazy,
            Urgency::Bulk => &mut self.waiting_bulk,
        }
    }

    /// One who waited has gone. When it was the last, what is in flight for nobody is abandoned.
    pub(crate) fn forget(&mut self, id: EntryId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.waits -= 1;
        if entry.waits == 0 {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: EntryId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.by_key.remove(&(entry.key, entry.domain));
        self.waiting_lazy.remove(&id);
        self.waiting_bulk.remove(&id);
        for whereabouts in &entry.whereabouts {
            if let Some(snapshot) = self.snapshots.get_mut(&whereabouts.origin.snapshot) {
                snapshot.entries -= 1;
            }
        }
        self.trim_snapshots();
        for request in &entry.in_flight {
            self.close_items(*request, id);
        }
        Some(entry)
    }

    fn trim_snapshots(&mut self) {
        if self.snapshots.len() > IDLE_SNAPSHOTS {
            self.snapshots.retain(|_, snapshot| snapshot.entries > 0 || snapshot.looking);
        }
    }

    /// An entry has gone: its item in a request is open no more, and a request without open items is abandoned.
    fn close_items(&mut self, id: RequestId, gone: EntryId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        for item in request.items.iter_mut().filter(|item| **item == Some(gone)) {
            *item = None;
            if let Some(provider) = self.providers.get_mut(&request.provider) {
                provider.release(request.urgency, request.item_bytes);
            }
        }
        if request.items.iter().all(Option::is_none) {
            self.abandoned.push(id);
        }
    }

    /// An item arrived, was right and has been stored: `bytes` long. Returns who waits for it, if anyone still does.
    pub(crate) fn arrived(&mut self, now: Moment, id: RequestId, item: usize, bytes: u64) -> Option<EntryId> {
        self.progress(now, id);
        let request = self.requests.get(&id)?;
        let snapshot = request.snapshot;
        if let Some(provider) = self.providers.get_mut(&request.provider) {
            provider.served(request.kind, bytes);
        }
        if let Some(snapshot) = self.snapshots.get_mut(&snapshot) {
            snapshot.backoff = self.timing.first_retry;
        }
        let entry = request.items.get(item).copied().flatten()?;
        let removed = self.remove(entry)?;
        let name = (removed.key, removed.domain);
        if self.recent.insert(name) {
            self.recent_order.push_back((now, name));
        }
        // The request is over when its stream ends, not now.
        self.abandoned.retain(|abandoned| *abandoned != id);
        Some(entry)
    }

    /// An item could not be stored; it is not tried again. Returns who waits for it, if anyone still does.
    pub(crate) fn rejected(&mut self, now: Moment, id: RequestId, item: usize) -> Option<EntryId> {
        self.progress(now, id);
        let entry = self.requests.get(&id)?.items.get(item).copied().flatten()?;
        self.remove(entry)?;
        self.abandoned.retain(|abandoned| *abandoned != id);
        Some(entry)
    }

    /// A provider does not have an item now.
    pub(crate) fn absent(&mut self, now: Moment, id: RequestId, item: usize) {
        self.progress(now, id);
        let Some(request) = self.requests.get_mut(&id) else { return };
        let Some(entry) = request.items.get_mut(item).and_then(Option::take) else { return };
        let provider = request.provider;
        if let Some(provider) = self.providers.get_mut(&provider) {
            provider.release(request.urgency, request.item_bytes);
        }
        self.mark_tried(now, entry, provider);
        self.requeue(entry, id);
    }

    fn mark_tried(&mut self, now: Moment, entry: EntryId, provider: EndpointId) {
        let Some(entry) = self.entries.get_mut(&entry) else { return };
        let position = entry.tried.iter().position(|(tried, _, _)| *tried == provider).unwrap_or_else(|| {
            entry.tried.push((provider, now, 0));
            entry.tried.len() - 1
        });
        let (_, until, times) = &mut entry.tried[position];
        *until = now + self.timing.retry(*times);
        *times += 1;
    }

    fn requeue(&mut self, id: EntryId, request: RequestId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.in_flight.retain(|other| *other != request);
        let urgency = entry.urgency;
        if entry.in_flight.is_empty() {
            self.queue(urgency).insert(id);
        }
    }

    /// Something came of a request.
    fn progress(&mut self, now: Moment, id: RequestId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.progress = now;
        if !std::mem::replace(&mut request.answered, true)
            && let Some(provider) = self.providers.get_mut(&request.provider)
        {
            provider.answered(now, request.urgency, now.saturating_sub(request.sent));
        }
    }

    /// A request is over. What it did not bring is asked for again, elsewhere if there is an elsewhere.
    pub(crate) fn ended(&mut self, now: Moment, id: RequestId, end: End) {
        let Some(request) = self.requests.remove(&id) else { return };
        let timing = self.timing;
        let provider = self.providers.get_mut(&request.provider).expect("a provider in use is known");
        provider.request_ended(request.urgency);
        match end {
            End::Complete => {}
            End::Busy => provider.rest(now + timing.first_retry),
            End::Failed => provider.failed(now, &timing),
            End::Wrong => provider.ban(now + timing.ban),
            End::Unknown => {
                if let Some(snapshot) = self.snapshots.get_mut(&request.snapshot) {
                    let (until, times) = snapshot.refused.entry(request.provider).or_insert((now, 0));
                    *until = now + timing.retry(*times);
                    *times += 1;
                }
            }
        }
        for entry in request.items.iter().copied().flatten() {
            if let Some(provider) = self.providers.get_mut(&request.provider) {
                provider.release(request.urgency, request.item_bytes);
            }
            if matches!(end, End::Complete) {
                self.mark_tried(now, entry, request.provider);
            }
            self.requeue(entry, id);
        }
        if end == End::Wrong {
            self.give_up(now, request.provider);
        }
    }

    /// Ends all requests to a provider that is not trusted any more.
    fn give_up(&mut self, now: Moment, provider: EndpointId) {
        let theirs = self.requests.iter().filter(|(_, request)| request.provider == provider);
        let theirs: Vec<_> = theirs.map(|(id, _)| *id).collect();
        for id in theirs {
            self.ended(now, id, End::Failed);
            self.abandoned.push(id);
        }
    }

    /// A lookup found who may have a snapshot.
    pub(crate) fn found(&mut self, now: Moment, id: SnapshotId, mut providers: Vec<EndpointId>) {
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return };
        providers.retain(|provider| *provider != self.me);
        providers.sort_unstable();
        providers.dedup();
        // Everyone is told the same list: without this all would begin with the same provider.
        providers.shuffle(&mut self.rng);
        providers.truncate(MAX_PROVIDERS);
        snapshot.looking = false;
        snapshot.next_lookup = now + snapshot.backoff;
        snapshot.backoff = (snapshot.backoff * 2).min(self.timing.longest_retry);
        snapshot.refresh = now + self.timing.refresh;
        for provider in &providers {
            let first = self.bulk_bytes;
            self.providers.entry(*provider).or_insert_with(|| Provider::new(first));
        }
        snapshot.providers = providers;
        self.trim_providers();
    }

    /// Who provides a snapshot may have changed for the better: looks again at once, and asks again who had failed.
    pub(crate) fn announced(&mut self, now: Moment, id: SnapshotId) {
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return };
        snapshot.next_lookup = now;
        snapshot.refresh = now;
        snapshot.backoff = self.timing.first_retry;
        snapshot.refused.clear();
        for provider in &snapshot.providers {
            if let Some(provider) = self.providers.get_mut(provider) {
                provider.reprieve();
            }
        }
        for entry in self.entries.values_mut().filter(|entry| entry.is_of(id)) {
            entry.tried.clear();
        }
    }

    fn trim_providers(&mut self) {
        if self.providers.len() > IDLE_PROVIDERS {
            let used: BTreeSet<_> =
                self.snapshots.values().flat_map(|snapshot| snapshot.providers.iter().copied()).collect();
            self.providers.retain(|id, provider| used.contains(id) || provider.is_busy());
        }
    }
}

/// The most providers of one snapshot that are considered at once.
const MAX_PROVIDERS: usize = 64;
/// How many providers are remembered that no snapshot names.
const IDLE_PROVIDERS: usize = 4096;

impl Entry {
    fn is_of(&self, snapshot: SnapshotId) -> bool {
        self.whereabouts.iter().any(|whereabouts| whereabouts.origin.snapshot == snapshot)
    }
}

impl Timing {
    /// How long to wait before the next attempt after so many failed ones.
    fn retry(&self, times: u32) -> Duration {
        self.first_retry.saturating_mul(1 << times.min(16)).min(self.longest_retry)
    }
}

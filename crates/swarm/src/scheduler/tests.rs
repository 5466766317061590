//! The scheduler on a clock that only these tests move.

use std::collections::BTreeMap;

use proptest::prelude::*;
use store::{Domain, Key, Kind, Origin, Urgency};
use types::{EndpointId, SnapshotId};

use super::{Action, End, EntryId, Moment, Order, Scheduler, Want, Whereabouts};
use crate::message::Place;
use crate::options::Timing;

const SNAPSHOT: SnapshotId = SnapshotId([1; 32]);
const BULK: (u64, u64) = (512 << 10, 4 << 20);

fn endpoint(number: u8) -> EndpointId {
    EndpointId([number; 32])
}

fn ms(milliseconds: u64) -> Moment {
    Moment::from_millis(milliseconds)
}

fn want(index: u64, urgency: Urgency) -> Want {
    let mut hash = [0; 32];
    hash[..8].copy_from_slice(&index.to_le_bytes());
    Want {
        key: Key { kind: Kind::Chunk, hash },
        domain: Domain::OWN,
        whereabouts: Whereabouts { origin: Origin { snapshot: SNAPSHOT, disk: 0 }, place: Place::Chunk(index) },
        urgency,
        hops: 1,
    }
}

/// A scheduler that knows `providers` providers.
fn scheduler(providers: u8) -> Scheduler {
    let mut scheduler = Scheduler::new(endpoint(0), Timing::default(), BULK, 7);
    scheduler.want(ms(0), want(u64::MAX >> 30, Urgency::Lazy));
    let (actions, _) = scheduler.poll(ms(0));
    assert!(matches!(actions[..], [Action::LookUp(SNAPSHOT)]));
    scheduler.forget(EntryId(1));
    scheduler.found(ms(0), SNAPSHOT, (0..=providers).map(endpoint).collect());
    scheduler
}

fn orders(scheduler: &mut Scheduler, now: Moment) -> Vec<Order> {
    let (actions, _) = scheduler.poll(now);
    actions.into_iter().filter_map(|action| if let Action::Send(order) = action { Some(order) } else { None }).collect()
}

fn places(order: &Order) -> Vec<Place> {
    order.items.iter().map(|item| item.place).collect()
}

#[test]
fn one_transfer_for_many_waits_and_none_just_after() {
    let mut scheduler = scheduler(1);
    let first = scheduler.want(ms(1), want(5, Urgency::Lazy));
    assert_eq!(scheduler.want(ms(1), want(5, Urgency::Bulk)), first);
    let sent = orders(&mut scheduler, ms(1));
    assert_eq!((sent.len(), places(&sent[0])), (1, vec![Place::Chunk(5)]));
    assert_eq!(scheduler.arrived(ms(2), sent[0].id, 0, 100), first);
    scheduler.ended(ms(2), sent[0].id, End::Complete);
    assert_eq!(scheduler.want(ms(3), want(5, Urgency::Lazy)), None);
    assert!(scheduler.want(ms(5000), want(5, Urgency::Lazy)).is_some(), "by then it may have been lost again");
}

#[test]
fn bulk_fills_the_window_in_whole_requests_and_yields_to_lazy_reads() {
    let mut scheduler = scheduler(1);
    (0..200).for_each(|index| assert!(scheduler.want(ms(1), want(index, Urgency::Bulk)).is_some()));
    let sent = orders(&mut scheduler, ms(1));
    let items: usize = sent.iter().map(|order| order.items.len()).sum();
    assert_eq!((sent.len(), items), (2, 16), "two requests of half a window of 32 KiB chunks");
    // All but one of a request have arrived: not yet room for another whole one.
    for item in 0..6 {
        scheduler.arrived(ms(2), sent[0].id, item, 32 << 10);
    }
    assert!(orders(&mut scheduler, ms(2)).is_empty());
    (6..8).for_each(|item| assert!(scheduler.arrived(ms(2), sent[0].id, item, 32 << 10).is_some()));
    scheduler.ended(ms(2), sent[0].id, End::Complete);
    assert_eq!(orders(&mut scheduler, ms(2)).len(), 1);
    // A lazy read: the next bulk request waits until those in flight are done, and is small.
    scheduler.want(ms(3), want(1000, Urgency::Lazy));
    let lazy = orders(&mut scheduler, ms(3));
    assert_eq!((lazy.len(), lazy[0].urgency), (1, Urgency::Lazy));
    scheduler.arrived(ms(4), lazy[0].id, 0, 32 << 10);
    scheduler.ended(ms(4), lazy[0].id, End::Complete);
    (0..8).for_each(|item| assert!(scheduler.arrived(ms(5), sent[1].id, item, 32 << 10).is_some()));
    scheduler.ended(ms(5), sent[1].id, End::Complete);
    assert!(orders(&mut scheduler, ms(5)).is_empty());
    assert!(!orders(&mut scheduler, ms(100)).is_empty(), "no lazy read for a while");
}

#[test]
fn a_lazy_wait_overtakes_what_is_long_in_coming() {
    let mut scheduler = scheduler(1);
    scheduler.want(ms(1), want(5, Urgency::Bulk));
    let bulk = orders(&mut scheduler, ms(1)).remove(0);
    let entry = scheduler.want(ms(2), want(5, Urgency::Lazy));
    let (actions, wake) = scheduler.poll(ms(2));
    assert!(actions.is_empty());
    assert_eq!(wake, Some(ms(32)));
    let lazy = orders(&mut scheduler, ms(32)).remove(0);
    assert_eq!(lazy.urgency, Urgency::Lazy);
    assert_eq!(scheduler.arrived(ms(40), lazy.id, 0, 100), entry);
    let (actions, _) = scheduler.poll(ms(40));
    assert!(matches!(actions[..], [Action::Abandon { request, stalled: false }] if request == bulk.id));
    assert_eq!(scheduler.arrived(ms(41), bulk.id, 0, 100), None);
}

#[test]
fn a_request_that_nobody_waits_for_is_abandoned() {
    let mut scheduler = scheduler(1);
    let entries: Vec<_> = (0..3).filter_map(|index| scheduler.want(ms(1), want(index, Urgency::Lazy))).collect();
    let order = orders(&mut scheduler, ms(1)).remove(0);
    assert_eq!(order.items.len(), 3);
    scheduler.arrived(ms(2), order.id, 0, 100);
    scheduler.forget(entries[1]);
    assert!(scheduler.poll(ms(2)).0.is_empty());
    scheduler.forget(entries[2]);
    let (actions, _) = scheduler.poll(ms(3));
    assert!(matches!(actions[..], [Action::Abandon { request, .. }] if request == order.id));
}

#[test]
fn who_stalls_fails_or_lacks_it_is_passed_over_for_a_while() {
    for (fault, again) in [(Some(End::Failed), 250), (Some(End::Unknown), 250), (Some(End::Complete), 250), (None, 250)]
    {
        let mut scheduler = scheduler(2);
        scheduler.want(ms(1), want(5, Urgency::Lazy));
        let first = orders(&mut scheduler, ms(1)).remove(0);
        let mut now = ms(10);
        match fault {
            Some(end) => scheduler.ended(now, first.id, end),
            None => now = ms(1) + Timing::default().lazy_stall,
        }
        let second = orders(&mut scheduler, now).remove(0);
        assert_ne!(first.provider, second.provider, "{fault:?}");
        scheduler.ended(now, second.id, End::Complete);
        assert!(orders(&mut scheduler, now + ms(again - 1)).is_empty(), "{fault:?}");
        assert_eq!(orders(&mut scheduler, now + ms(again)).len(), 1, "{fault:?}");
    }
}

#[test]
fn a_liar_is_not_asked_for_anything_until_the_ban_ends() {
    let mut scheduler = scheduler(1);
    let ban = Timing::default().ban;
    scheduler.want(ms(1), want(1, Urgency::Lazy));
    let first = orders(&mut scheduler, ms(1)).remove(0);
    scheduler.want(ms(2), want(2, Urgency::Lazy));
    let second = orders(&mut scheduler, ms(2)).remove(0);
    scheduler.ended(ms(3), first.id, End::Wrong);
    let (actions, _) = scheduler.poll(ms(3));
    let abandoned = |action: &Action| matches!(action, Action::Abandon { request, .. } if *request == second.id);
    assert!(actions.iter().any(abandoned), "what else it would send is not wanted");
    scheduler.announced(ms(4), SNAPSHOT);
    assert!(orders(&mut scheduler, ban).is_empty());
    let again = orders(&mut scheduler, ms(3) + ban);
    assert_eq!(again.iter().map(|order| order.items.len()).sum::<usize>(), 2);
}

#[test]
fn lookups_are_repeated_ever_more_rarely_while_nobody_has_it() {
    let mut scheduler = Scheduler::new(endpoint(0), Timing::default(), BULK, 7);
    scheduler.want(ms(0), want(1, Urgency::Bulk));
    let mut now = ms(0);
    let mut lookups = Vec::new();
    while now < ms(120_000) {
        let (actions, wake) = scheduler.poll(now);
        if matches!(actions[..], [Action::LookUp(_)]) {
            lookups.push(now);
            scheduler.found(now, SNAPSHOT, vec![endpoint(0)]);
        }
        now = wake.unwrap_or(now).max(now + ms(1));
    }
    assert_eq!(lookups[..4], [ms(0), ms(250), ms(750), ms(1750)]);
    assert!(lookups.len() < 25, "{lookups:?}");
}

/// What may happen to a scheduler.
#[derive(Clone, Debug)]
enum Event {
    Want(u64, bool),
    Forget(usize),
    Item(usize, u8),
    End(usize, u8),
    Wait(u64),
    Found(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u64..60, any::<bool>()).prop_map(|(index, lazy)| Event::Want(index, lazy)),
        1 => any::<usize>().prop_map(Event::Forget),
        6 => (any::<usize>(), 0_u8..4).prop_map(|(request, how)| Event::Item(request, how)),
        2 => (any::<usize>(), 0_u8..5).prop_map(|(request, how)| Event::End(request, how)),
        2 => (0_u64..5000).prop_map(Event::Wait),
        1 => (0_u8..5).prop_map(Event::Found),
    ]
}

/// A scheduler with its driver's view of it.
struct Driven {
    scheduler: Scheduler,
    now: Moment,
    open: BTreeMap<super::RequestId, (Order, usize)>,
    waits: Vec<EntryId>,
    looking: bool,
}

impl Driven {
    fn poll(&mut self) {
        let (actions, wake) = self.scheduler.poll(self.now);
        for action in actions {
            match action {
                Action::LookUp(_) => self.looking = true,
                Action::Send(order) => drop(self.open.insert(order.id, (order, 0))),
                Action::Abandon { request, .. } => drop(self.open.remove(&request)),
            }
        }
        let idle = self.waits.is_empty() || self.looking || !self.open.is_empty();
        assert!(idle || wake.is_some(), "someone waits and nothing will happen");
    }

    fn arrive(&mut self, request: super::RequestId, item: usize) {
        if let Some(entry) = self.scheduler.arrived(self.now, request, item, 1000) {
            assert!(self.waits.contains(&entry), "what arrives was waited for");
            self.waits.retain(|wait| *wait != entry);
        }
    }

    fn happen(&mut self, event: &Event) {
        let nth = |open: &BTreeMap<super::RequestId, (Order, usize)>, n: usize| {
            (!open.is_empty()).then(|| open.keys().copied().nth(n % open.len())).flatten()
        };
        match event {
            Event::Want(index, lazy) => {
                let urgency = if *lazy { Urgency::Lazy } else { Urgency::Bulk };
                self.waits.extend(self.scheduler.want(self.now, want(*index, urgency)));
            }
            Event::Forget(which) if !self.waits.is_empty() => {
                let wait = self.waits.swap_remove(which % self.waits.len());
                self.scheduler.forget(wait);
            }
            Event::Item(which, how) => {
                let Some(id) = nth(&self.open, *which) else { return };
                let (order, next) = self.open.get_mut(&id).expect("it was found");
                let (item, items) = (*next, order.items.len());
                *next += 1;
                match how {
                    _ if item >= items => {}
                    0 => self.scheduler.absent(self.now, id, item),
                    _ => self.arrive(id, item),
                }
            }
            Event::End(which, how) => {
                let Some(id) = nth(&self.open, *which) else { return };
                self.open.remove(&id);
                let end = [End::Complete, End::Unknown, End::Busy, End::Failed, End::Wrong][usize::from(*how)];
                self.scheduler.ended(self.now, id, end);
            }
            Event::Found(providers) if self.looking => {
                self.looking = false;
                self.scheduler.found(self.now, SNAPSHOT, (1..=*providers).map(endpoint).collect());
            }
            Event::Wait(milliseconds) => self.now += ms(*milliseconds),
            Event::Forget(_) | Event::Found(_) => {}
        }
    }
}

proptest! {
    /// Whatever happens, everything that is waited for arrives once an honest provider answers everything.
    #[test]
    fn nothing_is_forgotten(events in proptest::collection::vec(event(), 0..200)) {
        let scheduler = Scheduler::new(endpoint(0), Timing::default(), BULK, 7);
        let mut driven = Driven { scheduler, now: ms(0), open: BTreeMap::new(), waits: Vec::new(), looking: false };
        for event in &events {
            driven.happen(event);
            driven.poll();
        }
        // From now on all is well; bans end too.
        for _ in 0..500 {
            if driven.waits.is_empty() {
                break;
            }
            driven.happen(&Event::Found(4));
            for (id, (order, next)) in std::mem::take(&mut driven.open) {
                (next..order.items.len()).for_each(|item| driven.arrive(id, item));
                driven.scheduler.ended(driven.now, id, End::Complete);
            }
            driven.now += ms(5000);
            driven.poll();
        }
        prop_assert!(driven.waits.is_empty(), "still waiting: {:?}", driven.waits);
        let (actions, _) = driven.scheduler.poll(driven.now);
        prop_assert!(!actions.iter().any(|action| matches!(action, Action::Send(_))));
    }
}

//! Which segments a journal has: what its root record names, and what of them may go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Journal, Moving, Needed};
use crate::layer::Layer;
use crate::records::{JournalRecord, SegmentRecord, VERSION};
use crate::segment::{FIRST_RECORD, Segment};

impl Journal {
    /// Its root record as of now: the segments, each as far as it is durable.
    pub(crate) fn record(&self, without: &BTreeSet<u32>) -> JournalRecord {
        let layers = self.layers();
        let mut damaged = self.damaged.lock().clone();
        damaged.retain(|record| covered(&layers, (record.first_sequence, record.last_sequence)));
        let is_damaged = |number: u32| damaged.iter().any(|record| record.number == number);
        let segments = self.segments.read();
        let durable = segments.values().filter(|segment| segment.durable() > FIRST_RECORD);
        let wanted = |number: u32| !without.contains(&number) && !is_damaged(number);
        let segments = durable.filter(|segment| wanted(segment.number())).filter_map(|segment| {
            let format::journal::Home::Segment(id) = segment.home else { return None };
            let (first_sequence, last_sequence) = segment.sequences();
            let (end, torn_bytes) = segment.durable_part();
            Some(SegmentRecord {
                number: id.number,
                generation: id.generation,
                end,
                torn_bytes,
                first_sequence,
                last_sequence,
            })
        });
        let damaged_too = damaged.iter().filter(|record| !without.contains(&record.number)).copied();
        JournalRecord { version: VERSION, secret: self.secret.0, segments: segments.chain(damaged_too).collect() }
    }

    /// Remembers which segments the root record names now.
    pub(crate) fn recorded(&self, record: &JournalRecord) {
        *self.listed.lock() = record.segments.iter().map(|segment| segment.number).collect();
    }

    /// Remembers which segments a root record may name that is not known to be durable.
    pub(crate) fn may_be_recorded(&self, record: &JournalRecord) {
        self.listed.lock().extend(record.segments.iter().map(|segment| segment.number));
    }

    pub(crate) fn is_listed(&self, number: u32) -> bool {
        self.listed.lock().contains(&number)
    }

    /// The segments that have no record of any layer, but of such as `counts` says no of.
    pub(crate) fn uncovered(&self, counts: impl Fn(&Layer) -> bool) -> BTreeSet<u32> {
        let layers: Vec<_> = self.layers().into_iter().filter(|layer| counts(layer)).collect();
        let uncovered = |segment: &&Arc<Segment>| Self::is_uncovered(&layers, segment);
        self.segments.read().values().filter(uncovered).map(|segment| segment.number()).collect()
    }

    fn is_uncovered(layers: &[Arc<Layer>], segment: &Segment) -> bool {
        !covered(layers, segment.sequences())
    }

    /// Takes out those of some segments of which nothing counts, if more is not needed.
    pub(crate) fn take_dead(&self, moving: &mut Moving, dead: &BTreeSet<u32>, needed: Needed) -> Vec<Arc<Segment>> {
        let mut appender = self.appender.lock();
        let layers = self.layers();
        // Nobody appends now: what was appended is in a map.
        let may_go = |number: &&u32| {
            let is_enough = |segment: &Segment| match needed {
                Needed::Nothing => Self::is_uncovered(&layers, segment),
                Needed::Flushed => !segment.promised.load(Ordering::Acquire),
                Needed::Durable => true,
            };
            let goes = |segment: Arc<Segment>| is_enough(&segment) && Self::live_bytes(&layers, &segment) == 0;
            self.segment(**number).is_some_and(goes)
        };
        let dead: BTreeSet<u32> = dead.iter().filter(may_go).copied().collect();
        let is_dead = |segment: &Segment| dead.contains(&segment.number());
        drop(appender.filling.take_if(|filling| is_dead(&filling.segment)));
        drop(moving.filling.take_if(|filling| is_dead(&filling.segment)));
        appender.unsynced.retain(|segment| !is_dead(segment));
        moving.unsynced.retain(|segment| !is_dead(segment));
        let mut segments = self.segments.write();
        let taken: Vec<_> = dead.iter().filter_map(|number| segments.remove(number)).collect();
        self.bytes.fetch_sub(taken.iter().map(|segment| segment.tail()).sum(), Ordering::AcqRel);
        taken
    }

    /// Notes of segments how far the journal is, now that nothing of them counts; nobody may append to them any more.
    pub(crate) fn found_dead<'s>(&self, dead: impl Iterator<Item = &'s Arc<Segment>>) {
        let appended = {
            // What has made them dead is in a map, and counted once whoever appends has let go.
            let _appender = self.appender.lock();
            self.appended.load(Ordering::Acquire)
        };
        for segment in dead {
            segment.dead_at.fetch_min(appended, Ordering::AcqRel);
        }
    }

    /// Whether what took the place of a dead segment's records is durable, as far as it was appended.
    pub(crate) fn is_replaced(&self, number: u32) -> bool {
        let synced = self.synced.load(Ordering::Acquire);
        self.segment(number).is_some_and(|segment| segment.dead_at.load(Ordering::Acquire) <= synced)
    }

    /// The segments that nobody appends to any more.
    pub(crate) fn full(&self, moving: &Moving) -> Vec<Arc<Segment>> {
        // In this order: one that begins to be filled meanwhile is not in the list, or is seen being filled.
        let mut segments = self.segments();
        let appender = self.appender.lock();
        let filled: BTreeSet<u32> =
            appender.filling.iter().chain(&moving.filling).map(|filling| filling.segment.number()).collect();
        segments.retain(|segment| !filled.contains(&segment.number()));
        segments
    }
}

/// Whether layers have any of some sequence numbers.
fn covered(layers: &[Arc<Layer>], (first, last): (u64, u64)) -> bool {
    layers.iter().map(|layer| layer.range()).any(|(from, to)| from <= last && to.is_none_or(|to| first <= to))
}

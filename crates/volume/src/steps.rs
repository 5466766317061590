//! What a fold has to do to which chunks, as far as it can be told without reading any.
//!
//! Only outlines of layers are looked at, in chunks: two million writes that are scattered over 8 GiB make one step. What
//! a chunk is composed of is looked up when its turn comes. So a plan is never much larger than the list of chunks that a
//! fold makes anew, and mostly far smaller.

use std::collections::VecDeque;
use std::ops::Range;

use crate::base::CHUNK_SECTORS;
use crate::extent_map::Place;

/// How many chunks are composed in one go.
const BATCH_CHUNKS: u64 = 64;

/// Something to do to a range of chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Some of it was written.
    Compose(Range<u64>),
    /// All of it was zeroed.
    Clear(Range<u64>),
}

impl Step {
    fn chunks(&self) -> &Range<u64> {
        let (Self::Compose(chunks) | Self::Clear(chunks)) = self;
        chunks
    }

    /// The same, to other chunks.
    fn on(&self, chunks: Range<u64>) -> Self {
        match self {
            Self::Compose(_) => Self::Compose(chunks),
            Self::Clear(_) => Self::Clear(chunks),
        }
    }

    /// How many chunks are composed.
    pub(crate) fn composed(&self) -> u64 {
        if let Self::Compose(chunks) = self { chunks.end - chunks.start } else { 0 }
    }
}

/// What the runs of a map lead to, on a disk that ends at a sector: in ascending order, each chunk once. One is cleared only
/// if all of it is zero, and the disk's last one if all of it is that the disk has.
pub(crate) fn steps_of(runs: impl Iterator<Item = (u64, u64, Place)>, disk_end: u64) -> Vec<Step> {
    let mut runs = runs.map(|(start, end, place)| (start, end, place.is_zero())).peekable();
    let mut steps = Vec::new();
    let mut done = 0;
    while let Some((start, mut end, zero)) = runs.next() {
        // Zeroes side by side are one run, whoever said so.
        while zero && let Some((_, further, _)) = runs.next_if(|(next, _, zero)| *zero && *next == end) {
            end = further;
        }
        let touched = start / CHUNK_SECTORS..end.div_ceil(CHUNK_SECTORS);
        let whole = start.div_ceil(CHUNK_SECTORS)..if end >= disk_end { touched.end } else { end / CHUNK_SECTORS };
        let cleared = if zero && !whole.is_empty() { whole } else { touched.end..touched.end };
        push(&mut steps, Step::Compose(touched.start.max(done)..cleared.start));
        push(&mut steps, Step::Clear(cleared.clone()));
        push(&mut steps, Step::Compose(cleared.end..touched.end));
        done = touched.end;
    }
    steps
}

/// Steps over others: where both say something the upper ones count. What was written in part over what is cleared is
/// composed.
pub(crate) fn over(upper: Vec<Step>, lower: Vec<Step>) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lower = lower.into_iter();
    let mut below = lower.next();
    for step in upper {
        let Range { start, end } = *step.chunks();
        while let Some(under) = below.take_if(|under| under.chunks().start < end) {
            let Range { start: first, end: last } = *under.chunks();
            push(&mut steps, under.on(first..last.min(start)));
            below = if last > end { Some(under.on(end..last)) } else { lower.next() };
        }
        push(&mut steps, step);
    }
    below.into_iter().chain(lower).for_each(|step| push(&mut steps, step));
    steps
}

/// Adds a step, unless it is none, to the last one where it goes on with it.
fn push(steps: &mut Vec<Step>, step: Step) {
    let Range { start, end } = *step.chunks();
    match (steps.last_mut(), &step) {
        _ if start >= end => {}
        (Some(Step::Compose(last)), Step::Compose(_)) | (Some(Step::Clear(last)), Step::Clear(_))
            if last.end == start =>
        {
            last.end = end;
        }
        _ => steps.push(step),
    }
}

/// Cuts steps into batches that are composed in one go.
pub(crate) fn batches(steps: Vec<Step>) -> VecDeque<Vec<Step>> {
    let mut batches = VecDeque::new();
    let mut batch = Vec::new();
    let mut room = BATCH_CHUNKS;
    for step in steps {
        let Step::Compose(mut range) = step else {
            batch.push(step);
            continue;
        };
        while range.start < range.end {
            let end = range.end.min(range.start + room);
            room -= end - range.start;
            batch.push(Step::Compose(range.start..end));
            range.start = end;
            if room == 0 {
                batches.push_back(std::mem::take(&mut batch));
                room = BATCH_CHUNKS;
            }
        }
    }
    if !batch.is_empty() {
        batches.push_back(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::extent_map::ExtentMap;

    const SECTORS: u64 = CHUNK_SECTORS;

    type Runs = Vec<(u64, u64, bool, bool)>;

    fn runs() -> impl Strategy<Value = Runs> {
        prop::collection::vec((0..6 * SECTORS, 1..3 * SECTORS, any::<bool>(), any::<bool>()), 0..20)
    }

    fn place(zero: bool) -> Place {
        if zero { Place::zero(1, 64) } else { Place::data(1, 64) }
    }

    /// A map with runs of whole chunks or of sectors, as far as the disk goes.
    fn map_of(runs: Runs, size: u64) -> ExtentMap {
        let mut map = ExtentMap::default();
        for (start, length, zero, aligned) in runs {
            let start = if aligned { start / SECTORS * SECTORS } else { start };
            let end = (start + if aligned { length.next_multiple_of(SECTORS) } else { length }).min(size);
            if start < end {
                map.insert(start, end, place(zero));
            }
        }
        map
    }

    /// What is done to each chunk, whether it is cleared: once at most, and only to those that the disk has.
    fn done(steps: &[Step], size: u64) -> Vec<Option<bool>> {
        let mut done = vec![None; usize::try_from(size.div_ceil(SECTORS)).unwrap()];
        for step in steps {
            assert!(step.chunks().start < step.chunks().end);
            for index in step.chunks().clone() {
                let before = done[usize::try_from(index).unwrap()].replace(matches!(step, Step::Clear(_)));
                assert_eq!(before, None, "each chunk is in one step");
            }
        }
        done
    }

    /// What has to be done to each chunk: nothing, or whether it is all zero.
    fn wanted(map: &ExtentMap, size: u64) -> Vec<Option<bool>> {
        let of_chunk = |index: u64| {
            let (start, end) = (index * SECTORS, ((index + 1) * SECTORS).min(size));
            let places: Vec<_> = (start..end).map(|sector| map.find(sector, end).place).collect();
            let all_zero = places.iter().all(|place| place.is_some_and(Place::is_zero));
            places.iter().any(Option::is_some).then_some(all_zero)
        };
        (0..size.div_ceil(SECTORS)).map(of_chunk).collect()
    }

    proptest! {
        /// Every chunk that a layer touches is in one step, cleared only if all of it is zero, and no other chunk is; also on
        /// disks that end within a chunk.
        #[test]
        fn steps_are_what_was_touched(runs in runs(), size in 1..6 * SECTORS) {
            let map = map_of(runs, size);
            let steps = steps_of(map.iter(), size);
            prop_assert!(!steps.windows(2).any(|pair| {
                pair[0].chunks().end == pair[1].chunks().start && pair[0] == pair[1].on(pair[0].chunks().clone())
            }), "what goes on is one step: {:?}", steps);
            prop_assert_eq!(done(&steps, size), wanted(&map, size));
            let cut: Vec<_> = batches(steps).into_iter().flatten().collect();
            prop_assert_eq!(done(&cut, size), wanted(&map, size));
        }

        /// The steps of layers, one over the other, are to the same chunks as those of all that the layers say in one map, and
        /// clear nothing that has data.
        #[test]
        fn outlines_say_what_has_to_be_done(layers in prop::collection::vec(runs(), 1..4), size in 1..6 * SECTORS) {
            let (mut whole, mut steps, mut composed) = (ExtentMap::default(), Vec::new(), 0);
            for runs in layers {
                let map = map_of(runs, size);
                map.iter().for_each(|(start, end, place)| whole.insert(start, end, place));
                let own = steps_of(map.iter(), size);
                composed += own.iter().map(Step::composed).sum::<u64>();
                steps = over(own, steps);
            }
            prop_assert!(steps.iter().map(Step::composed).sum::<u64>() <= composed, "no more than is counted before");
            for (done, wanted) in done(&steps, size).into_iter().zip(wanted(&whole, size)) {
                prop_assert_eq!(done.is_some(), wanted.is_some());
                prop_assert!(done != Some(true) || wanted == Some(true), "data are not cleared");
            }
        }
    }

    #[test]
    fn scattered_writes_are_one_step_and_the_end_of_a_disk_within_a_chunk_is_the_end_of_it() {
        let scattered = (0..100).map(|chunk| (chunk * SECTORS + 8, chunk * SECTORS + 16, place(false)));
        assert_eq!(steps_of(scattered, 100 * SECTORS), [Step::Compose(0..100)]);
        let end = 9 * SECTORS + 8;
        let zeroes = |end| [(8, end, place(true))].into_iter();
        let steps = steps_of(zeroes(end), end);
        assert_eq!(steps, [Step::Compose(0..1), Step::Clear(1..10)]);
        assert_eq!(steps_of(zeroes(end - 1), end), [Step::Compose(0..1), Step::Clear(1..9), Step::Compose(9..10)]);
        let last = steps_of([(end - 1, end, place(false))].into_iter(), end);
        assert_eq!(over(last, steps), [Step::Compose(0..1), Step::Clear(1..9), Step::Compose(9..10)]);
    }

    #[test]
    fn a_batch_has_so_many_chunks_and_clearing_costs_nothing() {
        let steps = vec![Step::Compose(0..100), Step::Clear(100..1 << 30), Step::Compose(1 << 30..(1 << 30) + 30)];
        let batches = batches(steps);
        assert_eq!(batches.len(), 3);
        assert_eq!(batches[0], [Step::Compose(0..64)]);
        assert_eq!(batches[1].len(), 3);
        assert_eq!(batches[2], [Step::Compose((1 << 30) + 28..(1 << 30) + 30)]);
    }
}

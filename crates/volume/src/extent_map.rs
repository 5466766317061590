//! Where in a journal the sectors of a layer lie.
//!
//! Invariant: extents do not overlap and none is empty; of two writes to a sector the later one counts; the map knows of
//! each segment how much of it still counts. An extent takes 24 bytes, with what a tree of them needs besides about 40:
//! two million, 8 GiB of scattered 4 KiB writes, are mapped in some 80 MB.

use std::collections::BTreeMap;

use format::journal::HEADER_BYTES;
use types::SECTOR_BYTES;

/// The length of a record's header.
const HEADER: u64 = HEADER_BYTES as u64;

/// A place in a journal: a segment, and where in it. Packed into 8 bytes, with whether zeroes or data are there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place(u64);

/// What a run of sectors in a layer consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Data, beginning at a position of a segment.
    Data(u32, u64),
    /// Zeroes, because a record in a segment says so.
    Zero(u32),
}

const ZERO: u64 = 1 << 63;

impl Place {
    /// The highest number that a segment may have.
    pub(crate) const MAX_SEGMENT: u32 = u32::MAX >> 1;

    /// The data at a position, a multiple of 64 below 256 GiB, of a segment.
    pub(crate) fn data(segment: u32, position: u64) -> Self {
        debug_assert!(segment <= Self::MAX_SEGMENT && position.is_multiple_of(HEADER) && position >> 38 == 0);
        Self((u64::from(segment) << 32) | (position / HEADER))
    }

    /// Zeroes, because the record at a position of a segment says so.
    pub(crate) fn zero(segment: u32, position: u64) -> Self {
        Self(Self::data(segment, position).0 | ZERO)
    }

    pub(crate) fn is_zero(self) -> bool {
        self.0 & ZERO != 0
    }

    pub(crate) fn segment(self) -> u32 {
        u32::try_from((self.0 & !ZERO) >> 32).unwrap_or(u32::MAX)
    }

    pub(crate) fn content(self) -> Content {
        let segment = self.segment();
        if self.is_zero() { Content::Zero(segment) } else { Content::Data(segment, (self.0 & 0xffff_ffff) * HEADER) }
    }

    /// The place so many sectors on.
    pub(crate) fn advance(self, sectors: u64) -> Self {
        if self.is_zero() { self } else { Self(self.0 + sectors * (SECTOR_BYTES / HEADER)) }
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.content().fmt(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    end: u64,
    place: Place,
}

/// What begins at a sector: a run to `end`, or nothing up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The sector after the last.
    pub(crate) end: u64,
    /// What it consists of; `None` where this layer says nothing.
    pub(crate) place: Option<Place>,
}

/// The map, by first sector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExtentMap {
    extents: BTreeMap<u64, Extent>,
    /// What still counts of each segment, in bytes: data, and a header for each extent.
    live: BTreeMap<u32, u64>,
    data_sectors: u64,
}

impl ExtentMap {
    /// How many sectors have data in the journal that still count.
    pub(crate) fn data_sectors(&self) -> u64 {
        self.data_sectors
    }

    /// How many extents there are.
    pub(crate) fn extents(&self) -> u64 {
        self.extents.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// How much of a segment still counts, in bytes.
    pub(crate) fn live_bytes(&self, segment: u32) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    /// The segments of which something still counts.
    pub(crate) fn segments(&self) -> impl Iterator<Item = u32> {
        self.live.keys().copied()
    }

    /// Enters a run, in place of whatever was there.
    pub(crate) fn insert(&mut self, start: u64, end: u64, place: Place) {
        debug_assert!(start < end, "an extent is not empty");
        self.clear(start, end);
        self.put(start, Extent { end, place });
    }

    /// Enters a run only where nothing is.
    pub(crate) fn insert_below(&mut self, start: u64, end: u64, place: Place) {
        let mut sector = start;
        while sector < end {
            let run = self.find(sector, end);
            if run.place.is_none() {
                self.put(sector, Extent { end: run.end, place: place.advance(sector - start) });
            }
            sector = run.end;
        }
    }

    /// What of a range is still at the place where it once was entered, run by run.
    pub(crate) fn unmoved(&self, start: u64, end: u64, place: Place) -> impl Iterator<Item = (u64, u64)> {
        self.extents.range(start..end).filter_map(move |(first, extent)| {
            let same = extent.end <= end && extent.place == place.advance(first - start);
            same.then_some((*first, extent.end))
        })
    }

    /// Puts what of a range is still where it was at another place, whose content is the same.
    pub(crate) fn relocate(&mut self, start: u64, end: u64, from: Place, to: Place) {
        let runs: Vec<_> = self.unmoved(start, end, from).collect();
        for (first, last) in runs {
            self.take(first);
            self.put(first, Extent { end: last, place: to.advance(first - start) });
        }
    }

    /// A range that is to be zeroed, with the zeroes that it touches: one record then says it of all of them.
    pub(crate) fn with_zeroes_around(&self, start: u64, end: u64) -> (u64, u64) {
        let zero = |(_, extent): &(&u64, &Extent)| extent.place.is_zero();
        let left = self.extents.range(..start).next_back().filter(zero).filter(|(_, extent)| extent.end >= start);
        let right = self.extents.range(..=end).next_back().filter(zero).filter(|(_, extent)| extent.end > end);
        (left.map_or(start, |(first, _)| *first), right.map_or(end, |(_, extent)| extent.end))
    }

    /// Removes what lies in a range, cutting what reaches out of it.
    fn clear(&mut self, start: u64, end: u64) {
        let left = self.extents.range(..start).next_back().map(|(first, extent)| (*first, *extent));
        if let Some((first, extent)) = left.filter(|(_, extent)| extent.end > start) {
            self.take(first);
            self.put(first, Extent { end: start, ..extent });
            self.keep_rest(first, extent, end);
        }
        while let Some(first) = self.extents.range(start..end).next().map(|(first, _)| *first) {
            if let Some(extent) = self.take(first) {
                self.keep_rest(first, extent, end);
            }
        }
    }

    fn keep_rest(&mut self, first: u64, extent: Extent, from: u64) {
        if extent.end > from {
            self.put(from, Extent { end: extent.end, place: extent.place.advance(from - first) });
        }
    }

    fn put(&mut self, first: u64, extent: Extent) {
        let (data, bytes) = weight(first, extent);
        self.data_sectors += data;
        *self.live.entry(extent.place.segment()).or_default() += bytes;
        self.extents.insert(first, extent);
    }

    fn take(&mut self, first: u64) -> Option<Extent> {
        let extent = self.extents.remove(&first)?;
        let (data, bytes) = weight(first, extent);
        self.data_sectors -= data;
        let segment = extent.place.segment();
        if let Some(live) = self.live.get_mut(&segment) {
            *live -= bytes;
            if *live == 0 {
                self.live.remove(&segment);
            }
        }
        Some(extent)
    }

    /// Finds what begins at a sector and how far it goes, at most to `end`.
    pub(crate) fn find(&self, start: u64, end: u64) -> Run {
        if let Some((first, extent)) = self.extents.range(..=start).next_back()
            && extent.end > start
        {
            return Run { end: extent.end.min(end), place: Some(extent.place.advance(start - first)) };
        }
        let next = self.extents.range(start..end).next().map_or(end, |(first, _)| *first);
        Run { end: next, place: None }
    }

    /// All runs in order: first sector, the sector after the last, and where it is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, Place)> {
        self.extents.iter().map(|(first, extent)| (*first, extent.end, extent.place))
    }

    /// Some runs in order, from a sector on.
    pub(crate) fn some(&self, from: u64, most: usize) -> Vec<(u64, u64, Place)> {
        let runs = self.extents.range(from..).take(most);
        runs.map(|(first, extent)| (*first, extent.end, extent.place)).collect()
    }
}

/// What an extent adds to the sectors with data, and to what counts of its segment.
fn weight(first: u64, extent: Extent) -> (u64, u64) {
    let data = if extent.place.is_zero() { 0 } else { extent.end - first };
    (data, data * SECTOR_BYTES + HEADER)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECTORS: u64 = 64;

    fn check_live(map: &ExtentMap) {
        let mut live: BTreeMap<u32, u64> = BTreeMap::new();
        for (start, end, place) in map.iter() {
            let data = if place.is_zero() { 0 } else { end - start };
            *live.entry(place.segment()).or_default() += data * 512 + 64;
        }
        assert_eq!(map.live, live);
        assert!(map.segments().all(|segment| map.live_bytes(segment) > 0));
    }

    proptest! {
        /// The map says the same as an array of sectors, also after places have changed.
        #[test]
        fn a_later_write_counts(writes in prop::collection::vec((0..SECTORS, 1..20_u64, any::<bool>()), 0..80)) {
            let mut map = ExtentMap::default();
            let mut model = BTreeMap::new();
            let mut position = 64;
            let mut entered = Vec::new();
            for (number, (start, length, zero)) in (0_u32..).zip(writes) {
                let end = (start + length).min(SECTORS);
                let place = if zero { Place::zero(number / 9, position) } else { Place::data(number / 9, position + 64) };
                map.insert(start, end, place);
                entered.push((start, end, place));
                for sector in start..end {
                    model.insert(sector, place.advance(sector - start));
                }
                position += 64 + (end - start) * 512;
            }
            let check = |map: &ExtentMap, model: &BTreeMap<u64, Place>| {
                let data = model.values().filter(|place| !place.is_zero()).count();
                assert_eq!(map.data_sectors(), data as u64);
                for start in 0..SECTORS {
                    let run = map.find(start, SECTORS);
                    assert!(run.end > start && run.end <= SECTORS);
                    for sector in start..run.end {
                        assert_eq!(model.get(&sector).copied(), run.place.map(|place| place.advance(sector - start)));
                    }
                }
                let runs: Vec<_> = map.iter().collect();
                assert!(runs.iter().all(|(start, end, _)| start < end));
                assert!(runs.is_sorted_by(|left, right| left.1 <= right.0));
                check_live(map);
            };
            check(&map, &model);
            // Every second entry moves to another segment.
            for (number, (start, end, place)) in entered.into_iter().enumerate().filter(|(number, _)| number % 2 == 0) {
                let to = if place.is_zero() { Place::zero(1000, 64) } else { Place::data(1000, (number as u64 + 1) << 20) };
                map.relocate(start, end, place, to);
                for sector in start..end {
                    if model.get(&sector) == Some(&place.advance(sector - start)) {
                        model.insert(sector, to.advance(sector - start));
                    }
                }
            }
            check(&map, &model);
        }

        /// What lies below fills the gaps and nothing else.
        #[test]
        fn what_is_above_counts(
            above in prop::collection::vec((0..SECTORS, 1..9_u64), 0..20),
            below in prop::collection::vec((0..SECTORS, 1..20_u64), 0..20),
        ) {
            let maps = [above, below].map(|runs| {
                let mut map = ExtentMap::default();
                for (number, (start, length)) in (1..).zip(runs) {
                    map.insert(start, start + length, Place::data(1, number << 20));
                }
                map
            });
            let [mut above, below] = maps;
            let before = above.clone();
            below.iter().for_each(|(start, end, place)| above.insert_below(start, end, place));
            for sector in 0..SECTORS + 20 {
                let at = |map: &ExtentMap| map.find(sector, sector + 1).place;
                prop_assert_eq!(at(&above), at(&before).or(at(&below)));
            }
            check_live(&above);
        }
    }

    #[test]
    fn zeroes_are_said_of_once() {
        let mut map = ExtentMap::default();
        map.insert(0, 8, Place::zero(1, 64));
        map.insert(8, 16, Place::data(1, 192));
        map.insert(24, 32, Place::zero(1, 128));
        assert_eq!(map.with_zeroes_around(16, 24), (16, 32));
        assert_eq!(map.with_zeroes_around(8, 16), (0, 16));
        assert_eq!(map.with_zeroes_around(8, 24), (0, 32));
        assert_eq!(map.with_zeroes_around(4, 28), (0, 32));
        assert_eq!(map.with_zeroes_around(40, 44), (40, 44));
    }

    #[test]
    fn an_extent_is_small() {
        assert_eq!(size_of::<u64>() + size_of::<Extent>(), 24);
    }
}

//! Where in a journal the sectors of a layer lie.
//!
//! Invariant: extents do not overlap and none is empty; of two writes to a sector the later one counts. An extent
//! takes 24 bytes, so that a gigabyte of scattered 4 KiB writes is mapped in a few megabytes.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use types::SECTOR_BYTES;

/// What a run of sectors in a layer consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Data, beginning at a position of the journal.
    Journal(NonZeroU64),
    /// Zeroes.
    Zero,
}

impl Place {
    fn advance(self, sectors: u64) -> Self {
        match self {
            Self::Journal(position) => Self::Journal(position.saturating_add(sectors * SECTOR_BYTES)),
            Self::Zero => Self::Zero,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    end: u64,
    /// `None` is zeroes: the niche keeps an extent small.
    position: Option<NonZeroU64>,
}

impl Extent {
    fn place(self) -> Place {
        self.position.map_or(Place::Zero, Place::Journal)
    }

    fn new(end: u64, place: Place) -> Self {
        let position = match place {
            Place::Journal(position) => Some(position),
            Place::Zero => None,
        };
        Self { end, position }
    }
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
    data_sectors: u64,
}

impl ExtentMap {
    /// How many sectors have data in the journal that still count.
    pub(crate) fn data_sectors(&self) -> u64 {
        self.data_sectors
    }

    /// Enters a run, in place of whatever was there.
    pub(crate) fn insert(&mut self, start: u64, end: u64, place: Place) {
        debug_assert!(start < end, "an extent is not empty");
        self.clear(start, end);
        let (mut start, mut end) = (start, end);
        if place == Place::Zero {
            if let Some((left, extent)) = self.extents.range(..start).next_back()
                && extent.end == start
                && extent.position.is_none()
            {
                start = *left;
            }
            if let Some(right) = self.extents.get(&end).filter(|right| right.position.is_none()).copied() {
                self.extents.remove(&end);
                end = right.end;
            }
        } else {
            self.data_sectors += end - start;
        }
        self.extents.insert(start, Extent::new(end, place));
    }

    /// Removes what lies in a range, cutting what reaches out of it.
    fn clear(&mut self, start: u64, end: u64) {
        let left = self.extents.range(..start).next_back().map(|(first, extent)| (*first, *extent));
        if let Some((first, extent)) = left.filter(|(_, extent)| extent.end > start) {
            self.extents.insert(first, Extent { end: start, ..extent });
            self.forget(extent, extent.end.min(end) - start);
            self.keep_rest(first, extent, end);
        }
        while let Some((first, extent)) = self.extents.range(start..end).next().map(|(first, extent)| (*first, *extent))
        {
            self.extents.remove(&first);
            self.forget(extent, extent.end.min(end) - first);
            self.keep_rest(first, extent, end);
        }
    }

    fn forget(&mut self, extent: Extent, sectors: u64) {
        if extent.position.is_some() {
            self.data_sectors -= sectors;
        }
    }

    /// Enters again what of a removed extent lies beyond `from`.
    fn keep_rest(&mut self, first: u64, extent: Extent, from: u64) {
        if extent.end > from {
            self.extents.insert(from, Extent::new(extent.end, extent.place().advance(from - first)));
        }
    }

    /// Finds what begins at a sector and how far it goes, at most to `end`.
    pub(crate) fn find(&self, start: u64, end: u64) -> Run {
        if let Some((first, extent)) = self.extents.range(..=start).next_back()
            && extent.end > start
        {
            return Run { end: extent.end.min(end), place: Some(extent.place().advance(start - first)) };
        }
        let next = self.extents.range(start..end).next().map_or(end, |(first, _)| *first);
        Run { end: next, place: None }
    }

    /// All runs in order: first sector, the sector after the last, and what it consists of.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, Place)> {
        self.extents.iter().map(|(first, extent)| (*first, extent.end, extent.place()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECTORS: u64 = 64;

    fn at(position: u64) -> Place {
        NonZeroU64::new(position).map_or(Place::Zero, Place::Journal)
    }

    proptest! {
        /// The map says the same as an array of sectors.
        #[test]
        fn a_later_write_counts(writes in prop::collection::vec((0..SECTORS, 1..20_u64, any::<bool>()), 0..80)) {
            let mut map = ExtentMap::default();
            let mut model = BTreeMap::new();
            let mut position = 64;
            for (start, length, zero) in writes {
                let end = (start + length).min(SECTORS);
                map.insert(start, end, if zero { Place::Zero } else { at(position) });
                for sector in start..end {
                    model.insert(sector, if zero { Place::Zero } else { at(position + (sector - start) * 512) });
                }
                position += 64 + (end - start) * 512;
            }
            let data = model.values().filter(|place| matches!(place, Place::Journal(_))).count();
            prop_assert_eq!(map.data_sectors(), data as u64);
            for start in 0..SECTORS {
                let run = map.find(start, SECTORS);
                prop_assert!(run.end > start && run.end <= SECTORS);
                for sector in start..run.end {
                    prop_assert_eq!(model.get(&sector).copied(), run.place.map(|place| place.advance(sector - start)));
                }
            }
            let runs: Vec<_> = map.iter().collect();
            prop_assert!(runs.iter().all(|(start, end, _)| start < end));
            prop_assert!(runs.is_sorted_by(|left, right| left.1 <= right.0));
            let neighbours = |pair: &[(u64, u64, Place)]| {
                pair[0].1 == pair[1].0 && pair[0].2 == Place::Zero && pair[1].2 == Place::Zero
            };
            prop_assert!(!runs.windows(2).any(neighbours), "neighbouring zeroes are one extent");
        }
    }

    #[test]
    fn an_extent_is_small() {
        assert_eq!(size_of::<u64>() + size_of::<Extent>(), 24);
    }
}

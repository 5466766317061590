//! Repeatable choices, and what of unsynchronised changes a loss of power leaves.

/// A small generator of repeatable choices (SplitMix64, Steele et al., OOPSLA 2014); not for secrets.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Begins from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number below a bound; zero where the bound is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound.max(1)
    }

    /// Says yes `times` in 256.
    pub fn in_256(&mut self, times: u64) -> bool {
        self.number() >> 56 < times
    }
}

/// How a loss of power treats what was not synchronised. Real media do all of this, so each is tried often.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The cache had been written out in time.
    Everything,
    /// Nothing of the cache had been written out.
    Nothing,
    /// Every sector, length and name for itself, so many times in 256.
    Each(u64),
    /// Every change as a whole, so many times in 256.
    Whole(u64),
    /// In order up to a change, which is torn.
    Until(u64),
}

/// Decides for one loss of power.
#[derive(Clone, Debug)]
pub(super) struct Survival {
    fate: Fate,
    chance: Chance,
    /// The change that is being decided, and what was decided for it as a whole.
    change: (u64, bool),
}

impl Survival {
    /// Of a loss of power after so many changes.
    pub(super) fn new(seed: u64, changes: u64) -> Self {
        let mut chance = Chance::new(seed);
        let fate = match chance.below(8) {
            0 => Fate::Everything,
            1 => Fate::Nothing,
            2 | 3 => Fate::Each(1 + chance.below(255)),
            4 | 5 => Fate::Whole(1 + chance.below(255)),
            // The latest changes are those that matter.
            _ => Fate::Until(changes.saturating_sub(chance.below(12))),
        };
        Self { fate, chance, change: (u64::MAX, false) }
    }

    /// Whether a part of a change survives; asked for once for each part.
    pub(super) fn keeps(&mut self, change: u64) -> bool {
        match self.fate {
            Fate::Everything => true,
            Fate::Nothing => false,
            Fate::Each(times) => self.chance.in_256(times),
            Fate::Until(last) => change < last || (change == last && self.chance.in_256(128)),
            Fate::Whole(times) => {
                if self.change.0 != change {
                    self.change = (change, self.chance.in_256(times));
                }
                self.change.1
            }
        }
    }
}

//! What was put or found present under a hold: a filter that grows, and never says no to what was entered.
//!
//! It says yes to about one in a hundred of what was not: that stays for the next collection. It costs about ten bits
//! for each object (Bloom, "Space/time trade-offs in hash coding with allowable errors", 1970).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::{Domain, Key};

/// Bits for each object.
const BITS: u64 = 10;

/// How many bits one object sets.
const HASHES: u64 = 6;

/// How many objects the first filter is for.
const FIRST_CAPACITY: u64 = 1 << 14;

/// Turns keys into numbers that nobody can foresee, so that nobody can choose keys that collide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mixer {
    add: u64,
    multiply: u64,
}

impl Mixer {
    pub(crate) fn new() -> Self {
        let random = RandomState::new();
        Self { add: random.hash_one(1_u64), multiply: random.hash_one(2_u64) | 1 }
    }

    /// A number for a key together with another number.
    pub(crate) fn mix(self, key: &Key, with: u64) -> u64 {
        let (first, _) = key.hash.split_first_chunk::<8>().expect("a hash has 32 bytes");
        let tagged = ((with << 2) | (key.kind as u64 & 3)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (u64::from_le_bytes(*first) ^ self.add).wrapping_mul(self.multiply) ^ tagged;
        (mixed ^ (mixed >> 29)).wrapping_mul(self.multiply)
    }
}

#[derive(Debug)]
struct Filter {
    words: Box<[AtomicU64]>,
    entered: AtomicU64,
    capacity: u64,
}

impl Filter {
    fn new(capacity: u64) -> Self {
        let words = usize::try_from(capacity * BITS / 64).expect("a filter fits the memory");
        let words = std::iter::repeat_with(AtomicU64::default).take(words).collect();
        Self { words, entered: AtomicU64::new(0), capacity }
    }

    fn bits(&self, number: u64) -> impl Iterator<Item = (usize, u64)> {
        let words = self.words.len() as u64;
        let step = number.rotate_left(32) | 1;
        (0..HASHES).map(move |hash| {
            let bit = number.wrapping_add(hash.wrapping_mul(step));
            // The upper half chooses the word, evenly; six other bits the bit in it.
            let word = u64::try_from((u128::from(bit) * u128::from(words)) >> 64).unwrap_or(0);
            (usize::try_from(word).unwrap_or(0), 1 << (bit & 63))
        })
    }

    fn contains(&self, number: u64) -> bool {
        self.bits(number).all(|(word, bit)| self.words[word].load(Ordering::Acquire) & bit != 0)
    }

    fn insert(&self, number: u64) {
        for (word, bit) in self.bits(number) {
            self.words[word].fetch_or(bit, Ordering::AcqRel);
        }
        self.entered.fetch_add(1, Ordering::Relaxed);
    }
}

/// Filters that grow, each twice as large as the one before.
#[derive(Debug)]
struct Growing(RwLock<Vec<Filter>>);

impl Growing {
    fn new() -> Self {
        Self(RwLock::new(vec![Filter::new(FIRST_CAPACITY)]))
    }

    fn insert(&self, number: u64) {
        let filters = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if filters.iter().any(|filter| filter.contains(number)) {
            return;
        }
        let Some(last) = filters.last() else { return };
        last.insert(number);
        let (capacity, full) = (last.capacity, last.entered.load(Ordering::Relaxed) >= last.capacity);
        drop(filters);
        if full {
            let mut filters = self.0.write().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have seen it, too.
            if filters.last().is_some_and(|last| last.capacity == capacity) {
                filters.push(Filter::new(2 * capacity));
            }
        }
    }

    fn contains(&self, number: u64) -> bool {
        let filters = self.0.read().unwrap_or_else(PoisonError::into_inner);
        filters.iter().any(|filter| filter.contains(number))
    }

    fn memory_bytes(&self) -> u64 {
        let filters = self.0.read().unwrap_or_else(PoisonError::into_inner);
        filters.iter().map(|filter| filter.words.len() as u64 * 8).sum()
    }
}

/// The number that stands for all domains together.
const ANY_DOMAIN: u64 = 1 << 33;

/// A set of objects that never says no to what was entered, and yes to about one in a hundred of what was not.
#[derive(Debug)]
pub(crate) struct Sieve {
    mixer: Mixer,
    numbers: Growing,
}

impl Sieve {
    pub(crate) fn new() -> Self {
        Self { mixer: Mixer::new(), numbers: Growing::new() }
    }

    pub(crate) fn insert(&self, key: &Key) {
        self.numbers.insert(self.mixer.mix(key, ANY_DOMAIN));
    }

    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.numbers.contains(self.mixer.mix(key, ANY_DOMAIN))
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.numbers.memory_bytes()
    }
}

/// The objects that are kept whatever the roots say.
#[derive(Debug)]
pub(crate) struct Pins {
    mixer: Mixer,
    numbers: Growing,
}

impl Pins {
    pub(crate) fn new() -> Self {
        Self { mixer: Mixer::new(), numbers: Growing::new() }
    }

    /// Pins an object in a domain.
    pub(crate) fn insert(&self, key: &Key, domain: Domain) {
        self.numbers.insert(self.mixer.mix(key, ANY_DOMAIN));
        self.numbers.insert(self.mixer.mix(key, domain.0.into()));
    }

    /// Whether an object is pinned in any domain.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.numbers.contains(self.mixer.mix(key, ANY_DOMAIN))
    }

    /// Whether an object is pinned in a domain.
    pub(crate) fn contains_in(&self, key: &Key, domain: Domain) -> bool {
        self.numbers.contains(self.mixer.mix(key, domain.0.into()))
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.numbers.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn key(number: u64) -> Key {
        Key { kind: Kind::Chunk, hash: *blake3::hash(&number.to_le_bytes()).as_bytes() }
    }

    #[test]
    fn everything_that_was_pinned_is_and_little_else() {
        let pins = Pins::new();
        let many = 100_000;
        for number in 0..many {
            pins.insert(&key(number), Domain(3));
        }
        for number in 0..many {
            assert!(pins.contains(&key(number)) && pins.contains_in(&key(number), Domain(3)));
        }
        let wrong = (many..2 * many).filter(|number| pins.contains(&key(*number))).count();
        assert!(wrong < 8_000, "{wrong}");
        let wrong = (0..many).filter(|number| pins.contains_in(&key(*number), Domain(4))).count();
        assert!(wrong < 8_000, "{wrong}");
        // Two numbers for each: the object, and the object in its domain.
        assert!(pins.memory_bytes() < many * 2 * 5, "{}", pins.memory_bytes());
    }
}

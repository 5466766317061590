//! Mutations of bytes from a seed: the same seed gives the same bytes on every machine.

/// Numbers from a seed (SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Begins a sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below a limit; 0 for a limit of 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = limit.max(1) as u64;
        usize::try_from(self.number() % limit).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }
}

/// Numbers at which lengths and counts go wrong.
const INTERESTING: [u64; 16] =
    [0, 1, 2, 7, 8, 31, 32, 255, 256, 4096, 65535, 65536, 1 << 31, u32::MAX as u64, 1 << 63, u64::MAX];

/// The longest bytes that are made of a seed.
const MAX_BYTES: usize = 256 << 10;

/// Changes bytes in one to eight ways; `other` is another seed, to take parts from.
#[must_use]
pub fn mutate(numbers: &mut Numbers, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(8) {
        change(numbers, &mut bytes, other);
        if numbers.below(3) == 0 {
            break;
        }
    }
    bytes.truncate(MAX_BYTES);
    bytes
}

fn change(numbers: &mut Numbers, bytes: &mut Vec<u8>, other: &[u8]) {
    let place = numbers.below(bytes.len());
    let longest = 1 << numbers.below(8);
    let span = (1 + numbers.below(longest)).min(bytes.len().saturating_sub(place));
    match numbers.below(10) {
        0 => bytes.truncate(place),
        1 => bytes.insert(place, numbers.byte()),
        2 => drop(bytes.drain(place..place + span)),
        3 => {
            let copy = bytes[place..place + span].to_vec();
            let to = numbers.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        4 => {
            let from = numbers.below(other.len());
            let part = &other[from..(from + span).min(other.len())];
            bytes.splice(place..place, part.iter().copied());
        }
        5 => bytes.extend((0..=numbers.below(40)).map(|_| 0)),
        6 | 7 => {
            // An integer of 1, 2, 4 or 8 bytes, of either byte order.
            let width = 1 << numbers.below(4);
            let number = INTERESTING[numbers.below(INTERESTING.len())];
            let number = if numbers.below(4) == 0 { number.wrapping_sub(1) } else { number };
            let [little, big] = [number.to_le_bytes(), number.to_be_bytes()];
            let encoded = if numbers.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
            for (to, from) in bytes.iter_mut().skip(place).zip(encoded) {
                *to = *from;
            }
        }
        _ => {
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << numbers.below(8);
            }
        }
    }
}

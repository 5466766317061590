//! Sizes in bytes as people write them, and the limits of disks.

use std::fmt;
use std::str::FromStr;

/// The unit of addressing and of atomicity, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// The size of a chunk, in bytes (why: `docs/format.md`).
pub const CHUNK_BYTES: usize = 64 * 1024;

/// The largest disk, in bytes: 64 TiB.
pub const MAX_DISK_BYTES: u64 = 64 << 40;

/// A number of bytes, read from and shown in binary units (`10GiB`, `512 MiB`, `4096`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

/// A size could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a size: write a number and a unit such as KiB, MiB, GiB or TiB, for example 10GiB")]
pub struct SizeError {
    text: String,
}

const UNITS: [(&str, u64); 16] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("p", 1 << 50),
    ("pib", 1 << 50),
];

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError { text: text.to_owned() };
        let trimmed = text.trim().to_ascii_lowercase();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(error)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let bytes = whole.parse::<u64>().map_err(|_| error())?.checked_mul(*scale).ok_or_else(error)?;
        if fraction.is_empty() {
            return if number.ends_with('.') { Err(error()) } else { Ok(Self(bytes)) };
        }
        let digits = u32::try_from(fraction.len()).ok().filter(|digits| *digits <= 9).ok_or_else(error)?;
        let part = u128::from(fraction.parse::<u64>().map_err(|_| error())?) * u128::from(*scale);
        let divisor = 10_u128.pow(digits);
        let part = u64::try_from(part / divisor).map_err(|_| error())?;
        bytes.checked_add(part).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const STEPS: [(&str, u32); 5] = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        let text = match STEPS.iter().find(|(_, shift)| self.0 >> shift > 0) {
            None => format!("{} B", self.0),
            Some((unit, shift)) if self.0.trailing_zeros() >= *shift => format!("{} {unit}", self.0 >> shift),
            Some((unit, shift)) => {
                let tenths = (u128::from(self.0) * 10 + (1_u128 << (shift - 1))) >> shift;
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            }
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in
            [("10GiB", 10 << 30), ("512 MiB", 512 << 20), ("4096", 4096), ("1.5g", 3 << 29), ("2MB", 2_000_000)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1", "1.", "99999999TiB", "1e9", "10 bananas", "1.5.2G"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn shows_whole_units_exactly_and_others_with_one_digit() {
        assert_eq!(ByteSize(10 << 30).to_string(), "10 GiB");
        assert_eq!(ByteSize(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteSize(17).to_string(), "17 B");
    }
}

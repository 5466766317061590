//! Which of the snapshots that a schedule has taken are kept: how many, for which spans of time.
//!
//! The rules are those of restic, BorgBackup and Proxmox (`keep-last`, `keep-hourly`, …). What they mean is decided where
//! snapshots are.

use std::fmt;
use std::str::FromStr;

/// The largest number of one rule.
const MOST: u32 = 100_000;

/// How many snapshots are kept: the last ones, and the latest one of each hour, day, week, month or year.
///
/// As text, `3,24h,7d,4w,12m,1y`: each number at most once, with the letter of its span; the last ones without one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Keep {
    /// The last ones, however close they are.
    pub last: u32,
    /// One for each of so many hours.
    pub hourly: u32,
    /// One for each of so many days.
    pub daily: u32,
    /// One for each of so many weeks, which begin on Mondays.
    pub weekly: u32,
    /// One for each of so many months.
    pub monthly: u32,
    /// One for each of so many years.
    pub yearly: u32,
}

/// Rules could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} does not say what is kept: write numbers with h, d, w, m or y, each once, for example 24h,7d,4w (and 3 for the last three)"
)]
pub struct KeepError {
    text: String,
}

impl Keep {
    /// The numbers, with the letters that stand behind them in the text.
    #[must_use]
    pub const fn numbers(&self) -> [(u32, &'static str); 6] {
        let Self { last, hourly, daily, weekly, monthly, yearly } = *self;
        [(last, ""), (hourly, "h"), (daily, "d"), (weekly, "w"), (monthly, "m"), (yearly, "y")]
    }

    /// What keeps everything that one of two keeps.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            last: self.last.max(other.last),
            hourly: self.hourly.max(other.hourly),
            daily: self.daily.max(other.daily),
            weekly: self.weekly.max(other.weekly),
            monthly: self.monthly.max(other.monthly),
            yearly: self.yearly.max(other.yearly),
        }
    }
}

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, KeepError> {
        let error = || KeepError { text: text.to_owned() };
        let mut keep = Self::default();
        // A plus stands for a comma, which not every command line can pass.
        for part in text.split([',', '+']).map(str::trim) {
            let digits = part.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
            let number = match &part[digits.len()..] {
                "" => &mut keep.last,
                "h" => &mut keep.hourly,
                "d" => &mut keep.daily,
                "w" => &mut keep.weekly,
                "m" => &mut keep.monthly,
                "y" => &mut keep.yearly,
                _ => return Err(error()),
            };
            if *number != 0 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                return Err(error());
            }
            *number = digits.parse().ok().filter(|number| (1..=MOST).contains(number)).ok_or_else(error)?;
        }
        Ok(keep)
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.numbers().into_iter().filter(|(number, _)| *number > 0);
        let texts: Vec<String> = said.map(|(number, letter)| format!("{number}{letter}")).collect();
        f.pad(&texts.join(","))
    }
}

impl serde::Serialize for Keep {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Keep {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> minicbor::Encode<C> for Keep {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.str(&self.to_string())?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Keep {
    fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        decoder.str()?.parse().map_err(|_| minicbor::decode::Error::message("does not say what is kept"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_are_numbers_with_letters() {
        let keep = Keep { last: 3, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 1 };
        assert_eq!("3,24h,7d,4w,12m,1y".parse(), Ok(keep));
        assert_eq!("7d+24h, 3 + 12m,1y,4w".parse(), Ok(keep), "in any order");
        for bad in ["", ",", "h", "0", "0h", "7d,7d", "7x", "7dd", "-7d", "1.5d", "7 d", "é", "100001", "99999999999d"]
        {
            assert!(bad.parse::<Keep>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_says_all(numbers in proptest::array::uniform6(0..=MOST)) {
            let [last, hourly, daily, weekly, monthly, yearly] = numbers;
            let keep = Keep { last, hourly, daily, weekly, monthly, yearly };
            prop_assume!(keep != Keep::default());
            prop_assert_eq!(keep.to_string().parse(), Ok(keep));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            if let Ok(keep) = text.parse::<Keep>() {
                prop_assert!(keep != Keep::default());
            }
        }
    }
}

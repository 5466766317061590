//! Which histories are run, and how one is run again.

use std::ops::Range;

/// The seeds of this run: a few, many with `BRANT_TEST_FULL`, or the one that is asked for.
pub(crate) fn seeds(few: u64, many: u64) -> Range<u64> {
    if let Ok(seed) = std::env::var("BRANT_TEST_SEED") {
        let seed = seed.parse().expect("BRANT_TEST_SEED is a number");
        return seed..seed + 1;
    }
    0..if std::env::var_os("BRANT_TEST_FULL").is_some() { many } else { few }
}

/// How a history is run again.
pub(crate) fn repeat(seed: u64, test: &str) -> String {
    format!("to repeat it: BRANT_TEST_SEED={seed} cargo nextest run -p volume --test {test}")
}

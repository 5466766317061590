//! Counts what passed, failed and was skipped, and reads the counts of `cargo test`.
//!
//! A test that cannot run where it is prints a line `SKIPPED: why`; it counts as skipped, not as passed, and is named at the end.

use std::fmt;

/// What a line of a test's output begins with when the test could not run here.
pub const SKIP_MARK: &str = "SKIPPED: ";

/// Counts over tests and stages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many passed.
    pub passed: usize,
    /// The names of those that failed.
    pub failed: Vec<String>,
    /// The names of those that could not run, with the reason.
    pub skipped: Vec<String>,
}

impl Tally {
    /// One that passed.
    #[must_use]
    pub fn pass() -> Tally {
        Tally { passed: 1, ..Tally::default() }
    }

    /// One that failed.
    #[must_use]
    pub fn fail(name: impl Into<String>) -> Tally {
        Tally { failed: vec![name.into()], ..Tally::default() }
    }

    /// One that could not run; `reason` says what is missing, by name.
    #[must_use]
    pub fn skip(name: &str, reason: &str) -> Tally {
        Tally { skipped: vec![format!("{name}: {reason}")], ..Tally::default() }
    }

    /// Adds the counts of `other`.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// Counts what `cargo test -- --show-output` wrote: its result lines, the names of failures, and the skips.
    #[must_use]
    pub fn of_cargo_test(output: &str) -> Tally {
        let mut tally = Tally::default();
        for line in output.lines().map(str::trim) {
            if let Some(counts) = line.strip_prefix("test result: ") {
                let count = |word: &str| {
                    counts
                        .split([';', '.'])
                        .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok())
                        .unwrap_or(0)
                };
                tally.passed += count("passed");
            } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
                tally.failed.push(name.to_owned());
            } else if let Some(rest) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ignored")) {
                tally.skipped.push(format!("{}: ignored", rest.0));
            } else if let Some(reason) = line.strip_prefix(SKIP_MARK) {
                tally.skipped.push(reason.to_owned());
            }
        }
        // A test that skipped itself has been counted as passed by the harness, which knows no better.
        let skipped_itself = tally.skipped.iter().filter(|name| !name.ends_with(": ignored")).count();
        tally.passed = tally.passed.saturating_sub(skipped_itself);
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_results_of_cargo_test() {
        let output = "\
running 3 tests
test tests::one ... ok
test tests::two ... FAILED
test tests::three ... ignored, needs a disk

---- tests::one stdout ----
SKIPPED: one: no loop devices

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let tally = Tally::of_cargo_test(output);
        assert_eq!(tally.passed, 12);
        assert_eq!(tally.failed, ["tests::two"]);
        assert_eq!(tally.skipped, ["tests::three: ignored", "one: no loop devices"]);
        assert_eq!(tally.to_string(), "12 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn adds_up() {
        let mut tally = Tally::pass();
        tally.add(Tally::fail("clippy"));
        tally.add(Tally::skip("deny", "no cargo-deny"));
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(tally.skipped, ["deny: no cargo-deny"]);
    }
}

//! Which histories are run, and how one is run again.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

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

/// Runs the history of each seed, on as many threads as there are processors, and adds up what they return.
///
/// # Panics
/// When a history fails, with what has to be done to repeat it.
pub(crate) fn run(few: u64, many: u64, test: &str, history: impl Fn(u64) -> Result<u64, String> + Sync) -> u64 {
    let seeds = seeds(few, many);
    let (next, total) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match history(seed) {
                Ok(more) => total.fetch_add(more, Ordering::Relaxed),
                Err(what) => panic!("seed {seed}, {what}\n{}", repeat(seed, test)),
            };
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        if let Some(panic) = threads.into_iter().find_map(|thread| thread.join().err()) {
            resume_unwind(panic);
        }
    });
    total.into_inner()
}

//! Every decoder keeps its promises for mutated bytes, on stable Rust, the same for the same seed.
//!
//! `BRANT_FUZZ_SECONDS` is how long all targets take together (default 3); `BRANT_FUZZ_ITERATIONS` runs each so many
//! times instead, and `BRANT_FUZZ_SEED` repeats a run that failed. A failure prints the seed, the target and the bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "how much was tried is shown with --nocapture")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use fuzz::mutate::{Numbers, mutate};
use fuzz::{TARGETS, Target};

/// How much memory the process may take, in bytes: a decoder that believes a length fails here.
const MAX_MEMORY_BYTES: u64 = 4 << 30;

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn seed() -> u64 {
    setting("BRANT_FUZZ_SEED").unwrap_or_else(|| getrandom::u64().unwrap())
}

fn limit_memory() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::As);
    limit.current = Some(limit.maximum.unwrap_or(MAX_MEMORY_BYTES).min(MAX_MEMORY_BYTES));
    setrlimit(Resource::As, limit).unwrap();
}

/// Gives a target bytes, and tells everything that is needed to do it again if it panics.
fn try_bytes(target: &Target, seed: u64, bytes: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).unwrap_or_else(|_| {
        let shown: String = bytes.iter().take(4096).map(|byte| format!("{byte:02x}")).collect();
        panic!("target {} with BRANT_FUZZ_SEED={seed} on {} bytes: {shown}", target.name, bytes.len())
    })
}

fn run(target: &Target) {
    limit_memory();
    let seed = seed();
    let mut numbers = Numbers::new(seed);
    let seeds = (target.seeds)();
    let taken = seeds.iter().filter(|bytes| try_bytes(target, seed, bytes)).count();
    assert!(taken > 0, "target {} takes none of its seeds, so it tests nothing", target.name);
    let iterations = setting("BRANT_FUZZ_ITERATIONS").unwrap_or(u64::MAX);
    let share = setting("BRANT_FUZZ_SECONDS").unwrap_or(3.0) / TARGETS.len() as f64;
    let (begin, mut done, mut survived) = (Instant::now(), 0_u64, 0_u64);
    // What was taken although it was changed is a seed too: changes add up.
    let mut found: Vec<Vec<u8>> = Vec::new();
    while done < iterations && (iterations < u64::MAX || begin.elapsed() < Duration::from_secs_f64(share)) {
        let pool = seeds.len() + found.len();
        let pick = |index: usize| seeds.get(index).unwrap_or_else(|| &found[index - seeds.len()]);
        let (first, second) = (numbers.below(pool), numbers.below(pool));
        let bytes = mutate(&mut numbers, pick(first), pick(second));
        if try_bytes(target, seed, &bytes) {
            survived += 1;
            if found.len() < 64 {
                found.push(bytes);
            }
        }
        done += 1;
    }
    println!("target {}: {done} mutations, {survived} taken, BRANT_FUZZ_SEED={seed}", target.name);
    assert!(done > 0);
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            run(TARGETS.iter().find(|target| target.name == stringify!($name)).unwrap());
        })*

        #[test]
        fn every_target_is_run_here_and_by_cargo_fuzz() {
            let here = [$(stringify!($name)),*];
            let manifest = include_str!("../cargo-fuzz/Cargo.toml");
            for target in TARGETS {
                assert!(here.contains(&target.name), "{}", target.name);
                let path = format!("{}/cargo-fuzz/fuzz_targets/{}.rs", env!("CARGO_MANIFEST_DIR"), target.name);
                let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                assert!(source.contains(&format!("fuzz::run({:?}, data)", target.name)), "{path}");
                assert!(manifest.contains(&format!("name = {:?}\n", target.name)), "{} in cargo-fuzz", target.name);
            }
            assert_eq!(here.len(), TARGETS.len());
        }
    };
}

targets! {
    chunk node manifest entry signed_entry log fork_evidence statement pack_header pack_record pack_footer roots
    store_format journal_record journal_header journal_footer nbd_request nbd_option nbd_state nbd_negotiation nbd_reply
    swarm_request swarm_reply cluster_request cluster_reply cluster_settings cluster_frames image definition name nbd_uri
    vhost_message vhost_request
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let bytes = |seed| mutate(&mut Numbers::new(seed), b"some bytes to change", b"others");
    assert_eq!(bytes(7), bytes(7));
    assert!((0..64).any(|seed| bytes(seed) != bytes(seed + 1)));
}

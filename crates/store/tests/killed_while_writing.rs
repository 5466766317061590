//! A process that is killed while it writes loses nothing that it had committed, again and again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use store::conformance::{chunk_key, sample};
use store::{ChunkStore, Domain, Domains, LocalOptions, LocalStore};

const DIRECTORY: &str = "BRANT_TEST_STORE";
const OPTIONS: LocalOptions = LocalOptions { pack_bytes: 300_000, cache_bytes: 0, hot_bytes: 0, reserve_bytes: 0 };
const CLAIMED: Domain = Domain(3);
const PROGRESS: &str = "progress";
const ROUNDS: u32 = 8;

fn length(number: u32) -> usize {
    usize::try_from(number * 7919 % 20_000).unwrap() + 1
}

fn progress(store: &dyn ChunkStore) -> u32 {
    store.roots().get(PROGRESS).map_or(0, |value| u32::from_le_bytes(value.try_into().unwrap()))
}

/// Not a test of its own: what the process that is killed runs. Without the directory there is nothing to write to.
#[test]
#[ignore = "run by the other test, in a process of its own"]
fn the_process_that_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let store = LocalStore::open(directory, OPTIONS).unwrap();
    let begin = progress(&*store);
    for batch in (begin / 10).. {
        std::thread::scope(|scope| {
            for half in 0..2 {
                let store = &store;
                scope.spawn(move || {
                    for number in (batch * 10..batch * 10 + 10).filter(|number| number % 2 == half) {
                        let plain = sample(number, length(number));
                        store.put(&chunk_key(&plain), Domain::OWN, &plain).unwrap();
                        if number % 5 == 0 {
                            store.put(&chunk_key(&plain), CLAIMED, &plain).unwrap();
                        }
                    }
                });
            }
        });
        let done = batch * 10 + 10;
        if batch % 3 == 0 {
            store.roots().apply(vec![(PROGRESS.to_owned(), Some(done.to_le_bytes().to_vec()))]).unwrap();
        } else {
            store.commit().unwrap();
        }
        println!("committed {done}");
    }
}

/// Runs the writer on a directory until it has told a number of commits, kills it, and returns what it told last.
fn write_and_kill(directory: &Path, commits: u32) -> u32 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--ignored", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut told = lines.filter_map(|line| line.ok()?.strip_prefix("committed ")?.parse().ok());
    let mut committed = told.by_ref().nth(usize::try_from(commits - 1).unwrap()).expect("the writer goes on");
    child.kill().unwrap();
    child.wait().unwrap();
    // What it told before it died counts, too.
    committed = told.last().unwrap_or(committed);
    committed
}

#[test]
fn nothing_committed_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut checked = 0;
    for round in 0..ROUNDS {
        let committed = write_and_kill(directory.path(), 1 + round * 5 % 13);
        if round == ROUNDS / 2 {
            std::fs::remove_dir_all(directory.path().join("index")).unwrap();
        }
        let store = LocalStore::open(directory.path(), OPTIONS).unwrap();
        assert_eq!(store.recovery().damages, 0);
        assert!(committed > checked, "each round gets further");
        for number in 0..committed {
            let plain = sample(number, length(number));
            let key = chunk_key(&plain);
            let found = store.get(&key, &Domains::from(Domain::OWN)).unwrap();
            assert!(found.is_some_and(|found| found == plain), "object {number} of {committed} was committed");
            let claimed = store.contains(&key, &CLAIMED.into()).unwrap();
            assert!(claimed || number % 5 != 0, "the claim of object {number} was committed");
        }
        assert!(progress(&*store) + 30 >= committed, "the last root that was told is there");
        checked = committed;
    }
}

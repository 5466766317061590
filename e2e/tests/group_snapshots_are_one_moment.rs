//! A snapshot of several volumes is one moment of all of them, under load and wherever the node is killed: a writer
//! puts the same number on one after the other, so no version may have a number on a later disk and not on an earlier.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use e2e::{attach, connect, read_disk};
use testkit::disk::Noise;
use testkit::{Node, World, wait};

const VOLUMES: [&str; 3] = ["first", "second", "third"];
const BLOCK: usize = 4096;

/// Writes numbers to all volumes in order, until it is stopped or the node is gone.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(uris: [String; 3], from: u64) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(from - 1)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            let disks = uris.map(|uri| connect(&uri).expect("connected"));
            for number in from.. {
                for disk in &disks {
                    if stopped.load(Ordering::Relaxed) || disk.write_at(0, &block(number)).is_err() {
                        return;
                    }
                }
                counted.store(number, Ordering::Release);
            }
        });
        Self { stop, written, thread }
    }

    /// Waits until it has written some more.
    fn goes_on(&self) {
        let before = self.written.load(Ordering::Acquire);
        wait::until("the writer goes on", || Ok((self.written.load(Ordering::Acquire) > before + 3).then_some(())))
            .expect("writes");
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer ended");
    }
}

fn block(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(BLOCK / 8)
}

fn number(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    assert!(bytes[..BLOCK] == block(number), "a write is there wholly or not at all");
    number
}

fn is_one_moment(numbers: [u64; 3]) -> bool {
    let [first, second, third] = numbers;
    first >= second && second >= third && third + 1 >= first
}

fn uris(node: &Node) -> [String; 3] {
    VOLUMES.map(|volume| {
        let shown = node.json(&["volume", "show", volume]).expect("a volume");
        shown["attached"][0].as_str().expect("a URI").to_owned()
    })
}

/// What is on the disks of a version, through a clone of each.
fn numbers_of(node: &Node, version: u64) -> [u64; 3] {
    VOLUMES.map(|disk| {
        let clone = format!("clone-{version}-{disk}");
        node.brant(&["clone", &format!("vms/group@{version}"), &clone, "--disk", disk]).expect("a clone");
        let number = number(&read_disk(&attach(node, &clone).expect("attached")).expect("read").0);
        node.brant(&["detach", &clone, "--force"]).expect("detached");
        node.brant(&["volume", "remove", &clone, "--now"]).expect("removed");
        number
    })
}

fn versions(node: &Node) -> u64 {
    node.json(&["snapshot", "list", "vms"]).expect("a list").as_array().expect("a list").len() as u64
}

#[test]
fn of_three_disks_under_load_and_across_kills() {
    let rounds = if std::env::var_os("BRANT_TEST_FULL").is_some() { 40 } else { 4 };
    let world = World::new(e2e::brant()).expect("a directory");
    let mut node = world.start_node("a").expect("a node");
    node.brant(&["bucket", "create", "vms"]).expect("a bucket");
    for volume in VOLUMES {
        node.brant(&["volume", "create", volume, "--size", "1MiB"]).expect("a volume");
        attach(&node, volume).expect("attached");
    }
    let create = [&["snapshot", "create"][..], &VOLUMES, &["vms/group"]].concat();
    let mut noise = Noise::new(5);
    let (mut next, mut checked, mut latest) = (1, 0, 0);
    for round in 0..rounds {
        let writer = Writer::start(uris(&node), next);
        for _ in 0..6 {
            writer.goes_on();
            node.brant(&create).expect("a snapshot");
        }
        // The last one is under way, or done, or has not begun, when the node dies.
        let mut taking = node.begin(&create).expect("begun");
        std::thread::sleep(std::time::Duration::from_millis(noise.below(30)));
        node.kill().expect("killed");
        drop(taking.wait());
        writer.end();
        node = world.start_node("a").expect("started again");
        let all = versions(&node);
        assert!(all >= checked + 6, "round {round}: every version that was acknowledged is there");
        for version in checked + 1..=all {
            let numbers = numbers_of(&node, version);
            assert!(is_one_moment(numbers), "round {round}, version {version}: {numbers:?}");
            assert!(numbers[0] >= latest, "version {version} is older than the one before: {numbers:?}");
            latest = numbers[0];
        }
        checked = all;
        let now = uris(&node).map(|uri| number(&read_disk(&uri).expect("read").0));
        assert!(is_one_moment(now) && now[0] >= latest, "round {round}: {now:?} after {latest}");
        next = now[0] + 1;
    }
    assert!(latest > 6 * rounds, "the writer wrote: {latest}");
    let refused = node.try_brant(&["clone", "vms/group", "copy"]).expect("run").failed_with(2).expect("which disk?");
    assert!(refused.stderr.contains("--disk: first, second, third"), "{}", refused.stderr);
    node.try_brant(&["snapshot", "create", "first", "first", "vms/group"]).expect("run").failed_with(2).expect("twice");
}

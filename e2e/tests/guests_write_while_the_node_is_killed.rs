//! Guests write over several connections, snapshots are taken and sealed, and the node is killed with `kill -9` after a random
//! number of writes: everything that was acknowledged is there, every snapshot is one moment, and fio finds what it wrote.
//!
//! Each connection owns a part of the disk and has one request under way, so that what it may find is known: all that was
//! acknowledged, and of the last request each sector old or new. A snapshot shows all requests of a connection up to one.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use e2e::{attach, connect, read_disk};
use testkit::disk::Noise;
use testkit::{Disk, Node, World, wait};
use xtask::process::{Echo, run};
use xtask::setup;
use xtask::tally::SKIP_MARK;

const CONNECTIONS: usize = 4;
/// What each connection owns, in bytes.
const PART: usize = 2 << 20;
const SECTOR: usize = 512;

/// A request of a connection.
#[derive(Clone, Debug)]
struct Write {
    offset: usize,
    bytes: Vec<u8>,
}

/// What a connection has done since the disk was last known.
#[derive(Debug, Default)]
struct Log {
    /// Acknowledged but for the last one.
    writes: Vec<Write>,
    acknowledged: usize,
}

/// The next request: most are short, some are zeroes.
fn choose(noise: &mut Noise) -> Write {
    let longest = if noise.below(8) == 0 { 256 } else { 16 };
    let (number, sectors) = (noise.number(), 1 + noise.below(longest));
    let length = usize::try_from(sectors).expect("small") * SECTOR;
    let offset = usize::try_from(noise.below(((PART - length) / SECTOR) as u64)).expect("small") * SECTOR;
    let mut bytes = vec![0; length];
    if noise.below(9) > 0 {
        Noise::new(number).fill(&mut bytes);
        // No two writes leave a sector alike.
        bytes.chunks_mut(SECTOR).for_each(|sector| sector[..8].copy_from_slice(&number.to_le_bytes()));
    }
    Write { offset, bytes }
}

/// Writes until the node is gone.
fn write_until_it_dies(uri: &str, connection: usize, mut noise: Noise, written: &AtomicU64) -> Log {
    let mut log = Log::default();
    let client = connect(uri).expect("connected");
    loop {
        let write = choose(&mut noise);
        let offset = (connection * PART + write.offset) as u64;
        let done = if write.bytes.iter().all(|byte| *byte == 0) {
            client.write_zeroes(offset, write.bytes.len() as u64)
        } else {
            client.write_at(offset, &write.bytes)
        };
        log.writes.push(write);
        if done.is_err() {
            return log;
        }
        log.acknowledged += 1;
        written.fetch_add(1, Ordering::Release);
        if log.acknowledged % 50 == 0 && client.flush().is_err() {
            return log;
        }
    }
}

impl Log {
    /// The part after the first writes.
    fn after(&self, before: &[u8], writes: usize) -> Vec<u8> {
        let mut part = before.to_vec();
        for write in &self.writes[..writes] {
            part[write.offset..write.offset + write.bytes.len()].copy_from_slice(&write.bytes);
        }
        part
    }

    /// Checks what a killed node has left.
    fn check(&self, before: &[u8], found: &[u8]) -> Result<(), String> {
        let (old, new) = (self.after(before, self.acknowledged), self.after(before, self.writes.len()));
        let sectors = old.chunks(SECTOR).zip(new.chunks(SECTOR)).zip(found.chunks(SECTOR)).enumerate();
        for (sector, ((old, new), found)) in sectors {
            if found != old && found != new {
                return Err(format!("sector {sector} holds {:x?} and not {:x?}", &found[..16], &old[..16]));
            }
        }
        Ok(())
    }

    /// Whether a snapshot shows all writes up to one, of those that were begun.
    fn is_one_moment(&self, before: &[u8], found: &[u8]) -> bool {
        let mut part = before.to_vec();
        let mut differ = part.chunks(SECTOR).zip(found.chunks(SECTOR)).filter(|(one, other)| one != other).count();
        for write in &self.writes {
            if differ == 0 {
                return true;
            }
            for (number, sector) in write.bytes.chunks(SECTOR).enumerate() {
                let at = write.offset + number * SECTOR;
                let place = at..at + SECTOR;
                differ -= usize::from(part[place.clone()] != found[place.clone()]);
                part[place.clone()].copy_from_slice(sector);
                differ += usize::from(part[place.clone()] != found[place]);
            }
        }
        differ == 0
    }
}

fn kill_minus_nine(node: &Node) {
    let killed = Command::new("kill").args(["-9", &node.service.id().to_string()]).status().expect("run");
    assert!(killed.success());
}

fn versions(node: &Node) -> u64 {
    node.json(&["snapshot", "list", "vms"]).expect("a list").as_array().expect("a list").len() as u64
}

/// The disk of a version, through a clone that is removed again.
fn read_version(node: &Node, version: u64) -> Disk {
    node.brant(&["clone", &format!("vms/disk@{version}"), "clone"]).expect("a clone");
    let disk = read_disk(&attach(node, "clone").expect("attached")).expect("read");
    node.brant(&["detach", "clone", "--force"]).expect("detached");
    node.brant(&["volume", "remove", "clone", "--now"]).expect("removed");
    disk
}

/// Writes, or verifies, all of the volume `fio` with checksums.
fn fio(uri: &str, seed: u64, verify: bool) {
    let mut command = Command::new("fio");
    command.args(["--name=guest", "--ioengine=nbd", &format!("--uri={uri}"), "--rw=randwrite", "--bs=4k"]);
    command.args([
        "--numjobs=4",
        "--size=2M",
        "--offset_increment=2M",
        "--iodepth=8",
        "--verify=crc32c",
        "--verify_state_save=0",
    ]);
    command.arg(format!("--randseed={seed}")).arg(if verify { "--verify_only" } else { "--do_verify=0" });
    let outcome = run(&mut command, std::time::Duration::from_mins(2), Echo::Quiet).expect("fio ran");
    assert!(outcome.status.success(), "fio, verify {verify}: {}", outcome.output);
}

/// One life of the node, to its end by `kill -9`.
fn live(node: &Node, seed: u64, writes: u64) -> Vec<Log> {
    let uri = attached(node, "disk");
    let (written, killed) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let start = |connection: usize| {
            let (uri, written) = (&uri, &written);
            let noise = Noise::new(seed * 1009 + connection as u64 + 1);
            scope.spawn(move || write_until_it_dies(uri, connection, noise, written))
        };
        let writers: Vec<_> = (0..CONNECTIONS).map(start).collect();
        // Snapshots are taken, and sealed in the background, all the while.
        scope.spawn(|| {
            while !killed.load(Ordering::Relaxed) {
                drop(node.try_brant(&["snapshot", "create", "disk", "vms/disk"]));
            }
        });
        wait::until("the guests have written", || Ok((written.load(Ordering::Acquire) >= writes).then_some(())))
            .expect("writes");
        killed.store(true, Ordering::Relaxed);
        kill_minus_nine(node);
        writers.into_iter().map(|writer| writer.join().expect("a writer ended")).collect()
    })
}

fn attached(node: &Node, volume: &str) -> String {
    let shown = node.json(&["volume", "show", volume]).expect("a volume");
    shown["attached"][0].as_str().expect("a URI").to_owned()
}

#[test]
fn nothing_that_was_acknowledged_is_lost() {
    let missing = setup::missing(&[setup::FIO]);
    let has_fio = missing.is_empty();
    if !has_fio {
        println!("{SKIP_MARK}missing: {}", setup::describe(&missing));
    }
    let rounds = if std::env::var_os("BRANT_TEST_FULL").is_some() { 40 } else { 4 };
    let world = World::new(e2e::brant()).expect("a directory");
    let mut node = world.start_node("a").expect("a node");
    node.brant(&["bucket", "create", "vms"]).expect("a bucket");
    for volume in ["disk", "fio"] {
        node.brant(&["volume", "create", volume, "--size", "8MiB"]).expect("a volume");
        attach(&node, volume).expect("attached");
    }
    let mut disk = Disk(vec![0; CONNECTIONS * PART]);
    let mut noise = Noise::new(41);
    let mut seen = 0;
    for round in 0..rounds {
        let writes = 1 + noise.below(3000);
        println!("round {round}: kill -9 after {writes} writes");
        if has_fio {
            fio(&attached(&node, "fio"), round + 1, false);
        }
        let logs = live(&node, round + 1, writes);
        node.kill().expect("it is dead already");
        node = world.start_node("a").expect("started again");
        let found = read_disk(&attached(&node, "disk")).expect("read");
        let parts = || disk.0.chunks(PART).zip(&logs).enumerate();
        for (connection, (before, log)) in parts() {
            let part = &found.0[connection * PART..][..PART];
            log.check(before, part).unwrap_or_else(|what| panic!("round {round}, connection {connection}: {what}"));
        }
        let all = versions(&node);
        for version in seen + 1..=all {
            let snapshot = read_version(&node, version);
            for (connection, (before, log)) in parts() {
                let part = &snapshot.0[connection * PART..][..PART];
                assert!(log.is_one_moment(before, part), "round {round}, version {version}, connection {connection}");
            }
        }
        if has_fio {
            fio(&attached(&node, "fio"), round + 1, true);
        }
        (seen, disk) = (all, found);
    }
    assert!(seen > 0, "snapshots were taken");
    let scrubbed = node.brant(&["store", "scrub"]).expect("scrubbed").stdout;
    assert!(scrubbed.contains("none damaged"), "{scrubbed}");
    let last = read_version(&node, seen);
    node.brant(&["store", "gc", "--grace", "0s"]).expect("collected");
    assert_eq!(read_version(&node, seen).first_difference(&last), None, "collection took of a snapshot");
    assert_eq!(read_disk(&attached(&node, "disk")).expect("read").first_difference(&disk), None);
}

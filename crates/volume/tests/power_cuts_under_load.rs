//! Several connections write to two volumes at once while snapshots of both are taken and layers are folded; then the power
//! fails at a random operation.
//!
//! Each connection owns a part of each disk and logs what it begins and what was acknowledged, so that the order of all is
//! known as far as it was promised. A snapshot of both disks must show, of each connection, everything up to one of its
//! requests and nothing behind it, on both disks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/rig.rs"]
mod rig;
#[path = "simulation/seeds.rs"]
mod seeds;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use medium::Simulated;
use medium::simulated::Chance;
use types::Progress;
use volume::{BlockDevice, DeviceError, Durability, Volume};

use crate::model::{Crash, Disk, SECTOR, Token, fill, token};
use crate::rig::{Rig, VERSION, told};

const CONNECTIONS: u64 = 3;
const DISKS: usize = 2;

/// What each connection owns of each disk, in sectors.
const PART: usize = 150;

/// A request, in the order of its connection.
#[derive(Clone, Debug)]
struct Request {
    disk: usize,
    what: What,
    fua: bool,
    begun: u64,
    /// When it was acknowledged; `None` where it never was.
    ended: Option<u64>,
}

#[derive(Clone, Debug)]
enum What {
    Write(usize, Vec<Token>),
    Flush,
}

/// A snapshot of both disks.
#[derive(Clone, Debug)]
struct Snapshot {
    number: u64,
    begun: u64,
    ended: Option<u64>,
}

/// Counts moments, so that what came before what is known.
#[derive(Debug, Default)]
struct Clock(AtomicU64);

impl Clock {
    fn now(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// Writes and flushes until a request fails.
fn connection(rig: &Rig, number: u64, disks: &[Arc<Volume>], clock: &Clock, mut chance: Chance) -> Vec<Request> {
    let mut log = Vec::new();
    loop {
        let disk = index(chance.below(DISKS as u64));
        let length = 1 + index(chance.below(PART as u64 / 2));
        let first = index(number) * PART + index(chance.below((PART - length + 1) as u64));
        let fua = chance.in_256(20);
        let write = log.len() as u64 * CONNECTIONS + number + 1;
        let compresses = chance.in_256(128);
        let what = match chance.below(8) {
            0 => What::Flush,
            1 => What::Write(first, vec![0; length]),
            _ => {
                let sector = |sector| token(write, sector as u64, compresses);
                What::Write(first, (first..first + length).map(sector).collect())
            }
        };
        let begun = clock.now();
        let done = request(&disks[disk], &what, fua);
        let ended = done.is_ok().then(|| clock.now());
        log.push(Request { disk, what, fua, begun, ended });
        if let Err(error) = done {
            return ends(rig, &error, log);
        }
    }
}

fn request(disk: &Volume, what: &What, fua: bool) -> Result<(), DeviceError> {
    let durability = if fua { Durability::Power } else { Durability::Process };
    match what {
        What::Flush => disk.flush(),
        What::Write(first, tokens) if tokens[0] == 0 => {
            disk.write_zeroes((first * SECTOR) as u64, (tokens.len() * SECTOR) as u64, durability)
        }
        What::Write(first, tokens) => {
            let mut bytes = vec![0; tokens.len() * SECTOR];
            bytes.chunks_mut(SECTOR).zip(tokens).for_each(|(sector, token)| fill(*token, sector));
            disk.write((first * SECTOR) as u64, &bytes, durability)
        }
    }
}

/// Takes snapshots of both disks, seals and folds, until something fails.
fn snapshots(rig: &Rig, disks: &[Arc<Volume>], clock: &Clock, mut chance: Chance) -> Vec<Snapshot> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut log = Vec::new();
    loop {
        let (number, begun) = (log.len() as u64, clock.now());
        let frozen = rig
            .volumes
            .freeze(disks, |ids| vec![(format!("{VERSION}{number}"), Some(ids.iter().flat_map(|id| id.0).collect()))]);
        log.push(Snapshot { number, begun, ended: frozen.is_ok().then(|| clock.now()) });
        let frozen = match frozen {
            Ok(frozen) => frozen,
            Err(error) => return ends(rig, &error, log),
        };
        let disk = index(chance.below(DISKS as u64));
        let done = match chance.below(3) {
            0 => runtime.block_on(rig.volumes.seal(frozen[disk].id(), &Progress::default())).map(drop),
            1 => runtime.block_on(rig.volumes.fold(&disks[disk], &Progress::default())),
            _ => Ok(()),
        };
        if let Err(error) = done {
            return ends(rig, &error, log);
        }
    }
}

/// Nothing fails before the power does.
fn ends<T>(rig: &Rig, error: &dyn std::error::Error, log: T) -> T {
    assert!(rig.medium.is_off(), "it fails while there is power: {}", told(error));
    log
}

/// What a disk may hold, by the promises that were made.
fn expected(disk: usize, connections: &[Vec<Request>], snapshots: &[Snapshot]) -> Disk {
    let mut expected = Disk::new(index(CONNECTIONS) * PART);
    let flushes =
        connections.iter().flatten().filter(|request| request.disk == disk && matches!(request.what, What::Flush));
    let flushes = flushes.filter(|request| request.ended.is_some()).map(|request| request.begun);
    let freezes = snapshots.iter().filter(|snapshot| snapshot.ended.is_some()).map(|snapshot| snapshot.begun);
    let latest = flushes.chain(freezes).max().unwrap_or(0);
    for request in connections.iter().flatten().filter(|request| request.disk == disk) {
        if let What::Write(first, tokens) = &request.what {
            let durable = request.fua || request.ended.is_some_and(|ended| ended < latest);
            expected.write(*first, tokens, request.ended.is_some(), durable);
        }
    }
    expected
}

/// The places in a connection's log at which a snapshot may have been taken.
fn window(log: &[Request], snapshot: &Snapshot) -> Range<usize> {
    let before = log.partition_point(|request| request.ended.is_some_and(|ended| ended < snapshot.begun));
    let until = log.partition_point(|request| snapshot.ended.is_none_or(|ended| request.begun < ended));
    before..until + 1
}

/// Whether the disks show of a connection just the first requests.
fn shows(disks: &[Vec<Token>], connection: usize, log: &[Request], requests: usize) -> bool {
    let part = connection * PART..(connection + 1) * PART;
    let mut expected = vec![vec![0; disks[0].len()]; DISKS];
    for request in &log[..requests] {
        if let What::Write(first, tokens) = &request.what {
            expected[request.disk][*first..first + tokens.len()].copy_from_slice(tokens);
        }
    }
    disks.iter().zip(&expected).all(|(disk, expected)| disk[part.clone()] == expected[part.clone()])
}

fn history(seed: u64) -> Result<usize, String> {
    let mut chance = Chance::new(!seed);
    let rig = Rig::open(&Simulated::new(seed))?;
    let size_bytes = CONNECTIONS * (PART * SECTOR) as u64;
    let names = ["left", "right"];
    let disks = names.map(|name| rig.volumes.create(&name.parse().unwrap(), size_bytes).unwrap());
    rig.medium.cut_after(rig.medium.operations() + 50 + chance.below(1500));
    let clock = Clock::default();
    let logs = Mutex::new(vec![Vec::new(); index(CONNECTIONS)]);
    let snapshots = std::thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            let (rig, disks, clock, logs, chance) = (&rig, &disks, &clock, &logs, Chance::new(chance.number()));
            scope.spawn(move || {
                let log = connection(rig, number, disks, clock, chance);
                logs.lock().unwrap()[index(number)] = log;
            });
        }
        let rig = &rig;
        scope.spawn(move || {
            let failed = std::iter::repeat_with(|| rig.collect()).find_map(Result::err);
            ends(rig, &failed.expect("it goes on until it fails"), ());
        });
        snapshots(rig, &disks, &clock, Chance::new(chance.number()))
    });
    let logs = logs.into_inner().unwrap();
    for _ in 0..3 {
        let left = rig.medium.power_cut(chance.number());
        check(&left, &logs, &snapshots)?;
    }
    Ok(logs.iter().map(Vec::len).sum())
}

fn check(left: &Simulated, logs: &[Vec<Request>], snapshots: &[Snapshot]) -> Result<(), String> {
    let recovered = Rig::open(left)?;
    let found = recovered.look()?;
    recovered.check_nothing_is_left_over()?;
    for (disk, name) in ["left", "right"].into_iter().enumerate() {
        let tokens = found.disks.get(name).ok_or("a volume is gone")?;
        if let Some(wrong) = expected(disk, logs, snapshots).wrong(tokens, Crash::Power) {
            return Err(format!("volume {name}: {wrong}"));
        }
    }
    for snapshot in snapshots {
        let Some(disks) = found.versions.get(&snapshot.number) else {
            if snapshot.ended.is_some() {
                return Err(format!("snapshot {} is gone", snapshot.number));
            }
            continue;
        };
        let disks: Option<Vec<_>> = disks.iter().cloned().collect();
        let disks = disks.ok_or("a snapshot has one disk of two")?;
        for (connection, log) in logs.iter().enumerate() {
            let window = window(log, snapshot);
            if !window.clone().any(|requests| shows(&disks, connection, log, requests)) {
                return Err(format!(
                    "snapshot {} is of no moment in {window:?} of connection {connection}",
                    snapshot.number
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn what_several_connections_were_promised_is_there() {
    let requests = seeds::run(60, 3000, "power_cuts_under_load", |seed| history(seed).map(|requests| requests as u64));
    println!("{requests} requests");
}

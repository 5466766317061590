//! Random histories of a home and its replica, each on a machine that is killed or loses power in the middle of what it does, with a
//! network that is cut: a replica that is recorded as current has all that was answered, or lacks as much as was agreed.
//!
//! Homes and replicas are volumes on simulated media. The records that a node keeps of them are kept here as simply as can be.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "replica/ledger.rs"]
mod ledger;
#[path = "replica/sides.rs"]
mod sides;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster::message::Terms;
use cluster::{Mirror, MirrorState, Service};
use medium::simulated::Chance;
use swarm::transport::Transport as _;
use swarm::transport::memory::{Network, test_endpoint};
use types::EndpointId;
use volume::{BlockDevice as _, Durability, Observer as _};

use crate::ledger::{BLOCK, BLOCKS, Crash, Ledger};
use crate::sides::{Dialer, HomeSide, Keeper, Machine};

/// How much may be behind, in bytes: a few blocks.
const LAG_BYTES: u64 = 64 << 10;
const EVENTS: u64 = 8;
const WRITERS: u64 = 2;

/// How long it may take until all is well again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A home that runs: its volume, the mirror, and who writes.
struct Home {
    side: Arc<HomeSide>,
    mirror: Arc<Mirror>,
    talk: tokio::task::JoinHandle<()>,
    stop: Arc<AtomicBool>,
    writers: Vec<std::thread::JoinHandle<()>>,
}

/// One history.
struct History {
    chance: Chance,
    network: Network,
    keeper: Arc<Keeper>,
    replica: EndpointId,
    terms: Terms,
    dialer: Arc<Dialer>,
    ledger: Arc<Ledger>,
    home: Option<Home>,
}

impl History {
    fn new(seed: u64) -> Self {
        let (network, replica) = (Network::new(), test_endpoint());
        let keeper = Keeper::new(Machine::begin(seed));
        let service = Service::new(Arc::<Keeper>::clone(&keeper));
        let transport = network.join(replica);
        tokio::spawn(async move {
            while let Some(incoming) = transport.accept().await {
                let Ok(connection) = incoming.await else { continue };
                let service = Arc::clone(&service);
                tokio::spawn(async move { service.serve(connection).await });
            }
        });
        let dialer = Arc::new(Dialer { from: network.join(test_endpoint()), to: replica });
        let terms = Terms { sync: !seed.is_multiple_of(3), witness: None, lag_bytes: LAG_BYTES };
        let mut history = Self {
            chance: Chance::new(!seed),
            network,
            keeper,
            replica,
            terms,
            dialer,
            ledger: Arc::default(),
            home: None,
        };
        history.begin(Machine::begin(seed + 1_000_000));
        history
    }

    /// Starts a home on a machine, and those who write there.
    fn begin(&mut self, machine: Machine) {
        let side = HomeSide::new(machine, Arc::clone(&self.dialer));
        *self.keeper.home.lock().unwrap() = Some(Arc::clone(&side));
        let mirror = Mirror::new(sides::name(), self.terms, side.was_current());
        side.volume().observe(Some(Arc::<Mirror>::clone(&mirror)));
        let (talking, host) = (Arc::clone(&mirror), Arc::clone(&side));
        let talk = tokio::spawn(async move { talking.run(&*host).await });
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |number| {
            let (side, ledger, stop) = (Arc::clone(&side), Arc::clone(&self.ledger), Arc::clone(&stop));
            let chance = Chance::new(self.chance.number());
            std::thread::spawn(move || write(&side, &ledger, &stop, number, chance))
        };
        let writers = (0..WRITERS).map(writer).collect();
        self.home = Some(Home { side, mirror, talk, stop, writers });
    }

    /// Waits until something was answered, or a little where the home waits for its replica.
    async fn go_on(&mut self) {
        let wanted = self.ledger.answered.load(Ordering::Acquire) + self.chance.below(60);
        for _ in 0..self.chance.below(80) {
            if self.ledger.answered.load(Ordering::Acquire) >= wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends a machine in the middle of what it does, and returns what the next process finds.
    async fn crash(&mut self, machine: &Machine) -> (Machine, Crash) {
        if self.chance.in_256(100) {
            return (Machine::open(&machine.medium.kill()), Crash::Kill);
        }
        machine.medium.cut_after(machine.medium.operations() + self.chance.below(60));
        for _ in 0..50 {
            if machine.medium.is_off() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (Machine::open(&machine.medium.power_cut(self.chance.number())), Crash::Power)
    }

    async fn replica_crashes(&mut self) {
        let before = self.keeper.side();
        let (machine, crash) = self.crash(&before.machine).await;
        self.network.cut(self.replica);
        self.keeper.restart(machine, crash);
    }

    /// The home dies. If its replica could take over without a loss, there must be none; then the home comes back.
    async fn home_crashes(&mut self) -> Result<(), String> {
        let home = self.home.take().unwrap();
        let (machine, crash) = self.crash(&home.side.machine).await;
        home.talk.abort();
        self.network.cut(self.replica);
        home.mirror.abandon(true);
        let writers = home.writers;
        let join = move || writers.into_iter().for_each(|writer| writer.join().unwrap());
        tokio::task::spawn_blocking(join).await.unwrap();
        self.check_replica()?;
        self.ledger.check("the home", &sides::content(&machine.volume()), crash)?;
        self.ledger.found(&sides::content(&machine.volume()));
        self.begin(machine);
        Ok(())
    }

    fn check_replica(&self) -> Result<(), String> {
        let side = self.keeper.side();
        let record = side.record();
        let Some(copy) = side.copy().filter(|_| record.current && record.consistent) else { return Ok(()) };
        let content = sides::content(&copy);
        let crash = if side.has_forgotten() { Crash::Power } else { Crash::Kill };
        if self.terms.sync {
            return self.ledger.check("the replica", &content, crash);
        }
        match self.ledger.lost(&content)? {
            // Each of the writers may have been let in when there was room for one.
            lost if crash == Crash::Kill && lost > LAG_BYTES / BLOCK as u64 + WRITERS => {
                Err(format!("{lost} blocks are lost"))
            }
            _ => Ok(()),
        }
    }

    /// Ends with a replica that is the same as its home.
    async fn finish(mut self) -> Result<(), String> {
        let home = self.home.take().unwrap();
        // Whoever waits for the replica to come back gets an answer in the end.
        home.stop.store(true, Ordering::Release);
        let writers = home.writers;
        let join = move || writers.into_iter().for_each(|writer| writer.join().unwrap());
        let joined = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(join)).await;
        if joined.is_err() {
            let record = self.keeper.side().record();
            return Err(format!("who writes is never answered: {:?}, {record:?}", home.mirror.status()));
        }
        let begun = tokio::time::Instant::now();
        loop {
            let status = home.mirror.status();
            let (current, side) = (status.state == MirrorState::Current, self.keeper.side());
            // A process that has just begun is not the one that the home still believes to hear.
            if current && status.lag_bytes == 0 && !side.has_forgotten() && side.record().consistent {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("it never catches up: {status:?}"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (there, here) = (self.keeper.side().copy().unwrap(), home.side.volume());
        if sides::content(&there) != sides::content(&here) {
            return Err("what has caught up differs".to_owned());
        }
        self.ledger.check("the home", &sides::content(&here), Crash::Kill)?;
        home.talk.abort();
        Ok(())
    }

    async fn run(mut self) -> Result<(), String> {
        for _ in 0..EVENTS {
            self.go_on().await;
            match self.chance.below(5) {
                0 | 1 => self.network.cut(self.replica),
                2 | 3 => self.replica_crashes().await,
                _ => self.home_crashes().await?,
            }
        }
        self.finish().await
    }
}

/// Writes to blocks of its own until it is told to stop or the machine dies.
fn write(home: &HomeSide, ledger: &Ledger, stop: &AtomicBool, number: u64, mut chance: Chance) {
    let volume = home.volume();
    while !stop.load(Ordering::Acquire) {
        if chance.in_256(30) {
            let before = ledger.before_flush();
            if volume.flush().is_err() {
                return;
            }
            ledger.flushed(&before);
            continue;
        }
        let block = usize::try_from(chance.below(BLOCKS as u64 / WRITERS) * WRITERS + number).unwrap();
        let (offset, length) = ((block * BLOCK) as u64, BLOCK as u64);
        let durability = if chance.in_256(60) { Durability::Power } else { Durability::Process };
        let zero = chance.in_256(40);
        let (place, value) = ledger.begin(block, zero);
        let done = match zero {
            true if chance.in_256(128) => volume.discard(offset, length, durability),
            true => volume.write_zeroes(offset, length, durability),
            false => volume.write(offset, &ledger::block_of(value), durability),
        };
        if done.is_err() {
            return;
        }
        ledger.answered(block, place, durability);
    }
}

#[test]
fn whoever_dies_and_whenever() {
    let histories = if std::env::var_os("BRANT_TEST_FULL").is_some() { 2_000 } else { 40 };
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= histories {
                return;
            }
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let outcome = runtime.block_on(async { History::new(seed).run().await });
            runtime.shutdown_background();
            if let Err(what) = outcome {
                panic!("seed {seed}: {what}");
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in (0..8).map(|_| scope.spawn(work)).collect::<Vec<_>>() {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

//! Random histories of a home and its replica, each on a machine that is killed or loses power in the middle of what it does, with a
//! network that is cut: a replica that is recorded as current has all that was answered, or lacks as much as was agreed. Homes end as planned,
//! too, and die meanwhile: the next process goes on with the replica where it is, if that is known to be the same.
//!
//! Homes and replicas are volumes on simulated media. The records that a node keeps of them are kept here as simply as can be.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "replica/ledger.rs"]
mod ledger;
#[path = "replica/sides.rs"]
mod sides;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

/// How long a replica is waited for when its home ends.
const LEAVING: Duration = Duration::from_millis(200);

/// How often homes have recorded where their replicas are, and how often replicas were gone on with.
static LEFT: AtomicU64 = AtomicU64::new(0);
static RESUMED: AtomicU64 = AtomicU64::new(0);

/// A home that runs: its volume, the mirror, and who writes.
struct Home {
    side: Arc<HomeSide>,
    mirror: Arc<Mirror>,
    talk: tokio::task::JoinHandle<()>,
    stop: Arc<AtomicBool>,
    writers: Vec<std::thread::JoinHandle<()>>,
}

impl Home {
    /// Ends it as planned, up to recording where its replica stands.
    fn leave(&self, patience: Duration) -> tokio::task::JoinHandle<Result<bool, String>> {
        let (side, mirror) = (Arc::clone(&self.side), Arc::clone(&self.mirror));
        tokio::task::spawn_blocking(move || side.leave(&mirror, Instant::now() + patience))
    }
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
        let side = HomeSide::new(Machine::begin(seed + 1_000_000), Arc::clone(&history.dialer));
        let mirror = side.mirror(terms).unwrap();
        history.start(side, mirror);
        history
    }

    /// Starts a home again on what its process has left. Some die before anybody can write.
    fn begin(&mut self, mut machine: Machine, mut crash: Crash) -> Result<(), String> {
        loop {
            self.check_replica()?;
            let content = sides::content(&machine.volume());
            self.ledger.check("the home", &content, crash)?;
            self.ledger.found(&content);
            if self.chance.in_256(60) {
                machine.medium.cut_after(machine.medium.operations() + self.chance.below(6));
            }
            let side = HomeSide::new(machine, Arc::clone(&self.dialer));
            let mirror = side.mirror(self.terms);
            side.machine.medium.cut_after(u64::MAX);
            match mirror {
                Ok(mirror) if !side.machine.medium.is_off() => {
                    self.start(side, mirror);
                    return Ok(());
                }
                _ => {}
            }
            (machine, crash) = self.reopen(&side.machine);
        }
    }

    /// What the next process finds where the one before has ended or died.
    fn reopen(&mut self, machine: &Machine) -> (Machine, Crash) {
        if self.chance.in_256(128) {
            return (Machine::open(&machine.medium.kill()), Crash::Kill);
        }
        (Machine::open(&machine.medium.power_cut(self.chance.number())), Crash::Power)
    }

    /// Starts a home, and those who write there.
    fn start(&mut self, side: Arc<HomeSide>, mirror: Arc<Mirror>) {
        *self.keeper.home.lock().unwrap() = Some(Arc::clone(&side));
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
        self.end(home).await;
        self.begin(machine, crash)
    }

    /// A home's process is not there any more.
    async fn end(&self, home: Home) {
        home.talk.abort();
        self.network.cut(self.replica);
        home.mirror.abandon(true);
        let writers = home.writers;
        let join = move || writers.into_iter().for_each(|writer| writer.join().unwrap());
        tokio::task::spawn_blocking(join).await.unwrap();
    }

    /// The home ends as planned, if nothing comes between, and begins again.
    async fn home_restarts(&mut self) -> Result<(), String> {
        let home = self.home.take().unwrap();
        let dies = self.chance.in_256(100);
        if dies {
            let medium = &home.side.machine.medium;
            medium.cut_after(medium.operations() + self.chance.below(40));
        }
        let leaving = home.leave(LEAVING);
        match self.chance.below(12) {
            0 => self.network.cut(self.replica),
            1 => self.replica_crashes().await,
            _ => {}
        }
        let left = leaving.await.unwrap();
        LEFT.fetch_add(u64::from(left == Ok(true)), Ordering::Relaxed);
        if !dies && left == Ok(false) && self.chance.in_256(128) {
            // It goes on after all.
            home.mirror.release();
            self.home = Some(home);
            return Ok(());
        }
        let copy = self.keeper.side().record().copy;
        let (machine, crash) = match dies || self.chance.in_256(60) {
            true => self.reopen(&home.side.machine),
            false => (Machine::open(&home.side.machine.medium.kill()), Crash::Kill),
        };
        self.end(home).await;
        if self.chance.below(12) == 0 {
            self.replica_crashes().await;
        }
        self.begin(machine, crash)?;
        self.go_on().await;
        // One that is made anew is another copy before it is current.
        let current = self.home.as_ref().is_some_and(|home| home.mirror.status().state == MirrorState::Current);
        RESUMED.fetch_add(u64::from(current && self.keeper.side().record().copy == copy), Ordering::Relaxed);
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

    /// Ends with a replica that is the same as its home, which has lost nothing.
    async fn finish(mut self) -> Result<(), String> {
        let home = self.come_to_rest().await?;
        self.ledger.check("the home", &sides::content(&home.volume()), Crash::Kill)
    }

    /// Ends with a replica that is the same as its home.
    async fn come_to_rest(&mut self) -> Result<Arc<HomeSide>, String> {
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
        home.talk.abort();
        Ok(home.side)
    }

    /// Waits until the replica is current; which copy it is.
    async fn is_current(&self) -> u64 {
        let mirror = &self.home.as_ref().unwrap().mirror;
        let current = async {
            while mirror.status().state != MirrorState::Current {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, current).await.unwrap();
        self.keeper.side().record().copy
    }

    /// Ends the home as planned. Its machine can be opened as often as one likes.
    async fn leave(&mut self) -> Arc<HomeSide> {
        let home = self.home.take().unwrap();
        assert_eq!(home.leave(PATIENCE).await.unwrap(), Ok(true));
        let side = Arc::clone(&home.side);
        side.machine.medium.cut_after(0);
        self.end(home).await;
        side
    }

    /// Starts the home on what a process has left.
    fn go_on_from(&mut self, left: &HomeSide) -> Arc<HomeSide> {
        let side = HomeSide::new(Machine::open(&left.machine.medium.kill()), Arc::clone(&self.dialer));
        let mirror = side.mirror(self.terms).unwrap();
        self.start(Arc::clone(&side), mirror);
        side
    }

    /// Waits until so many more are answered.
    async fn answers(&self, further: u64) {
        let wanted = self.ledger.answered.load(Ordering::Acquire) + further;
        while self.ledger.answered.load(Ordering::Acquire) < wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn run(mut self) -> Result<(), String> {
        for _ in 0..EVENTS {
            self.go_on().await;
            match self.chance.below(7) {
                0 | 1 => self.network.cut(self.replica),
                2 | 3 => self.replica_crashes().await,
                4 => self.home_crashes().await?,
                _ => self.home_restarts().await?,
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
    let (left, resumed) = (LEFT.load(Ordering::Relaxed), RESUMED.load(Ordering::Relaxed));
    eprintln!("{histories} histories: {left} homes have ended as planned, {resumed} replicas were gone on with");
    assert!(resumed >= histories / 10, "few of {left} replicas were gone on with: {resumed}");
}

/// A seed of a history whose changes wait for the replica, and of one whose do not.
const SYNC: u64 = 1;
const ASYNC: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_ends_as_planned_goes_on_with_its_replica_where_it_is() {
    for seed in [SYNC, ASYNC] {
        let mut history = History::new(seed);
        let copy = history.is_current().await;
        for _ in 0..5 {
            history.answers(20).await;
            let left = history.leave().await;
            history.check_replica().unwrap();
            let begun = history.go_on_from(&left);
            assert!(begun.record().left.is_none(), "who dies from here on leaves nothing to go on from");
            assert_eq!(history.is_current().await, copy, "it was made anew");
        }
        history.answers(20).await;
        history.finish().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_cannot_be_known_to_be_where_it_was_is_made_anew() {
    for seed in [SYNC, ASYNC] {
        let mut history = History::new(seed);
        let first = history.is_current().await;
        history.answers(20).await;

        // The replica's process has ended meanwhile, and the next one does not know how far it has come.
        let left = history.leave().await;
        let there = history.keeper.side();
        history.keeper.restart(Machine::open(&there.machine.medium.kill()), Crash::Kill);
        history.go_on_from(&left);
        let second = history.is_current().await;
        assert_ne!(second, first);
        history.answers(20).await;

        // The home goes on with what it was before, as from a backup: the replica has more.
        let left = history.leave().await;
        let later = history.go_on_from(&left);
        assert_eq!(history.is_current().await, second);
        history.answers(20).await;
        later.machine.medium.cut_after(0);
        let home = history.home.take().unwrap();
        history.end(home).await;
        history.go_on_from(&left);
        let third = history.is_current().await;
        assert_ne!(third, second);

        // Something was written after that was recorded.
        let home = history.home.take().unwrap();
        assert_eq!(home.leave(PATIENCE).await.unwrap(), Ok(true));
        home.mirror.release();
        history.answers(20).await;
        home.side.machine.medium.cut_after(0);
        let left = Arc::clone(&home.side);
        history.end(home).await;
        assert!(left.record().left.is_some());
        history.go_on_from(&left);
        assert_ne!(history.is_current().await, third);
        history.answers(20).await;
        history.come_to_rest().await.unwrap();
    }
}

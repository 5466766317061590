//! A swarm under a random schedule of faults, on paused time: everything arrives, whatever happens, once faults end.
//!
//! A failure prints its seed; `SWARM_SEED=n cargo test -p swarm simulation` runs that one alone.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use store::{ChunkSource, ChunkStore, Domain, MemoryStore, Urgency};
use swarm::transport::memory::{Link, Network, test_endpoint};
use types::{EndpointId, Progress};

use crate::world::{LyingStore, Node, TestDisk, To, World};

/// How long a run may take, in simulated time.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

struct Simulation {
    world: Arc<World>,
    network: Network,
    disk: TestDisk,
    rng: SmallRng,
    providers: Vec<(EndpointId, Arc<dyn ChunkStore>, Option<Node>)>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = TestDisk::new(1500, (0..1500).filter(|index| index % 7 < 4), seed);
        let mut simulation =
            Self { world: World::new(), network: Network::new(), disk, rng: rng.clone(), providers: Vec::new() };
        for number in 0..rng.random_range(2..5) {
            // The first has everything and never lies; of the others some do, and some have half.
            let liar = number > 0 && rng.random_bool(0.3);
            let store: Arc<dyn ChunkStore> =
                if liar { Arc::new(LyingStore::default()) } else { Arc::new(MemoryStore::new()) };
            let whole = number == 0 || rng.random_bool(0.5);
            let has = |key: &store::Key| whole || key.kind != store::Kind::Chunk || key.hash[0].is_multiple_of(2);
            simulation.disk.put_some(&*store, Domain::PUBLIC, has);
            simulation.providers.push((test_endpoint(), store, None));
            simulation.start(number);
        }
        simulation.rng = rng;
        simulation
    }

    fn start(&mut self, number: usize) {
        let seed = self.rng.random();
        let (endpoint, store, node) = &mut self.providers[number];
        let started = Node::join_as(&self.world, &self.network, *endpoint, Arc::clone(store), seed);
        started.library.show(self.disk.snapshot, To::Everyone, Domain::PUBLIC, Vec::new());
        self.world.provide(self.disk.snapshot, &started);
        let delay = Duration::from_micros(self.rng.random_range(50..40_000));
        let bytes_per_second = self.rng.random_range(300_000..20_000_000);
        self.network.set_link(*endpoint, Link { delay, bytes_per_second });
        *node = Some(started);
    }

    /// Something happens to one provider.
    async fn fault(&mut self) {
        let number = self.rng.random_range(0..self.providers.len());
        let endpoint = self.providers[number].0;
        match self.rng.random_range(0..6) {
            0 => self.network.cut(endpoint),
            1 | 2 => self.network.stall(endpoint, self.rng.random()),
            3 => {
                if let Some(node) = self.providers[number].2.take() {
                    node.swarm.close().await;
                }
            }
            4 => {
                if self.providers[number].2.is_none() {
                    self.start(number);
                }
            }
            _ => {
                let delay = Duration::from_micros(self.rng.random_range(50..200_000));
                let bytes_per_second = self.rng.random_range(100_000..20_000_000);
                self.network.set_link(endpoint, Link { delay, bytes_per_second });
            }
        }
    }

    fn end_faults(&mut self) {
        for number in 0..self.providers.len() {
            self.network.stall(self.providers[number].0, false);
            if self.providers[number].2.is_none() {
                self.start(number);
            }
        }
    }
}

async fn run(seed: u64) {
    let mut simulation = Simulation::new(seed);
    let store = Arc::new(MemoryStore::new());
    let node = Node::join(&simulation.world, &simulation.network, store.clone(), seed);
    let tree = simulation.disk.tree(Domain::PUBLIC);
    let swarm = node.swarm.clone();
    let hydration = tokio::spawn(async move { swarm.hydrate(&tree, &Progress::default()).await });
    let indexes: Vec<u64> = simulation.disk.chunks.keys().copied().collect();
    let mut reads = Vec::new();
    for _ in 0..simulation.rng.random_range(5..40) {
        simulation.fault().await;
        tokio::time::sleep(Duration::from_millis(simulation.rng.random_range(1..3000))).await;
        let index = indexes[simulation.rng.random_range(0..indexes.len())];
        let read = node.swarm.fetch(simulation.disk.wanted(index, Domain::PUBLIC, Urgency::Lazy));
        // Some stop waiting.
        let patience = Duration::from_millis(simulation.rng.random_range(1..20_000));
        if simulation.rng.random_bool(0.3) {
            drop(tokio::spawn(async move { tokio::time::timeout(patience, read).await.map(drop) }));
        } else {
            reads.push(tokio::spawn(read));
        }
    }
    simulation.end_faults();
    let done = tokio::time::timeout(LIMIT, async {
        for read in reads {
            read.await.unwrap().unwrap();
        }
        hydration.await.unwrap().unwrap();
    });
    done.await.unwrap_or_else(|_| panic!("seed {seed}: not everything arrived"));
    assert!(simulation.disk.is_whole(&*store, Domain::PUBLIC), "seed {seed}");
    let closed = tokio::time::timeout(LIMIT, node.swarm.close()).await;
    assert!(closed.is_ok(), "seed {seed}: does not close");
}

fn simulate(seed: u64) {
    let result = std::panic::catch_unwind(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(seed));
    });
    if let Err(panic) = result {
        eprintln!("SWARM_SEED={seed} fails");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn everything_arrives_whatever_happens() {
    match std::env::var("SWARM_SEED") {
        Ok(seed) => simulate(seed.parse().expect("SWARM_SEED is a number")),
        Err(_) => (0..8).for_each(simulate),
    }
}

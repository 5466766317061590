//! What was set for a volume comes to its replica: when the replica is begun, whenever it changes, and what has changed while the replica was
//! away when it is back; and who has set it hears when the replica does not know it.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::message::{Protection, Refusal, Reply, Request, Settings, Terms};
use cluster::{AskError, Asked, Home, Mirror, MirrorHost, MirrorState, Opened, Position, Replica, Service};
use futures_util::future::BoxFuture;
use store::{MemoryStore, NoSource};
use swarm::transport::memory::{MemoryTransport, Network, test_endpoint};
use swarm::transport::{Connection, Protocol, Transport};
use types::{EndpointId, Name};
use volume::{BlockDevice, DeviceError, Durability, Volume, VolumeOptions, Volumes};

const SIZE: u64 = 1 << 20;

/// What is not heard within this time is not heard at all.
const PATIENCE: Duration = Duration::from_secs(30);

fn name() -> Name {
    "web1".parse().unwrap()
}

fn labelled(value: &str) -> Settings {
    Settings { labels: [(name(), value.to_owned())].into(), ..Settings::default() }
}

/// A volume in a directory of its own.
fn volume(directory: &tempfile::TempDir) -> Arc<Volume> {
    let store = Arc::new(MemoryStore::new());
    let volumes = Volumes::open(directory.path(), store, Arc::new(NoSource), VolumeOptions::default()).unwrap();
    volumes.create(&name(), SIZE).unwrap()
}

#[derive(Debug, Default)]
struct Known {
    line: Option<u64>,
    applied: Option<u64>,
    current: bool,
    settings: Option<Settings>,
}

/// A member that keeps one replica.
#[derive(Clone, Debug)]
struct Keeper {
    volume: Arc<Volume>,
    known: Arc<Mutex<Known>>,
}

impl Home for Keeper {
    fn open(&self, _: &Name) -> Result<Opened, Refusal> {
        Err(Refusal { code: "not_found".to_owned(), message: "there is none".to_owned(), hint: None })
    }

    fn replica(&self, _: EndpointId, _: Asked) -> BoxFuture<'static, Result<Arc<dyn Replica>, Reply>> {
        let replica = Arc::new(self.clone());
        Box::pin(async move { Ok(replica as Arc<dyn Replica>) })
    }

    fn boot(&self) -> String {
        String::new()
    }

    fn answer(&self, _: EndpointId, _: Request) -> BoxFuture<'static, Result<Reply, Refusal>> {
        Box::pin(async { Ok(Reply::Absent) })
    }
}

impl Replica for Keeper {
    fn stand(&self, line: Option<u64>) -> Result<Position, Refusal> {
        let mut known = self.known.lock().unwrap();
        let stands = line.is_some() && known.line == line;
        known.current &= stands;
        Ok(Position { line: known.line.filter(|_| stands), applied: known.applied })
    }

    fn prefetch(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }

    fn begin(&self, line: u64) -> BoxFuture<'_, Result<(), Refusal>> {
        *self.known.lock().unwrap() = Known { line: Some(line), ..Known::default() };
        Box::pin(async { Ok(()) })
    }

    fn go_on(&self, _: bool) -> Result<Arc<dyn BlockDevice>, Refusal> {
        Ok(Arc::<Volume>::clone(&self.volume))
    }

    fn reached(&self, number: u64, _: bool) -> Result<(), DeviceError> {
        self.known.lock().unwrap().applied = Some(number);
        Ok(())
    }

    fn grow(&self, _: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Home)
    }

    fn set(&self, settings: Settings) -> Result<(), DeviceError> {
        self.known.lock().unwrap().settings = Some(settings);
        Ok(())
    }

    fn set_current(&self, current: bool) -> Result<(), DeviceError> {
        self.known.lock().unwrap().current = current;
        Ok(())
    }
}

/// The home's node.
#[derive(Debug)]
struct Setter {
    dialer: Arc<MemoryTransport>,
    keeper: EndpointId,
    settings: Mutex<Settings>,
}

impl MirrorHost for Setter {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, AskError>> {
        Box::pin(async { Ok(self.dialer.connect(self.keeper, Protocol::Cluster).await?) })
    }

    fn epoch(&self) -> Result<u64, String> {
        Ok(0)
    }

    fn set_current(&self, _: bool) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn outdate(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }

    fn settings(&self) -> Result<Settings, String> {
        Ok(self.settings.lock().unwrap().clone())
    }

    fn superseded(&self, _: EndpointId, _: u64) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

struct Pair {
    network: Network,
    keeper: Keeper,
    endpoint: EndpointId,
    host: Arc<Setter>,
    mirror: Arc<Mirror>,
    home: Arc<Volume>,
    _directories: [tempfile::TempDir; 2],
}

impl Pair {
    /// A home with a replica that is waited for.
    fn new(settings: Settings) -> Self {
        let (network, endpoint) = (Network::new(), test_endpoint());
        let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let keeper = Keeper { volume: volume(&directories[1]), known: Arc::default() };
        let service = Service::new(Arc::new(keeper.clone()));
        let transport = network.join(endpoint);
        tokio::spawn(async move {
            while let Some(incoming) = transport.accept().await {
                let Ok(connection) = incoming.await else { continue };
                let service = Arc::clone(&service);
                tokio::spawn(async move { service.serve(connection).await });
            }
        });
        let home = volume(&directories[0]);
        let mirror = Mirror::new(name(), Terms { sync: true, witness: None, lag_bytes: 1 << 20 }, false);
        home.observe(Some(Arc::<Mirror>::clone(&mirror)));
        let (dialer, settings) = (network.join(test_endpoint()), Mutex::new(settings));
        let host = Arc::new(Setter { dialer, keeper: endpoint, settings });
        let (running, hosting) = (Arc::clone(&mirror), Arc::clone(&host));
        tokio::spawn(async move { running.run(&*hosting).await });
        Self { network, keeper, endpoint, host, mirror, home, _directories: directories }
    }

    async fn comes_to(&self, state: MirrorState) {
        while self.mirror.status().state != state {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Sets something; whether the replica has heard of it in time.
    async fn set(&self, settings: Settings, patience: Duration) -> bool {
        self.host.settings.lock().unwrap().clone_from(&settings);
        let (mirror, host) = (Arc::clone(&self.mirror), Arc::clone(&self.host));
        let telling = move || {
            let number = mirror.tell_settings(|| host.settings()).unwrap();
            mirror.has_within(number, patience)
        };
        tokio::task::spawn_blocking(telling).await.unwrap()
    }

    fn known(&self) -> Option<Settings> {
        self.keeper.known.lock().unwrap().settings.clone()
    }

    async fn write(&self) {
        let home = Arc::clone(&self.home);
        let writing = move || home.write(0, &[7; 4096], Durability::Process).unwrap();
        tokio::task::spawn_blocking(writing).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_before_and_after_the_beginning_is_known_once_it_is_answered() {
    let pair = Pair::new(labelled("alice"));
    pair.comes_to(MirrorState::Current).await;
    assert_eq!(pair.known(), Some(labelled("alice")), "it is current only when it knows");
    pair.write().await;
    let protection = Some(Protection { for_ms: 60_000, space_bytes: None });
    for settings in [labelled("bob"), Settings { protection, ..labelled("bob") }, Settings::default()] {
        assert!(pair.set(settings.clone(), PATIENCE).await);
        assert_eq!(pair.known(), Some(settings));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_set_while_the_replica_was_away_is_known_when_it_is_back() {
    let pair = Pair::new(labelled("alice"));
    pair.comes_to(MirrorState::Current).await;
    pair.network.stall(pair.endpoint, true);
    pair.network.cut(pair.endpoint);
    assert!(!pair.set(labelled("bob"), Duration::from_millis(50)).await, "it cannot know it");
    assert_eq!(pair.known(), Some(labelled("alice")));
    pair.network.stall(pair.endpoint, false);
    pair.write().await;
    assert_eq!(pair.known(), Some(labelled("bob")), "it was set before the write");
    pair.comes_to(MirrorState::Current).await;
}

//! A volume is used over a network that is cut, by a home that loses its memory, and through changes of the home: every answered
//! write is there.

#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cluster::message::{Refusal, Reply, Request};
use cluster::{AskError, Asked, Connector, Home, Members, Opened, Peers, Placed, RemoteVolume, Replica, Service};
use futures_util::future::BoxFuture;
use swarm::transport::memory::{MemoryTransport, Network, test_endpoint};
use swarm::transport::{Connection, Protocol, Transport, TransportError};
use types::{EndpointId, Name};
use volume::{BlockDevice, DeviceError, Durability, Extent, ExtentKind, Readiness};

const SIZE: usize = 1 << 20;
const BLOCK: usize = 4096;
const BLOCKS: usize = SIZE / BLOCK;

/// A disk in memory that loses what was not flushed, when it is told to.
#[derive(Debug)]
struct Fragile {
    now: Mutex<Vec<u8>>,
    durable: Mutex<Vec<u8>>,
    closed: AtomicBool,
}

impl Fragile {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            now: Mutex::new(vec![0; SIZE]),
            durable: Mutex::new(vec![0; SIZE]),
            closed: AtomicBool::new(false),
        })
    }

    fn of(content: Vec<u8>) -> Arc<Self> {
        let disk = Self::new();
        disk.now.lock().unwrap().clone_from(&content);
        *disk.durable.lock().unwrap() = content;
        disk
    }

    fn lose_power(&self) {
        self.now.lock().unwrap().clone_from(&self.durable.lock().unwrap());
    }

    fn check(&self) -> Result<(), DeviceError> {
        if self.closed.load(Ordering::Acquire) { Err(DeviceError::Closed) } else { Ok(()) }
    }

    fn change(&self, offset: u64, bytes: &[u8], durability: Durability) -> Result<(), DeviceError> {
        self.check()?;
        let at = usize::try_from(offset).unwrap();
        self.now.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        if durability == Durability::Power {
            self.durable.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }
}

impl BlockDevice for Fragile {
    fn size_bytes(&self) -> u64 {
        SIZE as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
        self.check()?;
        let at = usize::try_from(offset).unwrap();
        if at + buffer.len() > SIZE {
            let length = buffer.len() as u64;
            return Err(DeviceError::OutOfRange { offset, length, size_bytes: SIZE as u64 });
        }
        buffer.copy_from_slice(&self.now.lock().unwrap()[at..at + buffer.len()]);
        Ok(Readiness::Ready)
    }

    fn read(&self, offset: u64, length: usize) -> BoxFuture<'static, Result<Bytes, DeviceError>> {
        let mut buffer = vec![0; length];
        let outcome = self.try_read(offset, &mut buffer).map(|_| Bytes::from(buffer));
        Box::pin(async move { outcome })
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), DeviceError> {
        self.change(offset, data, durability)
    }

    fn write_zeroes(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.change(offset, &vec![0; usize::try_from(length).unwrap()], durability)
    }

    fn discard(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.write_zeroes(offset, length, durability)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.check()?;
        self.durable.lock().unwrap().clone_from(&self.now.lock().unwrap());
        Ok(())
    }

    fn extents(&self, _: u64, length: u64, _: usize) -> Result<Vec<Extent>, DeviceError> {
        Ok(vec![Extent { length, kind: ExtentKind::Written }])
    }
}

/// A home with one disk.
#[derive(Debug)]
struct OneDisk {
    disk: Mutex<Arc<Fragile>>,
    epoch: AtomicU64,
    since: AtomicU64,
    boots: AtomicU64,
}

impl OneDisk {
    fn disk(&self) -> Arc<Fragile> {
        Arc::clone(&self.disk.lock().unwrap())
    }
}

impl Home for OneDisk {
    fn open(&self, volume: &Name) -> Result<Opened, Refusal> {
        if volume.as_str() == "web1" {
            let epoch = self.epoch.load(Ordering::Acquire);
            return Ok(Opened { device: self.disk(), epoch, since: self.since.load(Ordering::Acquire) });
        }
        Err(Refusal { code: "not_found".to_owned(), message: "there is none".to_owned(), hint: None })
    }

    fn replica(&self, _: EndpointId, _: Asked) -> BoxFuture<'static, Result<Arc<dyn Replica>, Reply>> {
        Box::pin(async { Err(Reply::Absent) })
    }

    fn boot(&self) -> String {
        self.boots.load(Ordering::Acquire).to_string()
    }

    fn answer(&self, _: EndpointId, _: Request) -> BoxFuture<'static, Result<Reply, Refusal>> {
        Box::pin(async { Ok(Reply::Absent) })
    }
}

#[derive(Debug)]
struct Dialer(Arc<MemoryTransport>);

impl Connector for Dialer {
    fn connect(&self, member: EndpointId) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>> {
        self.0.connect(member, Protocol::Cluster)
    }
}

/// Members of which one is always the home.
#[derive(Debug)]
struct To {
    peers: Arc<Peers>,
    home: EndpointId,
}

impl Members for To {
    fn home(&self, volume: &Name) -> BoxFuture<'static, Result<Option<Arc<dyn Connection>>, AskError>> {
        let (peers, home, volume) = (Arc::clone(&self.peers), self.home, volume.clone());
        Box::pin(async move { Ok(Some(peers.connection(home, &volume).await?)) })
    }
}

struct Setting {
    network: Network,
    home: Arc<OneDisk>,
    endpoint: EndpointId,
    peers: Arc<Peers>,
}

impl Setting {
    fn new() -> Self {
        let network = Network::new();
        let endpoint = test_endpoint();
        let disk = Mutex::new(Fragile::new());
        let [epoch, since, boots] = [const { AtomicU64::new(0) }; 3];
        let home = Arc::new(OneDisk { disk, epoch, since, boots });
        let service = Service::new(Arc::<OneDisk>::clone(&home));
        let transport = network.join(endpoint);
        tokio::spawn(async move {
            while let Some(incoming) = transport.accept().await {
                let Ok(connection) = incoming.await else { continue };
                let service = Arc::clone(&service);
                tokio::spawn(async move { service.serve(connection).await });
            }
        });
        let peers = Arc::new(Peers::new(Arc::new(Dialer(network.join(test_endpoint())))));
        Self { network, home, endpoint, peers }
    }

    fn open(&self, name: &str) -> Arc<RemoteVolume> {
        let members = Arc::new(To { peers: Arc::clone(&self.peers), home: self.endpoint });
        RemoteVolume::open(name.parse().unwrap(), SIZE as u64, None, members)
    }
}

/// Writers of blocks of their own, each of which checks what it reads.
struct Writers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Vec<(usize, u8)>>>,
}

impl Writers {
    fn start(device: &Arc<dyn BlockDevice>, count: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let runtime = tokio::runtime::Handle::current();
        let writer = |number: usize| {
            let (device, stop, done, runtime) =
                (Arc::clone(device), Arc::clone(&stop), Arc::clone(&done), runtime.clone());
            std::thread::spawn(move || {
                let own: Vec<usize> = (0..BLOCKS).filter(|block| block % count == number).collect();
                let mut last = vec![0; own.len()];
                let mut round = 0_usize;
                while !stop.load(Ordering::Acquire) {
                    round += 1;
                    let at = (round * 7) % own.len();
                    let value = u8::try_from(round % 251).unwrap();
                    let durability = if round.is_multiple_of(5) { Durability::Power } else { Durability::Process };
                    device.write((own[at] * BLOCK) as u64, &[value; BLOCK], durability).unwrap();
                    last[at] = value;
                    if round.is_multiple_of(17) {
                        device.flush().unwrap();
                    }
                    let read = runtime.block_on(device.read((own[at] * BLOCK) as u64, BLOCK)).unwrap();
                    assert_eq!(read, vec![value; BLOCK], "what was answered is read");
                    done.fetch_add(1, Ordering::AcqRel);
                }
                own.into_iter().zip(last).collect()
            })
        };
        let threads = (0..count).map(writer).collect();
        Self { stop, done, threads }
    }

    async fn go_on(&self, requests: u64) {
        let wanted = self.done.load(Ordering::Acquire) + requests;
        while self.done.load(Ordering::Acquire) < wanted {
            assert!(!self.threads.iter().any(std::thread::JoinHandle::is_finished), "a request failed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn finish(self) -> Vec<(usize, u8)> {
        self.stop.store(true, Ordering::Release);
        let join = move || self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        tokio::task::spawn_blocking(join).await.unwrap()
    }
}

fn check(disk: &Fragile, written: &[(usize, u8)]) {
    let now = disk.now.lock().unwrap();
    for (block, value) in written {
        assert_eq!(now[block * BLOCK..(block + 1) * BLOCK], vec![*value; BLOCK], "block {block}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_again_and_again_are_only_pauses() {
    let setting = Setting::new();
    let device: Arc<dyn BlockDevice> = setting.open("web1");
    let writers = Writers::start(&device, 4);
    for _ in 0..20 {
        writers.go_on(50).await;
        setting.network.cut(setting.endpoint);
    }
    check(&setting.home.disk(), &writers.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_homes_machine_forgets_is_written_again() {
    let setting = Setting::new();
    let device: Arc<dyn BlockDevice> = setting.open("web1");
    let writers = Writers::start(&device, 4);
    for _ in 0..10 {
        writers.go_on(50).await;
        // As the loss of power is: the connections end, the name of the boot changes, and what was not durable is gone.
        let disk = setting.home.disk();
        disk.closed.store(true, Ordering::Release);
        setting.network.cut(setting.endpoint);
        disk.lose_power();
        setting.home.boots.fetch_add(1, Ordering::AcqRel);
        *setting.home.disk.lock().unwrap() = Fragile::of(disk.now.lock().unwrap().clone());
    }
    check(&setting.home.disk(), &writers.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_changes_its_place_while_it_is_used() {
    let setting = Setting::new();
    let remote = setting.open("web1");
    let placed = Placed::new(Arc::<RemoteVolume>::clone(&remote));
    let device: Arc<dyn BlockDevice> = Arc::<Placed>::clone(&placed);
    let writers = Writers::start(&device, 4);
    writers.go_on(200).await;
    let switching = placed.hold().await;
    remote.drain().await;
    let before = setting.home.disk();
    before.closed.store(true, Ordering::Release);
    let here = Fragile::of(before.now.lock().unwrap().clone());
    switching.to(Arc::<Fragile>::clone(&here));
    remote.close();
    writers.go_on(200).await;
    check(&here, &writers.finish().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_home_did_not_answer_before_it_gave_the_volume_is_made_at_the_next_one() {
    let setting = Setting::new();
    setting.network.stall(setting.endpoint, true);
    let remote = setting.open("web1");
    let placed = Placed::new(Arc::<RemoteVolume>::clone(&remote));
    let waiting = tokio::task::spawn_blocking({
        let placed = Arc::clone(&placed);
        move || placed.write(0, &[2; BLOCK], Durability::Process)
    });
    let reading = tokio::spawn(placed.read(0, BLOCK));
    tokio::task::yield_now().await;
    let here = Fragile::new();
    placed.replace(&remote, Arc::<Fragile>::clone(&here)).await;
    waiting.await.unwrap().unwrap();
    reading.await.unwrap().unwrap();
    assert_eq!(here.now.lock().unwrap()[..BLOCK], [2; BLOCK]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_to_wait_for_an_unreachable_home_is_let_go() {
    let setting = Setting::new();
    let device = setting.open("web1");
    tokio::task::spawn_blocking({
        let device = Arc::clone(&device);
        move || device.write(0, &[1; BLOCK], Durability::Process).unwrap()
    })
    .await
    .unwrap();
    setting.network.stall(setting.endpoint, true);
    let waiting = tokio::task::spawn_blocking({
        let device = Arc::clone(&device);
        move || device.write(0, &[2; BLOCK], Durability::Process)
    });
    device.abandon();
    assert!(matches!(waiting.await.unwrap(), Err(DeviceError::Closed)));
    assert!(matches!(device.read(0, BLOCK).await, Err(DeviceError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_beyond_the_end_and_a_volume_that_is_refused_are_errors_and_pauses() {
    let setting = Setting::new();
    let device = setting.open("web1");
    assert!(matches!(device.read(SIZE as u64, BLOCK).await, Err(DeviceError::OutOfRange { .. })));
    assert!(matches!(device.extents(SIZE as u64, 512, 1), Err(DeviceError::OutOfRange { .. })));
    assert_eq!(device.extents(0, 512, 1).unwrap(), [Extent { length: 512, kind: ExtentKind::Absent }]);
    // A home that refuses may not be one any more: who uses the volume waits.
    let other = setting.open("web2");
    let read = tokio::time::timeout(Duration::from_millis(300), other.read(0, BLOCK)).await;
    assert!(read.is_err(), "it waits");
}

/// Connects to one endpoint at first, and to another one from then on.
#[derive(Debug)]
struct Successors {
    dialer: Dialer,
    first: EndpointId,
    then: EndpointId,
    dialed: AtomicBool,
}

impl Connector for Successors {
    fn connect(&self, _: EndpointId) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>> {
        let again = self.dialed.swap(true, Ordering::AcqRel);
        self.dialer.connect(if again { self.then } else { self.first })
    }
}

#[tokio::test]
async fn who_was_killed_and_has_begun_anew_is_asked_over_a_new_connection() {
    let setting = Setting::new();
    // Nobody says that the process behind the first connection has gone.
    let first = test_endpoint();
    let gone = setting.network.join(first);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(incoming) = gone.accept().await {
            kept.push(incoming.await);
        }
    });
    let dialer = Dialer(setting.network.join(test_endpoint()));
    let successors = Successors { dialer, first, then: setting.endpoint, dialed: AtomicBool::new(false) };
    let peers = Peers::new(Arc::new(successors));
    let find = Request::Find { volume: "web1".parse().unwrap() };
    let silent = peers.ask(setting.endpoint, &find, Duration::from_millis(50)).await;
    assert!(matches!(silent, Err(AskError::TimedOut)), "{silent:?}");
    let answered = peers.ask_anew(setting.endpoint, &find, Duration::from_secs(3)).await;
    assert!(matches!(answered, Ok(Reply::Absent)), "{answered:?}");
}

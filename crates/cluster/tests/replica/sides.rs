//! A home and a replica, each on a machine of its own, with the records that make them what they are.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use cluster::message::{Refusal, Reply, Request, Settings, Terms};
use cluster::{AskError, Asked, Home, Mirror, MirrorHost, Opened, Position, Replica, Standing};
use futures_util::future::BoxFuture;
use medium::Simulated;
use store::{ChunkStore as _, LocalOptions, LocalStore, NoSource};
use swarm::transport::memory::MemoryTransport;
use swarm::transport::{Connection, Protocol, Transport as _};
use types::{EndpointId, JournalId, Name};
use volume::{BlockDevice, DeviceError, Readiness, Volume, VolumeOptions, Volumes};

use crate::ledger::{BLOCK, BLOCKS, Crash};

const SIZE: usize = BLOCK * BLOCKS;
const RECORD: &str = "test/record";

/// The volume's name at its home.
pub(crate) fn name() -> Name {
    "web1".parse().unwrap()
}

fn copy_name(number: u64) -> Name {
    format!("copy.{number}").parse().unwrap()
}

/// A store and volumes on a simulated medium.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) medium: Simulated,
    store: Arc<LocalStore>,
    volumes: Arc<Volumes>,
}

impl Machine {
    /// An empty one.
    pub(crate) fn begin(seed: u64) -> Self {
        Self::open(&Simulated::new(seed))
    }

    pub(crate) fn open(medium: &Simulated) -> Self {
        let options = LocalOptions { pack_bytes: 150_000, cache_bytes: 1 << 20, hot_bytes: 0, reserve_bytes: 0 };
        let store = LocalStore::open_on(medium.shared(), "/node/store", options).unwrap();
        let mut options = VolumeOptions::default();
        (options.segment_bytes, options.pool_bytes) = (200_000, 600_000);
        let (directory, source) = (Path::new("/node/volumes"), Arc::new(NoSource));
        let volumes = Volumes::open_on(medium.shared(), directory, store.clone(), source, options).unwrap();
        Self { medium: medium.clone(), store, volumes }
    }

    /// The volume at its home.
    pub(crate) fn volume(&self) -> Arc<Volume> {
        self.volumes.get(&name()).unwrap_or_else(|| self.volumes.create(&name(), SIZE as u64).unwrap())
    }

    fn read(&self) -> Option<Vec<u8>> {
        self.store.roots().get(RECORD)
    }

    fn write(&self, record: Vec<u8>) -> Result<(), String> {
        self.store.roots().apply(vec![(RECORD.to_owned(), Some(record))]).map_err(|error| error.to_string())
    }
}

fn read_all(device: &dyn BlockDevice) -> Result<Vec<u8>, DeviceError> {
    let mut content = vec![0; SIZE];
    assert_eq!(device.try_read(0, &mut content)?, Readiness::Ready);
    Ok(content)
}

/// Everything on a disk.
pub(crate) fn content(volume: &Volume) -> Vec<u8> {
    read_all(volume).unwrap()
}

/// Connects to the replica.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) from: Arc<MemoryTransport>,
    pub(crate) to: EndpointId,
}

/// What is recorded at the home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HomeRecord {
    current: bool,
    pub(crate) left: Option<Standing>,
}

impl HomeRecord {
    fn encode(self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.current)];
        if let Some(Standing { line, last, position, size_bytes }) = self.left {
            bytes.extend([line, last, position.sequence, size_bytes].map(u64::to_le_bytes).as_flattened());
            bytes.extend(position.journal.0);
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let number = |at: usize| u64::from_le_bytes(*bytes[1 + at * 8..].first_chunk().unwrap());
        let left = || {
            let journal = JournalId(*bytes[33..].first_chunk().unwrap());
            let position = volume::Position { journal, sequence: number(2) };
            Standing { line: number(0), last: number(1), position, size_bytes: number(3) }
        };
        Self { current: bytes[0] == 1, left: (bytes.len() > 1).then(left) }
    }
}

/// The home.
#[derive(Debug)]
pub(crate) struct HomeSide {
    pub(crate) machine: Machine,
    dialer: Arc<Dialer>,
    /// Held while the record is changed.
    recording: Mutex<()>,
}

impl HomeSide {
    pub(crate) fn new(machine: Machine, dialer: Arc<Dialer>) -> Arc<Self> {
        Arc::new(Self { machine, dialer, recording: Mutex::default() })
    }

    pub(crate) fn volume(&self) -> Arc<Volume> {
        self.machine.volume()
    }

    pub(crate) fn record(&self) -> HomeRecord {
        self.machine.read().map(|bytes| HomeRecord::decode(&bytes)).unwrap_or_default()
    }

    /// Goes on with the replica as a process that begins. Where the one before has left it is taken back first.
    pub(crate) fn mirror(&self, terms: Terms) -> Result<Arc<Mirror>, String> {
        let HomeRecord { current, left } = self.record();
        if left.is_some() {
            self.machine.write(HomeRecord { current, left: None }.encode())?;
        }
        Ok(Mirror::begin(&self.volume(), terms, current, left))
    }

    /// Ends as planned, as far as the replica goes: no further change begins, and where it stands is recorded, if that can be told.
    pub(crate) fn leave(&self, mirror: &Mirror, until: Instant) -> Result<bool, String> {
        mirror.hold();
        let Some(standing) = mirror.stand(&self.volume(), until) else { return Ok(false) };
        let _recording = self.recording.lock().unwrap();
        if self.record() != (HomeRecord { current: true, left: None }) {
            return Ok(false);
        }
        self.machine.write(HomeRecord { current: true, left: Some(standing) }.encode()).map(|()| true)
    }

    /// What the volume is at some moment from now on.
    fn snapshot(&self) -> Option<Vec<u8>> {
        let frozen = self.machine.volumes.freeze(&[self.volume()], |_| Vec::new()).ok()?.remove(0);
        let content = read_all(&*frozen).ok();
        self.machine.volumes.forget_frozen(frozen.id()).ok()?;
        content
    }
}

impl MirrorHost for HomeSide {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Connection>, AskError>> {
        Box::pin(async { Ok(self.dialer.from.connect(self.dialer.to, Protocol::Cluster).await?) })
    }

    fn epoch(&self) -> Result<u64, String> {
        Ok(0)
    }

    fn set_current(&self, current: bool) -> BoxFuture<'_, Result<(), String>> {
        let _recording = self.recording.lock().unwrap();
        let written = self.machine.write(HomeRecord { current, left: None }.encode());
        Box::pin(async { written })
    }

    /// There is no witness: nothing is answered that the replica lacks.
    fn outdate(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { false })
    }

    fn settings(&self) -> Result<Settings, String> {
        Ok(Settings::default())
    }

    fn superseded(&self, _: EndpointId, _: u64) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// What is recorded of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplicaRecord {
    line: Option<u64>,
    /// Which of the volumes that were made for it, one after the other.
    pub(crate) copy: u64,
    pub(crate) current: bool,
    pub(crate) consistent: bool,
}

impl ReplicaRecord {
    fn encode(self) -> Vec<u8> {
        let flags = u8::from(self.current) | u8::from(self.consistent) << 1 | u8::from(self.line.is_some()) << 2;
        [&[flags][..], &self.line.unwrap_or(0).to_le_bytes(), &self.copy.to_le_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Self {
        let (flags, line, copy) = (bytes[0], *bytes[1..].first_chunk().unwrap(), *bytes[9..].first_chunk().unwrap());
        Self {
            line: (flags & 4 != 0).then_some(u64::from_le_bytes(line)),
            copy: u64::from_le_bytes(copy),
            current: flags & 1 != 0,
            consistent: flags & 2 != 0,
        }
    }
}

/// A process that keeps the replica.
#[derive(Debug)]
pub(crate) struct ReplicaSide {
    pub(crate) machine: Machine,
    keeper: Arc<Mutex<Option<Arc<HomeSide>>>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: ReplicaRecord,
    applied: Option<u64>,
    /// Whether the power was lost since the home was last heard.
    forgotten: bool,
}

impl ReplicaSide {
    fn new(machine: Machine, keeper: Arc<Mutex<Option<Arc<HomeSide>>>>, forgotten: bool) -> Arc<Self> {
        let record = machine.read().map(|bytes| ReplicaRecord::decode(&bytes)).unwrap_or_default();
        let state = Mutex::new(State { record, applied: None, forgotten });
        Arc::new(Self { machine, keeper, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn record(&self) -> ReplicaRecord {
        self.state().record
    }

    pub(crate) fn has_forgotten(&self) -> bool {
        self.state().forgotten
    }

    /// The volume that holds it.
    pub(crate) fn copy(&self) -> Option<Arc<Volume>> {
        self.machine.volumes.get(&copy_name(self.record().copy))
    }

    fn change(&self, change: impl FnOnce(&mut ReplicaRecord)) -> Result<(), String> {
        let mut state = self.state();
        let mut record = state.record;
        change(&mut record);
        if record != state.record {
            self.machine.write(record.encode())?;
            state.record = record;
        }
        Ok(())
    }

    fn make(&self, line: u64) -> Result<(), String> {
        let home = self.keeper.lock().unwrap().clone().ok_or("there is no home")?;
        let content = home.snapshot().ok_or("the home is gone")?;
        let before = self.record().copy;
        let (volumes, told) = (&self.machine.volumes, |error: &dyn std::error::Error| error.to_string());
        // One that was made and not recorded is in the way.
        let number = (before + 1..).find(|number| volumes.get(&copy_name(*number)).is_none()).unwrap();
        let copy = volumes.create(&copy_name(number), SIZE as u64).map_err(|error| told(&error))?;
        copy.write(0, &content, volume::Durability::Power).map_err(|error| told(&error))?;
        self.state().applied = None;
        self.change(|record| *record = ReplicaRecord { line: Some(line), copy: number, ..ReplicaRecord::default() })?;
        if volumes.get(&copy_name(before)).is_some() {
            volumes.remove(&copy_name(before)).map_err(|error| told(&error))?;
        }
        Ok(())
    }
}

fn refusal(message: String) -> Refusal {
    Refusal { code: "internal".to_owned(), message, hint: None }
}

/// A process that keeps the replica, as a session has it.
#[derive(Debug)]
struct Following(Arc<ReplicaSide>);

impl Replica for Following {
    fn stand(&self, line: Option<u64>) -> Result<Position, Refusal> {
        let record = self.0.record();
        let stands = line.is_some() && record.line == line;
        if !stands {
            self.0.change(|record| record.current = false).map_err(refusal)?;
        }
        Ok(Position { line: record.line.filter(|_| stands), applied: self.0.state().applied })
    }

    fn prefetch(&self) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }

    fn begin(&self, line: u64) -> BoxFuture<'_, Result<(), Refusal>> {
        let side = Arc::clone(&self.0);
        Box::pin(async move {
            let made = tokio::task::spawn_blocking(move || side.make(line)).await;
            made.map_err(|error| refusal(error.to_string()))?.map_err(refusal)
        })
    }

    fn go_on(&self, again: bool) -> Result<Arc<dyn BlockDevice>, Refusal> {
        if again {
            self.0.change(|record| record.consistent = false).map_err(refusal)?;
        }
        self.0.state().forgotten = false;
        let copy = self.0.copy().ok_or_else(|| refusal("there is no copy".to_owned()))?;
        Ok(copy as Arc<dyn BlockDevice>)
    }

    fn reached(&self, number: u64, consistent: bool) -> Result<(), DeviceError> {
        self.0.state().applied = Some(number);
        let reached = self.0.change(|record| record.consistent |= consistent);
        reached.map_err(|_| DeviceError::Closed)
    }

    fn grow(&self, _: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Closed)
    }

    fn set(&self, _: Settings) -> Result<(), DeviceError> {
        Ok(())
    }

    fn set_current(&self, current: bool) -> Result<(), DeviceError> {
        self.0.change(|record| record.current = current).map_err(|_| DeviceError::Closed)
    }
}

/// The machine that keeps the replica, whichever process runs there.
#[derive(Debug)]
pub(crate) struct Keeper {
    side: Mutex<Arc<ReplicaSide>>,
    /// Where the volume is fetched from.
    pub(crate) home: Arc<Mutex<Option<Arc<HomeSide>>>>,
}

impl Keeper {
    pub(crate) fn new(machine: Machine) -> Arc<Self> {
        let home = Arc::default();
        let side = ReplicaSide::new(machine, Arc::clone(&home), false);
        Arc::new(Self { side: Mutex::new(side), home })
    }

    pub(crate) fn side(&self) -> Arc<ReplicaSide> {
        Arc::clone(&self.side.lock().unwrap())
    }

    /// The process that was there has ended; another one begins with what it left.
    pub(crate) fn restart(&self, machine: Machine, crash: Crash) {
        let mut side = self.side.lock().unwrap();
        // What was lost before is lost until the home is heard.
        let forgotten = crash == Crash::Power || side.has_forgotten();
        *side = ReplicaSide::new(machine, Arc::clone(&self.home), forgotten);
    }
}

impl Home for Keeper {
    fn open(&self, _: &Name) -> Result<Opened, Refusal> {
        Err(refusal("nothing is at home here".to_owned()))
    }

    fn replica(&self, _: EndpointId, _: Asked) -> BoxFuture<'static, Result<Arc<dyn Replica>, Reply>> {
        let side = self.side();
        Box::pin(async move { Ok(Arc::new(Following(side)) as Arc<dyn Replica>) })
    }

    fn boot(&self) -> String {
        String::new()
    }

    fn answer(&self, _: EndpointId, _: Request) -> BoxFuture<'static, Result<Reply, Refusal>> {
        Box::pin(async { Ok(Reply::Absent) })
    }
}

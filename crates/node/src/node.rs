//! The node: what it consists of, how it starts, what it does in the background, and how it stops.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::bucket::Signer;
use anyhow::Context as _;
use store::{ChunkSource, ChunkStore, LocalOptions, LocalStore, StoreError};
use swarm::{Swarm, SwarmOptions};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{SnapshotId, VolumeId};
use volume::{Clock, VolumeOptions, Volumes};

use crate::api::{ApiError, CollectionStatus, ScrubStatus, TaskKind};
use crate::attachments::Attachments;
use crate::buckets::Buckets;
use crate::catalog::Catalog;
use crate::cluster::{Cluster, Moves};
use crate::descriptors::Tickets;
use crate::domains::TrustDomains;
use crate::handover::Taken;
use crate::indexers::Indexers;
use crate::labels::Labels;
use crate::library::NodeLibrary;
use crate::passed::PassedSockets;
use crate::readers::Readers;
use crate::restart::SuccessorState;
use crate::schedule::Schedules;
use crate::sealing::Unsealed;
use crate::task::Tasks;
use crate::version::Versions;

/// How a node is run.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Everything that it keeps.
    pub directory: PathBuf,
    /// Where it talks to peers (UDP); any free port on all addresses where none is given.
    pub bind: Vec<SocketAddr>,
    /// Memory for decompressed chunks, in bytes.
    pub cache_bytes: u64,
    /// Room on disk for plain copies of chunks of which guests read parts often, in bytes.
    pub hot_bytes: u64,
    /// How long a deleted volume is kept, so that it can be taken back.
    pub keep_deleted: Duration,
    /// How often the store is collected without being asked; never where nothing is given.
    pub collect_every: Option<Duration>,
    /// How often everything is read again without being asked; never where nothing is given.
    pub scrub_every: Option<Duration>,
    /// How long to wait for a manifest that is not here before saying so.
    pub manifest_timeout: Duration,
    /// The sockets that the process was started with.
    pub passed: PassedSockets,
    /// What tells the time of schedules.
    pub clock: Clock,
}

impl NodeOptions {
    /// The defaults, for a directory.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            bind: Vec::new(),
            cache_bytes: LocalOptions::default().cache_bytes,
            hot_bytes: LocalOptions::default().hot_bytes,
            keep_deleted: Duration::from_hours(7 * 24),
            collect_every: Some(Duration::from_hours(24)),
            scrub_every: Some(Duration::from_hours(30 * 24)),
            manifest_timeout: Duration::from_secs(20),
            passed: PassedSockets::default(),
            clock: Clock::default(),
        }
    }
}

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) options: NodeOptions,
    pub(crate) store: Arc<dyn ChunkStore>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) labels: Labels,
    pub(crate) schedules: Schedules,
    pub(crate) readers: Arc<Readers>,
    pub(crate) swarm: Arc<Swarm>,
    pub(crate) buckets: Arc<Buckets>,
    pub(crate) versions: Arc<Versions>,
    pub(crate) domains: Arc<TrustDomains>,
    pub(crate) indexers: Arc<Indexers>,
    pub(crate) cluster: Cluster,
    pub(crate) catalog: Catalog,
    pub(crate) tasks: Tasks,
    pub(crate) attachments: Attachments,
    pub(crate) tickets: Arc<Tickets>,
    pub(crate) successor: Mutex<SuccessorState>,
    /// The snapshots of which everything was found to be here.
    pub(crate) complete: Mutex<BTreeSet<SnapshotId>>,
    /// The volumes whose journals are being folded.
    pub(crate) folding: Mutex<BTreeSet<VolumeId>>,
    /// Versions that could not be sealed.
    pub(crate) unsealed: Unsealed,
    /// What the last collection found.
    pub(crate) collection: Mutex<Option<CollectionStatus>>,
    /// What scrubs found since the node started.
    pub(crate) scrubbed: Mutex<ScrubStatus>,
    /// Woken when this node's addresses, or what it offers, have changed.
    pub(crate) moved: Arc<Notify>,
    pub(crate) stopping: CancellationToken,
    /// The followers, publishers and caretakers.
    pub(crate) background: TaskTracker,
}

impl Node {
    /// Opens everything in the directory, recovers what a crash left, and goes on with what was under way.
    ///
    /// # Errors
    /// When the directory is in use, of a newer version, or damaged beyond what recovers by itself.
    /// Where another process has handed its exports over, it is told as soon as this one goes on with them.
    pub(crate) async fn start(options: NodeOptions, taken: Option<Arc<Taken>>) -> anyhow::Result<Arc<Self>> {
        let directory = options.directory.clone();
        make_private(&directory)?;
        let reserved = if taken.is_none() { crate::attachments::reserve(&directory) } else { BTreeMap::new() };
        let NodeOptions { cache_bytes, hot_bytes, .. } = options;
        let store_options = LocalOptions { cache_bytes, hot_bytes, ..LocalOptions::default() };
        let store: Arc<dyn ChunkStore> = {
            let (path, patience) = (directory.join("store"), taken.as_ref().map(|_| LOCK_PATIENCE).unwrap_or_default());
            tokio::task::spawn_blocking(move || open_store(&path, store_options, patience)).await??
        };
        let stopping = CancellationToken::new();
        let signer = Signer::load_or_create(&directory.join("node.key")).context("could not read the node's key")?;
        let domains = Arc::new(TrustDomains::open(Arc::clone(&store))?);
        let buckets = Arc::new(Buckets::open(Arc::clone(&store), &directory.join("buckets"))?);
        let versions = Arc::new(Versions::open(Arc::clone(&store))?);
        let indexers = Arc::new(Indexers::open(&directory.join("logins"), signer.clone())?);
        let moved = Arc::new(Notify::new());
        let moves = Arc::new(Moves::default());
        let readers = Arc::new(Readers::new(options.clock.clone()));
        let library = Arc::new(NodeLibrary::new(
            Arc::clone(&store),
            Arc::clone(&buckets),
            Arc::clone(&versions),
            Arc::clone(&indexers),
            Arc::clone(&moves),
            Arc::clone(&readers),
            Arc::clone(&moved),
        ));
        let mut swarm_options = SwarmOptions::new(*signer.seed());
        swarm_options.bind.clone_from(&options.bind);
        let swarm = crate::port::start(swarm_options, &directory, &store, library).await?;
        let volumes = {
            let (path, store, source) =
                (directory.clone(), Arc::clone(&store), Arc::clone(&swarm) as Arc<dyn ChunkSource>);
            tokio::task::spawn_blocking(move || Volumes::open(&path, store, source, VolumeOptions::default())).await??
        };
        let cluster = Cluster::open(&*store, moves, &swarm)?;
        let labels = Labels::open(Arc::clone(&store), &volumes)?;
        let schedules = Schedules::open(Arc::clone(&store), &volumes)?;
        let catalog = Catalog::open(&directory.join("catalog.sqlite")).await?;
        let tasks = Tasks::new(catalog.clone(), stopping.clone());
        let runtime = tokio::runtime::Handle::current();
        let key = *swarm.endpoint().as_bytes();
        let attachments =
            Attachments::new(&directory, key, reserved, Arc::clone(&store), runtime, options.passed.clone());
        let node = Arc::new(Self {
            options,
            store,
            volumes,
            labels,
            schedules,
            readers,
            swarm,
            buckets,
            versions,
            domains,
            indexers,
            cluster,
            catalog,
            tasks,
            attachments,
            tickets: Arc::default(),
            successor: Mutex::default(),
            complete: Mutex::default(),
            folding: Mutex::default(),
            unsealed: Unsealed::default(),
            collection: Mutex::default(),
            scrubbed: Mutex::default(),
            moved,
            stopping,
            background: TaskTracker::new(),
        });
        node.go_on(taken).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(node)
    }

    /// Goes on with everything that was under way when the node last stopped, with guests' requests first.
    async fn go_on(self: &Arc<Self>, taken: Option<Arc<Taken>>) -> Result<(), ApiError> {
        let node = Arc::clone(self);
        crate::error::blocking(move || node.versions.recover(&node.buckets)).await?;
        let unfinished = self.catalog.unfinished_tasks().await.map_err(crate::error::catalog_error)?;
        let suspended = taken.as_ref().map(|taken| taken.take_servers()).unwrap_or_default();
        let node = Arc::clone(self);
        crate::error::blocking(move || {
            node.open_replicas()?;
            // Before anybody can write.
            node.begin_mirrors()
        })
        .await?;
        let attachments = self.prepare_attachments(suspended).await?;
        if let Some(taken) = &taken {
            taken.predecessor.taken();
        }
        self.start_attachments(attachments).await?;
        if let Some(taken) = &taken {
            let pause_ms = crate::task::now_ms().saturating_sub(taken.began_ms);
            tracing::info!(pause_ms, "took over from the process before");
        }
        self.join_cluster().await?;
        let (taking, unfinished): (Vec<_>, Vec<_>) =
            unfinished.into_iter().partition(|task| task.kind == TaskKind::Take);
        self.resume_taking(taking).await?;
        for task in unfinished {
            match task.kind {
                TaskKind::Hydrate => self.resume_hydration(task),
                TaskKind::Collect => self.resume_collection(task),
                TaskKind::Scrub => self.resume_scrub(task),
                // A seal begins anew below, from the record of its version.
                TaskKind::Import | TaskKind::Materialize | TaskKind::Seal | TaskKind::Take => {
                    if let Err(error) = self.tasks.interrupted(task).await {
                        tracing::warn!(%error, "that a task has ended could not be recorded");
                    }
                }
            }
        }
        for (bucket, object, version) in self.versions.unsealed() {
            if let Some(bucket) = self.buckets.list().into_iter().find(|candidate| candidate.id == bucket) {
                // It is tried again where it cannot be started: a full file system keeps nobody from their disks.
                if let Err(error) = self.start_sealing(&bucket, &object, version).await {
                    tracing::warn!(%error, bucket = %bucket.name(), %object, version, "a snapshot cannot be sealed yet");
                }
            }
        }
        for bucket in self.buckets.list() {
            if let Err(error) = self.index_bucket(&bucket).await {
                tracing::warn!(%error, bucket = %bucket.name(), "what there is of a bucket cannot be listed yet");
            }
            self.start_exchanging(&bucket);
        }
        self.spawn_caretaker();
        self.spawn_announcer();
        self.spawn_collector();
        self.spawn_scrubber();
        self.spawn_scheduler();
        Ok(())
    }

    /// Commits what peers sent, removes for good what was deleted long ago, folds journals that grow long, and seals what could not be
    /// sealed before.
    fn spawn_caretaker(self: &Arc<Self>) {
        let node = Arc::clone(self);
        self.spawn(async move {
            let mut interval = tokio::time::interval(Duration::from_secs(1));
            let mut received = 0;
            loop {
                tokio::select! {
                    _ = interval.tick() => {}
                    () = node.volumes.room_due() => {}
                }
                let now = node.swarm.statistics().total.fetched_bytes();
                if now != received {
                    received = now;
                    let store = Arc::clone(&node.store);
                    let commit = move || store.commit().map_err(crate::error::store_error);
                    if let Err(error) = crate::error::blocking(commit).await {
                        tracing::warn!(%error, "what peers sent could not be made durable");
                    }
                }
                node.expire_deleted().await;
                node.expire_history().await;
                node.fold_volumes();
                node.seal_due(Instant::now()).await;
            }
        });
    }

    /// Runs something in the background until the node stops.
    pub(crate) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.background.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    /// Makes durable what can be, here and at replicas, so that little is left to do while guests wait.
    pub(crate) async fn prepare_to_hand_over(self: &Arc<Self>) {
        let node = Arc::clone(self);
        let commit = move || {
            node.have_replicas_catch_up();
            node.store.commit().map_err(crate::error::store_error)
        };
        if let Err(error) = crate::error::blocking(commit).await {
            tracing::warn!(%error, "the store could not be committed");
        }
    }

    /// Ends all attachments. Their requests are answered where replicas are there to let them.
    async fn stop_attachments(&self) {
        self.cluster.mirrors.abandon_lost();
        let mut stopping = std::pin::pin!(self.attachments.stop_all());
        if tokio::time::timeout(REPLICA_GRACE, &mut stopping).await.is_err() {
            self.cluster.mirrors.abandon();
            stopping.await;
        }
    }

    /// Stops in order: requests in flight are finished, nothing acknowledged is lost.
    pub(crate) async fn stop(self: &Arc<Self>) {
        self.stop_attachments().await;
        self.leave_replicas().await;
        self.stopping.cancel();
        self.cluster.mirrors.abandon();
        self.background.close();
        self.background.wait().await;
        self.tasks.close().await;
        self.swarm.close().await;
        for volume in self.volumes.list() {
            // Nobody writes any more: a replica has no part in what is made durable here.
            volume.observe(None);
            if let Err(error) = volume::BlockDevice::flush(&*volume) {
                tracing::warn!(%error, volume = %volume.name(), "a volume could not be flushed");
            }
        }
        if let Err(error) = self.store.commit() {
            tracing::warn!(%error, "the store could not be committed");
        }
        self.catalog.close().await;
    }
}

/// How long requests may wait for replicas when the node stops.
const REPLICA_GRACE: Duration = Duration::from_secs(5);

/// How long the process before may take to let go of the store, when it is known to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// Opens the store; one that is in use is asked again for as long as there is patience.
fn open_store(path: &Path, options: LocalOptions, patience: Duration) -> Result<Arc<LocalStore>, StoreError> {
    let begin = Instant::now();
    loop {
        match LocalStore::open(path, options) {
            Err(StoreError::InUse { .. }) if begin.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

/// Makes a directory that only its owner can enter, durably.
fn make_private(directory: &Path) -> anyhow::Result<()> {
    match medium::Medium::make_directory(&medium::Host, directory) {
        // Who may not read the directory above cannot make our name in it durable either, and need not where it is old.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && directory.is_dir() => {
            tracing::debug!(%error, directory = %directory.display(), "its name could not be made durable");
            Ok(())
        }
        made => made.with_context(|| format!("could not make the directory {}", directory.display())),
    }
}

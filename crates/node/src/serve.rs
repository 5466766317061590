//! Running a node: its sockets, its readiness, and its end, which is a stop or a hand-over to its successor.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use crate::api::{ApiError, ErrorCode};
use crate::client::{DESCRIPTOR_SOCKET, NODE_SOCKET};
use crate::handover::{self, HAND_OVER_SOCKET, HandOver, Parcel, Predecessor, Successor, Taken, await_successor};
use crate::node::{Node, NodeOptions};
use crate::systemd;

/// Where a node that has just started can be reached.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The API's socket.
    pub socket: PathBuf,
    /// The node's id among peers.
    pub endpoint: String,
    /// Where peers reach it.
    pub addresses: Vec<std::net::SocketAddr>,
}

/// How a node begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It is the only one.
    Alone,
    /// It goes on with the connections of the node that runs, if one does.
    TakeOver,
    /// It handed over in vain, and goes on with its own connections, which it finds at standard input.
    TakenBack {
        /// Why the successor did not take over.
        why: String,
    },
}

/// How a node ended.
#[derive(Debug)]
#[must_use = "a hand-over is not over yet"]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Its successor waits for the connections: this process must become the guard.
    HandsOver(HandOver),
}

/// How long API requests in flight may take when the node stops.
const GRACE: Duration = Duration::from_secs(5);
/// How long a request in hand may delay a hand-over, while the guests of other exports wait.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(10);
/// How long replicas may take to have everything, while guests wait: one that takes longer is made anew.
const REPLICA_PATIENCE: Duration = Duration::from_secs(2);
/// How long the API and the network may take to say goodbye while guests wait for the successor.
const FAREWELL: Duration = Duration::from_millis(200);

/// Runs a node until SIGTERM or SIGINT, or until its successor asks for its connections, and calls `ready` once it
/// answers. SIGHUP makes it start a successor.
///
/// # Errors
/// When the node cannot start, or its sockets fail.
pub async fn serve(options: NodeOptions, start: Start, ready: Box<dyn FnOnce(&Ready) + Send>) -> anyhow::Result<Ended> {
    let directory = options.directory.clone();
    let mut signals = Signals::new()?;
    let (given, taken) = take(&directory, &start).await?;
    let node = Node::start(options, taken.clone()).await.inspect_err(|error| {
        if let Some(taken) = &taken {
            taken.predecessor.failed(&format!("{error:#}"));
        }
    })?;
    if let Start::TakenBack { why } = &start {
        node.restart_failed(why);
    }
    let sockets = Sockets::open(&directory, given)?;
    let served = Served::start(&node, &sockets)?;
    let successors = bind_private(&directory.join(HAND_OVER_SOCKET))?;
    ready(&Ready {
        socket: directory.join(NODE_SOCKET),
        endpoint: node.swarm.endpoint().to_string(),
        addresses: node.swarm.addresses(),
    });
    systemd::notify("READY=1");
    tracing::info!(directory = %directory.display(), "the node is ready");
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.restart.recv() => {
                if let Err(error) = node.restart() {
                    node.restart_failed(&error.message);
                }
            }
            successor = await_successor(&successors) => {
                match hand_over(&node, &sockets, &successor).await {
                    Ok(hand_over) => {
                        say_goodbye(&node, served).await;
                        return Ok(Ended::HandsOver(hand_over));
                    }
                    Err(error) => {
                        node.restart_failed(&error.message);
                        successor.refuse(&error.message);
                    }
                }
            }
        }
    }
    tracing::info!("the node stops");
    systemd::notify("STOPPING=1");
    node.stop().await;
    served.passing.abort();
    drop(tokio::time::timeout(GRACE, served.api).await);
    for name in [NODE_SOCKET, DESCRIPTOR_SOCKET, HAND_OVER_SOCKET] {
        let path = directory.join(name);
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::debug!(%error, path = %path.display(), "a socket was gone already");
        }
    }
    Ok(Ended::Stopped)
}

/// What people and systemd tell a process.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    restart: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())?, restart: signal(SignalKind::hangup())? })
    }
}

/// The listening sockets of the API, which a successor goes on with.
#[derive(Debug)]
struct Sockets {
    api: OwnedFd,
    descriptors: OwnedFd,
}

impl Sockets {
    fn open(directory: &Path, given: Option<Sockets>) -> anyhow::Result<Self> {
        if let Some(given) = given {
            return Ok(given);
        }
        let bind = |name: &str| {
            let path = directory.join(name);
            let listener = bind_private(&path).with_context(|| format!("could not listen on {}", path.display()))?;
            anyhow::Ok(OwnedFd::from(listener.into_std()?))
        };
        Ok(Self { api: bind(NODE_SOCKET)?, descriptors: bind(DESCRIPTOR_SOCKET)? })
    }
}

/// Listens on a socket that stays open when this listener is gone.
fn listener(socket: &OwnedFd) -> std::io::Result<UnixListener> {
    let listener = StdUnixListener::from(socket.as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// What answers at the sockets.
#[derive(Debug)]
struct Served {
    api: JoinHandle<std::io::Result<()>>,
    passing: JoinHandle<std::io::Result<()>>,
}

impl Served {
    fn start(node: &Arc<Node>, sockets: &Sockets) -> std::io::Result<Self> {
        let (stopping, router) = (node.stopping.clone(), crate::routes::router(Arc::clone(node)));
        let (api, descriptors) = (listener(&sockets.api)?, listener(&sockets.descriptors)?);
        let api = async move { axum::serve(api, router).with_graceful_shutdown(stopping.cancelled_owned()).await };
        let passing = crate::descriptors::serve(descriptors, Arc::clone(&node.tickets));
        Ok(Self { api: tokio::spawn(api), passing: tokio::spawn(passing) })
    }
}

/// Takes over what this process is to go on with.
async fn take(directory: &Path, start: &Start) -> anyhow::Result<(Option<Sockets>, Option<Arc<Taken>>)> {
    let received = match start {
        Start::Alone => None,
        Start::TakeOver => {
            let directory = directory.to_owned();
            tokio::task::spawn_blocking(move || handover::ask(&directory)).await?.context("could not take over")?
        }
        Start::TakenBack { .. } => Some(handover::take_back().context("could not take back")?),
    };
    Ok(received.map(unpack).unzip())
}

fn unpack((parcel, predecessor): (Parcel, Predecessor)) -> (Sockets, Arc<Taken>) {
    let Parcel { began_ms, api, descriptors, servers } = parcel;
    let servers = Mutex::new(BTreeMap::from_iter(servers));
    (Sockets { api, descriptors }, Arc::new(Taken { began_ms, servers, predecessor }))
}

/// Stops all exports and puts them into a parcel; where that fails, they go on.
async fn hand_over(node: &Arc<Node>, sockets: &Sockets, successor: &Successor) -> Result<HandOver, ApiError> {
    tracing::info!("a successor takes over");
    let clone =
        |socket: &OwnedFd| socket.try_clone().map_err(|error| ApiError::from_error(ErrorCode::Internal, &error));
    let (api, descriptors) = (clone(&sockets.api)?, clone(&sockets.descriptors)?);
    node.prepare_to_hand_over().await;
    let began_ms = crate::task::now_ms();
    let handing = Arc::clone(node);
    let suspended = crate::error::blocking(move || {
        let servers = handing.attachments.suspend_all(HAND_OVER_PATIENCE)?;
        Ok((servers, handing.bring_replicas_to_a_stand(REPLICA_PATIENCE)))
    });
    let (servers, left) = suspended.await?;
    let parcel = Parcel { began_ms, api, descriptors, servers };
    match successor.prepare(&parcel) {
        Ok(prepared) => {
            // Nothing can fail any more after which this process would go on.
            node.record_left(left).await;
            Ok(prepared)
        }
        Err(error) => {
            let error = ApiError::from_error(ErrorCode::Internal, &error);
            node.go_on_with_replicas();
            node.attachments.resume_all(parcel.servers);
            Err(error)
        }
    }
}

/// Lets the API and the peers know; whoever does not answer at once is not waited for, as guests wait.
async fn say_goodbye(node: &Node, served: Served) {
    node.stopping.cancel();
    let goodbye = async { tokio::join!(served.api, node.swarm.close()) };
    if tokio::time::timeout(FAREWELL, goodbye).await.is_err() {
        tracing::debug!("not everybody said goodbye");
    }
}

/// Binds a unix socket that only its owner can use; one left over from a crash is replaced.
pub(crate) fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    if crate::descriptors::answers(path) {
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another node answers there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

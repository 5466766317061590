//! The server: accepts connections, gives each a thread, counts them, and ends them.
//!
//! Invariant: when [`NbdServer::stop`] or [`NbdServer::close_export`] has returned, no connection it was about changes
//! its device any more. Reads that waited for the network are cancelled, but may take a moment to let go of it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use tokio::runtime::Handle;

use super::connection::Connection;
use super::link::{Event, Link};
use super::listen::{Listen, Listener};
use super::negotiation::Negotiation;
use super::refusal::with_reasons;
use super::transmission::Transmission;
use super::wait::{WaitLimits, Waits};
use crate::disk::Disk;
use crate::exports::Exports;

/// How long the accepting thread rests when the system has no room for a connection, in seconds.
const REST_SECONDS: i64 = 1;
/// What the kernel holds of replies that a client has not received yet, in bytes.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// A server could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Somebody else listens there.
    #[error("{} is in use by another process", place(listen))]
    InUse {
        /// Where.
        listen: Listen,
    },
    /// The path is taken by something that is not a socket.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("could not listen on {}", place(listen))]
    Listen {
        /// Where.
        listen: Listen,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
}

fn place(listen: &Listen) -> String {
    match listen {
        Listen::Unix(path) => path.display().to_string(),
        Listen::Tcp(address) => address.to_string(),
    }
}

/// A server's limits.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// After how long a read of what nobody has fails with `EIO`; `None` lets it wait for ever.
    pub read_timeout: Option<Duration>,
    /// How many clients may be connected at once; further ones are turned away.
    pub max_connections: usize,
    /// How many requests of one connection may wait for what is not here; then no more are received from it.
    pub max_waiting_requests: usize,
    /// How many bytes the waiting requests of one connection may ask for, before no more are received from it.
    pub max_waiting_bytes: usize,
    /// How long a client may take to choose an export.
    pub negotiation_timeout: Duration,
}

impl Default for NbdOptions {
    fn default() -> NbdOptions {
        NbdOptions {
            read_timeout: None,
            max_connections: 256,
            max_waiting_requests: 256,
            max_waiting_bytes: 32 << 20,
            negotiation_timeout: Duration::from_secs(60),
        }
    }
}

/// A running NBD server. Dropping it stops it without grace.
#[derive(Debug)]
pub struct NbdServer {
    shared: Arc<Shared>,
    listen: Listen,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    exports: Arc<dyn Exports>,
    runtime: Handle,
    options: NbdOptions,
    stopping: AtomicBool,
    event: Event,
    connections: Mutex<BTreeMap<u64, Arc<Entry>>>,
    changed: Condvar,
}

/// A connection as the server sees it.
#[derive(Debug)]
struct Entry {
    link: Arc<Link>,
    /// The export it has chosen, or the last one that it tried to.
    export: Mutex<Option<String>>,
}

impl NbdServer {
    /// Begins to listen and to serve. Reads of what is not here wait on the runtime, which must have a timer.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn start(
        listen: Listen,
        exports: Arc<dyn Exports>,
        runtime: Handle,
        options: NbdOptions,
    ) -> Result<NbdServer, ExportError> {
        let event = Event::new().map_err(|source| ExportError::Listen { listen: listen.clone(), source })?;
        let listener = Listener::bind(&listen)?;
        let shared = Arc::new(Shared {
            exports,
            runtime,
            options,
            stopping: AtomicBool::new(false),
            event,
            connections: Mutex::default(),
            changed: Condvar::new(),
        });
        let listen = listener.listen.clone();
        let of_thread = Arc::clone(&shared);
        let accepting = std::thread::Builder::new()
            .name("nbd accept".to_owned())
            .spawn(move || of_thread.accept_all(&listener))
            .map_err(ExportError::Thread)?;
        tracing::info!(listen = place(&listen), "NBD server started");
        Ok(NbdServer { shared, listen, accepting: Some(accepting) })
    }

    /// Where it listens, with the real port.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    /// The NBD URI of an export.
    #[must_use]
    pub fn uri(&self, name: &str) -> String {
        self.listen.uri(name)
    }

    /// How many clients have an export open.
    #[must_use]
    pub fn connections(&self, name: &str) -> usize {
        let name = self.shared.exports.resolve(name);
        self.shared.connections().values().filter(|entry| entry.has_export(name)).count()
    }

    /// Ends all connections of an export at once, cancels their waits, and returns how many there were when they no
    /// longer use the device. Blocks as long as the device takes for requests in hand. To keep clients from coming
    /// back, [`Exports::open`] must refuse the name before.
    pub fn close_export(&self, name: &str) -> usize {
        let name = self.shared.exports.resolve(name).to_owned();
        let mut connections = self.shared.connections();
        let closing: Vec<u64> =
            connections.iter().filter(|(_, entry)| entry.has_export(&name)).map(|(id, _)| *id).collect();
        for id in &closing {
            connections[id].link.close();
        }
        while closing.iter().any(|id| connections.contains_key(id)) {
            connections = self.shared.changed.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
        closing.len()
    }

    /// Stops listening, lets requests in flight finish for as long as `grace`, closes all connections and removes the
    /// socket. What still waits for the network then is not answered: a client that connects again can repeat it.
    /// Blocks; not for async threads.
    pub fn stop(mut self, grace: Duration) {
        self.shut_down(grace);
    }

    fn shut_down(&mut self, grace: Duration) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.event.wake();
        if accepting.join().is_err() {
            tracing::error!("the accepting thread of the NBD server has panicked");
        }
        let deadline = Instant::now() + grace;
        let mut connections = self.shared.connections();
        connections.values().for_each(|entry| entry.link.drain());
        while !connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            connections = self.shared.changed.wait_timeout(connections, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        connections.values().for_each(|entry| entry.link.close());
        while !connections.is_empty() {
            connections = self.shared.changed.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
        tracing::info!(listen = place(&self.listen), "NBD server stopped");
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.shut_down(Duration::ZERO);
    }
}

impl Entry {
    fn has_export(&self, name: &str) -> bool {
        self.export.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(name)
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Entry>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(self: &Arc<Shared>, listener: &Listener) {
        let mut next = 0;
        while !self.stopping.load(Ordering::Acquire) {
            match accept_with(&listener.socket, SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    next += 1;
                    self.admit(next, socket, matches!(listener.listen, Listen::Tcp(_)));
                }
                Err(Errno::AGAIN) => self.sleep(Some(&listener.socket)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.sleep(None);
                }
            }
        }
        listener.remove();
    }

    /// Sleeps until there is a connection or the server stops; without a socket, not longer than a while.
    fn sleep(&self, socket: Option<&OwnedFd>) {
        let rest = Timespec { tv_sec: REST_SECONDS, tv_nsec: 0 };
        let mut watched = vec![PollFd::new(self.event.descriptor(), PollFlags::IN)];
        watched.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        // An interrupted sleep is as good as one that ended.
        let _ = poll(&mut watched, if socket.is_some() { None } else { Some(&rest) });
    }

    fn admit(self: &Arc<Shared>, id: u64, socket: OwnedFd, tcp: bool) {
        let mut connections = self.connections();
        if connections.len() >= self.options.max_connections {
            tracing::warn!(limit = self.options.max_connections, "too many NBD clients: one was turned away");
            return;
        }
        tune(&socket, tcp);
        let link = match Link::new(socket) {
            Ok(link) => Arc::new(link),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be set up");
                return;
            }
        };
        connections.insert(id, Arc::new(Entry { link, export: Mutex::default() }));
        drop(connections);
        let presence = Presence { shared: Arc::clone(self), id };
        let name = format!("nbd {id}");
        if let Err(error) = std::thread::Builder::new().name(name).spawn(move || presence.serve()) {
            tracing::warn!(%error, "a connection's thread could not be started");
        }
    }
}

/// Room for large replies, so that they do not go out in a relay of small pieces; on TCP, no delay, and dead clients
/// noticed. All of it helps and none of it is needed.
fn tune(socket: &OwnedFd, tcp: bool) {
    let mut failed = Vec::new();
    failed.extend(sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER_BYTES).err());
    if tcp {
        failed.extend(sockopt::set_tcp_nodelay(socket, true).err());
        failed.extend(sockopt::set_socket_keepalive(socket, true).err());
    }
    for error in failed {
        tracing::debug!(%error, "a socket could not be tuned");
    }
}

/// A connection's place in the server's list, given back when its thread has ended, however that came about.
#[derive(Debug)]
struct Presence {
    shared: Arc<Shared>,
    id: u64,
}

impl Presence {
    fn serve(self) {
        let Some(entry) = self.shared.connections().get(&self.id).map(Arc::clone) else { return };
        let id = self.id;
        tracing::debug!(id, "NBD client connected");
        let shared = &self.shared;
        let link = &entry.link;
        let chosen = |name: &str| {
            *entry.export.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.to_owned());
        };
        let negotiation = Negotiation::new(link, &*shared.exports, &chosen, shared.options.negotiation_timeout);
        let agreed = match negotiation.run() {
            Ok(Some(agreed)) => agreed,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(id, error = with_reasons(&error), "NBD handshake failed");
                return;
            }
        };
        let limits = WaitLimits {
            requests: shared.options.max_waiting_requests,
            bytes: shared.options.max_waiting_bytes,
            timeout: shared.options.read_timeout,
        };
        let waits = Waits::new(shared.runtime.clone(), Arc::clone(link), limits);
        let disk = Disk::new(agreed.device);
        let transmission = Transmission::new(Arc::clone(link), disk, agreed.terms, waits);
        match Connection::new(Arc::clone(link), transmission).run() {
            Ok(()) => tracing::debug!(id, "NBD client disconnected"),
            Err(error) => tracing::info!(id, error = with_reasons(&error), "NBD connection ended"),
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shared.connections().remove(&self.id);
        self.shared.changed.notify_all();
    }
}

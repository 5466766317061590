//! The server: accepts connections, gives each a thread, counts them, and ends them.
//!
//! Invariant: when [`NbdServer::stop`] or [`NbdServer::close_export`] has returned, no connection it was about changes
//! its device any more. Reads that waited for the network are cancelled, but may take a moment to let go of it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use tokio::runtime::Handle;
use volume::BlockDevice;

use super::connection::{Connection, End, Remains};
use super::direct::Direct;
use super::link::{Event, Link};
use super::listen::{Listen, Listener, Reservation};
use super::negotiation::Negotiation;
use super::refusal::with_reasons;
use super::state::StateError;
use super::tls::Tls;
use super::transmission::{Terms, Transmission};
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
    /// What was handed to it is not a listening socket of a kind that is served.
    #[error("the socket that was passed cannot be listened on")]
    Passed(#[source] io::Error),
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
    /// What another process handed over makes no sense.
    #[error("could not take over the server of another process")]
    State(#[source] StateError),
}

pub(super) fn place(listen: &Listen) -> String {
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
    /// How TLS is used; `None` for not at all.
    pub tls: Option<Tls>,
}

impl Default for NbdOptions {
    fn default() -> NbdOptions {
        NbdOptions {
            read_timeout: None,
            max_connections: 256,
            max_waiting_requests: 256,
            max_waiting_bytes: 32 << 20,
            negotiation_timeout: Duration::from_secs(60),
            tls: None,
        }
    }
}

/// A running NBD server. Dropping it stops it without grace.
#[derive(Debug)]
pub struct NbdServer {
    pub(super) shared: Arc<Shared>,
    pub(super) listen: Listen,
    accepting: Option<JoinHandle<Listener>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) exports: Arc<dyn Exports>,
    runtime: Handle,
    options: NbdOptions,
    /// Set when no more connections are to be accepted.
    stopping: AtomicBool,
    event: Event,
    next: AtomicU64,
    connections: Mutex<BTreeMap<u64, Arc<Entry>>>,
    /// The connections that were held, and whose threads have ended.
    pub(super) held: Mutex<Vec<Held>>,
    /// Called when a connection comes out of its handshake, and when it ends.
    pub(super) changed: Condvar,
}

/// A connection as the server sees it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) link: Arc<Link>,
    /// The export it has chosen, or the last one that it tried to.
    export: Mutex<Option<String>>,
    /// Whether the handshake is over.
    pub(super) transmitting: AtomicBool,
}

/// A connection between two requests.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) link: Arc<Link>,
    pub(super) export: String,
    pub(super) remains: Remains,
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
        NbdServer::new(Listener::bind(&listen)?, exports, runtime, options)
    }

    /// As [`NbdServer::start`], where it is listened already.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn start_reserved(
        reservation: Reservation,
        exports: Arc<dyn Exports>,
        runtime: Handle,
        options: NbdOptions,
    ) -> Result<NbdServer, ExportError> {
        NbdServer::new(reservation.0, exports, runtime, options)
    }

    /// Begins to serve on a socket that somebody else has made listening, and that is never removed here.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn start_on(
        socket: OwnedFd,
        exports: Arc<dyn Exports>,
        runtime: Handle,
        options: NbdOptions,
    ) -> Result<NbdServer, ExportError> {
        NbdServer::new(Listener::adopt(socket).map_err(ExportError::Passed)?, exports, runtime, options)
    }

    pub(super) fn new(
        listener: Listener,
        exports: Arc<dyn Exports>,
        runtime: Handle,
        options: NbdOptions,
    ) -> Result<NbdServer, ExportError> {
        let listen = listener.listen.clone();
        let event = Event::new().map_err(|source| ExportError::Listen { listen: listen.clone(), source })?;
        let shared = Arc::new(Shared {
            exports,
            runtime,
            options,
            stopping: AtomicBool::new(false),
            event,
            next: AtomicU64::new(1),
            connections: Mutex::default(),
            held: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut server = NbdServer { shared, listen, accepting: None };
        server.accept(listener)?;
        tracing::info!(listen = place(&server.listen), "NBD server started");
        Ok(server)
    }

    /// Begins to accept connections.
    pub(super) fn accept(&mut self, listener: Listener) -> Result<(), ExportError> {
        self.shared.stopping.store(false, Ordering::Release);
        self.shared.event.clear();
        let shared = Arc::clone(&self.shared);
        let accepting = std::thread::Builder::new()
            .name("nbd accept".to_owned())
            .spawn(move || {
                shared.accept_all(&listener);
                listener
            })
            .map_err(ExportError::Thread)?;
        self.accepting = Some(accepting);
        Ok(())
    }

    /// Ends the accepting of connections; nothing if it has ended before.
    pub(super) fn stop_accepting(&mut self) -> Option<Listener> {
        let accepting = self.accepting.take()?;
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.event.wake();
        let listener = accepting.join();
        if listener.is_err() {
            tracing::error!("the accepting thread of the NBD server has panicked");
        }
        listener.ok()
    }

    /// Where it listens, with the real port.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    /// The NBD URI of an export.
    #[must_use]
    pub fn uri(&self, name: &str) -> String {
        let tls = self.shared.options.tls.as_ref().is_some_and(Tls::required);
        if tls { self.listen.tls_uri(name) } else { self.listen.uri(name) }
    }

    /// How a client within this machine is connected to an export without a handshake.
    #[must_use]
    pub fn direct(&self, name: &str) -> Direct {
        Direct::new(Arc::clone(&self.shared), self.shared.exports.resolve(name).to_owned())
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
        let Some(listener) = self.stop_accepting() else { return };
        listener.remove();
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
        if !connections.is_empty() {
            self.shared.exports.abandon();
        }
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
    fn transmitting(link: Arc<Link>, export: String) -> Entry {
        Entry { link, export: Mutex::new(Some(export)), transmitting: AtomicBool::new(true) }
    }

    pub(super) fn has_export(&self, name: &str) -> bool {
        self.export.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(name)
    }

    pub(super) fn export(&self) -> String {
        self.export.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
    }
}

impl Shared {
    pub(super) fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Entry>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept_all(self: &Arc<Shared>, listener: &Listener) {
        while !self.stopping.load(Ordering::Acquire) {
            match accept_with(&listener.socket, SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    self.admit(socket, matches!(listener.listen, Listen::Tcp(_)));
                }
                Err(Errno::AGAIN) => self.sleep(Some(&listener.socket)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.sleep(None);
                }
            }
        }
    }

    /// Sleeps until there is a connection or the server stops; without a socket, not longer than a while.
    fn sleep(&self, socket: Option<&OwnedFd>) {
        let rest = Timespec { tv_sec: REST_SECONDS, tv_nsec: 0 };
        let mut watched = vec![PollFd::new(self.event.descriptor(), PollFlags::IN)];
        watched.extend(socket.map(|socket| PollFd::new(socket, PollFlags::IN)));
        // An interrupted sleep is as good as one that ended.
        let _ = poll(&mut watched, if socket.is_some() { None } else { Some(&rest) });
    }

    fn admit(self: &Arc<Shared>, socket: OwnedFd, tcp: bool) {
        let connections = self.connections();
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
        drop(connections);
        let entry = Entry { link, export: Mutex::default(), transmitting: AtomicBool::new(false) };
        self.serve(entry, |presence| presence.begin());
    }

    /// Goes on with a connection that was held.
    pub(super) fn admit_held(self: &Arc<Shared>, held: Held) {
        let Held { link, export, remains } = held;
        self.serve(Entry::transmitting(link, export), |presence| presence.go_on(remains));
    }

    /// Begins with a connection that needs no handshake; `false` where no more are accepted.
    pub(super) fn admit_direct(self: &Arc<Shared>, link: Link, export: String) -> bool {
        let connections = self.connections();
        if self.stopping.load(Ordering::Acquire) {
            return false;
        }
        let terms = Terms { structured: false, contexts: Vec::new() };
        let remains = Remains { terms, input: Vec::new(), output: Vec::new(), waiting: Vec::new(), skip: None };
        let entry = Entry::transmitting(Arc::new(link), export);
        self.serve_among(connections, entry, |presence| presence.go_on(remains));
        true
    }

    fn serve(self: &Arc<Shared>, entry: Entry, work: impl FnOnce(Presence) + Send + 'static) {
        self.serve_among(self.connections(), entry, work);
    }

    fn serve_among(
        self: &Arc<Shared>,
        mut connections: MutexGuard<'_, BTreeMap<u64, Arc<Entry>>>,
        entry: Entry,
        work: impl FnOnce(Presence) + Send + 'static,
    ) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(entry);
        connections.insert(id, Arc::clone(&entry));
        drop(connections);
        let presence = Presence { shared: Arc::clone(self), id, entry };
        let name = format!("nbd {id}");
        if let Err(error) = std::thread::Builder::new().name(name).spawn(move || work(presence)) {
            tracing::warn!(%error, "a connection's thread could not be started");
        }
    }
}

/// Room for large replies, so that they do not go out in a relay of small pieces; on TCP, no delay, and dead clients
/// noticed. All of it helps and none of it is needed.
pub(super) fn tune(socket: &OwnedFd, tcp: bool) {
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
    entry: Arc<Entry>,
}

impl Presence {
    fn begin(self) {
        let id = self.id;
        tracing::debug!(id, "NBD client connected");
        let Presence { shared, entry, .. } = &self;
        let link = &entry.link;
        let chosen = |name: &str| {
            *entry.export.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.to_owned());
        };
        let NbdOptions { negotiation_timeout, tls, .. } = &shared.options;
        let negotiation = Negotiation::new(link, &*shared.exports, &chosen, *negotiation_timeout, tls.as_ref());
        let agreed = match negotiation.run() {
            Ok(Some(agreed)) => agreed,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(id, error = with_reasons(&error), "NBD handshake failed");
                return;
            }
        };
        entry.transmitting.store(true, Ordering::Release);
        // Whoever waits for that holds the lock from looking to sleeping.
        drop(shared.connections());
        shared.changed.notify_all();
        let transmission = self.transmission(agreed.device, agreed.terms);
        let connection = Connection::new(Arc::clone(link), transmission);
        self.transmit(connection);
    }

    fn go_on(self, remains: Remains) {
        // The kernel may have to write to its device before it has memory again: this thread must not wait for that.
        if self.entry.link.is_of_a_pair()
            && let Err(error) = rustix::process::configure_io_flusher_behavior(true)
        {
            tracing::debug!(%error, "a thread may have to wait for memory that its own client would free");
        }
        if let Some(connection) = self.resumed(remains) {
            self.transmit(connection);
        }
    }

    fn resumed(&self, remains: Remains) -> Option<Connection> {
        let id = self.id;
        let export = self.entry.export();
        let Some(device) = self.shared.exports.open(&export) else {
            tracing::warn!(id, export, "a connection cannot go on: its export is not there any more");
            return None;
        };
        let transmission = self.transmission(device, remains.terms.clone());
        match Connection::resume(Arc::clone(&self.entry.link), transmission, remains) {
            Ok(connection) => Some(connection),
            Err(error) => {
                tracing::info!(id, error = with_reasons(&error), "NBD connection ended");
                None
            }
        }
    }

    fn transmission(&self, device: Arc<dyn BlockDevice>, terms: Terms) -> Transmission {
        let Presence { shared, entry, .. } = self;
        let limits = WaitLimits {
            requests: shared.options.max_waiting_requests,
            bytes: shared.options.max_waiting_bytes,
            timeout: shared.options.read_timeout,
        };
        let waits = Waits::new(shared.runtime.clone(), Arc::clone(&entry.link), limits);
        Transmission::new(Arc::clone(&entry.link), Disk::new(device), terms, waits)
    }

    fn transmit(&self, mut connection: Connection) {
        let id = self.id;
        loop {
            let ended = connection.run().and_then(|end| match end {
                End::Done => Ok(None),
                End::Held => connection.suspend().map(Some),
            });
            let remains = match ended {
                Ok(Some(remains)) => remains,
                Ok(None) => return tracing::debug!(id, "NBD client disconnected"),
                Err(error) => return tracing::info!(id, error = with_reasons(&error), "NBD connection ended"),
            };
            // Whoever was released before this was known to be held goes on by itself.
            let Some(remains) = self.shared.keep_held(&self.entry, remains) else { return };
            let Some(resumed) = self.resumed(remains) else { return };
            connection = resumed;
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.shared.connections().remove(&self.id);
        self.shared.changed.notify_all();
    }
}

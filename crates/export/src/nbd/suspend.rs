//! A server at a moment between two requests of every connection, for another process to go on with.
//!
//! Invariant: from the moment at which [`NbdServer::suspend`] has returned a [`Suspended`] server, nobody receives from
//! or sends to its sockets, and none of its requests touches the device, until somebody resumes it. What a client sends
//! meanwhile stays in its socket; who connects meanwhile waits in the listening one. The client sees a pause.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::connection::Remains;
use super::link::Link;
use super::listen::Listener;
use super::server::{Entry, ExportError, Held, NbdOptions, NbdServer, Shared};
use super::state::{ConnectionState, ServerState, StateError};
use crate::exports::Exports;

/// How long clients may go on with a handshake, while all others are still served.
const HANDSHAKE_PATIENCE: Duration = Duration::from_millis(500);

/// A server that is not running: its state and its sockets.
#[derive(Debug)]
pub struct Suspended {
    state: ServerState,
    sockets: Vec<OwnedFd>,
}

impl Suspended {
    /// Puts together what another process has sent.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn from_parts(state: ServerState, sockets: Vec<OwnedFd>) -> Result<Suspended, StateError> {
        state.check(sockets.len())?;
        Ok(Suspended { state, sockets })
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> &ServerState {
        &self.state
    }

    /// The sockets, in the order of the state.
    #[must_use]
    pub fn sockets(&self) -> &[OwnedFd] {
        &self.sockets
    }

    /// The state, and the sockets in its order.
    #[must_use]
    pub fn into_parts(self) -> (ServerState, Vec<OwnedFd>) {
        (self.state, self.sockets)
    }

    /// How many clients are connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.state.connections()
    }
}

impl NbdServer {
    /// Stops between two requests of each connection. Clients in the middle of a handshake may end it within a short
    /// time, or are disconnected. Blocks; not for async threads.
    ///
    /// # Errors
    /// The server itself, which goes on serving: a request in hand took longer than `patience`, or a socket could not
    /// be prepared.
    pub fn suspend(mut self, patience: Duration) -> Result<Suspended, NbdServer> {
        let Some(listener) = self.stop_accepting() else { return Err(self) };
        let deadline = Instant::now() + patience;
        self.shared.await_handshakes(HANDSHAKE_PATIENCE.min(patience));
        let held = self.shared.hold_all(deadline);
        let prepared = held.iter().map(|held| held.link.duplicate()).collect::<Result<Vec<_>, _>>();
        let (Ok(sockets), true) = (prepared, self.shared.connections().is_empty()) else {
            tracing::warn!(listen = %super::server::place(&self.listen), "a request takes too long to suspend the server");
            self.go_on(listener, held);
            return Err(self);
        };
        let states = held.into_iter().map(|held| ConnectionState::new(held.export, held.remains)).collect();
        let state = ServerState::new(&listener.listen, listener.file, states);
        let sockets = std::iter::once(listener.socket).chain(sockets).collect();
        Ok(Suspended { state, sockets })
    }

    /// Undoes a suspension of which only a part has succeeded.
    fn go_on(&mut self, listener: Listener, held: Vec<Held>) {
        for held in held.into_iter().chain(self.shared.release_all()) {
            held.link.release();
            self.shared.admit_held(held);
        }
        if let Err(error) = self.accept(listener) {
            tracing::error!(%error, "the NBD server accepts no more connections");
        }
    }

    /// Goes on with a suspended server.
    ///
    /// # Errors
    /// See [`ExportError`]. A connection that cannot go on is closed, and is no error.
    pub fn resume(
        suspended: Suspended,
        exports: Arc<dyn Exports>,
        runtime: Handle,
        options: NbdOptions,
    ) -> Result<NbdServer, ExportError> {
        let Suspended { state, sockets } = suspended;
        let listen = state.listen().map_err(ExportError::State)?;
        let file = state.file();
        let mut sockets = sockets.into_iter();
        let Some(socket) = sockets.next() else {
            return Err(ExportError::State(StateError::Sockets { sockets: 0, connections: state.connections() }));
        };
        let listener = Listener { socket, listen, file };
        let server = NbdServer::new(listener, exports, runtime, options)?;
        for (connection, socket) in state.into_connections().into_iter().zip(sockets) {
            let remains = connection.remains().map_err(ExportError::State)?;
            match Link::new(socket) {
                Ok(link) => {
                    let export = connection.export().to_owned();
                    server.shared.admit_held(Held { link: Arc::new(link), export, remains });
                }
                Err(error) => tracing::warn!(%error, "a connection could not be taken over"),
            }
        }
        Ok(server)
    }
}

impl Shared {
    /// Waits until all clients have ended their handshakes, and then disconnects those that have not.
    fn await_handshakes(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let haggling = |entry: &Arc<Entry>| !entry.transmitting.load(Ordering::Acquire);
        let mut connections = self.connections();
        while connections.values().any(haggling) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                connections.values().filter(|entry| haggling(entry)).for_each(|entry| entry.link.close());
                return;
            }
            connections = self.changed.wait_timeout(connections, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Stops all connections between two requests, and returns those that had come there by the deadline.
    fn hold_all(&self, deadline: Instant) -> Vec<Held> {
        let mut connections = self.connections();
        connections.values().for_each(|entry| entry.link.hold());
        while !connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            connections = self.changed.wait_timeout(connections, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(connections);
        self.take_held()
    }

    fn take_held(&self) -> Vec<Held> {
        std::mem::take(&mut *self.all_held())
    }

    fn all_held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all connections go on, and returns those whose threads have ended.
    fn release_all(&self) -> Vec<Held> {
        let mut held = self.all_held();
        self.connections().values().for_each(|entry| entry.link.release());
        std::mem::take(&mut *held)
    }

    /// Keeps what remains of a held connection, or gives it back where it is not held any more.
    pub(super) fn keep_held(&self, entry: &Entry, remains: Remains) -> Option<Remains> {
        let mut held = self.all_held();
        if !entry.link.holding() {
            return Some(remains);
        }
        held.push(Held { link: Arc::clone(&entry.link), export: entry.export(), remains });
        None
    }
}

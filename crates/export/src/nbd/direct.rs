//! Connections without a handshake: one end of a pair of sockets is served, the other one goes to a client within this
//! machine, such as the kernel's driver.
//!
//! The terms are those that every client knows: simple replies, no contexts. Such a connection is known by its socket, which
//! has no name, also after it was handed over to another process.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};

use super::link::Link;
use super::negotiation::transmission_flags;
use super::server::{Entry, Shared, tune};

/// How a client within this machine is connected to an export without a handshake.
#[derive(Clone, Debug)]
pub struct Direct {
    shared: Arc<Shared>,
    export: String,
}

impl Direct {
    pub(super) fn new(shared: Arc<Shared>, export: String) -> Direct {
        Direct { shared, export }
    }

    /// What the client is told of the export (`NBD_FLAG_*`); nothing where there is none.
    #[must_use]
    pub fn transmission_flags(&self) -> u16 {
        self.shared.exports.open(&self.export).map_or(0, |device| transmission_flags(&*device, false))
    }

    /// Begins a connection, and returns the client's end of it.
    ///
    /// # Errors
    /// When there can be no more sockets or threads, or the server is being stopped or handed over.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let (ours, theirs) = (OwnedFd::from(ours), OwnedFd::from(theirs));
        tune(&ours, false);
        tune(&theirs, false);
        if !self.shared.admit_direct(Link::new(ours)?, self.export.clone()) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the server is being stopped"));
        }
        Ok(theirs.into())
    }

    /// Whether there is such a connection whose client has not gone.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.connections().values().any(|entry| self.is_ours(entry) && !entry.link.client_is_gone())
    }

    /// Waits until all such connections whose clients have gone do not use the device any more. Blocks as long as the
    /// device takes for requests in hand.
    pub fn wait_for_the_gone(&self) {
        let mut connections = self.shared.connections();
        while connections.values().any(|entry| self.is_ours(entry) && entry.link.client_is_gone()) {
            connections = self.shared.changed.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        entry.has_export(&self.export) && entry.link.is_of_a_pair()
    }
}

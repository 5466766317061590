//! Sockets that the node was started with: socket activation, as systemd does it (`sd_listen_fds(3)`).
//!
//! Each is named by `LISTEN_FDNAMES` (systemd's `FileDescriptorName=`), and by its number, `3` and up. An attachment may use one
//! by its name; whoever passed it keeps it, so it outlives the attachment and the node, and clients wait at it meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use listenfd::ListenFd;

/// The number of the first passed descriptor.
const FIRST: usize = 3;

/// The sockets, by name and by number.
#[derive(Clone, Debug, Default)]
pub struct PassedSockets {
    sockets: BTreeMap<String, Arc<OwnedFd>>,
}

impl PassedSockets {
    /// Takes those that this process was started with. To be called once, before there are other threads: the variables that
    /// tell of them are removed, so that no child takes them for its own.
    ///
    /// # Errors
    /// When something was passed that is not a stream socket.
    pub fn from_environment() -> io::Result<PassedSockets> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut sockets = BTreeMap::new();
        for index in 0..passed.len() {
            let socket = match passed.take_unix_listener(index) {
                Ok(socket) => socket.map(OwnedFd::from),
                Err(_) => passed.take_tcp_listener(index)?.map(OwnedFd::from),
            };
            let Some(socket) = socket.map(Arc::new) else { continue };
            if let Some(name) = names.next().filter(|name| !name.is_empty()) {
                sockets.entry(name.to_owned()).or_insert_with(|| Arc::clone(&socket));
            }
            sockets.insert((FIRST + index).to_string(), socket);
        }
        Ok(PassedSockets { sockets })
    }

    /// The names, those that are numbers last.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.sockets.keys().map(String::as_str).collect();
        names.sort_by_key(|name| name.parse::<usize>().is_ok());
        names
    }

    /// Where a socket listens, if that is an internet address.
    pub(crate) fn address(&self, name: &str) -> Option<SocketAddr> {
        let address = rustix::net::getsockname(self.sockets.get(name)?).ok()?;
        SocketAddr::try_from(address).ok()
    }

    /// A descriptor of its own of a socket.
    pub(crate) fn duplicate(&self, name: &str) -> Option<io::Result<OwnedFd>> {
        self.sockets.get(name).map(|socket| socket.try_clone())
    }
}

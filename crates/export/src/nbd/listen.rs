//! Where a server listens: making the socket, and the address that clients are told.
//!
//! A unix socket belongs to its owner alone (mode 0600, from the moment it exists). One that a dead process left is
//! replaced; one that somebody answers on, and anything that is not a socket, is left alone.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::ioctl_fionbio;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt,
};

use super::server::ExportError;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 128;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On a unix socket.
    Unix(PathBuf),
    /// On a TCP port; port 0 lets the kernel choose one. Without TLS, whoever can reach it can read and write, so anything
    /// but loopback is the caller's decision.
    Tcp(SocketAddr),
}

impl Listen {
    /// The NBD URI of an export, as in `doc/uri.md` of the NBD project.
    #[must_use]
    pub fn uri(&self, name: &str) -> String {
        self.uri_of("nbd", name)
    }

    /// The same, for clients that have to use TLS.
    #[must_use]
    pub fn tls_uri(&self, name: &str) -> String {
        self.uri_of("nbds", name)
    }

    fn uri_of(&self, scheme: &str, name: &str) -> String {
        match self {
            Listen::Unix(path) => {
                use std::os::unix::ffi::OsStrExt as _;
                let path = percent_encoded(path.as_os_str().as_bytes(), b"/");
                format!("{scheme}+unix:///{}?socket={path}", percent_encoded(name.as_bytes(), b""))
            }
            Listen::Tcp(address) => {
                let mut address = *address;
                if address.ip().is_unspecified() {
                    address.set_ip(if address.is_ipv4() {
                        std::net::Ipv4Addr::LOCALHOST.into()
                    } else {
                        std::net::Ipv6Addr::LOCALHOST.into()
                    });
                }
                format!("{scheme}://{address}/{}", percent_encoded(name.as_bytes(), b""))
            }
        }
    }
}

/// A place that is listened at before there is a server: who connects waits for it.
#[derive(Debug)]
pub struct Reservation(pub(crate) Listener);

impl Reservation {
    /// Begins to listen.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn new(listen: &Listen) -> Result<Reservation, ExportError> {
        Listener::bind(listen).map(Reservation)
    }

    /// The socket that is listened at; accepting does not block.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }

    /// Removes the socket's file, if it is still this socket's.
    pub fn remove(&self) {
        self.0.remove();
    }

    /// Disconnects who waits, and removes the socket.
    pub fn give_up(self) {
        self.remove();
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: OwnedFd,
    /// Where it is in truth, with the port that was chosen.
    pub(crate) listen: Listen,
    /// The socket file's device and inode.
    pub(crate) file: Option<(u64, u64)>,
}

impl Listener {
    pub(crate) fn bind(listen: &Listen) -> Result<Listener, ExportError> {
        let failed = |source| ExportError::Listen { listen: listen.clone(), source };
        match listen {
            Listen::Unix(path) => {
                clear_the_way(path)?;
                let (socket, file) = bind_unix(path).map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => ExportError::InUse { listen: listen.clone() },
                    _ => failed(error),
                })?;
                Ok(Listener { socket, listen: listen.clone(), file: Some(file) })
            }
            Listen::Tcp(address) => {
                let socket = TcpListener::bind(address).map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => ExportError::InUse { listen: listen.clone() },
                    _ => failed(error),
                })?;
                socket.set_nonblocking(true).map_err(failed)?;
                let real = socket.local_addr().map_err(failed)?;
                Ok(Listener { socket: socket.into(), listen: Listen::Tcp(real), file: None })
            }
        }
    }

    /// Takes a socket that listens already.
    pub(crate) fn adopt(socket: OwnedFd) -> io::Result<Listener> {
        if !sockopt::socket_acceptconn(&socket)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it does not listen"));
        }
        let address = getsockname(&socket)?;
        let listen = if let Ok(address) = SocketAddr::try_from(address.clone()) {
            Listen::Tcp(address)
        } else {
            use std::os::unix::ffi::OsStrExt as _;
            let address = SocketAddrUnix::try_from(address)?;
            Listen::Unix(OsStr::from_bytes(address.path_bytes().unwrap_or_default()).into())
        };
        ioctl_fionbio(&socket, true)?;
        Ok(Listener { socket, listen, file: None })
    }

    /// Removes the socket file, if it is still this socket's.
    pub(crate) fn remove(&self) {
        let (Listen::Unix(path), Some(file)) = (&self.listen, self.file) else { return };
        let own = fs::symlink_metadata(path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == file);
        if own && let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "the socket could not be removed");
        }
    }
}

/// Removes the socket that a dead process left, and makes the directory if there is none.
fn clear_the_way(path: &Path) -> Result<(), ExportError> {
    let listen = || Listen::Unix(path.to_owned());
    let failed = |source| ExportError::Listen { listen: listen(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
            }
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ExportError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ExportError::InUse { listen: listen() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

fn bind_unix(path: &Path) -> io::Result<(OwnedFd, (u64, u64))> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the socket file the descriptor's mode, so there is no moment at which others could connect.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    let metadata = fs::symlink_metadata(path)?;
    Ok((socket, (metadata.dev(), metadata.ino())))
}

/// Encodes all but letters, digits, `-._~` and what is `kept`.
fn percent_encoded(bytes: &[u8], kept: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || kept.contains(byte) {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_encoded() {
        let listen = Listen::Unix("/run/brant/a b.sock".into());
        assert_eq!(listen.uri("vm-1"), "nbd+unix:///vm-1?socket=/run/brant/a%20b.sock");
        let listen = Listen::Tcp("0.0.0.0:10809".parse().unwrap());
        assert_eq!(listen.uri("ä/b"), "nbd://127.0.0.1:10809/%C3%A4%2Fb");
        assert_eq!(listen.tls_uri("vm"), "nbds://127.0.0.1:10809/vm");
    }

    #[test]
    fn a_path_that_is_too_long_is_a_clear_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x".repeat(120));
        let error = Listener::bind(&Listen::Unix(path)).unwrap_err();
        assert!(matches!(error, ExportError::Listen { .. }), "{error:?}");
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&Listen::Unix(path.clone())).unwrap_err();
        assert!(matches!(error, ExportError::NotASocket { .. }), "{error:?}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_is_its_owners_alone_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/dir/socket");
        let listen = Listen::Unix(path.clone());
        let first = Listener::bind(&listen).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(Listener::bind(&listen), Err(ExportError::InUse { .. })));
        drop(first);
        let second = Listener::bind(&listen).unwrap();
        second.remove();
        assert!(!path.exists());
    }
}

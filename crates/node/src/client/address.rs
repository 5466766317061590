//! Where a node is: its directory's socket, or a URL of another host's.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::api::{ApiError, ErrorCode};

/// The name of the API's socket in the node's directory.
pub const NODE_SOCKET: &str = "node.sock";

/// The name of the socket that takes descriptors, beside the API's.
pub const DESCRIPTOR_SOCKET: &str = "descriptors.sock";

/// The longest path that fits a unix socket's address, in bytes (`sun_path` without its final zero; unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The path of its socket on this host.
    Socket(PathBuf),
    /// A URL: a node that may be on another host, which no version of brant talks to yet.
    Remote(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Remote(url) => f.write_str(url),
        }
    }
}

impl Address {
    /// Reads what was given as `--node`: a URL, a node's directory, or its socket.
    ///
    /// What exists decides; of a path where nothing is, one that ends in `.sock` is taken for a socket.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Self::Remote(text.to_owned());
        }
        let path = PathBuf::from(text);
        let is_socket = if path.is_dir() {
            false
        } else {
            path.exists() || path.extension().is_some_and(|extension| extension == "sock")
        };
        Self::Socket(if is_socket { path } else { path.join(NODE_SOCKET) })
    }

    /// The address of this user's own node: see [`default_directory`].
    #[must_use]
    pub fn of_this_user() -> Self {
        Self::Socket(default_directory().join(NODE_SOCKET))
    }

    /// The node's directory, where it is on this host.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Socket(path) => path.parent(),
            Self::Remote(_) => None,
        }
    }

    /// The path of the node's socket.
    ///
    /// # Errors
    /// For the URL of a remote node, which cannot be talked to yet.
    pub fn socket(&self) -> Result<&Path, ApiError> {
        match self {
            Self::Socket(path) => Ok(path),
            Self::Remote(url) => Err(ApiError::new(
                ErrorCode::Invalid,
                format!("the node at {url} is addressed by URL, which this version does not support"),
            )
            .hint("run brant on that host, with its node's directory: --node /var/lib/brant")),
        }
    }

    /// What it means that one of the node's sockets could not be connected to.
    pub(super) fn unreachable(&self, socket: &Path, error: &io::Error) -> ApiError {
        let directory = self.directory().unwrap_or(socket).display();
        if error.kind() == io::ErrorKind::PermissionDenied {
            return ApiError::new(ErrorCode::Forbidden, format!("may not connect to {}", socket.display()))
                .hint("run brant as the user that runs the node, or as root");
        }
        let absent = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        let cause = if absent { String::new() } else { format!(": {error}") };
        ApiError::new(ErrorCode::Unreachable, format!("no node answers at {}{cause}", socket.display()))
            .hint(format!("start it with: brant node serve --dir {directory}"))
    }
}

/// The directory of this user's node where none is named: `/var/lib/brant` for root, else `~/.local/share/brant`.
#[must_use]
pub fn default_directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/brant");
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from);
    home.join(".local/share/brant")
}

/// A socket's path that fits an address: where it is too long, the same place through an open descriptor of its folder.
#[derive(Debug)]
pub(super) struct Reachable {
    path: PathBuf,
    // Keeps the path under /proc/self/fd valid.
    _folder: Option<OwnedFd>,
}

impl Reachable {
    pub(super) fn new(path: &Path) -> Self {
        Self::through_folder(path).unwrap_or_else(|| Self { path: path.to_owned(), _folder: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn through_folder(path: &Path) -> Option<Self> {
        if path.as_os_str().len() <= MAX_SOCKET_PATH_BYTES {
            return None;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path.parent()?, flags, Mode::empty()).ok()?;
        let through = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(path.file_name()?);
        Some(Self { path: through, _folder: Some(folder) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_names_a_directory_a_socket_or_a_url() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().to_str().unwrap();
        assert_eq!(Address::parse(text), Address::Socket(folder.path().join("node.sock")));
        assert_eq!(Address::parse("/nowhere/brant"), Address::Socket("/nowhere/brant/node.sock".into()));
        assert_eq!(Address::parse("/nowhere/api.sock"), Address::Socket("/nowhere/api.sock".into()));
        let remote = Address::parse("http://host:7071");
        assert_eq!(remote.directory(), None);
        let error = remote.socket().unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
        assert!(error.hint.is_some());
    }

    #[test]
    fn nobody_listening_says_how_to_start_a_node() {
        let address = Address::parse("/nowhere/brant");
        let socket = address.socket().unwrap();
        let error = address.unreachable(socket, &io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(error.code, ErrorCode::Unreachable);
        assert_eq!(error.message, "no node answers at /nowhere/brant/node.sock");
        assert_eq!(error.hint.as_deref(), Some("start it with: brant node serve --dir /nowhere/brant"));
        let error = address.unreachable(socket, &io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(error.code, ErrorCode::Forbidden);
    }
}

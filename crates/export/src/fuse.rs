//! The front: a small process that serves one NBD export of a node as a file over FUSE, for a loop device.
//!
//! Participants: the kernel, which asks for reads, writes, flushes and holes of one file; the front; and the node, at a unix
//! socket. The front keeps nothing but the requests that were not answered yet. When the node goes away it waits for it, and
//! asks again: whoever uses the file sees a pause (`docs/decisions/013-a-front-for-fuse.md`). It outlives the node, and ends
//! when the file is unmounted.
//!
//! Invariant: a request is answered only with what the node has answered. The file is never in the page cache, so that data
//! are in memory once. It does not make the loop device: see [`crate::loop_device`].

mod client;
mod file;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use capture::NbdError;
use fuser::{Config, MountOption, Session};
use rustix::fs::FlockOperation;

use client::Client;
use file::ExportedFile;

/// The source that a front's mount has in the table of mounts.
pub const MOUNT_SOURCE: &str = "brant";

/// The line by which a front's process tells whoever started it that it serves; any other says why it does not.
pub const FRONT_READY: &str = "ready";

/// How many threads take requests from the kernel.
const THREADS: usize = 2;

/// What a front serves, and where.
#[derive(Clone, Debug)]
pub struct FrontOptions {
    /// The node's socket for the export.
    pub socket: PathBuf,
    /// The export's name there.
    pub export: String,
    /// The file on which it is mounted; it exists.
    pub file: PathBuf,
    /// A file that stays locked for as long as the front runs, with its process id in it.
    pub lock: PathBuf,
}

/// A front could not serve, or go on serving.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontError {
    /// The lock could not be had.
    #[error("could not lock {path}: does another front run?")]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node does not offer the export.
    #[error("the node does not serve the export")]
    Connect(#[source] NbdError),
    /// The file could not be mounted.
    #[error("could not mount FUSE on {path}")]
    Mount {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("could not start a thread")]
    Thread(#[source] io::Error),
    /// The kernel's requests could not be received any more.
    #[error("FUSE failed")]
    Serve(#[source] io::Error),
}

/// Serves until the file is unmounted; calls `ready` once it is mounted. Takes root.
///
/// # Errors
/// See [`FrontError`].
pub fn run_front(options: &FrontOptions, ready: impl FnOnce()) -> Result<(), FrontError> {
    stand_alone();
    let _locked = lock(&options.lock)?;
    let client = Client::connect(&options.socket, &options.export)?;
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName(MOUNT_SOURCE.to_owned()), MountOption::NoExec];
    if client.read_only() {
        config.mount_options.push(MountOption::RO);
    }
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let mount = |source| FrontError::Mount { path: options.file.clone(), source };
    let session = Session::new(ExportedFile::new(client), &options.file, &config).map_err(mount)?;
    ready();
    tracing::info!(file = %options.file.display(), "the front serves");
    session.run().map_err(FrontError::Serve)
}

/// Leaves the node's session, and takes care not to be in the way when memory is short: the device's writes may be what
/// frees it. None of that is needed to serve.
fn stand_alone() {
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "the front leads a session already");
    }
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "the front may have to wait for memory that its own device would free");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::debug!(%error, "the front may be killed when memory is short");
    }
}

fn lock(path: &Path) -> Result<File, FrontError> {
    let failed = |source| FrontError::Lock { path: path.to_owned(), source };
    let mut file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

//! `qemu-nbd` as a child that serves one image on a private socket.

use std::fs::File;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::{Running, Tool, said};
use super::{Image, QemuError, QemuOptions};
use crate::detect::Format;
use crate::foreign::CaptureError;
use crate::nbd::uri::NbdAddress;
use crate::nbd::{NbdDisk, NbdError, NbdOptions, NbdUri};

const TOOL: &str = "qemu-nbd";

/// How long the server may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long the server may take to end after its last connection was closed.
const FINISH_LIMIT: Duration = Duration::from_secs(600);

/// How many connections the server takes, and its client makes.
const CONNECTIONS: usize = 4;

/// A server; killed when dropped.
#[derive(Debug)]
pub(crate) struct QemuServer {
    child: Running,
    stderr: File,
    /// Where its socket lies.
    _directory: TempDir,
}

impl QemuServer {
    /// Serves an image that we have just made, or trust.
    pub(crate) fn start(file: &File, format: Format, writable: bool) -> Result<(Self, NbdDisk), CaptureError> {
        Self::serve(&Image::new(file, format, &QemuOptions::default())?, writable)
    }

    /// Serves an image, and connects to it.
    pub(super) fn serve(image: &Image<'_>, writable: bool) -> Result<(Self, NbdDisk), CaptureError> {
        let failed = |source| QemuError::Run { tool: TOOL, source };
        let directory = tempfile::Builder::new().prefix("brant-").tempdir().map_err(failed)?;
        let socket = directory.path().join("nbd");
        let stderr = tempfile::tempfile().map_err(failed)?;
        // Not --persistent: the server ends with its last connection, so it does not outlive a process that was killed.
        let mut tool = Tool::new(TOOL).stdin(image.file)?.arg(&format!("--shared={CONNECTIONS}"));
        if !writable {
            tool = tool.arg("--read-only");
        }
        let tool = tool.arg("--socket").arg(&socket.to_string_lossy()).arg(&image.name());
        let mut server = Self { child: tool.spawn(&stderr)?, stderr, _directory: directory };
        let uri = NbdUri { address: NbdAddress::Unix { path: socket }, export: String::new() };
        let disk = server.connect(&uri)?;
        Ok((server, disk))
    }

    /// Waits until the server listens, or has ended.
    fn connect(&mut self, uri: &NbdUri) -> Result<NbdDisk, CaptureError> {
        let options = NbdOptions { connections: CONNECTIONS, ..NbdOptions::default() };
        let begin = Instant::now();
        loop {
            // Looked at first: a server that ends after it has been asked for its socket has said why.
            let ended = self.child.ended()?;
            match NbdDisk::connect(uri, &options) {
                Ok(disk) => return Ok(disk),
                Err(NbdError::Connect { .. }) if ended.is_none() => {
                    if begin.elapsed() > START_LIMIT {
                        return Err(QemuError::TimedOut { tool: TOOL, seconds: START_LIMIT.as_secs() }.into());
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(NbdError::Connect { .. }) => {
                    return Err(QemuError::Failed { tool: TOOL, said: self.said() }.into());
                }
                Err(error) => return Err(self.blame(error).into()),
            }
        }
    }

    fn said(&self) -> String {
        said(&self.stderr, TOOL)
    }

    /// Makes what a client saw an error of the server, with what the server says of it.
    pub(crate) fn blame(&self, source: NbdError) -> QemuError {
        QemuError::Server { said: self.said(), source }
    }

    /// Waits until the server has ended after its last connection was closed.
    pub(crate) fn finish(self) -> Result<(), QemuError> {
        let status = self.child.wait(FINISH_LIMIT, &|| false)?;
        if status.success() { Ok(()) } else { Err(QemuError::Failed { tool: TOOL, said: said(&self.stderr, TOOL) }) }
    }
}

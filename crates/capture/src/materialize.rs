//! Materializing: a disk of ours is written out to foreign storage.
//!
//! Zeroes are left out where the target is new, and made by the target where it is not. What is not here is waited for.
//! A target named by path appears complete and durable under its name, or not at all; devices and NBD exports are
//! overwritten in place, and a run that ends early leaves them partly written. A raw file shares the room of those chunks
//! that lie in the store as they are, where the file system can.

mod file;
mod in_file;
mod sink;

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use types::{Cancelled, Progress};
use volume::{BlockDevice, DeviceError, ExtentKind, Readiness};

use crate::detect::Format;
use crate::foreign::CaptureError;
use crate::nbd::{NbdDisk, NbdError, NbdOptions, NbdUri};
use crate::pieces::{self, Feed, Piece, Planner};
use crate::qemu::QemuError;
use crate::reflink::{Reflink, ReflinkError};

pub use file::PendingFile;
use sink::Sink;

/// Where a disk is written to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Target {
    /// A path at which there shall be a new file.
    Path {
        /// The path.
        path: PathBuf,
        /// The format of the file.
        format: Format,
        /// Whether the image is compressed: qcow2, or VMDK, which is then `streamOptimized`.
        compress: bool,
        /// Whether an existing file is replaced.
        force: bool,
        /// Whether a raw file shares room with the store.
        reflink: Reflink,
    },
    /// An open file for reading and writing: an empty regular one, or a block device, which takes only raw.
    File {
        /// The file.
        file: File,
        /// The format of what is written.
        format: Format,
        /// As in [`Target::Path`].
        compress: bool,
        /// As in [`Target::Path`].
        reflink: Reflink,
    },
    /// An export of an NBD server.
    Nbd {
        /// The export.
        uri: NbdUri,
    },
}

/// Materializing did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaterializeError {
    /// It was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The disk could not be read.
    #[error("could not read the disk to materialize")]
    Read(#[from] DeviceError),
    /// The kernel refused or failed.
    #[error("could not {operation}")]
    Io {
        /// What was tried, as a verb and its object.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file could not be made.
    #[error("could not {operation} {}", path.display())]
    Path {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// There is no room left on the target.
    #[error("no space left on the target")]
    Full,
    /// Something is there already.
    #[error("{} exists already; it is only replaced by force", .0.display())]
    Exists(PathBuf),
    /// A file that was passed is not empty.
    #[error("the file to write to is not empty")]
    NotEmpty,
    /// The target cannot be a target.
    #[error("cannot write a disk to {0}")]
    NotATarget(&'static str),
    /// The block device is mounted, or otherwise in use.
    #[error("the block device is in use")]
    InUse,
    /// The target is too small.
    #[error("the target has {target_bytes} bytes and the disk {disk_bytes}")]
    TooSmall {
        /// The target's size, in bytes.
        target_bytes: u64,
        /// The disk's size, in bytes.
        disk_bytes: u64,
    },
    /// No such combination.
    #[error("{format} images cannot be {what}")]
    Unsupported {
        /// The format.
        format: Format,
        /// What was asked of it.
        what: &'static str,
    },
    /// The NBD server failed, or the target could not be looked at.
    #[error("could not write to the target")]
    Capture(#[source] CaptureError),
    /// qemu failed.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// Room was to be shared with the target, and cannot be.
    #[error(transparent)]
    Reflink(#[from] ReflinkError),
}

impl From<CaptureError> for MaterializeError {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Nbd(NbdError::Request { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::Full
            }
            CaptureError::Qemu(error) => Self::Qemu(error),
            other => Self::Capture(other),
        }
    }
}

impl MaterializeError {
    fn io(operation: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io { operation, source },
        }
    }
}

/// What was written, all of it durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Materialized {
    /// The disk's size, in bytes.
    pub size_bytes: u64,
    /// How much of it had to be written, in bytes.
    pub written_bytes: u64,
    /// How much of it shares the room of the store, in bytes.
    pub shared_bytes: u64,
}

/// What became of a part of a disk, in bytes; the rest are zeroes.
#[derive(Clone, Copy, Debug, Default)]
struct Copied {
    written_bytes: u64,
    shared_bytes: u64,
}

impl std::iter::Sum for Copied {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            written_bytes: sum.written_bytes + part.written_bytes,
            shared_bytes: sum.shared_bytes + part.shared_bytes,
        })
    }
}

/// How many pieces are read and written at the same time: those that are fetched wait for the network.
const THREADS: usize = 8;

/// The longest range that is made zero at once, in bytes.
const MAX_ZERO_BYTES: u64 = 1 << 30;

/// How often someone who waits for absent data looks whether it shall still wait.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Writes a disk out.
///
/// Blocks, and must not be called on a thread of the runtime, which is used for reads that have to wait.
///
/// # Errors
/// See [`MaterializeError`].
pub fn materialize(
    device: &Arc<dyn BlockDevice>,
    runtime: &Handle,
    target: Target,
    progress: &Progress,
) -> Result<Materialized, MaterializeError> {
    let copy = Copy::new(device.as_ref(), runtime, progress);
    match target {
        Target::Path { path, format, compress, force, reflink } => {
            if let Some(device) = file::open_device(&path)? {
                return copy.to_file(device, format, compress, reflink);
            }
            let pending = PendingFile::create(&path, force)?;
            let done = copy.to_file(pending.file()?, format, compress, reflink)?;
            pending.commit()?;
            Ok(done)
        }
        Target::File { file, format, compress, reflink } => copy.to_file(file, format, compress, reflink),
        Target::Nbd { uri } => {
            let disk = NbdDisk::connect(&uri, &NbdOptions::default()).map_err(CaptureError::from)?;
            copy.check_size(disk.export_bytes())?;
            copy.run(&disk)
        }
    }
}

/// One run: from a disk to a sink.
struct Copy<'c> {
    device: &'c dyn BlockDevice,
    runtime: &'c Handle,
    progress: &'c Progress,
    /// Why one piece failed. Those that wait for absent data then give up, and are not the reason.
    failure: Mutex<Option<MaterializeError>>,
    stopped: AtomicBool,
}

impl<'c> Copy<'c> {
    fn new(device: &'c dyn BlockDevice, runtime: &'c Handle, progress: &'c Progress) -> Self {
        Self { device, runtime, progress, failure: Mutex::default(), stopped: AtomicBool::new(false) }
    }

    fn check_size(&self, target_bytes: u64) -> Result<(), MaterializeError> {
        let disk_bytes = self.device.size_bytes();
        if target_bytes < disk_bytes { Err(MaterializeError::TooSmall { target_bytes, disk_bytes }) } else { Ok(()) }
    }

    /// Copies everything and makes it durable.
    fn run(&self, sink: &dyn Sink) -> Result<Materialized, MaterializeError> {
        let size_bytes = self.device.size_bytes();
        self.progress.set_total_bytes(size_bytes);
        let plan = |feed: Feed<'_>| self.plan(feed).map_err(|error| self.fail(error));
        let work = |piece: Piece| self.piece(sink, piece).map_err(|error| self.fail(error));
        let sum = pieces::in_order(pieces::threads(THREADS), plan, work, |results| {
            results.sum::<Result<Copied, Cancelled>>()
        });
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        let copied = failure.map_or(sum.map_err(MaterializeError::from), Err)?;
        sink.flush()?;
        Ok(Materialized { size_bytes, written_bytes: copied.written_bytes, shared_bytes: copied.shared_bytes })
    }

    /// Remembers the first failure, and stops everything else.
    fn fail(&self, error: MaterializeError) -> Cancelled {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stopped.swap(true, Ordering::Relaxed) {
            *failure = Some(error);
        }
        Cancelled
    }

    fn plan(&self, feed: Feed<'_>) -> Result<(), MaterializeError> {
        let size_bytes = self.device.size_bytes();
        let split = |piece: Piece| {
            let end = piece.offset + piece.length;
            let step = if piece.zero { MAX_ZERO_BYTES } else { piece.length };
            let mut parts = std::iter::successors(Some(piece.offset), |start| start.checked_add(step))
                .take_while(|start| *start < end)
                .map(|offset| Piece { offset, length: step.min(end - offset), zero: piece.zero });
            parts.all(feed)
        };
        let mut planner = Planner::new(size_bytes, &split);
        while let Some(position) = planner.next() {
            self.check()?;
            let extents = self.device.extents(position, size_bytes - position, 1024)?;
            assert!(!extents.is_empty(), "a disk tells what it consists of up to its end");
            for extent in extents {
                let zero = matches!(extent.kind, ExtentKind::Zero | ExtentKind::Hole);
                if !planner.add(extent.length, zero) {
                    return Ok(());
                }
            }
        }
        planner.finish();
        Ok(())
    }

    /// Copies one piece.
    fn piece(&self, sink: &dyn Sink, piece: Piece) -> Result<Copied, MaterializeError> {
        self.check()?;
        let mut copied = Copied::default();
        if piece.zero {
            sink.zero(piece.offset, piece.length)?;
        } else {
            let end = piece.offset + piece.length;
            let mut rest = piece.offset;
            if let Some(target) = sink.sharing() {
                for run in in_file::runs(self.device, rest..end)? {
                    if run.share(target)? {
                        copied.written_bytes += self.copy(sink, rest..run.range.start)?;
                        copied.shared_bytes += run.range.end - run.range.start;
                        rest = run.range.end;
                    }
                }
            }
            copied.written_bytes += self.copy(sink, rest..end)?;
        }
        self.progress.advance(piece.length, copied.written_bytes + copied.shared_bytes);
        Ok(copied)
    }

    /// Reads and writes a short range, and returns how many bytes were written.
    fn copy(&self, sink: &dyn Sink, range: Range<u64>) -> Result<u64, MaterializeError> {
        let length = usize::try_from(range.end - range.start).expect("a piece of data is short");
        if length == 0 {
            return Ok(0);
        }
        let mut buffer = vec![0; length];
        let mut written = 0;
        if let Readiness::Wait = self.device.try_read(range.start, &mut buffer)? {
            buffer.copy_from_slice(&self.wait_for(range.start, length)?);
        }
        for (start, run, zero) in runs(&buffer, sink.grain()) {
            let offset = range.start + start as u64;
            if zero {
                sink.zero(offset, run.len() as u64)?;
            } else {
                sink.write(offset, run)?;
                written += run.len() as u64;
            }
        }
        Ok(written)
    }

    /// Reads what is not here, until it comes or nobody wants it any more.
    fn wait_for(&self, offset: u64, length: usize) -> Result<bytes::Bytes, MaterializeError> {
        let mut read = self.device.read(offset, length);
        self.runtime.block_on(async {
            loop {
                match tokio::time::timeout(LOOK_UP, &mut read).await {
                    Ok(bytes) => return Ok(bytes?),
                    Err(_) => self.check()?,
                }
            }
        })
    }

    fn check(&self) -> Result<(), Cancelled> {
        if self.stopped.load(Ordering::Relaxed) { Err(Cancelled) } else { self.progress.check() }
    }
}

/// Splits bytes into runs of zeroes and of other data, in steps of a grain.
fn runs(bytes: &[u8], grain: usize) -> Vec<(usize, &[u8], bool)> {
    let mut runs: Vec<(usize, &[u8], bool)> = Vec::new();
    for start in (0..bytes.len()).step_by(grain) {
        let end = (start + grain).min(bytes.len());
        let zero = format::is_zero(&bytes[start..end]);
        match runs.last_mut() {
            Some(last) if last.2 == zero => last.1 = &bytes[last.0..end],
            _ => runs.push((start, &bytes[start..end], zero)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_and_cover_everything() {
        let mut bytes = vec![0; 20];
        bytes[9] = 1;
        bytes[13] = 1;
        bytes[19] = 1;
        let found: Vec<_> = runs(&bytes, 4).into_iter().map(|(start, run, zero)| (start, run.len(), zero)).collect();
        assert_eq!(found, [(0, 8, true), (8, 12, false)]);
        assert_eq!(runs(&[], 4), []);
        let odd: Vec<_> =
            runs(&bytes[..18], 4).into_iter().map(|(start, run, zero)| (start, run.len(), zero)).collect();
        assert_eq!(odd, [(0, 8, true), (8, 8, false), (16, 2, true)]);
    }
}

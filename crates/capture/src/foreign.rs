//! A disk on foreign storage, as everything that imports sees it.

use std::fmt::Debug;
use std::io;

use store::FrozenFile;
use types::MAX_DISK_BYTES;

use crate::detect::DetectError;
use crate::nbd::NbdError;
use crate::qemu::QemuError;
use crate::reflink::ReflinkError;

/// A foreign disk could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// A directory, a pipe, a socket, a terminal.
    #[error("{0} is not a disk: give a file, a block device, an image or an NBD URI")]
    NotADisk(&'static str),
    /// An empty disk, or one beyond [`MAX_DISK_BYTES`].
    #[error("a disk of {0} bytes: there must be something in it, and at most {MAX_DISK_BYTES} bytes")]
    Size(u64),
    /// A request beyond the disk's end: an error of the caller.
    #[error("{length} bytes at {offset} lie beyond the end of a disk of {size_bytes} bytes")]
    OutOfRange {
        /// Where, in bytes.
        offset: u64,
        /// How long, in bytes.
        length: u64,
        /// The disk's size, in bytes.
        size_bytes: u64,
    },
    /// The file was truncated while it was read.
    #[error("the file became shorter while it was read: {now} bytes of {before}")]
    Shrunk {
        /// Its length when it was opened, in bytes.
        before: u64,
        /// Where it ends now, in bytes.
        now: u64,
    },
    /// The kernel refused or failed.
    #[error("could not {operation}")]
    Io {
        /// What was tried, as a verb and its object.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is not what it was taken for.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The NBD server failed.
    #[error(transparent)]
    Nbd(#[from] NbdError),
    /// qemu failed, or the image is one that must not be opened.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// Room was to be shared with it, and cannot be.
    #[error(transparent)]
    Reflink(#[from] ReflinkError),
}

impl CaptureError {
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}

/// A range of a foreign disk that is all zero, or that may hold data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignExtent {
    /// Its length, in bytes; never zero.
    pub length: u64,
    /// Whether it is known to be zero, and need not be read.
    pub zero: bool,
}

/// A disk on foreign storage, read at any place by several threads at once.
pub trait ForeignDisk: Send + Sync + Debug {
    /// The size in bytes: a multiple of 512, at least 512, at most [`MAX_DISK_BYTES`].
    fn size_bytes(&self) -> u64;

    /// Fills the buffer.
    ///
    /// # Errors
    /// See [`CaptureError`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), CaptureError>;

    /// Tells data from holes, beginning at `offset`, without reading either.
    ///
    /// Gives at least one extent and at most some thousands; they may cover less than was asked for, never more.
    ///
    /// # Errors
    /// See [`CaptureError`].
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<ForeignExtent>, CaptureError>;

    /// How many reads it can answer at the same time to advantage.
    fn parallel_reads(&self) -> usize {
        1
    }

    /// The file that is this disk, byte for byte, frozen so that a store can share its room, and its length in bytes: that
    /// of the disk, or less than a sector shorter.
    fn frozen(&self) -> Option<(&FrozenFile, u64)> {
        None
    }
}

/// Checks that a request lies within a disk and is not empty.
pub(crate) fn check_range(offset: u64, length: u64, size_bytes: u64) -> Result<(), CaptureError> {
    match offset.checked_add(length) {
        Some(end) if end <= size_bytes && length > 0 => Ok(()),
        _ => Err(CaptureError::OutOfRange { offset, length, size_bytes }),
    }
}

/// Rounds the size of a disk up to whole sectors, and checks it.
pub(crate) fn whole_sectors(size_bytes: u64) -> Result<u64, CaptureError> {
    size_bytes
        .checked_next_multiple_of(types::SECTOR_BYTES)
        .filter(|size| (1..=MAX_DISK_BYTES).contains(size))
        .ok_or(CaptureError::Size(size_bytes))
}

/// Adds a range to a list, joining it to the last where both are alike.
pub(crate) fn push_extent(list: &mut Vec<ForeignExtent>, length: u64, zero: bool) {
    match list.last_mut() {
        _ if length == 0 => {}
        Some(last) if last.zero == zero => last.length += length,
        _ => list.push(ForeignExtent { length, zero }),
    }
}

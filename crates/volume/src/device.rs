//! What exports serve and captures read: a disk that may be partly elsewhere.

use std::fmt::Debug;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use medium::File;
use store::{FreezeError, InFile};

/// Why a request to a disk failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Beyond the disk's end, or not in whole sectors of 512 bytes.
    #[error("request of {length} bytes at {offset} does not fit a disk of {size_bytes} bytes and 512-byte sectors")]
    OutOfRange {
        /// Where, in bytes.
        offset: u64,
        /// How long, in bytes.
        length: u64,
        /// The disk's size, in bytes.
        size_bytes: u64,
    },
    /// A snapshot cannot be written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// There is no room for the write; nothing that was acknowledged is lost.
    #[error("no space left for writes")]
    Full,
    /// What was stored is damaged or cannot be read.
    #[error("could not read the disk's data")]
    Store(#[from] store::StoreError),
    /// The disk's tree is damaged.
    #[error("damaged disk tree")]
    Tree(#[source] format::NodeError),
    /// What is not here will not come.
    #[error("could not fetch the disk's data")]
    Fetch(#[from] store::FetchError),
    /// The journal cannot be read or written.
    #[error("could not {operation} the journal")]
    Journal {
        /// What was tried, as a verb.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The disk is at another node, which could not do it; its log says why.
    #[error("the node that has the disk could not do it")]
    Home,
    /// The disk was closed, removed, or is shutting down.
    #[error("the disk is closed")]
    Closed,
}

/// Whether a read could be answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The buffer is filled.
    Ready,
    /// Something is not here: use [`BlockDevice::read`], which waits for it.
    Wait,
}

/// How durable a write is before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It survives the death of the process.
    Process,
    /// It survives the loss of power (FUA).
    Power,
}

/// What a range of a disk consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Written here, in the journal or a layer.
    Written,
    /// In a chunk that is here.
    Local,
    /// In a chunk, or below a tree node, that is not here.
    Absent,
    /// Zero because it was zeroed or discarded here.
    Zero,
    /// Zero because nothing was ever there.
    Hole,
}

/// A range of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length, in bytes.
    pub length: u64,
    /// What it consists of.
    pub kind: ExtentKind,
}

/// A disk. All offsets and lengths are in bytes and whole sectors of 512; any number of threads may call at once.
///
/// A write, zero or discard that has returned has reached the kernel; after [`flush`](BlockDevice::flush) everything
/// that had returned before survives the loss of power.
pub trait BlockDevice: Send + Sync + Debug {
    /// The size in bytes.
    fn size_bytes(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills the buffer if everything is here, without waiting for the network.
    ///
    /// # Errors
    /// See [`DeviceError`]. After an error or [`Readiness::Wait`] the buffer's content is unspecified.
    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError>;

    /// Says that a range will be read soon: what of it is here may be fetched from the medium while the caller does other
    /// things. Nothing is fetched from the network.
    fn will_read(&self, offset: u64, length: u64) {
        let _ = (offset, length);
    }

    /// Reads, waiting for what is not here. Dropping the future cancels the wait. Needs a tokio runtime.
    fn read(&self, offset: u64, length: usize) -> BoxFuture<'static, Result<Bytes, DeviceError>>;

    /// Writes.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), DeviceError>;

    /// Makes several writes, one after the other, which costs less than each by itself. After an error some of them may
    /// have been made.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn write_many(&self, writes: &[(u64, &[u8])], durability: Durability) -> Result<(), DeviceError> {
        writes.iter().try_for_each(|(offset, data)| self.write(*offset, data, durability))
    }

    /// Makes a range zero, in constant time.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn write_zeroes(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError>;

    /// Says that a range is not needed any more; it reads as zeroes then.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn discard(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError>;

    /// Makes every acknowledged change durable.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn flush(&self) -> Result<(), DeviceError>;

    /// Tells what a range consists of, beginning at `offset`, in at most `limit` extents; never fetches anything.
    ///
    /// The extents may end before the range does, also below the limit, so that one request costs a bounded time: ask
    /// again from there. For a range that is not empty there is at least one.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError>;

    /// Says that nobody waits for answers any more: what could wait for very long fails with [`DeviceError::Closed`].
    fn abandon(&self) {}

    /// Finds the file of the store in which the whole chunk at an offset lies as it is, so that others can share its room.
    /// `None` where it does not, where something was written over it, or where it is not here.
    ///
    /// # Errors
    /// See [`DeviceError`].
    fn chunk_in_file(&self, offset: u64) -> Result<Option<InFile>, DeviceError> {
        let _ = offset;
        Ok(None)
    }

    /// Finds out whether a file can share room with those of [`chunk_in_file`](BlockDevice::chunk_in_file). It should be
    /// empty, as a copy of it is made.
    ///
    /// # Errors
    /// Why it cannot.
    fn can_share(&self, file: &dyn File) -> Result<(), FreezeError> {
        let _ = file;
        Err(FreezeError::Unsupported)
    }
}

//! Where a node keeps chunks: a trait, what implements it, and how missing chunks are asked for.
//!
//! Invariants: bytes from disk are believed only after their hash was checked; what [`ChunkStore::commit`] has covered
//! survives the loss of power; a chunk counts as present only for the trust domains that it was obtained in, though
//! all domains share one copy on disk. The store knows nothing of volumes, buckets or peers.

mod collect;
pub mod conformance;
mod holding;
pub mod key;
pub mod local;
mod mark;
pub mod memory;
pub mod nodes;
mod pins;
pub mod roots;
mod scrub;
pub mod source;

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use format::Stored;
use medium::File;
use types::{ChunkId, Progress};

pub use collect::{CollectError, CollectOptions, CollectReport, Hold, IncompleteRoots, Live, LiveRoots, LiveTree};
pub use key::{Domain, Domains, Key, Kind};
pub use local::{Damage, LocalOptions, LocalStore, RecoveryReport};
pub use memory::MemoryStore;
pub use nodes::{NodeCache, Nodes};
pub use scrub::{ScrubError, ScrubOptions, ScrubReport, Scrubbed};
pub use source::{ChunkSource, FetchError, NoSource, Origin, Part, Urgency, Wanted};

/// A store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An operation on a file failed.
    #[error("could not {operation} {path}")]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: std::path::PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// There is no room left; nothing that was acknowledged is lost.
    #[error("no space left in {path}")]
    Full {
        /// The store's directory.
        path: std::path::PathBuf,
    },
    /// Bytes were given that do not have the hash they are named by.
    #[error("bytes do not have the id {0}")]
    WrongHash(Key),
    /// What was stored is damaged: it does not have its hash or checksum any more.
    #[error("{what} is damaged in {path}")]
    Damaged {
        /// What it is.
        what: String,
        /// The file it lies in.
        path: std::path::PathBuf,
    },
    /// Another process has the store open.
    #[error("the store {path} is in use by another process")]
    InUse {
        /// The store's directory.
        path: std::path::PathBuf,
    },
    /// The store was written by a later version of brant.
    #[error("the store {path} needs a newer brant: {what}")]
    Newer {
        /// The store's directory.
        path: std::path::PathBuf,
        /// Which version or feature is not understood.
        what: String,
    },
    /// A tree node has its hash but is not a tree node: whoever made the tree lied.
    #[error("tree node {id} is malformed")]
    Malformed {
        /// Which one.
        id: types::NodeId,
        /// What is wrong with it.
        #[source]
        source: format::NodeError,
    },
    /// A root's name is empty or longer than 512 bytes, its value longer than 1 MiB, or all changes longer than 64 MiB.
    #[error("the change of root {name:?} is too large")]
    RootTooLong {
        /// The beginning of its name.
        name: String,
    },
    /// A directory that has files in it, but no store.
    #[error("{path} is not empty and holds no store")]
    NotAStore {
        /// The directory.
        path: std::path::PathBuf,
    },
    /// An earlier write could not be made durable; nothing is written until the store is opened again.
    #[error("the store {path} takes no writes since one failed to reach the medium")]
    Stopped {
        /// The store's directory.
        path: std::path::PathBuf,
    },
    /// The index failed; it can be rebuilt from the packs.
    #[error("the chunk index failed")]
    Index(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Put {
    /// Whether the bytes were not there yet, in any domain.
    pub new: bool,
    /// The length as stored, in bytes; of the copy that was there already where `new` is false.
    pub stored_bytes: u32,
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStatistics {
    /// Chunks, nodes and manifests.
    pub objects: u64,
    /// Their length when plain, in bytes.
    pub plain_bytes: u64,
    /// Their length as stored, in bytes.
    pub stored_bytes: u64,
    /// What the store allocates on its medium, in bytes.
    pub allocated_bytes: u64,
}

/// A copy of a file that shares its room with it and is nobody's to change: chunks can be shared from it.
#[derive(Clone, Debug)]
pub struct FrozenFile(Arc<dyn File>);

impl FrozenFile {
    /// The copy.
    #[must_use]
    pub fn file(&self) -> &Arc<dyn File> {
        &self.0
    }
}

/// A file could not be frozen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeError {
    /// The store does not share room.
    #[error("this store shares no room with files")]
    Unsupported,
    /// The file system has no sharing, or not between this file and the store.
    #[error("the file and the store cannot share room")]
    Refused(#[source] std::io::Error),
    /// The file system shares only blocks that are longer than those of packs.
    #[error("the file and the store cannot share room: the file system has blocks of {0} bytes, and the store of 4096")]
    Blocks(u64),
    /// The store failed; [`StoreError::Full`] where there is no room.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A chunk that lies as it is in a file of the store.
#[derive(Clone, Debug)]
pub struct InFile {
    /// The chunk. Whoever takes what is in the file checks what was taken: it may be damaged, or just have been collected.
    pub chunk: ChunkId,
    /// The file.
    pub file: Arc<dyn File>,
    /// Where it lies, in bytes: a multiple of 4096.
    pub offset: u64,
}

/// A store of chunks, tree nodes and manifests, named by their hashes, and of the roots that refer to them.
///
/// Any number of threads may read and write at once. A put is visible to every reader as soon as it returns, and
/// durable once a later [`commit`](ChunkStore::commit) has returned.
pub trait ChunkStore: Send + Sync + Debug {
    /// Whether an object is present in one of the domains.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn contains(&self, key: &Key, domains: &Domains) -> Result<bool, StoreError>;

    /// Reads an object's plain bytes, checked against its hash; `None` where it is not present in these domains.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    fn get(&self, key: &Key, domains: &Domains) -> Result<Option<Bytes>, StoreError>;

    /// Reads part of an object's plain bytes, from `offset` on, and returns how long the object is; `None` where it is
    /// not present in these domains. A buffer that reaches beyond the object's end is left as it is.
    ///
    /// # Errors
    /// As [`get`](ChunkStore::get).
    fn read_at(
        &self,
        key: &Key,
        domains: &Domains,
        offset: usize,
        buffer: &mut [u8],
    ) -> Result<Option<usize>, StoreError> {
        Ok(self.get(key, domains)?.map(|plain| copy_part(&plain, offset, buffer)))
    }

    /// Says that part of an object's plain bytes will be read soon: what that needs may be fetched from the medium while
    /// the caller does other things.
    fn will_read(&self, key: &Key, domains: &Domains, offset: usize, length: usize) {
        let _ = (key, domains, offset, length);
    }

    /// Reads an object as it is stored, for sending, checked against its hash. One that lies plain in the store because it
    /// shares room with a file is compressed for it.
    ///
    /// # Errors
    /// As [`get`](ChunkStore::get).
    fn get_stored(&self, key: &Key, domains: &Domains) -> Result<Option<Stored>, StoreError>;

    /// Stores plain bytes in a domain. The caller has computed the key from them.
    ///
    /// # Errors
    /// When they cannot be written; [`StoreError::Full`] where there is no room.
    fn put(&self, key: &Key, domain: Domain, plain: &[u8]) -> Result<Put, StoreError>;

    /// Stores bytes that came from elsewhere, after checking them against the key.
    ///
    /// # Errors
    /// [`StoreError::WrongHash`] for other bytes than the key names; else as [`put`](ChunkStore::put).
    fn put_stored(&self, key: &Key, domain: Domain, stored: &Stored) -> Result<Put, StoreError>;

    /// Freezes a file, so that chunks of it can be shared.
    ///
    /// # Errors
    /// See [`FreezeError`].
    fn freeze(&self, source: &dyn File) -> Result<FrozenFile, FreezeError> {
        let _ = source;
        Err(FreezeError::Unsupported)
    }

    /// Stores whole chunks that lie one behind the other in a frozen file, from an offset on, by sharing its room; the
    /// caller has computed the keys from it. Says what was done for each, in order; where that ends early, the rest
    /// cannot be shared, and has to be put. What is new is shared.
    ///
    /// # Errors
    /// As [`put`](ChunkStore::put).
    fn share(
        &self,
        domain: Domain,
        chunks: &[ChunkId],
        frozen: &FrozenFile,
        offset: u64,
    ) -> Result<Vec<Put>, StoreError> {
        let _ = (domain, chunks, frozen, offset);
        Ok(Vec::new())
    }

    /// Finds the file in which a chunk lies as it is, so that others can share its room; `None` where it does not, or is
    /// not present in these domains.
    ///
    /// # Errors
    /// As [`contains`](ChunkStore::contains).
    fn find_in_file(&self, chunk: &ChunkId, domains: &Domains) -> Result<Option<InFile>, StoreError> {
        let _ = (chunk, domains);
        Ok(None)
    }

    /// Keeps bytes that came from elsewhere in memory for a moment, for who waits for them while there is no room to
    /// store them, and says whether it does. They can be read, but do not count as present.
    ///
    /// # Errors
    /// [`StoreError::WrongHash`] for other bytes than the key names.
    fn lend(&self, key: &Key, domain: Domain, stored: &Stored) -> Result<bool, StoreError> {
        let _ = (key, domain, stored);
        Ok(false)
    }

    /// Makes every put that has returned durable.
    ///
    /// # Errors
    /// When the medium reports a failure; what is not durable then counts as never put.
    fn commit(&self) -> Result<(), StoreError>;

    /// Counts what is held.
    ///
    /// # Errors
    /// When it cannot be counted.
    fn statistics(&self) -> Result<StoreStatistics, StoreError>;

    /// Gives room on the medium back that can be done without, and says whether it did: what found the medium full may
    /// be tried once more.
    fn make_room(&self) -> bool {
        false
    }

    /// The durable records that say what must be kept.
    fn roots(&self) -> &dyn Roots;

    /// Keeps everything that is put or found present (by [`contains`](ChunkStore::contains) or a put) from now on, until
    /// the hold is dropped. Who stores something takes one first, and keeps it until a root refers to it.
    fn hold(&self) -> Hold {
        Hold::default()
    }

    /// Gives the room of what nothing refers to back, while the store is in use. Blocking, and long.
    ///
    /// # Errors
    /// See [`CollectError`].
    fn collect(
        &self,
        roots: &dyn LiveRoots,
        options: &CollectOptions,
        progress: &Progress,
    ) -> Result<CollectReport, CollectError> {
        let _ = (roots, options, progress);
        Err(CollectError::Unsupported)
    }

    /// Reads everything again and makes what is damaged absent, so that it is fetched or stored anew. Blocking, and long.
    ///
    /// # Errors
    /// See [`ScrubError`].
    fn scrub(
        &self,
        options: &ScrubOptions,
        progress: &Progress,
        tell: &mut dyn FnMut(Scrubbed),
    ) -> Result<ScrubReport, ScrubError> {
        let _ = (options, progress, tell);
        Err(ScrubError::Unsupported)
    }

    /// Objects that were found damaged, the first thousand, whether they are present again or not.
    fn quarantined(&self) -> Vec<Key> {
        Vec::new()
    }

    /// Counts how often objects may have ceased to be present: who remembers that something is, asks again when this
    /// has changed.
    fn removals(&self) -> u64 {
        0
    }
}

/// A change to one root: the name, and the new value or `None` to remove it.
pub type RootChange = (String, Option<Vec<u8>>);

/// Small durable records by name: volumes, layers, snapshots, running imports. What they refer to is kept.
///
/// Names are paths such as `volume/3f…`; values are at most 1 MiB.
pub trait Roots: Send + Sync + Debug {
    /// Reads a record.
    fn get(&self, name: &str) -> Option<Vec<u8>>;

    /// All records whose names begin with a prefix, by name.
    fn list(&self, prefix: &str) -> Vec<(String, Vec<u8>)>;

    /// Changes records, all or none, durably before it returns. Commits the store's objects first.
    ///
    /// # Errors
    /// When they cannot be written; then none has changed.
    fn apply(&self, changes: Vec<RootChange>) -> Result<(), StoreError>;
}

/// Makes bytes from elsewhere plain; `None` where they are not what the key names.
fn checked_plain(key: &Key, stored: &Stored) -> Option<Bytes> {
    if stored.plain_bytes as usize > key.kind.max_plain_bytes() {
        return None;
    }
    stored.to_plain().ok().filter(|plain| key.matches(plain))
}

/// Copies part of an object, if it reaches so far, and returns the object's length.
fn copy_part(plain: &[u8], offset: usize, buffer: &mut [u8]) -> usize {
    if let Some(part) = offset.checked_add(buffer.len()).and_then(|end| plain.get(offset..end)) {
        buffer.copy_from_slice(part);
    }
    plain.len()
}

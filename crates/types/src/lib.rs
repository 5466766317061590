//! Plain values that every part of brant shares: ids, names, sizes, ranges, rules of keeping, and progress.
//!
//! Nothing here does I/O. A value of one of these types is valid by construction: what comes from outside is parsed
//! by `FromStr` or `TryFrom`, which say what is wrong in words that a person can act on.

pub mod id;
pub mod keep;
pub mod name;
pub mod progress;
pub mod size;

pub use id::{
    BucketId, ChunkId, EndpointId, EntryHash, FrozenId, JournalId, LayerId, NodeId, PublicKey, SnapshotId, VolumeId,
};
pub use keep::{Keep, KeepError};
pub use name::{Name, NameError, ObjectPath, Reference};
pub use progress::{Cancelled, Progress};
pub use size::{ByteSize, CHUNK_BYTES, MAX_DISK_BYTES, SECTOR_BYTES};

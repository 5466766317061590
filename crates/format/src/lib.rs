//! The encodings of everything that brant keeps or sends: chunks, tree nodes, manifests, log entries, packs, journals.
//!
//! Every encoding has a version, exactly one valid form for a value, and one decoder, which takes any bytes without
//! panicking or allocating more than a small multiple of its input. The byte layouts are described once, in
//! `docs/format.md`. Nothing here does I/O.

pub mod canonical;
pub mod codec;
pub mod entry;
pub mod features;
pub mod hash;
pub mod journal;
pub mod manifest;
pub mod node;
pub mod pack;
pub mod roots;
pub mod tree;

pub use canonical::{CanonicalError, from_canonical, to_canonical};
pub use codec::{Codec, CodecError, Stored};
pub use hash::{chunk_id, entry_hash, is_zero, node_id, snapshot_id};
pub use manifest::{Disk, Manifest};
pub use node::{FAN_OUT, Node, NodeError};
pub use tree::{Position, Shape};

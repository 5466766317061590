//! Domain-separated hashes: BLAKE3 in its key derivation mode, one context string per kind of thing.
//!
//! The contexts keep kinds apart: a guest can write any bytes to its disk, but no chunk has the id of a node, a
//! manifest or a log entry. (BLAKE3 specification, section 2.3.)

use types::{ChunkId, EntryHash, NodeId, SnapshotId};

fn derive(context: &str, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(bytes);
    hasher.finalize().into()
}

/// Hashes the plain bytes of a chunk: 64 KiB, or any other length for tests.
#[must_use]
pub fn chunk_id(plain: &[u8]) -> ChunkId {
    ChunkId(derive("brant 2026-11 chunk v1", plain))
}

/// Hashes the encoding of a tree node.
#[must_use]
pub fn node_id(encoded: &[u8]) -> NodeId {
    NodeId(derive("brant 2026-11 tree node v1", encoded))
}

/// Hashes the encoding of a manifest, which gives the snapshot its id.
#[must_use]
pub fn snapshot_id(encoded: &[u8]) -> SnapshotId {
    SnapshotId(derive("brant 2026-11 manifest v1", encoded))
}

/// Hashes the signed bytes of a log entry.
#[must_use]
pub fn entry_hash(encoded: &[u8]) -> EntryHash {
    EntryHash(derive("brant 2026-11 log entry v1", encoded))
}

/// Whether all bytes are zero, at the speed of memory.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // Blocks of 4 KiB: most chunks with data fail in the first, and a block is one vectorised fold.
    bytes.chunks(4096).all(|block| {
        let (words, rest) = block.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_le_bytes(*word)) == 0 && rest.iter().all(|byte| *byte == 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_have_another_id_as_another_kind() {
        let bytes = [7; 68];
        let ids = [chunk_id(&bytes).0, node_id(&bytes).0, snapshot_id(&bytes).0, entry_hash(&bytes).0];
        for (position, id) in ids.iter().enumerate() {
            assert!(!ids[..position].contains(id));
            assert_ne!(id, blake3::hash(&bytes).as_bytes());
        }
    }

    #[test]
    fn zero_is_seen_at_every_position() {
        let mut bytes = vec![0; 10_003];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for position in [0, 1, 4095, 4096, 8191, 9_999, 10_002] {
            bytes[position] = 1;
            assert!(!is_zero(&bytes), "{position}");
            bytes[position] = 0;
        }
    }
}

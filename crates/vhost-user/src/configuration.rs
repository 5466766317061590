//! What the device is to its driver: features, and the configuration space (virtio 1.2, 5.2.3 and 5.2.4).

use crate::request::{MAX_SEGMENT_SECTORS, MAX_SEGMENTS};

/// The driver may ask how long a segment may be.
pub const VIRTIO_BLK_F_SIZE_MAX: u64 = 1 << 1;
/// The driver may ask how many segments a request may have.
pub const VIRTIO_BLK_F_SEG_MAX: u64 = 1 << 2;
/// The device is read-only.
pub const VIRTIO_BLK_F_RO: u64 = 1 << 5;
/// The size of a logical block is said.
pub const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
/// There is a flush.
pub const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;
/// What sizes are fast is said.
pub const VIRTIO_BLK_F_TOPOLOGY: u64 = 1 << 10;
/// The driver may turn the write cache off and on.
pub const VIRTIO_BLK_F_CONFIG_WCE: u64 = 1 << 11;
/// There are several queues.
pub const VIRTIO_BLK_F_MQ: u64 = 1 << 12;
/// There is a discard.
pub const VIRTIO_BLK_F_DISCARD: u64 = 1 << 13;
/// There is a write-zeroes.
pub const VIRTIO_BLK_F_WRITE_ZEROES: u64 = 1 << 14;
/// Descriptors may be in tables of their own.
pub const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are limited by indices.
pub const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;
/// The protocol's own features are negotiated.
pub const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// The device is none of before virtio 1.0.
pub const VIRTIO_F_VERSION_1: u64 = 1 << 32;

/// Where the driver turns the write cache off and on.
pub const WRITEBACK_OFFSET: u32 = 32;
/// The longest segment of a request, in bytes. With [`SEGMENTS`] of them, a request is within what is taken.
pub const SEGMENT_BYTES: u32 = 256 << 10;
/// The most data segments of a request: what a queue of 128, QEMU's, holds beside header and status.
pub const SEGMENTS: u32 = 126;

/// The longest configuration space that anybody may ask for, as in QEMU.
pub const MAX_CONFIGURATION_BYTES: u32 = 256;

/// The features of a device.
#[must_use]
pub fn features(read_only: bool) -> u64 {
    let always = VIRTIO_BLK_F_SIZE_MAX
        | VIRTIO_BLK_F_SEG_MAX
        | VIRTIO_BLK_F_BLK_SIZE
        | VIRTIO_BLK_F_FLUSH
        | VIRTIO_BLK_F_TOPOLOGY
        | VIRTIO_BLK_F_CONFIG_WCE
        | VIRTIO_BLK_F_MQ
        | VIRTIO_F_INDIRECT_DESC
        | VIRTIO_F_EVENT_IDX
        | VHOST_USER_F_PROTOCOL_FEATURES
        | VIRTIO_F_VERSION_1;
    let changes = VIRTIO_BLK_F_DISCARD | VIRTIO_BLK_F_WRITE_ZEROES;
    always | if read_only { VIRTIO_BLK_F_RO } else { changes }
}

/// What the configuration space depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The disk's size.
    pub size_bytes: u64,
    /// How many queues there may be.
    pub queues: u16,
    /// Whether the write cache is on.
    pub writeback: bool,
}

impl Configuration {
    /// The configuration space, with zeroes for what this device does not have.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; MAX_CONFIGURATION_BYTES as usize];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &(self.size_bytes / 512).to_le_bytes());
        put(8, &SEGMENT_BYTES.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        // 2^3 logical blocks are a physical one: what is written in less may have to be read first.
        put(24, &[3]);
        put(26, &8_u16.to_le_bytes());
        put(WRITEBACK_OFFSET as usize, &[u8::from(self.writeback)]);
        put(34, &self.queues.to_le_bytes());
        for at in [36, 48] {
            put(at, &MAX_SEGMENT_SECTORS.to_le_bytes());
            put(at + 4, &MAX_SEGMENTS.to_le_bytes());
        }
        // Of discards, the alignment, in sectors; of write-zeroes, that they may free room.
        put(44, &8_u32.to_le_bytes());
        put(56, &[1]);
        bytes
    }

    /// A part of the configuration space; nothing where it has no such part.
    #[must_use]
    pub fn part(&self, offset: u32, size_bytes: u32) -> Option<Vec<u8>> {
        let end = offset.checked_add(size_bytes)?;
        Some(self.encode().get(offset as usize..end as usize)?.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_has_what_a_driver_looks_for() {
        let space = Configuration { size_bytes: 3 << 20, queues: 4, writeback: true }.encode();
        assert_eq!(space[..8], 6144_u64.to_le_bytes());
        assert_eq!(space[32], 1, "the cache is on");
        assert_eq!(space[34..36], [4, 0]);
        assert_eq!(space[36..40], space[48..52]);
        assert_eq!(space[56], 1);
        let off = Configuration { size_bytes: 0, queues: 1, writeback: false };
        assert_eq!(off.part(WRITEBACK_OFFSET, 1), Some(vec![0]));
        assert_eq!(off.part(0, 60).map(|part| part.len()), Some(60));
        assert_eq!((off.part(200, 57), off.part(u32::MAX, 2)), (None, None));
    }

    #[test]
    fn a_snapshot_is_read_only_and_offers_no_changes() {
        let (snapshot, volume) = (features(true), features(false));
        assert!(snapshot & VIRTIO_BLK_F_RO != 0 && snapshot & VIRTIO_BLK_F_DISCARD == 0);
        assert!(volume & VIRTIO_BLK_F_RO == 0 && volume & VIRTIO_BLK_F_DISCARD != 0);
        assert!(volume & VIRTIO_BLK_F_FLUSH != 0 && volume & VIRTIO_BLK_F_CONFIG_WCE != 0);
    }
}

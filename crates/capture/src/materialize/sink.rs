//! What a disk is written into: places for bytes and for zeroes.

use std::fmt::Debug;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use types::CHUNK_BYTES;

use super::MaterializeError;
use crate::nbd::NbdDisk;

/// A disk that is being written, by several threads, each place once.
pub(super) trait Sink: Sync + Debug {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), MaterializeError>;

    /// Makes a range read as zeroes.
    fn zero(&self, offset: u64, length: u64) -> Result<(), MaterializeError>;

    /// Makes everything durable.
    fn flush(&self) -> Result<(), MaterializeError>;

    /// The file itself, where it can share the room of chunks that lie in the store as they are.
    fn sharing(&self) -> Option<&dyn medium::File> {
        None
    }

    /// The least run of zeroes in the midst of data that is worth leaving out, in bytes.
    fn grain(&self) -> usize {
        CHUNK_BYTES
    }
}

/// A new raw file, all hole.
#[derive(Debug)]
pub(super) struct NewFile {
    pub(super) file: File,
    /// The same, where it can share room with the store.
    pub(super) sharing: Option<Arc<dyn medium::File>>,
}

impl Sink for NewFile {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), MaterializeError> {
        self.file.write_all_at(data, offset).map_err(MaterializeError::io("write the file"))
    }

    fn zero(&self, _: u64, _: u64) -> Result<(), MaterializeError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), MaterializeError> {
        self.file.sync_all().map_err(MaterializeError::io("make the file durable"))
    }

    fn sharing(&self) -> Option<&dyn medium::File> {
        self.sharing.as_deref()
    }

    /// The usual block of file systems.
    fn grain(&self) -> usize {
        4096
    }
}

/// A block device, which holds whatever it held.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) file: File,
    /// Set once the device was found not to make zeroes by itself.
    pub(super) plain: AtomicBool,
}

impl Sink for Device {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), MaterializeError> {
        self.file.write_all_at(data, offset).map_err(MaterializeError::io("write the block device"))
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), MaterializeError> {
        // On block devices both zero for certain (fallocate(2); blkdev_fallocate in the kernel's block/fops.c).
        for mode in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
            if self.plain.load(Ordering::Relaxed) {
                break;
            }
            if fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, offset, length).is_ok() {
                return Ok(());
            }
        }
        self.plain.store(true, Ordering::Relaxed);
        let zeroes = vec![0; length.min(1 << 20) as usize];
        let end = offset + length;
        let mut position = offset;
        while position < end {
            let part = (end - position).min(zeroes.len() as u64);
            self.write(position, &zeroes[..usize::try_from(part).unwrap_or(zeroes.len())])?;
            position += part;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), MaterializeError> {
        self.file.sync_all().map_err(MaterializeError::io("make the block device durable"))
    }
}

impl Sink for NbdDisk {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), MaterializeError> {
        Ok(self.write_at(offset, data)?)
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), MaterializeError> {
        Ok(self.write_zeroes(offset, length)?)
    }

    fn flush(&self) -> Result<(), MaterializeError> {
        Ok(Self::flush(self)?)
    }
}

/// A new image behind qemu's NBD server, all hole.
#[derive(Debug)]
pub(super) struct NewImage<'d> {
    pub(super) disk: &'d NbdDisk,
}

impl Sink for NewImage<'_> {
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), MaterializeError> {
        Ok(self.disk.write_at(offset, data)?)
    }

    fn zero(&self, _: u64, _: u64) -> Result<(), MaterializeError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), MaterializeError> {
        Ok(self.disk.flush()?)
    }
}

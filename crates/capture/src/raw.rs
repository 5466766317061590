//! A raw disk: a regular file or a block device, byte for byte.
//!
//! Holes of a sparse file are found by `SEEK_DATA` and `SEEK_HOLE` (lseek(2)) and never read. A file whose length is
//! not a multiple of 512 is padded with zeroes to one. A file that is not frozen must not change while it is read: what
//! shrinks is noticed, what is overwritten is not.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;
use store::FrozenFile;

use crate::foreign::{CaptureError, ForeignDisk, ForeignExtent, check_range, push_extent, whole_sectors};

/// The most extents that one call looks for.
const MAX_EXTENTS: usize = 1024;

/// A regular file or block device that is a disk, byte for byte.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    /// The length of the file itself.
    file_bytes: u64,
    /// That, rounded up to sectors.
    size_bytes: u64,
    /// The file as a store takes it, where it is frozen.
    frozen: Option<FrozenFile>,
}

impl RawDisk {
    /// Takes an open file, which must be readable.
    ///
    /// # Errors
    /// What is not a file or block device, is empty, or is too large.
    pub fn new(file: File) -> Result<Self, CaptureError> {
        let file_bytes = file_length(&file)?;
        let size_bytes = whole_sectors(file_bytes)?;
        // Advice only: where it is not taken, reading is a little slower.
        if let Err(error) = fadvise(&file, 0, None, Advice::Sequential) {
            tracing::debug!(%error, "no read-ahead advice");
        }
        Ok(Self { file, file_bytes, size_bytes, frozen: None })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn is_regular(&self) -> Result<bool, CaptureError> {
        Ok(self.file.metadata().map_err(CaptureError::io("look at the disk"))?.is_file())
    }

    /// Says that the file is a frozen one.
    pub(crate) fn with_frozen(self, frozen: FrozenFile) -> Self {
        Self { frozen: Some(frozen), ..self }
    }

    fn check_length(&self) -> Result<(), CaptureError> {
        let now = file_length(&self.file)?;
        if now < self.file_bytes { Err(CaptureError::Shrunk { before: self.file_bytes, now }) } else { Ok(()) }
    }

    /// Where the next data, or the next hole, begins; `None` where the file system knows of no holes.
    fn find(&self, from: SeekFrom) -> Result<Option<u64>, CaptureError> {
        match seek(&self.file, from) {
            Ok(position) => Ok(Some(position.min(self.file_bytes))),
            Err(Errno::NXIO) => {
                self.check_length()?;
                Ok(Some(self.file_bytes))
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
            Err(error) => Err(CaptureError::Io { operation: "find the holes of the disk", source: error.into() }),
        }
    }
}

/// The length of a regular file or block device.
pub(crate) fn file_length(file: &File) -> Result<u64, CaptureError> {
    let metadata = file.metadata().map_err(CaptureError::io("look at the disk"))?;
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(metadata.len())
    } else if kind.is_block_device() {
        seek(file, SeekFrom::End(0))
            .map_err(|error| CaptureError::Io { operation: "measure the block device", source: error.into() })
    } else if kind.is_dir() {
        Err(CaptureError::NotADisk("a directory"))
    } else if kind.is_char_device() {
        Err(CaptureError::NotADisk("a character device"))
    } else {
        Err(CaptureError::NotADisk("a pipe or socket"))
    }
}

impl ForeignDisk for RawDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), CaptureError> {
        check_range(offset, buffer.len() as u64, self.size_bytes)?;
        let inside = self.file_bytes.saturating_sub(offset).min(buffer.len() as u64);
        let (mut rest, padding) = buffer.split_at_mut(usize::try_from(inside).unwrap_or(usize::MAX));
        padding.fill(0);
        let mut position = offset;
        while !rest.is_empty() {
            match self.file.read_at(rest, position) {
                Ok(0) => return Err(CaptureError::Shrunk { before: self.file_bytes, now: position }),
                Ok(length) => {
                    rest = &mut rest[length..];
                    position += length as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(CaptureError::Io { operation: "read the disk", source }),
            }
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<ForeignExtent>, CaptureError> {
        check_range(offset, length, self.size_bytes)?;
        let end = offset + length;
        let mut list = Vec::new();
        let mut position = offset;
        while position < end && list.len() < MAX_EXTENTS {
            if position >= self.file_bytes {
                push_extent(&mut list, end - position, true);
                break;
            }
            let Some(data) = self.find(SeekFrom::Data(position))? else {
                push_extent(&mut list, end - position, false);
                break;
            };
            if data >= self.file_bytes {
                push_extent(&mut list, end - position, true);
                break;
            }
            let data = data.min(end);
            push_extent(&mut list, data - position, true);
            if data < end {
                let hole = self.find(SeekFrom::Hole(data))?.unwrap_or(self.file_bytes).clamp(data + 1, end);
                push_extent(&mut list, hole - data, false);
                position = hole;
            } else {
                position = end;
            }
        }
        Ok(list)
    }

    fn parallel_reads(&self) -> usize {
        4
    }

    fn frozen(&self) -> Option<(&FrozenFile, u64)> {
        self.frozen.as_ref().map(|frozen| (frozen, self.file_bytes))
    }
}

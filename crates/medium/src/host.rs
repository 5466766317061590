//! The file system of the host.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::{File, Lock, Medium, Open, Room};

/// The file system of the host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

impl Host {
    /// The host's file system, to be shared.
    #[must_use]
    pub fn shared() -> Arc<dyn Medium> {
        Arc::new(Self)
    }

    /// Takes a file that somebody else has opened. What it can do depends on how.
    #[must_use]
    pub fn adopt(file: fs::File) -> Arc<dyn File> {
        Arc::new(HostFile(file))
    }
}

#[derive(Debug)]
struct Locked {
    _file: fs::File,
}

impl Lock for Locked {}

impl Medium for Host {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match how {
            Open::Existing => &mut options,
            Open::New => options.create_new(true),
            Open::Replace => options.create(true).truncate(true),
        };
        Ok(Arc::new(HostFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        // The parent of a name without a folder is the folder we are in.
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        fs::File::open(path)?.sync_all()
    }

    fn room(&self, path: &Path) -> io::Result<Room> {
        let status = rustix::fs::statvfs(path)?;
        Ok(Room {
            available_bytes: status.f_bavail.saturating_mul(status.f_frsize),
            total_bytes: status.f_blocks.saturating_mul(status.f_frsize),
        })
    }

    fn freeze(&self, source: &dyn File, directory: &Path) -> io::Result<Arc<dyn File>> {
        let source = source.descriptor().ok_or(io::ErrorKind::Unsupported)?;
        // Made in the directory, so that it gets the attributes that the files there have.
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let frozen = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::ioctl_ficlone(&frozen, source)?;
        Ok(Self::adopt(frozen.into()))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(Locked { _file: file })),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[derive(Debug)]
struct HostFile(fs::File);

impl File for HostFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut written = loop {
            match rustix::io::pwritev(&self.0, &slices, offset) {
                Err(Errno::INTR) => {}
                written => break written?,
            }
        };
        // A short write is rare: a signal, or the last free block.
        let mut offset = offset + written as u64;
        for part in parts {
            let rest = &part[written.min(part.len())..];
            written = written.saturating_sub(part.len());
            self.0.write_all_at(rest, offset)?;
            offset += rest.len() as u64;
        }
        Ok(())
    }

    fn begin_writing(&self, offset: u64, length: u64) {
        // Linux begins to write what is dirty in the range, without waiting, and lets go only of what is not. Where it is
        // refused, `sync_data` does it.
        let _ = rustix::fs::fadvise(&self.0, offset, NonZeroU64::new(length), Advice::DontNeed);
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * 512)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.0, flags, offset, length).map_err(|error| match error {
            Errno::OPNOTSUPP => io::ErrorKind::Unsupported.into(),
            error => error.into(),
        })
    }

    fn clone_range(&self, offset: u64, source: &dyn File, source_offset: u64, length: u64) -> io::Result<()> {
        let source = source.descriptor().ok_or(io::ErrorKind::Unsupported)?;
        // The kernel shares what it can before it copies (vfs_copy_file_range in fs/read_write.c).
        let (mut from, mut to) = (source_offset, offset);
        let end = source_offset.saturating_add(length);
        while from < end {
            let rest = usize::try_from(end - from).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(source, Some(&mut from), &self.0, Some(&mut to), rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn will_read(&self, offset: u64, length: u64) {
        // Where it is refused, the read itself waits.
        let _ = rustix::fs::fadvise(&self.0, offset, NonZeroU64::new(length), Advice::WillNeed);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_the_owners_alone_and_all_parts_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/file");
        assert!(Host.open(&path, Open::Existing).is_err());
        Host.create_directory(path.parent().unwrap()).unwrap();
        let file = Host.open(&path, Open::New).unwrap();
        assert!(Host.open(&path, Open::New).is_err());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        file.write_all_at(&[b"one", b"", b"two"], 2).unwrap();
        file.sync_data().unwrap();
        assert_eq!(Host.read(&path).unwrap(), b"\0\0onetwo");
        file.set_length(4).unwrap();
        assert_eq!(file.length().unwrap(), 4);
        let end = file.read_exact_at(&mut [0; 5], 0).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(Host.list(path.parent().unwrap()).unwrap(), ["file"]);
    }

    #[test]
    fn a_content_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for content in [&b"first"[..], b"2"] {
            Host.replace(&path, content).unwrap();
            assert_eq!(Host.read(&path).unwrap(), content);
        }
        assert_eq!(Host.list(directory.path()).unwrap(), ["file"]);
    }

    #[test]
    fn a_lock_keeps_others_out_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let first = Host.lock(&path).unwrap();
        assert_eq!(Host.lock(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        Host.lock(&path).unwrap();
    }
}

//! The file system under stores and volumes, as a trait: the host's, or a simulated one that loses power.
//!
//! Invariants that callers may count on, and no others: a write that returned is read back by every later read of this
//! process and survives its death; it survives the loss of power only after a later [`File::sync_data`] of the file, and
//! a name (made, renamed or removed) only after a later [`Medium::sync_directory`]. Unsynchronised writes may survive in
//! part, in any order, and torn at any sector of 512 bytes. A rename replaces its target in one step. What follows a failed
//! [`File::sync_data`] nobody knows: it must not be tried again (Rebello et al., "Can applications recover from fsync
//! failures?", ATC 2020).
//!
//! Errors are the system's own ([`std::io::Error`]): who calls says what was tried, and where.

pub mod conformance;
mod host;
pub mod simulated;

use std::any::Any;
use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

pub use host::Host;
pub use simulated::Simulated;

/// How a file is opened. All are opened for reading and writing, and made for their owner alone (mode 0600).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must be there.
    Existing,
    /// It must not be there, and is made.
    New,
    /// It is made, or made empty.
    Replace,
}

/// The room on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What it can still give to this process, in bytes.
    pub available_bytes: u64,
    /// What it has in all, in bytes.
    pub total_bytes: u64,
}

/// Keeps others from a directory until it is dropped.
pub trait Lock: Send + Sync + Debug {}

/// A file system. Any number of threads may call at once.
pub trait Medium: Send + Sync + Debug {
    /// Opens or makes a file.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;

    /// Renames a file or directory, in place of what had the new name.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Names what is in a directory, in no order.
    ///
    /// # Errors
    /// The system's.
    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>>;

    /// Makes a directory for its owner alone (mode 0700), with those above it; one that is there is left as it is.
    ///
    /// # Errors
    /// The system's.
    fn create_directory(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory like [`create_directory`](Medium::create_directory), durably: its name, which a process that
    /// died may have made, and those above it that were missing.
    ///
    /// # Errors
    /// The system's.
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let mut names = vec![path];
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            if self.exists(above)? {
                break;
            }
            names.push(above);
        }
        self.create_directory(path)?;
        names.iter().filter_map(|name| name.parent()).try_for_each(|parent| self.sync_directory(parent))
    }

    /// Whether there is a file or directory.
    ///
    /// # Errors
    /// The system's, where that cannot be told.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// The system's.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    /// Tells the room on the file system of a path.
    ///
    /// # Errors
    /// The system's.
    fn room(&self, path: &Path) -> io::Result<Room>;

    /// Makes a file without a name in a directory that has the content of another one at one moment and shares its room, so
    /// that it costs hardly any. It is gone when nobody has it open any more.
    ///
    /// # Errors
    /// The system's. [`cannot_share`] tells those that mean that these files cannot share their room.
    fn freeze(&self, source: &dyn File, directory: &Path) -> io::Result<Arc<dyn File>>;

    /// Locks a file against other processes, and makes it where it is not there.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where another has it; else the system's.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>>;

    /// Reads a whole file.
    ///
    /// # Errors
    /// The system's.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, Open::Existing)?;
        let length = usize::try_from(file.length()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Replaces a file's content, all or nothing, durably, and returns the file. `PATH.new` is used on the way.
    ///
    /// # Errors
    /// The system's; the old content is in place then, or the new one is and is not known to be durable.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<Arc<dyn File>> {
        let file = self.write_beside(path, bytes)?;
        self.put_in_place(path)?;
        Ok(file)
    }

    /// Writes what is to replace a file's content into `PATH.new`, durably, and returns that file.
    ///
    /// # Errors
    /// The system's; nothing has changed then.
    fn write_beside(&self, path: &Path, bytes: &[u8]) -> io::Result<Arc<dyn File>> {
        let temporary = path.with_extension("new");
        let write = || -> io::Result<Arc<dyn File>> {
            let file = self.open(&temporary, Open::Replace)?;
            file.write_all_at(&[bytes], 0)?;
            file.sync_data()?;
            Ok(file)
        };
        write().inspect_err(|_| drop(self.remove(&temporary)))
    }

    /// Puts `PATH.new` in a file's place, durably.
    ///
    /// # Errors
    /// The system's; then it is in place or not, and nobody knows whether that is durable.
    fn put_in_place(&self, path: &Path) -> io::Result<()> {
        self.rename(&path.with_extension("new"), path)?;
        self.sync_directory(path.parent().unwrap_or(Path::new(".")))
    }
}

/// Whether a failure to share room means that these files cannot, as they are on different file systems or on one without
/// sharing, or have attributes that forbid it; anything else may pass (ioctl_ficlone(2)).
#[must_use]
pub fn cannot_share(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let refusals = [
        Errno::XDEV,
        Errno::OPNOTSUPP,
        Errno::NOTTY,
        Errno::NOSYS,
        Errno::INVAL,
        Errno::PERM,
        Errno::TXTBSY,
        Errno::BADF,
        Errno::ISDIR,
    ];
    error.kind() == io::ErrorKind::Unsupported
        || refusals.iter().any(|refusal| Some(refusal.raw_os_error()) == error.raw_os_error())
}

/// An open file. Any number of threads may call at once; it stays readable when its name is removed.
pub trait File: Send + Sync + Debug + Any {
    /// Fills the buffer.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the file ends before; else the system's.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all parts, one behind the other.
    ///
    /// # Errors
    /// The system's; then some of it may have been written.
    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;

    /// Begins to write a range to the medium, so that less is left for [`sync_data`](File::sync_data). Advice only.
    fn begin_writing(&self, offset: u64, length: u64) {
        let _ = (offset, length);
    }

    /// Makes what was written, and the length, durable.
    ///
    /// # Errors
    /// The system's; see the head of this crate.
    fn sync_data(&self) -> io::Result<()>;

    /// The length, in bytes.
    ///
    /// # Errors
    /// The system's.
    fn length(&self) -> io::Result<u64>;

    /// Cuts the file, or makes it longer by a hole.
    ///
    /// # Errors
    /// The system's.
    fn set_length(&self, bytes: u64) -> io::Result<()>;

    /// What the file takes on the medium, in bytes.
    ///
    /// # Errors
    /// The system's.
    fn allocated_bytes(&self) -> io::Result<u64>;

    /// Gives the room of a range back; it reads as zeroes.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::Unsupported`] where the file system cannot.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes a range read as a range of another file. Where offsets and length are whole blocks and the file system can,
    /// both share their room until one of them is written; else the bytes are copied. It is durable as what is written.
    ///
    /// # Errors
    /// The system's; then some of it may have been done. [`cannot_share`] tells those that mean that it is not possible
    /// between these files.
    fn clone_range(&self, offset: u64, source: &dyn File, source_offset: u64, length: u64) -> io::Result<()>;

    /// Says that a range will be read soon, so that it may be fetched from the medium while the caller does other things.
    fn will_read(&self, offset: u64, length: u64) {
        let _ = (offset, length);
    }

    /// The descriptor, where there is one: a simulated file has none.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

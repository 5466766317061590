//! The file that a layer's writes are appended to.
//!
//! Invariants: what [`Journal::append`] has returned a position for has reached the kernel, and never moves or changes
//! again, so that it is read without locks; what had been appended when [`Journal::sync`] began is durable when it
//! returns. A failed append leaves the file as it was. The file is made with the first record: a volume that nobody
//! has written to has none.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use format::journal::{HEADER_BYTES, JournalKeys, Record, encode_file_header};
use medium::{File, Medium, Open};
use types::LayerId;

use crate::device::DeviceError;
use crate::locks::Mutex;

/// Where the first record begins.
pub(crate) const FIRST_RECORD: u64 = HEADER_BYTES as u64;

/// A layer's journal.
#[derive(Debug)]
pub(crate) struct Journal {
    medium: Arc<dyn Medium>,
    layer: LayerId,
    path: PathBuf,
    keys: JournalKeys,
    file: OnceLock<Arc<dyn File>>,
    /// Where the next record goes: the length of everything appended.
    tail: AtomicU64,
    /// How far the file is durable.
    synced: AtomicU64,
    /// Held while the file is made durable. Whether the directory knows the file.
    syncing: Mutex<bool>,
    /// Set once the kernel has failed to make the file durable: what it has dropped then, nobody knows.
    failed: AtomicBool,
}

impl Journal {
    /// A journal that has no file yet.
    pub(crate) fn new(medium: Arc<dyn Medium>, directory: &Path, layer: LayerId, keys: JournalKeys) -> Self {
        Self {
            medium,
            layer,
            path: path(directory, layer),
            keys,
            file: OnceLock::new(),
            tail: AtomicU64::new(FIRST_RECORD),
            synced: AtomicU64::new(FIRST_RECORD),
            syncing: Mutex::new(false),
            failed: AtomicBool::new(false),
        }
    }

    /// This journal, which was found with records up to `tail`. Nobody knows how far it is durable.
    pub(crate) fn found(self, file: Arc<dyn File>, tail: u64) -> Self {
        self.file.get_or_init(|| file);
        Self { tail: AtomicU64::new(tail), ..self }
    }

    pub(crate) fn layer(&self) -> LayerId {
        self.layer
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn keys(&self) -> &JournalKeys {
        &self.keys
    }

    /// The file, once there is one.
    pub(crate) fn file(&self) -> Option<&dyn File> {
        self.file.get().map(|file| &**file)
    }

    /// The length of everything appended, in bytes.
    pub(crate) fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    /// Whether nothing was ever appended.
    pub(crate) fn is_empty(&self) -> bool {
        self.tail() == FIRST_RECORD
    }

    /// Appends a record, and returns where it begins. The caller holds the volume's writer: one append at a time.
    pub(crate) fn append(&self, record: &Record, data: &[u8]) -> Result<u64, DeviceError> {
        let error = |source| failure("append to", source);
        self.check()?;
        let file = self.open().map_err(error)?;
        let position = self.tail.load(Ordering::Relaxed);
        let header = self.keys.encode(self.layer, position, record);
        if let Err(source) = file.write_all_at(&[&header, data], position) {
            // Whatever was written of it is not a record, and the next one takes its place: giving back the room is
            // a courtesy, so it may fail.
            if let Err(error) = file.set_length(position) {
                tracing::warn!(path = %self.path.display(), %error, "could not cut a failed append from the journal");
            }
            return Err(error(source));
        }
        self.tail.store(position + header.len() as u64 + data.len() as u64, Ordering::Release);
        Ok(position)
    }

    /// Reads data at a position where some have been appended.
    pub(crate) fn read(&self, position: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let file = self.file.get().ok_or_else(missing).map_err(|source| failure("read", source))?;
        file.read_exact_at(buffer, position).map_err(|source| failure("read", source))
    }

    /// Makes everything durable that has been appended.
    pub(crate) fn sync(&self) -> Result<(), DeviceError> {
        if self.synced.load(Ordering::Acquire) >= self.tail() {
            return self.check();
        }
        let mut directory_knows = self.syncing.lock();
        self.check()?;
        let tail = self.tail();
        // Many flushes at once become one: whoever waited for the lock may find everything done.
        let Some(file) = self.file().filter(|_| self.synced.load(Ordering::Acquire) < tail) else { return Ok(()) };
        self.sync_files(file, &mut directory_knows).map_err(|source| {
            self.failed.store(true, Ordering::Release);
            failure("flush", source)
        })?;
        self.synced.store(tail, Ordering::Release);
        Ok(())
    }

    fn sync_files(&self, file: &dyn File, directory_knows: &mut bool) -> io::Result<()> {
        file.sync_data()?;
        if !*directory_knows {
            if let Some(directory) = self.path.parent() {
                self.medium.sync_directory(directory)?;
            }
            *directory_knows = true;
        }
        Ok(())
    }

    /// Fails for ever once the kernel has lost data: a later flush must not say that all is well.
    fn check(&self) -> Result<(), DeviceError> {
        if self.failed.load(Ordering::Acquire) {
            return Err(failure("flush", io::Error::other("an earlier flush failed")));
        }
        Ok(())
    }

    fn open(&self) -> io::Result<&dyn File> {
        if let Some(file) = self.file() {
            return Ok(file);
        }
        let file = self.medium.open(&self.path, Open::Replace)?;
        file.write_all_at(&[&encode_file_header(self.layer)], 0)?;
        Ok(&**self.file.get_or_init(|| file))
    }
}

/// Where a layer's journal lies.
pub(crate) fn path(directory: &Path, layer: LayerId) -> PathBuf {
    directory.join(format!("{layer}.journal"))
}

/// Deletes a journal that no record refers to. One that stays is tried again when the volumes are next opened.
pub(crate) fn delete(medium: &dyn Medium, path: &Path) {
    match medium.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "could not delete a journal that is not needed any more");
        }
        _ => {}
    }
}

/// What a failed operation on a journal means for the request.
pub(crate) fn failure(operation: &'static str, source: io::Error) -> DeviceError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => DeviceError::Full,
        _ => DeviceError::Journal { operation, source },
    }
}

#[cfg(test)]
mod tests {
    use format::journal::{DATA_CHECKSUM_BYTES, RecordKind};

    use super::*;

    fn record(sequence: u64) -> Record {
        let kind = RecordKind::Zero;
        Record { kind, sequence, time_ms: 0, sector: 0, sectors: 1, data_checksum: [0; DATA_CHECKSUM_BYTES] }
    }

    #[test]
    fn a_file_is_made_with_the_first_record_and_only_for_its_owner() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let journal =
            Journal::new(medium::Host::shared(), directory.path(), LayerId([1; 16]), JournalKeys::new(&[1; 32]));
        journal.sync().unwrap();
        assert!(!journal.path().exists() && journal.is_empty());
        assert_eq!(journal.append(&record(1), &[]).unwrap(), FIRST_RECORD);
        assert_eq!(journal.append(&record(2), &[]).unwrap(), 2 * FIRST_RECORD);
        journal.sync().unwrap();
        assert_eq!(journal.synced.load(Ordering::Acquire), journal.tail());
        assert_eq!(journal.path().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(journal.path().metadata().unwrap().len(), journal.tail());
    }

    #[test]
    fn after_a_failed_flush_nothing_says_that_all_is_well() {
        let directory = tempfile::tempdir().unwrap();
        let journal =
            Journal::new(medium::Host::shared(), directory.path(), LayerId([1; 16]), JournalKeys::new(&[1; 32]));
        journal.append(&record(1), &[]).unwrap();
        journal.failed.store(true, Ordering::Release);
        assert!(journal.sync().is_err());
        assert!(journal.append(&record(2), &[]).is_err());
    }
}

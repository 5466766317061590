//! File operations whose failures name what was tried, and where.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::StoreError;

/// Makes an error of a failed operation; a full disk and an exhausted quota are [`StoreError::Full`].
pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| match is_full(&source) {
        true => StoreError::Full { path: path.to_owned() },
        false => StoreError::Io { operation, path: path.to_owned(), source },
    }
}

/// Whether there was no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Creates a directory, with its parents, for the owner alone.
pub(crate) fn create_directory(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create directory", path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(failed("synchronise directory", path))
}

/// Replaces a file's content, all or nothing, durably.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<File, StoreError> {
    let temporary = path.with_extension("new");
    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(file)
    };
    let file = write().map_err(failed("write", &temporary)).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    fs::rename(&temporary, path).map_err(failed("replace", path))?;
    sync_directory(directory)?;
    Ok(file)
}

/// How many bytes the file system can still give to us.
pub(crate) fn available_bytes(path: &Path) -> Result<u64, StoreError> {
    let status = rustix::fs::statvfs(path).map_err(|error| failed("ask for the room in", path)(error.into()))?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}

/// How many bytes the file system of an open file can still give to us, and how many it has in all.
pub(crate) fn room(file: &File) -> io::Result<(u64, u64)> {
    let status = rustix::fs::fstatvfs(file)?;
    Ok((status.f_bavail.saturating_mul(status.f_frsize), status.f_blocks.saturating_mul(status.f_frsize)))
}

/// How many bytes a file, or everything in a directory, takes on the medium. What vanishes meanwhile takes none.
pub(crate) fn allocated_bytes(path: &Path) -> Result<u64, StoreError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(failed("examine", path)(error)),
    };
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(failed("list", path)(error)),
        };
        for entry in entries {
            bytes += allocated_bytes(&entry.map_err(failed("list", path))?.path())?;
        }
    }
    Ok(bytes)
}

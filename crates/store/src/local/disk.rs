//! File operations whose failures name what was tried, and where.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use medium::{Medium, Open};

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

/// Creates a directory, durably, with those above it that are missing.
pub(crate) fn create_directory(medium: &dyn Medium, path: &Path) -> Result<(), StoreError> {
    let mut missing: Vec<PathBuf> = Vec::new();
    for directory in path.ancestors().filter(|directory| !directory.as_os_str().is_empty()) {
        if medium.exists(directory).map_err(failed("examine", directory))? {
            break;
        }
        missing.push(directory.to_owned());
    }
    medium.create_directory(path).map_err(failed("create directory", path))?;
    missing.iter().try_for_each(|directory| sync_parent(medium, directory))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(medium: &dyn Medium, path: &Path) -> Result<(), StoreError> {
    medium.sync_directory(path).map_err(failed("synchronise directory", path))
}

/// Makes a name durable.
pub(crate) fn sync_parent(medium: &dyn Medium, path: &Path) -> Result<(), StoreError> {
    path.parent().map_or(Ok(()), |parent| sync_directory(medium, parent))
}

/// How many bytes the file system can still give to us.
pub(crate) fn available_bytes(medium: &dyn Medium, path: &Path) -> Result<u64, StoreError> {
    Ok(medium.room(path).map_err(failed("ask for the room in", path))?.available_bytes)
}

/// How many bytes a file takes on the medium. One that has vanished takes none.
pub(crate) fn allocated_bytes(medium: &dyn Medium, path: &Path) -> Result<u64, StoreError> {
    match medium.open(path, Open::Existing).and_then(|file| file.allocated_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        bytes => bytes.map_err(failed("examine", path)),
    }
}

/// How many bytes the file system of an open file can still give to us, and how many it has in all.
pub(crate) fn room(file: &File) -> io::Result<(u64, u64)> {
    let status = rustix::fs::fstatvfs(file)?;
    Ok((status.f_bavail.saturating_mul(status.f_frsize), status.f_blocks.saturating_mul(status.f_frsize)))
}

/// How many bytes a directory of the host takes with everything in it. What vanishes meanwhile takes none.
pub(crate) fn directory_bytes(path: &Path) -> Result<u64, StoreError> {
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
            bytes += directory_bytes(&entry.map_err(failed("list", path))?.path())?;
        }
    }
    Ok(bytes)
}

//! The directory of a store: made whole or not at all, locked, and of a version that is understood.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use format::features::{FormatFileError, MAX_FORMAT_FILE_BYTES, StoreFormat};
use format::pack::PackSecret;

use super::disk::{create_directory, failed, sync_directory, write_atomically};
use super::pack::list_packs;
use super::roots_log::{RootsLog, random_secret};
use crate::StoreError;

const FORMAT: &str = "format";
const LOCK: &str = "lock";
const PACKS: &str = "packs";
const INDEX: &str = "index";
const ROOTS: &str = "roots";

/// A store's directory, locked as long as this lives.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    pub(crate) secret: PackSecret,
    _lock: File,
}

impl Directory {
    /// Opens a store's directory, or makes a store in it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        create_directory(path)?;
        let fresh = !fs::exists(path.join(FORMAT)).map_err(failed("examine", path))?;
        if fresh {
            require_no_other_files(path)?;
        }
        let lock = lock(path)?;
        // Another process may have made the store before the lock was ours.
        if fresh && !fs::exists(path.join(FORMAT)).map_err(failed("examine", path))? {
            create(path)?;
        }
        Ok(Self { path: path.to_owned(), secret: read_format(path)?, _lock: lock })
    }

    /// Opens a store's directory.
    pub(crate) fn open_existing(path: &Path) -> Result<Self, StoreError> {
        if !fs::exists(path.join(FORMAT)).map_err(failed("examine", path))? {
            return Err(StoreError::NotAStore { path: path.to_owned() });
        }
        Self::open(path)
    }

    pub(crate) fn packs_path(&self) -> PathBuf {
        self.path.join(PACKS)
    }

    pub(crate) fn index_path(&self) -> PathBuf {
        self.path.join(INDEX)
    }

    pub(crate) fn roots_path(&self) -> PathBuf {
        self.path.join(ROOTS)
    }
}

/// Refuses to make a store among other things. What a broken-off creation leaves behind is taken over.
fn require_no_other_files(path: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let name = entry.map_err(failed("list", path))?.file_name();
        let ours = name.to_str().and_then(|name| name.strip_suffix(".new").or(Some(name)));
        match ours {
            Some(FORMAT | LOCK | ROOTS) => {}
            Some(PACKS) if list_packs(&path.join(PACKS))?.is_empty() => {}
            Some(PACKS) => {
                let what = "the format file is missing, and with it the version of the store,".to_owned();
                return Err(StoreError::Damaged { what, path: path.to_owned() });
            }
            _ => return Err(StoreError::NotAStore { path: path.to_owned() }),
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let file_path = path.join(LOCK);
    let mut options = fs::OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&file_path).map_err(failed("open", &file_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed("lock", &file_path)(error)),
    }
}

/// Makes a store; the format file comes last, and with it the store is there.
fn create(path: &Path) -> Result<(), StoreError> {
    create_directory(&path.join(PACKS))?;
    RootsLog::create(&path.join(ROOTS))?;
    let format = StoreFormat::new(random_secret(path)?);
    write_atomically(&path.join(FORMAT), format.encode().as_bytes())?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

fn read_format(path: &Path) -> Result<PackSecret, StoreError> {
    let file_path = path.join(FORMAT);
    let mut bytes = Vec::new();
    let limit = MAX_FORMAT_FILE_BYTES as u64 + 1;
    let read = |file: File| -> io::Result<usize> { file.take(limit).read_to_end(&mut bytes) };
    File::open(&file_path).and_then(read).map_err(failed("read", &file_path))?;
    let newer = |what: String| StoreError::Newer { path: path.to_owned(), what };
    let format = StoreFormat::decode(&bytes).map_err(|error| match error {
        FormatFileError::Newer(_) => newer(error.to_string()),
        FormatFileError::Malformed => {
            StoreError::Damaged { what: "the store's format file".to_owned(), path: file_path.clone() }
        }
    })?;
    // This version knows no features yet; those that it may ignore when writing are the compatible ones.
    match format.incompatible.iter().chain(&format.read_only_compatible).next() {
        Some(feature) => Err(newer(format!("it uses the feature {feature:?}"))),
        None => Ok(format.secret),
    }
}

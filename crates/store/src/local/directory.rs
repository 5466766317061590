//! The directory of a store: made whole or not at all, locked, and of a version that is understood.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use format::features::{FormatFileError, MAX_FORMAT_FILE_BYTES, StoreFormat};
use format::pack::PackSecret;
use medium::{Lock, Medium, Open};

use super::disk::{create_directory, failed, sync_directory, sync_parent};
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
    pub(crate) medium: Arc<dyn Medium>,
    pub(crate) path: PathBuf,
    pub(crate) secret: PackSecret,
    _lock: Box<dyn Lock>,
}

impl Directory {
    /// Opens a store's directory, or makes a store in it.
    pub(crate) fn open(medium: Arc<dyn Medium>, path: &Path) -> Result<Self, StoreError> {
        create_directory(&*medium, path)?;
        let fresh = !is_store(&*medium, path)?;
        if fresh {
            require_no_other_files(&*medium, path)?;
        }
        let lock = lock(&*medium, path)?;
        // Another process may have made the store before the lock was ours.
        if fresh && !is_store(&*medium, path)? {
            create(&*medium, path)?;
        }
        let secret = read_format(&*medium, path)?;
        // What a killed process had made counts from now on, so it must survive the loss of power from now on.
        sync_directory(&*medium, path)?;
        sync_parent(&*medium, path)?;
        Ok(Self { medium, path: path.to_owned(), secret, _lock: lock })
    }

    /// Opens a store's directory.
    pub(crate) fn open_existing(medium: Arc<dyn Medium>, path: &Path) -> Result<Self, StoreError> {
        if !is_store(&*medium, path)? {
            return Err(StoreError::NotAStore { path: path.to_owned() });
        }
        Self::open(medium, path)
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

fn is_store(medium: &dyn Medium, path: &Path) -> Result<bool, StoreError> {
    medium.exists(&path.join(FORMAT)).map_err(failed("examine", path))
}

/// Refuses to make a store among other things. What a broken-off creation leaves behind is taken over.
fn require_no_other_files(medium: &dyn Medium, path: &Path) -> Result<(), StoreError> {
    for name in medium.list(path).map_err(failed("list", path))? {
        let ours = name.to_str().and_then(|name| name.strip_suffix(".new").or(Some(name)));
        match ours {
            Some(FORMAT | LOCK | ROOTS) => {}
            Some(PACKS) if list_packs(medium, &path.join(PACKS))?.is_empty() => {}
            Some(PACKS) => {
                let what = "the format file is missing, and with it the version of the store,".to_owned();
                return Err(StoreError::Damaged { what, path: path.to_owned() });
            }
            _ => return Err(StoreError::NotAStore { path: path.to_owned() }),
        }
    }
    Ok(())
}

fn lock(medium: &dyn Medium, path: &Path) -> Result<Box<dyn Lock>, StoreError> {
    let file_path = path.join(LOCK);
    medium.lock(&file_path).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => StoreError::InUse { path: path.to_owned() },
        _ => failed("lock", &file_path)(error),
    })
}

/// Makes a store; the format file comes last, and with it the store is there.
fn create(medium: &dyn Medium, path: &Path) -> Result<(), StoreError> {
    create_directory(medium, &path.join(PACKS))?;
    RootsLog::create(medium, &path.join(ROOTS))?;
    let format = StoreFormat::new(random_secret(path)?);
    let file_path = path.join(FORMAT);
    medium.replace(&file_path, format.encode().as_bytes()).map(drop).map_err(failed("write", &file_path))
}

fn read_format(medium: &dyn Medium, path: &Path) -> Result<PackSecret, StoreError> {
    let file_path = path.join(FORMAT);
    // One byte more than there can be tells a file that is too long.
    let read = || -> std::io::Result<Vec<u8>> {
        let file = medium.open(&file_path, Open::Existing)?;
        let length = usize::try_from(file.length()?).unwrap_or(usize::MAX).min(MAX_FORMAT_FILE_BYTES + 1);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let bytes = read().map_err(failed("read", &file_path))?;
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

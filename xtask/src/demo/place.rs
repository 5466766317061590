//! Where the demo lives: a directory of its own, and in it another file system for B where this machine can mount one.
//!
//! Both are gone when the value is dropped.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::mounted::{self, FileSystem, Mounted};

/// The size of B's file system; sparse, so it takes what is written.
const FILE_SYSTEM_BYTES: u64 = 16 << 30;

/// The demo's directory.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    mounted: Option<Mounted>,
}

impl Place {
    /// Makes a new directory below `parent`, and mounts B's file system in it if this machine can.
    pub(super) fn new(parent: &Path) -> Result<Place> {
        let directory = parent.join(std::process::id().to_string());
        std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let mut place = Place { directory, mounted: None };
        std::fs::create_dir_all(place.file_system())?;
        if mounted::missing(FileSystem::Xfs).is_none() {
            let image = place.directory.join("b.xfs");
            place.mounted = Some(Mounted::make(FileSystem::Xfs, &image, FILE_SYSTEM_BYTES, &place.file_system())?);
        }
        Ok(place)
    }

    /// The directory of everything.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The directory of node A.
    pub(super) fn node_a(&self) -> PathBuf {
        self.directory.join("a")
    }

    /// The directory of node B, on the other file system.
    pub(super) fn node_b(&self) -> PathBuf {
        self.file_system().join("b")
    }

    fn file_system(&self) -> PathBuf {
        self.directory.join("other")
    }

    /// Says where B's store is.
    pub(super) fn describe(&self) -> &'static str {
        if self.mounted.is_some() {
            "B's store is on an XFS of its own, on a loop device"
        } else {
            "B's store is in a directory beside A's: another file system takes root, loop devices and mkfs.xfs"
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted.take().is_some_and(|mounted| !mounted.unmount()) {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("warning: cannot remove {}: {error}", self.directory.display());
        }
    }
}

//! Where the demo lives: a directory of its own, and in it another file system for B where this machine can mount one.
//!
//! Both are gone when the value is dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Echo, run};
use crate::setup::{self, MKFS_XFS};

/// The size of B's file system; sparse, so it takes what is written.
const FILE_SYSTEM_BYTES: u64 = 16 << 30;
const MOUNT_LIMIT: Duration = Duration::from_mins(1);

/// The demo's directory.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    mounted: bool,
}

impl Place {
    /// Makes a new directory below `parent`, and mounts B's file system in it if this machine can.
    pub(super) fn new(parent: &Path) -> Result<Place> {
        let directory = parent.join(std::process::id().to_string());
        std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let mut place = Place { directory, mounted: false };
        std::fs::create_dir_all(place.file_system())?;
        if setup::is_root() && MKFS_XFS.is_present() && Path::new("/dev/loop-control").exists() {
            place.mount()?;
        }
        Ok(place)
    }

    fn mount(&mut self) -> Result<()> {
        let image = self.directory.join("b.xfs");
        std::fs::File::create(&image)?.set_len(FILE_SYSTEM_BYTES)?;
        let mkfs = setup::find("mkfs.xfs").context("mkfs.xfs")?;
        run(Command::new(mkfs).arg("-q").arg(&image), MOUNT_LIMIT, Echo::Quiet)?.success("mkfs.xfs")?;
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(self.file_system());
        run(&mut mount, MOUNT_LIMIT, Echo::Quiet)?.success("mount")?;
        self.mounted = true;
        Ok(())
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
        if self.mounted {
            "B's store is on an XFS of its own, on a loop device"
        } else {
            "B's store is in a directory beside A's: another file system takes root, loop devices and mkfs.xfs"
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.mounted {
            let unmounted =
                Command::new("umount").arg(self.file_system()).status().is_ok_and(|status| status.success());
            // Lazily, where something still has a file open; the loop device goes with the last one.
            if !unmounted
                && !Command::new("umount")
                    .arg("-l")
                    .arg(self.file_system())
                    .status()
                    .is_ok_and(|status| status.success())
            {
                eprintln!("warning: {} is still mounted", self.file_system().display());
                return;
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("warning: cannot remove {}: {error}", self.directory.display());
        }
    }
}

//! File systems of one's own in image files, on free loop devices: made, mounted, and gone with the value.
//!
//! Takes root and the programs that make them; [`missing`] says what is not there.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Echo, run};
use crate::setup::{self, MKFS_BTRFS, MKFS_EXT4, MKFS_XFS, Tool};

const LIMIT: Duration = Duration::from_mins(1);

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Shares the room of files.
    Btrfs,
    /// Does not.
    Ext4,
    /// Shares the room of files.
    Xfs,
}

impl FileSystem {
    fn tool(self) -> Tool {
        match self {
            Self::Btrfs => MKFS_BTRFS,
            Self::Ext4 => MKFS_EXT4,
            Self::Xfs => MKFS_XFS,
        }
    }

    /// Its name, as the kernel has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// Says what keeps this machine from mounting such a file system, if anything does.
#[must_use]
pub fn missing(kind: FileSystem) -> Option<String> {
    let name = kind.name();
    if !setup::is_root() {
        return Some(format!("mounting {name} takes root"));
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some(format!("mounting {name} takes loop devices (/dev/loop-control)"));
    }
    let absent = setup::missing(&[kind.tool()]);
    if !absent.is_empty() {
        return Some(format!("missing: {}", setup::describe(&absent)));
    }
    // A module that is not loaded yet is loaded by the mount.
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let loads =
        || Command::new("modprobe").args(["--dry-run", "--quiet", name]).status().is_ok_and(|done| done.success());
    (!known.split_whitespace().any(|word| word == name) && !loads()).then(|| format!("this kernel has no {name}"))
}

/// A file system that is mounted until the value is dropped.
#[derive(Debug)]
pub struct Mounted {
    directory: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// Makes a file system in a new, sparse image file and mounts it on a new directory.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn make(kind: FileSystem, image: &Path, size_bytes: u64, directory: &Path) -> Result<Self> {
        File::create(image).with_context(|| format!("make {}", image.display()))?.set_len(size_bytes)?;
        let probe = kind.tool().probe;
        let mkfs = setup::find(probe).context(probe)?;
        run(Command::new(mkfs).arg("-q").arg(image), LIMIT, Echo::Quiet)?.success(probe)?;
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        let mut mount = Command::new("mount");
        // The loop device goes with the mount.
        mount.args(["-t", kind.name(), "-o", "loop"]).arg(image).arg(directory);
        run(&mut mount, LIMIT, Echo::Quiet)?.success("mount")?;
        Ok(Self { directory: directory.to_owned(), mounted: true })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Unmounts it, and says whether that was possible: else its files are still there.
    pub fn unmount(mut self) -> bool {
        self.try_to_unmount()
    }

    fn try_to_unmount(&mut self) -> bool {
        let unmount = |how: &[&str]| {
            let done = Command::new("umount").args(how).arg(&self.directory).output();
            done.is_ok_and(|output| output.status.success())
        };
        // Lazily, where something still has a file open; the loop device goes with the last one.
        self.mounted = self.mounted && !unmount(&[]) && !unmount(&["-l"]);
        !self.mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.try_to_unmount() {
            eprintln!("warning: {} is still mounted", self.directory.display());
        }
    }
}

//! A small file system, to be filled.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use xtask::tally::SKIP_MARK;

/// A small file system in memory, unmounted in the end.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one in a new directory, of a size in MiB; `None`, and said so, where nobody is root.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn mount_or_skip(path: PathBuf, mib: u32) -> Result<Option<Self>> {
        if !xtask::setup::is_root() {
            crate::say(&format!("{SKIP_MARK}a full disk: needs root, to mount a small tmpfs"));
            return Ok(None);
        }
        std::fs::create_dir(&path)?;
        let size = format!("size={mib}m,mode=0700");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).status();
        ensure!(status.context("mount")?.success(), "mount failed");
        Ok(Some(Self(path)))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes all the room that is left, and returns the file that does.
    ///
    /// # Errors
    /// When there is room all the same.
    pub fn fill(&self) -> Result<PathBuf> {
        let ballast = self.0.join("ballast");
        // A last page may be left over by large pieces.
        for piece in ["bs=64k", "bs=4k"] {
            let output = format!("of={}", ballast.display());
            let dd = ["if=/dev/zero", piece, "oflag=append", "conv=notrunc", &output];
            let filled = Command::new("dd").args(dd).output().context("dd")?;
            ensure!(!filled.status.success(), "it ends when the file system is full");
        }
        Ok(ballast)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

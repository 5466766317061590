//! Loop devices over a file: made, found again, told that the file has grown, and freed.
//!
//! What is there is read from sysfs; changes are made by `losetup` of util-linux, which every Debian has: its ioctls would
//! need unsafe code here, or a crate that needs libclang to build. A device is known by its file, never remembered, so that
//! what is found is what the kernel has.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::kernel_block::KernelBlock;

/// The driver's name.
const DRIVER: &str = "loop";
/// Where one asks for a free device.
const CONTROL: &str = "/dev/loop-control";

/// A loop device could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoopError {
    /// `losetup` could not be run.
    #[error("could not run losetup")]
    Run(#[source] io::Error),
    /// The file does not say how large it is.
    #[error("could not look at the device's file")]
    File(#[source] io::Error),
    /// `losetup` failed.
    #[error("losetup failed: {0}")]
    Failed(
        /// What it said.
        String,
    ),
}

/// A loop device that has a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    block: KernelBlock,
}

/// What keeps this machine from having loop devices of a file, if anything does.
#[must_use]
pub fn missing() -> Option<String> {
    if fs::metadata(CONTROL).is_ok_and(|found| found.file_type().is_char_device()) {
        program().is_none().then(|| "there is no losetup (Debian package mount)".to_owned())
    } else {
        Some(format!("there is no {CONTROL} (modprobe loop)"))
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join("losetup")).find(|file| file.is_file())
}

fn losetup(arguments: impl FnOnce(&mut Command)) -> Result<String, LoopError> {
    let found = program().ok_or_else(|| LoopError::Run(io::ErrorKind::NotFound.into()))?;
    let mut command = Command::new(found);
    arguments(command.env("LC_ALL", "C"));
    let output = command.output().map_err(LoopError::Run)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(LoopError::Failed(text(&output.stderr))) }
}

impl LoopDevice {
    /// Gives a file a device, which reads and writes it directly: that of a number if it is free, else any.
    ///
    /// # Errors
    /// See [`LoopError`].
    pub fn make(file: &Path, read_only: bool, preferred: Option<u32>) -> Result<LoopDevice, LoopError> {
        let make = |place: &str| {
            losetup(|command| {
                command.args(["--direct-io=on", "--show"]);
                command.args(read_only.then_some("--read-only"));
                command.arg(place).arg(file);
            })
        };
        let wanted = preferred
            .map(|number| LoopDevice { block: KernelBlock::new(DRIVER, number) })
            .filter(|device| device.file().is_none());
        let made = match wanted.map(|device| make(&device.block.path().to_string_lossy())) {
            Some(Ok(made)) => made,
            Some(Err(_)) | None => make("--find")?,
        };
        let block = made.strip_prefix("/dev/").and_then(|name| KernelBlock::named(DRIVER, name));
        let block = block.ok_or_else(|| LoopError::Failed(format!("it named no loop device: {made:?}")))?;
        if block.attribute("loop/dio").as_deref() != Some("1") {
            tracing::warn!(device = %block.path().display(), "the kernel does not use direct I/O for it");
        }
        Ok(LoopDevice { block })
    }

    /// The devices of all files for which that is wanted.
    pub fn find(wanted: impl Fn(&Path) -> bool) -> Vec<LoopDevice> {
        let devices = KernelBlock::all(DRIVER).into_iter().map(|block| LoopDevice { block });
        devices.filter(|device| device.file().is_some_and(|file| wanted(&file))).collect()
    }

    /// The block device.
    #[must_use]
    pub fn block(&self) -> KernelBlock {
        self.block
    }

    /// The file that it has, if it has one.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        self.block.attribute("loop/backing_file").map(PathBuf::from)
    }

    /// Whether it loses its file as soon as nobody uses it any more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.block.attribute("loop/autoclear").as_deref() == Some("1")
    }

    /// Makes it as large as its file is now.
    ///
    /// # Errors
    /// See [`LoopError`].
    pub fn refresh_size(&self) -> Result<(), LoopError> {
        // Older kernels believe what was last said of the file's size: this has them ask its file system.
        if let Some(Err(error)) = self.file().map(fs::metadata) {
            return Err(LoopError::File(error));
        }
        losetup(|command| {
            command.arg("--set-capacity").arg(self.block.path());
        })
        .map(drop)
    }

    /// Takes its file from it: at once, or when whoever has it open closes it.
    ///
    /// # Errors
    /// See [`LoopError`].
    pub fn free(&self) -> Result<(), LoopError> {
        losetup(|command| {
            command.arg("--detach").arg(self.block.path());
        })
        .map(drop)
    }
}

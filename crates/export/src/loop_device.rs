//! Loop devices over a file: made, found again, told that the file has grown, asked who uses them, and freed.
//!
//! What is there is read from sysfs; changes are made by `losetup` of util-linux, which every Debian has: its ioctls would
//! need unsafe code here, or a crate that needs libclang to build. A device is known by its file, never remembered, so that
//! what is found is what the kernel has.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::OFlags;

use crate::mounts::mounts;

/// The driver's device number.
const MAJOR: u32 = 7;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    number: u32,
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
        let wanted = preferred.map(|number| LoopDevice { number }).filter(|device| device.file().is_none());
        let made = match wanted.map(|device| make(&device.path().to_string_lossy())) {
            Some(Ok(made)) => made,
            Some(Err(_)) | None => make("--find")?,
        };
        let device = made.strip_prefix("/dev/").and_then(LoopDevice::named);
        let device = device.ok_or_else(|| LoopError::Failed(format!("it named no loop device: {made:?}")))?;
        if device.attribute("loop/dio").as_deref() != Some("1") {
            tracing::warn!(device = %device.path().display(), "the kernel does not use direct I/O for it");
        }
        Ok(device)
    }

    /// The devices of all files for which that is wanted.
    pub fn find(wanted: impl Fn(&Path) -> bool) -> Vec<LoopDevice> {
        let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let devices = names.filter_map(|name| LoopDevice::named(&name));
        devices.filter(|device| device.file().is_some_and(|file| wanted(&file))).collect()
    }

    fn named(name: &str) -> Option<LoopDevice> {
        name.strip_prefix("loop")?.parse().ok().map(|number| LoopDevice { number })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    fn attribute(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.directory().join(name)).ok()?;
        Some(text.trim_end_matches('\n').to_owned())
    }

    fn directory(&self) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}", self.number))
    }

    /// The file that it has, if it has one.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        self.attribute("loop/backing_file").map(PathBuf::from)
    }

    /// Whether it loses its file as soon as nobody uses it any more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.attribute("loop/autoclear").as_deref() == Some("1")
    }

    /// Its size in bytes, as the kernel has it.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        self.attribute("size")?.parse::<u64>().ok()?.checked_mul(512)
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
            command.arg("--set-capacity").arg(self.path());
        })
        .map(drop)
    }

    /// Takes its file from it: at once, or when whoever has it open closes it.
    ///
    /// # Errors
    /// See [`LoopError`].
    pub fn free(&self) -> Result<(), LoopError> {
        losetup(|command| {
            command.arg("--detach").arg(self.path());
        })
        .map(drop)
    }

    /// Who uses it, in words for people; nobody where it is empty.
    #[must_use]
    pub fn users(&self) -> Vec<String> {
        let number = format!("{MAJOR}:{}", self.number);
        let mut users: Vec<String> = mounts()
            .into_iter()
            .filter(|mount| mount.device == number)
            .map(|mount| format!("mounted at {}", mount.point.display()))
            .collect();
        let holders = fs::read_dir(self.directory().join("holders")).into_iter().flatten().filter_map(Result::ok);
        users.extend(holders.map(|holder| format!("part of {}", holder.file_name().to_string_lossy())));
        users.extend(openers(&self.path()));
        if users.is_empty() && self.is_claimed() {
            users.push("claimed by the kernel, or mounted by someone else".to_owned());
        }
        users
    }

    /// Whether somebody has it for himself: a mount anywhere, swap, another device.
    fn is_claimed(&self) -> bool {
        let flags = OFlags::EXCL.bits().cast_signed();
        let opened = fs::File::options().read(true).custom_flags(flags).open(self.path());
        opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// The processes that have a device open.
fn openers(device: &Path) -> Vec<String> {
    let numbers = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u32>().ok();
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(numbers);
    let has_open = |process: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().filter_map(Result::ok);
        descriptors.into_iter().any(|one| fs::read_link(one.path()).is_ok_and(|target| target == device))
    };
    let describe = |process: u32| {
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        format!("open in process {process} ({})", name.trim_end())
    };
    processes.filter(has_open).map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_devices_or_not() {
        assert_eq!(LoopDevice::named("loop12"), Some(LoopDevice { number: 12 }));
        for other in ["loop", "loopx", "sda", "loop1p1", "loop-1"] {
            assert_eq!(LoopDevice::named(other), None, "{other}");
        }
        assert_eq!(LoopDevice { number: 3 }.path(), Path::new("/dev/loop3"));
    }

    #[test]
    fn who_has_a_file_open_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = openers(file.path());
        assert!(found.iter().any(|user| user.contains(&format!("process {} ", std::process::id()))), "{found:?}");
        let path = file.into_temp_path();
        assert!(openers(&path).is_empty());
    }
}

//! Block devices of the kernel as sysfs shows them: what they are called, how large they are, who uses them.
//!
//! Invariant: what is there is asked of the kernel each time and never remembered.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::mounts::mounts;

/// Where the kernel shows its block devices.
const SYSFS: &str = "/sys/block";

/// A block device of a driver that numbers its devices, which need not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelBlock {
    driver: &'static str,
    number: u32,
}

impl KernelBlock {
    /// The device of a driver (`loop`, `nbd`) with a number.
    #[must_use]
    pub fn new(driver: &'static str, number: u32) -> KernelBlock {
        KernelBlock { driver, number }
    }

    /// All devices of a driver, whatever their state.
    #[must_use]
    pub fn all(driver: &'static str) -> Vec<KernelBlock> {
        let entries = fs::read_dir(SYSFS).into_iter().flatten().filter_map(Result::ok);
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| KernelBlock::named(driver, &name)).collect()
    }

    /// The device of a driver that has a name, such as `loop0`.
    #[must_use]
    pub fn named(driver: &'static str, name: &str) -> Option<KernelBlock> {
        name.strip_prefix(driver)?.parse().ok().map(|number| KernelBlock { driver, number })
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.number
    }

    /// Its name, such as `loop0`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}{}", self.driver, self.number)
    }

    /// Where it is, such as `/dev/loop0`.
    #[must_use]
    pub fn path(self) -> PathBuf {
        Path::new("/dev").join(self.name())
    }

    /// Where the kernel shows it.
    #[must_use]
    pub fn directory(self) -> PathBuf {
        Path::new(SYSFS).join(self.name())
    }

    /// What the kernel shows of it under a name.
    #[must_use]
    pub fn attribute(self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.directory().join(name)).ok()?;
        Some(text.trim_end_matches('\n').to_owned())
    }

    /// Its size in bytes, as the kernel has it.
    #[must_use]
    pub fn size_bytes(self) -> Option<u64> {
        self.attribute("size")?.parse::<u64>().ok()?.checked_mul(512)
    }

    /// Has its driver look at each request that is not answered so often. Where that cannot be said, requests may wait for longer
    /// than necessary.
    pub fn set_request_timer(self, timer: Duration) {
        let place = self.directory().join("queue/io_timeout");
        if let Err(error) = fs::write(place, timer.as_millis().to_string()) {
            tracing::warn!(%error, device = %self.path().display(), "requests may wait longer than necessary");
        }
    }

    /// Who uses it or a partition of it, in words for people; nobody where it is empty.
    #[must_use]
    pub fn users(self) -> Vec<String> {
        let mut users = users_of(&self.directory(), &self.path());
        let partitions = fs::read_dir(self.directory()).into_iter().flatten().filter_map(Result::ok);
        for partition in partitions.filter(|entry| entry.path().join("partition").exists()) {
            users.extend(users_of(&partition.path(), &Path::new("/dev").join(partition.file_name())));
        }
        if users.is_empty() && self.is_claimed() {
            users.push("claimed by the kernel, or mounted by someone else".to_owned());
        }
        users
    }

    /// Whether somebody has it for himself: a mount anywhere, swap, another device.
    fn is_claimed(self) -> bool {
        let flags = OFlags::EXCL.bits().cast_signed();
        let opened = fs::File::options().read(true).custom_flags(flags).open(self.path());
        opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// Who uses a device or partition that the kernel shows at one place and that is opened at another.
fn users_of(shown: &Path, device: &Path) -> Vec<String> {
    let number = fs::read_to_string(shown.join("dev")).unwrap_or_default();
    let mounted = mounts().into_iter().filter(|mount| mount.device == number.trim_end());
    let mut users: Vec<String> = mounted.map(|mount| format!("mounted at {}", mount.point.display())).collect();
    let holders = fs::read_dir(shown.join("holders")).into_iter().flatten().filter_map(Result::ok);
    users.extend(holders.map(|holder| format!("part of {}", holder.file_name().to_string_lossy())));
    users.extend(openers(device));
    users
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
        assert_eq!(KernelBlock::named("loop", "loop12"), Some(KernelBlock::new("loop", 12)));
        for other in ["loop", "loopx", "sda", "loop1p1", "loop-1", "nbd0"] {
            assert_eq!(KernelBlock::named("loop", other), None, "{other}");
        }
        assert_eq!(KernelBlock::new("nbd", 3).path(), Path::new("/dev/nbd3"));
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

//! Finds the programs that the commands need, and as root on Debian installs those that are missing.
//!
//! Nothing is installed that is already there, and nothing is left out silently: what stays missing is named.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Echo, run};

/// How long one apt-get may take, waiting for another one's lock included.
const INSTALL_LIMIT: Duration = Duration::from_mins(15);

/// A program of the system, and the Debian package that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// A command to be found on the path, or a file when it begins with `/`.
    pub probe: &'static str,
    /// The Debian package.
    pub package: &'static str,
    /// What cannot be done without it.
    pub wanted_for: &'static str,
}

const fn tool(probe: &'static str, package: &'static str, wanted_for: &'static str) -> Tool {
    Tool { probe, package, wanted_for }
}

/// Runs virtual machines.
pub const QEMU: Tool = tool("qemu-system-x86_64", "qemu-system-x86", "virtual machines");
/// Reads and writes other disk formats.
pub const QEMU_IMG: Tool = tool("qemu-img", "qemu-utils", "qcow2, VMDK, VHDX and VDI images");
/// Makes Debian root file systems.
pub const MMDEBSTRAP: Tool = tool("mmdebstrap", "mmdebstrap", "the Debian disk images");
/// Makes ext4 file systems.
pub const MKFS_EXT4: Tool = tool("mkfs.ext4", "e2fsprogs", "the disk images and the small guest");
/// Makes XFS file systems.
pub const MKFS_XFS: Tool = tool("mkfs.xfs", "xfsprogs", "a store on another file system");
/// Makes btrfs file systems.
pub const MKFS_BTRFS: Tool = tool("mkfs.btrfs", "btrfs-progs", "a store that shares room with files");
/// The one program of the small guest.
pub const BUSYBOX: Tool = tool("/usr/share/doc/busybox-static", "busybox-static", "the small guest");
/// Packs the small guest.
pub const CPIO: Tool = tool("cpio", "cpio", "the small guest");
/// Finds the kernel modules of the small guest.
pub const MODPROBE: Tool = tool("modprobe", "kmod", "the small guest");
/// Judges NBD servers from outside.
pub const NBDINFO: Tool = tool("nbdinfo", "libnbd-bin", "judging the NBD exports by libnbd");
/// Scripts of libnbd, which judge what a client is told.
pub const NBDSH: Tool = tool("nbdsh", "python3-libnbd", "judging the NBD exports by libnbd's scripts");
/// Reads, writes and verifies over NBD.
pub const FIO: Tool = tool("fio", "fio", "judging the NBD exports by fio");
/// Serves NBD, as others do.
pub const NBDKIT: Tool = tool("nbdkit", "nbdkit", "reading and writing the NBD exports of others");

/// Builds the tests of libnbd.
pub const GCC: Tool = tool("gcc", "gcc", "building libnbd's tests");
/// What the tests of libnbd are built with.
pub const LIBNBD: Tool = tool("/usr/include/libnbd.h", "libnbd-dev", "building libnbd's tests");
/// Connects the tests of libnbd with the server.
pub const SOCAT: Tool = tool("socat", "socat", "running libnbd's tests");
/// Makes certificates and keys.
pub const CERTTOOL: Tool = tool("certtool", "gnutls-bin", "judging the NBD exports over TLS");
/// Starts a server on a socket that exists already, as systemd does.
pub const SOCKET_ACTIVATE: Tool = tool("systemd-socket-activate", "systemd", "judging socket activation");

/// Makes block devices of files.
pub const LOSETUP: Tool = tool("losetup", "mount", "devices of the kernel");
/// Discards and zeroes what is on block devices.
pub const BLKDISCARD: Tool = tool("blkdiscard", "util-linux", "judging devices of the kernel");

/// What a Ganeti cluster in namespaces needs.
pub const GANETI: [Tool; 10] = [
    QEMU,
    QEMU_IMG,
    tool("gnt-cluster", "ganeti", "a Ganeti cluster"),
    tool("/usr/share/ganeti/default", "ganeti-3.0", "a Ganeti cluster"),
    SOCAT,
    tool("/usr/sbin/sshd", "openssh-server", "a Ganeti cluster"),
    tool("ip", "iproute2", "a Ganeti cluster"),
    tool("arping", "iputils-arping", "a Ganeti cluster"),
    tool("fping", "fping", "a Ganeti cluster"),
    tool("nsenter", "util-linux", "a Ganeti cluster"),
];

/// What everything else wants.
const OTHERS: [Tool; 20] = [
    QEMU,
    QEMU_IMG,
    MMDEBSTRAP,
    MKFS_EXT4,
    MKFS_XFS,
    MKFS_BTRFS,
    BUSYBOX,
    CPIO,
    MODPROBE,
    NBDINFO,
    NBDSH,
    FIO,
    NBDKIT,
    GCC,
    LIBNBD,
    SOCAT,
    CERTTOOL,
    SOCKET_ACTIVATE,
    LOSETUP,
    BLKDISCARD,
];

/// Everything that any command wants, each once.
#[must_use]
pub fn all() -> Vec<Tool> {
    let further = GANETI.into_iter().filter(|tool| !OTHERS.contains(tool));
    OTHERS.into_iter().chain(further).collect()
}

impl Tool {
    /// Tells whether the tool is on this machine.
    #[must_use]
    pub fn is_present(&self) -> bool {
        if self.probe.starts_with('/') { Path::new(self.probe).exists() } else { find(self.probe).is_some() }
    }
}

/// Finds a command on the path, or in the system's own folders, which are not on everybody's path.
#[must_use]
pub fn find(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(command)).find(|file| file.is_file())
}

/// Tells whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Lists those of `tools` that are not on this machine.
#[must_use]
pub fn missing(tools: &[Tool]) -> Vec<Tool> {
    tools.iter().filter(|tool| !tool.is_present()).copied().collect()
}

/// Says which tools are missing and what for, in one line.
#[must_use]
pub fn describe(tools: &[Tool]) -> String {
    let described: Vec<String> = tools
        .iter()
        .map(|tool| format!("{} (Debian package {}, for {})", tool.probe, tool.package, tool.wanted_for))
        .collect();
    described.join(", ")
}

/// Installs those of `tools` that are missing, where this process may; returns what is missing afterwards.
///
/// # Errors
/// When apt-get fails.
pub fn install(tools: &[Tool]) -> Result<Vec<Tool>> {
    let wanted = missing(tools);
    if wanted.is_empty() || !is_root() || find("apt-get").is_none() {
        return Ok(wanted);
    }
    println!("installing {}", wanted.iter().map(|tool| tool.package).collect::<Vec<_>>().join(" "));
    apt_get(&["update"]).context("update the list of packages")?;
    let mut arguments = vec!["install".to_owned(), "-y".to_owned(), "--no-install-recommends".to_owned()];
    let mut packages: Vec<String> = wanted.iter().map(|tool| tool.package.to_owned()).collect();
    if wanted.contains(&QEMU) {
        // A newer qemu-utils (from backports) keeps Debian's own qemu-system-x86 out: both are taken from the same release.
        if let Some(version) = candidate(QEMU.package).filter(|version| offers(QEMU_IMG.package, version)) {
            arguments.push("--allow-downgrades".to_owned());
            packages.retain(|package| package != QEMU_IMG.package);
            packages.push(format!("{}={version}", QEMU_IMG.package));
        }
    }
    arguments.extend(packages);
    apt_get(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).context("install packages")?;
    Ok(missing(tools))
}

fn apt_get(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    run(&mut command, INSTALL_LIMIT, Echo::Quiet)?.success("apt-get")
}

fn candidate(package: &str) -> Option<String> {
    let policy = apt_cache(&["policy", package])?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    Some(version.to_owned())
}

fn offers(package: &str, version: &str) -> bool {
    apt_cache(&["madison", package])
        .is_some_and(|table| table.lines().any(|line| line.split('|').any(|cell| cell.trim() == version)))
}

fn apt_cache(arguments: &[&str]) -> Option<String> {
    let output = Command::new("apt-cache").args(arguments).env("LC_ALL", "C").output().ok()?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        let absent = tool("no-such-program", "no-such-package", "nothing");
        assert_eq!(missing(&[tool("sh", "dash", "scripts"), absent]), [absent]);
        assert_eq!(describe(&[absent]), "no-such-program (Debian package no-such-package, for nothing)");
    }
}

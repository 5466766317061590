//! Makes the disks that brant is tried on, and two small machines that boot in seconds; what is there is kept.
//!
//! The making itself is in shell scripts (`assets/`), since it is all calls of other programs; here it is checked that it can
//! work at all, and said plainly what is missing where it cannot. A file stands in its place only when it is complete.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::{Echo, Outcome, run};
use crate::setup::{self, BLKDISCARD, BUSYBOX, CPIO, MKFS_EXT4, MMDEBSTRAP, MODPROBE, Tool};
use crate::workspace;

/// How long making one set may take.
const MAKING_LIMIT: Duration = Duration::from_mins(30);

/// With which a script says that the system knows no package with such a kernel.
const NO_KERNEL: i32 = 3;

/// Which Debian disks are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// v1 only: a Debian system as installed.
    First,
    /// v1 to v4: the same system with services installed, loaded with data, and a little later.
    All,
}

/// A kernel with the initial file system that it boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
}

/// Returns where the images are kept between runs.
#[must_use]
pub fn default_directory() -> PathBuf {
    workspace::target().join("images")
}

/// Returns the file of a Debian disk (`v1` …).
#[must_use]
pub fn disk(directory: &Path, version: &str) -> PathBuf {
    directory.join(format!("{version}.raw"))
}

/// Returns the kernel that boots the Debian disks, with `root=/dev/vda console=ttyS0 rw`.
#[must_use]
pub fn debian_kernel(directory: &Path) -> Kernel {
    Kernel { kernel: directory.join("vmlinuz"), initrd: directory.join("initrd.img") }
}

/// Returns the kernel of the small guest, which needs no disk to boot.
#[must_use]
pub fn guest_kernel(directory: &Path) -> Kernel {
    Kernel { kernel: directory.join("guest-vmlinuz"), initrd: directory.join("guest-initrd.img") }
}

/// Returns the kernel of the machine for a node, whose initial file system takes a second archive with what it runs.
#[must_use]
pub fn host_kernel(directory: &Path) -> Kernel {
    Kernel { kernel: directory.join("host-vmlinuz"), initrd: directory.join("host-initrd.img") }
}

/// Makes what `directory` lacks of the Debian disks and the small machines.
///
/// # Errors
/// When something that it takes is missing here (the error names all of it), or the making fails.
pub fn make(directory: &Path, disks: Disks) -> Result<()> {
    make_guest(directory)?;
    if let Some(reason) = make_host(directory)? {
        println!("the machine for a node was not made: {reason}");
    }
    make_disks(directory, disks)
}

/// Makes what `directory` lacks of the Debian disks.
///
/// # Errors
/// As [`make`].
pub fn make_disks(directory: &Path, disks: Disks) -> Result<()> {
    let versions: &[&str] = match disks {
        Disks::First => &["v1"],
        Disks::All => &["v1", "v2", "v3", "v4"],
    };
    if versions.iter().all(|version| disk(directory, version).exists()) {
        return Ok(());
    }
    if let Some(reason) = disks_lack()? {
        bail!("the Debian disks cannot be made here: {reason}");
    }
    script("disk-images.sh", directory, versions)
}

/// Whether a small machine is there whole, and not older than what says what is in it: else it is made anew.
fn is_made_of(machine: &Kernel, asset: &str) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let asset = workspace::assets().join(asset);
    // The script moves the kernel into place after the initial file system.
    machine.kernel.exists()
        && changed(&machine.initrd).is_some_and(|made| changed(&asset).is_none_or(|asset| asset <= made))
}

/// Makes the small guest unless `directory` has it. Needs no root once its tools are there.
///
/// # Errors
/// As [`make`].
pub fn make_guest(directory: &Path) -> Result<()> {
    if is_made_of(&guest_kernel(directory), "guest-init.sh") {
        return Ok(());
    }
    if let Some(reason) = guest_lacks()? {
        bail!("the small guest cannot be made here: {reason}");
    }
    script("guest-image.sh", directory, &["guest"])
}

/// Makes the machine for a node unless `directory` has it; says what is missing where it cannot be had here. Needs no root
/// once its tools are there.
///
/// # Errors
/// When installing or making fails.
pub fn make_host(directory: &Path) -> Result<Option<String>> {
    if is_made_of(&host_kernel(directory), "guest-image.sh") {
        return Ok(None);
    }
    let missing = setup::install(&[BUSYBOX, CPIO, MODPROBE, MKFS_EXT4, BLKDISCARD])?;
    if !missing.is_empty() {
        return Ok(Some(format!("missing: {}", setup::describe(&missing))));
    }
    match run_script("guest-image.sh", directory, &["host"])? {
        output if output.status.code() == Some(NO_KERNEL) => Ok(Some("apt knows no cloud kernel 6.12".to_owned())),
        output => output.success("guest-image.sh").map(|_| None),
    }
}

/// Says what is missing to make the small guest, after installing what can be installed; nothing when all is there.
///
/// # Errors
/// When installing fails.
pub fn guest_lacks() -> Result<Option<String>> {
    let missing = setup::install(&[BUSYBOX, CPIO, MODPROBE, MKFS_EXT4])?;
    Ok((!missing.is_empty()).then(|| format!("missing: {}", setup::describe(&missing))))
}

/// Says what is missing to make Debian disks, after installing what can be installed; nothing when all is there.
///
/// # Errors
/// When installing fails.
pub fn disks_lack() -> Result<Option<String>> {
    let missing: Vec<Tool> = setup::install(&[MMDEBSTRAP, MKFS_EXT4])?;
    let mut reasons = Vec::new();
    if !setup::is_root() {
        reasons.push("it needs root, to mount".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        reasons.push("this machine has no loop devices (/dev/loop-control)".to_owned());
    }
    if !missing.is_empty() {
        reasons.push(format!("missing: {}", setup::describe(&missing)));
    }
    Ok((!reasons.is_empty()).then(|| reasons.join("; ")))
}

fn script(name: &str, directory: &Path, arguments: &[&str]) -> Result<()> {
    run_script(name, directory, arguments)?.success(name).map(drop)
}

fn run_script(name: &str, directory: &Path, arguments: &[&str]) -> Result<Outcome> {
    std::fs::create_dir_all(directory)?;
    let directory = directory.canonicalize()?;
    let assets = workspace::assets();
    let mut command = Command::new("bash");
    command.arg(assets.join(name)).arg(directory).arg(&assets).args(arguments);
    run(&mut command, MAKING_LIMIT, Echo::Live)
}

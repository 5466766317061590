//! End-to-end tests: whole nodes as processes, and virtual machines on their volumes. This library holds what they share.
//!
//! The tests know brant only from outside, as its users do. A test that cannot run on this machine says so in a line that
//! begins with `SKIPPED: ` and counts as skipped.
#![expect(clippy::print_stdout, reason = "what is skipped is said on standard output")]

mod cluster;
pub mod devices;
mod host;
pub mod islands;
mod judges;
pub mod ledger;
mod load;
pub mod members;
mod pair;
mod small_disk;

use std::path::{Path, PathBuf};

use xtask::images::{self, Kernel};
use xtask::mounted::{self, FileSystem};
use xtask::setup::{self, BLKDISCARD, FIO, LOSETUP, MKFS_EXT4};
use xtask::tally::SKIP_MARK;
use xtask::workspace;

/// Returns the program under test: `BRANT_BIN`, else the one that cargo built last.
#[must_use]
pub fn brant() -> PathBuf {
    std::env::var_os("BRANT_BIN").map_or_else(|| workspace::target().join("debug/brant"), PathBuf::from)
}

pub use cluster::{Cluster, ClusterNode, JobEnd, Listener, Printed, Switch, can_run_ganeti_or_skip};
pub use host::{Host, host_or_skip, is_inside};
pub use judges::Judges;
pub use load::Load;
pub use members::Members;
pub use pair::{Pair, attach, connect, nothing_missing, read_disk, received, write_disk};
pub use small_disk::SmallDisk;

/// Returns the kernel of the small guest, or says what is missing to run it and returns nothing.
#[must_use]
pub fn guest_or_skip() -> Option<Kernel> {
    let guest = images::guest_kernel(&image_directory());
    can_run(guest.kernel.exists(), "the small guest").then_some(guest)
}

/// Returns the directory of the Debian disk, or says what is missing to run it and returns nothing.
#[must_use]
pub fn debian_or_skip() -> Option<PathBuf> {
    let directory = image_directory();
    can_run(images::disk(&directory, "v1").exists(), "the Debian disk").then_some(directory)
}

/// Whether such a file system can be mounted and what is shared in it can be told; says what is missing where it cannot.
#[must_use]
pub fn can_mount_or_skip(kind: FileSystem) -> bool {
    // filefrag, which tells what is shared, comes with mkfs.ext4.
    let absent = setup::missing(&[MKFS_EXT4]);
    let described = (!absent.is_empty()).then(|| format!("missing: {}", setup::describe(&absent)));
    let missing = mounted::missing(kind).or(described);
    if let Some(missing) = &missing {
        println!("{SKIP_MARK}{missing}");
    }
    missing.is_none()
}

/// Whether volumes can be block devices of the kernel here; says what is missing where they cannot.
#[must_use]
pub fn can_have_devices_or_skip() -> bool {
    let tools = setup::missing(&[LOSETUP, BLKDISCARD, FIO, MKFS_EXT4]);
    let absent = ["/dev/fuse", "/dev/loop-control"].into_iter().find(|path| !Path::new(path).exists());
    let missing = if !setup::is_root() {
        Some("devices of the kernel take root".to_owned())
    } else if let Some(path) = absent {
        Some(format!("devices of the kernel take {path}"))
    } else {
        (!tools.is_empty()).then(|| format!("missing: {}", setup::describe(&tools)))
    };
    if let Some(missing) = &missing {
        println!("{SKIP_MARK}{missing}");
    }
    missing.is_none()
}

/// Says that a test cannot run here, and why.
pub fn skip(missing: &str) {
    say(&format!("{SKIP_MARK}{missing}"));
}

/// Says something on standard output, where it is seen if the test fails.
pub fn say(line: &str) {
    println!("{line}");
}

fn image_directory() -> PathBuf {
    std::env::var_os("BRANT_IMAGES").map_or_else(images::default_directory, PathBuf::from)
}

fn can_run(made: bool, what: &str) -> bool {
    if !made {
        println!("{SKIP_MARK}{what} has not been made (cargo xtask images)");
    } else if !setup::QEMU.is_present() {
        println!("{SKIP_MARK}missing: {}", setup::describe(&[setup::QEMU]));
    }
    made && setup::QEMU.is_present()
}

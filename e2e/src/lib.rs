//! End-to-end tests: whole nodes as processes, and virtual machines on their volumes. This library holds what they share.
//!
//! The tests know brant only from outside, as its users do. A test that cannot run on this machine says so in a line that
//! begins with `SKIPPED: ` and counts as skipped.
#![expect(clippy::print_stdout, reason = "what is skipped is said on standard output")]

use std::path::PathBuf;

use xtask::images::{self, Kernel};
use xtask::setup;
use xtask::tally::SKIP_MARK;

/// Returns the kernel of the small guest, or says what is missing to run it and returns nothing.
#[must_use]
pub fn guest_or_skip() -> Option<Kernel> {
    let directory = std::env::var_os("BRANT_IMAGES").map_or_else(images::default_directory, PathBuf::from);
    let guest = images::guest_kernel(&directory);
    if !guest.kernel.exists() {
        println!("{SKIP_MARK}the small guest has not been made (cargo xtask images)");
        return None;
    }
    if !setup::QEMU.is_present() {
        println!("{SKIP_MARK}missing: {}", setup::describe(&[setup::QEMU]));
        return None;
    }
    Some(guest)
}

//! The main job: a disk goes from A to B, boots there while it arrives, comes back changed, and every byte agrees.

use anyhow::Result;
use xtask::demo::{self, Disk};

#[test]
fn a_disk_runs_where_it_was_not_yet_and_comes_back_changed() -> Result<()> {
    let Some(directory) = e2e::debian_or_skip() else { return Ok(()) };
    demo::play(&e2e::brant(), &Disk::debian(&directory), false)
}

//! `cargo xtask demo`: the main job from end to end, with the real program, real disks and real virtual machines.
//!
//! An Indexer and two nodes run as processes of their own, B's store on another file system where possible. A disk goes from A to B,
//! runs there while it arrives, comes back changed and runs on A. Every step is a command as a person would type it, timed, with the bytes that
//! went over the network; at the end every byte is compared. Whatever happens, nothing is left running or mounted.

mod journey;
mod place;
mod report;
mod site;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use self::place::Place;
use self::report::Report;
use self::site::Site;
use crate::images::{self, Disks, Kernel};
use crate::process::{Echo, run};
use crate::qemu;
use crate::setup::{self, MKFS_XFS, QEMU};
use crate::{interrupt, workspace};

/// What is wanted of the demo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The disk to take, instead of a Debian that is made: an image that boots with the Debian kernel from `/dev/vda`.
    pub image: Option<PathBuf>,
    /// Stay open at the end, to play on, until Ctrl-C.
    pub keep: bool,
}

/// Sets up what is missing, builds brant and runs the demo with it.
///
/// # Errors
/// When something that it takes is missing, a step fails, or any byte differs at the end.
pub fn run_all(options: &Options) -> Result<()> {
    let missing = setup::install(&[QEMU, MKFS_XFS])?;
    ensure!(!missing.contains(&QEMU), "missing: {}", setup::describe(&[QEMU]));
    let directory = images::default_directory();
    let image = match &options.image {
        Some(image) => image.canonicalize().with_context(|| format!("open {}", image.display()))?,
        None => {
            images::make_disks(&directory, Disks::First)?;
            images::disk(&directory, "v1")
        }
    };
    let kernel = images::debian_kernel(&directory);
    if !kernel.kernel.exists() {
        // With an image of one's own, its kernel is still that of the Debian disk.
        images::make_disks(&directory, Disks::First)?;
    }
    println!("building brant");
    let mut build = workspace::cargo();
    run(build.args(["build", "--workspace", "--bins"]), Duration::from_mins(60), Echo::Live)?.success("cargo build")?;
    play(&workspace::target().join("debug/brant"), &image, &kernel, options.keep)
}

/// Runs the demo with a program that is built and images that are made; with `keep`, stays open at its end until Ctrl-C.
///
/// # Errors
/// When a step fails, or any byte differs at the end; the error carries the last lines of the servers' logs.
pub fn play(brant: &Path, image: &Path, kernel: &Kernel, keep: bool) -> Result<()> {
    let place = Place::new(&workspace::target().join("demo"))?;
    println!("in {} ({})", place.directory().display(), place.describe());
    let mut report = Report::default();
    let accelerator = qemu::accelerator(kernel);
    let mut site = Site::start(brant, &place, &mut report)?;
    let journey =
        journey::run(&mut site, &place, image, &journey::Guest { kernel: kernel.clone(), accelerator }, &mut report);
    if let Err(error) = journey {
        println!("{}", report.table());
        return Err(error.context(site.logs()));
    }
    println!("\n{}", report.table());
    if keep {
        println!("{}", site.how_to_play_on());
        while !interrupt::requested() {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    site.stop()
}

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
    /// The disk to take, instead of a Debian that is made: an image that boots by itself, with a login on the first serial port.
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
    let disk = match &options.image {
        Some(image) => Disk::own(image.canonicalize().with_context(|| format!("open {}", image.display()))?),
        None => {
            images::make_disks(&directory, Disks::First)?;
            Disk::debian(&directory)
        }
    };
    play(&program()?, &disk, options.keep)
}

/// The disk that the demo takes on its journey, and how a machine on it is started and understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The image.
    pub image: PathBuf,
    /// What boots it; its own boot loader where there is none.
    pub kernel: Option<Kernel>,
}

impl Disk {
    /// The Debian disk that is made (`assets/disk-images.sh`), which keeps markers and reports them.
    #[must_use]
    pub fn debian(directory: &Path) -> Disk {
        Disk { image: images::disk(directory, "v1"), kernel: Some(images::debian_kernel(directory)) }
    }

    /// Some other disk, of which only a login is expected.
    #[must_use]
    pub fn own(image: PathBuf) -> Disk {
        Disk { image, kernel: None }
    }
}

/// Builds brant, unless `BRANT_BIN` names one that is built.
fn program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("BRANT_BIN") {
        return Path::new(&program).canonicalize().with_context(|| format!("open {}", Path::new(&program).display()));
    }
    println!("building brant");
    let mut build = workspace::cargo();
    run(build.args(["build", "--workspace", "--bins"]), Duration::from_mins(60), Echo::Live)?.success("cargo build")?;
    Ok(workspace::target().join("debug/brant"))
}

/// Runs the demo with a program that is built and a disk that is made; with `keep`, stays open at its end until Ctrl-C.
///
/// # Errors
/// When a step fails, or any byte differs at the end; the error carries the last lines of the servers' logs.
pub fn play(brant: &Path, disk: &Disk, keep: bool) -> Result<()> {
    let place = Place::new(&workspace::target().join("demo"))?;
    println!("in {} ({})", place.directory().display(), place.describe());
    let accelerator = qemu::accelerator(disk.kernel.as_ref());
    let mut report = Report::begin();
    let mut site = Site::start(brant, &place, &mut report)?;
    if let Err(error) = journey::run(&mut site, &place, disk, accelerator, &mut report) {
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

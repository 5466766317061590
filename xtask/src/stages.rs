//! `cargo xtask test`: the stages of the whole test run, one after the other, each with its name and its seconds.
//!
//! A stage that fails does not keep the later ones from running. Everything runs with `--workspace`, one set of features and
//! the dev profile, so that nothing is built twice. The last line printed counts everything.

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::process::{Echo, run};
use crate::runner::{self, Packages};
use crate::tally::Tally;
use crate::{images, interrupt, judges, licences, setup, tidy, workspace};

/// What of the run is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// At full length.
    pub full: bool,
    /// Only these stages; all when empty.
    pub only: Vec<String>,
}

struct Stage {
    name: &'static str,
    about: &'static str,
    run: fn(&Selection) -> Result<Tally>,
}

const STAGES: [Stage; 13] = [
    Stage { name: "setup", about: "the programs that the tests need are there, or get installed", run: set_up },
    Stage { name: "format", about: "cargo fmt --check", run: format },
    Stage { name: "tidy", about: "the house rules that no compiler knows", run: check_tidy },
    Stage {
        name: "deny",
        about: "licences and sources of all dependencies; cargo-deny besides, where installed",
        run: deny,
    },
    Stage { name: "clippy", about: "lints, with warnings denied", run: clippy },
    Stage { name: "docs", about: "cargo doc, with warnings denied", run: docs },
    Stage { name: "build", about: "the programs and the tests", run: build },
    Stage { name: "test", about: "unit, property, conformance and crash tests", run: test },
    Stage { name: "doctest", about: "the examples in the documentation", run: doctest },
    Stage { name: "fuzz", about: "seeded mutations against every parser of foreign bytes", run: fuzz },
    Stage { name: "images", about: "the disks that the end-to-end tests boot", run: make_images },
    Stage {
        name: "judges",
        about: "what others wrote to test NBD servers, for the end-to-end tests",
        run: make_judges,
    },
    Stage { name: "e2e", about: "whole nodes and virtual machines, one test at a time", run: end_to_end },
];

/// Lists the stages, a line each.
#[must_use]
pub fn list() -> String {
    STAGES.iter().map(|stage| format!("{:8}  {}\n", stage.name, stage.about)).collect()
}

/// Tells whether there is a stage of this name.
#[must_use]
pub fn exists(name: &str) -> bool {
    STAGES.iter().any(|stage| stage.name == name)
}

/// Runs the stages and prints the closing line; returns whether nothing failed.
///
/// # Errors
/// When a signal asks to stop.
pub fn run_selected(selection: &Selection) -> Result<bool> {
    let mut total = Tally::default();
    for stage in
        STAGES.iter().filter(|stage| selection.only.is_empty() || selection.only.iter().any(|name| name == stage.name))
    {
        println!("== {}: {}", stage.name, stage.about);
        let begun = Instant::now();
        let tally = (stage.run)(selection).unwrap_or_else(|error| {
            println!("{error:#}");
            Tally::fail(stage.name)
        });
        interrupt::check()?;
        println!("== {}: {tally} in {:.1} s\n", stage.name, begun.elapsed().as_secs_f64());
        total.add(tally);
    }
    for name in &total.skipped {
        println!("skipped: {name}");
    }
    for name in &total.failed {
        println!("failed: {name}");
    }
    println!("{total}");
    Ok(total.failed.is_empty())
}

const MINUTES_5: Duration = Duration::from_mins(5);
const MINUTES_30: Duration = Duration::from_mins(30);

fn set_up(_: &Selection) -> Result<Tally> {
    let missing = setup::install(&setup::all())?;
    let mut tally = Tally::default();
    for tool in &missing {
        let reason = if setup::is_root() { "not installed" } else { "not installed, and only root can install it" };
        tally.add(Tally::skip("setup", &format!("{}: {reason}", setup::describe(&[*tool]))));
    }
    if missing.is_empty() {
        tally.add(Tally::pass());
    }
    Ok(tally)
}

fn succeed(what: &str, command: &mut Command, limit: Duration) -> Result<Tally> {
    let status = run(command, limit, Echo::Live)?.status;
    ensure!(status.success(), "{what} failed");
    Ok(Tally::pass())
}

fn format(_: &Selection) -> Result<Tally> {
    succeed("cargo fmt --check", workspace::cargo().args(["fmt", "--all", "--check"]), MINUTES_5)
}

fn check_tidy(_: &Selection) -> Result<Tally> {
    let findings = tidy::check(&workspace::root())?;
    ensure!(findings.is_empty(), "{}", findings.join("\n"));
    Ok(Tally::pass())
}

fn clippy(_: &Selection) -> Result<Tally> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    succeed("clippy", workspace::cargo().args(arguments), MINUTES_30)
}

fn docs(_: &Selection) -> Result<Tally> {
    let mut command = workspace::cargo();
    command.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    succeed("cargo doc", &mut command, MINUTES_30)
}

fn deny(_: &Selection) -> Result<Tally> {
    let (packages, findings) = licences::check(&workspace::root())?;
    ensure!(findings.is_empty(), "{}", findings.join("\n"));
    println!("licences and sources of {packages} packages are allowed");
    let mut tally = Tally::pass();
    if setup::find("cargo-deny").is_none() {
        tally.add(Tally::skip(
            "cargo-deny",
            "not installed (cargo install cargo-deny); licences and sources were checked without it",
        ));
        return Ok(tally);
    }
    let arguments = ["deny", "--offline", "check", "bans", "licenses", "sources"];
    tally.add(succeed("cargo deny", workspace::cargo().args(arguments), MINUTES_5)?);
    Ok(tally)
}

/// Builds what the tests start, `brant` above all, with the features that building the tests gives it.
fn build(_: &Selection) -> Result<Tally> {
    succeed("cargo build", workspace::cargo().args(["build", "--workspace", "--bins", "--lib", "--tests"]), MINUTES_30)
}

fn test(selection: &Selection) -> Result<Tally> {
    runner::run_tests(Packages::AllBut(&["e2e", "fuzz"]), selection.full, &environment(selection))
}

fn doctest(_: &Selection) -> Result<Tally> {
    runner::run_doctests()
}

fn fuzz(selection: &Selection) -> Result<Tally> {
    runner::run_tests(Packages::Only("fuzz"), selection.full, &environment(selection))
}

fn make_images(selection: &Selection) -> Result<Tally> {
    let directory = images::default_directory();
    let mut tally = Tally::default();
    let disks = if selection.full { images::Disks::All } else { images::Disks::First };
    for (what, missing) in [("small guest", images::guest_lacks()?), ("Debian disks", images::disks_lack()?)] {
        if let Some(reason) = missing {
            tally.add(Tally::skip(what, &reason));
        } else {
            if what == "small guest" {
                images::make_guest(&directory)?
            } else {
                images::make_disks(&directory, disks)?
            }
            tally.add(Tally::pass());
        }
    }
    let host = images::make_host(&directory)?;
    tally.add(host.map_or_else(Tally::pass, |reason| Tally::skip("machine for a node", &reason)));
    Ok(tally)
}

fn make_judges(_: &Selection) -> Result<Tally> {
    let missing = match judges::lacks() {
        None => judges::make(&judges::default_directory())?,
        missing => missing,
    };
    let mut tally = missing.map_or_else(Tally::pass, |reason| Tally::skip("libnbd's and QEMU's tests", &reason));
    tally.add(Tally::skip("libnbd's get-size", "it wants a disk of 123456789 bytes, and disks here are whole sectors"));
    tally.add(Tally::skip("libnbd's tests with a PSK", "rustls has none for TLS 1.3 (docs/decisions/007)"));
    Ok(tally)
}

fn end_to_end(selection: &Selection) -> Result<Tally> {
    runner::run_tests(Packages::Only("e2e"), selection.full, &environment(selection))
}

/// What tests are told by their environment: where the program and the images are, and how long they may take.
fn environment(selection: &Selection) -> Vec<(&'static str, OsString)> {
    let mut environment = vec![
        ("BRANT_BIN", workspace::target().join("debug/brant").into_os_string()),
        ("BRANT_IMAGES", images::default_directory().into_os_string()),
        ("BRANT_JUDGES", judges::default_directory().into_os_string()),
        ("BRANT_FUZZ_SECONDS", if selection.full { "120" } else { "8" }.into()),
    ];
    if selection.full {
        environment.push(("BRANT_TEST_FULL", "1".into()));
    }
    environment
}

//! Runs the workspace's tests under cargo-nextest, or under `cargo test` where nextest is not installed, and counts them.
//!
//! nextest brings the limits of `.config/nextest.toml` (time for each test, machines one at a time); `cargo test` has only the
//! limit of the whole stage, and one test at a time where nodes and machines are started.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Echo, run};
use crate::tally::Tally;
use crate::{junit, setup, workspace};

/// How long all tests of one stage may take, building included, and in full.
const LIMIT: Duration = Duration::from_mins(40);
const LIMIT_IN_FULL: Duration = Duration::from_hours(4);

/// Whose tests are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packages {
    /// Those of one package, one test at a time.
    Only(&'static str),
    /// Those of all packages but some.
    AllBut(&'static [&'static str]),
}

/// Runs the tests of some packages, with additional environment variables, and with more time in full.
///
/// # Errors
/// When they cannot be built or started. Tests that fail are no error here: they are counted.
pub fn run_tests(packages: Packages, full: bool, environment: &[(&'static str, OsString)]) -> Result<Tally> {
    let limit = if full { LIMIT_IN_FULL } else { LIMIT };
    if setup::find("cargo-nextest").is_some() {
        with_nextest(packages, limit, environment)
    } else {
        println!("cargo-nextest is not installed: using cargo test, without a limit of time for each test");
        with_cargo_test(packages, limit, environment)
    }
}

/// Runs the examples in the documentation.
///
/// # Errors
/// As [`run_tests`].
pub fn run_doctests() -> Result<Tally> {
    // The examples of the binaries' packages are those of their libraries: there are none to exclude.
    count(workspace::cargo().args(["test", "--workspace", "--doc"]), LIMIT)
}

fn with_nextest(packages: Packages, limit: Duration, environment: &[(&'static str, OsString)]) -> Result<Tally> {
    let report = workspace::root().join("target/nextest/default/junit.xml");
    // A report of an earlier run must not be counted.
    if report.exists() {
        std::fs::remove_file(&report).with_context(|| format!("remove {}", report.display()))?;
    }
    let filter = match packages {
        Packages::Only(package) => format!("package(={package})"),
        Packages::AllBut(packages) => {
            let listed: Vec<String> = packages.iter().map(|package| format!("package(={package})")).collect();
            format!("not ({})", listed.join(" + "))
        }
    };
    let mut command = workspace::cargo();
    command.args(["nextest", "run", "--workspace", "--filterset", &filter, "--show-progress", "none"]);
    command.args(["--status-level", "slow", "--final-status-level", "slow"]).envs(environment.iter().cloned());
    let outcome = run(&mut command, limit, Echo::Live)?;
    let report =
        std::fs::read_to_string(&report).context("the tests could not be built or started: there is no report")?;
    let tally = junit::tally(&report);
    ensure!(outcome.status.success() || !tally.failed.is_empty(), "nextest failed, and no test did");
    Ok(tally)
}

fn with_cargo_test(packages: Packages, limit: Duration, environment: &[(&'static str, OsString)]) -> Result<Tally> {
    let mut command = workspace::cargo();
    command.args(["test", "--no-fail-fast", "--lib", "--bins", "--tests"]).envs(environment.iter().cloned());
    match packages {
        Packages::Only(package) => command.args(["--package", package, "--", "--show-output", "--test-threads=1"]),
        Packages::AllBut(packages) => {
            command.arg("--workspace");
            for package in packages {
                command.args(["--exclude", package]);
            }
            command.args(["--", "--show-output"])
        }
    };
    count(&mut command, limit)
}

fn count(command: &mut Command, limit: Duration) -> Result<Tally> {
    let outcome = run(command, limit, Echo::Live)?;
    let tally = Tally::of_cargo_test(&outcome.output);
    ensure!(outcome.status.success() || !tally.failed.is_empty(), "cargo test failed, and no test did");
    Ok(tally)
}

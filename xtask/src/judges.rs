//! Fetches and builds what others wrote to test NBD servers, libnbd's programs and QEMU's iotests; what is there is kept.
//!
//! The making itself is in a shell script (`assets/judges/make.sh`), since it is all calls of other programs. The stand-ins beside it
//! are what those tests start instead of the servers that they were written for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{Echo, run};
use crate::setup::{self, CERTTOOL, GCC, LIBNBD};
use crate::workspace;

/// How long fetching and building may take.
const MAKING_LIMIT: Duration = Duration::from_mins(5);

/// The script's exit status when the sources cannot be had.
const CANNOT_FETCH: i32 = 75;
/// Stands beside what was made: the script that made it.
const MARKER: &str = "made-by.sh";

/// The programs of libnbd's `tests` that start a server and say whether it did right. Not among them: `get-size`, which wants a
/// disk of 123456789 bytes, where brant's have whole sectors.
pub const LIBNBD_TESTS: [&str; 17] = [
    "errors-bad-cookie",
    "errors-client-oversize",
    "errors-client-unknown-flags",
    "errors-client-zerosize",
    "errors-connect-twice",
    "errors-not-negotiating",
    "errors-notify-not-blocked",
    "errors-pread-structured",
    "errors-server-invalid-offset",
    "errors-server-unknown-flags",
    "errors-server-zerosize",
    "opt-abort",
    "opt-list-meta",
    "pread-initialize",
    "read-only-flag",
    "read-write-flag",
    "shutdown-flags",
];

/// Returns where the judges are kept between runs.
#[must_use]
pub fn default_directory() -> PathBuf {
    workspace::target().join("judges")
}

/// Returns the folder of the programs that stand in for the servers which the tests start, named like those.
#[must_use]
pub fn stand_ins() -> PathBuf {
    workspace::assets().join("judges")
}

/// Says what is missing here to make the judges, or nothing.
#[must_use]
pub fn lacks() -> Option<String> {
    if setup::find("apt-get").is_none() {
        return Some("no apt-get to fetch the sources of libnbd and QEMU with".to_owned());
    }
    let missing = setup::missing(&[GCC, LIBNBD, CERTTOOL]);
    (!missing.is_empty()).then(|| format!("missing: {}", setup::describe(&missing)))
}

/// Makes what `directory` lacks; returns why the sources cannot be had, if they cannot.
///
/// # Errors
/// When something cannot be built.
pub fn make(directory: &Path) -> Result<Option<String>> {
    if is_made(directory) {
        return Ok(None);
    }
    let mut command = Command::new("bash");
    command.arg(script()).arg(directory).args(LIBNBD_TESTS);
    let outcome = run(&mut command, MAKING_LIMIT, Echo::Quiet)?;
    if outcome.status.code() == Some(CANNOT_FETCH) {
        let last = outcome.output.lines().rfind(|line| !line.is_empty()).unwrap_or("apt-get failed");
        return Ok(Some(format!("the sources of libnbd and QEMU cannot be fetched: {last}")));
    }
    if !outcome.status.success() {
        bail!("{} failed:\n{}", script().display(), outcome.output);
    }
    fs::copy(script(), directory.join(MARKER)).context("mark the judges as made")?;
    Ok(None)
}

/// Tells whether everything has been made, by the script as it is now.
#[must_use]
pub fn is_made(directory: &Path) -> bool {
    let made_by = fs::read(directory.join(MARKER));
    made_by.is_ok_and(|made_by| fs::read(script()).is_ok_and(|script| script == made_by))
}

fn script() -> PathBuf {
    stand_ins().join("make.sh")
}

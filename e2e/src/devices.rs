//! Block devices of the kernel, as tests use them.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use xtask::setup;

/// What a program printed, as text.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program of the system, which succeeds, and returns what it printed.
///
/// # Errors
/// When it is not there or fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let found = setup::find(program).context(program.to_owned())?;
    let output = Command::new(found).args(arguments).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout).trim().to_owned())
}

/// Reads from a device, not from what the kernel remembers of it.
///
/// # Errors
/// When that fails.
pub fn read(device: &str, offset: usize, length: usize) -> Result<Vec<u8>> {
    run("blockdev", &["--flushbufs", device])?;
    let mut bytes = vec![0; length];
    File::open(device)?.read_exact_at(&mut bytes, offset as u64)?;
    Ok(bytes)
}

/// The size of a device, in bytes.
///
/// # Errors
/// When it cannot be opened.
pub fn size(device: &str) -> Result<u64> {
    Ok(File::open(device)?.seek(SeekFrom::End(0))?)
}

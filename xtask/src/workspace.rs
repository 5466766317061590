//! Where things are: the checkout, its target directory, its crates and its files.
//!
//! Everything is found from where this crate was compiled, so the commands work from any directory of the checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Returns the root of the checkout.
///
/// # Panics
/// Never: this crate lies in a folder of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a folder of the checkout").to_path_buf()
}

/// Returns the directory that cargo builds into.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |directory| root().join(directory))
}

/// Returns the folder of the files that this crate brings: scripts, and what goes into guests.
#[must_use]
pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")
}

/// Begins a cargo command in the checkout.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Asks cargo what the workspace is made of; `dependencies` adds all packages that it builds from.
///
/// # Errors
/// When cargo cannot answer, which it says on standard error.
pub fn metadata(root: &Path, dependencies: bool) -> Result<Value> {
    let mut command = cargo();
    command.current_dir(root).args(["metadata", "--format-version", "1"]);
    if !dependencies {
        command.arg("--no-deps");
    }
    let output = command.output().context("start cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    serde_json::from_slice(&output.stdout).context("read the answer of cargo metadata")
}

/// Lists the files that belong to the checkout, relative to it: those git tracks, and new ones that it does not ignore.
///
/// # Errors
/// When git cannot answer.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("start git ls-files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    let listed = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files: Vec<PathBuf> = listed.split_terminator('\0').map(PathBuf::from).collect();
    files.sort();
    files.dedup();
    // A file that was removed but not yet from the index is still listed.
    files.retain(|file| root.join(file).is_file());
    Ok(files)
}

//! Programs that others wrote to test NBD servers, and a node whose volumes they are let loose on.
//!
//! The stand-ins of `xtask/assets/judges` are found before the servers that the programs were written for, and serve what those
//! would from the node.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use testkit::{Node, World};
use xtask::judges;
use xtask::process::{Echo, Outcome, run};
use xtask::setup::{self, SOCAT, Tool};
use xtask::tally::SKIP_MARK;

/// How long one program may take.
const LIMIT: Duration = Duration::from_mins(4);

/// The judges, and a node to judge.
#[derive(Debug)]
pub struct Judges {
    /// The node.
    pub node: Node,
    /// Where it lives.
    pub world: World,
    directory: PathBuf,
}

impl Judges {
    /// Starts a node for libnbd's and QEMU's tests, or says what is missing to run them and returns nothing.
    ///
    /// # Errors
    /// When the node does not start.
    pub fn or_skip(tools: &[Tool]) -> Result<Option<Judges>> {
        let directory = std::env::var_os("BRANT_JUDGES").map_or_else(judges::default_directory, PathBuf::from);
        if !judges::is_made(&directory) {
            println!("{SKIP_MARK}libnbd's and QEMU's tests have not been fetched (cargo xtask test --only judges)");
            return Ok(None);
        }
        let judges = Judges::with_tools(&[tools, &[SOCAT]].concat())?;
        Ok(judges.map(|judges| Judges { directory, ..judges }))
    }

    /// Starts a node for programs that are installed, or says which are not and returns nothing.
    ///
    /// # Errors
    /// When the node does not start.
    pub fn with_tools(tools: &[Tool]) -> Result<Option<Judges>> {
        let missing = setup::missing(tools);
        if !missing.is_empty() {
            println!("{SKIP_MARK}missing: {}", setup::describe(&missing));
            return Ok(None);
        }
        let world = World::new(crate::brant())?;
        let node = world.start_node("n")?;
        node.brant(&["bucket", "create", "judges"])?;
        Ok(Some(Judges { node, world, directory: PathBuf::new() }))
    }

    /// A file or folder of what was fetched and built.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Runs a program to its end, with the stand-ins first on its path.
    ///
    /// # Errors
    /// When it cannot be started, or does not end in time.
    pub fn run(&self, program: &Path, folder: &Path, arguments: &[&str]) -> Result<Outcome> {
        run(self.command(program, folder)?.args(arguments), LIMIT, Echo::Quiet)
    }

    /// Begins a command with the stand-ins first on its path.
    ///
    /// # Errors
    /// When the path cannot be made.
    pub fn command(&self, program: &Path, folder: &Path) -> Result<Command> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [judges::stand_ins()].into_iter().chain(std::env::split_paths(&path));
        let path: OsString = std::env::join_paths(folders).context("put the stand-ins on the path")?;
        let mut command = Command::new(program);
        command.current_dir(folder).env("PATH", path);
        command.env("BRANT", crate::brant()).env("BRANT_NODE", self.node.directory());
        Ok(command)
    }

    /// Runs programs of a folder, each with its own name and outcome, and returns the failures with what they wrote.
    ///
    /// # Errors
    /// When one cannot be run at all.
    pub fn failures(&self, folder: &str, programs: &[&str]) -> Result<Vec<String>> {
        let folder = self.path(folder);
        let mut failures = Vec::new();
        for program in programs {
            let outcome = self.run(&folder.join(program), &folder, &[])?;
            if !outcome.status.success() {
                failures.push(format!("{program}: {}\n{}", outcome.status, outcome.output));
            }
        }
        Ok(failures)
    }
}

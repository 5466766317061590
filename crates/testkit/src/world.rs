//! A world of its own for a test: an Indexer and nodes, as real processes in a directory that goes with it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::service::Service;

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// What was run, for messages.
    pub command: String,
    /// Its exit code; 128 + the signal where it was killed.
    pub code: i32,
    /// What it printed on standard output.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

impl Output {
    /// Takes it as a success.
    ///
    /// # Errors
    /// Where it failed; quotes what it printed.
    pub fn succeeded(self) -> Result<Self> {
        if self.code == 0 {
            return Ok(self);
        }
        bail!("{} ended with {}:\n{}{}", self.command, self.code, self.stdout, self.stderr)
    }

    /// Takes it as a failure with an exit code.
    ///
    /// # Errors
    /// Where it ended otherwise.
    pub fn failed_with(self, code: i32) -> Result<Self> {
        if self.code == code {
            return Ok(self);
        }
        bail!("{} ended with {} instead of {code}:\n{}{}", self.command, self.code, self.stdout, self.stderr)
    }

    /// Reads what it printed as JSON.
    ///
    /// # Errors
    /// Where it failed, or printed something else.
    pub fn json(self) -> Result<Value> {
        let output = self.succeeded()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("{} printed:\n{}", output.command, output.stdout))
    }
}

/// A directory with processes in it.
#[derive(Debug)]
pub struct World {
    brant: PathBuf,
    directory: TempDir,
}

impl World {
    /// Makes an empty world for a built `brant`.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn new(brant: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self { brant: brant.into(), directory: tempfile::Builder::new().prefix("brant-test-").tempdir()? })
    }

    /// A path in the world.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `brant` with arguments.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn brant(&self, arguments: &[&str]) -> Result<Output> {
        run(&self.brant, None, arguments)
    }

    fn database(&self) -> String {
        format!("sqlite:{}", self.path("indexer.sqlite").display())
    }

    /// Starts the Indexer, on a port: 0 for any.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_indexer(&self, port: u16) -> Result<Indexer> {
        self.start_indexer_by(Command::new(&self.brant), &format!("127.0.0.1:{port}"), &[])
    }

    /// Starts the Indexer by a command that runs `brant` with what is added to it, perhaps in another network, and with
    /// further options.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_indexer_by(&self, mut command: Command, listen: &str, further: &[&str]) -> Result<Indexer> {
        let database = self.database();
        command.args(["indexer", "serve", "--listen", listen, "--database", &database]).args(further);
        let service = Service::start("the Indexer", &mut command, "brant indexer ready:", &self.path("indexer.log"))?;
        let url = service.ready.split_whitespace().find_map(|word| word.split_once("http://"));
        let authority =
            url.map(|(_, rest)| rest.trim_end_matches('/').to_owned()).context("a URL in the readiness line")?;
        Ok(Indexer { service, authority })
    }

    /// Makes an account at the Indexer and returns its token.
    ///
    /// # Errors
    /// When the account cannot be made.
    pub fn add_account(&self, name: &str) -> Result<String> {
        let output = self.brant(&["indexer", "account", "add", name, "--database", &self.database()])?.succeeded()?;
        Ok(output.stdout.trim().to_owned())
    }

    /// Starts a node, in a directory of its name.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_node(&self, name: &str) -> Result<Node> {
        self.start_node_in(name, &self.path(name))
    }

    /// Starts a node in a directory.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_node_in(&self, name: &str, directory: &Path) -> Result<Node> {
        self.start_node_at(name, directory, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Starts a node in a directory, which its peers reach at an address.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_node_at(&self, name: &str, directory: &Path, bind: SocketAddr) -> Result<Node> {
        self.start_node_by(Command::new(&self.brant), name, directory, bind)
    }

    /// The built `brant`.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.brant
    }

    /// Starts a node by a command that runs `brant` with what is added to it, perhaps in another network.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_node_by(&self, mut command: Command, name: &str, directory: &Path, bind: SocketAddr) -> Result<Node> {
        command.args(["node", "serve", "--bind", &bind.to_string(), "--dir"]).arg(directory);
        let log = self.path(&format!("{name}.log"));
        let service = Service::start(&format!("node {name}"), &mut command, "brant node ready:", &log)?;
        Ok(Node { brant: self.brant.clone(), directory: directory.to_owned(), bind, log, service })
    }
}

/// A running Indexer.
#[derive(Debug)]
pub struct Indexer {
    /// The process.
    pub service: Service,
    /// Its host and port, as in references.
    pub authority: String,
}

impl Indexer {
    /// The port, to start it again on.
    ///
    /// # Panics
    /// Never: the authority has one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.authority.rsplit(':').next().and_then(|port| port.parse().ok()).expect("an authority with a port")
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    brant: PathBuf,
    directory: PathBuf,
    bind: SocketAddr,
    log: PathBuf,
    /// The process.
    pub service: Service,
}

impl Node {
    /// The node's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file to which it logs.
    #[must_use]
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs a command at this node.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn try_brant(&self, arguments: &[&str]) -> Result<Output> {
        run(&self.brant, Some(&self.directory), arguments)
    }

    /// Runs a command at this node, which succeeds.
    ///
    /// # Errors
    /// When it fails.
    pub fn brant(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.try_brant(arguments)?;
        output.succeeded().with_context(|| format!("the node's log:\n{}", self.log()))
    }

    /// Runs a command at this node and reads its `--json`.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        self.brant(&[arguments, &["--json"]].concat())?.json()
    }

    /// Begins a command at this node and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&self, arguments: &[&str]) -> Result<std::process::Child> {
        let mut command = command(&self.brant, Some(&self.directory), arguments);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Ok(command.spawn()?)
    }

    /// Has the node replaced by a process of another program, or the same, which takes its connections over.
    ///
    /// # Errors
    /// When that is not ready in time; the node that was there goes on then.
    pub fn replace(&mut self, brant: &Path) -> Result<()> {
        let mut command = Command::new(brant);
        command.args(["node", "serve", "--take-over", "--bind", &self.bind.to_string(), "--dir"]).arg(&self.directory);
        let successor = Service::start("the successor", &mut command, "brant node ready:", &self.log)?;
        std::mem::replace(&mut self.service, successor).ended()
    }

    /// The program that it was started from.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.brant
    }

    /// Logs in at an Indexer with a token.
    ///
    /// # Errors
    /// When the Indexer does not accept it.
    pub fn login(&self, indexer: &Indexer, token: &str) -> Result<()> {
        let mut command = command(&self.brant, Some(&self.directory), &["login", &indexer.authority]);
        finish(command.env("BRANT_TOKEN", token), "brant login")?.succeeded().map(drop)
    }

    /// Has it stop in order, and waits until it has.
    ///
    /// # Errors
    /// When it does not stop in time, or with an error.
    pub fn stop(self) -> Result<()> {
        let status = self.service.terminate()?;
        if status.success() { Ok(()) } else { bail!("the node ended with {status}") }
    }

    /// Kills it without warning.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.service.kill()
    }
}

fn command(brant: &Path, node: Option<&Path>, arguments: &[&str]) -> Command {
    let mut command = Command::new(brant);
    command.args(arguments).stdin(std::process::Stdio::null()).env_remove("BRANT_TOKEN").env_remove("BRANT_NODE");
    if let Some(directory) = node {
        command.env("BRANT_NODE", directory);
    }
    command
}

fn run(brant: &Path, node: Option<&Path>, arguments: &[&str]) -> Result<Output> {
    finish(&mut command(brant, node, arguments), &format!("brant {}", arguments.join(" ")))
}

fn finish(command: &mut Command, shown: &str) -> Result<Output> {
    use std::os::unix::process::ExitStatusExt as _;
    let output = command.output().with_context(|| format!("could not run {shown}"))?;
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Output { command: shown.to_owned(), code, stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

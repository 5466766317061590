//! The demo's processes: an Indexer and the nodes A and B, and the commands that are typed at them.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::place::Place;
use super::report::Report;
use crate::interrupt;
use crate::process::{describe, run_apart};
use crate::watched::Watched;

const READY: Duration = Duration::from_mins(1);
const COMMAND: Duration = Duration::from_mins(5);
const STOP: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The servers that run.
#[derive(Debug)]
pub(super) struct Site {
    brant: PathBuf,
    // Dropped in this order: the nodes before what they talk to.
    /// The node where the disk begins.
    pub(super) a: Node,
    /// The node on the other side.
    pub(super) b: Node,
    indexer: Watched,
    /// The Indexer's host and port, as in references.
    pub(super) authority: String,
}

/// A node that runs.
#[derive(Debug)]
pub(super) struct Node {
    name: &'static str,
    brant: PathBuf,
    directory: PathBuf,
    server: Watched,
}

impl Site {
    /// Starts an Indexer with two accounts, and two nodes, one logged in to each.
    pub(super) fn start(brant: &Path, place: &Place, report: &mut Report) -> Result<Site> {
        let begun = Instant::now();
        let database = format!("sqlite:{}", place.directory().join("indexer.sqlite").display());
        report.typed("indexer", "brant indexer serve --listen 127.0.0.1:0 --database sqlite:indexer.sqlite");
        let mut serve = Command::new(brant);
        serve.args(["indexer", "serve", "--listen", "127.0.0.1:0", "--database", &database]);
        let mut indexer = Watched::start("the Indexer", &mut serve)?;
        let ready = indexer.wait_for("brant indexer ready:", READY)?;
        let url = ready
            .split_whitespace()
            .find(|word| word.starts_with("http"))
            .context("no address in the Indexer's readiness line")?;
        let authority = url.trim_start_matches("http://").trim_end_matches('/').to_owned();

        let mut nodes = Vec::new();
        for (name, account, directory) in [("A", "alice", place.node_a()), ("B", "bob", place.node_b())] {
            report.typed("indexer", &format!("brant indexer account add {account} > {account}.token"));
            let mut add = Command::new(brant);
            add.args(["indexer", "account", "add", account, "--database", &database]);
            let token = run_apart(&mut add, COMMAND)?.success("brant indexer account add")?;
            let token_file = place.directory().join(format!("{account}.token"));
            write_secret(&token_file, &token)?;
            let node = Node::start(name, brant, directory, report)?;
            report.typed(name, &format!("brant login {authority} --token-file {account}.token"));
            node.quietly(&["login", &authority, "--token-file", &token_file.to_string_lossy()])?;
            nodes.push(node);
        }
        let (Some(b), Some(a)) = (nodes.pop(), nodes.pop()) else { bail!("two nodes were to be started") };
        report.done("Indexer, A and B started, both logged in", begun.elapsed(), None, None);
        Ok(Site { brant: brant.to_owned(), a, b, indexer, authority })
    }

    /// Quotes what the servers wrote last, for an error.
    pub(super) fn logs(&self) -> String {
        let servers = [("A", &self.a.server), ("B", &self.b.server), ("the Indexer", &self.indexer)];
        let quoted: Vec<String> =
            servers.iter().map(|(name, server)| format!("{name} wrote last:\n{}", server.tail())).collect();
        format!("the demo failed; {}", quoted.join("\n"))
    }

    /// Says how a person uses what runs, and how it ends.
    pub(super) fn how_to_play_on(&self) -> String {
        let brant = self.brant.display();
        format!(
            "\nStill running, for you to play on. In another terminal:\n\
             \x20 alias brant={brant}\n\
             \x20 export BRANT_NODE={}    # node A\n\
             \x20 export BRANT_NODE={}    # node B\n\
             \x20 brant status; brant snapshot list; brant volume list; brant attach; brant --help\n\
             The Indexer is at {}. Ctrl-C here ends all of it and removes its files.",
            self.a.directory.display(),
            self.b.directory.display(),
            self.authority
        )
    }

    /// Ends everything in order, and checks that it ends well.
    pub(super) fn stop(mut self) -> Result<()> {
        for (name, server) in [("A", &mut self.a.server), ("B", &mut self.b.server), ("the Indexer", &mut self.indexer)]
        {
            let status = server.process.stop(STOP)?;
            if !status.success() {
                bail!("{name} should end well on SIGTERM, and ended with {}:\n{}", describe(status), server.tail());
            }
        }
        Ok(())
    }
}

/// Keeps a token in a file that only this user can read.
fn write_secret(path: &Path, secret: &str) -> Result<()> {
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("make {}", path.display()))?;
    file.write_all(secret.as_bytes()).with_context(|| format!("write {}", path.display()))
}

impl Node {
    fn start(name: &'static str, brant: &Path, directory: PathBuf, report: &Report) -> Result<Node> {
        report.typed(name, &format!("brant node serve --dir {}", directory.display()));
        let mut serve = Command::new(brant);
        serve.args(["node", "serve", "--bind", "127.0.0.1:0", "--dir"]).arg(&directory);
        let mut server = Watched::start(&format!("node {name}"), &mut serve)?;
        server.wait_for("brant node ready:", READY)?;
        Ok(Node { name, brant: brant.to_owned(), directory, server })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.brant);
        command.args(arguments).env("BRANT_NODE", &self.directory);
        command
    }

    /// The node's name in the demo.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Runs a command that a person types at this node, and shows it.
    pub(super) fn typed(&self, report: &Report, arguments: &[&str]) -> Result<Value> {
        report.typed(self.name, &format!("brant {}", arguments.join(" ")));
        self.quietly(arguments)
    }

    /// Runs a command at this node; returns its JSON.
    pub(super) fn quietly(&self, arguments: &[&str]) -> Result<Value> {
        let shown = format!("brant {}", arguments.join(" "));
        let mut command = self.command(arguments);
        let output = run_apart(command.arg("--json"), COMMAND)?;
        if !output.status.success() {
            bail!("{} at {}: {}\n{}{}", shown, self.name, describe(output.status), output.errors, output.output);
        }
        serde_json::from_str(&output.output).with_context(|| format!("{shown} printed no JSON:\n{}", output.output))
    }

    /// Asks a command again and again until its answer satisfies.
    pub(super) fn until(
        &self,
        what: &str,
        limit: Duration,
        arguments: &[&str],
        satisfied: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let begun = Instant::now();
        loop {
            let answer = self.quietly(arguments)?;
            if satisfied(&answer) {
                return Ok(answer);
            }
            interrupt::check()?;
            if begun.elapsed() > limit {
                bail!(
                    "waited {} s in vain until {what} at {}; brant {} says {answer}",
                    limit.as_secs(),
                    self.name,
                    arguments.join(" ")
                );
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// How many bytes of disks the node has received from peers since it started.
    pub(super) fn received_bytes(&self) -> Result<u64> {
        let status = self.quietly(&["status"])?;
        status["swarm"]["received_bytes"].as_u64().context("brant status tells no received bytes")
    }
}

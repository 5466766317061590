//! A real node and a real Indexer, run and talked to by the built binary, from their readiness to their end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};

use serde_json::Value;

fn brant(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brant"));
    command
        .env_remove("BRANT_TOKEN")
        .env_remove("BRANT_NODE")
        .env_remove("BRANT_LOG")
        .args(arguments)
        .stdin(Stdio::null());
    command
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A running service; killed when it is dropped.
struct Service {
    child: Child,
    ready: String,
    _stdout: BufReader<ChildStdout>,
}

impl Service {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        stdout.read_line(&mut ready).unwrap();
        Self { child, ready, _stdout: stdout }
    }

    fn node(directory: &Path) -> Self {
        let directory = directory.to_str().unwrap();
        Self::start(&mut brant(&["node", "serve", "--bind", "127.0.0.1:0", "--dir", directory]))
    }

    fn terminate(&mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // One that has ended already is what most tests leave.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_node_answers_when_it_says_so_and_brings_its_attachments_back() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("node");
    let run = |arguments: &[&str]| brant(arguments).env("BRANT_NODE", &directory).output().unwrap();
    let mut node = Service::node(&directory);
    let expected = format!("brant node ready: socket={}/node.sock endpoint=", directory.display());
    assert!(node.ready.starts_with(&expected), "{}", node.ready);

    let disk = folder.path().join("disk.raw");
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    json(&run(&["bucket", "create", "vms", "--json"]));
    let task = json(&run(&["import", disk.to_str().unwrap(), "vms/web", "--json"]));
    assert_eq!(task["state"], "done", "{task}");
    assert_eq!(json(&run(&["clone", "vms/web", "web1", "--json"]))["size_bytes"], 1 << 20);
    let attachment = json(&run(&["attach", "web1", "--json"]));
    let socket = attachment["socket"].as_str().unwrap();
    assert!(Path::new(socket).is_absolute() && UnixStream::connect(socket).is_ok(), "{attachment}");
    let copy = folder.path().join("copy.raw");
    json(&run(&["materialize", "web1", copy.to_str().unwrap(), "--json"]));
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(&disk).unwrap());

    let second = brant(&["node", "serve", "--dir", directory.to_str().unwrap()]).output().unwrap();
    assert_eq!(second.status.code(), Some(4), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("hint: is a node running there already?"), "{second:?}");

    assert!(node.terminate().success());
    assert_eq!(run(&["status"]).status.code(), Some(7));
    let _again = Service::node(&directory);
    assert_eq!(json(&run(&["attach", "--json"]))[0]["uri"], attachment["uri"]);
    assert!(UnixStream::connect(socket).is_ok());
}

#[test]
fn an_indexer_gives_tokens_once_that_a_node_can_use() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}/indexer.sqlite", folder.path().display());
    let account = |arguments: &[&str]| {
        brant(&["indexer", "account"]).args(arguments).args(["--database", &database]).output().unwrap()
    };
    let added = account(&["add", "alice"]);
    let token = String::from_utf8(added.stdout).unwrap();
    assert!(added.status.success() && token.lines().count() == 1 && token.len() > 20, "{token:?}");
    assert_eq!(account(&["add", "alice"]).status.code(), Some(4));
    assert_eq!(account(&["token", "bob"]).status.code(), Some(3));

    let mut indexer =
        Service::start(&mut brant(&["indexer", "serve", "--json", "--listen", "127.0.0.1:0", "--database", &database]));
    let ready: Value = serde_json::from_str(&indexer.ready).unwrap();
    let url = ready["url"].as_str().unwrap();
    let directory = folder.path().join("node");
    let _node = Service::node(&directory);
    let log_in = |token: &str| {
        let mut command = brant(&["login", url, "--json"]);
        command.env("BRANT_NODE", &directory).env("BRANT_TOKEN", token).output().unwrap()
    };
    assert_eq!(log_in("brant_wrong").status.code(), Some(5));
    assert_eq!(json(&log_in(&token))["account"], "alice");

    let rotated = json(&account(&["token", "alice", "--json"]));
    assert_eq!(log_in(&token).status.code(), Some(5), "the old token is not valid any more");
    assert_eq!(json(&log_in(rotated["token"].as_str().unwrap()))["account"], "alice");
    assert_eq!(json(&account(&["list", "--json"]))[0]["account"], "alice");
    assert!(account(&["remove", "alice"]).status.success());
    assert!(indexer.terminate().success());

    let open = brant(&["indexer", "serve", "--listen", "0.0.0.0:0", "--database", &database]).output().unwrap();
    assert_eq!(open.status.code(), Some(2), "{open:?}");
}

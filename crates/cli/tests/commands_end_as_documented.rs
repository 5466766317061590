//! The built binary against a small server in the node's place: what it prints where, and with which code it exits.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use axum::Json;
use axum::http::StatusCode;
use axum::routing::{get, post};
use serde_json::{Value, json};

fn brant(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brant"));
    command.env_remove("BRANT_TOKEN").env("BRANT_NODE", directory).stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Serves a router as a node until the test ends; the files that are passed to it are read and kept from nobody.
struct FakeNode {
    directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl FakeNode {
    fn start(router: axum::Router) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = directory.path().join("node.sock");
        let listener = {
            let _guard = runtime.enter();
            tokio::net::UnixListener::bind(socket).unwrap()
        };
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { directory, _runtime: runtime }
    }

    /// Hands out the same ticket to everyone who passes a descriptor, so often.
    fn hand_out_tickets(&self, callers: usize) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(self.directory.path().join("descriptors.sock")).unwrap();
        std::thread::spawn(move || {
            for _ in 0..callers {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0]).unwrap();
                stream.write_all(&[b'7'; 32]).unwrap();
            }
        })
    }

    fn run(&self, arguments: &[&str]) -> Output {
        brant(self.directory.path()).args(arguments).output().unwrap()
    }
}

fn task(kind: &str, state: &str) -> Value {
    json!({
        "id": 7, "kind": kind, "subject": "vms/web", "state": state, "started_ms": 1000, "ended_ms": 2500,
        "total_bytes": 100, "done_bytes": 100, "moved_bytes": 50, "result": "vms/web@1: 100 B disk", "error": null,
    })
}

#[test]
fn every_kind_of_error_has_its_exit_code_and_its_hint() {
    let codes = [
        ("internal", 1, StatusCode::INTERNAL_SERVER_ERROR),
        ("invalid", 2, StatusCode::BAD_REQUEST),
        ("not_found", 3, StatusCode::NOT_FOUND),
        ("conflict", 4, StatusCode::CONFLICT),
        ("forbidden", 5, StatusCode::FORBIDDEN),
        ("full", 6, StatusCode::INSUFFICIENT_STORAGE),
        ("unreachable", 7, StatusCode::BAD_GATEWAY),
        ("damaged", 8, StatusCode::INTERNAL_SERVER_ERROR),
        ("cancelled", 9, StatusCode::CONFLICT),
    ];
    for (code, exit, status) in codes {
        let error = json!({"code": code, "message": "it went \u{1b}[31mwrong", "hint": "do this"});
        let node = FakeNode::start(
            axum::Router::new().route("/v1/volumes/web", get(move || async move { (status, Json(error)) })),
        );
        let output = node.run(&["volume", "show", "web"]);
        assert_eq!(output.status.code(), Some(exit), "{code}");
        assert_eq!(stderr(&output), "error: it went \u{fffd}[31mwrong\nhint: do this\n");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn usage_errors_exit_with_two_and_no_node_with_seven() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["volume", "create", "web"][..], &["frobnicate"], &["import", "x", "not-a-path"], &[]] {
        let output = brant(folder.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
    let output = brant(folder.path()).arg("status").output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(stderr(&output).contains("\nhint: start it with: brant node serve --dir "), "{}", stderr(&output));
}

#[test]
fn json_is_the_nodes_value_and_text_is_a_table() {
    let volumes = json!([{
        "name": "web1", "id": "07".repeat(16), "size_bytes": 10_737_418_240_u64, "origin": "vms/web@3",
        "dirty_bytes": 0, "attached": [], "labels": {"owner": "alice"}, "replication": null,
    }]);
    let answer = volumes.clone();
    let node = FakeNode::start(axum::Router::new().route("/v1/volumes", get(|| async move { Json(answer) })));
    let output = node.run(&["volume", "list", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&stdout(&output)).unwrap(), volumes);
    let output = node.run(&["volume", "list"]);
    assert_eq!(
        stdout(&output),
        "VOLUME    SIZE  UNSEALED  ORIGIN     ATTACHED\nweb1    10 GiB       0 B  vms/web@3  -\n"
    );
}

#[test]
fn an_empty_list_is_an_empty_array_or_a_note() {
    let node = FakeNode::start(axum::Router::new().route("/v1/buckets", get(|| async { Json(json!([])) })));
    assert_eq!(stdout(&node.run(&["bucket", "list", "--json"])), "[]\n");
    let output = node.run(&["bucket", "list"]);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("brant bucket create"));
}

#[test]
fn an_import_passes_the_open_file_and_says_what_came_of_it() {
    let router = axum::Router::new()
        .route(
            "/v1/imports",
            post(|Json(request): Json<Value>| async move {
                assert_eq!(request["source"]["descriptor"]["ticket"], "7".repeat(32));
                assert_eq!((&request["path"], &request["message"]), (&json!("vms/web"), &json!("a note")));
                Json(task("import", "running"))
            }),
        )
        .route("/v1/tasks/7", get(|| async { Json(task("import", "done")) }));
    let node = FakeNode::start(router);
    let tickets = node.hand_out_tickets(2);
    let disk = node.directory.path().join("web.raw");
    std::fs::write(&disk, "a disk").unwrap();
    let disk = disk.to_str().unwrap();
    let output = node.run(&["import", disk, "vms/web", "-m", "a note"]);
    assert_eq!(stdout(&output), "imported vms/web@1: 100 B disk (1.5 s)\n", "{}", stderr(&output));
    let output = node.run(&["import", disk, "vms/web", "-m", "a note", "--detach", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&stdout(&output)).unwrap()["state"], "running");
    tickets.join().unwrap();
}

#[test]
fn what_cannot_be_imported_is_refused_before_the_node_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let run = |source: &Path| {
        let output = brant(folder.path()).arg("import").arg(source).arg("vms/web").output().unwrap();
        (output.status.code(), stderr(&output))
    };
    assert_eq!(run(folder.path()).0, Some(2));
    assert_eq!(run(Path::new("/dev/null")).0, Some(2));
    let (code, text) = run(&folder.path().join("none.raw"));
    assert_eq!(code, Some(3));
    assert!(text.contains("none.raw: No such file or directory\n"), "{text}");
    let disk = folder.path().join("disk.raw");
    std::fs::write(&disk, "a disk").unwrap();
    let output = brant(Path::new("http://127.0.0.1:1")).arg("import").arg(&disk).arg("vms/web").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("hint: run this on the node's host"), "{}", stderr(&output));
}

#[test]
fn a_materialized_file_gets_its_name_only_when_the_task_is_done() {
    for (state, exit) in [("done", 0), ("cancelled", 9)] {
        let router = axum::Router::new()
            .route("/v1/materializations", post(|| async { Json(task("materialize", "running")) }))
            .route("/v1/tasks/7", get(move || async move { Json(task("materialize", state)) }));
        let node = FakeNode::start(router);
        let tickets = node.hand_out_tickets(1);
        let target = node.directory.path().join("web.qcow2");
        let output = node.run(&["materialize", "vms/web", target.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(exit), "{}", stderr(&output));
        assert_eq!(target.exists(), exit == 0);
        assert!(!node.directory.path().join("web.qcow2.part").exists());
        tickets.join().unwrap();
    }
}

#[test]
fn a_token_comes_from_a_file_the_environment_or_standard_input_but_is_never_shown() {
    let router = axum::Router::new().route(
        "/v1/logins",
        post(|Json(request): Json<Value>| async move {
            // The account's name tells which token arrived.
            Json(json!({"indexer": "host", "url": "http://host", "account": request["token"].as_str().unwrap().replace("secret", "account")}))
        }),
    );
    let node = FakeNode::start(router);
    let file = node.directory.path().join("token");
    std::fs::write(&file, "secret-of-file\n").unwrap();
    let output = node.run(&["login", "host", "--token-file", file.to_str().unwrap()]);
    assert_eq!(stdout(&output), "the node uses the account account-of-file at host\n");
    let output =
        brant(node.directory.path()).args(["login", "host"]).env("BRANT_TOKEN", "secret-of-env").output().unwrap();
    assert_eq!(stdout(&output), "the node uses the account account-of-env at host\n");
    let mut child = brant(node.directory.path())
        .args(["login", "host"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"secret-of-stdin\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(stdout(&output), "the node uses the account account-of-stdin at host\n");
    assert_eq!(node.run(&["login", "host"]).status.code(), Some(2), "an empty standard input is no token");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = brant(folder.path())
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn the_first_interrupt_cancels_the_task_and_the_second_leaves() {
    use std::sync::atomic::{AtomicBool, Ordering};
    for patient in [true, false] {
        let cancelled = std::sync::Arc::new(AtomicBool::new(false));
        let asked = std::sync::Arc::clone(&cancelled);
        let router = axum::Router::new()
            .route("/v1/hydrations/web", post(|| async { Json(task("hydrate", "running")) }))
            .route(
                "/v1/tasks/7",
                get(move || {
                    let ended = patient && cancelled.load(Ordering::SeqCst);
                    async move {
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                        Json(task("hydrate", if ended { "cancelled" } else { "running" }))
                    }
                }),
            )
            .route(
                "/v1/tasks/7/cancel",
                post(move || async move {
                    asked.store(true, Ordering::SeqCst);
                    Json(task("hydrate", "running"))
                }),
            );
        let node = FakeNode::start(router);
        let mut child = brant(node.directory.path()).args(["hydrate", "web"]).stderr(Stdio::piped()).spawn().unwrap();
        let interrupt = |child: &std::process::Child| {
            let pid = rustix::process::Pid::from_child(child);
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        };
        // The handler stands when the signal is caught: SigCgt of proc(5) has the bit of SIGINT.
        let status = format!("/proc/{}/status", child.id());
        while !catches_interrupt(&std::fs::read_to_string(&status).unwrap()) {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
            std::thread::yield_now();
        }
        interrupt(&child);
        let mut said = [0; 10];
        child.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"cancelling");
        if !patient {
            interrupt(&child);
        }
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(if patient { 9 } else { 130 }));
        assert_eq!(stderr(&output).contains("task 7 goes on"), !patient);
    }
}

fn catches_interrupt(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 0b10 != 0
}

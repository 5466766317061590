//! The client against real sockets: requests arrive as they were meant, and whatever goes wrong becomes an `ApiError`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::{Json, Path as Segment, RawQuery};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use node::api::{ApiError, CreateBucketRequest, ErrorCode, Task, TaskKind, TaskState};
use node::client::{Address, Client};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// Serves a router at a directory's `node.sock` until the test's runtime ends.
fn serve(directory: &Path, router: axum::Router) -> Client {
    let listener = tokio::net::UnixListener::bind(directory.join("node.sock")).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    Client::of_directory(directory)
}

fn task(state: TaskState, error: Option<ApiError>) -> Task {
    Task {
        id: 7,
        kind: TaskKind::Import,
        subject: "vms/web".to_owned(),
        state,
        started_ms: 1,
        ended_ms: None,
        total_bytes: 10,
        done_bytes: 5,
        moved_bytes: 1,
        result: None,
        error,
    }
}

#[tokio::test]
async fn requests_carry_their_method_path_and_body() {
    let folder = tempfile::tempdir().unwrap();
    let router = axum::Router::new()
        .route("/v1/buckets", post(|Json(body): Json<Value>| async move { Json(bucket(&body["name"])) }))
        .route(
            "/v1/snapshots/{snapshot}",
            delete(|Segment(snapshot): Segment<String>| async move {
                if snapshot == "vms/web@3" { StatusCode::NO_CONTENT } else { StatusCode::IM_A_TEAPOT }
            }),
        )
        .route(
            "/v1/tasks/7",
            get(|RawQuery(query): RawQuery| async move {
                let state = if query.as_deref() == Some("wait_ms=250") { TaskState::Done } else { TaskState::Failed };
                Json(task(state, None))
            }),
        );
    let client = serve(folder.path(), router);
    let made = client.create_bucket(&CreateBucketRequest { name: "vms".parse().unwrap() }).await.unwrap();
    assert_eq!(made.name.as_str(), "vms");
    client.retire_snapshot("vms/web@3").await.unwrap();
    assert_eq!(client.task(7, Duration::from_millis(250)).await.unwrap().state, TaskState::Done);
}

fn bucket(name: &Value) -> Value {
    json!({
        "name": name, "id": "ab".repeat(32), "writable": true, "objects": 0, "versions": 0,
        "published": null, "subscribed": null, "policy": null, "problem": null, "added_in_a_later_version": 1,
    })
}

#[tokio::test]
async fn an_error_arrives_with_its_code_and_hint() {
    let folder = tempfile::tempdir().unwrap();
    let conflict = ApiError::new(ErrorCode::Conflict, "the volume web exists").hint("choose another name");
    let reported = conflict.clone();
    let router = axum::Router::new()
        .route("/v1/volumes/web", get(|| async move { (StatusCode::CONFLICT, Json(reported)) }))
        .route("/v1/volumes/html", get(|| async { (StatusCode::BAD_GATEWAY, "<html>proxy</html>") }))
        .route("/v1/volumes/shape", get(|| async { Json(json!({"unknown": true})) }));
    let client = serve(folder.path(), router);
    assert_eq!(client.volume("web").await.unwrap_err(), conflict);
    let foreign = client.volume("html").await.unwrap_err();
    assert_eq!(foreign.code, ErrorCode::Internal);
    assert!(foreign.message.contains("<html>proxy</html>"), "{foreign}");
    assert_eq!(client.volume("shape").await.unwrap_err().code, ErrorCode::Internal);
    assert_eq!(client.volume("no-such-route/x").await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn nobody_listening_and_a_broken_connection_are_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::of_directory(folder.path());
    let error = client.status().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unreachable);
    assert!(error.hint.unwrap().contains("brant node serve --dir"), "{}", error.message);

    let listener = StdListener::bind(folder.path().join("node.sock")).unwrap();
    let garbage = std::thread::spawn(move || {
        for answer in ["", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    for _ in 0..3 {
        assert_eq!(client.status().await.unwrap_err().code, ErrorCode::Unreachable);
    }
    garbage.join().unwrap();
    // A dead node leaves its socket behind.
    assert!(folder.path().join("node.sock").exists());
    assert_eq!(client.status().await.unwrap_err().code, ErrorCode::Unreachable);
}

#[tokio::test]
async fn a_remote_node_is_refused_in_words() {
    let client = Client::new(Address::parse("http://10.0.0.1:7071"));
    let error = client.status().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
    assert!(error.message.contains("http://10.0.0.1:7071"));
}

#[tokio::test]
async fn a_socket_deep_in_the_file_system_is_reached() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("d".repeat(90)).join("e".repeat(90));
    std::fs::create_dir_all(&deep).unwrap();
    // Bound where its path is short, then moved: a socket follows its inode.
    let near = folder.path().join("near");
    std::fs::create_dir(&near).unwrap();
    let router = axum::Router::new().route("/v1/volumes", get(|| async { Json(json!([])) }));
    let _ = serve(&near, router);
    std::fs::rename(near.join("node.sock"), deep.join("node.sock")).unwrap();
    assert!(Client::of_directory(&deep).volumes().await.unwrap().is_empty());
}

#[tokio::test]
async fn waiting_shows_every_step_and_a_failed_task_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let steps = std::sync::atomic::AtomicU64::new(0);
    let steps = std::sync::Arc::new(steps);
    let router = axum::Router::new().route(
        "/v1/tasks/7",
        get(move || {
            let step = steps.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let why = ApiError::new(ErrorCode::Full, "no space left");
            async move {
                let running = step < 2;
                let state = if running { TaskState::Running } else { TaskState::Failed };
                Json(task(state, (!running).then_some(why)))
            }
        }),
    );
    let client = serve(folder.path(), router);
    let mut seen = Vec::new();
    let ended = client.wait_for_task(7, Duration::from_millis(1), |task| seen.push(task.state)).await.unwrap();
    assert_eq!(seen, [TaskState::Running, TaskState::Running, TaskState::Failed]);
    assert_eq!(ended.into_result().unwrap_err().code, ErrorCode::Full);
    assert_eq!(task(TaskState::Cancelled, None).into_result().unwrap_err().code, ErrorCode::Cancelled);
    assert_eq!(task(TaskState::Interrupted, None).into_result().unwrap_err().code, ErrorCode::Cancelled);
}

/// Takes one descriptor from the next caller and answers it.
fn take_descriptor(listener: &StdListener, answer: &[u8]) -> File {
    let (mut stream, _) = listener.accept().unwrap();
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut files: Vec<File> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors.map(File::from)),
            _ => None,
        })
        .flatten()
        .collect();
    stream.write_all(answer).unwrap();
    files.pop().expect("one descriptor comes with the byte")
}

#[tokio::test]
async fn an_open_file_reaches_the_node() {
    let folder = tempfile::tempdir().unwrap();
    let listener = StdListener::bind(folder.path().join("descriptors.sock")).unwrap();
    let ticket = "0123456789abcdef0123456789abcdef";
    let server = std::thread::spawn(move || {
        let mut text = String::new();
        take_descriptor(&listener, ticket.as_bytes()).read_to_string(&mut text).unwrap();
        take_descriptor(&listener, b"not a ticket, though as long as one");
        take_descriptor(&listener, b"short");
        text
    });
    let path: PathBuf = folder.path().join("disk.raw");
    std::fs::write(&path, "the disk").unwrap();
    let client = Client::of_directory(folder.path());
    let open = || File::open(&path).unwrap();
    assert_eq!(client.pass_descriptor(open()).await.unwrap(), ticket);
    assert_eq!(client.pass_descriptor(open()).await.unwrap_err().code, ErrorCode::Unreachable);
    assert_eq!(client.pass_descriptor(open()).await.unwrap_err().code, ErrorCode::Unreachable);
    assert_eq!(server.join().unwrap(), "the disk");
    let error = client.pass_descriptor(open()).await.unwrap_err();
    assert!(error.hint.unwrap().contains("brant node serve"), "nobody listens any more");
}

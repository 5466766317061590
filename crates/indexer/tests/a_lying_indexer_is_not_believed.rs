//! What a hostile or broken Indexer answers is refused in bounded time and memory, with an error that says so.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "support/world.rs"]
mod world;

use std::net::SocketAddr;
use std::time::Duration;

use bucket::{HeadOrder, Log, LogError, SignedCertificate, SignedHead};
use futures_util::StreamExt;
use indexer::api::{HeadInfo, Info, LogPage, SignedText, WhoAmI};
use indexer::client::{AppendError, ClientError, IndexerClient, Timeouts};
use indexer::{AddressRecord, Clock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use types::EndpointId;
use world::{PATIENCE, log_of, name, put, signer, snapshot};

/// A peer that answers each connection's first request with what `answer` makes of it, and closes.
async fn liar(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> IndexerClient {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 64 << 10];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let answer = answer(&String::from_utf8_lossy(&request[..length]));
            let _client_gave_up = stream.write_all(&answer).await;
        }
    });
    client(address, Duration::from_secs(20))
}

fn client(address: SocketAddr, patience: Duration) -> IndexerClient {
    let timeouts = Timeouts { connect: patience, request: patience, idle: patience };
    IndexerClient::with(world::url(address), Some("brant_x".into()), timeouts, Clock::manual(1000)).unwrap()
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    http(200, "application/json", &serde_json::to_vec(value).unwrap())
}

fn http(status: u16, kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn garbage<T: std::fmt::Debug>(result: Result<T, ClientError>) {
    match result {
        Err(error @ ClientError::Garbage { .. }) => assert!(error.hint().is_some() && !error.is_passing()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn forged_and_replayed_logs_are_found_out() {
    let (account, vms) = (name("alice"), name("vms"));
    let owner = signer(1);
    let log = log_of(&owner, 3);
    // Someone else's signature.
    let mut forged = log.entries().to_vec();
    forged[2].signature[7] ^= 1;
    let page = LogPage { entries: forged, head: log.head().into() };
    let entries = liar(move |_| json(&page)).await.log(&account, &vms, 0).await.unwrap();
    assert!(matches!(Log::replay(log.bucket(), entries), Err(LogError::Signature { sequence: 2 })));
    // Another bucket's log under the name that was pinned.
    let other = log_of(&signer(2), 3);
    let page = LogPage { entries: other.entries().to_vec(), head: other.head().into() };
    let entries = liar(move |_| json(&page)).await.log(&account, &vms, 0).await.unwrap();
    assert!(matches!(Log::replay(log.bucket(), entries), Err(LogError::Bucket { .. })));
    // An old state, replayed.
    let old = log.prefix(2).unwrap();
    let page = LogPage { entries: old.entries().to_vec(), head: old.head().into() };
    let client = liar(move |_| json(&page)).await;
    let mut known = log.clone();
    assert!(matches!(
        known.merge(&client.log(&account, &vms, 0).await.unwrap()),
        Err(LogError::Stale { offered: 1, known: 3 })
    ));
    assert_eq!(known.compare(old.head()), HeadOrder::Older);
    assert_eq!(known, log);
    // A branch that the owner did sign.
    let mut branch = log.prefix(3).unwrap();
    let action = put(&branch, "vm", 99);
    branch.write(&owner, action, 50).unwrap();
    let page = LogPage { entries: branch.entries().to_vec(), head: branch.head().into() };
    let entries = liar(move |_| json(&page)).await.log(&account, &vms, 0).await.unwrap();
    assert!(matches!(known.merge(&entries), Err(LogError::Fork(evidence)) if evidence.sequence == 3));
}

#[tokio::test]
async fn garbage_is_called_garbage() {
    let (account, vms, log) = (name("alice"), name("vms"), log_of(&signer(1), 1));
    let answers: Vec<Vec<u8>> = vec![
        http(200, "text/html", b"<html>It works!</html>"),
        http(200, "application/json", b"{"),
        http(200, "application/json", b"[1,2,3]"),
        http(200, "application/json", &b"[".repeat(100_000)),
        http(200, "application/json", &[0xff; 1000]),
        http(500, "text/plain", b"oops"),
        http(404, "text/html", b"<html>nginx</html>"),
        http(302, "text/plain", b""),
    ];
    for answer in answers {
        let client = liar(move |_| answer.clone()).await;
        garbage(client.info().await);
        garbage(client.reference(&account, &vms).await);
        garbage(client.log(&account, &vms, 0).await);
        garbage(client.providers(&account, &vms, snapshot(1)).await);
        garbage(client.endpoint(EndpointId([1; 32])).await);
        garbage(client.events(&account, &vms).await.map(|_| ()));
        let append = client.append(&account, &vms, log.head(), &log.entries()[1..]).await;
        assert!(matches!(append, Err(AppendError::Client(ClientError::Garbage { .. }))), "{append:?}");
    }
    let not_http = liar(|_| b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()).await;
    assert!(matches!(not_http.info().await, Err(ClientError::Unreachable { .. })));
    let cut = liar(|_| http(200, "application/json", &[b' '; 100])[..120].to_vec()).await;
    assert!(matches!(cut.info().await, Err(ClientError::Unreachable { .. })));
    // An error message is for a terminal: bounded and without control characters.
    let body = format!(r#"{{"code":"x","message":"\u001b[2Jboo{}"}}"#, "o".repeat(10_000));
    let rude = liar(move |_| http(400, "application/json", body.as_bytes())).await.info().await.unwrap_err();
    let shown = rude.to_string();
    assert!(shown.len() < 1000 && !shown.contains('\u{1b}') && shown.contains("boo"), "{shown}");
}

#[tokio::test]
async fn endless_answers_and_pages_end() {
    let (account, vms, log) = (name("alice"), name("vms"), log_of(&signer(1), 1));
    let endless = b"HTTP/1.1 200 x\r\ncontent-type: application/json\r\n\r\n".to_vec();
    let endless = [endless, vec![b' '; 64 << 20]].concat();
    garbage(liar(move |_| endless.clone()).await.info().await);
    // Pages that never reach the head that they promise.
    let head = HeadInfo { sequence: u64::MAX, hash: log.head().hash };
    let empty = LogPage { entries: Vec::new(), head };
    garbage(liar(move |_| json(&empty)).await.log(&account, &vms, 0).await);
    let too_long = LogPage { entries: vec![log.entries()[0].clone(); 501], head };
    garbage(liar(move |_| json(&too_long)).await.log(&account, &vms, 0).await);
    // An append whose answer is about something else.
    let wrong = liar(move |_| json(&head)).await.append(&account, &vms, log.head(), &log.entries()[1..]).await;
    assert!(matches!(wrong, Err(AppendError::Client(ClientError::Garbage { .. }))));
    // A stream of events with an endless line.
    let head = b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\n\r\ndata: ".to_vec();
    let line = [head, vec![b'x'; 1 << 20]].concat();
    let mut events = liar(move |_| line.clone()).await.events(&account, &vms).await.unwrap();
    garbage(events.next().await.unwrap());
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn one_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (account, vms) = (name("alice"), name("vms"));
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            if String::from_utf8_lossy(&request[..length]).contains("/events") {
                let head = b"HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\n\r\n:alive\n\n";
                stream.write_all(head).await.unwrap();
            }
            open.push(stream);
        }
    });
    let client = client(address, Duration::from_millis(200));
    let waited = tokio::time::timeout(PATIENCE, async {
        assert!(matches!(client.info().await, Err(ClientError::TimedOut { .. })));
        let mut events = client.events(&account, &vms).await.unwrap();
        assert!(matches!(events.next().await, Some(Err(ClientError::TimedOut { .. }))));
    });
    waited.await.unwrap();
}

#[tokio::test]
async fn signed_words_are_checked_for_who_what_and_when() {
    let (account, vms, log) = (name("alice"), name("vms"), log_of(&signer(1), 1));
    let (indexer, node) = (signer(9), signer(11));
    // Another endpoint's record, or a forged one.
    let record = AddressRecord::sign(&node, 1, Vec::new(), None);
    let text = SignedText::new(&record);
    garbage(liar(move |_| json(&text)).await.endpoint(EndpointId([1; 32])).await);
    let mut forged = record.clone();
    forged.signature[0] ^= 1;
    let text = SignedText::new(&forged);
    garbage(liar(move |_| json(&text)).await.endpoint(node.endpoint_id()).await);
    // An old head statement.
    let text = SignedText::new(&SignedHead::attest(&indexer, log.bucket(), log.head(), 1000));
    garbage(liar(move |_| json(&text)).await.head(&account, &vms).await);
    // A certificate for someone else, by someone else, or over.
    let (key, id) = (indexer.public_key(), node.endpoint_id());
    let wrong = [
        SignedCertificate::issue(&indexer, name("bob"), id, 5000),
        SignedCertificate::issue(&indexer, name("alice"), EndpointId([1; 32]), 5000),
        SignedCertificate::issue(&signer(8), name("alice"), id, 5000),
        SignedCertificate::issue(&indexer, name("alice"), id, 1000),
    ];
    let certificates = |certificate: SignedCertificate| {
        liar(move |request| {
            if request.contains("/v1/indexer") {
                json(&Info { version: "1".into(), key, name: "x".into() })
            } else if request.contains("/v1/whoami") {
                json(&WhoAmI { account: "alice".parse().unwrap() })
            } else {
                json(&SignedText::new(&certificate))
            }
        })
    };
    for certificate in wrong {
        garbage(certificates(certificate).await.certificate(&node).await);
    }
    let good = SignedCertificate::issue(&indexer, name("alice"), id, 5000);
    assert_eq!(certificates(good.clone()).await.certificate(&node).await.unwrap(), good);
}

#[test]
fn tokens_and_urls_are_checked_and_never_shown() {
    for bad in ["ftp://x/", "http://user:secret@host/", "http://host/?a=b", "data:x"] {
        let made = IndexerClient::new(bad.parse().unwrap(), None);
        assert!(matches!(made, Err(ClientError::Url { .. })), "{bad}");
    }
    let url = world::url("127.0.0.1:1".parse().unwrap());
    for bad in ["", "two words", "line\nfeed"] {
        assert!(matches!(IndexerClient::new(url.clone(), Some(bad.into())), Err(ClientError::Token)));
    }
    let client = IndexerClient::new(url, Some("brant_verysecret".into())).unwrap();
    assert!(!format!("{client:?}").contains("verysecret"));
}

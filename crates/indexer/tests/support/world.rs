//! A running Indexer with accounts, for tests: a temporary database, a free port, and raw HTTP where it is needed.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses a part; a test panics where something is wrong")]

use std::net::SocketAddr;
use std::time::Duration;

use bucket::{Log, Signer};
use format::entry::Action;
use indexer::client::IndexerClient;
use indexer::{Clock, ServeOptions, Serving, admin, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use types::{Name, SnapshotId};
use url::Url;

/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) serving: Serving,
    pub(crate) clock: Clock,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut ServeOptions)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // A manual clock that agrees with the system's, by which the operator's side makes tokens.
        let clock = Clock::manual(Clock::system().now_ms());
        let mut options = ServeOptions::new("127.0.0.1:0".parse().unwrap(), database(&directory));
        options.clock = clock.clone();
        change(&mut options);
        let serving = serve(options).await.unwrap();
        Self { directory, serving, clock }
    }

    pub(crate) fn database(&self) -> String {
        database(&self.directory)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.serving.local_addr()
    }

    pub(crate) fn url(&self) -> Url {
        url(self.address())
    }

    pub(crate) async fn token(&self, account: &str) -> String {
        admin::account_add(&self.database(), &name(account)).await.unwrap().to_string()
    }

    pub(crate) fn client(&self, token: Option<String>) -> IndexerClient {
        IndexerClient::with(self.url(), token, Default::default(), self.clock.clone()).unwrap()
    }

    pub(crate) async fn account(&self, account: &str) -> IndexerClient {
        let token = self.token(account).await;
        self.client(Some(token))
    }
}

pub(crate) fn database(directory: &tempfile::TempDir) -> String {
    format!("sqlite:{}", directory.path().join("index.db").display())
}

pub(crate) fn url(address: SocketAddr) -> Url {
    format!("http://{address}").parse().unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn signer(number: u8) -> Signer {
    Signer::from_seed(&[number; 32])
}

pub(crate) fn snapshot(number: u8) -> SnapshotId {
    SnapshotId([number; 32])
}

pub(crate) fn put(log: &Log, object: &str, number: u8) -> Action {
    let object = name(object);
    let version = log.next_version(&object);
    Action::Put { object, version, snapshot: snapshot(number), size_bytes: 1 << 30, message: "a version".into() }
}

/// A log of its creation and `versions` versions of `vm`.
pub(crate) fn log_of(signer: &Signer, versions: u8) -> Log {
    let mut log = Log::create(signer, 1);
    for number in 1..=versions {
        let action = put(&log, "vm", number);
        log.write(signer, action, 1 + u64::from(number)).unwrap();
    }
    log
}

/// Sends a request as it is on a connection of its own, and returns the answer as it came.
pub(crate) async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A server may answer, and close, before it has read everything.
        let _refused_early = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

/// A request without keep-alive.
pub(crate) fn request(method: &str, path: &str, token: Option<&str>, body: &str) -> Vec<u8> {
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{token}content-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// The status of a raw answer.
pub(crate) fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

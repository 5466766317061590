//! kill -9 of the server in the middle of appends: what it has acknowledged is there when it comes back.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "support/world.rs"]
mod world;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bucket::{Head, Log};
use indexer::client::{AppendError, IndexerClient, Timeouts};
use indexer::{Clock, ServeOptions, admin, serve};
use world::{PATIENCE, database, log_of, name, put, signer, url};

/// Names the database to the child.
const DATABASE: &str = "BRANT_TEST_INDEXER_DATABASE";

/// The child's part: serves until it is killed.
#[tokio::test]
#[ignore = "the child process of the other test"]
async fn child() {
    let Ok(database) = std::env::var(DATABASE) else {
        eprintln!("skipped: only the other test runs this");
        return;
    };
    let serving = serve(ServeOptions::new("127.0.0.1:0".parse().unwrap(), database)).await.unwrap();
    println!("\nlistening on {}", serving.local_addr());
    serving.finished().await;
}

struct Server(Child);

impl Server {
    /// Starts this test binary as a server, and waits until it listens.
    fn start(database: &str) -> (Self, url::Url) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture"]).env(DATABASE, database);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let server = Self(child);
        let address = lines.map(Result::unwrap).find_map(|line| Some(line.strip_prefix("listening on ")?.to_owned()));
        (server, url(address.expect("a line with the address").parse().unwrap()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL.
        let _already_dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let database = database(&directory);
    let token = admin::account_add(&database, &name("alice")).await.unwrap().to_string();
    let (owner, account, vms) = (signer(1), name("alice"), name("vms"));
    let mut log = log_of(&owner, 0);
    let timeouts = Timeouts { request: PATIENCE, ..Timeouts::default() };
    let mut key = None;
    for round in 0..4_u64 {
        let (server, url) = Server::start(&database);
        let client = IndexerClient::with(url, Some(token.clone()), timeouts, Clock::system()).unwrap();
        assert_eq!(*key.get_or_insert(client.info().await.unwrap().key), client.info().await.unwrap().key);
        if round == 0 {
            client.claim(&account, &vms, false, log.entries()).await.unwrap();
        }
        // Everything acknowledged before is there; at most the one append without an answer is there beside.
        let entries = client.log(&account, &vms, 0).await.unwrap();
        let there = Log::replay(log.bucket(), entries).unwrap();
        assert!(there.length() >= log.length(), "round {round}: {} of {}", there.length(), log.length());
        log.merge(there.entries()).unwrap();
        // Kill it once it has acknowledged some, wherever it is by then.
        let (acknowledged, killer) = tokio::sync::oneshot::channel::<()>();
        let killing = tokio::spawn(async move {
            killer.await.unwrap();
            for _ in 0..round * 50 {
                tokio::task::yield_now().await;
            }
            drop(server);
        });
        let mut acknowledged = Some(acknowledged);
        for count in 0.. {
            let action = put(&log, "vm", 7);
            let entry = log.propose(&owner, action, 1000 * round + count).unwrap();
            match client.append(&account, &vms, log.head(), std::slice::from_ref(&entry)).await {
                Ok(Head { .. }) => log.apply(entry).unwrap(),
                Err(AppendError::Client(error)) if error.is_passing() => break,
                Err(error) => panic!("{error:?}"),
            }
            if count == 5 + round {
                acknowledged.take().unwrap().send(()).unwrap();
            }
        }
        tokio::time::timeout(Duration::from_secs(60), killing).await.unwrap().unwrap();
    }
    assert!(log.length() > 4 * 6);
    let (_server, url) = Server::start(&database);
    let client = IndexerClient::with(url, Some(token), timeouts, Clock::system()).unwrap();
    let entries = client.log(&account, &vms, 0).await.unwrap();
    assert!(Log::replay(log.bucket(), entries).unwrap().length() >= log.length());
}

//! Writers that race lose nothing and write nothing twice; what a log's rules forbid is refused.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "support/world.rs"]
mod world;

use std::collections::BTreeSet;

use bucket::{Log, Signer};
use format::entry::{Action, SignedEntry};
use indexer::client::{AppendError, ClientError, IndexerClient};
use indexer::{Clock, ServeOptions, serve};
use types::SnapshotId;
use world::{PATIENCE, World, log_of, name, put, signer};

/// Appends one version, rebasing as often as the race is lost.
async fn push(client: &IndexerClient, log: &mut Log, writer: &Signer, number: u8, time_ms: u64) {
    let (account, vms) = (name("alice"), name("vms"));
    let action = put(log, "vm", number);
    let mut tentative = vec![log.propose(writer, action, time_ms).unwrap()];
    while !tentative.is_empty() {
        match client.append(&account, &vms, log.head(), &tentative).await {
            Ok(_) => {
                log.merge(&tentative).unwrap();
                return;
            }
            Err(AppendError::Conflict { head }) => {
                assert!(head.sequence >= log.head().sequence);
                let remote = client.log(&account, &vms, log.length()).await.unwrap();
                tentative = log.rebase(&remote, &tentative, writer).unwrap().entries;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_race_and_every_version_is_there_once() {
    const WRITERS: u8 = 4;
    const EACH: u8 = 8;
    // Two servers on one database: only its transactions order the appends.
    let world = World::new().await;
    let second = serve(ServeOptions::new("127.0.0.1:0".parse().unwrap(), world.database())).await.unwrap();
    let token = world.token("alice").await;
    let alice = world.client(Some(token.clone()));
    let elsewhere = IndexerClient::new(world::url(second.local_addr()), Some(token)).unwrap();
    let owner = signer(1);
    let mut log = log_of(&owner, 0);
    for number in 0..WRITERS {
        let writer = signer(100 + number).public_key();
        log.write(&owner, Action::AddWriter { writer }, 2).unwrap();
    }
    alice.claim(&name("alice"), &name("vms"), false, log.entries()).await.unwrap();
    let tasks: Vec<_> = (0..WRITERS)
        .map(|number| {
            let client = if number % 2 == 0 { alice.clone() } else { elsewhere.clone() };
            let mut log = log.clone();
            tokio::spawn(async move {
                for version in 0..EACH {
                    let snapshot = number * EACH + version;
                    push(&client, &mut log, &signer(100 + number), snapshot, u64::from(snapshot)).await;
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }
    let entries = alice.log(&name("alice"), &name("vms"), 0).await.unwrap();
    let log = Log::replay(log.bucket(), entries).unwrap();
    let (_, versions) = log.objects().next().unwrap();
    let snapshots: BTreeSet<_> = versions.iter().map(|version| version.snapshot).collect();
    assert_eq!((versions.len(), snapshots.len()), (usize::from(WRITERS * EACH), usize::from(WRITERS * EACH)));
}

#[tokio::test]
async fn a_lost_answer_is_no_conflict() {
    let world = World::new().await;
    let alice = world.account("alice").await;
    let (owner, account, vms) = (signer(1), name("alice"), name("vms"));
    let log = log_of(&owner, 5);
    alice.claim(&account, &vms, false, &log.entries()[..2]).await.unwrap();
    let base = log.prefix(2).unwrap().head();
    let new = log.entries_from(2);
    let head = alice.append(&account, &vms, base, new).await.unwrap();
    assert_eq!(alice.append(&account, &vms, base, new).await.unwrap(), head);
    assert_eq!(alice.append(&account, &vms, base, &new[..1]).await.unwrap().sequence, 2, "a part of it");
    // Something else on the old head is one.
    let mut other = log.prefix(2).unwrap();
    let action = put(&other, "other", 9);
    let entry = other.write(&owner, action, 9).unwrap();
    let conflict = alice.append(&account, &vms, base, &[entry]).await.unwrap_err();
    assert!(matches!(conflict, AppendError::Conflict { head: found } if found == head));
}

#[tokio::test]
async fn what_a_log_forbids_is_refused() {
    let world = World::new().await;
    let alice = world.account("alice").await;
    let (owner, account, vms) = (signer(1), name("alice"), name("vms"));
    let log = log_of(&owner, 1);
    let refused = |result: Result<_, AppendError>| match result {
        Err(AppendError::Client(ClientError::Refused(error))) => assert_eq!(error.code, "bad_entries", "{error:?}"),
        other => panic!("{other:?}"),
    };
    // A log that does not begin at the beginning, or is not whole.
    for entries in [&log.entries()[1..], &[]] {
        let claim = alice.claim(&account, &vms, false, entries).await;
        refused(claim.map(|_| log.head()));
    }
    alice.claim(&account, &vms, false, log.entries()).await.unwrap();
    let mut longer = log.clone();
    let action = put(&log, "vm", 2);
    let good = longer.write(&owner, action, 9).unwrap();
    let action = put(&longer, "vm", 3);
    let next = longer.write(&owner, action, 9).unwrap();
    let mut forged = good.clone();
    forged.signature[0] ^= 1;
    let stranger = log_of(&signer(2), 2);
    let garbage = SignedEntry { entry: vec![0xff; 100], signature: [0; 64] };
    for entries in [
        vec![forged.clone()],
        vec![good.clone(), forged],
        vec![next.clone()],
        vec![good.clone(), good.clone()],
        vec![log.entries()[1].clone()],
        vec![stranger.entries()[2].clone()],
        vec![garbage],
    ] {
        refused(alice.append(&account, &vms, log.head(), &entries).await);
        assert_eq!(alice.reference(&account, &vms).await.unwrap().head, log.head().into());
    }
    alice.append(&account, &vms, log.head(), &[good, next]).await.unwrap();
    assert_eq!(alice.log(&account, &vms, 0).await.unwrap(), longer.entries());
}

#[tokio::test]
async fn a_long_log_goes_in_pages_both_ways_and_is_bounded() {
    let mut limit = 0;
    let world = World::with(|options| {
        options.limits.log_entries = 1300;
        limit = options.limits.log_entries;
    })
    .await;
    let alice = world.account("alice").await;
    let (owner, account, vms) = (signer(1), name("alice"), name("vms"));
    let mut log = Log::create(&owner, 1);
    while log.length() < limit {
        let object = name(&format!("object-{}", log.length() % 7));
        let (version, snapshot) = (log.next_version(&object), SnapshotId([3; 32]));
        // Some entries are so long that a page is full before it has its number of entries.
        let message = "long ".repeat(if log.length().is_multiple_of(10) { 6000 } else { 1 });
        let action = Action::Put { object, version, snapshot, size_bytes: 1, message };
        log.write(&owner, action, 2).unwrap();
    }
    let info = alice.claim(&account, &vms, true, log.entries()).await.unwrap();
    assert_eq!(info.head, log.head().into());
    let nobody = IndexerClient::with(world.url(), None, Default::default(), Clock::system()).unwrap();
    assert_eq!(nobody.log(&account, &vms, 0).await.unwrap(), log.entries());
    assert_eq!(nobody.log(&account, &vms, limit - 1).await.unwrap(), log.entries_from(limit - 1));
    assert!(nobody.log(&account, &vms, limit + 5).await.unwrap().is_empty());
    let action = put(&log, "vm", 1);
    let more = log.propose(&owner, action, 3).unwrap();
    let full = alice.append(&account, &vms, log.head(), &[more]).await.unwrap_err();
    assert!(matches!(full, AppendError::Client(ClientError::Refused(error)) if error.code == "over_limit"));
}

//! Event streams: the head at once, each change, an end when the right to read or the server ends.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "support/world.rs"]
mod world;

use futures_util::StreamExt;
use indexer::client::ClientError;
use world::{PATIENCE, World, log_of, name, put, raw, request, signer, status};

#[tokio::test]
async fn a_follower_hears_of_every_head() {
    let world = World::new().await;
    let (alice, nobody) = (world.account("alice").await, world.client(None));
    let (owner, account, vms) = (signer(1), name("alice"), name("vms"));
    let mut log = log_of(&owner, 1);
    alice.claim(&account, &vms, true, log.entries()).await.unwrap();
    alice.claim(&account, &name("other"), true, log.entries()).await.unwrap();
    let mut events = nobody.events(&account, &vms).await.unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
    assert_eq!(next().await.unwrap().unwrap().head, log.head());
    for number in 2..6 {
        let action = put(&log, "vm", number);
        let base = log.head();
        let entry = log.write(&owner, action, 9).unwrap();
        // A change of another reference is not ours.
        alice.append(&account, &name("other"), base, std::slice::from_ref(&entry)).await.unwrap();
        alice.append(&account, &vms, base, &[entry]).await.unwrap();
        assert_eq!(next().await.unwrap().unwrap().head, log.head());
    }
    // It becomes private: the stream ends, and does not come back.
    alice.set_public(&account, &vms, false).await.unwrap();
    assert!(matches!(next().await, Some(Err(ClientError::Closed { .. } | ClientError::Unreachable { .. }))));
    assert!(next().await.is_none());
    assert!(matches!(nobody.events(&account, &vms).await, Err(ClientError::NotFound(_))));
}

#[tokio::test]
async fn a_stopping_server_ends_streams() {
    let world = World::new().await;
    let alice = world.account("alice").await;
    let (account, vms) = (name("alice"), name("vms"));
    alice.claim(&account, &vms, false, log_of(&signer(1), 1).entries()).await.unwrap();
    let mut events = alice.events(&account, &vms).await.unwrap();
    assert!(events.next().await.unwrap().is_ok());
    let url = world.url();
    tokio::time::timeout(PATIENCE, world.serving.stop()).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().is_err());
    let gone = indexer::client::IndexerClient::new(url, None).unwrap().info().await.unwrap_err();
    assert!(matches!(gone, ClientError::Unreachable { .. }) && gone.is_passing() && gone.hint().is_some());
}

#[tokio::test]
async fn what_was_seen_is_not_told_again_and_streams_are_counted() {
    let world = World::with(|options| options.limits.streams_per_caller = 1).await;
    let alice = world.account("alice").await;
    let (owner, account, vms) = (signer(1), name("alice"), name("vms"));
    let mut log = log_of(&owner, 1);
    alice.claim(&account, &vms, true, log.entries()).await.unwrap();
    let path = "/v1/accounts/alice/references/vms/events";
    let seen = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nlast-event-id: 1\r\n\r\n");
    let (address, reading) = (world.address(), tokio::sync::oneshot::channel());
    let reader = tokio::spawn(async move {
        reading.0.send(()).unwrap();
        raw(address, seen.as_bytes()).await
    });
    reading.1.await.unwrap();
    // The stream counts once the server has it.
    let second = async {
        loop {
            let probe = world.client(None).events(&account, &vms).await;
            if let Err(ClientError::Refused(error)) = probe {
                return error;
            }
            drop(probe);
            tokio::task::yield_now().await;
        }
    };
    let refused = tokio::time::timeout(PATIENCE, second).await.unwrap();
    assert_eq!(refused.code, "too_many_streams");
    let base = log.head();
    let action = put(&log, "vm", 2);
    let entry = log.write(&owner, action, 9).unwrap();
    alice.append(&account, &vms, base, &[entry]).await.unwrap();
    alice.set_public(&account, &vms, false).await.unwrap();
    let text = tokio::time::timeout(PATIENCE, reader).await.unwrap().unwrap();
    assert_eq!(status(&text), 200);
    assert!(text.contains("event: head") && text.contains("id: 2") && !text.contains("id: 1"), "{text}");
    let answer = raw(world.address(), &request("GET", path, None, "")).await;
    assert_eq!(status(&answer), 404);
}

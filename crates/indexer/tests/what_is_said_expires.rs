//! Announcements, heads, certificates and proofs hold for as long as they say, by the Indexer's clock.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "support/world.rs"]
mod world;

use indexer::Announced;
use indexer::Clock;
use indexer::client::{ClientError, IndexerClient};
use world::{World, log_of, name, signer, snapshot};

#[tokio::test]
async fn providers_are_forgotten_unless_they_announce_again() {
    let world = World::new().await;
    let alice = world.account("alice").await;
    let (account, vms) = (name("alice"), name("vms"));
    alice.claim(&account, &vms, false, log_of(&signer(1), 1).entries()).await.unwrap();
    let announced = [Announced { snapshot: snapshot(1), complete: true }];
    let (one, two) = (signer(11), signer(12));
    let count = async || alice.providers(&account, &vms, snapshot(1)).await.unwrap().len();
    alice.announce(&account, &vms, &one, &announced, 60).await.unwrap();
    world.clock.advance(30_000);
    alice.announce(&account, &vms, &two, &announced, 60).await.unwrap();
    assert_eq!(count().await, 2);
    world.clock.advance(29_999);
    assert_eq!(count().await, 2);
    world.clock.advance(1);
    assert_eq!(count().await, 1);
    alice.announce(&account, &vms, &one, &announced, 60).await.unwrap();
    assert_eq!(count().await, 2);
    world.clock.advance(3600 * 1000);
    assert_eq!(count().await, 0);
}

#[tokio::test]
async fn certificates_and_heads_are_short_lived() {
    let world = World::new().await;
    let alice = world.account("alice").await;
    let (account, vms, node) = (name("alice"), name("vms"), signer(11));
    alice.claim(&account, &vms, false, log_of(&signer(1), 1).entries()).await.unwrap();
    let certificate = alice.certificate(&node).await.unwrap();
    let (head, _) = alice.head(&account, &vms).await.unwrap();
    let now_ms = world.clock.now_ms();
    let minutes = |minutes: u64| now_ms + minutes * 60_000;
    assert!(certificate.verify(minutes(10)).is_ok() && certificate.verify(minutes(60)).is_err());
    assert!(head.verify(minutes(1)).is_ok() && head.verify(minutes(5)).is_err());
}

#[tokio::test]
async fn clocks_that_disagree_are_told_so() {
    let world = World::new().await;
    let token = world.token("alice").await;
    for (offset_ms, code) in [(-3_600_000_i64, "bad_statement"), (3_600_000, "clock_skew")] {
        let clock = Clock::manual(world.clock.now_ms().checked_add_signed(offset_ms).unwrap());
        let client = IndexerClient::with(world.url(), Some(token.clone()), Default::default(), clock).unwrap();
        let error = client.certificate(&signer(11)).await.unwrap_err();
        let hint = error.hint().unwrap();
        assert!(matches!(error, ClientError::Refused(error) if error.code == code));
        assert!(hint.contains("clock"), "{hint}");
    }
}

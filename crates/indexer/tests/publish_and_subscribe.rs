//! The whole story between two accounts: claim, grant, subscribe, announce, find, certify, publish back, release.

#![allow(clippy::unwrap_used, reason = "a test panics where something is wrong")]

#[path = "support/world.rs"]
mod world;

use bucket::{HeadOrder, Log};
use format::entry::{Action, Reader};
use indexer::client::{AppendError, ClientError};
use indexer::{AddressRecord, Announced, admin};
use world::{World, log_of, name, put, signer, snapshot};

#[tokio::test]
async fn alice_publishes_and_bob_subscribes() {
    let world = World::new().await;
    let (alice, bob, nobody) = (world.account("alice").await, world.account("bob").await, world.client(None));
    let info = nobody.info().await.unwrap();
    assert_eq!(info.key, world.serving.key());
    assert_eq!(bob.whoami().await.unwrap().account, name("bob"));
    assert!(matches!(nobody.whoami().await, Err(ClientError::Unauthorized(_))));

    // Alice claims a private reference; nobody else sees it.
    let owner = signer(1);
    let mut log = log_of(&owner, 2);
    let (account, vms) = (name("alice"), name("vms"));
    let claimed = alice.claim(&account, &vms, false, log.entries()).await.unwrap();
    assert_eq!((claimed.bucket, claimed.public, claimed.head.hash), (log.bucket(), false, log.head().hash));
    assert!(matches!(bob.reference(&account, &vms).await, Err(ClientError::NotFound(_))));
    assert!(matches!(bob.log(&account, &vms, 0).await, Err(ClientError::NotFound(_))));

    // She grants reading to Bob's account at this Indexer.
    let reader = Reader::Account { indexer: info.key, account: name("bob") };
    let grant = log.propose(&owner, Action::Grant { reader: reader.clone() }, 9).unwrap();
    let head = alice.append(&account, &vms, log.head(), std::slice::from_ref(&grant)).await.unwrap();
    log.apply(grant).unwrap();
    assert_eq!(head, log.head());

    // Bob subscribes: what he is told is what he verifies.
    let seen = bob.reference(&account, &vms).await.unwrap();
    let mut replica = Log::replay(seen.bucket, bob.log(&account, &vms, 0).await.unwrap()).unwrap();
    assert_eq!(replica, log);
    let (_, attested) = bob.head(&account, &vms).await.unwrap();
    assert_eq!((attested.indexer, attested.bucket, attested.head()), (info.key, log.bucket(), log.head()));
    assert!(matches!(nobody.reference(&account, &vms).await, Err(ClientError::NotFound(_))));

    // Alice's node announces; Bob's finds it, and shows a certificate that the log accepts.
    let (alices_node, bobs_node) = (signer(11), signer(12));
    let announced = [Announced { snapshot: snapshot(2), complete: true }];
    alice.announce(&account, &vms, &alices_node, &announced, 60).await.unwrap();
    let providers = bob.providers(&account, &vms, snapshot(2)).await.unwrap();
    assert_eq!(
        providers.iter().map(|found| (found.endpoint, found.complete)).collect::<Vec<_>>(),
        [(alices_node.endpoint_id(), true)]
    );
    assert!(bob.providers(&account, &vms, snapshot(1)).await.unwrap().is_empty());
    let addresses = vec!["192.0.2.1:7000".parse().unwrap()];
    alice.put_addresses(&alices_node, addresses.clone(), None).await.unwrap();
    assert_eq!(bob.endpoint(alices_node.endpoint_id()).await.unwrap().unwrap().addresses, addresses);
    assert!(bob.endpoint(bobs_node.endpoint_id()).await.unwrap().is_none());
    let certificate = bob.certificate(&bobs_node).await.unwrap().verify(world.clock.now_ms()).unwrap();
    assert_eq!((certificate.indexer, certificate.endpoint), (info.key, bobs_node.endpoint_id()));
    let certified = [(certificate.indexer, certificate.account)];
    assert!(log.readable_by(bobs_node.endpoint_id(), &certified));
    assert!(!log.readable_by(bobs_node.endpoint_id(), &[]));

    // A new version reaches Bob, who reads only what is new.
    let action = put(&log, "vm", 3);
    let version = log.propose(&owner, action, 10).unwrap();
    alice.append(&account, &vms, log.head(), std::slice::from_ref(&version)).await.unwrap();
    log.apply(version).unwrap();
    let seen = bob.reference(&account, &vms).await.unwrap();
    assert_eq!(replica.compare(seen.head.into()), HeadOrder::Newer);
    let new = bob.log(&account, &vms, replica.length()).await.unwrap();
    assert_eq!(replica.merge(&new).unwrap().added, 1);
    assert_eq!(replica, log);

    // The grant is taken back: Bob learns nothing more.
    let revoke = log.propose(&owner, Action::Revoke { reader }, 11).unwrap();
    alice.append(&account, &vms, log.head(), &[revoke]).await.unwrap();
    assert!(matches!(bob.log(&account, &vms, 0).await, Err(ClientError::NotFound(_))));

    // Public, private, gone.
    assert!(alice.set_public(&account, &vms, true).await.unwrap().public);
    assert_eq!(nobody.reference(&account, &vms).await.unwrap().bucket, log.bucket());
    assert!(
        matches!(bob.set_public(&account, &vms, false).await, Err(ClientError::Refused(error)) if error.code == "not_owner")
    );
    assert!(matches!(bob.release(&account, &vms).await, Err(ClientError::Refused(_))));
    assert_eq!(alice.references().await.unwrap().len(), 1);
    assert!(bob.references().await.unwrap().is_empty());
    alice.release(&account, &vms).await.unwrap();
    assert!(matches!(nobody.reference(&account, &vms).await, Err(ClientError::NotFound(_))));
    assert!(matches!(alice.release(&account, &vms).await, Err(ClientError::NotFound(_))));

    let trail = admin::audit(&world.database(), 100).await.unwrap();
    let actions: Vec<_> = trail.iter().rev().map(|change| (&*change.account, &*change.action)).collect();
    assert_eq!(
        &actions[..4],
        [("alice", "account add"), ("bob", "account add"), ("alice", "claim"), ("alice", "append")]
    );
    assert_eq!(actions.last(), Some(&("alice", "release")));
    world.serving.stop().await;
}

#[tokio::test]
async fn names_are_claimed_once_and_again_only_for_the_same_bucket() {
    let world = World::new().await;
    let (alice, bob) = (world.account("alice").await, world.account("bob").await);
    let (log, other) = (log_of(&signer(1), 3), log_of(&signer(2), 0));
    let (account, vms) = (name("alice"), name("vms"));
    alice.claim(&account, &vms, false, &log.entries()[..2]).await.unwrap();
    let again = alice.claim(&account, &vms, true, log.entries()).await.unwrap();
    assert_eq!((again.head.sequence, again.public), (3, true), "brought up to date");
    let taken = alice.claim(&account, &vms, false, other.entries()).await.unwrap_err();
    assert!(matches!(taken, AppendError::Client(ClientError::Conflict(error)) if error.code == "name_taken"));
    let foreign = bob.claim(&account, &name("x"), false, other.entries()).await.unwrap_err();
    assert!(matches!(foreign, AppendError::Client(ClientError::NotFound(_))));
    // The Indexer knows more than we do.
    let behind = alice.claim(&account, &vms, true, &log.entries()[..2]).await.unwrap_err();
    assert!(matches!(behind, AppendError::Conflict { head } if head == log.head()));
    for number in 0..3 {
        let name = name(&format!("b{number}"));
        alice.claim(&account, &name, false, other.entries()).await.unwrap();
    }
    let names: Vec<_> = alice.references().await.unwrap().into_iter().map(|found| found.name.to_string()).collect();
    assert_eq!(names, ["b0", "b1", "b2", "vms"]);
    // An account that is removed takes its references with it, and its token is worth nothing.
    admin::account_remove(&world.database(), &account).await.unwrap();
    assert!(matches!(alice.whoami().await, Err(ClientError::Unauthorized(_))));
    assert!(matches!(bob.reference(&account, &vms).await, Err(ClientError::NotFound(_))));
    let left = admin::account_list(&world.database()).await.unwrap();
    assert_eq!(left.iter().map(|account| account.name.as_str()).collect::<Vec<_>>(), ["bob"]);
    assert!(matches!(admin::account_add(&world.database(), &name("bob")).await, Err(admin::AdminError::Exists(_))));
}

#[tokio::test]
async fn an_endpoints_word_is_its_own() {
    let world = World::new().await;
    let (alice, node) = (world.account("alice").await, signer(11));
    let record =
        |sequence: u64, port: u16| AddressRecord::sign(&node, sequence, vec![([127, 0, 0, 1], port).into()], None);
    alice.put_endpoint(&record(5, 1)).await.unwrap();
    alice.put_endpoint(&record(5, 1)).await.unwrap();
    for older in [record(4, 2), record(5, 2)] {
        let error = alice.put_endpoint(&older).await.unwrap_err();
        assert!(matches!(error, ClientError::Conflict(error) if error.code == "older_record"));
    }
    alice.put_endpoint(&record(6, 3)).await.unwrap();
    assert_eq!(alice.endpoint(node.endpoint_id()).await.unwrap().unwrap().addresses[0].port(), 3);
    let stranger = world.client(None);
    assert!(matches!(stranger.put_endpoint(&record(7, 4)).await, Err(ClientError::Unauthorized(_))));

    // Only snapshots of the log are announced, and only where the announcement says.
    let log = log_of(&signer(1), 1);
    let (account, vms, other) = (name("alice"), name("vms"), name("other"));
    alice.claim(&account, &vms, false, log.entries()).await.unwrap();
    alice.claim(&account, &other, false, log.entries()).await.unwrap();
    let unknown = [1, 9].map(|number| Announced { snapshot: snapshot(number), complete: false });
    let error = alice.announce(&account, &vms, &node, &unknown, 60).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(error) if error.code == "unknown_snapshot"));
    assert!(alice.providers(&account, &vms, snapshot(1)).await.unwrap().is_empty(), "all or nothing");
    alice.announce(&account, &vms, &node, &unknown[..1], 60).await.unwrap();
    assert!(alice.providers(&account, &other, snapshot(1)).await.unwrap().is_empty());
    assert!(!alice.providers(&account, &vms, snapshot(1)).await.unwrap()[0].complete);
    alice.announce(&account, &vms, &node, &unknown[..1], 0).await.unwrap();
    assert!(alice.providers(&account, &vms, snapshot(1)).await.unwrap().is_empty(), "taken back");
}

//! A provider that does not have everything yet fetches through what it is asked for.

use std::sync::Arc;

use store::{ChunkSource, Domain, Origin, Urgency};
use swarm::message::{Place, Request};
use types::Progress;

use crate::rights::raw;
use crate::world::{Node, TestDisk, To, World, within};

/// A node that shows a disk of which it has nothing but the manifest, and can fetch it at `upstream`.
async fn relay(world: &Arc<World>, disk: &TestDisk, upstream: Origin) -> Node {
    let node = Node::empty(world).await;
    disk.put_some(&*node.store, Domain::PUBLIC, |key| key.kind == store::Kind::Manifest);
    node.library.show(disk.snapshot, To::Everyone, Domain::PUBLIC, vec![Some(upstream)]);
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_parts_come_through_the_publisher_of_a_clone() {
    let world = World::new();
    // The clone's disk has the same tree; its snapshot is another one, of which only the relay knows.
    let base = TestDisk::new(300, 0..300, 1);
    let mut clone = TestDisk::new(300, 0..300, 1);
    clone.rename(2);
    assert_ne!(base.snapshot, clone.snapshot);
    let publisher = Node::publisher(&world, &base).await;
    let relay = relay(&world, &clone, base.origin()).await;
    world.provide(clone.snapshot, &relay);
    let node = Node::empty(&world).await;
    within(async {
        node.read(&clone, 299, Domain::PUBLIC).await;
        assert!(relay.has(clone.id(299), Domain::PUBLIC), "what passes is kept");
        node.swarm.hydrate(&clone.tree(Domain::PUBLIC), &Progress::default()).await.unwrap();
    })
    .await;
    assert!(clone.is_whole(&*node.store, Domain::PUBLIC));
    assert!(clone.is_whole(&*relay.store, Domain::PUBLIC));
    assert!(!publisher.swarm.statistics().peers.contains_key(&node.swarm.endpoint()), "they never met");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_pass_on_to_each_other_do_not_go_in_circles() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 3);
    let relays = [relay(&world, &disk, disk.origin()).await, relay(&world, &disk, disk.origin()).await];
    relays.iter().for_each(|relay| world.provide(disk.snapshot, relay));
    let node = Node::empty(&world).await;
    within(async {
        let read = node.read(&disk, 5, Domain::PUBLIC);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(500), read).await;
        assert!(waited.is_err(), "nobody has it");
        let asked = relays.iter().map(|relay| relay.swarm.statistics().total.served_lazy.requests).sum::<u64>();
        assert!(asked < 200, "{asked} requests for what nobody has");
        let publisher = Node::publisher(&world, &disk).await;
        node.swarm.announced(disk.snapshot);
        relays.iter().for_each(|relay| relay.swarm.announced(disk.snapshot));
        node.read(&disk, 5, Domain::PUBLIC).await;
        publisher.swarm.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_passed_on_as_often_as_it_says() {
    let world = World::new();
    let base = TestDisk::new(10, 0..10, 5);
    let _publisher = Node::publisher(&world, &base).await;
    let mut upstream = base.origin();
    let mut relays = Vec::new();
    for number in 0..2 {
        let mut clone = TestDisk::new(10, 0..10, 5);
        clone.rename(100 + number);
        let relay = relay(&world, &clone, upstream).await;
        world.provide(clone.snapshot, &relay);
        upstream = clone.origin();
        relays.push(relay);
    }
    // The second relay passes on to the first, which passes on to the publisher.
    for (hops, comes) in [(0, false), (1, false), (2, true)] {
        let index = u64::from(hops);
        let request = Request::for_places(upstream.snapshot, 0, vec![Place::Chunk(index)], hops);
        let reply = within(raw(&world, &relays[1], &request)).await;
        assert_eq!(reply.len() > 65536, comes, "{hops} hops");
        assert_eq!(relays[0].has(base.id(index), Domain::PUBLIC), comes, "{hops} hops");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_pass_on_is_absent_soon() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 4);
    let nowhere = Origin { snapshot: types::SnapshotId([1; 32]), disk: 0 };
    let relay = relay(&world, &disk, nowhere).await;
    world.provide(disk.snapshot, &relay);
    let node = Node::empty(&world).await;
    within(async {
        let read = tokio::spawn(node.swarm.fetch(disk.wanted(5, Domain::PUBLIC, Urgency::Lazy)));
        // Asked again after the relay has given up on it for the first time.
        while relay.swarm.statistics().total.served_lazy.requests < 2 {
            tokio::task::yield_now().await;
        }
        assert!(!read.is_finished());
        let _publisher = Node::publisher(&world, &disk).await;
        read.await.unwrap().unwrap();
    })
    .await;
}

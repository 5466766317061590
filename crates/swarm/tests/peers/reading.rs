//! A lazy read brings what it needs, as little as possible, and waits as long as it must.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use store::{ChunkSource, ChunkStore, Domain, FetchError, MemoryStore, Urgency};
use swarm::Swarm;
use swarm::transport::memory::{Network, test_endpoint};
use types::Progress;

use crate::world::{Node, Shelves, TestDisk, World, options, within};

#[tokio::test(flavor = "multi_thread")]
async fn one_chunk_moves_alone() {
    let world = World::new();
    let disk = TestDisk::new(600, 0..600, 1);
    let publisher = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    within(node.read(&disk, 500, Domain::PUBLIC)).await;
    assert!(node.has(disk.id(500), Domain::PUBLIC));
    let served = publisher.swarm.statistics().total;
    assert_eq!((served.served_lazy.objects, served.served_lazy.requests, served.served_bulk.requests), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_waits_for_one_chunk_are_one_transfer() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 2);
    let publisher = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    within(join_all((0..50).map(|_| node.read(&disk, 3, Domain::PUBLIC)))).await;
    // Also one that begins just afterwards.
    within(node.read(&disk, 3, Domain::PUBLIC)).await;
    assert_eq!(publisher.swarm.statistics().total.served_lazy.objects, 1);
}

#[tokio::test]
async fn reads_of_the_same_moment_share_a_request() {
    let world = World::new();
    let disk = TestDisk::new(64, 0..64, 3);
    let publisher = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    within(join_all((0..16).map(|index| node.read(&disk, 2 * index, Domain::PUBLIC)))).await;
    let served = publisher.swarm.statistics().total.served_lazy;
    assert_eq!((served.objects, served.requests), (16, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_until_someone_has_it() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 4);
    let node = Node::empty(&world).await;
    let read = tokio::spawn(node.swarm.fetch(disk.wanted(7, Domain::PUBLIC, Urgency::Lazy)));
    let dropped = node.swarm.fetch(disk.wanted(7, Domain::PUBLIC, Urgency::Lazy));
    // Nobody has it: the wait does not end, and may be given up.
    let gave_up = tokio::time::timeout(std::time::Duration::from_millis(50), dropped).await;
    assert!(gave_up.is_err() && !read.is_finished());
    let _publisher = Node::publisher(&world, &disk).await;
    node.swarm.announced(disk.snapshot);
    within(read).await.unwrap().unwrap();
    assert!(node.has(disk.id(7), Domain::PUBLIC));
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_every_wait() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 5);
    let node = Node::empty(&world).await;
    let read = node.swarm.fetch(disk.wanted(7, Domain::PUBLIC, Urgency::Lazy));
    let (ended, ()) = within(async {
        tokio::join!(read, async {
            tokio::task::yield_now().await;
            node.swarm.close().await;
        })
    })
    .await;
    assert!(matches!(ended, Err(FetchError::Closed)));
    let late = within(node.swarm.fetch(disk.wanted(7, Domain::PUBLIC, Urgency::Lazy))).await;
    assert!(matches!(late, Err(FetchError::Closed)));
    let hydrated = within(node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &Progress::default())).await;
    assert!(matches!(hydrated, Err(swarm::SwarmError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_everything_comes_in_bulk() {
    let world = World::new();
    let disk = TestDisk::new(2000, 0..2000, 6);
    let publisher = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    let progress = Progress::default();
    let tree = disk.tree(Domain::PUBLIC);
    let reads = async {
        for index in (0..2000).rev().step_by(97) {
            node.read(&disk, index, Domain::PUBLIC).await;
            assert!(node.has(disk.id(index), Domain::PUBLIC));
        }
    };
    let (hydrated, ()) = within(async { tokio::join!(node.swarm.hydrate(&tree, &progress), reads) }).await;
    hydrated.unwrap();
    assert!(disk.is_whole(&*node.store, Domain::PUBLIC));
    let served = publisher.swarm.statistics().total;
    let twice = served.served_lazy.objects + served.served_bulk.objects - 2000;
    assert!(twice < 60, "{twice} objects more than the chunks: nodes, and lazy reads that overtook");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_needs_is_closed_and_made_again() {
    let world = World::new();
    let network = Network::new();
    let disk = TestDisk::new(10, 0..10, 7);
    let publisher = Node::join(&world, &network, Arc::new(MemoryStore::new()), 0);
    publisher.publish(&world, &disk);
    let node = Node::join(&world, &network, Arc::new(MemoryStore::new()), 1);
    node.read(&disk, 0, Domain::PUBLIC).await;
    assert_eq!(publisher.swarm.statistics().connected_peers, 1);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(publisher.swarm.statistics().connected_peers, 0);
    assert_eq!(node.swarm.statistics().connected_peers, 0);
    within(node.read(&disk, 1, Domain::PUBLIC)).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_peers_are_served_than_there_are_places_for() {
    let world = World::new();
    let network = Network::new();
    let disk = TestDisk::new(10, 0..10, 8);
    let mut few = options([0; 32]);
    few.max_peers = 2;
    let library = Shelves::new(&world);
    let store: Arc<dyn ChunkStore> = Arc::new(MemoryStore::new());
    let swarm = Swarm::start_over(network.join(test_endpoint()), &few, Arc::clone(&store), library.clone(), 0);
    let publisher = Node { swarm, store, library };
    publisher.publish(&world, &disk);
    let nodes = [1, 2, 3].map(|seed| Node::join(&world, &network, Arc::new(MemoryStore::new()), seed));
    for node in &nodes[..2] {
        within(node.read(&disk, 0, Domain::PUBLIC)).await;
    }
    let third = tokio::spawn(nodes[2].swarm.fetch(disk.wanted(0, Domain::PUBLIC, Urgency::Lazy)));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!third.is_finished());
    assert_eq!(publisher.swarm.statistics().connected_peers, 2);
    nodes[0].swarm.close().await;
    within(third).await.unwrap().unwrap();
}

//! No fault of a provider or of the way to it is more than a delay.

use std::sync::Arc;
use std::time::Duration;

use store::{ChunkSource, ChunkStore, Domain, MemoryStore, Urgency};
use swarm::transport::memory::{Link, Network, test_endpoint};
use types::Progress;

use crate::world::{LyingStore, Node, TestDisk, World, secret, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_banned_and_another_one_asked() {
    let world = World::new();
    let disk = TestDisk::new(300, 0..300, 1);
    let liar = Node::start(&world, secret(), Arc::new(LyingStore::default())).await;
    liar.publish(&world, &disk);
    let honest = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    within(node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &Progress::default())).await.unwrap();
    assert!(disk.is_whole(&*node.store, Domain::PUBLIC));
    let seen = node.swarm.statistics();
    assert_eq!(seen.peers.get(&honest.swarm.endpoint()).map(|peer| peer.bad_objects), Some(0));
    if let Some(peer) = seen.peers.get(&liar.swarm.endpoint()) {
        assert!(peer.bad_objects >= 1 && peer.fetched_bytes() <= 4 << 20, "{peer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_liar_has_is_waited_for() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 2);
    let liar = Node::start(&world, secret(), Arc::new(LyingStore::default())).await;
    liar.publish(&world, &disk);
    let node = Node::empty(&world).await;
    let read = tokio::spawn(node.swarm.fetch(disk.wanted(3, Domain::PUBLIC, Urgency::Lazy)));
    within(async {
        while node.swarm.statistics().total.bad_objects == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!node.has(disk.id(3), Domain::PUBLIC));
        let _honest = Node::publisher(&world, &disk).await;
        node.swarm.announced(disk.snapshot);
        read.await.unwrap().unwrap();
        assert_eq!(node.swarm.statistics().total.bad_objects, 1, "the liar was not asked again");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_comes_back_elsewhere_is_asked_again() {
    let world = World::new();
    let disk = TestDisk::new(2000, 0..2000, 3);
    let key = secret();
    let store: Arc<dyn ChunkStore> = Arc::new(MemoryStore::new());
    let publisher = Node::start(&world, key, Arc::clone(&store)).await;
    publisher.publish(&world, &disk);
    let node = Node::empty(&world).await;
    let progress = Arc::new(Progress::default());
    let run = {
        let (swarm, progress, tree) = (node.swarm.clone(), progress.clone(), disk.tree(Domain::PUBLIC));
        tokio::spawn(async move { swarm.hydrate(&tree, &progress).await })
    };
    within(async {
        while progress.moved_bytes() < 4 << 20 {
            tokio::task::yield_now().await;
        }
        publisher.swarm.close().await;
        // Another port, the same key.
        let publisher = Node::start(&world, key, store).await;
        publisher.publish(&world, &disk);
        run.await.unwrap().unwrap();
    })
    .await;
    assert!(disk.is_whole(&*node.store, Domain::PUBLIC));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_stalls_is_left_for_another() {
    let world = World::new();
    let network = Network::new();
    let disk = TestDisk::new(600, 0..600, 4);
    let providers = [0, 1].map(|seed| {
        let node = Node::join(&world, &network, Arc::new(MemoryStore::new()), seed);
        node.publish(&world, &disk);
        network.set_link(node.swarm.endpoint(), Link { delay: Duration::from_millis(5), bytes_per_second: 4 << 20 });
        node
    });
    let node = Node::join(&world, &network, Arc::new(MemoryStore::new()), 2);
    let progress = Arc::new(Progress::default());
    let run = {
        let (swarm, progress, tree) = (node.swarm.clone(), progress.clone(), disk.tree(Domain::PUBLIC));
        tokio::spawn(async move { swarm.hydrate(&tree, &progress).await })
    };
    within(async {
        while progress.moved_bytes() < 4 << 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        network.stall(providers[0].swarm.endpoint(), true);
        run.await.unwrap().unwrap();
        assert!(disk.is_whole(&*node.store, Domain::PUBLIC));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lazy_read_outlasts_a_stall_of_the_only_provider() {
    let world = World::new();
    let network = Network::new();
    let disk = TestDisk::new(10, 0..10, 5);
    let publisher = Node::join(&world, &network, Arc::new(MemoryStore::new()), 0);
    publisher.publish(&world, &disk);
    let node = Node::join(&world, &network, Arc::new(MemoryStore::new()), 1);
    node.read(&disk, 0, Domain::PUBLIC).await;
    network.stall(publisher.swarm.endpoint(), true);
    let read = tokio::spawn(node.swarm.fetch(disk.wanted(1, Domain::PUBLIC, Urgency::Lazy)));
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert!(!read.is_finished());
    network.stall(publisher.swarm.endpoint(), false);
    within(read).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_vanishes_while_all_wait_is_found_when_it_is_back() {
    let world = World::new();
    let network = Network::new();
    let disk = TestDisk::new(100, 0..100, 6);
    let store: Arc<dyn ChunkStore> = Arc::new(MemoryStore::new());
    let endpoint = test_endpoint();
    let publisher = Node::join_as(&world, &network, endpoint, Arc::clone(&store), 0);
    publisher.publish(&world, &disk);
    let node = Node::join(&world, &network, Arc::new(MemoryStore::new()), 1);
    node.read(&disk, 0, Domain::PUBLIC).await;
    publisher.swarm.close().await;
    let reads: Vec<_> = (1..100)
        .map(|index| tokio::spawn(node.swarm.fetch(disk.wanted(index, Domain::PUBLIC, Urgency::Lazy))))
        .collect();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(reads.iter().all(|read| !read.is_finished()));
    let publisher = Node::join_as(&world, &network, endpoint, store, 2);
    publisher.publish(&world, &disk);
    for read in reads {
        within(read).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lazy_read_is_not_kept_waiting_by_bulk_on_a_slow_link() {
    let world = World::new();
    let network = Network::new();
    let disk = TestDisk::new(2000, 0..2000, 7);
    let publisher = Node::join(&world, &network, Arc::new(MemoryStore::new()), 0);
    publisher.publish(&world, &disk);
    // 20 Mbit/s: a chunk takes 26 ms, the window of 512 KiB that bulk begins with 210 ms.
    let link = Link { delay: Duration::from_millis(5), bytes_per_second: 2_500_000 };
    network.set_link(publisher.swarm.endpoint(), link);
    let node = Node::join(&world, &network, Arc::new(MemoryStore::new()), 1);
    let (swarm, tree) = (node.swarm.clone(), disk.tree(Domain::PUBLIC));
    let run = tokio::spawn(async move { swarm.hydrate(&tree, &Progress::default()).await });
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut waits = Vec::new();
    for index in (1000..1040).rev() {
        // On paused time, this measures the schedule and not the machine.
        let begun = tokio::time::Instant::now();
        node.read(&disk, index, Domain::PUBLIC).await;
        waits.push(begun.elapsed());
    }
    run.abort();
    waits.sort_unstable();
    let median = waits[waits.len() / 2];
    assert!(median < Duration::from_millis(130), "a lazy read waited {median:?} behind bulk data");
}

//! Hydrating brings everything, once, whatever comes between.

use std::sync::Arc;

use store::conformance::ListedRoots;
use store::{ChunkStore as _, CollectOptions, Domain, MemoryStore};
use types::Progress;

use crate::world::{Node, TestDisk, World, secret, within};

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_and_holes_cost_nothing() {
    let world = World::new();
    // Three levels of nodes, with chunks at both ends and in the middle.
    let disk = TestDisk::new(70_000, (0..40).chain(300..340).chain([65_535, 65_536, 69_999]), 1);
    let publisher = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    let progress = Progress::default();
    within(node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &progress)).await.unwrap();
    assert!(disk.is_whole(&*node.store, Domain::PUBLIC));
    assert_eq!(progress.done_bytes(), disk.chunk_bytes());
    assert_eq!(progress.total_bytes(), disk.chunk_bytes());
    assert_eq!(progress.moved_bytes(), disk.chunk_bytes());
    let fetched = node.swarm.statistics().total;
    assert!(fetched.fetched_bulk.payload_bytes < disk.chunk_bytes() + 64_000, "each once: {fetched:?}");
    let served = publisher.swarm.statistics();
    assert_eq!(served.total.served_bytes(), fetched.fetched_bytes());
    assert_eq!(served.peers[&node.swarm.endpoint()].served_bulk.objects, fetched.fetched_bulk.objects);
    assert_eq!(node.swarm.statistics().connected_peers, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_resumes_and_nothing_is_sent_twice() {
    let world = World::new();
    let disk = TestDisk::new(600, 0..500, 2);
    let publisher = Node::publisher(&world, &disk).await;
    let store = Arc::new(MemoryStore::new());
    let node = Node::start(&world, secret(), store.clone()).await;
    let progress = Arc::new(Progress::default());
    let watcher = progress.clone();
    let tree = disk.tree(Domain::PUBLIC);
    let swarm = node.swarm.clone();
    let run = tokio::spawn(async move { swarm.hydrate(&tree, &progress).await });
    // Cancelled as soon as some of it has come.
    within(async {
        while watcher.moved_bytes() == 0 {
            tokio::task::yield_now().await;
        }
        watcher.cancel();
        let ended = run.await.unwrap();
        assert!(ended.is_ok() || matches!(ended, Err(swarm::SwarmError::Cancelled(_))), "{ended:?}");
        node.swarm.close().await;
        let node = Node::start(&world, secret(), store.clone()).await;
        let progress = Progress::default();
        node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &progress).await.unwrap();
        assert!(disk.is_whole(&*store, Domain::PUBLIC));
        assert_eq!(progress.done_bytes(), disk.chunk_bytes());
        // What was under way when it was cancelled may come twice: no more than that.
        let served = publisher.swarm.statistics().total.served_bytes();
        assert!(progress.moved_bytes() <= disk.chunk_bytes());
        assert!(served < disk.chunk_bytes() + (20 << 20), "{served}");
        // And a third time nothing at all.
        let before = publisher.swarm.statistics().total.served_bytes();
        let progress = Progress::default();
        node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &progress).await.unwrap();
        assert_eq!((progress.done_bytes(), progress.moved_bytes()), (disk.chunk_bytes(), 0));
        assert_eq!(publisher.swarm.statistics().total.served_bytes(), before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_providers_share_the_work() {
    let world = World::new();
    let disk = TestDisk::new(900, 0..800, 3);
    let publishers = [
        Node::publisher(&world, &disk).await,
        Node::publisher(&world, &disk).await,
        Node::publisher(&world, &disk).await,
    ];
    let node = Node::empty(&world).await;
    within(node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &Progress::default())).await.unwrap();
    assert!(disk.is_whole(&*node.store, Domain::PUBLIC));
    let served = publishers.map(|publisher| publisher.swarm.statistics().total.served_bytes());
    assert!(served.iter().all(|bytes| *bytes > disk.chunk_bytes() / 20), "{served:?}");
    assert!(served.iter().sum::<u64>() < disk.chunk_bytes() + 200_000, "{served:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_provider_gives_what_only_it_has() {
    let world = World::new();
    let disk = TestDisk::new(300, 0..300, 4);
    let mut providers = Vec::new();
    for part in 0..2 {
        let node = Node::empty(&world).await;
        disk.put_some(&*node.store, Domain::PUBLIC, |key| key.kind != store::Kind::Chunk || key.hash[0] % 2 == part);
        node.library.show(disk.snapshot, crate::world::To::Everyone, Domain::PUBLIC, Vec::new());
        world.provide(disk.snapshot, &node);
        providers.push(node);
    }
    let node = Node::empty(&world).await;
    within(node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &Progress::default())).await.unwrap();
    assert!(disk.is_whole(&*node.store, Domain::PUBLIC));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_alone_can_be_fetched() {
    let world = World::new();
    let disk = TestDisk::new(70_000, [0, 40_000, 69_999], 5);
    let _publisher = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    let domains = Domain::PUBLIC;
    let manifest = within(node.swarm.manifest(disk.snapshot, &domains.into())).await.unwrap();
    assert_eq!(manifest, disk.manifest);
    within(node.swarm.fetch_tree(&disk.tree(domains), &Progress::default())).await.unwrap();
    // Three leaves, two nodes above them, the root, and the manifest.
    assert_eq!(node.store.statistics().unwrap().objects, 3 + 2 + 1 + 1);
    assert!(!node.has(disk.id(0), domains));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_is_whole_at_once() {
    let world = World::new();
    let disk = TestDisk::new(100, [], 6);
    let node = Node::empty(&world).await;
    within(node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &Progress::default())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_be_claimed_here_is_not_fetched() {
    let world = World::new();
    let disk = TestDisk::new(300, 0..300, 7);
    let publisher = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    // All but some chunks are here, in another domain.
    let own = Domain(9);
    disk.put_some(&*node.store, own, |key| key.kind != store::Kind::Chunk || key.hash[0] > 25);
    let absent = disk.chunks.keys().filter(|index| !node.has(disk.id(**index), own)).count() as u64;
    assert!((1..100).contains(&absent), "{absent}");
    node.library.claim_from(node.store.clone(), own);
    let progress = Progress::default();
    within(node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &progress)).await.unwrap();
    assert!(disk.is_whole(&*node.store, Domain::PUBLIC));
    assert_eq!(publisher.swarm.statistics().total.served_bulk.objects, absent);
    assert_eq!((progress.done_bytes(), progress.moved_bytes()), (disk.chunk_bytes(), absent << 16));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_here_stays_for_whoever_holds_the_store() {
    let world = World::new();
    let disk = TestDisk::new(600, 0..500, 9);
    let store = Arc::new(MemoryStore::new());
    // Left by a run before, and nothing refers to it.
    disk.put_all(&*store, Domain::PUBLIC);
    let node = Node::start(&world, secret(), store.clone()).await;
    let hold = store.hold();
    within(node.swarm.hydrate(&disk.tree(Domain::PUBLIC), &Progress::default())).await.unwrap();
    store.collect(&ListedRoots(Vec::new()), &CollectOptions::default(), &Progress::default()).unwrap();
    assert!(disk.is_whole(&*store, Domain::PUBLIC), "the nodes as well as the chunks");
    drop(hold);
}

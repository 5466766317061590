//! Who may not read learns nothing, and nobody's data stands in for somebody else's.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bucket::{SignedCertificate, Signer};
use bytes::Bytes;
use store::{ChunkSource, Domain, Domains, MemoryStore, Urgency};
use swarm::message::{Place, Request, Status};
use swarm::transport::iroh::IrohTransport;
use swarm::transport::{Protocol, Transport};
use types::{EndpointId, SnapshotId};

use crate::world::{Node, Shelves, TestDisk, To, World, indexer, secret, within};

/// What a stranger gets back for a request, byte for byte.
pub(crate) async fn raw(world: &Arc<World>, provider: &Node, request: &Request) -> Bytes {
    let library = Shelves::new(world);
    let transport = IrohTransport::bind(&secret(), &["127.0.0.1:0".parse().unwrap()], library).await.unwrap();
    let connection = transport.connect(provider.swarm.endpoint(), Protocol::Chunks).await.unwrap();
    for first in [Request::Hello { lazy: true, certificates: Vec::new() }, request.clone()] {
        let (mut send, mut receive) = connection.open().await.unwrap();
        send.send(first.encode().into()).await.unwrap();
        send.finish();
        let reply = receive.receive_all(1 << 20).await.unwrap();
        if first == *request {
            transport.close().await;
            return reply;
        }
    }
    unreachable!("the second is the request")
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn certificate(signer: &Signer, account: &str, endpoint: EndpointId, from_now: i64) -> SignedCertificate {
    SignedCertificate::issue(signer, account.parse().unwrap(), endpoint, now_ms().saturating_add_signed(from_now))
}

async fn private(world: &Arc<World>, disk: &TestDisk) -> Node {
    let node = Node::empty(world).await;
    let domain = Domain(7);
    disk.put_all(&*node.store, domain);
    node.library.show(disk.snapshot, To::Account(indexer(1).public_key(), "alice".parse().unwrap()), domain, vec![]);
    world.provide(disk.snapshot, &node);
    node
}

/// Whether a node gets a chunk that is there for whoever may read it.
async fn gets(node: &Node, disk: &TestDisk) -> bool {
    let read = node.swarm.fetch(disk.wanted(0, Domain::OWN, Urgency::Lazy));
    tokio::time::timeout(Duration::from_millis(300), read).await.is_ok_and(|read| read.is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_the_answer_that_an_unknown_snapshot_gets() {
    let world = World::new();
    let disk = TestDisk::new(300, 0..300, 1);
    let provider = private(&world, &disk).await;
    let chunk = disk.snapshot;
    let position = format::Position { level: 0, index: 1 };
    for places in [vec![Place::Manifest], vec![Place::Node(position)], vec![Place::Chunk(0), Place::Chunk(299)]] {
        let ask = |snapshot| Request::for_places(snapshot, 0, places.clone(), 2);
        let (hidden, unknown) = within(async {
            (raw(&world, &provider, &ask(chunk)).await, raw(&world, &provider, &ask(SnapshotId([9; 32]))).await)
        })
        .await;
        assert_eq!(hidden, unknown);
        assert_eq!(hidden, Status::Unknown.encode().as_slice());
    }
    let open = Node::publisher(&world, &disk).await;
    let reply = within(raw(&world, &open, &Request::for_places(disk.snapshot, 0, vec![Place::Chunk(0)], 0))).await;
    assert!(reply.len() > 65536, "the test would see an answer");
    // A disk that the snapshot does not have.
    let reply = within(raw(&world, &open, &Request::for_places(disk.snapshot, 1, vec![Place::Chunk(0)], 0))).await;
    assert_eq!(reply, Status::Unknown.encode().as_slice());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_opens_what_is_granted_to_its_account() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 2);
    let _provider = private(&world, &disk).await;
    let node = Node::empty(&world).await;
    let me = node.swarm.endpoint();
    node.library.set_certificates(vec![
        certificate(&indexer(2), "bob", me, 60_000),
        certificate(&indexer(1), "alice", me, 60_000),
    ]);
    assert!(within(gets(&node, &disk)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_certificates_open_nothing() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 3);
    let _provider = private(&world, &disk).await;
    let other = EndpointId([3; 32]);
    type Make = fn(EndpointId, EndpointId) -> Vec<SignedCertificate>;
    let cases: [(&str, Make); 5] = [
        ("none", |_, _| vec![]),
        ("expired", |me, _| vec![certificate(&indexer(1), "alice", me, -1)]),
        ("another account", |me, _| vec![certificate(&indexer(1), "bob", me, 60_000)]),
        ("another Indexer", |me, _| vec![certificate(&indexer(2), "alice", me, 60_000)]),
        ("another endpoint's", |_, other| vec![certificate(&indexer(1), "alice", other, 60_000)]),
    ];
    for (what, make) in cases {
        let node = Node::empty(&world).await;
        node.library.set_certificates(make(node.swarm.endpoint(), other));
        assert!(!within(gets(&node, &disk)).await, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_comes_later_is_shown_on_the_connection_that_is_there() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 4);
    let _provider = private(&world, &disk).await;
    let node = Node::empty(&world).await;
    assert!(!within(gets(&node, &disk)).await);
    node.library.set_certificates(vec![certificate(&indexer(1), "alice", node.swarm.endpoint(), 60_000)]);
    within(node.read(&disk, 0, Domain::OWN)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_domain_has_is_fetched_again_and_not_served() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 5);
    let publisher = Node::publisher(&world, &disk).await;
    let node = Node::empty(&world).await;
    // It has all of it, but from elsewhere.
    let (mine, theirs) = (Domain(11), Domain(12));
    disk.put_all(&*node.store, theirs);
    within(node.read(&disk, 0, mine)).await;
    assert!(node.has(disk.id(0), mine) && !node.has(disk.id(1), mine));
    assert_eq!(publisher.swarm.statistics().total.served_lazy.objects, 1);
    // What it shows of `mine` has no chunk of `theirs`, though they are the same bytes on the same disk.
    let shown = TestDisk::new(10, 0..10, 5);
    shown.put_some(&*node.store, mine, |key| key.kind != store::Kind::Chunk);
    node.library.show(shown.snapshot, To::Everyone, mine, vec![]);
    let ask = |index| Request::for_places(shown.snapshot, 0, vec![Place::Chunk(index)], 0);
    assert!(within(raw(&world, &node, &ask(0))).await.len() > 65536);
    let absent = within(raw(&world, &node, &ask(1))).await;
    assert_eq!((absent.len(), absent[8]), (20, 0), "one item, absent");
    // With both domains in the set, what is in either counts, and is put in the first.
    node.library.show(shown.snapshot, To::Everyone, Domains::new(&[mine, theirs]), vec![]);
    assert!(within(raw(&world, &node, &ask(1))).await.len() > 65536);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_and_harms_nobody() {
    let world = World::new();
    let disk = TestDisk::new(10, 0..10, 6);
    let publisher = Node::publisher(&world, &disk).await;
    let library = Shelves::new(&world);
    let transport = IrohTransport::bind(&secret(), &["127.0.0.1:0".parse().unwrap()], library).await.unwrap();
    within(async {
        // Instead of a hello: the connection ends.
        let connection = transport.connect(publisher.swarm.endpoint(), Protocol::Chunks).await.unwrap();
        let (mut send, mut receive) = connection.open().await.unwrap();
        send.send(Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n")).await.unwrap();
        send.finish();
        assert!(receive.receive_all(100).await.is_err());
        // After one: an answer.
        let connection = transport.connect(publisher.swarm.endpoint(), Protocol::Chunks).await.unwrap();
        for (bytes, status) in [
            (Request::Hello { lazy: false, certificates: vec![vec![1, 2, 3].into()] }.encode(), Status::Ok),
            (vec![0xff; 1000], Status::Malformed),
            (Vec::new(), Status::Malformed),
        ] {
            let (mut send, mut receive) = connection.open().await.unwrap();
            send.send(bytes.into()).await.unwrap();
            send.finish();
            assert_eq!(receive.receive_all(100).await.unwrap(), status.encode().as_slice());
        }
        // Too much: the stream ends without one.
        let (mut send, mut receive) = connection.open().await.unwrap();
        let _ = send.send(vec![0; 1 << 20].into()).await;
        send.finish();
        assert!(receive.receive_all(100).await.is_err());
        let node = Node::start(&world, secret(), Arc::new(MemoryStore::new())).await;
        node.read(&disk, 1, Domain::PUBLIC).await;
    })
    .await;
}

//! A disk goes from A to B and back: imported, published, subscribed, cloned, written while it is still arriving,
//! snapshotted, published back, and found equal to the byte.

mod support;

use support::{Pair, read_disk, write_disk};
use testkit::Disk;

const SIZE: usize = 48 << 20;

#[test]
fn a_disk_goes_there_and_back_and_only_what_is_new_moves() {
    let pair = Pair::new().expect("two nodes and an Indexer");
    let mut disk = Disk::random(1, SIZE);
    pair.import_and_publish(&disk, "disk").expect("published");
    pair.subscribe_at_b("lazy").expect("subscribed");

    pair.b.brant(&["clone", "vms/disk", "vm"]).expect("cloned");
    let uri = pair.attach(&pair.b, "vm").expect("attached");
    let missing = pair.b.json(&["volume", "show", "vm"]).expect("shown");
    assert!(missing["missing"]["nodes"].as_u64() > Some(0), "nothing has moved yet: {missing}");

    // The guest writes where nothing has arrived, then reads all.
    let patch = vec![0x5a; 100 << 10];
    write_disk(&uri, 3 << 20, &patch).expect("written");
    disk.0[3 << 20..][..patch.len()].copy_from_slice(&patch);
    assert_eq!(read_disk(&uri).expect("read").first_difference(&disk), None);

    pair.b.brant(&["bucket", "create", "back"]).expect("a bucket");
    pair.b.brant(&["snapshot", "create", "vm", "back/disk", "-m", "from B"]).expect("taken");
    pair.b.brant(&["publish", "back", &pair.reference("bob", "back")]).expect("published back");
    pair.grant(&pair.b, "back", "alice").expect("granted");
    let before = pair.received(&pair.a).expect("status");
    pair.a.brant(&["subscribe", &pair.reference("bob", "back")]).expect("subscribed back");
    pair.clone_when_sealed(&pair.a, "back/disk", "returned").expect("cloned back");
    let uri = pair.attach(&pair.a, "returned").expect("attached");
    assert_eq!(read_disk(&uri).expect("read").first_difference(&disk), None);
    let moved = pair.received(&pair.a).expect("status") - before;
    assert!(moved < 1 << 20, "{moved} bytes moved for 100 KiB of change");
}

#[test]
fn a_public_bucket_needs_no_account_and_full_brings_everything() {
    let pair = Pair::new().expect("two nodes and an Indexer");
    let disk = Disk::random(2, SIZE);
    pair.import(&disk, "disk").expect("imported");
    pair.a.brant(&["publish", "vms", &pair.reference("alice", "vms"), "--public"]).expect("published");
    let stranger = pair.world.start_node("c").expect("a node without account");
    stranger.brant(&["subscribe", &pair.reference("alice", "vms"), "--policy", "full"]).expect("subscribed");
    testkit::wait::until("everything is here", || {
        let shown = stranger.try_brant(&["snapshot", "show", "vms/disk", "--json"])?;
        Ok((shown.code == 0 && support::nothing_missing(&shown.json()?["disks"][0]["missing"])).then_some(()))
    })
    .expect("hydrated");
    pair.a.kill().expect("A is gone");
    let target = pair.world.path("out.raw");
    stranger.brant(&["materialize", "vms/disk", target.to_str().expect("a path")]).expect("written out");
    assert_eq!(Disk::read_from(&target).expect("read").first_difference(&disk), None);
}

#[test]
fn a_private_reference_looks_to_a_stranger_as_if_it_did_not_exist() {
    let pair = Pair::new().expect("two nodes and an Indexer");
    pair.import(&Disk::random(3, 1 << 20), "disk").expect("imported");
    pair.a.brant(&["publish", "vms", &pair.reference("alice", "vms")]).expect("published");
    let stranger = pair.world.start_node("c").expect("a node without account");
    let answer = |reference: &str| {
        let output = stranger.try_brant(&["subscribe", reference]).expect("run").failed_with(3).expect("not found");
        output.stderr.replace(reference, "REFERENCE")
    };
    assert_eq!(answer(&pair.reference("alice", "vms")), answer(&pair.reference("alice", "nothing")));
}

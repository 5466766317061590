//! A disk goes from A to B and back: imported, published, subscribed, cloned, written while it is still elsewhere,
//! snapshotted, published back, and found equal to the byte.

use e2e::{Pair, attach, nothing_missing, read_disk, received, write_disk};
use testkit::{Disk, wait};

const SIZE: usize = 48 << 20;

#[test]
fn a_disk_goes_there_and_back_and_only_what_is_new_moves() {
    let pair = Pair::new().expect("two nodes and an Indexer");
    let mut disk = Disk::random(1, SIZE);
    pair.clone_at_b(&disk, "vm").expect("a clone at B");
    let uri = attach(&pair.b, "vm").expect("attached");
    let shown = pair.b.json(&["volume", "show", "vm"]).expect("shown");
    assert!(!nothing_missing(&shown["missing"]), "nothing has moved yet: {shown}");

    // The guest writes where nothing has arrived, then reads all.
    let patch = vec![0x5a; 100 << 10];
    write_disk(&uri, 3 << 20, &patch).expect("written");
    disk.0[3 << 20..][..patch.len()].copy_from_slice(&patch);
    assert_eq!(read_disk(&uri).expect("read").first_difference(&disk), None);

    pair.b.brant(&["bucket", "create", "back"]).expect("a bucket");
    pair.b.brant(&["snapshot", "create", "vm", "back/disk", "-m", "from B"]).expect("taken");
    let reference = pair.reference("bob", "back");
    pair.b.brant(&["publish", "back", &reference]).expect("published back");
    pair.grant(&pair.b, "back", "alice").expect("granted");
    let before = received(&pair.a).expect("status");
    pair.subscribe(&pair.a, &reference, "lazy").expect("subscribed back");
    pair.clone_when_there(&pair.a, "back/disk", "returned").expect("cloned back");
    let uri = attach(&pair.a, "returned").expect("attached");
    assert_eq!(read_disk(&uri).expect("read").first_difference(&disk), None);
    let moved = received(&pair.a).expect("status") - before;
    assert!(moved < 1 << 20, "{moved} bytes moved for 100 KiB of change");
}

#[test]
fn a_public_bucket_needs_no_account_and_full_brings_everything() {
    let pair = Pair::new().expect("two nodes and an Indexer");
    let disk = Disk::random(2, SIZE);
    pair.import(&disk, "disk").expect("imported");
    let reference = pair.reference("alice", "vms");
    pair.a.brant(&["publish", "vms", &reference, "--public"]).expect("published");
    let stranger = pair.world.start_node("c").expect("a node without account");
    stranger.brant(&["subscribe", &reference, "--policy", "full"]).expect("subscribed");
    wait::until("everything is here", || {
        let shown = stranger.try_brant(&["snapshot", "show", "vms/disk", "--json"])?;
        Ok((shown.code == 0 && nothing_missing(&shown.json()?["disks"][0]["missing"])).then_some(()))
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
    let private = pair.reference("alice", "vms");
    pair.a.brant(&["publish", "vms", &private]).expect("published");
    let stranger = pair.world.start_node("c").expect("a node without account");
    let answer = |reference: &str| {
        let output = stranger.try_brant(&["subscribe", reference]).expect("run").failed_with(3).expect("not found");
        output.stderr.replace(reference, "REFERENCE")
    };
    assert_eq!(answer(&private), answer(&pair.reference("alice", "nothing")));
}

//! A node's volumes as an operator handles them: deleting and taking back, reverting, comparing and growing, with the
//! attachments that there are and across `kill -9`.

use capture::ForeignDisk as _;
use e2e::{attach, connect, read_disk, write_disk};
use serde_json::Value;
use testkit::{Disk, Node, World, wait};

const SIZE: usize = 4 << 20;
const CHUNK: u64 = 65_536;

/// A node alone, with a bucket and a volume of noise.
fn node_with_volume() -> (World, Node, Disk) {
    let world = World::new(e2e::brant()).expect("a directory");
    let node = world.start_node("a").expect("a node");
    node.brant(&["bucket", "create", "vms"]).expect("a bucket");
    node.brant(&["volume", "create", "web", "--size", "4MiB"]).expect("a volume");
    let disk = Disk::random(1, SIZE);
    write_disk(&attach(&node, "web").expect("attached"), 0, &disk.0).expect("written");
    (world, node, disk)
}

fn snapshot(node: &Node, volume: &str) -> String {
    let taken = node.json(&["snapshot", "create", volume, "vms/web", "--wait"]).expect("a snapshot");
    format!("vms/web@{}", taken["version"])
}

fn content(node: &Node, volume: &str) -> Disk {
    let uri = match node.json(&["volume", "show", volume]).expect("a volume")["attached"][0].as_str() {
        Some(uri) => uri.to_owned(),
        None => attach(node, volume).expect("attached"),
    };
    read_disk(&uri).expect("read")
}

/// Waits until nobody uses a volume: a client that has gone is noticed a little later.
fn until_unused(node: &Node, volume: &str) {
    wait::until("nobody uses the volume", || {
        let all = node.json(&["attach"])?;
        let used = all.as_array().into_iter().flatten().find(|attachment| attachment["target"] == volume);
        Ok((used.is_none_or(|attachment| attachment["connections"] == 0)).then_some(()))
    })
    .expect("unused");
}

#[test]
fn a_deleted_volume_is_kept_its_name_is_free_and_it_comes_back() {
    let (world, node, disk) = node_with_volume();
    let refused = node.try_brant(&["volume", "remove", "web"]).expect("run").failed_with(4).expect("attached");
    assert!(refused.stderr.contains("brant detach web"), "{}", refused.stderr);
    until_unused(&node, "web");
    node.brant(&["detach", "web"]).expect("detached");
    let removed = node.brant(&["volume", "remove", "web"]).expect("deleted");
    assert!(removed.stderr.contains("take it back with: brant volume restore web"), "{}", removed.stderr);
    assert_eq!(node.json(&["volume", "list"]).expect("a list"), Value::Array(Vec::new()));
    let gone = node.try_brant(&["volume", "show", "web"]).expect("run").failed_with(3).expect("not found");
    assert!(gone.stderr.contains("brant volume restore web"), "{}", gone.stderr);

    let deleted = node.json(&["volume", "list", "--deleted"]).expect("a list");
    let id = deleted[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!((&deleted[0]["name"], &deleted[0]["note"]), (&"web".into(), &"removed".into()));
    let days = deleted[0]["expires_ms"].as_u64().expect("a time") - deleted[0]["deleted_ms"].as_u64().expect("a time");
    assert_eq!(days, 7 * 86_400_000);
    assert!(deleted[0]["journal_bytes"].as_u64().expect("bytes") >= SIZE as u64);

    node.brant(&["volume", "create", "web", "--size", "1MiB"]).expect("the name is free");
    node.kill().expect("killed");
    let node = world.start_node("a").expect("started again");
    let taken = node.try_brant(&["volume", "restore", "web"]).expect("run").failed_with(4).expect("the name is taken");
    assert!(taken.stderr.contains("--as NAME"), "{}", taken.stderr);
    node.brant(&["volume", "restore", &id[..10], "--as", "old"]).expect("back");
    assert_eq!(content(&node, "old").first_difference(&disk), None);

    // Gone for good: by name at once, and one that is deleted already by its id only.
    node.brant(&["volume", "remove", "web", "--now"]).expect("gone");
    until_unused(&node, "old");
    node.brant(&["detach", "old"]).expect("detached");
    node.brant(&["volume", "remove", "old"]).expect("deleted");
    node.try_brant(&["volume", "remove", "old", "--now"]).expect("run").failed_with(3).expect("a name is a guess");
    node.brant(&["volume", "remove", &id, "--now"]).expect("gone");
    node.try_brant(&["volume", "restore", &id]).expect("run").failed_with(3).expect("gone for good");
    assert_eq!(node.json(&["volume", "list", "--deleted"]).expect("a list"), Value::Array(Vec::new()));
}

#[test]
fn a_volume_is_reverted_where_nobody_uses_it_and_that_can_be_taken_back() {
    let (world, node, first) = node_with_volume();
    let version = snapshot(&node, "web");
    node.brant(&["volume", "resize", "web", "--size", "6MiB"]).expect("grown");
    let uri = node.json(&["volume", "show", "web"]).expect("shown")["attached"][0].as_str().expect("a URI").to_owned();
    write_disk(&uri, 5 << 20, &[7; 4096]).expect("written beyond the old end");
    let second = content(&node, "web");
    assert_eq!(second.0.len(), 6 << 20);

    until_unused(&node, "web");
    let client = connect(&uri).expect("connected");
    let refused = node.try_brant(&["revert", "web", &version]).expect("run").failed_with(4).expect("in use");
    assert!(refused.stderr.contains("connected\nhint: stop whoever uses it"), "{}", refused.stderr);
    drop(client);
    until_unused(&node, "web");
    let reverted = node.json(&["revert", "web", &version]).expect("reverted");
    assert_eq!((&reverted["volume"]["name"], &reverted["volume"]["size_bytes"]), (&"web".into(), &SIZE.into()));
    assert_eq!(reverted["kept"]["note"], format!("before it was reverted to {version}"));
    assert_eq!(read_disk(&uri).expect("the attachment stayed").first_difference(&first), None);
    write_disk(&uri, 0, &[9; 512]).expect("written");

    node.kill().expect("killed");
    let node = world.start_node("a").expect("started again");
    let mut expected = first.clone();
    expected.0[..512].fill(9);
    assert_eq!(read_disk(&uri).expect("read").first_difference(&expected), None);
    until_unused(&node, "web");
    let kept = reverted["kept"]["id"].as_str().expect("an id");
    node.brant(&["revert", "web", kept]).expect("taken back");
    assert_eq!(read_disk(&uri).expect("read").first_difference(&second), None);
    node.brant(&["volume", "restore", "web", "--as", "both"]).expect("the latest of that name");
    assert_eq!(content(&node, "both").first_difference(&expected), None);
    node.try_brant(&["revert", "web", "vms/web@9"]).expect("run").failed_with(3).expect("no such version");
    node.try_brant(&["revert", "nobody", &version]).expect("run").failed_with(3).expect("no such volume");
}

#[test]
fn a_snapshot_that_is_attached_before_it_is_sealed_stays_readable() {
    let (_world, node, _) = node_with_volume();
    // So much that sealing takes longer than attaching.
    node.brant(&["volume", "create", "large", "--size", "128MiB"]).expect("a volume");
    let disk = Disk::random(2, 128 << 20);
    write_disk(&attach(&node, "large").expect("attached"), 0, &disk.0).expect("written");
    let taken = node.json(&["snapshot", "create", "large", "vms/early"]).expect("a snapshot");
    let path = format!("vms/early@{}", taken["version"]);
    let uri = attach(&node, &path).expect("attached");
    let before = connect(&uri).expect("a client");
    wait::until("the snapshot is sealed", || {
        let shown = node.json(&["snapshot", "show", &path])?;
        Ok(shown["id"].is_string().then_some(()))
    })
    .expect("sealed");
    let mut first = vec![0; 4096];
    before.read_at(0, &mut first).expect("what was connected before goes on");
    assert!(first == disk.0[..4096]);
    assert!(read_disk(&uri).expect("so does who comes later").0 == disk.0);
}

#[test]
fn what_differs_is_told_of_versions_and_volumes() {
    let (_world, node, _) = node_with_volume();
    let first = snapshot(&node, "web");
    let uri = node.json(&["volume", "show", "web"]).expect("shown")["attached"][0].as_str().expect("a URI").to_owned();
    write_disk(&uri, 2 * CHUNK + 512, &[1; 512]).expect("written");
    write_disk(&uri, 3 * CHUNK, &[2; 4096]).expect("written");
    write_disk(&uri, 10 * CHUNK, &[0; 65_536]).expect("written");
    let second = snapshot(&node, "web");
    let expected = serde_json::json!([
        {"offset": 2 * CHUNK, "length": 2 * CHUNK, "kind": "data"},
        {"offset": 10 * CHUNK, "length": CHUNK, "kind": "zero"},
    ]);
    for to in [second.as_str(), "web"] {
        let found = node.json(&["snapshot", "diff", &first, to]).expect("compared");
        assert_eq!(found["extents"], expected, "{to}");
        assert_eq!((&found["from"], &found["to"]), (&first.as_str().into(), &to.into()));
        assert_eq!((&found["data_bytes"], &found["zero_bytes"]), (&(2 * CHUNK).into(), &CHUNK.into()));
    }
    let text = node.brant(&["snapshot", "diff", &first, &second]).expect("compared").stdout;
    assert!(text.contains("differ: 128 KiB other data, 64 KiB zero now\n"), "{text}");
    let text = node.brant(&["snapshot", "diff", &second, "web"]).expect("compared").stdout;
    assert!(text.contains("no difference"), "{text}");
    node.try_brant(&["snapshot", "diff", &first, "nobody"]).expect("run").failed_with(3).expect("no such volume");
    node.try_brant(&["snapshot", "diff", &first, "vms/web@77"]).expect("run").failed_with(3).expect("no such version");
}

#[test]
fn a_volume_grows_and_so_do_its_snapshots_and_clones() {
    let (world, node, mut disk) = node_with_volume();
    let before = snapshot(&node, "web");
    let refused = node.try_brant(&["volume", "resize", "web", "--size", "1MiB"]).expect("run").failed_with(2);
    assert!(refused.expect("no shrinking").stderr.contains("only grows"));
    node.try_brant(&["volume", "resize", "web", "--size", "5000000"]).expect("run").failed_with(2).expect("no sectors");
    node.brant(&["volume", "resize", "web", "--size", "8MiB"]).expect("grown");
    let after = node.json(&["snapshot", "create", "web", "vms/web", "--wait"]).expect("a snapshot");
    assert_eq!(after["size_bytes"], 8 << 20);
    node.brant(&["clone", "vms/web", "copy"]).expect("a clone");
    disk.0.resize(8 << 20, 0);
    for volume in ["web", "copy"] {
        assert_eq!(content(&node, volume).first_difference(&disk), None, "{volume}");
    }
    let uri = node.json(&["volume", "show", "web"]).expect("shown")["attached"][0].as_str().expect("a URI").to_owned();
    write_disk(&uri, (8 << 20) - 512, &[3; 512]).expect("written at the new end");
    disk.0[(8 << 20) - 512..].fill(3);
    node.kill().expect("killed");
    let node = world.start_node("a").expect("started again");
    assert_eq!(read_disk(&uri).expect("read").first_difference(&disk), None);
    let grown = node.json(&["snapshot", "diff", &before, "web"]).expect("compared");
    assert_eq!((&grown["from_size_bytes"], &grown["to_size_bytes"]), (&(4 << 20).into(), &(8 << 20).into()));
    assert_eq!(grown["data_bytes"], CHUNK, "zeroes that were added are no difference");
}

//! Bad input, damage and full disks, as whole commands at the built program: each gets its exit code and a sentence that
//! says what is wrong, and nothing that was acknowledged is lost.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Pair, SmallDisk, attach, connect, read_disk, write_disk};
use testkit::disk::Noise;
use testkit::{Disk, Node, World};
use xtask::tally::SKIP_MARK;

const SIZE: usize = 8 << 20;

/// A node with a bucket `b`.
fn node() -> (World, Node) {
    let world = World::new(e2e::brant()).expect("a world");
    let node = world.start_node("n").expect("a node");
    node.brant(&["bucket", "create", "b"]).expect("a bucket");
    (world, node)
}

/// Runs a command that fails with an exit code, and says words.
fn refused(node: &Node, arguments: &[&str], code: i32, words: &str) {
    let output = node.try_brant(arguments).expect("run").failed_with(code).expect("refused");
    assert!(output.stderr.starts_with("error: ") && output.stderr.contains(words), "{arguments:?}: {}", output.stderr);
    assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path of text").to_owned()
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Noise::new(seed).fill(&mut bytes);
    bytes
}

fn imported(world: &World, node: &Node, object: &str, seed: u64) -> Disk {
    let disk = Disk::random(seed, SIZE);
    let file = world.path(&format!("{seed}.raw"));
    disk.write_to(&file).expect("a file");
    node.brant(&["import", &text(&file), object]).expect("imported");
    disk
}

/// Everything that a snapshot holds, by writing it out.
fn written_out(world: &World, node: &Node, snapshot: &str) -> Disk {
    let target = world.path("out.raw");
    // It may be there from the last time.
    drop(fs::remove_file(&target));
    node.brant(&["materialize", snapshot, &text(&target)]).expect("written out");
    Disk::read_from(&target).expect("read")
}

#[test]
fn what_is_no_disk_image_is_not_imported() {
    let (world, node) = node();
    let file = |name: &str, content: &[u8]| {
        let path = world.path(name);
        fs::write(&path, content).expect("a file");
        text(&path)
    };
    refused(&node, &["import", &text(&world.path("none.raw")), "b/x"], 3, "none.raw");
    refused(&node, &["import", &text(&world.path("")), "b/x"], 2, "director");
    refused(&node, &["import", "/dev/null", "b/x"], 2, "/dev/null");
    refused(&node, &["import", &file("empty.raw", b""), "b/x"], 2, "empty");
    let archive = [&[0x1f, 0x8b, 8, 0][..], &[7; 1020]].concat();
    refused(&node, &["import", &file("disk.raw.gz", &archive), "b/x"], 2, "gzip");
    let qcow2 = [&b"QFI\xfb"[..], &[0; 1020]].concat();
    refused(&node, &["import", &file("bad.qcow2", &qcow2), "b/x"], 2, "not supported");
    if xtask::setup::QEMU_IMG.is_present() {
        let raw = world.path("whole.raw");
        Disk(noise(1, SIZE)).write_to(&raw).expect("a file");
        let whole = world.path("cut.qcow2");
        let convert = Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&whole).status();
        assert!(convert.expect("qemu-img runs").success());
        OpenOptions::new().write(true).open(&whole).and_then(|file| file.set_len(SIZE as u64 / 2)).expect("cut");
        refused(&node, &["import", &text(&whole), "b/x"], 8, "truncated");
    } else {
        println!("{SKIP_MARK}a truncated qcow2: missing {}", xtask::setup::describe(&[xtask::setup::QEMU_IMG]));
    }
    refused(&node, &["snapshot", "show", "b/x"], 3, "b/x");
}

#[test]
fn names_that_exist_are_malformed_or_unknown_are_told_apart() {
    let (world, node) = node();
    imported(&world, &node, "b/disk", 1);
    node.brant(&["clone", "b/disk", "vm"]).expect("cloned");
    for (arguments, code, words) in [
        (&["bucket", "create", "b"][..], 4, "b"),
        (&["bucket", "create", "Not/A Name"], 2, "name"),
        (&["bucket", "create", ""], 2, "name"),
        (&["clone", "b/disk", "vm"], 4, "vm"),
        (&["clone", "b/disk", "-vm/"], 2, ""),
        (&["clone", "b/disk@2", "other"], 3, "b/disk@2"),
        (&["clone", "b/disk@0", "other"], 2, "VERSION"),
        (&["clone", "b/nothing", "other"], 3, "b/nothing"),
        (&["clone", "nowhere/disk", "other"], 3, "nowhere"),
        (&["clone", &"0".repeat(64), "other"], 3, ""),
        (&["volume", "create", "huge", "--size", "65TiB"], 2, "64 TiB"),
        (&["volume", "create", "odd", "--size", "1000"], 2, "512"),
        (&["volume", "create", "vm", "--size", "1MiB"], 4, "vm"),
        (&["volume", "show", "nothing"], 3, "nothing"),
        (&["attach", "nothing"], 3, "nothing"),
        (&["detach", "vm"], 3, "vm"),
        (&["snapshot", "create", "nothing", "b/y"], 3, "nothing"),
        (&["snapshot", "create", "vm", "nowhere/y"], 3, "nowhere"),
        (&["task", "show", "999"], 3, "999"),
        (&["subscribe", "no-reference"], 2, ""),
        (&["subscribe", "127.0.0.1:1/alice/vms"], 7, "127.0.0.1:1"),
        (&["publish", "b", "127.0.0.1:1/alice/b"], 5, "no account"),
    ] {
        if code == 2 {
            // Usage errors may come from the command line itself.
            let output = node.try_brant(arguments).expect("run").failed_with(2).expect("refused");
            assert!(output.stderr.contains(words), "{arguments:?}: {}", output.stderr);
        } else {
            refused(&node, arguments, code, words);
        }
    }
    let target = world.path("there.raw");
    fs::write(&target, b"precious").expect("a file");
    refused(&node, &["materialize", "b/disk", &text(&target)], 4, "there.raw");
    assert_eq!(fs::read(&target).expect("read"), b"precious");
}

/// Who a file's permissions hold back: not root.
const NOBODY: &str = "65534";

#[test]
fn a_file_without_permission_is_named() {
    if !xtask::setup::is_root() || xtask::setup::find("setpriv").is_none() {
        println!("{SKIP_MARK}a file without permission: needs root and setpriv, to become somebody else");
        return;
    }
    let (world, node) = node();
    // A node of somebody else, with its socket where they may go.
    let directory = world.path("");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("opened");
    let secret = world.path("secret.raw");
    Disk::random(1, SIZE).write_to(&secret).expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("closed");
    let output = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(e2e::brant())
        .args(["import", &text(&secret), "b/x"])
        .env("BRANT_NODE", node.directory())
        .output()
        .expect("setpriv runs");
    let said = String::from_utf8_lossy(&output.stderr);
    // The program itself may lie where nobody may go.
    if output.status.code() == Some(127) || output.status.code() == Some(126) {
        println!("{SKIP_MARK}a file without permission: others may not run the program under test");
        return;
    }
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("secret.raw") || said.contains("node.sock"), "{said}");
}

#[test]
fn a_store_is_opened_by_one_node_and_by_none_that_is_too_old() {
    let (world, mut node) = node();
    let disk = imported(&world, &node, "b/disk", 1);
    let directory = text(node.directory());
    let serve = ["node", "serve", "--bind", "127.0.0.1:0", "--dir", &directory];
    let second = world.brant(&serve).expect("run").failed_with(4).expect("refused");
    assert!(second.stderr.contains("in use"), "{}", second.stderr);
    assert_eq!(written_out(&world, &node, "b/disk").first_difference(&disk), None);
    node.service.kill().expect("killed");

    let format = node.directory().join("store/format");
    let before = fs::read_to_string(&format).expect("the format file");
    fs::write(&format, before.replacen("version 1", "version 9", 1)).expect("written");
    assert_ne!(fs::read_to_string(&format).expect("read"), before, "{before}");
    let newer = world.brant(&serve).expect("run").failed_with(2).expect("refused");
    assert!(newer.stderr.contains("newer brant"), "{}", newer.stderr);
    fs::write(&format, before).expect("written");
    let node = world.start_node("n").expect("as before");
    assert_eq!(written_out(&world, &node, "b/disk").first_difference(&disk), None);
}

/// Changes bytes in the middle of a file.
fn spoil(path: &Path, at: u64, length: usize) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).expect("read");
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, at).expect("written");
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("listed").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    files
}

#[test]
fn a_damaged_index_and_a_damaged_catalog_are_made_anew() {
    let (world, node) = node();
    let disk = imported(&world, &node, "b/disk", 1);
    let directory = node.directory().to_owned();
    // So that no journal of the database heals it.
    node.service.terminate().expect("ended");
    let index = directory.join("store/index");
    for entry in fs::read_dir(&index).expect("listed").map(|entry| entry.expect("an entry").path()) {
        if entry.is_file() {
            fs::write(&entry, b"no index").expect("written");
        }
    }
    let catalogs = files(&directory, "sqlite");
    let [catalog] = &catalogs[..] else { panic!("one catalog: {catalogs:?}") };
    fs::write(catalog, noise(1, 20_000)).expect("written");
    let node = world.start_node("n").expect("started with what is left");
    assert_eq!(written_out(&world, &node, "b/disk").first_difference(&disk), None);
    let listed = node.json(&["snapshot", "list", "b"]).expect("listed");
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert!(catalog.with_extension("damaged").exists(), "what was damaged is kept");
}

#[test]
fn damage_in_a_pack_is_an_error_where_it_is_and_nowhere_else() {
    let (world, node) = node();
    let file = world.path("noise.raw");
    // Does not compress, so that each chunk has its place in the pack.
    let disk = Disk(noise(3, SIZE));
    disk.write_to(&file).expect("a file");
    node.brant(&["import", &text(&file), "b/disk"]).expect("imported");
    let packs = node.directory().join("store/packs");
    node.service.terminate().expect("ended");
    let packs = files(&packs, "pack");
    spoil(&packs[0], SIZE as u64 / 2, 16);
    let node = world.start_node("n").expect("started");
    let out = text(&world.path("out.raw"));
    refused(&node, &["materialize", "b/disk", &out], 8, "damaged");
    node.brant(&["clone", "b/disk", "vm"]).expect("cloned");
    let client = connect(&attach(&node, "vm").expect("attached")).expect("connected");
    let (mut bad, mut piece) = (0, vec![0; 64 << 10]);
    for (number, expected) in disk.0.chunks(64 << 10).enumerate() {
        use capture::ForeignDisk as _;
        match client.read_at((number * (64 << 10)) as u64, &mut piece) {
            Ok(()) => assert!(piece == expected, "piece {number}"),
            Err(_) => bad += 1,
        }
    }
    assert!((1..=2).contains(&bad), "{bad} pieces cannot be read");
}

#[test]
fn a_torn_journal_tail_costs_only_what_was_torn() {
    let (world, mut node) = node();
    node.brant(&["volume", "create", "vm", "--size", "8MiB"]).expect("created");
    let uri = attach(&node, "vm").expect("attached");
    let (first, second) = (noise(1, 4096), noise(2, 4096));
    write_disk(&uri, 0, &first).expect("written");
    write_disk(&uri, 1 << 20, &second).expect("written");
    node.service.kill().expect("killed");
    let journals = files(&node.directory().join("layers"), "segment");
    let [journal] = &journals[..] else { panic!("one journal: {journals:?}") };
    let length = journal.metadata().expect("there").len();
    spoil(journal, length - 100, 50);
    let node = world.start_node("n").expect("started");
    let disk = read_disk(&uri).expect("read");
    assert!(disk.0[..4096] == first[..]);
    assert!(disk.0[1 << 20..][..4096] == [0; 4096], "a torn record is not taken for a whole one");
    drop(node);
}

#[test]
fn a_wrong_token_is_refused_and_so_is_a_strangers_publish() {
    let pair = Pair::new().expect("two nodes and an Indexer");
    let wrong = pair.b.login(&pair.indexer, "brant_0000000000000000000000000000000000000000000").expect_err("refused");
    assert!(format!("{wrong:#}").contains("ended with 5"), "{wrong:#}");
    pair.import(&Disk::random(1, SIZE), "disk").expect("imported");
    // Bob's name space is Bob's.
    refused(&pair.a, &["publish", "vms", &pair.reference("bob", "vms")], 5, "");
}

#[test]
fn a_full_disk_stops_an_import_and_a_guest_and_when_there_is_room_both_go_on() {
    let world = World::new(e2e::brant()).expect("a world");
    let Some(small) = SmallDisk::mount_or_skip(world.path("small"), 200).expect("a small disk") else { return };
    let mut node = world.start_node_in("n", &small.path().join("node")).expect("a node");
    node.brant(&["bucket", "create", "b"]).expect("a bucket");
    let disk = imported(&world, &node, "b/disk", 1);
    node.brant(&["clone", "b/disk", "vm"]).expect("cloned");
    let uri = attach(&node, "vm").expect("attached");
    write_disk(&uri, 0, &[7; 4096]).expect("written");

    let large = world.path("large.raw");
    Disk(noise(4, 200 << 20)).write_to(&large).expect("a file");
    refused(&node, &["import", &text(&large), "b/large"], 6, "space");
    refused(&node, &["snapshot", "show", "b/large"], 3, "b/large");

    let ballast = small.fill().expect("it is full");
    assert!(write_disk(&uri, 1 << 20, &noise(5, 1 << 20)).is_err(), "a full disk is told to the guest");
    // What is there can be read, and the node is alive.
    let mut expected = disk.clone();
    expected.0[..4096].fill(7);
    let found = read_disk(&uri).expect("read");
    assert!(found.0[..1 << 20] == expected.0[..1 << 20]);
    node.brant(&["status"]).expect("it answers");

    fs::remove_file(&ballast).expect("room");
    let data = noise(6, 1 << 20);
    write_disk(&uri, 1 << 20, &data).expect("written when there is room");
    expected.0[1 << 20..2 << 20].copy_from_slice(&data);
    node.service.kill().expect("killed");
    let node = world.start_node_in("n", &small.path().join("node")).expect("started again");
    assert_eq!(read_disk(&uri).expect("read").first_difference(&expected), None);
    // The broken-off import holds all the room but the reserve: the snapshot is taken, and sealed when there is room.
    refused(&node, &["snapshot", "create", "vm", "b/vm", "--wait"], 6, "space");
    node.brant(&["clone", "b/vm", "again"]).expect("what is not sealed can be cloned");
}

#[test]
fn a_clone_on_a_full_disk_is_read_all_the_same() {
    let mut pair = Pair::new().expect("two nodes and an Indexer");
    let Some(small) = SmallDisk::mount_or_skip(pair.world.path("small"), 200).expect("a small disk") else { return };
    let bob = pair.world.add_account("robert").expect("an account");
    pair.b = pair.world.start_node_in("b", &small.path().join("node")).expect("a node");
    pair.b.login(&pair.indexer, &bob).expect("logged in");
    let disk = Disk(noise(7, SIZE));
    pair.import_and_publish(&disk, "disk").expect("published");
    pair.grant(&pair.a, "vms", "robert").expect("granted");
    pair.subscribe(&pair.b, &pair.reference("alice", "vms"), "lazy").expect("subscribed");
    pair.clone_when_there(&pair.b, "vms/disk", "vm").expect("a clone at B");
    let uri = attach(&pair.b, "vm").expect("attached");
    // Less than what a store keeps in reserve is left.
    let ballast = text(&small.path().join("ballast"));
    let taken = Command::new("fallocate").args(["--length", "150MiB", &ballast]).status();
    assert!(taken.is_ok_and(|status| status.success()), "there was room");
    assert_eq!(read_disk(&uri).expect("read").first_difference(&disk), None);
    assert_eq!(read_disk(&uri).expect("read again").first_difference(&disk), None);
    refused(&pair.b, &["hydrate", "vm"], 6, "space");
    pair.b.brant(&["detach", "vm"]).expect("detached");
}

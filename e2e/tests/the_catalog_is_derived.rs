//! The catalog can be cut, garbled or lost with the node's life: it is made anew, and nothing of buckets and volumes is lost.

use std::path::Path;

use e2e::{attach, read_disk, write_disk};
use testkit::disk::Noise;
use testkit::{Disk, Node, World};

/// What happens to one of the catalog's files while no node runs.
fn damage(directory: &Path, noise: &mut Noise) -> String {
    let name = ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"][index(noise.below(3))];
    let path = directory.join(name);
    let mut bytes = std::fs::read(&path).unwrap_or_default();
    let what = match noise.below(5) {
        0 => {
            drop(std::fs::remove_file(&path));
            return format!("{name} is gone");
        }
        1 => {
            bytes.truncate(index(noise.below(bytes.len() as u64 + 1)));
            format!("{name} ends after {} bytes", bytes.len())
        }
        2 => {
            bytes = vec![0; 5000];
            noise.fill(&mut bytes);
            format!("{name} is noise")
        }
        3 => {
            let from = index(noise.below(bytes.len() as u64 + 1));
            let end = bytes.len().min(from + 4096);
            noise.fill(&mut bytes[from..end]);
            format!("{name} has noise at {from}")
        }
        _ => {
            bytes.fill(0);
            format!("{name} is zeroes")
        }
    };
    std::fs::write(&path, &bytes).expect("written");
    what
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("small")
}

fn check(node: &Node, disk: &Disk, what: &str) {
    let versions = node.json(&["snapshot", "list", "vms"]).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    assert_eq!(versions.as_array().map(Vec::len), Some(2), "{what}: {versions}");
    let shown = node.json(&["volume", "show", "disk"]).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    let uri = shown["attached"][0].as_str().map(str::to_owned);
    let uri = uri.unwrap_or_else(|| attach(node, "disk").expect("attached"));
    assert_eq!(read_disk(&uri).expect("read").first_difference(disk), None, "{what}");
}

#[test]
fn damage_to_it_loses_nothing() {
    let rounds = if std::env::var_os("BRANT_TEST_FULL").is_some() { 100 } else { 8 };
    let world = World::new(e2e::brant()).expect("a directory");
    let mut node = world.start_node("a").expect("a node");
    node.brant(&["bucket", "create", "vms"]).expect("a bucket");
    let disk = Disk::random(3, 1 << 20);
    let file = world.path("disk.raw");
    disk.write_to(&file).expect("a file");
    node.brant(&["import", file.to_str().expect("a path"), "vms/imported"]).expect("imported");
    node.brant(&["volume", "create", "disk", "--size", "1MiB"]).expect("a volume");
    write_disk(&attach(&node, "disk").expect("attached"), 0, &disk.0).expect("written");
    node.brant(&["snapshot", "create", "disk", "vms/taken", "--wait"]).expect("a snapshot");
    let mut noise = Noise::new(77);
    for round in 0..rounds {
        let directory = node.directory().to_owned();
        // Tasks are entered while the node dies.
        let mut busy =
            node.begin(&["materialize", "vms/taken", "--force", &format!("{}.out", file.display())]).expect("begun");
        node.kill().expect("killed");
        drop(busy.wait());
        let what = format!("round {round}: {}", damage(&directory, &mut noise));
        node = world.start_node("a").unwrap_or_else(|error| panic!("{what}: {error:#}"));
        check(&node, &disk, &what);
    }
}

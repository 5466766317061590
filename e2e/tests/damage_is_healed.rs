//! Bytes of a node's packs rot: a scrub finds them and fetches what they were from another node, and a guest that reads
//! such a place first is answered all the same.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::{Pair, attach, nothing_missing, read_disk};
use testkit::{Disk, Node, wait};

const SIZE: usize = 8 << 20;

fn disk(seed: u64) -> Disk {
    let mut noise = testkit::disk::Noise::new(seed);
    let mut bytes = vec![0; SIZE];
    noise.fill(&mut bytes);
    Disk(bytes)
}

/// Changes a byte in three places of the first pack, in the middle of chunks that do not compress.
fn rot(directory: &Path) -> Result<()> {
    let path = directory.join("store/packs/00000001.pack");
    let mut bytes = std::fs::read(&path)?;
    ensure!(bytes.len() > SIZE, "the pack has {} bytes", bytes.len());
    for part in 1..4 {
        let place = part * SIZE / 4 + 12_345;
        bytes[place] ^= 1;
    }
    std::fs::write(&path, bytes).context("could not write the pack")
}

/// A published disk at A, of which B has all.
fn both_have(disk: &Disk) -> Result<Pair> {
    let pair = Pair::new()?;
    pair.import_and_publish(disk, "disk")?;
    pair.subscribe(&pair.b, &pair.reference("alice", "vms"), "full")?;
    pair.clone_when_there(&pair.b, "vms/disk", "vm")?;
    wait::until("B has all of it", || Ok(nothing_missing(&missing(&pair.b)?).then_some(())))?;
    Ok(pair)
}

fn missing(node: &Node) -> Result<serde_json::Value> {
    Ok(node.json(&["volume", "show", "vm"])?["missing"].clone())
}

#[test]
fn a_scrub_fetches_what_is_damaged_from_another_node() -> Result<()> {
    let disk = disk(4);
    let pair = both_have(&disk)?;
    rot(pair.b.directory())?;
    let scrubbed = pair.b.brant(&["store", "scrub"])?.stdout;
    assert!(scrubbed.contains("3 damaged, 3 fetched again, 0 to be had from nobody"), "{scrubbed}");
    assert!(nothing_missing(&missing(&pair.b)?));
    let scrub = pair.b.json(&["store", "show"])?["scrub"].clone();
    assert_eq!(
        (scrub["damaged"].as_u64(), scrub["healed"].as_u64(), scrub["absent"].as_u64()),
        (Some(3), Some(3), Some(0))
    );
    // It is on disk again, also for a node that has just started and has nobody to ask.
    let Pair { a, b, world, .. } = pair;
    a.kill()?;
    b.kill()?;
    let b = world.start_node("b")?;
    assert_eq!(read_disk(&attach(&b, "vm")?)?.first_difference(&disk), None);
    let scrubbed = b.brant(&["store", "scrub"])?.stdout;
    assert!(scrubbed.contains("none damaged"), "{scrubbed}");
    Ok(())
}

#[test]
fn a_guest_that_reads_what_is_damaged_is_answered() -> Result<()> {
    let disk = disk(5);
    let pair = both_have(&disk)?;
    let Pair { a, b, world, indexer } = pair;
    let directory = b.directory().to_owned();
    b.kill()?;
    // With the node's memory gone it must come from the packs, or from A.
    rot(&directory)?;
    let b = world.start_node("b")?;
    assert_eq!(read_disk(&attach(&b, "vm")?)?.first_difference(&disk), None);
    assert!(nothing_missing(&missing(&b)?));
    drop((a, indexer));
    Ok(())
}

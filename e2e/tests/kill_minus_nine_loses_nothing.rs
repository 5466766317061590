//! `kill -9` of A, of B and of the Indexer in the middle of their work: after a restart nothing that was acknowledged is
//! lost, and the work goes on.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use e2e::{Pair, attach, connect, nothing_missing, read_disk};
use testkit::disk::Noise;
use testkit::{Disk, wait};

const SIZE: usize = 64 << 20;
const BLOCK: usize = 4096;

#[test]
fn a_killed_import_is_run_again_and_stores_nothing_twice() {
    let mut pair = Pair::new().expect("two nodes and an Indexer");
    let disk = Disk::random(11, 4 * SIZE);
    let file = pair.file(&disk, "large.raw").expect("a file");
    let mut import = pair.a.begin(&["import", &file, "vms/large"]).expect("begun");
    wait::until("the import is under way", || {
        let tasks = pair.a.json(&["task", "list"])?;
        Ok(tasks[0]["done_bytes"].as_u64().filter(|done| *done > 0))
    })
    .expect("progress");
    pair.a.kill().expect("killed");
    assert!(!import.wait().expect("ended").success(), "its client says that it failed");
    pair.a = pair.world.start_node("a").expect("started again");
    pair.a.brant(&["import", &file, "vms/large"]).expect("imported at last");
    let target = pair.world.path("out.raw");
    pair.a.brant(&["materialize", "vms/large", target.to_str().expect("a path")]).expect("written out");
    assert_eq!(Disk::read_from(&target).expect("read").first_difference(&disk), None);
    let stored = pair.a.json(&["status"]).expect("status")["store"]["plain_bytes"].as_u64().expect("bytes");
    assert!(stored < 5 * SIZE as u64, "{stored} bytes stored");
}

/// A hydration of B's `vm` of which something has arrived.
fn hydration_under_way(pair: &Pair) -> Child {
    let client = pair.b.begin(&["hydrate", "vm"]).expect("begun");
    wait::until("some of it is here", || Ok((e2e::received(&pair.b)? > 1 << 20).then_some(()))).expect("progress");
    client
}

#[test]
fn a_killed_hydration_goes_on_by_itself() {
    let mut pair = Pair::new().expect("two nodes and an Indexer");
    let disk = Disk::random(12, 4 * SIZE);
    pair.clone_at_b(&disk, "vm").expect("a clone at B");
    let mut client = hydration_under_way(&pair);
    pair.b.kill().expect("killed");
    drop(client.wait());
    pair.b = pair.world.start_node("b").expect("started again");
    wait::until("all of it is here", || {
        Ok(nothing_missing(&pair.b.json(&["volume", "show", "vm"])?["missing"]).then_some(()))
    })
    .expect("hydrated");
    pair.a.kill().expect("A is gone");
    assert_eq!(read_disk(&attach(&pair.b, "vm").expect("attached")).expect("read").first_difference(&disk), None);
}

#[test]
fn a_publisher_killed_at_any_moment_publishes_in_the_end() {
    let mut pair = Pair::new().expect("two nodes and an Indexer");
    let disk = Disk::random(16, SIZE / 8);
    pair.import(&disk, "disk").expect("imported");
    let reference = pair.reference("alice", "vms");
    let mut noise = Noise::new(17);
    for round in 0..4 {
        let mut publish = pair.a.begin(&["publish", "vms", &reference]).expect("begun");
        std::thread::sleep(std::time::Duration::from_millis(noise.below(40)));
        pair.a.kill().expect("killed");
        drop(publish.wait());
        pair.a = pair.world.start_node("a").expect("started again");
        // Where the first one got through, the second says so or that it is done already.
        let again = pair.a.try_brant(&["publish", "vms", &reference]).expect("run");
        assert!(again.code == 0 || again.stderr.contains("publish"), "round {round}: {}", again.stderr);
    }
    pair.grant(&pair.a, "vms", "bob").expect("granted");
    pair.subscribe(&pair.b, &reference, "lazy").expect("subscribed");
    pair.clone_when_there(&pair.b, "vms/disk", "vm").expect("a clone at B");
    assert_eq!(read_disk(&attach(&pair.b, "vm").expect("attached")).expect("read").first_difference(&disk), None);
}

#[test]
fn a_provider_that_is_killed_and_comes_back_is_all_that_a_hydration_waits_for() {
    let mut pair = Pair::new().expect("two nodes and an Indexer");
    let disk = Disk::random(18, 4 * SIZE);
    pair.clone_at_b(&disk, "vm").expect("a clone at B");
    let mut hydration = hydration_under_way(&pair);
    pair.a.kill().expect("killed");
    pair.a = pair.world.start_node("a").expect("started again");
    assert!(hydration.wait().expect("ended").success());
    pair.a.kill().expect("A is gone");
    assert_eq!(read_disk(&attach(&pair.b, "vm").expect("attached")).expect("read").first_difference(&disk), None);
}

#[test]
fn no_acknowledged_write_of_a_guest_is_lost() {
    let mut pair = Pair::new().expect("two nodes and an Indexer");
    let mut disk = Disk::random(13, SIZE);
    pair.clone_at_b(&disk, "vm").expect("a clone at B");
    let uri = attach(&pair.b, "vm").expect("attached");
    for round in 0..3_u64 {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let (uri, acknowledged, stop) = (uri.clone(), Arc::clone(&acknowledged), Arc::clone(&stop));
            std::thread::spawn(move || {
                let client = connect(&uri).expect("connected");
                for number in 0.. {
                    let (offset, bytes) = write_number(round, number);
                    if stop.load(Ordering::Relaxed) || client.write_at(offset, &bytes).is_err() {
                        break;
                    }
                    acknowledged.store(number + 1, Ordering::Release);
                }
            })
        };
        wait::until("the guest has written", || Ok((acknowledged.load(Ordering::Acquire) > 200).then_some(())))
            .expect("writes");
        pair.b.kill().expect("killed");
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer ended");
        pair.b = pair.world.start_node("b").expect("started again");
        let count = acknowledged.load(Ordering::Acquire);
        for number in 0..count {
            let (offset, bytes) = write_number(round, number);
            let at = usize::try_from(offset).expect("small");
            disk.0[at..at + BLOCK].copy_from_slice(&bytes);
        }
        // The attachment came back by itself. The write in flight may have been done or not.
        let mut found = read_disk(&uri).expect("read");
        let (offset, bytes) = write_number(round, count);
        let at = usize::try_from(offset).expect("small");
        if found.0[at..at + BLOCK] == bytes {
            disk.0[at..at + BLOCK].copy_from_slice(&bytes);
        }
        assert_eq!(found.first_difference(&disk), None, "round {round}");
        found.0.clear();
    }
}

/// Where and what the guest writes as its `number`-th write of a round.
fn write_number(round: u64, number: u64) -> (u64, Vec<u8>) {
    let mut noise = Noise::new(round * 1_000_003 + number + 7);
    let offset = noise.below((SIZE / BLOCK) as u64) * BLOCK as u64;
    let mut bytes = vec![0; BLOCK];
    noise.fill(&mut bytes);
    (offset, bytes)
}

#[test]
fn an_indexer_that_dies_is_missed_by_nobody_who_runs() {
    let mut pair = Pair::new().expect("two nodes and an Indexer");
    let disk = Disk::random(14, SIZE);
    pair.clone_at_b(&disk, "vm").expect("a clone at B");
    let port = pair.indexer.port();
    let uri = attach(&pair.b, "vm").expect("attached");
    e2e::write_disk(&uri, 0, &[1; BLOCK]).expect("written");
    pair.indexer.service.kill().expect("killed");
    // What was learned lasts: the clone reads on, and a new version waits to be pushed.
    let mut expected = disk.clone();
    expected.0[..BLOCK].fill(1);
    assert_eq!(read_disk(&uri).expect("read").first_difference(&expected), None);
    let second = Disk::random(15, SIZE / 8);
    pair.import(&second, "second").expect("imported without an Indexer");
    pair.indexer = pair.world.start_indexer(port).expect("started again");
    pair.clone_when_there(&pair.b, "vms/second", "second").expect("the new version came");
    let uri = attach(&pair.b, "second").expect("attached");
    assert_eq!(read_disk(&uri).expect("read").first_difference(&second), None);
}

//! When the source is gone for good: the clone keeps all its own writes and all that had arrived, says what is missing,
//! and a read of that waits, can be timed out, and can be cancelled.

use std::time::Duration;

use capture::ForeignDisk as _;
use e2e::{Pair, attach, connect, write_disk};
use testkit::{Disk, wait};

const SIZE: usize = 32 << 20;
const PIECE: usize = 64 << 10;

/// A disk without holes, so that every place has something to bring.
fn full_disk() -> Disk {
    let mut noise = testkit::disk::Noise::new(21);
    let mut bytes = vec![0; SIZE];
    noise.fill(&mut bytes);
    Disk(bytes)
}

#[test]
fn what_is_here_stays_and_what_is_missing_is_counted_waited_for_and_given_up() {
    let pair = Pair::new().expect("two nodes and an Indexer");
    let disk = full_disk();
    pair.clone_at_b(&disk, "vm").expect("a clone at B");
    let uri = attach(&pair.b, "vm").expect("attached");
    let client = connect(&uri).expect("connected");
    let mut arrived = vec![0; 8 * PIECE];
    client.read_at(0, &mut arrived).expect("read while A is there");
    write_disk(&uri, 20 << 20, &[7; PIECE]).expect("written");
    pair.a.kill().expect("A is gone");

    let mut again = vec![0; 8 * PIECE];
    client.read_at(0, &mut again).expect("what has arrived");
    assert!(again == disk.0[..8 * PIECE] && arrived == again);
    let mut own = vec![0; PIECE];
    client.read_at(20 << 20, &mut own).expect("what was written");
    assert_eq!(own, [7; PIECE]);
    let missing = &pair.b.json(&["volume", "show", "vm"]).expect("shown")["missing"];
    let chunks = missing["chunks"].as_u64().expect("a number");
    assert!((100..=(SIZE / PIECE) as u64).contains(&chunks), "{missing}");

    // A read of what is missing waits; a forced detach ends it.
    let waiting = std::thread::spawn(move || client.read_at(30 << 20, &mut vec![0; PIECE]));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished(), "a read of what nobody has waits");
    pair.b.try_brant(&["detach", "vm"]).expect("run").failed_with(4).expect("it is in use");
    pair.b.brant(&["detach", "vm", "--force"]).expect("detached");
    assert!(waiting.join().expect("ended").is_err());

    // With a time-out it is an error, and nothing else suffers.
    let attachment = pair.b.json(&["attach", "vm", "--read-timeout", "500ms"]).expect("attached");
    let client = connect(attachment["uri"].as_str().expect("a URI")).expect("connected");
    assert!(client.read_at(30 << 20, &mut vec![0; PIECE]).is_err());
    client.read_at(20 << 20, &mut own).expect("what was written");

    // A hydration can be cancelled.
    let mut hydration = pair.b.begin(&["hydrate", "vm"]).expect("begun");
    let id = wait::until("it is under way", || {
        let tasks = pair.b.json(&["task", "list"])?;
        Ok((tasks[0]["kind"] == "hydrate").then(|| tasks[0]["id"].to_string()))
    })
    .expect("a task");
    pair.b.brant(&["task", "cancel", &id]).expect("cancelled");
    assert_eq!(hydration.wait().expect("ended").code(), Some(9));
}

//! What was retired or deleted gives its room back, everything else stays, beside a running guest and over a kill.

use anyhow::{Context as _, Result};
use e2e::{Pair, attach, nothing_missing, read_disk, write_disk};
use serde_json::Value;
use testkit::{Disk, Node};

const SIZE: usize = 8 << 20;

fn disk(seed: u64) -> Disk {
    let mut noise = testkit::disk::Noise::new(seed);
    let mut bytes = vec![0; SIZE];
    noise.fill(&mut bytes);
    Disk(bytes)
}

fn store(node: &Node) -> Result<Value> {
    node.json(&["store", "show"])
}

fn objects(node: &Node) -> Result<u64> {
    store(node)?["objects"].as_u64().context("a number")
}

#[test]
fn what_nothing_refers_to_goes_and_the_rest_stays() -> Result<()> {
    let pair = Pair::new()?;
    let (kept, dropped, cloned) = (disk(1), disk(2), disk(3));
    pair.import_and_publish(&kept, "kept")?;
    pair.import(&dropped, "dropped")?;
    pair.import(&cloned, "cloned")?;
    pair.a.brant(&["clone", "vms/cloned", "vm"])?;
    let uri = attach(&pair.a, "vm")?;
    write_disk(&uri, 0, &[9; 65536])?;
    for object in ["dropped", "cloned"] {
        pair.a.brant(&["snapshot", "retire", &format!("vms/{object}@1")])?;
    }
    let before = objects(&pair.a)?;

    // What was retired just now is kept for a while.
    pair.a.brant(&["store", "gc"])?;
    assert_eq!(objects(&pair.a)?, before);
    let looked = pair.a.brant(&["store", "gc", "--dry-run", "--grace", "0s"])?.stdout;
    assert!(looked.contains("could go"), "{looked}");
    assert_eq!(objects(&pair.a)?, before);

    pair.a.brant(&["store", "gc", "--grace", "0s"])?;
    let chunks = (SIZE / 65536) as u64;
    let after = objects(&pair.a)?;
    assert!(after <= before - chunks && after > 2 * chunks, "{before} objects became {after}");
    let shown = store(&pair.a)?;
    assert_eq!(shown["collection"]["live_objects"].as_u64(), Some(after), "{shown}");

    // The clone of what was retired has all of it, and so has the published one.
    let mut expected = cloned.0.clone();
    expected[..65536].fill(9);
    assert!(read_disk(&uri)?.0 == expected);
    let Pair { a, world, .. } = pair;
    a.kill()?;
    let a = world.start_node("a")?;
    assert_eq!(objects(&a)?, after);
    assert!(read_disk(&attach(&a, "vms/kept@1")?)?.0 == kept.0);
    assert!(nothing_missing(&a.json(&["volume", "show", "vm"])?["missing"]));
    a.brant(&["store", "gc", "--grace", "0s"])?;
    assert_eq!(objects(&a)?, after);
    Ok(())
}

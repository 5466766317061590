//! What Ganeti's provider cannot do, by the lines that its scripts run against real nodes: one clear line, and nothing half-made stays.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{Pair, SmallDisk, read_disk};
use serde_json::json;
use testkit::{Disk, Node, World, wait};

const DISK: &str = "0fb2a5d4-1fb0-4b8e-8f3a-2a5d41fb04b8.ext.disk0";

/// What the script that makes a disk printed, and its exit code.
fn create(node: &Node, disk: &str, parameters: &[(&str, &str)]) -> Result<(i32, String)> {
    let mut command = Command::new(e2e::brant());
    command.args(["ganeti", "provider", "create", "--node"]).arg(node.directory()).env_clear();
    command.envs([("VOL_NAME", disk), ("VOL_UUID", "7"), ("EXTP_PROVIDER", "brant"), ("EXTP_ACCESS", "kernelspace")]);
    let output = command.envs(parameters.iter().copied()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    Ok((output.status.code().context("an exit code")?, said))
}

/// Has a disk refused: in one line, and without a trace.
fn refused(node: &Node, parameters: &[(&str, &str)], code: i32, says: &str) -> Result<String> {
    let lists =
        || [&["volume", "list"][..], &["volume", "list", "--deleted"], &["attach"]].map(|list| node.json(list).ok());
    let before = lists();
    let (ended, said) = create(node, DISK, parameters)?;
    ensure!(ended == code, "{parameters:?} ended with {ended}: {said}");
    ensure!(said.starts_with(&format!("error: brant could not create {DISK}: ")), "{said}");
    ensure!(said.contains(says) && said.trim_end().lines().count() == 1, "{said}");
    ensure!(lists() == before, "nothing is left of it");
    Ok(said)
}

#[test]
fn an_origin_that_may_not_be_read_is_refused_as_one_that_is_not_there() -> Result<()> {
    let pair = Pair::new()?;
    let disk = Disk::random(1, 4 << 20);
    pair.import(&disk, "disk")?;
    pair.a.brant(&["publish", "vms", &pair.reference("alice", "vms")])?;
    let stranger = pair.world.start_node("c")?;
    let origin = |name: &str| format!("{}/disk", pair.reference("alice", name));
    let (private, absent) = (origin("vms"), origin("nothing"));
    let refuse = |node: &Node, origin: &str| -> Result<String> {
        let said = refused(node, &[("VOL_SIZE", "4"), ("EXTP_ORIGIN", origin)], 3, "there is no reference")?;
        ensure!(said.contains("its owner must grant it to your account"), "{said}");
        Ok(said)
    };
    for node in [&pair.b, &stranger] {
        let said = refuse(node, &private)?;
        ensure!(said.replace("/vms", "/nothing") == refuse(node, &absent)?, "nobody learns that it is there: {said}");
        ensure!(node.json(&["bucket", "list"])? == json!([]), "it is not followed");
    }

    // Granted, it can be read; taken back, it cannot any more, also where it is followed.
    pair.grant(&pair.a, "vms", "bob")?;
    let parameters = [("VOL_SIZE", "4"), ("EXTP_ORIGIN", private.as_str())];
    wait::until(
        "the grant has reached the Indexer",
        || Ok((create(&pair.b, DISK, &parameters)?.0 == 0).then_some(())),
    )?;
    let uri = e2e::attach(&pair.b, DISK)?;
    ensure!(read_disk(&uri)?.first_difference(&disk).is_none(), "the disk is what its origin is");
    pair.b.brant(&["detach", DISK])?;
    pair.b.brant(&["volume", "remove", DISK, "--now"])?;
    pair.a.brant(&["bucket", "revoke", "vms", &format!("account:{}/bob", pair.indexer.authority)])?;
    wait::until("that it was taken back has reached the Indexer", || {
        let (ended, said) = create(&pair.b, DISK, &parameters)?;
        if ended == 0 {
            pair.b.brant(&["volume", "remove", DISK, "--now"])?;
        }
        Ok((ended != 0 && said.contains("there is no reference")).then_some(()))
    })?;
    refuse(&pair.b, &private).map(drop)
}

#[test]
fn a_full_file_system_is_said_and_leaves_nothing_half_made() -> Result<()> {
    let world = World::new(e2e::brant())?;
    let Some(small) = SmallDisk::mount_or_skip(world.path("small"), 100)? else { return Ok(()) };
    let node = world.start_node_in("n", &small.path().join("node"))?;
    node.brant(&["bucket", "create", "vms"])?;
    let file = world.path("disk.raw");
    let disk = Disk::random(2, 4 << 20);
    disk.write_to(&file)?;
    node.brant(&["import", file.to_str().context("a path of text")?, "vms/disk"])?;
    let ballast = small.fill()?;
    // What is there of the files' last pages may do for a while: who is not refused has a whole disk.
    let (mut made, mut said) = (0, String::new());
    while said.is_empty() {
        let (ended, printed) = create(&node, &format!("aaaa{made}.ext.disk0"), &[("VOL_SIZE", "8")])?;
        match ended {
            0 => made += 1,
            6 => said = printed,
            _ => bail!("it ended with {ended}: {printed}"),
        }
    }
    ensure!(said.contains("space") && said.trim_end().lines().count() == 1, "{said}");
    ensure!(node.json(&["volume", "list"])?.as_array().is_some_and(|all| all.len() == made), "as many as were made");
    let empty = vec![("VOL_SIZE", "8")];
    let policy = [("EXTP_BUCKET", "vms"), ("EXTP_SCHEDULE", "1h"), ("EXTP_KEEP", "24h")];
    let clone = [&[("VOL_SIZE", "8"), ("EXTP_ORIGIN", "vms/disk"), ("EXTP_PREFETCH", "full")][..], &policy].concat();
    for parameters in [&empty, &clone] {
        refused(&node, parameters, 6, "space")?;
    }
    std::fs::remove_file(&ballast)?;
    for parameters in [&empty, &clone] {
        let (ended, said) = create(&node, DISK, parameters)?;
        ensure!(ended == 0, "when there is room: {said}");
        node.brant(&["volume", "remove", DISK, "--now"])?;
    }
    Ok(())
}

//! Snapshots that a node takes by itself: of several disks at one moment, across `kill -9`, and again when a full file system has room.

use anyhow::{Context as _, Result, ensure};
use e2e::{SmallDisk, attach, write_disk};
use serde_json::Value;
use testkit::{Node, World, wait};

/// The versions of an object: their numbers and states.
fn versions(node: &Node, object: &str) -> Result<Vec<(u64, String)>> {
    let listed = node.json(&["snapshot", "list", "vms"])?;
    let of_it = listed.as_array().context("a list")?.iter().filter(|snapshot| snapshot["object"] == object);
    of_it
        .map(|snapshot| {
            ensure!(snapshot["scheduled"] == true && snapshot["message"] == "scheduled", "{snapshot}");
            Ok((snapshot["version"].as_u64().context("a number")?, snapshot["state"].to_string()))
        })
        .collect()
}

fn schedule(node: &Node, volume: &str) -> Result<Value> {
    node.json(&["volume", "schedule", volume])
}

/// Writes to a volume, and waits until there is a snapshot of that.
fn write_and_wait(node: &Node, uri: &str, object: &str, byte: u8) -> Result<u64> {
    let before = versions(node, object)?.len() as u64;
    write_disk(uri, 0, &[byte; 4096])?;
    wait::until("a snapshot is taken", || {
        let all = versions(node, object)?;
        Ok(all.last().map(|(version, _)| *version).filter(|version| *version > before))
    })
}

#[test]
fn of_several_disks_after_the_node_was_killed_and_no_more_than_are_kept() -> Result<()> {
    let world = World::new(e2e::brant())?;
    let mut node = world.start_node("a")?;
    node.brant(&["bucket", "create", "vms"])?;
    for volume in ["data", "log"] {
        node.brant(&["volume", "create", volume, "--size", "1MiB"])?;
    }
    let uri = attach(&node, "log")?;
    let made =
        node.brant(&["volume", "schedule", "data", "log", "--every", "1s", "--into", "vms/db", "--keep", "2"])?;
    ensure!(made.stdout.starts_with("snapshots of data log are taken into vms/db every 1 s"), "{}", made.stdout);
    let first = write_and_wait(&node, &uri, "db", 1)?;
    let shown = node.json(&["snapshot", "show", &format!("vms/db@{first}")])?;
    let disks = shown["disks"].as_array().context("disks")?;
    ensure!(disks.len() == 2 && disks[0]["name"] == "data" && disks[1]["name"] == "log", "{shown}");

    node.service.kill()?;
    let node = world.start_node("a")?;
    for byte in 2..6 {
        write_and_wait(&node, &uri, "db", byte)?;
    }
    wait::until("all but two are withdrawn", || {
        let all = versions(&node, "db")?;
        let kept = all.iter().filter(|(_, state)| state != "\"retired\"").count();
        ensure!(kept >= 2, "{all:?}");
        Ok((kept == 2).then_some(()))
    })?;
    let listed = node.brant(&["volume", "schedule"])?.stdout;
    ensure!(listed.contains("vms/db") && listed.contains("data log"), "{listed}");
    ensure!(node.brant(&["volume", "show", "log"])?.stdout.contains("every 1 s into vms/db; next "), "shown");
    node.brant(&["volume", "schedule", "data", "log", "--off"])?;
    let gone = node.try_brant(&["volume", "schedule", "log"])?.failed_with(3)?;
    ensure!(gone.stderr.contains("no snapshots of log are taken by themselves"), "{}", gone.stderr);
    ensure!(versions(&node, "db")?.iter().any(|(_, state)| state == "\"sealed\""), "those that there are stay");
    Ok(())
}

#[test]
fn what_a_full_file_system_stops_goes_on_when_there_is_room() -> Result<()> {
    let world = World::new(e2e::brant())?;
    let Some(small) = SmallDisk::mount_or_skip(world.path("small"), 100)? else { return Ok(()) };
    let node = world.start_node_in("n", &small.path().join("node"))?;
    node.brant(&["bucket", "create", "vms"])?;
    node.brant(&["volume", "create", "web", "--size", "1MiB"])?;
    write_disk(&attach(&node, "web")?, 0, &[1; 4096])?;
    // Its record needs room, too: it is full after that, and before the first snapshot.
    let mut object = 0;
    let ballast = loop {
        put(&node, object)?;
        let ballast = small.fill()?;
        if schedule(&node, "web")?["last"].is_null() {
            break ballast;
        }
        std::fs::remove_file(ballast)?;
        object += 1;
    };
    let failure = wait::until("it has failed", || {
        let shown = schedule(&node, "web")?;
        Ok(Some(shown["failure"].clone()).filter(|failure| !failure.is_null()))
    })?;
    ensure!(failure["error"]["code"] == "full" && failure["times"].as_u64() >= Some(1), "{failure}");
    ensure!(node.log().contains("a scheduled snapshot failed"), "it is in the log: {}", node.log());
    std::fs::remove_file(ballast)?;
    // Asked for again it is tried at once, and not only when it is time.
    put(&node, object)?;
    wait::until("it is taken and sealed, and nothing fails any more", || {
        let (shown, taken) = (schedule(&node, "web")?, versions(&node, &format!("web{object}"))?);
        let sealed = taken.last().is_some_and(|(_, state)| state == "\"sealed\"");
        Ok((sealed && !shown["last"].is_null() && shown["failure"].is_null()).then_some(()))
    })
}

fn put(node: &Node, object: u64) -> Result<()> {
    let into = format!("vms/web{object}");
    node.brant(&["volume", "schedule", "web", "--every", "3s", "--into", &into, "--keep", "24h"]).map(drop)
}

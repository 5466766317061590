//! A volume is used at a node where it is not, and comes there while it is used; whichever node is killed at whatever moment, what was
//! answered is there.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::members::{has, wait_until_taken};
use e2e::{Load, Members, attach, nothing_missing, read_disk, received, write_disk};
use testkit::disk::Noise;
use testkit::{Disk, wait};

const MIB: usize = 1 << 20;

/// A volume at A, of which the first four MiB are zero and what follows is noise.
fn volume_at_a(members: &Members, mebibytes: usize) -> Result<Disk> {
    let mut disk = Disk::random(7, mebibytes * MIB);
    disk.0[..4 * MIB].fill(0);
    members.a.brant(&["volume", "create", "vm", "--size", &format!("{mebibytes}MiB")])?;
    write_disk(&attach(&members.a, "vm")?, 4 * MIB as u64, &disk.0[4 * MIB..])?;
    members.a.brant(&["detach", "vm"])?;
    Ok(disk)
}

/// Whether a disk is what it was behind what the load has written.
fn unharmed(uri: &str, disk: &Disk) -> Result<()> {
    let found = read_disk(uri)?;
    ensure!(found.0[4 * MIB..] == disk.0[4 * MIB..], "something else was changed");
    Ok(())
}

#[test]
fn a_volume_comes_to_where_it_is_used_while_it_is_and_goes_back_with_the_difference() -> Result<()> {
    let mut members = Members::new()?;
    let disk = volume_at_a(&members, 64)?;
    members.a.brant(&["volume", "label", "vm", "owner=alice"])?;
    let uri = attach(&members.b, "vm")?;
    ensure!(members.b.json(&["attach"])?[0]["home"] == "a" && !has(&members.b, "vm")?);
    let load = Load::start(&uri, 4);
    load.goes_on()?;
    members.b.replace(&e2e::brant())?;
    members.a.replace(&e2e::brant())?;
    load.goes_on()?;
    members.b.brant(&["volume", "take", "vm"])?;
    load.goes_on()?;
    ensure!(has(&members.b, "vm")? && !has(&members.a, "vm")?, "it has one home");
    let shown = members.b.json(&["volume", "show", "vm"])?;
    ensure!(nothing_missing(&shown["missing"]) && shown["labels"]["owner"] == "alice", "{shown}");
    ensure!(members.b.json(&["attach"])?[0]["home"].is_null());
    let kept = members.a.json(&["volume", "list", "--deleted"])?;
    ensure!(kept[0]["note"] == "given to b", "{kept}");
    let twice = members.a.try_brant(&["volume", "restore", "vm"])?.failed_with(4)?;
    ensure!(twice.stderr.contains("is at b"), "{}", twice.stderr);
    members.a.try_brant(&["volume", "create", "vm", "--size", "1MiB"])?.failed_with(4)?;
    members.a.brant(&["volume", "restore", "vm", "--as", "vm-before"])?;
    members.a.kill()?;
    load.goes_on()?;
    load.finish()?;
    unharmed(&uri, &disk)?;

    members.a = members.site.start_a()?;
    members.b.brant(&["detach", "vm"])?;
    let before = received(&members.a)?;
    members.a.brant(&["volume", "take", "vm"])?;
    let moved = received(&members.a)? - before;
    ensure!(moved < 6 * MIB as u64, "{moved} bytes moved for 4 MiB that differ");
    unharmed(&attach(&members.a, "vm")?, &disk)
}

#[test]
fn a_home_that_is_killed_in_the_middle_of_a_move_is_a_pause() -> Result<()> {
    let mut members = Members::new()?;
    let disk = volume_at_a(&members, 48)?;
    let uri = attach(&members.b, "vm")?;
    let load = Load::start(&uri, 4);
    load.goes_on()?;
    let mut noise = Noise::new(3);
    members.b.brant(&["volume", "take", "vm", "--detach"])?;
    let mut killed = 0;
    while !has(&members.b, "vm")? && killed < 5 {
        std::thread::sleep(Duration::from_millis(noise.below(400)));
        members.a.kill()?;
        members.a = members.site.start_a()?;
        load.goes_on()?;
        killed += 1;
    }
    wait_until_taken(&members.b, "vm")?;
    load.goes_on()?;
    load.finish()?;
    ensure!(!has(&members.a, "vm")?);
    unharmed(&uri, &disk)
}

#[test]
fn a_taker_that_is_killed_goes_on_and_nothing_acknowledged_is_lost() -> Result<()> {
    let mut members = Members::new()?;
    let mut disk = volume_at_a(&members, 48)?;
    let uri = attach(&members.b, "vm")?;
    members.b.brant(&["volume", "take", "vm", "--detach"])?;
    let mut noise = Noise::new(5);
    for round in 0..6 {
        let at = noise.below(4 * MIB as u64 / 4096) * 4096;
        let mut block = vec![0; 4096];
        noise.fill(&mut block);
        write_disk(&uri, at, &block).with_context(|| format!("round {round}"))?;
        let from = usize::try_from(at)?;
        disk.0[from..from + 4096].copy_from_slice(&block);
        std::thread::sleep(Duration::from_millis(noise.below(300)));
        members.b.kill()?;
        members.b = members.site.start_b()?;
    }
    wait_until_taken(&members.b, "vm")?;
    ensure!(!has(&members.a, "vm")?, "it has one home");
    ensure!(read_disk(&uri)?.first_difference(&disk).is_none());
    Ok(())
}

#[test]
fn a_volume_in_use_at_its_home_is_taken_when_it_is_not_any_more() -> Result<()> {
    let members = Members::new()?;
    volume_at_a(&members, 16)?;
    let load = Load::start(&attach(&members.a, "vm")?, 1);
    load.goes_on()?;
    members.b.brant(&["volume", "take", "vm", "--detach"])?;
    wait::until("the home has refused", || Ok(members.b.log().contains("cannot be taken yet").then_some(())))?;
    load.goes_on()?;
    ensure!(has(&members.a, "vm")?);
    load.finish()?;
    wait_until_taken(&members.b, "vm")?;
    ensure!(!has(&members.a, "vm")?);
    Ok(())
}

#[test]
fn requests_about_a_volume_are_answered_by_its_home_and_errors_say_where_it_is() -> Result<()> {
    let mut members = Members::new()?;
    volume_at_a(&members, 16)?;
    let uri = attach(&members.b, "vm")?;
    members.b.brant(&["volume", "resize", "vm", "--size", "32MiB"])?;
    ensure!(read_disk(&uri)?.0.len() == 32 * MIB);
    ensure!(members.b.json(&["volume", "show", "vm"])?["size_bytes"] == 32 * MIB);
    members.b.brant(&["clone", "vm", "vm.snap"])?;
    ensure!(has(&members.a, "vm.snap")? && !has(&members.b, "vm.snap")?);
    members.b.try_brant(&["volume", "remove", "vm"])?.failed_with(4)?;
    members.b.brant(&["volume", "remove", "vm.snap"])?;
    ensure!(!has(&members.a, "vm.snap")?);
    let nowhere = members.b.try_brant(&["volume", "take", "other"])?.failed_with(3)?;
    ensure!(nowhere.stderr.contains("member of the cluster"), "{}", nowhere.stderr);
    members.a.kill()?;
    let silent = members.b.try_brant(&["volume", "take", "vm"])?.failed_with(7)?;
    ensure!(silent.stderr.contains("a, which does not answer"), "{}", silent.stderr);
    // The attachment comes back before the home does.
    members.b.kill()?;
    members.b = members.site.start_b()?;
    members.a = members.site.start_a()?;
    read_disk(&uri).map(drop)
}

#[test]
fn who_is_no_member_gets_nothing() -> Result<()> {
    let members = Members::new()?;
    volume_at_a(&members, 16)?;
    members.a.brant(&["cluster", "remove", "b"])?;
    let shown = members.b.json(&["cluster", "show"])?;
    ensure!(shown["members"][0]["reachable"] == false, "{shown}");
    let refused = members.b.try_brant(&["attach", "vm"])?.failed_with(7)?;
    ensure!(refused.stderr.contains("does not answer"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn a_volume_that_is_removed_while_it_arrives_is_gone_everywhere() -> Result<()> {
    let mut members = Members::new()?;
    volume_at_a(&members, 64)?;
    members.b.brant(&["volume", "take", "vm", "--detach"])?;
    wait::until("it has come", || Ok(has(&members.b, "vm")?.then_some(())))?;
    members.b.brant(&["volume", "remove", "vm"])?;
    members.b.kill()?;
    members.b = members.site.start_b()?;
    ensure!(!has(&members.b, "vm")? && !has(&members.a, "vm")?, "it does not come back by itself");
    members.a.brant(&["volume", "create", "vm", "--size", "1MiB"])?;
    ensure!(has(&members.a, "vm")?, "its name is free");
    Ok(())
}

#[test]
fn what_a_member_remembers_of_an_earlier_move_is_not_taken_for_the_volume() -> Result<()> {
    let members = Members::new()?;
    let c = members.start_c()?;
    let block = |uri: &str| read_disk(uri).map(|disk| disk.0[..4096].to_vec());
    members.a.brant(&["volume", "create", "vm", "--size", "16MiB"])?;
    write_disk(&attach(&members.a, "vm")?, 0, &[1; 4096])?;
    members.a.brant(&["detach", "vm"])?;
    // A remembers that it has given the volume to B, and B that it has given it to C.
    members.b.brant(&["volume", "take", "vm"])?;
    c.brant(&["volume", "take", "vm"])?;
    let uri = attach(&members.b, "vm")?;
    write_disk(&uri, 0, &[2; 4096])?;
    c.kill()?;
    std::thread::scope(|scope| -> Result<()> {
        let reading = scope.spawn(|| block(&uri));
        members.b.try_brant(&["volume", "take", "vm"])?.failed_with(7)?;
        // Longer than it takes to look for the volume by itself.
        std::thread::sleep(Duration::from_secs(5));
        let waits = !has(&members.b, "vm")? && !reading.is_finished();
        let _c = members.site.start_c()?;
        let read = reading.join().map_err(|_| anyhow::anyhow!("the reader died"))??;
        ensure!(waits && read == [2; 4096], "what it was is not what it is");
        Ok(())
    })
}

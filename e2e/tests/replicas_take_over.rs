//! A second member has all of a volume, and takes over: after the loss of the home, with partitions in which both sides are alive, and
//! never where somebody else could go on.

use anyhow::{Context as _, Result, ensure};
use e2e::islands::can_have_islands_or_skip;
use e2e::ledger::{Ledger, come_to};
use e2e::members::has;
use e2e::{Load, Members, attach, read_disk, write_disk};
use serde_json::Value;
use testkit::{Disk, Node, wait};

const A: usize = 0;
const B: usize = 1;

fn state(node: &Node, volume: &str) -> Result<Value> {
    Ok(node.json(&["volume", "show", volume])?["replication"]["state"].clone())
}

fn wait_for_state(node: &Node, volume: &str, wanted: &str) -> Result<()> {
    wait::until(&format!("the replica is {wanted}"), || Ok((state(node, volume)? == wanted).then_some(())))
        .with_context(|| format!("it is {:?}; the home's log:\n{}", state(node, volume), node.log()))
}

/// A volume at A with a replica at B that is current.
fn replicated(members: &Members, arguments: &[&str]) -> Result<()> {
    members.a.brant(&["volume", "create", "vm", "--size", "16MiB"])?;
    members.a.brant(&[&["volume", "replicate", "vm", "b"], arguments].concat())?;
    wait_for_state(&members.a, "vm", "current")
}

#[test]
fn a_home_that_is_lost_loses_nothing_with_sync_and_the_roles_change_there_and_back() -> Result<()> {
    let mut members = Members::new()?;
    replicated(&members, &["--mode", "sync"])?;
    for member in [&members.a, &members.b] {
        member.brant(&["bucket", "create", "vms"])?;
    }
    members.a.brant(&["volume", "label", "vm", "owner=alice"])?;
    members.a.brant(&["volume", "schedule", "vm", "--every", "1w", "--into", "vms/vm", "--keep", "4w"])?;
    members.a.brant(&["volume", "protect", "vm", "--for", "2h"])?;
    let ledger = Ledger::start(&attach(&members.a, "vm")?, 0);
    ledger.goes_on(500)?;
    let early = members.b.try_brant(&["volume", "promote", "vm"])?.failed_with(4)?;
    ensure!(early.stderr.contains("which answers") && early.stderr.contains("volume take"), "{}", early.stderr);
    ensure!(!has(&members.b, "vm")?);
    members.a.kill()?;
    let answered = ledger.ended()?;

    let promoted = members.b.json(&["volume", "promote", "vm"])?;
    ensure!(promoted["lossless"] == true, "{promoted}");
    let shown = members.b.json(&["volume", "show", "vm"])?;
    ensure!(shown["labels"]["owner"] == "alice" && shown["schedule"]["into"] == "vms/vm", "{shown}");
    ensure!(shown["schedule"]["keep"] == "4w" && shown["rewind"]["for_ms"] == 7_200_000, "{shown}");
    let uri = attach(&members.b, "vm")?;
    let come = come_to(&uri)?;
    ensure!(come == answered || come == answered + 1, "{come} of {answered}");
    let ledger = Ledger::start(&uri, come);
    ledger.goes_on(200)?;

    // The old home comes back, lets the volume go and keeps what it had, and is the replica.
    members.a = members.site.start_a()?;
    wait_for_state(&members.b, "vm", "current")?;
    ensure!(!has(&members.a, "vm")?);
    let kept = members.a.json(&["volume", "list", "--deleted"])?;
    ensure!(
        kept[0]["name"] == "vm" && kept[0]["note"].as_str().is_some_and(|note| note.starts_with("b took over")),
        "{kept}"
    );
    ledger.goes_on(200)?;
    members.b.kill()?;
    let answered = ledger.ended()?;
    members.a.brant(&["volume", "promote", "vm"])?;
    let come = come_to(&attach(&members.a, "vm")?)?;
    ensure!(come == answered || come == answered + 1, "{come} of {answered}");
    Ok(())
}

#[test]
fn without_being_waited_for_a_replica_is_a_moment_of_the_volume_and_little_is_lost() -> Result<()> {
    let members = Members::new()?;
    replicated(&members, &["--mode", "async", "--lag", "1MiB"])?;
    let ledger = Ledger::start(&attach(&members.a, "vm")?, 0);
    ledger.goes_on(2000)?;
    members.a.kill()?;
    let answered = ledger.ended()?;
    let refused = members.b.try_brant(&["volume", "promote", "vm"])?.failed_with(4)?;
    ensure!(refused.stderr.contains("--accept-loss"), "{}", refused.stderr);
    let promoted = members.b.json(&["volume", "promote", "vm", "--accept-loss"])?;
    ensure!(promoted["lossless"] == false, "{promoted}");
    let come = come_to(&attach(&members.b, "vm")?)?;
    ensure!(come <= answered + 1 && answered - come.min(answered) <= (1 << 20) / 4096, "{come} of {answered}");
    Ok(())
}

#[test]
fn who_uses_a_volume_elsewhere_goes_on_when_the_replica_beside_it_takes_over() -> Result<()> {
    let members = Members::new()?;
    replicated(&members, &["--mode", "sync"])?;
    let uri = attach(&members.b, "vm")?;
    let load = Load::start(&uri, 4);
    load.goes_on()?;
    members.a.kill()?;
    members.b.brant(&["volume", "promote", "vm"])?;
    load.goes_on()?;
    load.finish()?;
    ensure!(members.b.json(&["attach"])?[0]["home"].is_null());
    Ok(())
}

#[test]
fn a_replica_that_is_away_is_waited_for_and_killed_at_any_moment_follows_again() -> Result<()> {
    let mut members = Members::new()?;
    replicated(&members, &["--mode", "sync"])?;
    let uri = attach(&members.a, "vm")?;
    let ledger = Ledger::start(&uri, 0);
    for _ in 0..4 {
        ledger.goes_on(100)?;
        members.b.kill()?;
        let before = ledger.answered();
        wait_for_state(&members.a, "vm", "away")?;
        // One may have been on its way.
        ensure!(ledger.answered() <= before + 1, "writes are answered without the replica");
        members.b = members.site.start_b()?;
        wait_for_state(&members.a, "vm", "current")?;
    }
    members.a.brant(&["volume", "resize", "vm", "--size", "24MiB"])?;
    let answered = ledger.goes_on(100)?;
    members.a.kill()?;
    ledger.ended()?;
    members.b.brant(&["volume", "promote", "vm"])?;
    let uri = attach(&members.b, "vm")?;
    ensure!(come_to(&uri)? >= answered && members.b.json(&["volume", "show", "vm"])?["size_bytes"] == 24 << 20);
    Ok(())
}

#[test]
fn a_home_that_is_killed_again_and_again_keeps_its_replica() -> Result<()> {
    let mut members = Members::new()?;
    replicated(&members, &["--mode", "sync"])?;
    let (uri, mut come) = (attach(&members.a, "vm")?, 0);
    for _ in 0..3 {
        let ledger = Ledger::start(&uri, come);
        ledger.goes_on(100)?;
        members.a.kill()?;
        let answered = ledger.ended()?;
        members.a = members.site.start_a()?;
        wait_for_state(&members.a, "vm", "current")?;
        come = come_to(&uri)?;
        ensure!(come >= answered, "{come} of {answered}");
    }
    members.a.kill()?;
    members.b.brant(&["volume", "promote", "vm"])?;
    ensure!(come_to(&attach(&members.b, "vm")?)? == come);
    Ok(())
}

/// How often the replica of A's volume was made, and what B has fetched for that, in bytes: changes that it follows do not count.
fn made(members: &Members) -> Result<(usize, u64)> {
    let fetched = members.b.json(&["status"])?["swarm"]["received_bytes"].as_u64();
    Ok((members.a.log().matches("a replica is current").count(), fetched.context("a number of bytes")?))
}

/// Waits until a replica is current again, and checks that it was not made anew.
fn has_gone_on(members: &Members, before: (usize, u64)) -> Result<()> {
    wait_for_state(&members.a, "vm", "current")?;
    let now = made(members)?;
    ensure!(now == before, "{before:?}, now {now:?}; the home's log:\n{}", members.a.log());
    Ok(())
}

#[test]
fn a_home_that_is_restarted_as_planned_goes_on_with_its_replica_where_it_is() -> Result<()> {
    for mode in [&["--mode", "sync"][..], &["--mode", "async", "--lag", "16MiB"]] {
        let mut members = Members::new()?;
        replicated(&members, mode)?;
        members.a.brant(&["volume", "label", "vm", "owner=alice"])?;
        let uri = attach(&members.a, "vm")?;
        let ledger = Ledger::start(&uri, 0);
        ledger.goes_on(200)?;
        let before = made(&members)?;

        // Under a guest that writes.
        for _ in 0..3 {
            members.a.replace(&e2e::brant())?;
            has_gone_on(&members, before)?;
            ledger.goes_on(100)?;
        }
        let log = members.a.log_file().to_owned();
        members.a.stop()?;
        let log = std::fs::read_to_string(log)?;
        ensure!(!log.contains("could not be"), "{log}");
        let answered = ledger.ended()?;
        members.a = members.site.start_a()?;
        has_gone_on(&members, before)?;
        let come = come_to(&uri)?;
        ensure!(come == answered || come == answered + 1, "{come} of {answered}");

        // A crash is another thing.
        let ledger = Ledger::start(&uri, come);
        ledger.goes_on(100)?;
        members.a.kill()?;
        let answered = ledger.ended()?;
        members.a = members.site.start_a()?;
        wait_for_state(&members.a, "vm", "current")?;
        let after = made(&members)?;
        ensure!(after.0 == before.0 + 1, "{before:?}, {after:?} after a crash");
        let come = come_to(&uri)?;
        ensure!(come == answered || come == answered + 1, "{come} of {answered}");

        // What went on is what takes over.
        let ledger = Ledger::start(&uri, come);
        ledger.goes_on(100)?;
        members.a.brant(&["node", "restart"])?;
        has_gone_on(&members, after)?;
        let answered = ledger.goes_on(100)?;
        // It is nobody's child here.
        let successor = members.a.json(&["status"])?["pid"].to_string();
        ensure!(std::process::Command::new("kill").args(["-9", &successor]).status()?.success());
        let answered = ledger.ended()?.max(answered);
        let lossy: &[&str] = if mode.contains(&"async") { &["--accept-loss"] } else { &[] };
        members.b.brant(&[&["volume", "promote", "vm"], lossy].concat())?;
        ensure!(members.b.json(&["volume", "show", "vm"])?["labels"]["owner"] == "alice");
        let come = come_to(&attach(&members.b, "vm")?)?;
        let least = if lossy.is_empty() { answered } else { answered.saturating_sub((16 << 20) / 4096) };
        ensure!((least..=answered + 1).contains(&come), "{come} of {answered}");
    }
    Ok(())
}

#[test]
fn an_old_home_hears_of_it_when_the_volume_has_moved_on_meanwhile() -> Result<()> {
    let mut members = Members::new()?;
    let c = members.start_c()?;
    replicated(&members, &["--mode", "sync"])?;
    let ledger = Ledger::start(&attach(&members.a, "vm")?, 0);
    ledger.goes_on(100)?;
    members.a.kill()?;
    let answered = ledger.ended()?;
    members.b.brant(&["volume", "promote", "vm"])?;
    // Its replica does not answer: it is not current, and so is not waited for.
    c.brant(&["volume", "take", "vm"])?;
    let come = come_to(&attach(&c, "vm")?)?;
    ensure!(come == answered || come == answered + 1, "{come} of {answered}");
    members.a = members.site.start_a()?;
    wait::until("the old home has let the volume go", || Ok((!has(&members.a, "vm")?).then_some(())))?;
    ensure!(has(&c, "vm")? && !has(&members.b, "vm")?);
    Ok(())
}

#[test]
fn a_witness_lets_one_side_go_on_and_never_both() -> Result<()> {
    if !can_have_islands_or_skip() {
        return Ok(());
    }
    let members = Members::on_islands()?;
    let _witness = members.start_c()?;
    replicated(&members, &["--mode", "sync", "--witness", "c"])?;
    let islands = members.site.islands.as_ref().context("islands")?;
    let ledger = Ledger::start(&attach(&members.a, "vm")?, 0);
    ledger.goes_on(100)?;

    // The replica is cut off: the home goes on, and the replica may not.
    islands.cut(B)?;
    wait_for_state(&members.a, "vm", "behind")?;
    ledger.goes_on(100)?;
    let refused = members.b.try_brant(&["volume", "promote", "vm"])?.failed_with(4)?;
    ensure!(refused.stderr.contains("witness"), "{}", refused.stderr);
    islands.mend(B)?;
    wait_for_state(&members.a, "vm", "current")?;
    ledger.goes_on(100)?;

    // The home is cut off: nothing is answered there, the replica takes over, and the home hears of it.
    islands.cut(A)?;
    members.b.brant(&["volume", "promote", "vm"])?;
    let uri = attach(&members.b, "vm")?;
    let come = come_to(&uri)?;
    let later = Ledger::start(&uri, come);
    later.goes_on(200)?;
    ensure!(state(&members.a, "vm")? != "behind", "the home goes on alone as well");
    let answered = ledger.answered();
    ensure!(come == answered || come == answered + 1, "{come} of {answered}");
    islands.mend(A)?;
    let answered_there = ledger.ended()?;
    ensure!(answered_there <= come, "the old home has answered {answered_there} behind {come}");
    wait_for_state(&members.b, "vm", "current")?;
    later.goes_on(100)?;
    ensure!(!has(&members.a, "vm")?);
    Ok(())
}

#[test]
fn without_a_witness_only_the_replica_can_go_on_and_the_cut_off_home_answers_nothing() -> Result<()> {
    if !can_have_islands_or_skip() {
        return Ok(());
    }
    let members = Members::on_islands()?;
    replicated(&members, &["--mode", "sync"])?;
    let islands = members.site.islands.as_ref().context("islands")?;
    let ledger = Ledger::start(&attach(&members.a, "vm")?, 0);
    ledger.goes_on(100)?;
    islands.cut(A)?;
    members.b.brant(&["volume", "promote", "vm"])?;
    let come = come_to(&attach(&members.b, "vm")?)?;
    wait_for_state(&members.a, "vm", "away")?;
    ensure!(ledger.answered() <= come && come <= ledger.answered() + 1);
    let stop = members.a.try_brant(&["volume", "replicate", "vm", "--stop"])?.failed_with(7)?;
    ensure!(stop.stderr.contains("--force"), "{}", stop.stderr);
    islands.mend(A)?;
    ensure!(ledger.ended()? <= come);
    Ok(())
}

#[test]
fn a_volume_that_is_taken_keeps_its_replica_and_what_cannot_be_is_refused() -> Result<()> {
    let members = Members::new()?;
    replicated(&members, &["--mode", "sync"])?;
    let uri = attach(&members.b, "vm")?;
    let ledger = Ledger::start(&uri, 0);
    ledger.goes_on(100)?;
    members.b.brant(&["volume", "take", "vm"])?;
    ledger.goes_on(100)?;
    wait_for_state(&members.b, "vm", "current")?;
    ensure!(members.b.json(&["volume", "show", "vm"])?["replication"]["to"] == "a");
    wait::until("the replica knows it", || {
        Ok((members.a.json(&["volume", "replicas"])?[0]["current"] == true).then_some(()))
    })?;
    ensure!(members.b.json(&["volume", "replicas"])?.as_array().is_some_and(Vec::is_empty));
    let come = ledger.end();
    ensure!(come_to(&uri)? == come);

    members.b.brant(&["detach", "vm"])?;
    let removed = members.b.try_brant(&["volume", "remove", "vm"])?.failed_with(4)?;
    ensure!(removed.stderr.contains("--stop"), "{}", removed.stderr);
    members.b.try_brant(&["volume", "replicate", "vm", "a", "--mode", "async"])?.failed_with(4)?;
    members.b.try_brant(&["volume", "replicate", "vm", "nobody", "--mode", "async"])?.failed_with(3)?;
    members.b.brant(&["volume", "replicate", "vm", "--stop"])?;
    ensure!(members.a.json(&["volume", "replicas"])?.as_array().is_some_and(Vec::is_empty));
    members.a.try_brant(&["volume", "promote", "vm"])?.failed_with(3)?;
    members.b.brant(&["volume", "remove", "vm"])?;
    Ok(())
}

#[test]
fn a_replica_takes_over_although_a_member_remembers_an_earlier_move_to_it() -> Result<()> {
    let members = Members::new()?;
    let c = members.start_c()?;
    members.a.brant(&["volume", "create", "vm", "--size", "16MiB"])?;
    members.b.brant(&["volume", "take", "vm"])?;
    c.brant(&["volume", "take", "vm"])?;
    c.brant(&["volume", "replicate", "vm", "b"])?;
    wait_for_state(&c, "vm", "current")?;
    let ledger = Ledger::start(&attach(&c, "vm")?, 0);
    ledger.goes_on(100)?;
    c.kill()?;
    let answered = ledger.ended()?;
    let taken = members.b.try_brant(&["volume", "take", "vm"])?.failed_with(7)?;
    ensure!(taken.stderr.contains("brant volume promote vm"), "{}", taken.stderr);
    members.b.brant(&["volume", "promote", "vm"])?;
    let come = come_to(&attach(&members.b, "vm")?)?;
    ensure!(come == answered || come == answered + 1, "{come} of {answered}");
    Ok(())
}

#[test]
fn a_replica_that_has_taken_over_is_not_ended_by_its_old_home() -> Result<()> {
    if !can_have_islands_or_skip() {
        return Ok(());
    }
    let members = Members::on_islands()?;
    replicated(&members, &["--mode", "sync"])?;
    let islands = members.site.islands.as_ref().context("islands")?;
    islands.cut(A)?;
    members.b.brant(&["volume", "promote", "vm"])?;
    islands.mend(A)?;
    // Whether it has heard of it by now or not.
    let stopped = members.a.try_brant(&["volume", "replicate", "vm", "--stop"])?;
    ensure!(stopped.code != 0, "{}", stopped.stdout);
    wait::until("the old home has let the volume go", || Ok((!has(&members.a, "vm")?).then_some(())))?;
    ensure!(has(&members.b, "vm")?);
    Ok(())
}

#[test]
fn a_new_volume_is_not_taken_for_an_earlier_one_of_its_name() -> Result<()> {
    let members = Members::new()?;
    let c = members.start_c()?;
    let terms = ["--mode", "sync", "--witness", "c"];
    replicated(&members, &terms)?;
    members.b.brant(&["volume", "take", "vm"])?;
    wait_for_state(&members.b, "vm", "current")?;
    members.b.brant(&["volume", "replicate", "vm", "--stop"])?;
    members.b.brant(&["volume", "remove", "vm"])?;
    // The witness and the others remember a volume of that name, in a later epoch than its first.
    replicated(&members, &terms)?;
    let uri = attach(&members.a, "vm")?;
    let ledger = Ledger::start(&uri, 0);
    ledger.goes_on(100)?;
    ensure!(has(&members.a, "vm")? && !has(&members.b, "vm")? && !has(&c, "vm")?);
    let come = ledger.end();
    ensure!(come_to(&uri)? == come);
    Ok(())
}

#[test]
fn two_members_fetch_a_volume_at_once() -> Result<()> {
    let members = Members::new()?;
    let c = members.start_c()?;
    members.a.brant(&["volume", "create", "vm", "--size", "64MiB"])?;
    let disk = Disk::random(7, 64 << 20);
    write_disk(&attach(&members.a, "vm")?, 0, &disk.0)?;
    members.a.brant(&["detach", "vm"])?;
    std::thread::scope(|scope| -> Result<()> {
        let taking = scope.spawn(|| members.b.brant(&["volume", "take", "vm"]));
        members.a.brant(&["volume", "replicate", "vm", "c"])?;
        taking.join().map_err(|_| anyhow::anyhow!("who takes died"))?.map(drop)
    })?;
    wait_for_state(&members.b, "vm", "current")?;
    ensure!(c.json(&["volume", "replicas"])?[0]["home"] == "b");
    ensure!(read_disk(&attach(&members.b, "vm")?)?.0 == disk.0);
    Ok(())
}

#[test]
fn a_volume_is_not_given_up_for_another_one_of_its_name() -> Result<()> {
    let members = Members::new()?;
    for member in [&members.a, &members.b] {
        member.brant(&["volume", "create", "vm", "--size", "16MiB"])?;
    }
    members.a.brant(&["volume", "replicate", "vm", "b"])?;
    wait::until("the member has refused it", || {
        Ok(members.a.log().contains("a volume vm is here already, which is another one").then_some(()))
    })?;
    let uri = attach(&members.a, "vm")?;
    write_disk(&uri, 0, &[1; 4096])?;
    ensure!(has(&members.a, "vm")? && has(&members.b, "vm")? && state(&members.a, "vm")? != "current");
    Ok(())
}

//! The real Ganeti moves instances between two nodes, live and not, while their disks are at one node and come to the other: guests
//! notice nothing, and what they made durable is there.

use anyhow::{Context as _, Result, ensure};
use e2e::{Cluster, ClusterNode, Switch};
use testkit::{World, wait};

/// How an instance is added, apart from its disks and its name.
const ADD: &str = "gnt-instance add -t ext -o marked+default --no-name-check --no-ip-check --no-start --net 0:ip=none \
                   -n node1.cluster1.test";

/// The number of a record that the guest has just said to be durable.
fn record(node: &ClusterNode, instance: &str) -> Result<u64> {
    let said = node.console(instance, "BRANT record ")?;
    let number = said.rsplit(' ').next().and_then(|number| number.parse().ok());
    number.with_context(|| format!("a number: {said}"))
}

/// Waits until the guest has made a record durable behind that of a number. What it said last is said again where it has moved.
fn goes_on(node: &ClusterNode, instance: &str, behind: u64) -> Result<u64> {
    wait::until("the guest goes on", || Ok(Some(record(node, instance)?).filter(|number| *number > behind)))
}

/// Waits until all disks of an instance are at one node, and none at the other.
fn comes_to(here: &ClusterNode, there: &ClusterNode, instance: &str, disks: usize) -> Result<()> {
    wait::until("the disks have come", || {
        let tasks = here.json(&["task", "list"])?;
        let mut tasks = tasks.as_array().context("a list")?.iter();
        let moves = tasks.any(|task| task["kind"] == "take" && task["state"] == "running");
        Ok((!moves && here.volumes_of(instance)?.len() == disks).then_some(()))
    })?;
    ensure!(there.volumes_of(instance)?.is_empty(), "each has one home");
    Ok(())
}

/// Stops an instance and looks whether all records are there, at a node; the guest goes on with further ones.
fn has_kept(cluster: &Cluster, node: &ClusterNode, instance: &str, promised: u64) -> Result<()> {
    cluster.gnt(&format!("gnt-instance stop --timeout=2 {instance}"))?;
    let started = cluster.start_instance(instance, "brant.check brant.records=100000");
    started.with_context(|| format!("{} says:\n{}", node.name(), node.log()))?;
    let said = node.console(instance, "BRANT records")?;
    let kept: u64 = said.rsplit(' ').next().context("a number")?.parse()?;
    ensure!(kept >= promised, "{promised} records were durable, {kept} are there");
    Ok(())
}

#[test]
fn live_and_not_there_and_back() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    if !e2e::can_have_devices_or_skip() || !e2e::can_run_ganeti_or_skip() {
        return Ok(());
    }
    let world = World::new(e2e::brant())?;
    let switch = Switch::new(&world)?;
    let mut cluster = Cluster::up(&world, &switch, 1, 2, &kernel)?;
    let shown = cluster.json(&["cluster", "show"])?;
    ensure!(shown["members"][0]["reachable"] == true, "{shown}");
    moves_live(&cluster, "user1", "export=userspace,access=userspace")?;
    moves_live(&cluster, "kernel1", "export=kernel")?;
    fails_over(&cluster, "user1")?;
    starts_at_the_other_node(&cluster, "kernel1")?;
    cluster.gnt("gnt-instance stop --timeout=2 kernel1")?;
    says_that_a_home_is_down(&mut cluster, "user1")?;
    for instance in ["user1", "kernel1"] {
        cluster.gnt(&format!("gnt-instance remove -f --shutdown-timeout=2 {instance}"))?;
    }
    for node in &cluster.nodes {
        ensure!(node.json(&["volume", "list"])?.as_array().is_some_and(Vec::is_empty), "no volume is left");
        ensure!(node.json(&["attach"])?.as_array().is_some_and(Vec::is_empty), "nothing is attached any more");
    }
    Ok(())
}

/// From the first node to the second, while the guest writes.
fn moves_live(cluster: &Cluster, instance: &str, parameters: &str) -> Result<()> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    cluster.gnt(&format!("{ADD} --disk 0:size=64M,provider=brant,{parameters} {instance}"))?;
    cluster.start_instance(instance, "brant.format brant.records=100000")?;
    // Not while it boots: QEMU's emulated processor has been seen to hang where it was moved then.
    let before = goes_on(one, instance, 50)?;
    cluster.gnt(&format!("gnt-instance migrate -f -n node2.cluster1.test {instance}"))?;
    let after = goes_on(two, instance, before)?;
    comes_to(two, one, instance, 1)?;
    goes_on(two, instance, after).map(drop)
}

/// From the second node to the first, by a stop and a start.
fn fails_over(cluster: &Cluster, instance: &str) -> Result<()> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let promised = record(two, instance)?;
    cluster.gnt(&format!("gnt-instance failover -f --shutdown-timeout=2 -n node1.cluster1.test {instance}"))?;
    comes_to(one, two, instance, 1)?;
    has_kept(cluster, one, instance, promised)
}

/// At the first node again, with Ganeti told only that it is another one's instance now.
fn starts_at_the_other_node(cluster: &Cluster, instance: &str) -> Result<()> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let promised = record(two, instance)?;
    cluster.gnt(&format!("gnt-instance stop --timeout=2 {instance}"))?;
    cluster.gnt(&format!("gnt-instance failover -f -n node1.cluster1.test {instance}"))?;
    cluster.gnt(&format!("gnt-instance grow-disk {instance} 0 16M"))?;
    cluster.start_instance(instance, "brant.check brant.records=100000")?;
    comes_to(one, two, instance, 1)?;
    has_kept(cluster, one, instance, promised)
}

/// What the other node says when a disk is attached there, as it would be off a dead node.
fn says_that_a_home_is_down(cluster: &mut Cluster, instance: &str) -> Result<()> {
    let disk = cluster.volumes_of(instance)?.pop().context("one volume")?;
    cluster.gnt(&format!("gnt-instance stop --timeout=2 {instance}"))?;
    cluster.nodes[0].kill_brant()?;
    let volume = format!("VOL_NAME={disk}");
    let environment = ["env", &volume, "EXTP_PROVIDER=brant", "EXTP_ACCESS=userspace", "EXTP_EXPORT=userspace"];
    let script = ["sh", "-c", "cd /usr/share/ganeti/extstorage/brant && ./attach"];
    let printed = cluster.nodes[1].run(&[&environment[..], &script].concat())?;
    ensure!(!printed.success && printed.stderr.contains("node1, which does not answer"), "{}", printed.all());
    cluster.nodes[0].start_brant()
}

//! The real Ganeti fails instances over off a node that has lost its power: the replicas that the disks' parameters have asked for take
//! over, with all that the guest was told to be durable, or, where nothing waited for the replica and an operator accepts that, with what it
//! had; and the dead node comes back as the replica.

use anyhow::{Context as _, Result, ensure};
use e2e::{Cluster, ClusterNode, Switch};
use serde_json::Value;
use testkit::{World, wait};

/// How an instance is added on the second node, apart from its disk and its name. The first one is the master.
const ADD: &str = "gnt-instance add -t ext -o marked+default --no-name-check --no-ip-check --no-start --net 0:ip=none \
                   -n node2.cluster1.test";

/// How its disk is used.
const DISK: &str = "--disk 0:size=64M,provider=brant,export=userspace,access=userspace";

/// Its disk's replica has all that was answered.
const INSTANCE: &str = "mail1";

/// Its disk's replica may be behind.
const BEHIND: &str = "news1";

fn shown(node: &ClusterNode, volume: &str) -> Result<Value> {
    node.json(&["volume", "show", volume])
}

fn is_current(home: &ClusterNode, volume: &str) -> Result<()> {
    let state = || Ok::<_, anyhow::Error>(shown(home, volume)?["replication"]["state"].clone());
    let current = wait::until("the replica is current", || Ok((state()? == "current").then_some(())));
    current.with_context(|| format!("it is {:?}; the home says:\n{}", state(), home.log()))
}

fn is_empty(node: &ClusterNode, list: &[&str]) -> Result<()> {
    let listed = node.json(list)?;
    ensure!(listed.as_array().is_some_and(Vec::is_empty), "{} has {listed}", node.name());
    Ok(())
}

#[test]
fn with_all_that_was_acknowledged() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    if !e2e::can_run_ganeti_or_skip() {
        return Ok(());
    }
    let world = World::new(e2e::brant())?;
    let switch = Switch::new(&world)?;
    let mut cluster = Cluster::up(&world, &switch, 1, 2, &kernel)?;
    refuses_what_cannot_be_meant(&cluster)?;
    let behind = runs_with_a_replica(&cluster, BEHIND, "async")?;
    let disk = runs_with_a_replica(&cluster, INSTANCE, "sync")?;
    // They boot at the same time.
    for instance in [BEHIND, INSTANCE] {
        cluster.nodes[1].goes_on(instance, 20)?;
    }
    let arrived = arrives(&cluster.nodes[1], &behind)?;
    let promised = dies(&mut cluster, &switch)?;
    cluster.gnt("gnt-node modify --offline=yes node2.cluster1.test")?;
    fails_over(&cluster, &disk, promised)?;
    fails_over_with_what_there_is(&cluster, &behind, arrived)?;
    cluster.nodes[1].power_on_again(&switch)?;
    has_let_go(&cluster, &[&disk, &behind])?;
    comes_back(&cluster)?;
    for instance in [INSTANCE, BEHIND] {
        cluster.gnt(&format!("gnt-instance remove -f --shutdown-timeout=2 {instance}"))?;
    }
    for node in &cluster.nodes {
        is_empty(node, &["volume", "list"])?;
        is_empty(node, &["volume", "replicas"])?;
        is_empty(node, &["attach"])?;
    }
    Ok(())
}

/// Parameters that say what cannot be: one line in the job's log, and nothing is made.
fn refuses_what_cannot_be_meant(cluster: &Cluster) -> Result<()> {
    for (parameters, says) in
        [("replica=node7", "node7"), ("replica=node1,replica_mode=semi", "is none of: sync, async")]
    {
        let said = cluster.gnt_fails(&format!("{ADD} {DISK},{parameters} {INSTANCE}"))?;
        ensure!(said.contains(says), "{parameters}: {said}");
        is_empty(&cluster.nodes[1], &["volume", "list"])?;
    }
    Ok(())
}

/// Starts an instance on the second node, with the replica that its parameters ask for at the first. Returns the disk.
fn runs_with_a_replica(cluster: &Cluster, instance: &str, mode: &str) -> Result<String> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let parameters = if mode == "sync" { "replica=node1" } else { "replica=node1,replica_mode=async" };
    cluster.gnt(&format!("{ADD} {DISK},{parameters} {instance}"))?;
    let disk = two.volumes_of(instance)?.pop().context("one volume")?;
    is_current(two, &disk)?;
    ensure!(shown(two, &disk)?["replication"]["mode"] == mode && one.volumes_of(instance)?.is_empty());
    cluster.start_instance(instance, "brant.format brant.records=100000")?;
    Ok(disk)
}

/// A record of the guest's that the replica has, as it was seen to lack nothing afterwards.
fn arrives(home: &ClusterNode, disk: &str) -> Result<u64> {
    let record = home.record(BEHIND)?;
    wait::until("the replica lacks nothing", || {
        Ok((shown(home, disk)?["replication"]["lag_bytes"] == 0).then_some(()))
    })?;
    Ok(record)
}

/// The node dies while the guest writes. Returns the last record that the guest was told to be durable.
fn dies(cluster: &mut Cluster, switch: &Switch) -> Result<u64> {
    let two = &mut cluster.nodes[1];
    let guest = two.listen(INSTANCE)?;
    let heard = guest.goes_on(0)?;
    guest.goes_on(heard + 30)?;
    two.power_off(switch)?;
    guest.ended()
}

/// To the first node, where all records are.
fn fails_over(cluster: &Cluster, disk: &str, promised: u64) -> Result<()> {
    let one = &cluster.nodes[0];
    cluster.gnt(&format!("gnt-instance failover -f -n node1.cluster1.test {INSTANCE}"))?;
    ensure!(one.volumes_of(INSTANCE)? == [disk], "it is known as the instance's disk");
    cluster.has_kept(one, INSTANCE, promised)?;
    one.goes_on(INSTANCE, promised + 20).map(drop)
}

/// Ganeti is told that something may be lost, and how to go on all the same. By then it counts the instance as the first node's.
fn fails_over_with_what_there_is(cluster: &Cluster, disk: &str, arrived: u64) -> Result<()> {
    let one = &cluster.nodes[0];
    let said = cluster.gnt_fails(&format!("gnt-instance failover -f -n node1.cluster1.test {BEHIND}"))?;
    ensure!(said.contains(&format!("brant volume promote {disk} --accept-loss")), "{said}");
    one.brant(&["volume", "promote", disk, "--accept-loss"])?;
    cluster.starts_with(one, BEHIND, arrived)?;
    one.goes_on(BEHIND, arrived).map(drop)
}

/// What was the home has none of its old disks any more, keeps what they were, and follows.
fn has_let_go(cluster: &Cluster, disks: &[&str]) -> Result<()> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    disks.iter().try_for_each(|disk| is_current(one, disk))?;
    is_empty(two, &["volume", "list"])?;
    let listed = two.json(&["volume", "list", "--deleted"])?;
    let kept = listed.as_array().context("a list")?;
    ensure!(kept.len() == disks.len(), "{listed}");
    for disk in disks {
        let old = kept.iter().find(|volume| volume["name"] == *disk);
        let note = old.and_then(|volume| volume["note"].as_str());
        ensure!(note.is_some_and(|note| note.starts_with("node1 took over")), "{listed}");
        ensure!(shown(two, disk)?["home"] == "node1", "it says where the disk is");
    }
    Ok(())
}

/// Ganeti has the node again.
fn comes_back(cluster: &Cluster) -> Result<()> {
    let one = &cluster.nodes[0];
    cluster.gnt("gnt-node add --readd --no-ssh-key-check node2.cluster1.test")?;
    cluster.await_online()?;
    cluster.gnt("gnt-cluster verify-disks")?;
    ensure!(cluster.gnt(&format!("gnt-instance list --no-headers -o status {INSTANCE}"))?.trim() == "running");
    let record = one.record(INSTANCE)?;
    one.goes_on(INSTANCE, record).map(drop)
}

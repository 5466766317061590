//! The real Ganeti fails an instance over off a node that has lost its power: the replica that the disk's parameters have asked for takes
//! over, with all that the guest was told to be durable; and the dead node comes back as the replica.

use anyhow::{Context as _, Result, ensure};
use e2e::{Cluster, ClusterNode, Switch};
use serde_json::Value;
use testkit::{World, wait};

/// How an instance is added on the second node, apart from its disk and its name. The first one is the master.
const ADD: &str = "gnt-instance add -t ext -o marked+default --no-name-check --no-ip-check --no-start --net 0:ip=none \
                   -n node2.cluster1.test";

/// How its disk is used.
const DISK: &str = "--disk 0:size=64M,provider=brant,export=userspace,access=userspace";

const INSTANCE: &str = "mail1";

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
    let disk = runs_with_a_replica(&cluster)?;
    let promised = dies(&mut cluster, &switch)?;
    fails_over(&cluster, &disk, promised)?;
    cluster.nodes[1].power_on_again(&switch)?;
    comes_back(&cluster, &disk)?;
    cluster.gnt(&format!("gnt-instance remove -f --shutdown-timeout=2 {INSTANCE}"))?;
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

/// On the second node, with the replica that its parameters ask for at the first. Returns the disk.
fn runs_with_a_replica(cluster: &Cluster) -> Result<String> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    cluster.gnt(&format!("{ADD} {DISK},replica=node1 {INSTANCE}"))?;
    let disk = two.volumes_of(INSTANCE)?.pop().context("one volume")?;
    is_current(two, &disk)?;
    ensure!(shown(two, &disk)?["replication"]["mode"] == "sync" && one.volumes_of(INSTANCE)?.is_empty());
    cluster.start_instance(INSTANCE, "brant.format brant.records=100000")?;
    two.goes_on(INSTANCE, 20)?;
    Ok(disk)
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
    cluster.gnt("gnt-node modify --offline=yes node2.cluster1.test")?;
    cluster.gnt(&format!("gnt-instance failover -f -n node1.cluster1.test {INSTANCE}"))?;
    ensure!(one.volumes_of(INSTANCE)? == [disk], "it is known as the instance's disk");
    cluster.has_kept(one, INSTANCE, promised)?;
    one.goes_on(INSTANCE, promised + 20).map(drop)
}

/// What was the home does not run its old disk, keeps what it was, and follows. Ganeti has the node again.
fn comes_back(cluster: &Cluster, disk: &str) -> Result<()> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    is_current(one, disk)?;
    is_empty(two, &["volume", "list"])?;
    let kept = two.json(&["volume", "list", "--deleted"])?;
    let note = kept[0]["note"].as_str().context("a note")?;
    ensure!(kept[0]["name"] == disk && note.starts_with("node1 took over"), "{kept}");
    ensure!(shown(two, disk)?["home"] == "node1", "it says where the disk is");
    cluster.gnt("gnt-node add --readd --no-ssh-key-check node2.cluster1.test")?;
    cluster.await_online()?;
    cluster.gnt("gnt-cluster verify-disks")?;
    ensure!(cluster.gnt(&format!("gnt-instance list --no-headers -o status {INSTANCE}"))?.trim() == "running");
    let record = one.record(INSTANCE)?;
    one.goes_on(INSTANCE, record).map(drop)
}

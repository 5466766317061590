//! The real Ganeti moves instances between two nodes, live and not, while their disks are at one node and come to the other: guests
//! notice nothing, and what they made durable is there.

use anyhow::{Context as _, Result, ensure};
use e2e::{Cluster, Switch};
use testkit::World;

/// How an instance is added, apart from its disks and its name.
const ADD: &str = "gnt-instance add -t ext -o marked+default --no-name-check --no-ip-check --no-start --net 0:ip=none \
                   -n node1.cluster1.test";

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
    is_exported_where_it_runs(&cluster, "kernel1")?;
    fails_over(&cluster, "user1")?;
    starts_at_the_other_node(&cluster, "kernel1")?;
    cluster.gnt("gnt-instance stop --timeout=2 kernel1")?;
    is_made_anew_at_either_node(&cluster, "kernel1")?;
    says_that_a_home_is_down(&mut cluster, "user1")?;
    leaves_an_orphan(&mut cluster, "user1")?;
    cluster.gnt("gnt-instance remove -f --shutdown-timeout=2 kernel1")?;
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
    let before = one.goes_on(instance, 50)?;
    cluster.gnt(&format!("gnt-instance migrate -f -n node2.cluster1.test {instance}"))?;
    let after = two.goes_on(instance, before)?;
    two.has_disks(one, instance, 1)?;
    two.goes_on(instance, after).map(drop)
}

/// From the second node to the first, by a stop and a start.
fn fails_over(cluster: &Cluster, instance: &str) -> Result<()> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let promised = two.record(instance)?;
    cluster.gnt(&format!("gnt-instance failover -f --shutdown-timeout=2 -n node1.cluster1.test {instance}"))?;
    one.has_disks(two, instance, 1)?;
    cluster.has_kept(one, instance, promised)
}

/// At the first node again, with Ganeti told only that it is another one's instance now.
fn starts_at_the_other_node(cluster: &Cluster, instance: &str) -> Result<()> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let promised = two.record(instance)?;
    cluster.gnt(&format!("gnt-instance stop --timeout=2 {instance}"))?;
    cluster.gnt(&format!("gnt-instance failover -f -n node1.cluster1.test {instance}"))?;
    cluster.gnt(&format!("gnt-instance grow-disk {instance} 0 16M"))?;
    cluster.start_instance(instance, "brant.check brant.records=100000")?;
    one.has_disks(two, instance, 1)?;
    cluster.has_kept(one, instance, promised)
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
    Ok(())
}

/// The second node has the disk, and Ganeti's master, which has the definition, is the first one.
fn is_exported_where_it_runs(cluster: &Cluster, instance: &str) -> Result<()> {
    let two = &cluster.nodes[1];
    two.brant(&["bucket", "create", "vms"])?;
    let refused = two.try_brant(&["ganeti", "export", instance, "vms/exported"])?;
    ensure!(
        !refused.success && refused.all().contains("ssh node1.cluster1.test brant ganeti definition"),
        "{}",
        refused.all()
    );
    std::fs::write(two.path("/srv/definition"), cluster.brant(&["ganeti", "definition", instance])?)?;
    two.brant(&["ganeti", "export", instance, "vms/exported", "--definition", "/srv/definition", "--wait"])?;
    let taken = two.json(&["snapshot", "show", "vms/exported"])?;
    ensure!(taken["state"] == "sealed", "{taken}");
    // Ganeti's own export, over the network to the other node.
    cluster.gnt(&format!("gnt-backup export --noshutdown -n node1.cluster1.test {instance}"))?;
    let exported = cluster.path(&format!("/var/lib/ganeti/export/{instance}"));
    ensure!(std::fs::read_dir(&exported)?.count() >= 2, "the export is there");
    ensure!(two.json(&["volume", "list"])?.as_array().is_some_and(|all| all.len() == 2), "the .snap is gone");
    Ok(())
}

/// At the node that it is at, and at the other one, once the old disks have gone.
fn is_made_anew_at_either_node(cluster: &Cluster, instance: &str) -> Result<()> {
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let disk = one.volumes_of(instance)?.pop().context("one volume")?;
    let elsewhere = format!("gnt-instance recreate-disks -n node2.cluster1.test {instance}");
    let refused = cluster.gnt_fails(&elsewhere)?;
    ensure!(refused.contains("there is a volume"), "a disk that is at the other node is not replaced: {refused}");
    one.brant(&["volume", "remove", &disk])?;
    cluster.gnt(&elsewhere)?;
    ensure!(two.volumes_of(instance)? == [disk.as_str()] && one.volumes_of(instance)?.is_empty(), "at the other node");
    cluster.gnt(&format!("gnt-instance deactivate-disks {instance}"))?;
    two.brant(&["volume", "remove", &disk])?;
    cluster.gnt(&format!("gnt-instance recreate-disks {instance}"))?;
    ensure!(two.volumes_of(instance)? == [disk.as_str()], "at the same node");
    Ok(())
}

/// Ganeti forgets the disk of an instance that it removes while the node is down.
fn leaves_an_orphan(cluster: &mut Cluster, instance: &str) -> Result<()> {
    cluster.gnt(&format!("gnt-instance remove -f --ignore-failures {instance}"))?;
    cluster.nodes[0].start_brant()?;
    let [one, two] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let disk = one.volumes_of(instance)?.pop().context("the volume stays")?;
    ensure!(two.json(&["ganeti", "orphans"])? == serde_json::json!([]), "the other instance's disk is none");
    one.brant(&["attach", &disk])?;
    let left = one.json(&["ganeti", "orphans", "--remove"])?;
    let is_left = left[0]["volume"] == disk.as_str() && left[0]["instance"] == instance && left[0]["removed"] == false;
    ensure!(
        is_left && left[1].is_null() && one.volumes_of(instance)? == [disk.as_str()],
        "what is used is left: {left}"
    );
    one.brant(&["detach", &disk])?;
    let shown = one.brant(&["ganeti", "orphans"])?;
    ensure!(shown.contains(&disk) && shown.contains("unused"), "{shown}");
    ensure!(one.json(&["ganeti", "orphans", "--remove"])?[0]["removed"] == true, "it is removed");
    let deleted = one.json(&["volume", "list", "--deleted"])?;
    ensure!(deleted.as_array().is_some_and(|all| all.iter().any(|one| one["name"] == disk.as_str())), "{deleted}");
    Ok(())
}

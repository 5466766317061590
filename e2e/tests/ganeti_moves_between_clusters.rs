//! A running instance of one Ganeti cluster is exported with its definition, made again in another cluster through an
//! Indexer, and comes back: its guest finds what it wrote, and Ganeti knows what it knew of it.

use anyhow::{Context as _, Result, ensure};
use e2e::{Cluster, Switch};
use testkit::world::Indexer;
use testkit::{Disk, World, wait};

/// Alice's cluster, Bob's, and their Indexer.
struct Clusters {
    one: Cluster,
    two: Cluster,
    indexer: Indexer,
    world: World,
    _switch: Switch,
}

fn clusters(kernel: &xtask::images::Kernel) -> Result<Clusters> {
    let world = World::new(e2e::brant())?;
    let switch = Switch::new(&world)?;
    let indexer = switch.start_indexer(&world)?;
    let (alice, bob) = (world.add_account("alice")?, world.add_account("bob")?);
    let (one, two) = (Cluster::up(&world, &switch, 1, 1, kernel)?, Cluster::up(&world, &switch, 2, 1, kernel)?);
    one.login(&indexer, &alice)?;
    two.login(&indexer, &bob)?;
    Ok(Clusters { one, two, indexer, world, _switch: switch })
}

impl Clusters {
    fn reference(&self, account: &str, name: &str) -> String {
        format!("{}/{account}/{name}", self.indexer.authority)
    }

    /// Makes a bucket, publishes it, and lets another account read it.
    fn publish(&self, cluster: &Cluster, account: &str, bucket: &str, reader: &str) -> Result<()> {
        cluster.brant(&["bucket", "create", bucket])?;
        cluster.brant(&["publish", bucket, &self.reference(account, bucket)])?;
        let reader = format!("account:{}/{reader}", self.indexer.authority);
        cluster.brant(&["bucket", "grant", bucket, &reader]).map(drop)
    }
}

/// Makes an instance as soon as what it begins as has reached the cluster.
fn create(cluster: &Cluster, snapshot: &str, name: &str, further: &[&str]) -> Result<()> {
    let node = cluster.name();
    let usual = ["ganeti", "create", snapshot, "--name", name, "--on", &node, "--no-name-check"];
    let (words, last) = ([&usual[..], further].concat(), std::cell::RefCell::new(String::new()));
    let made = wait::until("the instance can be made", || {
        let outcome = cluster.try_brant(&words)?;
        last.replace(outcome.all());
        Ok(outcome.success.then_some(()))
    });
    made.with_context(|| last.into_inner())
}

/// What Ganeti says of an instance.
fn fields(cluster: &Cluster, instance: &str, fields: &str) -> Result<String> {
    let line = format!("gnt-instance list --no-headers --separator=| -o {fields} {instance}");
    Ok(cluster.gnt(&line)?.trim().to_owned())
}

fn records(said: &str) -> Result<u64> {
    Ok(said.rsplit(' ').next().context("a number")?.parse()?)
}

/// The bytes that the cluster's node had from others.
fn received(cluster: &Cluster) -> Result<u64> {
    cluster.json(&["status"])?["swarm"]["received_bytes"].as_u64().context("a number of bytes")
}

/// Starts an instance, whose guest says how many records it finds, and writes some more.
fn runs_on(cluster: &Cluster, instance: &str, more: u64) -> Result<u64> {
    cluster.start_instance(instance, &format!("brant.check brant.records={more}"))?;
    records(&cluster.console(instance, "BRANT records")?)
}

#[test]
fn there_and_back() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    if !e2e::can_have_devices_or_skip() || !e2e::can_run_ganeti_or_skip() {
        return Ok(());
    }
    let clusters = clusters(&kernel)?;
    let (one, two) = (&clusters.one, &clusters.two);
    clusters.publish(one, "alice", "vms", "bob")?;
    clusters.publish(two, "bob", "back", "alice")?;

    one.gnt(&format!(
        "gnt-instance add -t ext -o marked+default --no-name-check --no-ip-check --no-start --net 0:ip=10.9.8.7 \
         -B vcpus=2,minmem=96,maxmem=128 --tags web,owner:alice -n {} --disk 0:size=64M,provider=brant,name=root \
         --disk 1:size=8M,provider=brant web1",
        one.name()
    ))?;
    one.start_instance("web1", "brant.format brant.records=20")?;
    one.console("web1", "BRANT done")?;
    one.brant(&["ganeti", "export", "web1", "vms/web1", "--wait"])?;

    let published = clusters.reference("alice", "vms/web1");
    let orders = "kvm:kernel_args=console=ttyS0 panic=-1 quiet brant.check brant.records=5";
    create(two, &published, "web2", &["--disk", "bucket=back", "-H", orders])?;
    let found = records(&two.console("web2", "BRANT records")?)?;
    ensure!(found == 20, "the guest finds what it wrote in the other cluster, and not {found}");
    two.console("web2", "BRANT done")?;
    let there = received(two)?;
    let same =
        "be/vcpus,be/minmem,be/maxmem,tags,disk.count,disk.name/0,disk.size/0,disk.size/1,nic.ip/0,nic.link/0,os";
    ensure!(fields(one, "web1", same)? == fields(two, "web2", same)?, "Ganeti knows the same of it");
    ensure!(fields(one, "web1", "nic.mac/0")? != fields(two, "web2", "nic.mac/0")?, "both may run in one network");
    what_does_not_fit_is_said(two, &published)?;

    two.gnt("gnt-instance stop --timeout=2 web2")?;
    two.brant(&["ganeti", "export", "web2", "back/web2", "--wait"])?;
    let before = received(one)?;
    create(one, &clusters.reference("bob", "back"), "web3", &["--keep-mac", "-B", "vcpus=1", "--no-start"])?;
    ensure!(fields(one, "web3", "nic.mac/0")? == fields(two, "web2", "nic.mac/0")?, "it keeps what it was told to");
    ensure!(fields(one, "web3", "be/vcpus")? == "1", "what is said counts");
    ensure!(runs_on(one, "web3", 1)? == 25, "the guest finds what it wrote in both clusters");
    let back = received(one)? - before;
    ensure!(back > 0 && back < there, "only what differs comes back: {there} bytes went there, {back} came back");
    what_is_not_there_is_said(one)?;
    begins_as_a_template(&clusters)
}

fn what_does_not_fit_is_said(two: &Cluster, published: &str) -> Result<()> {
    let node = two.name();
    let usual = ["ganeti", "create", published, "--name", "refused1", "--on", &node, "--no-name-check"];
    for (further, says) in [
        (["-B", "vcpus=64"], "-B vcpus="),
        (["--os", "nothing"], "--os NAME"),
        (["--net", "0:link=nowhere"], "--no-nics"),
        (["-H", "kvm:acpi=perhaps"], "-H kvm:"),
    ] {
        let refused = two.try_brant(&[&usual[..], &further].concat())?;
        ensure!(!refused.success && refused.all().contains(says), "{further:?}: {}", refused.all());
    }
    ensure!(two.volumes_of("refused1")?.is_empty(), "nothing is left of what was refused");
    let shown = two.brant(&[&usual[..], &["--dry-run"]].concat())?;
    ensure!(shown.starts_with("gnt-instance add ") && shown.contains("#disk1"), "{shown}");
    Ok(())
}

fn what_is_not_there_is_said(one: &Cluster) -> Result<()> {
    for (words, says) in [
        (&["definition", "nobody"][..], "there is no instance nobody"),
        (&["export", "nobody", "vms/nobody"], "there is no instance nobody"),
        (&["export", "web1", "nowhere/web1"], "nowhere"),
        (&["create", "vms/nothing", "--name", "web9"], "vms/nothing"),
        (&["create", "127.0.0.1:9/alice/vms/web1", "--name", "web9"], "127.0.0.1:9"),
        (&["create", "vms/web1", "--name", "web1", "--no-name-check"], "choose another --name"),
    ] {
        let refused = one.try_brant(&[&["ganeti"], words].concat())?;
        ensure!(!refused.success && refused.all().contains(says), "{words:?}: {}", refused.all());
    }
    Ok(())
}

/// Any snapshot begins instances: one that has no definition needs an operating system.
fn begins_as_a_template(clusters: &Clusters) -> Result<()> {
    let (one, image) = (&clusters.one, clusters.world.path("image.raw"));
    Disk(vec![7; 1 << 20]).write_to(&image)?;
    one.brant(&["import", image.to_str().context("a path of text")?, "vms/image"])?;
    let refused = one.try_brant(&["ganeti", "create", "vms/image", "--name", "plain1"])?;
    ensure!(!refused.success && refused.all().contains("--os NAME"), "{}", refused.all());
    create(one, "vms/image", "plain1", &["--os", "marked+default", "--no-nics", "--no-start"])?;
    // Ganeti makes disks in steps of 4 MiB.
    let made = fields(one, "plain1", "disk.size/0,nic.count")?;
    ensure!(made == "4|0", "as large as the image, and without NICs, and not {made}");
    Ok(())
}

//! The real Ganeti keeps its instances' disks at a brant node, through all that it does with them on one node: its commands
//! succeed, guests find what they wrote, and nothing is left behind.

use anyhow::{Context as _, Result, ensure};
use capture::ForeignDisk as _;
use e2e::{Cluster, ClusterNode, Switch};
use testkit::{World, wait};

/// What Ganeti is told of every disk.
const DISK: &str = "provider=brant";

/// How an instance is added, apart from its disks and its name.
const ADD: &str = "gnt-instance add -t ext -o marked+default --no-name-check --no-ip-check --no-start --net 0:ip=none \
                   -n node1.cluster1.test";

fn add(node: &ClusterNode, disks: &str, instance: &str) -> Result<String> {
    node.gnt(&format!("{ADD} {disks} {instance}"))
}

/// The only volume of an instance.
fn volume(node: &ClusterNode, instance: &str) -> Result<String> {
    let mut volumes = node.volumes_of(instance)?;
    ensure!(volumes.len() == 1, "{instance} has the volumes {volumes:?}");
    volumes.pop().context("one volume")
}

fn size_mib(node: &ClusterNode, volume: &str) -> Result<u64> {
    Ok(node.json(&["volume", "show", volume])?["size_bytes"].as_u64().context("a size")? >> 20)
}

/// What the operating system's script wrote to a disk that is attached.
fn mark(node: &ClusterNode, volume: &str) -> Result<String> {
    let mut block = [0; 512];
    node.connect(volume)?.read_at(4096, &mut block)?;
    Ok(String::from_utf8_lossy(&block).trim_end_matches('\0').to_owned())
}

fn attached(node: &ClusterNode) -> Result<usize> {
    Ok(node.json(&["attach"])?.as_array().context("a list")?.len())
}

/// How many records the guest finds on its disk.
fn records(said: &str) -> Result<u64> {
    Ok(said.rsplit(' ').next().context("a number")?.parse()?)
}

#[test]
fn from_add_to_remove() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    if !e2e::can_have_devices_or_skip() || !e2e::can_run_ganeti_or_skip() {
        return Ok(());
    }
    let world = World::new(e2e::brant())?;
    let switch = Switch::new(&world)?;
    let mut node = Cluster::up(&world, &switch, 1, 1, &kernel)?.nodes.remove(0);
    ensure!(node.gnt("gnt-storage diagnose")?.contains("brant"), "the provider is found");
    node.brant(&["bucket", "create", "vms"])?;

    begins_empty_and_runs(&node)?;
    needs_no_device(&node)?;
    is_snapshotted_by_itself(&node)?;
    grows_and_is_copied_while_it_runs(&node)?;
    begins_as_a_snapshot(&node)?;
    begins_as_an_image(&node)?;
    is_renamed_and_made_anew(&node)?;
    twenty_at_once(&node)?;
    what_cannot_be_is_said(&node)?;
    says_when_brant_is_down(&mut node)?;
    for instance in node.gnt("gnt-instance list --no-headers -o name")?.split_whitespace() {
        node.gnt(&format!("gnt-instance remove -f --shutdown-timeout=2 {instance}"))?;
    }
    ensure!(node.json(&["volume", "list"])?.as_array().is_some_and(Vec::is_empty), "no volume is left");
    ensure!(attached(&node)? == 0, "nothing is attached any more");
    Ok(())
}

fn begins_empty_and_runs(node: &ClusterNode) -> Result<()> {
    add(node, &format!("--disk 0:size=64M,{DISK},bucket=vms"), "inst1")?;
    let disk = volume(node, "inst1")?;
    node.gnt("gnt-instance activate-disks inst1")?;
    ensure!(mark(node, &disk)? == "disk 0 of inst1", "the operating system's script has written to the disk");
    node.gnt("gnt-instance deactivate-disks inst1")?;
    ensure!(attached(node)? == 0, "what is deactivated is released");
    node.start_instance("inst1", "brant.format brant.records=20")?;
    node.console("inst1", "BRANT done")?;
    ensure!(node.gnt("gnt-instance info inst1")?.contains(&disk), "Ganeti shows the disk");
    Ok(())
}

/// Without a block device QEMU is given the URI, and so is what runs the operating system's scripts.
fn needs_no_device(node: &ClusterNode) -> Result<()> {
    add(node, &format!("--disk 0:size=32M,{DISK},export=userspace,access=userspace"), "user1")?;
    let disk = volume(node, "user1")?;
    node.gnt("gnt-instance activate-disks user1")?;
    ensure!(mark(node, &disk)? == "disk 0 of user1", "the operating system's script has written to the disk");
    node.start_instance("user1", "brant.format brant.records=3")?;
    node.console("user1", "BRANT done")?;
    ensure!(node.connect(&disk)?.size_bytes() == 32 << 20, "it is served at its URI");
    for change in [format!("add:size=8M,{DISK},export=userspace,access=userspace"), "1:remove".to_owned()] {
        let done = node.gnt(&format!("gnt-instance modify --hotplug --disk {change} user1"))?;
        ensure!(done.contains("hotplug:done"), "{done}");
    }
    node.gnt("gnt-instance stop --timeout=2 user1")?;
    node.gnt("gnt-instance remove -f user1").map(drop)
}

/// The versions that a schedule has taken of an instance, and whether they are still there.
fn scheduled(node: &ClusterNode, instance: &str) -> Result<Vec<(u64, bool)>> {
    let listed = node.json(&["snapshot", "list", "vms"])?;
    let all = listed.as_array().context("a list")?.iter();
    let of_it = all.filter(|snapshot| snapshot["object"] == instance && snapshot["scheduled"] == true);
    of_it.map(|found| Ok((found["version"].as_u64().context("a version")?, found["state"] != "retired"))).collect()
}

fn is_snapshotted_by_itself(node: &ClusterNode) -> Result<()> {
    // The operating system's script writes to the disk: that is the first snapshot's.
    add(node, &format!("--disk 0:size=16M,{DISK},bucket=vms,schedule=1s,keep=1"), "often1")?;
    let disk = volume(node, "often1")?;
    node.gnt("gnt-instance activate-disks often1")?;
    let attached = node.json(&["attach"])?;
    let found = attached.as_array().context("a list")?.iter().find(|one| one["target"] == disk.as_str());
    let device = found.and_then(|one| one["device"].as_str()).context("a device")?;
    for count in 1..=3 {
        wait::until("a snapshot has been taken", || Ok((scheduled(node, "often1")?.len() >= count).then_some(())))?;
        let output = format!("of={device}");
        node.run(&["dd", "if=/dev/urandom", &output, "bs=4096", "count=1", "conv=fsync"])?;
    }
    wait::until("earlier ones have gone, and not the last one", || {
        let taken = scheduled(node, "often1")?;
        Ok((taken.len() > 2 && !taken[0].1 && taken.last().is_some_and(|last| last.1)).then_some(()))
    })?;
    let shown = node.json(&["volume", "schedule", &disk])?;
    ensure!(shown["into"] == "vms/often1" && shown["failure"].is_null(), "{shown}");
    node.gnt("gnt-instance modify --disk 0:schedule=default,keep=default often1")?;
    node.gnt("gnt-instance activate-disks often1")?;
    ensure!(node.json(&["volume", "show", &disk])?["schedule"].is_null(), "the parameters are gone");
    node.gnt("gnt-instance remove -f --shutdown-timeout=2 often1").map(drop)
}

fn grows_and_is_copied_while_it_runs(node: &ClusterNode) -> Result<()> {
    let disk = volume(node, "inst1")?;
    node.gnt("gnt-instance grow-disk inst1 0 16M")?;
    ensure!(size_mib(node, &disk)? == 80, "the volume has grown");
    node.gnt(&format!("gnt-instance modify --disk add:size=8M,{DISK} inst1"))?;
    ensure!(node.volumes_of("inst1")?.len() == 2, "a disk was added");
    let taken = node.json(&["ganeti", "snapshot", "inst1", "--wait"])?;
    ensure!(taken["object"] == "inst1" && taken["state"] == "sealed", "{taken}");
    node.gnt("gnt-instance modify --hotplug --disk 1:remove inst1")?;
    ensure!(volume(node, "inst1")? == disk, "and removed");
    node.gnt("gnt-backup export --noshutdown -n node1.cluster1.test inst1")?;
    ensure!(node.json(&["volume", "list"])?.as_array().is_some_and(|all| all.len() == 1), "the .snap is gone");
    let exported = node.path("/var/lib/ganeti/export/inst1");
    ensure!(std::fs::read_dir(&exported)?.count() >= 2, "the export is there");
    node.gnt("gnt-instance stop --timeout=2 inst1")?;
    ensure!(attached(node)? == 0, "a stopped instance releases its disk");
    node.gnt(&format!(
        "gnt-backup import -t ext -n node1.cluster1.test --src-node=node1.cluster1.test --no-name-check --no-ip-check \
         --net 0:mac=generate --disk 0:size=80M,{DISK} --src-dir=/var/lib/ganeti/export/inst1 copy1"
    ))?;
    node.start_instance("copy1", "brant.check brant.records=1")?;
    ensure!(records(&node.console("copy1", "BRANT records")?)? == 20, "the import has what was exported");
    node.gnt("gnt-instance remove -f --shutdown-timeout=2 copy1")?;
    Ok(())
}

fn begins_as_a_snapshot(node: &ClusterNode) -> Result<()> {
    // The snapshot has two disks: each of the new instance's begins as that of its number, and may be larger.
    let disks = format!("--disk 0:size=96M,{DISK},origin=vms/inst1 --disk 1:size=8M,{DISK},origin=vms/inst1");
    node.gnt(&format!("{ADD} --no-install {disks} inst2"))?;
    let mut sizes = Vec::new();
    for disk in node.volumes_of("inst2")? {
        sizes.push(size_mib(node, &disk)?);
    }
    sizes.sort_unstable();
    ensure!(sizes == [8, 96], "{sizes:?}");
    node.start_instance("inst2", "brant.check brant.records=5")?;
    ensure!(records(&node.console("inst2", "BRANT records")?)? == 20, "the guest finds what was written before");
    Ok(())
}

/// A Debian system as installed, of 4 GiB; only where the images have been made.
fn begins_as_an_image(node: &ClusterNode) -> Result<()> {
    let Some(images) = e2e::debian_or_skip() else { return Ok(()) };
    let image = xtask::images::disk(&images, "v1");
    node.brant(&["import", image.to_str().context("a path of text")?, "vms/debian"])?;
    node.gnt(&format!("{ADD} --no-install --disk 0:size=4G,{DISK},origin=vms/debian,prefetch=full debian1"))?;
    // The small guest mounts it, and finds that none of its own has been there.
    node.start_instance("debian1", "brant.write=ganeti")?;
    node.console("debian1", "BRANT wrote ganeti")?;
    node.gnt("gnt-instance remove -f --shutdown-timeout=2 debian1").map(drop)
}

fn is_renamed_and_made_anew(node: &ClusterNode) -> Result<()> {
    let disk = volume(node, "inst1")?;
    node.gnt("gnt-instance rename --force --no-name-check --no-ip-check inst1 inst3")?;
    ensure!(volume(node, "inst3")? == disk, "the volume's label follows");
    let refused = node.gnt_fails("gnt-instance recreate-disks inst3")?;
    ensure!(refused.contains("there is a volume"), "a disk that is there is not replaced: {refused}");
    node.brant(&["volume", "remove", &disk])?;
    let missing = node.gnt_fails("gnt-instance activate-disks inst3")?;
    ensure!(missing.contains("brant volume list --deleted"), "{missing}");
    node.gnt("gnt-instance recreate-disks inst3")?;
    ensure!(node.json(&["volume", "show", &disk])?["dirty_bytes"] == 0, "it is new, under the old name");
    Ok(())
}

fn twenty_at_once(node: &ClusterNode) -> Result<()> {
    let name = |number: usize| format!("parallel{number}.ext.disk0");
    let make = |number: usize| -> Result<String> {
        let provider = "/usr/share/ganeti/extstorage/brant";
        let volume = format!("VOL_NAME={}", name(number));
        let script = format!("cd {provider} && ./create && ./attach && ./detach && ./remove");
        let access = ["EXTP_ACCESS=userspace", "EXTP_EXPORT=userspace", "EXTP_PROVIDER=brant"];
        let words = [&["env", &volume, "VOL_SIZE=8"][..], &access, &["sh", "-c", &script]].concat();
        let printed = node.run(&words)?;
        ensure!(printed.success, "{}", printed.all());
        Ok(printed.stdout)
    };
    std::thread::scope(|scope| -> Result<()> {
        let calls: Vec<_> = (0..20).map(|number| scope.spawn(move || make(number))).collect();
        for (number, call) in calls.into_iter().enumerate() {
            let printed = call.join().expect("a thread that does not panic")?;
            let uri = format!("\nkvm:nbd:unix:/run/brant/ganeti/{}.sock\n", name(number));
            ensure!(printed.contains(&uri), "{printed}");
        }
        Ok(())
    })
}

fn what_cannot_be_is_said(node: &ClusterNode) -> Result<()> {
    for (parameters, says) in [
        ("size=64M,origin=vms/inst1#disk0", "does not fit into a volume of 67108864"),
        ("size=64M,origin=vms/nothing", "there is no object vms/nothing"),
        ("size=64M,bucket=vms,schedule=daily", "schedule=daily is no length of time"),
        ("size=64M,export=userspace", "export=userspace makes none: say access=userspace too"),
    ] {
        let refused = node.gnt_fails(&format!("{ADD} --disk 0:{DISK},{parameters} refused"))?;
        ensure!(refused.contains(says), "{refused}");
    }
    ensure!(node.volumes_of("refused")?.is_empty(), "nothing is left of what was refused");
    node.gnt(
        "gnt-instance add -t diskless -o marked+default --no-name-check --no-ip-check --no-start --no-install \
              --net 0:ip=none -n node1.cluster1.test bare1",
    )?;
    for (command, says) in [
        ("export", "the disks of bare1 are of the template diskless, and not brant's"),
        ("snapshot", "no disk of the instance bare1 is at the node"),
    ] {
        let printed = node.try_brant(&["ganeti", command, "bare1", "vms/bare1"])?;
        ensure!(!printed.success && printed.all().contains(says), "{}", printed.all());
    }
    ensure!(!node.try_brant(&["snapshot", "show", "vms/bare1"])?.success, "nothing was taken");
    Ok(())
}

fn says_when_brant_is_down(node: &mut ClusterNode) -> Result<()> {
    node.kill_brant()?;
    let down = node.gnt_fails(&format!("{ADD} --disk 0:size=64M,{DISK} late1"))?;
    ensure!(down.contains("no node answers at") && down.contains("start it with: brant node serve"), "{down}");
    node.start_brant()?;
    add(node, &format!("--disk 0:size=64M,{DISK}"), "late1")?;
    wait::until("late1 has its disk", || Ok((node.volumes_of("late1")?.len() == 1).then_some(())))
}

//! Volumes as vhost-user-blk devices of an unmodified QEMU: its guest sees what the disk is, a node that is killed or replaced
//! is a pause in which nothing is lost and nothing is answered that was not done, and nothing is left behind.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::Pair;
use testkit::{Disk, Node, World, wait};
use xtask::images::Kernel;
use xtask::qemu::{self, Boot, Machine};

const BOOT: Duration = Duration::from_mins(3);
const MIB: usize = 1 << 20;
/// The exit code of what is in use.
const IN_USE: i32 = 4;

fn full() -> bool {
    std::env::var_os("BRANT_TEST_FULL").is_some()
}

/// Attaches something, and returns what QEMU takes for it.
fn share(node: &Node, target: &str) -> Result<qemu::Disk> {
    let attachment = node.json(&["attach", target, "--via", "vhost-user"])?;
    ensure!(attachment["via"] == "vhost-user", "{attachment}");
    let words = attachment["qemu_arguments"].as_array().context("QEMU's arguments")?;
    let words = words.iter().filter_map(|word| Some(word.as_str()?.to_owned()));
    Ok(qemu::Disk::SharedMemory(words.collect()))
}

fn boot(kernel: &Kernel, disk: &qemu::Disk, orders: &str) -> Result<Machine> {
    Machine::start(&Boot {
        kernel: Some(kernel.clone()),
        append: format!("quiet {orders}"),
        disk: Some(disk.clone()),
        memory_mib: 256,
        accelerator: qemu::accelerator(Some(kernel)),
    })
}

/// Boots a guest that does what it was told and powers off.
fn run(kernel: &Kernel, disk: &qemu::Disk, orders: &str) -> Result<Machine> {
    let mut machine = boot(kernel, disk, &format!("{orders} brant.poweroff"))?;
    machine.wait_for("BRANT done", BOOT)?;
    machine.wait_off(BOOT)?;
    Ok(machine)
}

/// The number of the last record that a guest has said to be durable.
fn records(machine: &Machine) -> u64 {
    machine.reports("record").last().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Waits until a guest has made further records durable.
fn goes_on(machine: &mut Machine) -> Result<()> {
    let next = records(machine) + 5;
    machine.wait_for(&format!("BRANT record {next}"), BOOT).map(drop)
}

fn connections(node: &Node) -> Result<u64> {
    node.json(&["attach"])?[0]["connections"].as_u64().context("a number of connections")
}

#[test]
fn a_guest_sees_a_killed_or_replaced_node_as_a_pause_and_loses_nothing() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    let world = World::new(e2e::brant())?;
    let mut node = world.start_node("a")?;
    node.brant(&["volume", "create", "vm", "--size", "256MiB"])?;
    let disk = share(&node, "vm")?;
    // It is killed also while the guest fills its disk. QEMU before 9.1 does not come a third time to a back-end that dies while it
    // says hello, so each life lasts until the guest has gone on.
    let mut guest = boot(&kernel, &disk, "brant.format brant.fill=16 brant.records=100000")?;
    guest.wait_for("BRANT records 0", BOOT)?;
    node.kill()?;
    node = world.start_node("a")?;
    guest.wait_for("BRANT record 5", BOOT)?;
    for _ in 0..if full() { 30 } else { 2 } {
        node.kill()?;
        node = world.start_node("a")?;
        goes_on(&mut guest)?;
        node.replace(&e2e::brant())?;
        goes_on(&mut guest)?;
    }
    let promised = records(&guest);
    guest.cut_power()?;
    let after = run(&kernel, &disk, "brant.check")?;
    ensure!(after.reports("verified") == ["1"], "{:?}", after.console());
    let kept: u64 = after.reports("records").first().context("records")?.parse()?;
    ensure!(kept >= promised, "{promised} records were durable, {kept} are there");
    Ok(())
}

#[test]
fn a_guest_sees_what_its_disk_is_and_that_it_grows() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    let world = World::new(e2e::brant())?;
    let mut node = world.start_node("a")?;
    node.brant(&["volume", "create", "vm", "--size", "64MiB"])?;
    let disk = share(&node, "vm")?;
    let mut guest = boot(&kernel, &disk, "brant.disk brant.cache=off brant.discard brant.format")?;
    guest.wait_for("BRANT done", BOOT)?;
    ensure!(guest.reports("size") == ["67108864"], "{:?}", guest.console());
    ensure!(guest.reports("queues") == ["2"], "one for each processor: {:?}", guest.console());
    ensure!(guest.reports("cache") == ["write back", "write through"], "{:?}", guest.console());
    ensure!(guest.reports("read-only") == ["0"] && guest.reports("serial") == ["vm"], "{:?}", guest.console());
    guest.wait_for("BRANT discarded", BOOT)?;
    node.brant(&["volume", "resize", "vm", "--size", "96MiB"])?;
    guest.wait_for("BRANT size 100663296", BOOT)?;
    // It grows while nobody tells the guest, who hears of it when the node is back.
    node.kill()?;
    node = world.start_node("a")?;
    node.brant(&["volume", "resize", "vm", "--size", "128MiB"])?;
    guest.wait_for("BRANT size 134217728", BOOT)?;
    // Somebody uses it.
    let refused = node.try_brant(&["detach", "vm"])?;
    ensure!(refused.code == IN_USE && refused.stderr.contains("1 client is connected"), "{refused:?}");
    guest.cut_power()?;
    wait::until("QEMU is gone", || Ok((connections(&node)? == 0).then_some(())))?;
    node.brant(&["detach", "vm"])?;
    ensure!(!world.path("a/vhost-user/vm.sock").exists(), "the socket is left");
    node.brant(&["bucket", "create", "vms"])?;
    node.brant(&["snapshot", "create", "vm", "vms/vm", "--wait"])?;
    let snapshot = share(&node, "vms/vm@1")?;
    // Its file system was in use, so it cannot be mounted without writing.
    let mut guest = boot(&kernel, &snapshot, "brant.disk")?;
    guest.wait_for("BRANT read-only 1", BOOT)?;
    guest.wait_for("write access unavailable", BOOT)?;
    Ok(())
}

#[test]
fn a_guest_boots_before_its_data_are_here() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    let mut pair = Pair::new()?;
    let disk = Disk::random(33, 8 * MIB);
    pair.clone_at_b(&disk, "vm")?;
    pair.a.kill()?;
    let shared = share(&pair.b, "vm")?;
    // Its firmware reads at once, and waits until somebody has that.
    let mut guest = boot(&kernel, &shared, "brant.discard")?;
    wait::until("QEMU is there", || Ok((connections(&pair.b)? == 1).then_some(())))?;
    pair.a = pair.world.start_node("a")?;
    guest.wait_for("BRANT discarded", BOOT)?;
    guest.cut_power()?;
    wait::until("QEMU is gone", || Ok((connections(&pair.b)? == 0).then_some(())))?;
    pair.b.brant(&["detach", "vm"])?;
    let found = e2e::read_disk(&e2e::attach(&pair.b, "vm")?)?;
    ensure!(found.0[4 * MIB..] == disk.0[4 * MIB..], "what the guest did not write is what it was");
    Ok(())
}

#[test]
fn what_cannot_be_shared_is_refused_and_nothing_is_left() -> Result<()> {
    let world = World::new(e2e::brant())?;
    let mut node = world.start_node("a")?;
    node.brant(&["volume", "create", "vm", "--size", "8MiB"])?;
    let refused = node.try_brant(&["attach", "vm", "--via", "vhost-user", "--listen", "127.0.0.1:0"])?;
    ensure!(refused.code != 0 && refused.stderr.contains("unix socket"), "{refused:?}");
    let socket: PathBuf = world.path("elsewhere/vm.sock");
    let listen = format!("unix:{}", socket.display());
    let printed = node.brant(&["attach", "vm", "--via", "vhost-user", "--listen", &listen])?;
    ensure!(printed.stdout.trim() == socket.display().to_string(), "{printed:?}");
    ensure!(printed.stderr.contains("vhost-user-blk-pci") && printed.stderr.contains("share=on"), "{printed:?}");
    let twice = node.try_brant(&["attach", "vm"])?;
    ensure!(twice.code == IN_USE && twice.stderr.contains("attached already"), "{twice:?}");
    // What a dead node has left is used again, or removed.
    let stray = world.path("a/vhost-user/stray.sock");
    node.kill()?;
    std::fs::create_dir_all(stray.parent().context("a directory")?)?;
    drop(std::os::unix::net::UnixListener::bind(&stray)?);
    ensure!(socket.exists() && stray.exists());
    node = world.start_node("a")?;
    wait::until("it is attached", || Ok(node.json(&["attach"])?[0]["socket"].as_str().map(drop)))?;
    ensure!(std::os::unix::net::UnixStream::connect(&socket).is_ok() && !stray.exists());
    node.brant(&["detach", "vm"]).or_else(|_| {
        wait::until("the caller is gone", || Ok((connections(&node)? == 0).then_some(())))?;
        node.brant(&["detach", "vm"])
    })?;
    ensure!(!socket.exists(), "the socket is left");
    // By NBD it is the same disk.
    let uri = e2e::attach(&node, "vm")?;
    ensure!(e2e::read_disk(&uri)?.0.len() == 8 * MIB);
    Ok(())
}

//! A node is replaced while guests run: they see a pause, on the same connection. It is killed: guests that were told to
//! wait for it see a pause too.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{Load, Pair, attach, read_disk};
use testkit::{Disk, Node, World, wait};
use xtask::images::Kernel;
use xtask::qemu::{self, Boot, Machine};
use xtask::setup::{self, FIO};
use xtask::tally::SKIP_MARK;

const BOOT: Duration = Duration::from_mins(3);
const MIB: usize = 1 << 20;

fn boot(kernel: &Kernel, disk: qemu::Disk, orders: &str) -> Result<Machine> {
    Machine::start(&Boot {
        kernel: Some(kernel.clone()),
        append: format!("quiet {orders}"),
        disk: Some(disk),
        memory_mib: 256,
        accelerator: qemu::accelerator(Some(kernel)),
    })
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

/// Boots once more on what a guest has left, and compares everything.
fn verify(kernel: &Kernel, disk: qemu::Disk, promised: u64) -> Result<()> {
    let mut after = boot(kernel, disk, "brant.check brant.poweroff")?;
    after.wait_for("BRANT done", BOOT)?;
    after.wait_off(BOOT)?;
    ensure!(after.reports("verified") == ["1"], "{:?}", after.console());
    let kept: u64 = after.reports("records").first().context("records")?.parse()?;
    ensure!(kept >= promised, "{promised} records were durable, {kept} are there");
    Ok(())
}

#[test]
fn a_guest_does_not_notice_that_its_node_is_replaced() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    let world = World::new(e2e::brant())?;
    let mut node = world.start_node("a")?;
    node.brant(&["volume", "create", "vm", "--size", "256MiB"])?;
    // Without a reconnect-delay QEMU fails every request of a connection that breaks.
    let disk = qemu::Disk::parse_nbd(&attach(&node, "vm")?)?;
    let mut guest = boot(&kernel, disk.clone(), "brant.format brant.fill=4 brant.records=100000")?;
    guest.wait_for("BRANT record 5", BOOT)?;
    for _ in 0..5 {
        node.replace(&e2e::brant())?;
        ensure!(node.json(&["attach"])?[0]["connections"] == 1, "the guest is connected");
        goes_on(&mut guest)?;
    }
    let promised = records(&guest);
    guest.cut_power()?;
    verify(&kernel, disk, promised)
}

#[test]
fn a_guest_that_reconnects_sees_a_killed_node_as_a_pause() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    let world = World::new(e2e::brant())?;
    let mut node = world.start_node("a")?;
    node.brant(&["volume", "create", "vm", "--size", "256MiB"])?;
    let disk = qemu::Disk::parse_nbd(&attach(&node, "vm")?)?.reconnecting(300);
    let mut guest = boot(&kernel, disk.clone(), "brant.format brant.fill=4 brant.records=100000")?;
    guest.wait_for("BRANT record 5", BOOT)?;
    let drive = node.json(&["attach"])?[0]["qemu_drive"].as_str().context("QEMU's argument")?.to_owned();
    ensure!(drive.contains("reconnect-delay") && qemu_takes(&drive)?, "{drive}");
    for _ in 0..3 {
        node.kill()?;
        node = world.start_node("a")?;
        goes_on(&mut guest)?;
    }
    let promised = records(&guest);
    guest.cut_power()?;
    verify(&kernel, disk, promised)
}

/// Whether QEMU can open a drive as `brant attach` prints it.
fn qemu_takes(drive: &str) -> Result<bool> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-M", "q35", "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"]);
    let mut child = qemu.args(["-drive", drive]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    child.stdin.take().context("a monitor")?.write_all(b"quit\n")?;
    Ok(child.wait()?.success())
}

fn loaded(world: &World) -> Result<(Node, Load)> {
    let node = world.start_node("a")?;
    node.brant(&["volume", "create", "vm", "--size", "64MiB"])?;
    let uri = attach(&node, "vm")?;
    let load = Load::start(&uri, 4);
    load.goes_on()?;
    Ok((node, load))
}

#[test]
fn clients_are_answered_rightly_through_many_replacements() -> Result<()> {
    let world = World::new(e2e::brant())?;
    let (mut node, load) = loaded(&world)?;
    let connected = node.json(&["attach"])?[0]["connections"].clone();
    for _ in 0..10 {
        node.replace(&e2e::brant())?;
        load.goes_on()?;
    }
    ensure!(node.json(&["attach"])?[0]["connections"] == connected, "all clients are connected still");
    load.finish()?;
    node.service.terminate()?;
    ensure!(!world.path("a/nbd/vm.sock").exists(), "the last one removes the socket of the first");
    Ok(())
}

#[test]
fn fio_verifies_what_it_wrote_through_replacements() -> Result<()> {
    if !FIO.is_present() {
        println!("{SKIP_MARK}missing: {}", setup::describe(&[FIO]));
        return Ok(());
    }
    let world = World::new(e2e::brant())?;
    let mut node = world.start_node("a")?;
    node.brant(&["volume", "create", "vm", "--size", "64MiB"])?;
    let uri = attach(&node, "vm")?;
    let mut fio = Command::new("fio");
    fio.args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--numjobs=4"]);
    fio.args(["--size=16m", "--offset_increment=16m", "--loops=3", "--verify=crc32c", "--verify_backlog=256"]);
    fio.arg(format!("--uri={uri}")).current_dir(world.path("a"));
    let mut fio = fio.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut replaced = 0;
    // It ends by itself: it has a set amount to write.
    while fio.try_wait()?.is_none() {
        node.replace(&e2e::brant())?;
        replaced += 1;
    }
    let output = fio.wait_with_output()?;
    ensure!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    ensure!(replaced > 2, "fio was done before anything was replaced");
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How many clients are connected to the only attachment.
fn connections(node: &Node) -> Result<u64> {
    node.json(&["attach"])?[0]["connections"].as_u64().context("a number of connections")
}

#[test]
fn a_read_of_what_nobody_has_is_answered_by_the_successor() -> Result<()> {
    let mut pair = Pair::new()?;
    let disk = Disk::random(21, 8 * MIB);
    pair.clone_at_b(&disk, "vm")?;
    let uri = attach(&pair.b, "vm")?;
    pair.a.kill()?;
    let reader = std::thread::spawn(move || read_disk(&uri));
    let connected = wait::until("the reader is there", || Ok(Some(connections(&pair.b)?).filter(|count| *count > 0)))?;
    for _ in 0..2 {
        pair.b.replace(&e2e::brant())?;
    }
    ensure!(!reader.is_finished(), "nobody has the data");
    // A client opens further connections after its first one.
    let now = connections(&pair.b)?;
    ensure!(now >= connected, "of {connected} connections there are {now}");
    pair.a = pair.world.start_node("a")?;
    let found = reader.join().expect("the reader panicked")?;
    ensure!(found.first_difference(&disk).is_none(), "the data are wrong");
    Ok(())
}

/// The word of a successor that reads these versions (docs/format.md, "Hand-over").
fn ask(oldest: u32, newest: u32) -> Vec<u8> {
    [b"BRANTHND".as_slice(), &1_u32.to_le_bytes(), &oldest.to_le_bytes(), &newest.to_le_bytes()].concat()
}

/// Plays a successor that says a word, hears a part of the answer, and is gone; a process of its own, as the node ends
/// the process that it gave its connections to.
fn successor_that_leaves(node: &Node, says: &[u8], hears: usize) -> Result<()> {
    // A node that was taken back listens again a moment after it serves again.
    let path = node.directory().join("hand-over.sock");
    wait::until("the node can be asked", || Ok(UnixStream::connect(&path).ok()))?;
    let mut part = Command::new(std::env::current_exe()?);
    part.args(["--exact", "a_part_in_other_tests"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    part.env("BRANT_TEST_CALL", &path).env("BRANT_TEST_HEARS", hears.to_string());
    part.env("BRANT_TEST_SAYS", says.iter().map(|byte| format!("{byte},")).collect::<String>());
    part.status()?;
    Ok(())
}

#[test]
fn a_part_in_other_tests() -> Result<()> {
    let Some(path) = std::env::var_os("BRANT_TEST_CALL") else { return Ok(()) };
    let says: Vec<u8> =
        std::env::var("BRANT_TEST_SAYS")?.split_terminator(',').map(str::parse).collect::<Result<_, _>>()?;
    let mut stream = UnixStream::connect(path)?;
    stream.write_all(&says)?;
    stream.read_exact(&mut vec![0; std::env::var("BRANT_TEST_HEARS")?.parse()?])?;
    Ok(())
}

fn failure(node: &Node) -> Result<String> {
    wait::until("the node says why", || {
        let status = node.try_brant(&["status", "--json"])?;
        let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        Ok(status["restart_failure"].as_str().map(str::to_owned))
    })
}

#[test]
fn a_successor_that_goes_away_at_any_step_changes_nothing() -> Result<()> {
    let world = World::new(e2e::brant())?;
    let (node, load) = loaded(&world)?;
    let pid = node.json(&["status"])?["pid"].clone();
    for (says, hears) in [(Vec::new(), 0), (vec![7; 20], 0), (ask(1, 1)[..19].to_vec(), 0)] {
        successor_that_leaves(&node, &says, hears)?;
        load.goes_on()?;
    }
    // It reads no version that the node writes.
    let mut stranger = UnixStream::connect(node.directory().join("hand-over.sock"))?;
    stranger.write_all(&ask(1000, 1001))?;
    let mut answer = String::new();
    stranger.read_to_string(&mut answer)?;
    ensure!(answer.contains("takes 1000 to 1001"), "{answer:?}");
    // It has asked; it has the parcel, or a part of it.
    for hears in [0, 1, 20, 21] {
        successor_that_leaves(&node, &ask(1, 1), hears)?;
        load.goes_on()?;
        failure(&node)?;
    }
    ensure!(node.json(&["status"])?["pid"] == pid, "it is the same process");
    load.finish()
}

#[test]
fn a_successor_that_fails_says_why_and_changes_nothing() -> Result<()> {
    let world = World::new(e2e::brant())?;
    let (mut node, load) = loaded(&world)?;
    let successor = |limit: &str, arguments: &str| {
        let script = format!("{limit} exec \"$0\" node serve --take-over --dir \"$1\" {arguments} 2>&1 | cat");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(node.program()).arg(node.directory());
        command.stdin(Stdio::null()).output().map(|output| text(&output.stdout))
    };
    // An address that this host does not have.
    successor("", "--bind 192.0.2.1:7071")?;
    load.goes_on()?;
    let why = failure(&node)?;
    ensure!(why.contains("could not listen at 192.0.2.1:7071"), "{why}");
    // It is killed by the first byte that it writes to a file, which it does before it serves.
    let said = successor("ulimit -f 0;", "--bind 127.0.0.1:0")?;
    ensure!(!said.contains("ready"), "{said}");
    load.goes_on()?;
    // It may not have as many descriptors as it needs.
    let said = successor("ulimit -n 16;", "--bind 127.0.0.1:0")?;
    ensure!(!said.contains("ready"), "{said}");
    load.goes_on()?;
    node.replace(&e2e::brant())?;
    load.goes_on()?;
    load.finish()
}

/// The process that serves now.
fn pid(node: &Node) -> Result<u64> {
    node.json(&["status"])?["pid"].as_u64().context("a process id")
}

#[test]
fn a_restart_by_command_uses_the_file_that_was_installed_and_says_why_it_could_not() -> Result<()> {
    let home = tempfile::tempdir()?;
    let (program, kept) = (home.path().join("brant"), home.path().join("kept"));
    std::fs::copy(e2e::brant(), &program)?;
    let world = World::new(&program)?;
    let (node, load) = loaded(&world)?;
    let first = pid(&node)?;
    // What was installed is no program of ours; the running one has no file any more.
    std::fs::rename(&program, &kept)?;
    std::fs::write(&program, "#!/bin/sh\nexit 3\n")?;
    std::fs::set_permissions(&program, std::fs::metadata(&kept)?.permissions())?;
    let client = |arguments: &[&str]| {
        let mut command = Command::new(&kept);
        command.env("BRANT_NODE", node.directory()).args(arguments).stdin(Stdio::null()).output()
    };
    let failed = client(&["node", "restart"])?;
    ensure!(!failed.status.success() && text(&failed.stderr).contains("exit status: 3"), "{}", text(&failed.stderr));
    load.goes_on()?;
    // What was installed cannot serve: it gets everything, and gives it back.
    std::fs::write(
        &program,
        "#!/bin/sh\nulimit -f 0\nexec \"$(dirname \"$0\")/kept\" \"$@\" 2>/dev/null >/dev/null\n",
    )?;
    let failed = client(&["node", "restart"])?;
    ensure!(
        !failed.status.success() && text(&failed.stderr).contains("before it was ready"),
        "{}",
        text(&failed.stderr)
    );
    load.goes_on()?;
    std::fs::rename(&kept, &program)?;
    ensure!(pid(&node)? == first, "the process is the same");
    node.brant(&["node", "restart"])?;
    let second = pid(&node)?;
    load.goes_on()?;
    ensure!(second != first, "another process serves");
    load.finish()?;
    // It is nobody's child here.
    ensure!(Command::new("kill").arg(second.to_string()).status()?.success(), "it was told to stop");
    wait::until("it has ended", || Ok((!node.directory().join("node.sock").exists()).then_some(())))
}

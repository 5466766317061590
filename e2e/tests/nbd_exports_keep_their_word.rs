//! What a node's exports promise, seen through other people's tools: bytes that come back, states that are told, sizes that
//! grow, and sockets that somebody else has made.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{Judges, Pair, attach};
use serde_json::Value;
use testkit::{Disk, wait};
use xtask::process::{Echo, Outcome, run, run_apart};
use xtask::setup::{self, FIO, NBDINFO, NBDSH, QEMU, SOCKET_ACTIVATE};
use xtask::tally::SKIP_MARK;
use xtask::watched::Watched;

const MIB: usize = 1 << 20;
const LIMIT: Duration = Duration::from_mins(2);

fn tool(program: &str, arguments: &[&str]) -> Result<Outcome> {
    run(Command::new(program).args(arguments), LIMIT, Echo::Quiet)
}

/// Runs a script of nbdsh with a connection `h`.
fn nbdsh(uri: &str, script: &str) -> Result<String> {
    tool("/usr/bin/python3", &["-m", "nbd", "-u", uri, "-c", script])?.success("nbdsh")
}

fn size(uri: &str) -> Result<String> {
    Ok(tool("nbdinfo", &["--size", uri])?.success("nbdinfo")?.trim().to_owned())
}

#[test]
fn fio_reads_back_what_it_wrote() -> Result<()> {
    let Some(judges) = Judges::with_tools(&[FIO])? else { return Ok(()) };
    let seconds = if std::env::var_os("BRANT_TEST_FULL").is_some() { 60 } else { 6 };
    for jobs in [1, 4] {
        let name = format!("fio{jobs}");
        judges.node.brant(&["volume", "create", &name, "--size", "128MiB"])?;
        let uri = attach(&judges.node, &name)?;
        let each = 128 / jobs;
        let arguments = [
            format!("--uri={uri}"),
            format!("--numjobs={jobs}"),
            format!("--size={each}m"),
            format!("--offset_increment={each}m"),
            format!("--runtime={seconds}"),
        ];
        let mut command = Command::new("fio");
        command.args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-128k", "--iodepth=32"]);
        command.args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=128",
            "--verify_state_save=0",
            "--fsync=200",
            "--time_based",
        ]);
        let said = run(command.args(&arguments), LIMIT, Echo::Quiet)?.success("fio")?;
        ensure!(!said.contains("verify: bad") && said.contains("err= 0"), "{said}");
    }
    Ok(())
}

#[test]
fn nbdcopy_brings_every_byte_both_ways() -> Result<()> {
    let Some(judges) = Judges::with_tools(&[NBDINFO])? else { return Ok(()) };
    let (source, back) = (judges.world.path("source.raw"), judges.world.path("back.raw"));
    let disk = Disk::random(5, 48 * MIB);
    disk.write_to(&source)?;
    for connections in ["--connections=1", "--connections=4"] {
        let name = format!("copy{}", &connections[14..]);
        judges.node.brant(&["volume", "create", &name, "--size", "48MiB"])?;
        let uri = attach(&judges.node, &name)?;
        let (from, to) = (source.to_str().context("a path")?, back.to_str().context("a path")?);
        tool("nbdcopy", &[connections, "--requests=64", "--flush", from, &uri])?.success("nbdcopy to brant")?;
        drop(std::fs::remove_file(&back));
        tool("nbdcopy", &[connections, "--requests=64", &uri, to])?.success("nbdcopy from brant")?;
        ensure!(Disk::read_from(&back)?.first_difference(&disk).is_none(), "{connections}: the copy differs");
    }
    Ok(())
}

#[test]
fn block_status_tells_where_the_bytes_are() -> Result<()> {
    if !NBDINFO.is_present() || !NBDSH.is_present() {
        println!("{SKIP_MARK}missing: {}", setup::describe(&setup::missing(&[NBDINFO, NBDSH])));
        return Ok(());
    }
    // Four MiB at another node: one is read here, one is written, one is zeroed; behind them nothing was ever written.
    let pair = Pair::new()?;
    let mut disk = Disk::random(6, 6 * MIB);
    disk.0[4 * MIB..].fill(0);
    let noise = Disk::random(7, 4 * MIB);
    disk.0[..4 * MIB].copy_from_slice(&noise.0);
    for (index, byte) in disk.0[..4 * MIB].iter_mut().enumerate() {
        *byte |= u8::from(index % 4096 == 0);
    }
    pair.clone_at_b(&disk, "web")?;
    let uri = attach(&pair.b, "web")?;
    let map = |context: &str| -> Result<Vec<(u64, u64)>> {
        let context = format!("--map={context}");
        let said = run_apart(Command::new("nbdinfo").args([&context, "--json", &uri]), LIMIT)?.success("nbdinfo")?;
        let extents: Vec<Value> = serde_json::from_str(&said)?;
        let pair = |extent: &Value| Some((extent["length"].as_u64()?, extent["type"].as_u64()?));
        extents.iter().map(|extent| pair(extent).context("an extent")).collect()
    };
    let total = |extents: &[(u64, u64)], kind: u64| -> u64 {
        extents.iter().filter(|extent| extent.1 == kind).map(|extent| extent.0).sum()
    };
    let before = map("brant:state")?;
    ensure!(total(&before, 3) > 0 && total(&before, 1) == 0, "absent at first: {before:?}");
    let script = "h.zero(1048576, 2097152)\nh.pwrite(b'x' * 1048576, 1048576)\nh.pread(65536, 0)\nh.flush()";
    nbdsh(&uri, script)?;
    let after = map("brant:state")?;
    let mib = MIB as u64;
    ensure!(total(&after, 1) == mib, "written: {after:?}");
    ensure!(total(&after, 4) == mib, "zeroed: {after:?}");
    ensure!(total(&after, 5) >= 2 * mib, "never written: {after:?}");
    ensure!(after.first().is_some_and(|first| first.1 == 2 && first.0 >= 65_536), "here: {after:?}");
    let allocation = map("base:allocation")?;
    ensure!(total(&allocation, 2) == mib && total(&allocation, 3) >= 2 * mib, "allocation: {allocation:?}");
    let depth = map("qemu:allocation-depth")?;
    ensure!(total(&depth, 1) == 2 * mib, "depth: {depth:?}");
    Ok(())
}

#[test]
fn a_volume_that_grows_is_larger_for_all_its_clients() -> Result<()> {
    let Some(judges) = Judges::with_tools(&[NBDINFO, NBDSH, QEMU])? else { return Ok(()) };
    let node = &judges.node;
    node.brant(&["volume", "create", "web", "--size", "1MiB"])?;
    let uri = attach(node, "web")?;
    let socket = node.json(&["attach"])?[0]["socket"].as_str().context("a socket")?.to_owned();
    let mut monitor = Monitor::start(&socket)?;
    // A connection from before the change, told by a file when that has happened.
    let grown = judges.world.path("grown");
    let old = "import os, time\nh.set_strict_mode(0)\nassert h.get_size() == 1048576\nopen('READY', 'w').close()\n\
               while not os.path.exists('GROWN'): time.sleep(0.01)\n\
               h.pwrite(b'grown' + bytes(507), 1572864)\nassert h.pread(5, 1572864) == b'grown'\n";
    let ready = judges.world.path("ready");
    let old =
        old.replace("READY", ready.to_str().context("a path")?).replace("GROWN", grown.to_str().context("a path")?);
    let mut command = Command::new("/usr/bin/python3");
    let mut client = command.args(["-m", "nbd", "-u", &uri, "-c", &old]).stdin(Stdio::null()).spawn()?;
    wait::until("the old client is connected", || Ok(ready.exists().then_some(())))?;
    node.brant(&["volume", "resize", "web", "--size", "2MiB"])?;
    std::fs::write(&grown, "")?;
    ensure!(client.wait()?.success(), "the old connection reaches what was added");
    ensure!(size(&uri)? == (2 * MIB).to_string(), "a new connection sees the new size");
    // QEMU believes what it was told when it connected, until it has connected again.
    ensure!(monitor.ask(&resize(2 * MIB))?.contains("Cannot grow NBD nodes"), "QEMU has grown by itself");
    node.brant(&["detach", "web", "--force"])?;
    attach(node, "web")?;
    monitor.io("read 0 512")?;
    ensure!(monitor.ask(&resize(2 * MIB))?.contains("return"), "QEMU sees the new size");
    monitor.io("write -P 7 1048576 1048576")?;
    drop(monitor);
    nbdsh(&uri, "assert h.pread(1048576, 1048576) == b'\\x07' * 1048576")?;
    Ok(())
}

fn resize(size_bytes: usize) -> String {
    format!(r#"{{"execute":"block_resize","arguments":{{"node-name":"disk","size":{size_bytes}}}}}"#)
}

/// QEMU without a machine, with a disk of an export, and its monitor.
struct Monitor {
    qemu: Watched,
    input: std::process::ChildStdin,
    asked: usize,
}

impl Monitor {
    fn start(socket: &str) -> Result<Monitor> {
        let disk =
            format!("driver=nbd,node-name=nbd,server.type=unix,server.path={socket},export=web,reconnect-delay=60");
        let mut command = Command::new(setup::find("qemu-system-x86_64").context("QEMU")?);
        command.args(["-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"]);
        command.args(["-blockdev", &disk, "-blockdev", "driver=raw,file=nbd,node-name=disk"]);
        let mut qemu = Watched::start_with_input("QEMU", &mut command)?;
        let input = qemu.process.child.stdin.take().context("standard input is a pipe")?;
        let mut monitor = Monitor { qemu, input, asked: 0 };
        monitor.ask(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(monitor)
    }

    /// Gives a command, and returns the answer's line.
    fn ask(&mut self, command: &str) -> Result<String> {
        use std::io::Write as _;
        self.asked += 1;
        let id = format!(r#""id": {}"#, self.asked);
        writeln!(self.input, "{},{id}}}", command.strip_suffix('}').context("a command")?)?;
        self.qemu.wait_for(&id, LIMIT)
    }

    /// Has QEMU read or write, as `qemu-io` would.
    fn io(&mut self, command: &str) -> Result<()> {
        let line = format!(
            r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"qemu-io disk \"{command}\""}}}}"#
        );
        let answer = self.ask(&line)?;
        let said = self.qemu.tail();
        ensure!(answer.contains("return") && !said.contains("failed"), "{said}");
        Ok(())
    }
}

#[test]
fn a_socket_of_somebody_else_outlives_the_node() -> Result<()> {
    let Some(judges) = Judges::with_tools(&[NBDINFO, SOCKET_ACTIVATE])? else { return Ok(()) };
    judges.node.brant(&["volume", "create", "web", "--size", "3MiB"])?;
    let refused = judges.node.try_brant(&["attach", "web", "--listen", "fd:web"])?.failed_with(3)?;
    ensure!(refused.stderr.contains("was not started with a socket named \"web\""), "{}", refused.stderr);
    let Judges { node, world, .. } = judges;
    let directory = node.directory().to_owned();
    node.service.terminate()?;
    let socket = world.path("web.socket");
    let uri = format!("nbd+unix:///web?socket={}", socket.display());
    for start in ["first", "second"] {
        drop(std::fs::remove_file(&socket));
        let mut command = Command::new("systemd-socket-activate");
        command.arg("--listen").arg(&socket).arg("--fdname=web").arg(e2e::brant());
        command.args(["node", "serve", "--bind", "127.0.0.1:0", "--dir"]).arg(&directory);
        let mut activated = Watched::start("a node by socket activation", &mut command)?;
        wait::until("the socket is there", || Ok(socket.exists().then_some(())))?;
        // Who connects starts the node, and waits for the attachment.
        let client = std::thread::spawn({
            let uri = uri.clone();
            move || size(&uri)
        });
        activated.wait_for("brant node ready", LIMIT)?;
        if start == "first" {
            let attached = brant(&directory, &["attach", "web", "--listen", "fd:web", "--json"])?;
            ensure!(attached.contains(socket.to_str().context("a path")?), "{attached}");
        }
        let told = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(told == (3 * MIB).to_string(), "{start}: {told}");
        ensure!(size(&uri)? == (3 * MIB).to_string(), "another client");
        activated.process.stop(LIMIT)?;
        ensure!(socket.exists(), "the socket is not the node's to remove");
    }
    Ok(())
}

fn brant(node: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(e2e::brant());
    run(command.env("BRANT_NODE", node).args(arguments), LIMIT, Echo::Quiet)?.success("brant")
}

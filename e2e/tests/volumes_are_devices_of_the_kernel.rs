//! Volumes and snapshots as block devices of the kernel, over FUSE and a loop device: what the kernel is told is true, a node
//! that is killed is a pause, and nothing is left behind, of ours or of others.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use e2e::devices::{read, run, size, text};
use testkit::disk::Noise;
use testkit::{Disk, Node, World, wait};

const MIB: usize = 1 << 20;
/// The exit code of what is in use.
const IN_USE: i32 = 4;

/// The loop devices whose files are below a directory, with their files.
fn loops_below(directory: &Path) -> Result<Vec<(String, String)>> {
    let list = run("losetup", &["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"])?;
    let pairs = list.lines().filter_map(|line| line.split_once(' '));
    let ours = pairs.filter(|(_, file)| Path::new(file).starts_with(directory));
    Ok(ours.map(|(device, file)| (device.to_owned(), file.to_owned())).collect())
}

fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(directory)).collect())
}

/// A world whose devices go with it, also where a test fails.
#[derive(Debug)]
struct Machine {
    node: Option<Node>,
    world: World,
}

impl Machine {
    fn new() -> Result<Self> {
        let world = World::new(e2e::brant())?;
        let node = Some(world.start_node("a")?);
        Ok(Self { node, world })
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("the node runs")
    }

    fn kill(&mut self) -> Result<()> {
        self.node.take().context("a node")?.kill()
    }

    fn start(&mut self) -> Result<()> {
        self.node = Some(self.world.start_node("a")?);
        Ok(())
    }

    fn fronts(&self) -> PathBuf {
        self.world.path("a/fuse")
    }

    /// Makes a volume, and a device of it.
    fn volume(&self, name: &str, size: &str) -> Result<String> {
        self.node().brant(&["volume", "create", name, "--size", size])?;
        self.attach(name)
    }

    /// The same, of 16 MiB, with noise at its beginning: the first MiB, durable.
    fn volume_with_noise(&self, name: &str, seed: u64) -> Result<(String, Vec<u8>)> {
        let device = self.volume(name, "16MiB")?;
        let mut noise = vec![0; MIB];
        Noise::new(seed).fill(&mut noise);
        let file = File::options().write(true).open(&device)?;
        file.write_all_at(&noise, 0)?;
        file.sync_all()?;
        Ok((device, noise))
    }

    fn attach(&self, target: &str) -> Result<String> {
        let attached = self.node().json(&["attach", target, "--via", "fuse"])?;
        ensure!(attached["uri"].as_str().is_some_and(|uri| uri.starts_with("nbd+unix:")), "{attached}");
        attached["device"].as_str().map(str::to_owned).context("a device")
    }

    /// The device of the only attachment, if it has one.
    fn device(&self) -> Result<Option<String>> {
        Ok(self.node().json(&["attach"])?[0]["device"].as_str().map(str::to_owned))
    }

    /// The file that serves a target.
    fn disk(&self, target: &str) -> Result<PathBuf> {
        mounts_below(&self.fronts().join(target))?.pop().context("a mount")
    }

    /// The process that serves a target.
    fn front(&self, target: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.fronts().join(target).join("lock"))?.trim().to_owned())
    }

    fn kill_front(&self, target: &str) -> Result<()> {
        let front = self.front(target)?;
        run("kill", &["-9", &front])?;
        let gone = || Ok((!Path::new(&format!("/proc/{front}/exe")).exists()).then_some(()));
        wait::until("the front is gone", gone)
    }

    fn nothing_is_left(&self) -> Result<()> {
        let fronts = self.fronts();
        ensure!(loops_below(&fronts)?.is_empty(), "{:?}", loops_below(&fronts)?);
        ensure!(mounts_below(&fronts)?.is_empty(), "{:?}", mounts_below(&fronts)?);
        let left: Vec<_> = std::fs::read_dir(&fronts)?.collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // After a success nothing is there; after a failure what can be removed is.
        for (device, _) in loops_below(&self.fronts()).unwrap_or_default() {
            let _ = run("umount", &["-l", &device]);
            let _ = run("losetup", &["-d", &device]);
        }
        for mount in mounts_below(&self.fronts()).unwrap_or_default() {
            let _ = run("umount", &["-l", &mount.to_string_lossy()]);
        }
    }
}

#[test]
fn a_file_system_on_the_device_is_what_the_node_has() -> Result<()> {
    if !e2e::can_have_devices_or_skip() {
        return Ok(());
    }
    let machine = Machine::new()?;
    let device = machine.volume("vm", "64MiB")?;
    run("mkfs.ext4", &["-q", &device])?;
    let point = machine.world.path("mounted");
    std::fs::create_dir(&point)?;
    let place = point.to_str().context("a path")?;
    run("mount", &[&device, place])?;
    let mut noise = vec![0; 8 * MIB];
    Noise::new(1).fill(&mut noise);
    std::fs::write(point.join("file"), &noise)?;
    File::open(point.join("file"))?.sync_all()?;

    let refused = machine.node().try_brant(&["detach", "vm"])?.failed_with(IN_USE)?;
    ensure!(refused.stderr.contains(place), "{}", refused.stderr);
    ensure!(machine.device()?.as_deref() == Some(&*device), "it stays");
    machine.node().try_brant(&["attach", "vm", "--via", "fuse"])?.failed_with(IN_USE)?;

    // What is grown is seen at once, also while it is mounted.
    machine.node().brant(&["volume", "resize", "vm", "--size", "96MiB"])?;
    ensure!(size(&device)? == 96 * MIB as u64, "{}", size(&device)?);
    run("umount", &[place])?;

    machine.node().brant(&["bucket", "create", "vms"])?;
    machine.node().brant(&["snapshot", "create", "vm", "vms/vm", "--wait"])?;
    let target = machine.world.path("out.raw");
    machine.node().brant(&["materialize", "vms/vm", target.to_str().context("a path")?])?;
    let written = Disk::read_from(&target)?;
    ensure!(written.first_difference(&Disk(read(&device, 0, 96 * MIB)?)).is_none(), "the device has other data");
    run("mount", &["-o", "ro", &device, place])?;
    ensure!(std::fs::read(point.join("file"))? == noise, "the file has other data");
    run("umount", &[place])?;

    // A snapshot is a device too, which cannot be written.
    let snapshot = machine.attach("vms/vm")?;
    ensure!(read(&snapshot, 0, 96 * MIB)? == written.0, "the snapshot's device has other data");
    let write = |file: File| file.write_all_at(&[1; 512], 0).and_then(|()| file.sync_all());
    ensure!(File::options().write(true).open(&snapshot).and_then(write).is_err(), "it was written");
    machine.node().brant(&["detach", "vms/vm"])?;
    machine.node().brant(&["detach", "vm"])?;
    machine.nothing_is_left()
}

#[test]
fn what_is_discarded_or_zeroed_reads_zero_and_nothing_else_does() -> Result<()> {
    if !e2e::can_have_devices_or_skip() {
        return Ok(());
    }
    let machine = Machine::new()?;
    let device = machine.volume("vm", "16MiB")?;
    let mut expected = vec![0; 16 * MIB];
    Noise::new(2).fill(&mut expected);
    let file = File::options().write(true).open(&device)?;
    file.write_all_at(&expected, 0)?;
    file.sync_all()?;
    drop(file);
    // Its base has data below, which must not come back.
    machine.node().brant(&["bucket", "create", "vms"])?;
    machine.node().brant(&["snapshot", "create", "vm", "vms/vm", "--wait"])?;
    let ranges: [(&[&str], usize, usize); 3] =
        [(&[], 4096, MIB), (&["--zeroout"], 4 * MIB + 512, 2 * MIB + 1024), (&[], 9 * MIB, 5 * MIB)];
    for (how, offset, length) in ranges {
        let (offset_text, length_text) = (offset.to_string(), length.to_string());
        run("blkdiscard", &[how, &["--offset", &offset_text, "--length", &length_text, &device]].concat())?;
        expected[offset..offset + length].fill(0);
        ensure!(read(&device, 0, expected.len())? == expected, "{how:?} at {offset}");
    }
    machine.node().brant(&["detach", "vm"])?;
    machine.nothing_is_left()
}

#[test]
fn fio_sees_killed_and_replaced_nodes_as_pauses() -> Result<()> {
    if !e2e::can_have_devices_or_skip() {
        return Ok(());
    }
    let mut machine = Machine::new()?;
    let device = machine.volume("vm", "64MiB")?;
    let front = machine.front("vm")?;
    let mut fio = Command::new("fio");
    fio.args(["--name=load", "--ioengine=libaio", "--direct=1", "--rw=randwrite", "--bs=4k", "--iodepth=32"]);
    fio.args(["--size=64m", "--rate_iops=4000,4000", "--fsync=64", "--verify=crc32c", "--verify_backlog=512"]);
    fio.arg(format!("--filename={device}")).current_dir(machine.world.path("a"));
    let mut fio = fio.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut killed = 0;
    // It ends by itself: it has a set amount to write, and takes some seconds for it.
    while fio.try_wait()?.is_none() && killed < 3 {
        machine.kill()?;
        machine.start()?;
        killed += 1;
        machine.node.as_mut().context("a node")?.replace(&e2e::brant())?;
    }
    let output = fio.wait_with_output()?;
    ensure!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    ensure!(killed > 0, "fio was done before anything was killed");
    ensure!(machine.device()?.as_deref() == Some(&*device), "the device is another one");
    ensure!(machine.front("vm")? == front, "the front is another one");
    machine.node().brant(&["detach", "vm"])?;
    machine.nothing_is_left()
}

#[test]
fn what_a_crash_has_left_goes_and_what_belongs_to_others_stays() -> Result<()> {
    if !e2e::can_have_devices_or_skip() {
        return Ok(());
    }
    let mut machine = Machine::new()?;
    let (device, noise) = machine.volume_with_noise("vm", 3)?;

    // The front dies: who reads is told, and detaching removes what it has left.
    machine.kill_front("vm")?;
    ensure!(read(&device, 0, MIB).is_err(), "nobody serves it");
    machine.node().brant(&["detach", "vm"])?;
    machine.nothing_is_left()?;

    // Front and node die: the device is there again.
    let device = machine.attach("vm")?;
    machine.kill()?;
    machine.kill_front("vm")?;
    // Somebody else's loop device, and a front of ours that nobody knows.
    let other = machine.world.path("other.raw");
    File::create(&other)?.set_len(MIB as u64)?;
    let others = run("losetup", &["--find", "--show", other.to_str().context("a path")?])?;
    machine.start()?;
    ensure!(machine.device()?.as_deref() == Some(&*device), "the device is another one");
    ensure!(read(&device, 0, MIB)? == noise, "the data are others");
    let stray = machine.fronts().join("stray");
    std::fs::create_dir(&stray)?;
    let disk = stray.join(machine.disk("vm")?.file_name().context("a name")?);
    File::create(&disk)?;
    let socket = machine.world.path("a/nbd/vm.sock");
    let mut front = Command::new(e2e::brant());
    front.arg("fuse-front").arg("--socket").arg(&socket).args(["--export", "vm"]);
    front.arg("--file").arg(&disk).arg("--lock").arg(stray.join("lock"));
    let mut front = front.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait::until("the stray front serves", || Ok((!mounts_below(&stray)?.is_empty()).then_some(())))?;
    run("losetup", &["--find", disk.to_str().context("a path")?])?;
    machine.kill()?;
    machine.start()?;
    front.wait()?;
    ensure!(!stray.exists() && loops_below(&stray)?.is_empty(), "the stray front is gone");
    ensure!(machine.device()?.as_deref() == Some(&*device), "the device is another one");
    ensure!(loops_below(&other)?.len() == 1, "what is not ours was let be");
    run("losetup", &["-d", &others])?;

    // By force also where it is open: who has it gets errors.
    let open = File::open(&device)?;
    let refused = machine.node().try_brant(&["detach", "vm"])?.failed_with(IN_USE)?;
    ensure!(refused.stderr.contains(&format!("process {}", std::process::id())), "{}", refused.stderr);
    machine.node().brant(&["detach", "vm", "--force"])?;
    ensure!(open.read_exact_at(&mut [0; 4096], 8 * MIB as u64).is_err(), "nobody serves it");
    drop(open);
    wait::until("the device is free", || Ok(loops_below(&machine.fronts())?.is_empty().then_some(())))?;
    machine.nothing_is_left()
}

#[test]
fn a_node_in_a_container_leaves_the_devices_of_others_alone() -> Result<()> {
    if !e2e::can_have_devices_or_skip() {
        return Ok(());
    }
    let mut machine = Machine::new()?;
    let (device, noise) = machine.volume_with_noise("vm", 4)?;

    // Another node, whose directory has the same path in a mount namespace of its own.
    let (path, other) = (machine.world.path("a"), machine.world.path("other"));
    std::fs::create_dir(&other)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$0\" \"$1\" && shift && exec \"$@\""]);
    command.arg(&other).arg(&path).arg(machine.world.program());
    let there = machine.world.start_node_by(command, "b", &path, ([127, 0, 0, 1], 0).into())?;
    let (process, program) = (there.service.id().to_string(), machine.world.program().to_owned());
    let inside = |arguments: &[&str]| {
        let program = program.to_str().context("a path")?;
        run("nsenter", &[&["--mount", "--target", &process, "env", "-C", "/", program], arguments].concat())
    };
    let node = path.to_str().context("a path")?;
    inside(&["volume", "create", "vm", "--size", "16MiB", "--node", node])?;
    let attached = inside(&["attach", "vm", "--via", "fuse", "--node", node])?;
    let others = attached.trim();
    ensure!(others != device, "both have {device}");
    ensure!(read(others, 0, MIB)? == vec![0; MIB], "the other volume has these data");

    // Neither sweeps, nor frees, what is the other one's.
    machine.kill()?;
    machine.start()?;
    ensure!(machine.device()?.as_deref() == Some(&*device), "the device is another one");
    ensure!(read(others, 0, MIB)? == vec![0; MIB], "the other device went");
    inside(&["detach", "vm", "--node", node])?;
    there.stop()?;
    ensure!(read(&device, 0, MIB)? == noise, "the device went");
    machine.node().brant(&["detach", "vm"])?;
    machine.nothing_is_left()
}

#[test]
fn a_device_of_the_kernel_listens_nowhere_else() -> Result<()> {
    if !e2e::can_have_devices_or_skip() {
        return Ok(());
    }
    let machine = Machine::new()?;
    machine.node().brant(&["volume", "create", "vm", "--size", "16MiB"])?;
    let refused = machine.node().try_brant(&["attach", "vm", "--via", "fuse", "--listen", "127.0.0.1:0"])?;
    ensure!(refused.failed_with(2)?.stderr.contains("--listen"), "it says what to leave out");
    ensure!(machine.node().json(&["attach"])?.as_array().is_some_and(Vec::is_empty), "nothing is attached");
    Ok(())
}

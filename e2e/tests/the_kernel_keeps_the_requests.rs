//! Volumes as devices of the kernel's own NBD driver and of its ublk driver, on a machine whose kernel has both: what the kernel
//! is told is true, a node that is killed is a pause, and nothing is left behind.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::devices::{read, run, size};
use e2e::{Host, Load};
use export::ublk_device::{UblkServer, UblkSource};
use memory_disk::MemoryDisk;
use testkit::disk::Noise;
use testkit::{Node, World, wait};
use xtask::setup;

#[expect(dead_code, clippy::unwrap_used, reason = "a disk of other tests, which want more of it")]
#[path = "../../crates/export/tests/nbd/memory_disk.rs"]
mod memory_disk;

const MIB: usize = 1 << 20;
/// The exit code of what is in use.
const IN_USE: i32 = 4;

#[test]
fn devices_of_the_kernels_drivers_keep_their_word() -> Result<()> {
    in_a_machine("inside_a_machine").map(|console| println!("{console}"))
}

#[test]
fn a_ublk_device_changes_hands() -> Result<()> {
    in_a_machine("inside_a_machine_that_changes_hands").map(|console| println!("{console}"))
}

/// Runs one of the tests below in a machine; returns what its console showed.
fn in_a_machine(test: &str) -> Result<String> {
    let Some(kernel) = e2e::host_or_skip() else { return Ok(String::new()) };
    if setup::find("ldd").is_none() {
        e2e::skip("missing: ldd");
        return Ok(String::new());
    }
    Host::of_this_program(&kernel, test)?.pass()
}

/// Runs in the machine; elsewhere there is nothing to do.
#[test]
fn inside_a_machine() -> Result<()> {
    if !e2e::is_inside() {
        return Ok(());
    }
    a_kernel_without_the_drivers_says_what_to_do()?;
    println!("a kernel without the drivers says what to do");
    insert_modules()?;
    let mut forced = Vec::new();
    for way in [Way::NbdKernel, Way::Ublk] {
        let mut inside = Inside { world: World::new(e2e::brant())?, node: None, way, forced: None };
        inside.start()?;
        for (promise, is_kept) in PROMISES {
            is_kept(&mut inside).with_context(|| format!("via {}: {promise}", way.name()))?;
            println!("via {}: {promise}", way.name());
        }
        forced.extend(inside.forced);
    }
    let said = the_kernel_is_content()?;
    println!("{said}");
    // By force only, and where it was said so.
    let errors: Vec<_> = said.lines().filter(|line| line.contains("I/O error")).collect();
    let names: Vec<_> = forced.iter().map(|device| device.trim_start_matches("/dev/")).collect();
    ensure!(errors.iter().all(|line| names.iter().any(|name| line.contains(name))), "{errors:?}");
    Ok(())
}

/// What the kernel has said, none of which may be of something broken.
fn the_kernel_is_content() -> Result<String> {
    let said = run("dmesg", &[])?;
    let broken = ["BUG:", "WARNING: CPU", "Oops", "blocked for more than"].into_iter().find(|word| said.contains(word));
    ensure!(broken.is_none(), "{said}\nthe kernel says {broken:?}");
    Ok(said)
}

/// Tries whether a promise is kept.
type IsKept = fn(&mut Inside) -> Result<()>;

/// What a device is promised to do, whichever way it is one.
const PROMISES: [(&str, IsKept); 5] = [
    ("a file system is what the node has", |inside| inside.a_file_system_is_what_the_node_has()),
    ("what is discarded or zeroed reads zero", |inside| inside.what_is_discarded_or_zeroed_reads_zero()),
    ("killed and replaced nodes are pauses", Inside::killed_and_replaced_nodes_are_pauses),
    ("who has it open keeps it unless by force", Inside::who_has_it_open_keeps_it_unless_by_force),
    ("what a crash has left goes", Inside::what_a_crash_has_left_goes),
];

fn a_kernel_without_the_drivers_says_what_to_do() -> Result<()> {
    let world = World::new(e2e::brant())?;
    let node = world.start_node("a")?;
    node.brant(&["volume", "create", "early", "--size", "16MiB"])?;
    for (via, hint) in [("nbd-kernel", "modprobe nbd"), ("ublk", "modprobe ublk_drv")] {
        let refused = node.try_brant(&["attach", "early", "--via", via])?.failed_with(2)?;
        ensure!(refused.stderr.contains(hint), "{}", refused.stderr);
    }
    ensure!(node.json(&["attach"])?.as_array().is_some_and(Vec::is_empty), "nothing is attached");
    Ok(())
}

/// Servers of one process give a device on while it is used, again and again: a request that is on its way to one that leaves
/// comes back. It is that only for microseconds, so that whole nodes would seldom show it. Runs in the machine.
#[test]
fn inside_a_machine_that_changes_hands() -> Result<()> {
    const CHANGES: usize = 60;
    const PATIENCE: Duration = Duration::from_secs(20);
    if !e2e::is_inside() {
        return Ok(());
    }
    insert_modules()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let device = Arc::new(MemoryDisk::new(8 * MIB));
    let source = UblkSource { device, runtime: runtime.handle().clone(), read_timeout: None, identity: 7 };
    let mut server = UblkServer::make(&source, None)?;
    let block = server.block();
    let load = Load::start_on_device(block.path().to_str().context("a path")?, 8);
    for change in 0..CHANGES {
        load.goes_on().with_context(|| format!("after {change} changes"))?;
        ensure!(server.suspend(PATIENCE), "it goes on serving");
        server = UblkServer::take_over(&source, block.number(), None, PATIENCE)?;
    }
    load.goes_on()?;
    load.finish()?;
    server.end(false)?;
    the_kernel_is_content().map(drop)
}

/// In which way a volume is a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    NbdKernel,
    Ublk,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::NbdKernel => "nbd-kernel",
            Way::Ublk => "ublk",
        }
    }

    /// What is asked for. Where the best way is, that is the one whose devices grow while they are used: this kernel's ublk
    /// devices do not.
    fn via(self) -> &'static str {
        match self {
            Way::NbdKernel => "kernel",
            Way::Ublk => "ublk",
        }
    }

    /// Whether there is a device that is a volume's, or was one's and is open still.
    fn is_there(self, device: &str) -> bool {
        match self {
            Way::NbdKernel => shown(device, "backend").is_some() || shown(device, "pid").is_some(),
            Way::Ublk => shown(device, "size").is_some(),
        }
    }
}

fn insert_modules() -> Result<()> {
    let mut files = std::fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    files.iter().try_for_each(|module| run("insmod", &[module.to_str().context("a path")?]).map(drop))
}

/// What the kernel shows of a device.
fn shown(device: &str, attribute: &str) -> Option<String> {
    let name = Path::new(device).file_name()?.to_str()?;
    Some(std::fs::read_to_string(format!("/sys/block/{name}/{attribute}")).ok()?.trim().to_owned())
}

fn number(device: &str, attribute: &str) -> Result<u64> {
    Ok(shown(device, attribute).with_context(|| attribute.to_owned())?.parse()?)
}

struct Inside {
    world: World,
    node: Option<Node>,
    way: Way,
    /// The device that was ended by force.
    forced: Option<String>,
}

impl Inside {
    fn node(&self) -> &Node {
        self.node.as_ref().expect("the node runs")
    }

    fn start(&mut self) -> Result<()> {
        self.node = Some(self.world.start_node("a")?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.node.take().context("a node")?.kill()
    }

    fn volume(&self, name: &str, size: &str) -> Result<String> {
        self.node().brant(&["volume", "create", name, "--size", size])?;
        self.attach(name)
    }

    fn attach(&self, target: &str) -> Result<String> {
        let attached = self.node().json(&["attach", target, "--via", self.way.via()])?;
        ensure!(attached["via"] == self.way.name(), "it is attached in another way: {attached}");
        ensure!(attached["uri"].as_str().is_some_and(|uri| uri.starts_with("nbd+unix:")), "{attached}");
        attached["device"].as_str().map(str::to_owned).context("a device")
    }

    /// The device of the only attachment, if it has one.
    fn device(&self) -> Result<Option<String>> {
        Ok(self.node().json(&["attach"])?[0]["device"].as_str().map(str::to_owned))
    }

    fn detach(&self, target: &str, device: &str) -> Result<()> {
        self.node().brant(&["detach", target])?;
        ensure!(!self.way.is_there(device), "{device} is there still");
        ensure!(shown(device, "size").is_none_or(|size| size == "0"), "{device} has a size");
        Ok(())
    }

    /// Makes a volume larger, whose device sees it at once where it can.
    fn grow(&self, name: &str, mib: usize) -> Result<()> {
        let size = format!("{mib}MiB");
        let resize = ["volume", "resize", name, "--size", &size];
        if self.way == Way::NbdKernel {
            return self.node().brant(&resize).map(drop);
        }
        let refused = self.node().try_brant(&resize)?.failed_with(IN_USE)?;
        ensure!(refused.stderr.contains("Linux 6.16") && refused.stderr.contains("nbd-kernel"), "{}", refused.stderr);
        Ok(())
    }

    /// The size that a device has after its volume was to grow while it was used.
    fn grown(&self, from_mib: usize, to_mib: usize) -> u64 {
        let mib = if self.way == Way::NbdKernel { to_mib } else { from_mib };
        (mib * MIB) as u64
    }

    fn a_file_system_is_what_the_node_has(&self) -> Result<()> {
        let mut device = self.volume("vm", "24MiB")?;
        ensure!(shown(&device, "queue/write_cache").as_deref() == Some("write back"), "flushes are sent");
        ensure!(number(&device, "queue/fua")? == 1, "FUA is sent");
        ensure!(number(&device, "queue/discard_max_bytes")? > 0, "discards are sent");
        ensure!(number(&device, "queue/write_zeroes_max_bytes")? > 0, "zeroes are sent");
        ensure!(number(&device, "queue/logical_block_size")? == 512, "sectors are those of disks");
        run("mkfs.ext4", &["-q", &device])?;
        let point = self.world.path("mounted");
        std::fs::create_dir(&point)?;
        let place = point.to_str().context("a path")?;
        run("mount", &["-t", "ext4", &device, place])?;
        let mut noise = vec![0; 4 * MIB];
        Noise::new(1).fill(&mut noise);
        std::fs::write(point.join("file"), &noise)?;
        File::open(point.join("file"))?.sync_all()?;
        let refused = self.node().try_brant(&["detach", "vm"])?.failed_with(IN_USE)?;
        ensure!(refused.stderr.contains(place), "{}", refused.stderr);
        self.node().try_brant(&["attach", "vm", "--via", self.way.via()])?.failed_with(IN_USE)?;
        // What is grown is seen at once, also while it is mounted; or not before it is attached anew.
        self.grow("vm", 32)?;
        ensure!(number(&device, "size")? * 512 == self.grown(24, 32), "{:?}", shown(&device, "size"));
        if self.way == Way::Ublk {
            run("umount", &[place])?;
            self.detach("vm", &device)?;
            self.node().brant(&["volume", "resize", "vm", "--size", "32MiB"])?;
            device = self.attach("vm")?;
            run("mount", &["-t", "ext4", &device, place])?;
        }
        ensure!(number(&device, "size")? * 512 == 32 * MIB as u64, "{:?}", shown(&device, "size"));
        run("resize2fs", &[&device])?;
        run("umount", &[place])?;

        self.node().brant(&["bucket", "create", "vms"])?;
        self.node().brant(&["snapshot", "create", "vm", "vms/vm", "--wait"])?;
        let target = self.world.path("out.raw");
        self.node().brant(&["materialize", "vms/vm", target.to_str().context("a path")?])?;
        ensure!(read(&device, 0, 32 * MIB)? == std::fs::read(&target)?, "the device has other data");
        run("mount", &["-t", "ext4", "-o", "ro", &device, place])?;
        ensure!(std::fs::read(point.join("file"))? == noise, "the file has other data");
        run("umount", &[place])?;

        // A snapshot is a device too, which cannot be written.
        let snapshot = self.attach("vms/vm")?;
        ensure!(read(&snapshot, 0, 32 * MIB)? == std::fs::read(&target)?, "the snapshot's device has other data");
        ensure!(shown(&snapshot, "ro").as_deref() == Some("1"), "it can be written");
        std::fs::remove_file(&target)?;
        self.detach("vms/vm", &snapshot)?;
        self.detach("vm", &device)?;
        Ok(())
    }

    fn what_is_discarded_or_zeroed_reads_zero(&self) -> Result<()> {
        let device = self.volume("zeroes", "8MiB")?;
        let mut expected = vec![0; 8 * MIB];
        Noise::new(2).fill(&mut expected);
        let file = File::options().write(true).open(&device)?;
        file.write_all_at(&expected, 0)?;
        file.sync_all()?;
        drop(file);
        // Its base has data below, which must not come back.
        self.node().brant(&["snapshot", "create", "zeroes", "vms/zeroes", "--wait"])?;
        let ranges: [(&[&str], usize, usize); 3] =
            [(&[], 4096, MIB), (&["--zeroout"], 2 * MIB + 512, MIB + 1024), (&[], 4 * MIB, 3 * MIB)];
        for (how, offset, length) in ranges {
            let (offset_text, length_text) = (offset.to_string(), length.to_string());
            run("blkdiscard", &[how, &["--offset", &offset_text, "--length", &length_text, &device]].concat())?;
            expected[offset..offset + length].fill(0);
            ensure!(read(&device, 0, expected.len())? == expected, "{how:?} at {offset}");
        }
        self.detach("zeroes", &device)?;
        // Longer than one request can be.
        let large = self.volume("large", "10GiB")?;
        for how in [&[][..], &["--zeroout"]] {
            File::options().write(true).open(&large)?.write_all_at(&[7; 4096], 9 << 30)?;
            run("blkdiscard", &[how, &[&*large]].concat())?;
            ensure!(read(&large, 9 << 30, 4096)? == [0; 4096], "{how:?} of all");
        }
        self.detach("large", &large)?;
        Ok(())
    }

    fn killed_and_replaced_nodes_are_pauses(&mut self) -> Result<()> {
        let device = self.volume("load", "16MiB")?;
        let load = Load::start_on_device(&device, 4);
        load.goes_on()?;
        for _ in 0..2 {
            self.kill()?;
            self.start()?;
            load.goes_on()?;
            self.node.as_mut().context("a node")?.replace(&e2e::brant())?;
            ensure!(self.node().json(&["attach"])?[0]["connections"] == 1, "the kernel is connected");
            load.goes_on()?;
        }
        // One that was stopped in order is a pause, too, and what was grown meanwhile is seen.
        self.node.take().context("a node")?.service.terminate()?;
        self.start()?;
        load.goes_on()?;
        self.grow("load", 24)?;
        load.goes_on()?;
        load.finish()?;
        ensure!(size(&device)? == self.grown(16, 24), "{}", size(&device)?);
        ensure!(self.device()?.as_deref() == Some(&*device), "the device is another one");
        self.detach("load", &device)?;
        Ok(())
    }

    fn who_has_it_open_keeps_it_unless_by_force(&mut self) -> Result<()> {
        let first = self.volume("kept", "16MiB")?;
        let device = self.volume("forced", "16MiB")?;
        let open = File::open(&device)?;
        let refused = self.node().try_brant(&["detach", "forced"])?.failed_with(IN_USE)?;
        ensure!(refused.stderr.contains(&format!("process {}", std::process::id())), "{}", refused.stderr);
        self.node().brant(&["detach", "forced", "--force"])?;
        ensure!(open.read_exact_at(&mut [0; 4096], 8 * MIB as u64).is_err(), "nobody serves it");
        // Another one of the same volume is not mistaken for the one that is open still.
        let another = self.attach("forced")?;
        ensure!(another != device, "it is in use");
        let file = File::options().read(true).write(true).open(&another)?;
        file.write_all_at(&[5; 4096], 0)?;
        file.sync_all()?;
        drop((open, file));
        wait::until("the device is free", || Ok((!self.way.is_there(&device)).then_some(())))?;
        self.detach("forced", &another)?;
        self.detach("kept", &first)?;
        self.forced = Some(device);
        Ok(())
    }

    fn what_a_crash_has_left_goes(&mut self) -> Result<()> {
        // A node that knows nothing of a device of its own: its directory is what it was before.
        self.kill()?;
        self.remember_directory()?;
        self.start()?;
        let device = self.attach("kept")?;
        self.kill()?;
        ensure!(self.way.is_there(&device), "the kernel does not keep it");
        self.go_back_to_directory()?;
        self.start()?;
        ensure!(!self.way.is_there(&device), "nobody knows it, and it is there");
        // A node whose device is not there any more: it is made anew, with its number.
        let device = self.attach("kept")?;
        self.kill()?;
        self.remember_directory()?;
        self.start()?;
        self.detach("kept", &device)?;
        self.kill()?;
        self.go_back_to_directory()?;
        self.start()?;
        ensure!(self.device()?.as_deref() == Some(&*device), "the device is another one");
        File::options().write(true).open(&device)?.write_all_at(&[3; 512], 0)?;
        ensure!(read(&device, 0, 512)? == [3; 512], "the data are others");
        self.detach("kept", &device)?;
        Ok(())
    }

    fn remember_directory(&self) -> Result<()> {
        let (now, before) = (self.world.path("a"), self.world.path("before"));
        run("cp", &["-a", now.to_str().context("a path")?, before.to_str().context("a path")?]).map(drop)
    }

    fn go_back_to_directory(&self) -> Result<()> {
        std::fs::remove_dir_all(self.world.path("a"))?;
        Ok(std::fs::rename(self.world.path("before"), self.world.path("a"))?)
    }
}

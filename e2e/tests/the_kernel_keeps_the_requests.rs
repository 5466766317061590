//! Volumes as devices of the kernel's own NBD driver, on a machine whose kernel has it: what the kernel is told is true, a node
//! that is killed is a pause, and nothing is left behind.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use e2e::devices::{read, run, size};
use e2e::{Host, Load};
use testkit::disk::Noise;
use testkit::{Node, World, wait};
use xtask::setup;

const MIB: usize = 1 << 20;
/// The exit code of what is in use.
const IN_USE: i32 = 4;

#[test]
fn devices_of_the_nbd_driver_keep_their_word() -> Result<()> {
    let Some(kernel) = e2e::host_or_skip() else { return Ok(()) };
    if setup::find("ldd").is_none() {
        e2e::skip("missing: ldd");
        return Ok(());
    }
    println!("{}", Host::of_this_program(&kernel, "inside_a_machine")?.pass()?);
    Ok(())
}

/// Runs in the machine; elsewhere there is nothing to do.
#[test]
fn inside_a_machine() -> Result<()> {
    if !e2e::is_inside() {
        return Ok(());
    }
    let mut inside = Inside { world: World::new(e2e::brant())?, node: None };
    inside.start()?;
    inside.a_kernel_without_the_driver_says_what_to_do()?;
    println!("a kernel without the driver says what to do");
    for module in modules()? {
        run("insmod", &[module.to_str().context("a path")?])?;
    }
    inside.a_file_system_is_what_the_node_has()?;
    println!("a file system is what the node has");
    inside.what_is_discarded_or_zeroed_reads_zero()?;
    println!("what is discarded or zeroed reads zero");
    inside.killed_and_replaced_nodes_are_pauses()?;
    println!("killed and replaced nodes are pauses");
    inside.who_has_it_open_keeps_it_unless_by_force()?;
    println!("who has it open keeps it unless by force");
    inside.what_a_crash_has_left_goes()?;
    println!("what a crash has left goes");
    let said = run("dmesg", &[])?;
    println!("{said}");
    // By force only, and where it was said so.
    let errors = said.lines().filter(|line| line.contains("I/O error"));
    ensure!(errors.clone().all(|line| line.contains("nbd1")), "{:?}", errors.collect::<Vec<_>>());
    Ok(())
}

fn modules() -> Result<Vec<PathBuf>> {
    let mut files = std::fs::read_dir("/modules")?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
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
        let attached = self.node().json(&["attach", target, "--via", "kernel"])?;
        ensure!(attached["via"] == "nbd-kernel", "the best way is taken: {attached}");
        ensure!(attached["uri"].as_str().is_some_and(|uri| uri.starts_with("nbd+unix:")), "{attached}");
        attached["device"].as_str().map(str::to_owned).context("a device")
    }

    /// The device of the only attachment, if it has one.
    fn device(&self) -> Result<Option<String>> {
        Ok(self.node().json(&["attach"])?[0]["device"].as_str().map(str::to_owned))
    }

    fn detach(&self, target: &str, device: &str) -> Result<()> {
        self.node().brant(&["detach", target])?;
        ensure!(shown(device, "backend").is_none() && shown(device, "pid").is_none(), "{device} is connected");
        ensure!(number(device, "size")? == 0, "{device} has a size");
        Ok(())
    }

    fn a_kernel_without_the_driver_says_what_to_do(&self) -> Result<()> {
        self.node().brant(&["volume", "create", "early", "--size", "16MiB"])?;
        let refused = self.node().try_brant(&["attach", "early", "--via", "nbd-kernel"])?.failed_with(2)?;
        ensure!(refused.stderr.contains("modprobe nbd"), "{}", refused.stderr);
        ensure!(self.node().json(&["attach"])?.as_array().is_some_and(Vec::is_empty), "nothing is attached");
        Ok(())
    }

    fn a_file_system_is_what_the_node_has(&self) -> Result<()> {
        let device = self.volume("vm", "24MiB")?;
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
        self.node().try_brant(&["attach", "vm", "--via", "kernel"])?.failed_with(IN_USE)?;
        // What is grown is seen at once, also while it is mounted.
        self.node().brant(&["volume", "resize", "vm", "--size", "32MiB"])?;
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
        self.node().brant(&["volume", "resize", "load", "--size", "24MiB"])?;
        load.goes_on()?;
        load.finish()?;
        ensure!(size(&device)? == 24 * MIB as u64, "{}", size(&device)?);
        ensure!(self.device()?.as_deref() == Some(&*device), "the device is another one");
        self.detach("load", &device)?;
        Ok(())
    }

    fn who_has_it_open_keeps_it_unless_by_force(&self) -> Result<()> {
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
        wait::until("the device is free", || Ok(shown(&device, "backend").is_none().then_some(())))?;
        self.detach("forced", &another)?;
        self.detach("kept", &first)?;
        Ok(())
    }

    fn what_a_crash_has_left_goes(&mut self) -> Result<()> {
        // A node that knows nothing of a device of its own: its directory is what it was before.
        self.kill()?;
        self.remember_directory()?;
        self.start()?;
        let device = self.attach("kept")?;
        self.kill()?;
        ensure!(shown(&device, "backend").is_some(), "the kernel keeps it");
        self.go_back_to_directory()?;
        self.start()?;
        ensure!(shown(&device, "backend").is_none(), "nobody knows it, and it is there");
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

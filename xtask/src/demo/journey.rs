//! The journey of a disk: from A to B, running there while it arrives; changed; back to A, and running there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Disk;
use super::place::Place;
use super::report::Report;
use super::site::{Node, Site};
use crate::images::Kernel;
use crate::process::{Echo, run as run_program};
use crate::qemu::{self, Accelerator, Boot, Machine};

/// How long a boot may take while everything else runs beside it.
const BOOT: Duration = Duration::from_mins(4);
/// How long the network and the sealing may take for one thing.
const ARRIVE: Duration = Duration::from_mins(4);

/// The machines of the journey: how they boot, and what they say.
#[derive(Debug)]
struct Guest<'a> {
    /// With one of ours the guest keeps markers and reports them; of a stranger only a login is expected.
    kernel: Option<&'a Kernel>,
    accelerator: Accelerator,
}

/// Takes the disk there and back.
pub(super) fn run(
    site: &mut Site,
    place: &Place,
    disk: &Disk,
    accelerator: Accelerator,
    report: &mut Report,
) -> Result<()> {
    let guest = Guest { kernel: disk.kernel.as_ref(), accelerator };
    let full_bytes = data_bytes(&disk.image)?;
    let there = format!("{}/alice/images", site.authority);
    let back = format!("{}/bob/changed", site.authority);

    import(&site.a, &disk.image, full_bytes, report)?;
    publish(&site.a, "images", &there, report)?;
    subscribe(&site.b, &there, "images/debian", report)?;
    let machine_b = first_boot(&site.b, &guest, full_bytes, report)?;
    changed(&site.b, &back, report)?;
    drop(machine_b);
    return_home(&site.a, &back, &guest, full_bytes, report)?;
    compare(site, place, &disk.image, report)
}

impl Guest<'_> {
    /// Starts a machine that writes a marker, and powers itself off when it can be told to.
    fn start(&self, disk: qemu::Disk, marker: &str, power_off: bool, node: &Node, report: &Report) -> Result<Machine> {
        let power_off = if power_off { " brant.poweroff" } else { "" };
        let boot = Boot {
            kernel: self.kernel.cloned(),
            append: format!("root=/dev/vda rw quiet brant.write={marker}{power_off}"),
            disk: Some(disk),
            memory_mib: 1024,
            accelerator: self.accelerator,
        };
        let append = if self.kernel.is_some() { format!(" -append '{}'", boot.append) } else { String::new() };
        report.typed(node.name(), &format!("qemu-system-x86_64 -drive file=$(brant attach …),format=raw …{append}"));
        Machine::start(&boot)
    }

    /// Waits until the machine is up.
    fn is_up(&self, machine: &mut Machine) -> Result<()> {
        machine.wait_for(if self.kernel.is_some() { "BRANT boot finished" } else { "login:" }, BOOT).map(drop)
    }

    /// Waits until the machine has done what it was told, and compares the markers that it found and made.
    fn is_done(&self, machine: &mut Machine, markers: &[&str]) -> Result<()> {
        if self.kernel.is_none() {
            return Ok(());
        }
        machine.wait_for("BRANT done", BOOT)?;
        let found = machine.reports("marker");
        ensure!(found == markers, "the guest's disk should hold the markers {markers:?}, and holds {found:?}");
        Ok(())
    }
}

fn import(a: &Node, image: &Path, full_bytes: u64, report: &mut Report) -> Result<()> {
    a.typed(report, &["bucket", "create", "images"])?;
    let begun = Instant::now();
    let task = a.typed(report, &["import", &image.to_string_lossy(), "images/debian"])?;
    report.done("A: import into its store", begun.elapsed(), task["moved_bytes"].as_u64(), Some(full_bytes));
    Ok(())
}

fn publish(node: &Node, bucket: &str, reference: &str, report: &mut Report) -> Result<()> {
    let begun = Instant::now();
    node.typed(report, &["publish", bucket, reference, "--public"])?;
    report.done(&format!("{}: publish", node.name()), begun.elapsed(), None, None);
    Ok(())
}

fn subscribe(node: &Node, reference: &str, object: &str, report: &mut Report) -> Result<()> {
    let begun = Instant::now();
    let before = node.received_bytes()?;
    node.typed(report, &["subscribe", reference])?;
    node.until(&format!("{object} is known"), ARRIVE, &["snapshot", "list"], |list| {
        list.as_array().is_some_and(|list| list.iter().any(|one| is_sealed(one, object)))
    })?;
    let moved = node.received_bytes()? - before;
    report.done(
        &format!("{}: subscribe, and {object} is there to clone", node.name()),
        begun.elapsed(),
        Some(moved),
        None,
    );
    Ok(())
}

fn is_sealed(snapshot: &serde_json::Value, object: &str) -> bool {
    let path = (snapshot["bucket"].as_str().unwrap_or_default(), snapshot["object"].as_str().unwrap_or_default());
    object.split_once('/') == Some(path) && snapshot["state"] == "sealed"
}

/// B clones the disk at once and boots it while it arrives; the guest writes, and goes on running.
fn first_boot(b: &Node, guest: &Guest<'_>, full_bytes: u64, report: &mut Report) -> Result<Machine> {
    let before = b.received_bytes()?;
    let disk = clone_and_attach(b, "images/debian", "web1", report)?;
    let begun = Instant::now();
    // First the guest, then everything: what the guest waits for goes first.
    let mut machine = guest.start(disk, "written-at-B", false, b, report)?;
    let hydrate = b.typed(report, &["hydrate", "web1", "--detach"])?;
    guest.is_up(&mut machine)?;
    let moved = b.received_bytes()? - before;
    report.done("B: boot the clone while it arrives", begun.elapsed(), Some(moved), Some(full_bytes));
    guest.is_done(&mut machine, &["written-at-B"])?;

    let id = hydrate["id"].as_u64().context("brant hydrate --detach tells no task")?.to_string();
    let task = b.until("web1 is hydrated", ARRIVE, &["task", "show", &id], |task| task["state"] != "running")?;
    ensure!(task["state"] == "done", "brant hydrate web1 ended as {task}");
    let times = task["started_ms"].as_u64().zip(task["ended_ms"].as_u64()).context("the task tells no times")?;
    let moved = b.received_bytes()? - before;
    let took = Duration::from_millis(times.1.saturating_sub(times.0));
    report.done("B: meanwhile, the rest has arrived", took, Some(moved), Some(full_bytes));
    Ok(machine)
}

/// A snapshot of the clone, its guest running; published under B's own account.
fn changed(b: &Node, reference: &str, report: &mut Report) -> Result<()> {
    b.typed(report, &["bucket", "create", "changed"])?;
    let begun = Instant::now();
    b.typed(report, &["snapshot", "create", "web1", "changed/debian"])?;
    report.done("B: snapshot of the running clone", begun.elapsed(), None, None);
    publish(b, "changed", reference, report)?;
    let begun = Instant::now();
    let sealed = |list: &serde_json::Value| {
        list.as_array().is_some_and(|list| list.iter().any(|one| is_sealed(one, "changed/debian")))
    };
    b.until("changed/debian is sealed", ARRIVE, &["snapshot", "list"], sealed)?;
    report.done("B: sealed in the background", begun.elapsed(), None, None);
    Ok(())
}

/// A takes the changed disk, of which it has almost everything, and boots it.
fn return_home(a: &Node, reference: &str, guest: &Guest<'_>, full_bytes: u64, report: &mut Report) -> Result<()> {
    let before = a.received_bytes()?;
    subscribe(a, reference, "changed/debian", report)?;
    let disk = clone_and_attach(a, "changed/debian", "web2", report)?;
    let begun = Instant::now();
    let mut machine = guest.start(disk, "written-at-A", true, a, report)?;
    guest.is_up(&mut machine)?;
    let moved = a.received_bytes()? - before;
    report.done("A: boot the disk that came back", begun.elapsed(), Some(moved), Some(full_bytes));
    let begun = Instant::now();
    guest.is_done(&mut machine, &["written-at-B", "written-at-A"])?;
    if guest.kernel.is_some() {
        machine.wait_off(BOOT)?;
    }
    report.done("A: its guest finds B's write, writes, powers off", begun.elapsed(), None, None);
    Ok(())
}

fn clone_and_attach(node: &Node, object: &str, volume: &str, report: &mut Report) -> Result<qemu::Disk> {
    let begun = Instant::now();
    node.typed(report, &["clone", object, volume])?;
    report.done(&format!("{}: clone", node.name()), begun.elapsed(), None, None);
    let begun = Instant::now();
    let attachment = node.typed(report, &["attach", volume])?;
    report.done(&format!("{}: attach", node.name()), begun.elapsed(), None, None);
    let socket = attachment["socket"].as_str().context("brant attach tells no socket")?;
    let export = attachment["export"].as_str().context("brant attach tells no export")?;
    Ok(qemu::Disk::Nbd { socket: PathBuf::from(socket), export: export.to_owned(), reconnect_delay_seconds: 0 })
}

/// Writes both disks out on both sides and compares every byte.
fn compare(site: &Site, place: &Place, image: &Path, report: &mut Report) -> Result<()> {
    for (object, original) in [("images/debian", Some(image)), ("changed/debian", None)] {
        let mut written: Vec<PathBuf> = original.map(Path::to_path_buf).into_iter().collect();
        for node in [&site.a, &site.b] {
            let target = place.directory().join(format!("{}-at-{}.raw", object.replace('/', "-"), node.name()));
            let begun = Instant::now();
            let before = node.received_bytes()?;
            node.typed(report, &["materialize", object, &target.to_string_lossy()])?;
            let moved = node.received_bytes()? - before;
            report.done(
                &format!("{}: write {object} out", node.name()),
                begun.elapsed(),
                Some(moved),
                Some(data_bytes(&target)?),
            );
            written.push(target);
        }
        let begun = Instant::now();
        for pair in written.windows(2) {
            same(&pair[0], &pair[1], report)?;
        }
        report.done(&format!("{object}: every byte agrees"), begun.elapsed(), None, None);
        let copies = if original.is_some() { &written[1..] } else { &written[..] };
        for copy in copies {
            std::fs::remove_file(copy).with_context(|| format!("remove {}", copy.display()))?;
        }
    }
    Ok(())
}

/// Compares two disks byte for byte; the first may be an image in another format.
fn same(one: &Path, other: &Path, report: &Report) -> Result<()> {
    let raw = one.extension().is_some_and(|extension| extension == "raw" || extension == "img");
    let program: &[&str] = if raw { &["cmp"] } else { &["qemu-img", "compare"] };
    let shown = program.join(" ");
    report.typed("anyone", &format!("{shown} {} {}", one.display(), other.display()));
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).arg(one).arg(other);
    run_program(&mut command, ARRIVE, Echo::Quiet)?.success(&shown).map(drop)
}

/// What a full copy of a disk moves when it leaves holes out: its allocated blocks.
fn data_bytes(image: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(image).with_context(|| format!("open {}", image.display()))?;
    Ok((metadata.blocks() * 512).min(metadata.len()))
}

//! What the small guest says on its console is so: the other tests rest on that.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use xtask::images::Kernel;
use xtask::qemu::{self, Boot, Disk, Machine};

const BOOT: Duration = Duration::from_mins(2);

fn start(kernel: &Kernel, disk: &Path, orders: &str) -> Result<Machine> {
    let boot = Boot {
        kernel: Some(kernel.clone()),
        append: format!("quiet {orders}"),
        disk: Some(Disk::Raw(disk.to_path_buf())),
        memory_mib: 256,
        accelerator: qemu::accelerator(Some(kernel)),
    };
    Machine::start(&boot)
}

fn run(kernel: &Kernel, disk: &Path, orders: &str) -> Result<Machine> {
    let mut machine = start(kernel, disk, &format!("{orders} brant.poweroff"))?;
    machine.wait_for("BRANT done", BOOT)?;
    machine.wait_off(BOOT)?;
    Ok(machine)
}

#[test]
fn what_was_durable_before_a_power_cut_is_there_afterwards() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let disk = directory.path().join("disk.raw");
    std::fs::File::create(&disk)?.set_len(256 << 20)?;

    let first = run(&kernel, &disk, "brant.format brant.write=first brant.fill=4")?;
    assert_eq!(first.reports("wrote"), ["first"]);

    let mut cut = start(&kernel, &disk, "brant.write=second brant.records=100000")?;
    cut.wait_for("BRANT record 20", BOOT)?;
    cut.cut_power()?;
    let promised: u64 = cut.reports("record").last().expect("records were reported").parse()?;
    assert!(promised >= 20);

    let after = run(&kernel, &disk, "brant.check")?;
    assert_eq!(after.reports("marker"), ["first", "second"]);
    assert_eq!(after.reports("verified"), ["1"]);
    let kept: u64 = after.reports("records")[0].parse()?;
    assert!(kept >= promised, "{promised} records were durable, {kept} are there");
    Ok(())
}

#[test]
fn data_that_changed_is_called_bad() -> Result<()> {
    let Some(kernel) = e2e::guest_or_skip() else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let disk = directory.path().join("disk.raw");
    std::fs::File::create(&disk)?.set_len(64 << 20)?;
    run(&kernel, &disk, "brant.format brant.fill=16")?;

    spoil_largest_run(&disk)?;

    let mut machine = start(&kernel, &disk, "brant.poweroff")?;
    machine.wait_for("BRANT BAD content of /mnt/fill-0", BOOT)?;
    machine.wait_off(BOOT)?;
    Ok(())
}

/// Changes a byte in the middle of the longest run of 4 KiB blocks that look like random data: the file, not the file system's own.
fn spoil_largest_run(disk: &Path) -> Result<()> {
    let mut bytes = std::fs::read(disk)?;
    let random = |block: &[u8]| block.iter().map(|byte| byte.count_ones()).sum::<u32>().abs_diff(16384) < 1500;
    let (mut best, mut current) = ((0, 0), (0, 0));
    for (index, block) in bytes.chunks_exact(4096).enumerate() {
        current = if random(block) { (if current.1 == 0 { index } else { current.0 }, current.1 + 1) } else { (0, 0) };
        if current.1 > best.1 {
            best = current;
        }
    }
    assert!(best.1 >= 1024, "16 MiB of random data are not to be seen: {best:?}");
    bytes[(best.0 + best.1 / 2) * 4096] ^= 1;
    std::fs::write(disk, bytes)?;
    Ok(())
}

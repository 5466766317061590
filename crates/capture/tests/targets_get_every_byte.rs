//! A disk that is written out agrees byte for byte with what it was, in every format; nothing else is touched, and
//! what does not come to its end leaves no file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/device.rs"]
mod device;
#[path = "support/disk.rs"]
mod disk;

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use capture::{Format, MaterializeError, Materialized, QemuOptions, Reflink, Target, materialize, open};
use device::Memory;
use disk::{noise, read_by_extents, run, tools};
use tokio::runtime::Runtime;
use types::Progress;
use volume::BlockDevice;

const MIB: usize = 1 << 20;

fn content() -> Vec<u8> {
    let mut content = vec![0; 24 * MIB + 512];
    let places = [(0, 512), (MIB - 4096, 2 * MIB), (9 * MIB, 5000), (20 * MIB + 12345, 70_000), (24 * MIB, 512)];
    for (offset, length) in places {
        content[offset..offset + length].copy_from_slice(&noise(offset as u64 + 7, length));
    }
    content
}

fn write(device: Arc<Memory>, target: Target) -> Result<Materialized, MaterializeError> {
    let runtime = Runtime::new().unwrap();
    let device: Arc<dyn BlockDevice> = device;
    materialize(&device, runtime.handle(), target, &Progress::default())
}

fn path_target(path: &Path, format: Format, compress: bool) -> Target {
    Target::Path { path: path.into(), format, compress, force: false, reflink: Reflink::Auto }
}

fn names(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_raw_file_is_sparse_and_equal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    let device = Memory::new(content(), 0..0);
    let done = write(device.clone(), path_target(&path, Format::Raw, false)).unwrap();
    assert!(std::fs::read(&path).unwrap() == content());
    assert_eq!(done.size_bytes, content().len() as u64);
    assert!(done.written_bytes < 3 * MIB as u64, "{done:?}");
    let metadata = path.metadata().unwrap();
    assert!(metadata.blocks() * 512 < 3 * MIB as u64, "{} blocks", metadata.blocks());
    assert!(device.bytes_read.load(Ordering::SeqCst) < 4 * MIB as u64, "holes are not read");
    assert_eq!(metadata.permissions().mode() & 0o111, 0);
    assert_eq!(metadata.permissions().mode() & 0o600, 0o600);
    assert_eq!(names(directory.path()), [path]);
}

#[test]
fn every_format_is_written_and_read_back() {
    if !tools("every_format_is_written", &["qemu-img", "qemu-nbd"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("disk.raw");
    write(Memory::new(content(), 0..0), path_target(&raw, Format::Raw, false)).unwrap();
    for (format, compress) in [
        (Format::Qcow2, false),
        (Format::Qcow2, true),
        (Format::Vmdk, false),
        (Format::Vmdk, true),
        (Format::Vhdx, false),
        (Format::Vdi, false),
        (Format::Vhd, false),
    ] {
        let path = directory.path().join(format!("disk-{compress}.{format}"));
        write(Memory::new(content(), 0..0), path_target(&path, format, compress)).unwrap();
        let (one, other) = (raw.to_str().unwrap(), path.to_str().unwrap());
        run("qemu-img", &["compare", "-f", "raw", "-F", format.qemu_name(), one, other]);
        let disk = open(File::open(&path).unwrap(), None, &QemuOptions::default()).unwrap();
        let back = read_by_extents(disk.as_ref());
        assert!(back[..content().len()] == content() && format::is_zero(&back[content().len()..]), "{format}");
        let allocated = path.metadata().unwrap().blocks() * 512;
        assert!(allocated < 33 * MIB as u64, "{format} {compress}: {allocated} bytes");
    }
    let refused = write(Memory::new(content(), 0..0), path_target(&directory.path().join("x"), Format::Vdi, true));
    assert!(matches!(refused, Err(MaterializeError::Unsupported { .. })));
}

#[test]
fn an_open_file_is_written_to_in_place_if_it_is_empty() {
    let mut formats = vec![Format::Raw];
    if tools("an_open_qcow2", &["qemu-img", "qemu-nbd"]) {
        formats.push(Format::Qcow2);
    }
    for format in formats {
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = || Target::File { file: file.reopen().unwrap(), format, compress: false, reflink: Reflink::Auto };
        write(Memory::new(content(), 0..0), target()).unwrap();
        let disk = open(file.reopen().unwrap(), Some(format), &QemuOptions::default()).unwrap();
        assert!(read_by_extents(disk.as_ref()) == content(), "{format}");
        assert!(matches!(write(Memory::new(content(), 0..0), target()), Err(MaterializeError::NotEmpty)));
    }
}

#[test]
fn what_exists_is_replaced_only_by_force() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    std::fs::write(&path, "precious").unwrap();
    let refused = write(Memory::new(content(), 0..0), path_target(&path, Format::Raw, false));
    assert!(matches!(refused, Err(MaterializeError::Exists(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let forced =
        Target::Path { path: path.clone(), format: Format::Raw, compress: false, force: true, reflink: Reflink::Auto };
    write(Memory::new(content(), 0..0), forced).unwrap();
    assert!(std::fs::read(&path).unwrap() == content());
    let to_directory = Target::Path {
        path: directory.path().into(),
        format: Format::Raw,
        compress: false,
        force: true,
        reflink: Reflink::Auto,
    };
    assert!(matches!(write(Memory::new(content(), 0..0), to_directory), Err(MaterializeError::NotATarget(_))));
    let nowhere = path_target(&directory.path().join("no/such/disk"), Format::Raw, false);
    let error = write(Memory::new(content(), 0..0), nowhere).unwrap_err().to_string();
    assert!(error.contains("no/such"), "{error}");
    assert_eq!(names(directory.path()), [path]);
}

#[test]
fn what_is_absent_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    let device = Memory::new(content(), MIB as u64..10 * MIB as u64);
    let writer = std::thread::spawn({
        let (device, path) = (device.clone(), path.clone());
        move || write(device, path_target(&path, Format::Raw, false))
    });
    while !device.waited_for() {
        std::thread::yield_now();
    }
    assert!(!path.exists(), "what is not complete has no name");
    device.come();
    writer.join().unwrap().unwrap();
    assert!(std::fs::read(&path).unwrap() == content());
}

#[test]
fn waiting_ends_when_it_is_cancelled_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    let memory = Memory::new(content(), MIB as u64..10 * MIB as u64);
    let progress = Arc::new(Progress::default());
    let writer = std::thread::spawn({
        let (memory, progress, target) = (memory.clone(), progress.clone(), path_target(&path, Format::Raw, false));
        move || {
            let device: Arc<dyn BlockDevice> = memory;
            materialize(&device, Runtime::new().unwrap().handle(), target, &progress)
        }
    });
    while !memory.waited_for() {
        std::thread::yield_now();
    }
    progress.cancel();
    assert!(matches!(writer.join().unwrap(), Err(MaterializeError::Cancelled(_))));
    assert_eq!(names(directory.path()), [] as [PathBuf; 0]);
}

#[test]
fn an_nbd_export_gets_zeroes_over_what_it_held() {
    if !tools("an_nbd_export", &["nbdkit"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (path, socket) = (directory.path().join("disk"), directory.path().join("socket"));
    std::fs::write(&path, vec![0xaa; content().len() + 1024]).unwrap();
    let arguments = ["--foreground", "--exit-with-parent", "-U", socket.to_str().unwrap(), "file"];
    let mut server =
        Command::new("nbdkit").args(arguments).arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    while !socket.exists() {
        assert_eq!(server.try_wait().unwrap(), None, "nbdkit has ended");
        std::thread::yield_now();
    }
    let uri = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
    write(Memory::new(content(), 0..0), Target::Nbd { uri }).unwrap();
    let larger = vec![1; content().len() + 4096];
    let uri = format!("nbd+unix:///?socket={}", socket.display()).parse().unwrap();
    let refused = write(Memory::new(larger, 0..0), Target::Nbd { uri });
    assert!(matches!(refused, Err(MaterializeError::TooSmall { .. })), "{refused:?}");
    server.kill().unwrap();
    server.wait().unwrap();
    let written = std::fs::read(&path).unwrap();
    assert!(written[..content().len()] == content());
    assert_eq!(written[content().len()..], [0xaa; 1024], "beyond the disk's end nothing changes");
}

/// A loop device over a file, where the machine lets us have one.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        output.status.success().then(|| Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn a_block_device_gets_zeroes_over_what_it_held() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backing");
    std::fs::write(&path, vec![0xaa; 25 * MIB]).unwrap();
    let Some(device) = Loop::new(&path) else {
        tools("a_block_device", &["losetup that may make a loop device (root)"]);
        return;
    };
    let target = path_target(Path::new(&device.0), Format::Raw, false);
    write(Memory::new(content(), 0..0), target).unwrap();
    let image = path_target(Path::new(&device.0), Format::Qcow2, false);
    assert!(matches!(write(Memory::new(content(), 0..0), image), Err(MaterializeError::Unsupported { .. })));
    let small = write(Memory::new(vec![1; 26 * MIB], 0..0), path_target(Path::new(&device.0), Format::Raw, false));
    assert!(matches!(small, Err(MaterializeError::TooSmall { .. })), "{small:?}");
    let disk = open(File::open(&device.0).unwrap(), Some(Format::Raw), &QemuOptions::default()).unwrap();
    assert!(read_by_extents(disk.as_ref())[..content().len()] == content());
    drop(disk);
    drop(device);
    let written = std::fs::read(&path).unwrap();
    assert!(written[..content().len()] == content());
    assert!(written[content().len()..].iter().all(|byte| *byte == 0xaa), "beyond the disk's end nothing changes");
}

#[test]
fn a_block_device_in_use_is_refused() {
    if !tools("a_block_device_in_use", &["mkfs.ext4", "mount"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (path, mount) = (directory.path().join("backing"), directory.path().join("mount"));
    File::create(&path).unwrap().set_len(25 * MIB as u64).unwrap();
    run("mkfs.ext4", &["-q", path.to_str().unwrap()]);
    std::fs::create_dir(&mount).unwrap();
    let mounted = Loop::new(&path).filter(|device| {
        Command::new("mount").args([&device.0, mount.to_str().unwrap()]).status().is_ok_and(|status| status.success())
    });
    let Some(device) = mounted else {
        tools("a_block_device_in_use", &["mount of a loop device (root)"]);
        return;
    };
    let refused = write(Memory::new(content(), 0..0), path_target(Path::new(&device.0), Format::Raw, false));
    run("umount", &[mount.to_str().unwrap()]);
    assert!(matches!(refused, Err(MaterializeError::InUse)), "{refused:?}");
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mount = directory.path().join("small");
    std::fs::create_dir(&mount).unwrap();
    let place = mount.to_str().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs", place]).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        tools("a_full_disk", &["mount of a tmpfs (root)"]);
        return;
    }
    let mut formats = vec![Format::Raw];
    if tools("a_full_disk_below_a_qcow2", &["qemu-img", "qemu-nbd"]) {
        formats.push(Format::Qcow2);
    }
    let outcomes = formats.into_iter().map(|format| {
        let path = mount.join("disk");
        (write(Memory::new(content(), 0..0), path_target(&path, format, false)), names(&mount))
    });
    let outcomes: Vec<_> = outcomes.collect();
    run("umount", &[place]);
    for (outcome, left) in outcomes {
        assert!(matches!(outcome, Err(MaterializeError::Full)), "{outcome:?}");
        assert_eq!(left, [] as [PathBuf; 0]);
    }
}

//! Images of every format, made by qemu, are read byte for byte; damaged and treacherous ones are refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/disk.rs"]
mod disk;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use capture::{Format, QemuOptions, import, open};
use disk::{Counting, read_by_extents, read_tree, run, sparse, told, tools};
use store::{ChunkStore, Domain, MemoryStore};
use types::Progress;

const MIB: usize = 1 << 20;

/// The formats, with qemu's name and the options of the variants that are met in the wild.
const VARIANTS: [(Format, &str); 9] = [
    (Format::Qcow2, "compat=0.10"),
    (Format::Qcow2, "compat=1.1,extended_l2=on"),
    (Format::Qcow2, "cluster_size=2M"),
    (Format::Vmdk, "subformat=monolithicSparse"),
    (Format::Vmdk, "subformat=streamOptimized"),
    (Format::Vhdx, "subformat=dynamic"),
    (Format::Vdi, "static=off"),
    (Format::Vhd, "subformat=dynamic,force_size=on"),
    (Format::Vhd, "subformat=fixed,force_size=on"),
];

struct Made {
    directory: tempfile::TempDir,
    raw: PathBuf,
    content: Vec<u8>,
}

fn made() -> Made {
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("disk.raw");
    let data = [(0, 512), (3 * MIB + 4096, 2 * MIB), (20 * MIB, 64 << 10), (24 * MIB - 512, 512)];
    let content = sparse(&raw, 24 * MIB, &data);
    Made { directory, raw, content }
}

impl Made {
    fn image(&self, format: Format, options: &str) -> PathBuf {
        let path = self.directory.path().join(format!("disk.{format}"));
        let (raw, image) = (self.raw.to_str().unwrap(), path.to_str().unwrap());
        run("qemu-img", &["convert", "-f", "raw", "-O", format.qemu_name(), "-o", options, raw, image]);
        path
    }
}

fn opened(path: &Path) -> Result<Box<dyn capture::ForeignDisk>, capture::CaptureError> {
    open(File::open(path).unwrap(), None, &QemuOptions { path: Some(path.into()), ..QemuOptions::default() })
}

fn refusal(path: &Path) -> String {
    told(&opened(path).unwrap_err())
}

#[test]
fn every_format_is_read_byte_for_byte_and_its_holes_are_not_read() {
    if !tools("images_agree_with_qemu", &["qemu-img", "qemu-nbd"]) {
        return;
    }
    let made = made();
    for (format, options) in VARIANTS {
        let path = made.image(format, options);
        assert_eq!(capture::detect(&File::open(&path).unwrap(), Some(&path)).unwrap(), format, "{options}");
        // Not a readable path: what is passed is the open file.
        let disk = open(File::open(&path).unwrap(), None, &QemuOptions::default()).unwrap();
        assert!(read_by_extents(disk.as_ref()) == made.content, "{format} {options}");
        let store: Arc<dyn ChunkStore> = Arc::new(MemoryStore::new());
        let counting = Counting::new(Boxed(disk));
        let imported = import(&counting, &store, Domain::OWN, &Progress::default()).unwrap();
        assert!(read_tree(&store, imported.size_bytes, imported.root) == made.content, "{format} {options}");
        // qemu's VHDX driver does not tell holes from data, so all of it is read.
        let sparse = format != Format::Vhdx;
        assert!(
            !sparse || counting.count() < 12 * MIB as u64,
            "{format} {options}: {} bytes were read",
            counting.count()
        );
    }
}

#[derive(Debug)]
struct Boxed(Box<dyn capture::ForeignDisk>);

impl capture::ForeignDisk for Boxed {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), capture::CaptureError> {
        self.0.read_at(offset, buffer)
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<capture::ForeignExtent>, capture::CaptureError> {
        self.0.extents(offset, length)
    }
}

#[test]
fn a_truncated_image_is_refused_and_not_read_as_zeroes() {
    if !tools("a_truncated_image", &["qemu-img", "qemu-nbd"]) {
        return;
    }
    let made = made();
    for (format, options) in VARIANTS {
        if options.contains("fixed") {
            // Without its footer it is a raw disk whose name is wrong.
            continue;
        }
        let path = made.image(format, options);
        let file = File::options().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        for cut in [length * 3 / 4, length / 2, 100] {
            file.set_len(cut).unwrap();
            let refusal = refusal(&path);
            let blamed = ["damaged or truncated", "not an image", "qemu-img failed"];
            assert!(blamed.iter().any(|words| refusal.contains(words)), "{format} {options} cut to {cut}: {refusal}");
        }
    }
}

#[test]
fn an_image_that_names_other_files_is_refused_unless_allowed() {
    if !tools("an_image_that_names_other_files", &["qemu-img", "qemu-nbd"]) {
        return;
    }
    let made = made();
    let base = made.image(Format::Qcow2, "compat=1.1");
    let at = |name: &str| made.directory.path().join(name);
    let create = |arguments: &[&str], path: &Path| {
        run("qemu-img", &[&["create", "-q"], arguments, &[path.to_str().unwrap(), "24M"]].concat());
    };
    let overlay = at("overlay.qcow2");
    create(&["-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2"], &overlay);
    assert!(refusal(&overlay).contains("its backing file \"disk.qcow2\""), "{}", refusal(&overlay));
    let trusting = QemuOptions { path: Some(overlay.clone()), allow_other_files: true };
    let disk = open(File::open(&overlay).unwrap(), None, &trusting).unwrap();
    assert!(read_by_extents(disk.as_ref()) == made.content);

    let data = at("data.qcow2");
    let data_file = format!("data_file={}", at("data.bin").display());
    create(&["-f", "qcow2", "-o", &data_file], &data);
    assert!(refusal(&data).contains("its data file"), "{}", refusal(&data));
    let flat = at("flat.vmdk");
    create(&["-f", "vmdk", "-o", "subformat=monolithicFlat"], &flat);
    assert!(refusal(&flat).contains("the extents that its descriptor lists"), "{}", refusal(&flat));
    let parent = made.image(Format::Vmdk, "subformat=monolithicSparse");
    let child = at("child.vmdk");
    create(&["-f", "vmdk", "-b", parent.to_str().unwrap(), "-F", "vmdk"], &child);
    assert!(refusal(&child).contains("its backing file"), "{}", refusal(&child));
    drop(base);
}

#[test]
fn what_is_no_image_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert!(refusal(directory.path()).starts_with("a directory is not a disk"));
    assert!(refusal(&at("empty.img", b"")).contains("empty"));
    assert!(refusal(&at("disk.qcow2.gz", b"\x1f\x8b\x08\0\0")).contains("gzip -d"));
    assert!(refusal(&at("disk.qcow2", &[0; 4096])).contains("named like qcow2"));
    assert!(refusal(&at("notes.img", b"Buy milk.\n")).contains("text"));
}

#[test]
fn a_server_does_not_outlive_its_image() {
    if !tools("a_server_does_not_outlive_its_image", &["qemu-img", "qemu-nbd"]) {
        return;
    }
    let made = made();
    let path = made.image(Format::Qcow2, "compat=1.1");
    let disk = opened(&path).unwrap();
    // A writer is kept out for as long as the image is served.
    let name = path.to_str().unwrap();
    let resize = || std::process::Command::new("qemu-img").args(["resize", "-q", name, "48M"]).output().unwrap();
    assert!(!resize().status.success());
    drop(disk);
    assert!(resize().status.success());
}

//! Headers of foreign disk images, looked into before any tool is.

use capture::detect::{Format, classify};
use capture::qemu::header::examine;

/// A file, given by its beginning and end.
pub(crate) fn image(data: &[u8]) -> bool {
    let foot = &data[data.len().saturating_sub(512)..];
    let head = &data[..data.len().min(4096)];
    let length = data.len() as u64;
    for format in [Format::Qcow2, Format::Vmdk, Format::Vhdx, Format::Vdi, Format::Vhd, Format::Raw] {
        let _: Result<_, _> = examine(format, data, foot, length);
    }
    classify(head, foot, length).is_ok_and(|format| examine(format, data, foot, length).is_ok())
}

pub(crate) fn image_seeds() -> Vec<Vec<u8>> {
    let with = |parts: &[(usize, &[u8])]| {
        let mut bytes = vec![0; 4096];
        for (place, part) in parts {
            bytes[*place..place + part.len()].copy_from_slice(part);
        }
        bytes
    };
    vec![
        with(&[(0, b"QFI\xfb\0\0\0\x03")]),
        with(&[(0, b"QFI\xfb\0\0\0\x02\0\0\0\0\0\0\x02\0\0\0\0\x0b"), (512, b"/etc/shadow")]),
        with(&[(0, b"KDMV"), (12, &[1]), (28, &[1]), (512, b"parentFileNameHint=\"x\"\n")]),
        with(&[(0, b"# Disk DescriptorFile\nRW 1 FLAT \"x\" 0")]),
        with(&[(0, b"vhdxfile")]),
        with(&[(64, &0xbeda_107f_u32.to_le_bytes()), (0x158, &[1]), (0x178, &[0, 16]), (0x184, &[1])]),
        with(&[(3584, b"conectix"), (3584 + 63, &[2])]),
        with(&[(510, &[0x55, 0xaa])]),
        with(&[(0, b"vm.ovf"), (257, b"ustar")]),
        b"\x1f\x8b\x08".to_vec(),
    ]
}

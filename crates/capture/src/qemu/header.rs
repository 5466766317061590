//! Looks into an image's own header, before any tool opens it, for what it must not have.
//!
//! qemu opens what an image names as soon as it opens the image: a backing file, a file with the data, the extents of
//! a VMDK descriptor. It also reads clusters beyond a file's end as zeroes, and takes a differencing VHD for a whole
//! one. Field positions are those of qemu's docs/interop/qcow2.txt and block/{vmdk,vdi,vpc}.c.

use std::fmt;
use std::fs::File;

use super::QemuError;
use crate::detect::{Format, read_up_to};
use crate::foreign::CaptureError;
use crate::raw::file_length;

/// Another file that an image refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// What is not in the image is read from there.
    Backing(String),
    /// The data is there.
    Data(String),
    /// The image is only a description of others.
    Extents,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backing(name) => write!(f, "its backing file {name:?}"),
            Self::Data(name) => write!(f, "its data file {name:?}"),
            Self::Extents => f.write_str("the extents that its descriptor lists"),
        }
    }
}

/// How much of an image is looked at, in bytes: headers, and a VMDK's descriptor, which qemu limits to 20 KiB.
const HEAD_BYTES: usize = 64 << 10;

/// Checks an image's header, and returns what it refers to.
///
/// # Errors
/// When it cannot be read, or is of an image that must not be opened.
pub fn check(file: &File, format: Format) -> Result<Option<Reference>, CaptureError> {
    let mut head = vec![0; HEAD_BYTES];
    let length = read_up_to(file, 0, &mut head)?;
    head.truncate(length);
    let file_bytes = file_length(file)?;
    let mut foot = [0; 512];
    let foot_bytes = read_up_to(file, file_bytes.saturating_sub(512), &mut foot)?;
    match examine(format, &head, &foot[..foot_bytes], file_bytes) {
        Ok(reference) => Ok(reference),
        Err(error) => Err(error.into()),
    }
}

/// Checks a header, given the image's first 64 KiB and last 512 bytes (fewer where it is shorter) and its length.
///
/// # Errors
/// For an image that must not be opened.
pub fn examine(format: Format, head: &[u8], foot: &[u8], file_bytes: u64) -> Result<Option<Reference>, QemuError> {
    let damaged = |said: &str| QemuError::Damaged { format, said: said.to_owned() };
    let examined = match format {
        Format::Qcow2 => qcow2(head),
        Format::Vmdk => vmdk(head),
        Format::Vdi => vdi(head, file_bytes),
        Format::Vhd => vhd(if head.starts_with(b"conectix") { head } else { foot }),
        Format::Raw | Format::Vhdx => Some(Ok(None)),
    };
    match examined {
        Some(Ok(reference)) => Ok(reference),
        Some(Err(Fault::Said(said))) => Err(damaged(said)),
        Some(Err(Fault::Encrypted)) => Err(QemuError::Encrypted(format)),
        None => Err(damaged("its header is cut short")),
    }
}

enum Fault {
    Said(&'static str),
    Encrypted,
}

/// `None` where the header is too short.
type Examined = Option<Result<Option<Reference>, Fault>>;

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk().copied()
}

fn qcow2(head: &[u8]) -> Examined {
    const CORRUPT: u64 = 1 << 1;
    const DATA_FILE: u64 = 1 << 2;
    let version = u32::from_be_bytes(bytes(head, 4)?);
    let backing_offset = u64::from_be_bytes(bytes(head, 8)?);
    let backing_length = u32::from_be_bytes(bytes(head, 16)?);
    let incompatible = if version >= 3 { u64::from_be_bytes(bytes(head, 72)?) } else { 0 };
    if !head.starts_with(b"QFI\xfb") {
        return Some(Err(Fault::Said("it has not the signature of one")));
    }
    if u32::from_be_bytes(bytes(head, 32)?) != 0 {
        return Some(Err(Fault::Encrypted));
    }
    if incompatible & CORRUPT != 0 {
        return Some(Err(Fault::Said("it is marked as corrupt")));
    }
    Some(Ok(if backing_offset != 0 {
        let start = usize::try_from(backing_offset).ok();
        let name = start.and_then(|start| head.get(start..start.checked_add(backing_length as usize)?));
        Some(Reference::Backing(name.map_or_else(String::new, |name| String::from_utf8_lossy(name).into_owned())))
    } else if incompatible & DATA_FILE != 0 {
        Some(Reference::Data(String::new()))
    } else {
        None
    }))
}

fn vmdk(head: &[u8]) -> Examined {
    if head.starts_with(b"COWD") {
        return Some(Ok(None));
    }
    if !head.starts_with(b"KDMV") {
        let text = head.starts_with(b"# Disk DescriptorFile");
        return Some(if text {
            Ok(Some(Reference::Extents))
        } else {
            Err(Fault::Said("it has not the signature of one"))
        });
    }
    let capacity = u64::from_le_bytes(bytes(head, 12)?);
    let descriptor_sector = u64::from_le_bytes(bytes(head, 28)?);
    if capacity == 0 {
        // qemu then goes by the descriptor that is embedded, as if it stood alone.
        return Some(Ok(Some(Reference::Extents)));
    }
    if descriptor_sector == 0 {
        return Some(Ok(None));
    }
    let start = usize::try_from(descriptor_sector).ok().and_then(|sector| sector.checked_mul(512));
    let Some(descriptor) = start.and_then(|start| head.get(start..)) else {
        return Some(Err(Fault::Said("its descriptor is not where it should be")));
    };
    let descriptor = descriptor.split(|byte| *byte == 0).next().unwrap_or_default();
    let descriptor = String::from_utf8_lossy(descriptor);
    let parent = descriptor.split_once("parentFileNameHint").map(|(_, rest)| {
        let line = rest.lines().next().unwrap_or_default();
        Reference::Backing(line.trim_matches(|c: char| c.is_whitespace() || matches!(c, '=' | '"')).to_owned())
    });
    Some(Ok(parent))
}

fn vdi(head: &[u8], file_bytes: u64) -> Examined {
    let data_offset = u64::from(u32::from_le_bytes(bytes(head, 0x158)?));
    let block_bytes = u64::from(u32::from_le_bytes(bytes(head, 0x178)?));
    let allocated = u64::from(u32::from_le_bytes(bytes(head, 0x184)?));
    if bytes(head, 64) != Some(0xbeda_107f_u32.to_le_bytes()) {
        return Some(Err(Fault::Said("it has not the signature of one")));
    }
    // 32 bits each: the product and the sum stay within 64.
    if data_offset + allocated * block_bytes > file_bytes {
        return Some(Err(Fault::Said("the file ends before its last block")));
    }
    Some(Ok(None))
}

fn vhd(footer: &[u8]) -> Examined {
    const FIXED: u32 = 2;
    const DYNAMIC: u32 = 3;
    const DIFFERENCING: u32 = 4;
    let kind = u32::from_be_bytes(bytes(footer, 60)?);
    if !footer.starts_with(b"conectix") {
        return Some(Err(Fault::Said("it has not the signature of one")));
    }
    match kind {
        FIXED | DYNAMIC => Some(Ok(None)),
        DIFFERENCING => Some(Ok(Some(Reference::Backing("its parent".into())))),
        _ => Some(Err(Fault::Said("its type is unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2_header() -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        head
    }

    fn examine_all(format: Format, head: &[u8]) -> Result<Option<Reference>, QemuError> {
        examine(format, head, &[], head.len() as u64)
    }

    #[test]
    fn a_qcow2_is_refused_for_what_it_names() {
        let good = qcow2_header();
        assert_eq!(examine_all(Format::Qcow2, &good).unwrap(), None);
        let mut backing = good.clone();
        backing[14..16].copy_from_slice(&512_u16.to_be_bytes());
        backing[19] = 11;
        backing[512..523].copy_from_slice(b"/etc/shadow");
        assert_eq!(examine_all(Format::Qcow2, &backing).unwrap(), Some(Reference::Backing("/etc/shadow".into())));
        backing[8..16].fill(0xff);
        assert_eq!(examine_all(Format::Qcow2, &backing).unwrap(), Some(Reference::Backing(String::new())));
        let mut data = good.clone();
        data[79] = 4;
        assert_eq!(examine_all(Format::Qcow2, &data).unwrap(), Some(Reference::Data(String::new())));
        let mut corrupt = good.clone();
        corrupt[79] = 2;
        assert!(matches!(examine_all(Format::Qcow2, &corrupt), Err(QemuError::Damaged { .. })));
        let mut encrypted = good.clone();
        encrypted[35] = 1;
        assert!(matches!(examine_all(Format::Qcow2, &encrypted), Err(QemuError::Encrypted(_))));
        assert!(matches!(examine_all(Format::Qcow2, &good[..40]), Err(QemuError::Damaged { .. })));
    }

    #[test]
    fn a_vmdk_is_refused_for_what_it_names() {
        let mut head = vec![0; 2048];
        head[..4].copy_from_slice(b"KDMV");
        assert_eq!(examine_all(Format::Vmdk, &head).unwrap(), Some(Reference::Extents), "no capacity");
        head[12] = 1;
        assert_eq!(examine_all(Format::Vmdk, &head).unwrap(), None);
        head[28] = 1;
        let text = b"# Disk DescriptorFile\nparentFileNameHint=\"/etc/shadow\"\nRW 1";
        head[512..512 + text.len()].copy_from_slice(text);
        assert_eq!(examine_all(Format::Vmdk, &head).unwrap(), Some(Reference::Backing("/etc/shadow".into())));
        head[28] = 200;
        assert!(matches!(examine_all(Format::Vmdk, &head), Err(QemuError::Damaged { .. })));
        assert_eq!(examine_all(Format::Vmdk, text).unwrap(), Some(Reference::Extents));
    }

    #[test]
    fn a_truncated_vdi_and_a_differencing_vhd_are_seen() {
        let mut head = vec![0; 1024];
        head[64..68].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        head[0x158..0x15c].copy_from_slice(&1024_u32.to_le_bytes());
        assert_eq!(examine_all(Format::Vdi, &head).unwrap(), None);
        head[0x178..0x17c].fill(0xff);
        head[0x184..0x188].fill(0xff);
        assert!(matches!(examine_all(Format::Vdi, &head), Err(QemuError::Damaged { .. })));
        let mut foot = vec![0; 512];
        foot[..8].copy_from_slice(b"conectix");
        foot[63] = 4;
        let examined = examine(Format::Vhd, &[0; 4096], &foot, 1 << 20).unwrap();
        assert!(matches!(examined, Some(Reference::Backing(_))));
    }
}

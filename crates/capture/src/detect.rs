//! What kind of disk image a file is, by what it holds rather than by what it is called.
//!
//! A raw disk has no signature: whatever is not recognised as something else is taken for one, unless it plainly is
//! not a disk (compressed, an archive, text, a document). Whoever knows better names the format and skips this.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

use crate::foreign::CaptureError;
use crate::raw::file_length;

/// A format of disk images that can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk, byte for byte.
    Raw,
    /// QEMU's, versions 2 and 3.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
    /// Hyper-V's older one, also called VPC.
    Vhd,
    /// VirtualBox's.
    Vdi,
}

impl Format {
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Raw, "raw", "raw"),
        (Self::Qcow2, "qcow2", "qcow2"),
        (Self::Vmdk, "vmdk", "vmdk"),
        (Self::Vhdx, "vhdx", "vhdx"),
        (Self::Vhd, "vhd", "vpc"),
        (Self::Vdi, "vdi", "vdi"),
    ];

    fn names(self) -> (&'static str, &'static str) {
        Self::ALL.iter().find(|row| row.0 == self).map_or(("raw", "raw"), |row| (row.1, row.2))
    }

    /// What qemu calls the format.
    #[must_use]
    pub fn qemu_name(self) -> &'static str {
        self.names().1
    }

    /// The format whose usual extension a file name has.
    #[must_use]
    pub fn of_extension(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "img" | "iso" => Some(Self::Raw),
            "qcow" => Some(Self::Qcow2),
            "vpc" => Some(Self::Vhd),
            other => other.parse().ok(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.names().0)
    }
}

/// A format's name is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a format of disk images: use raw, qcow2, vmdk, vhdx, vhd or vdi")]
pub struct FormatError(String);

impl FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let found = Self::ALL.iter().find(|row| row.1 == text || row.2 == text);
        found.map(|row| row.0).ok_or_else(|| FormatError(text.to_owned()))
    }
}

/// A file is not a disk that can be imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DetectError {
    /// There is nothing in it.
    #[error("not an image: the file is empty")]
    Empty,
    /// It is compressed.
    #[error(
        "not an image: the file is compressed with {program}; decompress it first, for example with `{program} -d`"
    )]
    Compressed {
        /// The program that decompresses it.
        program: &'static str,
    },
    /// It is an archive, which may have an image in it.
    #[error("not an image: the file is {kind}; unpack it first and import the disk that is in it")]
    Archive {
        /// Which kind.
        kind: &'static str,
    },
    /// An image format that is not supported.
    #[error("{kind} images are not supported: convert it first, for example with `qemu-img convert -O qcow2`")]
    Unsupported {
        /// Which format.
        kind: &'static str,
    },
    /// It is something else altogether.
    #[error("not an image: the file looks like {kind} (give the format as raw if it is a disk all the same)")]
    Other {
        /// What it looks like.
        kind: &'static str,
    },
    /// The name promises an image and the content is not one.
    #[error("not an image: the file is named like {format}, but has not its signature (truncated, or overwritten?)")]
    NotAsNamed {
        /// What the name promises.
        format: Format,
    },
}

/// Signatures at the beginning of files that are no raw disks.
const IMAGES: [(&[u8], Format); 6] = [
    (b"QFI\xfb\0\0\0\x02", Format::Qcow2),
    (b"QFI\xfb\0\0\0\x03", Format::Qcow2),
    (b"KDMV", Format::Vmdk),
    (b"COWD", Format::Vmdk),
    (b"vhdxfile", Format::Vhdx),
    (b"conectix", Format::Vhd),
];

const COMPRESSED: [(&[u8], &str); 6] = [
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"LZIP", "lzip"),
];

const ARCHIVES: [(&[u8], &str); 4] = [
    (b"PK\x03\x04", "a zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"!<arch>\n", "an ar archive or Debian package"),
];

const UNSUPPORTED: [(&[u8], &str); 4] = [
    (b"QFI\xfb", "qcow (version 1)"),
    (b"QED\0", "QED"),
    (b"WithoutFreeSpace", "Parallels"),
    (b"WithouFreSpacExt", "Parallels"),
];

const OTHERS: [(&[u8], &str); 5] = [
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"SQLite format 3\0", "a database"),
];

/// How much of the beginning is looked at, in bytes.
const HEAD_BYTES: usize = 4096;

/// Finds out which kind of image an open file is.
///
/// `path` is only looked at for its extension: a file that is named like an image and is none is refused.
///
/// # Errors
/// [`CaptureError::NotADisk`] for directories and the like, [`CaptureError::Detect`] for what is no image.
pub fn detect(file: &File, path: Option<&Path>) -> Result<Format, CaptureError> {
    let length = file_length(file)?;
    let mut head = vec![0; HEAD_BYTES];
    let head_bytes = read_up_to(file, 0, &mut head)?;
    let mut foot = [0; 512];
    let foot_bytes = read_up_to(file, length.saturating_sub(512), &mut foot)?;
    let format = classify(&head[..head_bytes], &foot[..foot_bytes], length)?;
    match path.and_then(Format::of_extension) {
        Some(named) if format == Format::Raw && named != Format::Raw => {
            Err(DetectError::NotAsNamed { format: named }.into())
        }
        _ => Ok(format),
    }
}

/// Tells an image's format from its first 4096 and last 512 bytes (fewer where the file is shorter) and its length.
///
/// # Errors
/// What is no image.
pub fn classify(head: &[u8], foot: &[u8], length: u64) -> Result<Format, DetectError> {
    let of = |table: &[(&[u8], &'static str)]| table.iter().find(|row| head.starts_with(row.0)).map(|row| row.1);
    if length == 0 || head.is_empty() {
        return Err(DetectError::Empty);
    }
    if let Some((_, format)) = IMAGES.iter().find(|row| head.starts_with(row.0)) {
        return Ok(*format);
    }
    if head.get(64..68) == Some(&0xbeda_107f_u32.to_le_bytes()) {
        return Ok(Format::Vdi);
    }
    if head.starts_with(b"# Disk DescriptorFile") {
        return Ok(Format::Vmdk);
    }
    if foot.starts_with(b"conectix") {
        return Ok(Format::Vhd);
    }
    if foot.starts_with(b"koly") {
        return Err(DetectError::Unsupported { kind: "DMG" });
    }
    if let Some(kind) = of(&UNSUPPORTED) {
        return Err(DetectError::Unsupported { kind });
    }
    // A boot sector outweighs the short signatures below: two or three bytes of boot code could look like anything.
    if head.get(510..512) == Some(&[0x55, 0xaa]) {
        return Ok(Format::Raw);
    }
    if let Some(program) = of(&COMPRESSED) {
        return Err(DetectError::Compressed { program });
    }
    if head.get(257..262) == Some(b"ustar") {
        let name = head[..100].split(|byte| *byte == 0).next().unwrap_or_default();
        let kind = if name.to_ascii_lowercase().ends_with(b".ovf") { "an OVA archive (tar)" } else { "a tar archive" };
        return Err(DetectError::Archive { kind });
    }
    if let Some(kind) = of(&ARCHIVES) {
        return Err(DetectError::Archive { kind });
    }
    if let Some(kind) = of(&OTHERS) {
        return Err(DetectError::Other { kind });
    }
    if is_text(head) {
        return Err(DetectError::Other { kind: "text" });
    }
    if length < 512 {
        return Err(DetectError::Other { kind: "something shorter than a sector" });
    }
    Ok(Format::Raw)
}

/// Whether bytes are UTF-8 without control characters other than white space, the last character perhaps cut off.
fn is_text(bytes: &[u8]) -> bool {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b'))
}

/// Reads until the buffer is full or the file ends.
pub(crate) fn read_up_to(file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize, CaptureError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => return Err(CaptureError::Io { operation: "read the file", source }),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(head: &[u8]) -> Result<Format, DetectError> {
        let mut block = vec![0; HEAD_BYTES];
        block[..head.len()].copy_from_slice(head);
        classify(&block, &[0; 512], 1 << 20)
    }

    #[test]
    fn images_are_known_by_their_signatures() {
        assert_eq!(of(b"QFI\xfb\0\0\0\x03"), Ok(Format::Qcow2));
        assert_eq!(of(b"KDMV\x01"), Ok(Format::Vmdk));
        assert_eq!(of(b"vhdxfile"), Ok(Format::Vhdx));
        assert_eq!(of(&[&[b'<'; 64][..], &[0x7f, 0x10, 0xda, 0xbe]].concat()), Ok(Format::Vdi));
        assert_eq!(of(&[]), Ok(Format::Raw), "an empty disk is a disk");
        assert_eq!(of(b"LUKS\xba\xbe"), Ok(Format::Raw), "an encrypted disk is a disk");
        assert_eq!(classify(&[0; 4096], &[b"conectix", &[0; 504][..]].concat(), 1 << 20), Ok(Format::Vhd));
    }

    #[test]
    fn what_is_no_image_is_named() {
        assert_eq!(of(b"\x1f\x8b\x08"), Err(DetectError::Compressed { program: "gzip" }));
        assert_eq!(of(b"PK\x03\x04"), Err(DetectError::Archive { kind: "a zip archive" }));
        assert!(matches!(of(b"QFI\xfb\0\0\0\x01"), Err(DetectError::Unsupported { .. })));
        assert_eq!(classify(&[], &[], 0), Err(DetectError::Empty));
        assert_eq!(classify(b"#!/bin/sh\necho h\xc3\xa4", b"", 18), Err(DetectError::Other { kind: "text" }));
        let mut tar = b"vm.OVF".to_vec();
        tar.resize(257, 0);
        tar.extend(b"ustar  \0");
        assert_eq!(of(&tar), Err(DetectError::Archive { kind: "an OVA archive (tar)" }));
    }

    #[test]
    fn a_boot_sector_is_a_disk_whatever_its_code_looks_like() {
        let mut sector = b"BZh".to_vec();
        sector.resize(510, 7);
        sector.extend([0x55, 0xaa]);
        assert_eq!(of(&sector), Ok(Format::Raw));
    }

    #[test]
    fn formats_are_named_as_people_and_as_qemu_write_them() {
        assert_eq!("vpc".parse(), Ok(Format::Vhd));
        assert_eq!(Format::Vhd.to_string(), "vhd");
        assert_eq!(Format::of_extension(Path::new("a/B.QCOW2")), Some(Format::Qcow2));
        assert_eq!(Format::of_extension(Path::new("disk")), None);
        assert!("floppy".parse::<Format>().is_err());
    }
}

//! The table of mounts of this process (`/proc/self/mountinfo`, proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device's number, as `MAJOR:MINOR`.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// What is mounted, as whoever mounted it calls it.
    pub source: String,
}

/// All mounts, in the order in which they were made. None where the table cannot be read.
#[must_use]
pub fn mounts() -> Vec<Mount> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// The topmost mount at a place.
#[must_use]
pub fn mount_at(point: &Path) -> Option<Mount> {
    mounts().into_iter().rfind(|mount| mount.point == point)
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = PathBuf::from(OsString::from_vec(unescaped(fields.nth(1)?)));
    fields.find(|field| *field == b"-")?;
    let source = String::from_utf8_lossy(&unescaped(fields.nth(1)?)).into_owned();
    Some(Mount { device, point, source })
}

/// Undoes what the kernel does with spaces, tabs, newlines and backslashes: `\040` and the like.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal.filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes() {
        let line = br"36 35 7:3 / /a\040b\134 rw,noatime master:1 - ext4 /dev/root rw,errors=continue";
        let mount = Mount { device: "7:3".into(), point: "/a b\\".into(), source: "/dev/root".into() };
        assert_eq!(parse(line), Some(mount));
        for bad in [&b""[..], b"36 35", b"36 35 7:3 / /mnt rw", b"36 35 7:3 / /mnt rw - ext4"] {
            assert_eq!(parse(bad), None);
        }
        assert_eq!(unescaped(br"\04\9999"), br"\04\9999");
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mount_at(Path::new("/")).is_some());
        assert!(mount_at(Path::new("/no such place")).is_none());
    }
}

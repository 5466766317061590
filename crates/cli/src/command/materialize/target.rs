//! The file or device that a snapshot is written to, from opening it to giving it its name.
//!
//! Invariant: under its own name a file is complete and durable, or what it was before.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use node::api::{ApiError, ErrorCode, ImageFormat};
use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};

use crate::failure::{Failure, Outcome};

/// What a snapshot is written to.
#[derive(Debug)]
pub(super) struct Target {
    file: File,
    path: PathBuf,
    part: Option<Part>,
}

/// The file under the name that it has while it is incomplete; removed unless it is kept.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    kept: bool,
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed is overwritten the next time.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Target {
    /// Opens a device, or makes the file that is to be complete under another name.
    pub(super) fn prepare(path: &Path, force: bool) -> Outcome<Self> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => Self::device(path, force),
            Ok(metadata) if !metadata.is_file() => {
                let what = if metadata.is_dir() { "a directory" } else { "neither a file nor a block device" };
                Err(ApiError::new(ErrorCode::Invalid, format!("{} is {what}", path.display()))
                    .hint("give the name of a file to make, or a block device")
                    .into())
            }
            Ok(_) if !force => Err(exists(path).into()),
            Ok(_) => Self::file(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::file(path),
            Err(error) => Err(Failure::of_file("look at", path, &error)),
        }
    }

    fn device(path: &Path, force: bool) -> Outcome<Self> {
        if !force {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{} is a device", path.display()))
                .hint("say --force to overwrite all that it holds")
                .into());
        }
        // Exclusively: that fails where the device is mounted, or another one's part (open(2)).
        let exclusive = OFlags::EXCL.bits().cast_signed();
        let opened = File::options().read(true).write(true).custom_flags(exclusive).open(path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => {
                let error = ApiError::new(ErrorCode::Conflict, format!("{} is in use", path.display()));
                error.hint("unmount it, or stop whatever uses it").into()
            }
            _ => Failure::of_file("open", path, &error),
        })?;
        Ok(Self { file, path: path.to_owned(), part: None })
    }

    fn file(path: &Path) -> Outcome<Self> {
        let part = part_of(path)?;
        let failed = |error: io::Error| Failure::of_file("make", &part, &error);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let file = options.open(&part).map_err(failed)?;
        // The lock lasts as long as anyone has this file open, the node too.
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let error = ApiError::new(ErrorCode::Conflict, format!("{} is being written already", part.display()));
            return Err(error.hint("wait for that to end: brant task list").into());
        }
        let part = Part { path: part, kept: false };
        file.set_len(0).map_err(|error| Failure::of_file("empty", &part.path, &error))?;
        Ok(Self { file, path: path.to_owned(), part: Some(part) })
    }

    /// The open file, to be passed on.
    pub(super) fn descriptor(&self) -> Outcome<File> {
        self.file.try_clone().map_err(|error| Failure::of_file("pass on", &self.path, &error))
    }

    /// Leaves the file to whoever was given it, under the name that it has now, which is returned.
    pub(super) fn leave(mut self) -> Option<PathBuf> {
        let part = self.part.as_mut()?;
        part.kept = true;
        Some(part.path.clone())
    }

    /// Makes what was written durable and gives it its name.
    pub(super) fn complete(mut self, force: bool) -> Outcome {
        self.file.sync_all().map_err(|error| Failure::of_file("write", &self.path, &error))?;
        let Some(part) = &mut self.part else { return Ok(()) };
        rename(&part.path, &self.path, force)?;
        part.kept = true;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| Failure::of_file("write", folder, &error))
    }
}

/// Renames a file, over one that exists only by force.
fn rename(from: &Path, to: &Path, force: bool) -> Outcome {
    let failed = |error: io::Error| Failure::of_file("make", to, &error);
    if force {
        return std::fs::rename(from, to).map_err(failed);
    }
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => Err(exists(to).into()),
        // File systems that cannot refuse by themselves.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if to.exists() => Err(exists(to).into()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => std::fs::rename(from, to).map_err(failed),
        Err(error) => Err(failed(error.into())),
    }
}

fn exists(path: &Path) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("{} exists", path.display())).hint("say --force to replace it")
}

/// The name of a file while it is incomplete.
fn part_of(path: &Path) -> Result<PathBuf, ApiError> {
    let Some(name) = path.file_name() else {
        return Err(ApiError::new(ErrorCode::Invalid, format!("{} does not name a file", path.display())));
    };
    let mut part = OsString::from(name);
    part.push(".part");
    Ok(path.with_file_name(part))
}

/// The format that a file's extension stands for; none where it stands for nothing else than raw.
pub(super) fn format_of(path: &Path) -> Option<ImageFormat> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "qcow2" => Some(ImageFormat::Qcow2),
        "vmdk" => Some(ImageFormat::Vmdk),
        "vhdx" => Some(ImageFormat::Vhdx),
        "vdi" => Some(ImageFormat::Vdi),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn code(outcome: Outcome<impl Sized>) -> ErrorCode {
        match outcome {
            Err(Failure::Reported(error)) => error.code,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it should have failed"),
        }
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.raw");
        let target = Target::prepare(&path, false).unwrap();
        target.descriptor().unwrap().write_all(b"disk").unwrap();
        assert!(!path.exists());
        target.complete(false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"disk");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        assert_eq!(code(Target::prepare(&path, false)), ErrorCode::Conflict);
        drop(Target::prepare(&path, true).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"disk", "giving up leaves what there was");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        Target::prepare(&path, true).unwrap().complete(true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.raw");
        let target = Target::prepare(&path, false).unwrap();
        std::fs::write(&path, "other").unwrap();
        assert_eq!(code(target.complete(false)), ErrorCode::Conflict);
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
    }

    #[test]
    fn two_do_not_write_one_file_and_a_remnant_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.raw");
        std::fs::write(folder.path().join("web.raw.part"), "a remnant of a crash").unwrap();
        let first = Target::prepare(&path, false).unwrap();
        assert_eq!(code(Target::prepare(&path, false)), ErrorCode::Conflict);
        let part = first.leave().unwrap();
        assert_eq!(std::fs::read(part).unwrap(), b"");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(code(Target::prepare(folder.path(), true)), ErrorCode::Invalid);
        assert_eq!(code(Target::prepare(Path::new("/dev/null"), true)), ErrorCode::Invalid);
        assert_eq!(code(Target::prepare(&folder.path().join("none/web.raw"), true)), ErrorCode::NotFound);
    }

    #[test]
    fn the_extension_says_the_format() {
        assert_eq!(format_of(Path::new("a/web.QCOW2")), Some(ImageFormat::Qcow2));
        assert_eq!(format_of(Path::new("web.img")), None);
        assert_eq!(format_of(Path::new("web")), None);
    }
}

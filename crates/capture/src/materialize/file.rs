//! Files and block devices as targets: what may be overwritten, and files that appear only when they are complete.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use medium::Host;
use tempfile::NamedTempFile;

use super::sink::{Device, NewFile, NewImage};
use super::{Copy, MaterializeError, Materialized};
use crate::detect::Format;
use crate::foreign::CaptureError;
use crate::qemu::{self, QemuServer};
use crate::raw::file_length;
use crate::reflink::{Reflink, ReflinkError};

/// A new file under a temporary name beside its final one, which it gets when it is complete.
///
/// Dropped before, it disappears. After a crash a file named `.NAME.XXXXXX.part` may be left.
#[derive(Debug)]
pub struct PendingFile {
    temporary: NamedTempFile,
    path: PathBuf,
    force: bool,
}

impl PendingFile {
    /// Makes the temporary file. With `force`, a file that has the name is replaced in the end.
    ///
    /// # Errors
    /// When the name is taken, or the file cannot be made.
    pub fn create(path: &Path, force: bool) -> Result<Self, MaterializeError> {
        // What a link leads to is replaced, not the link.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        match path.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(MaterializeError::NotATarget("a directory")),
            Ok(metadata) if !metadata.is_file() => {
                return Err(MaterializeError::NotATarget("something that is no regular file"));
            }
            Ok(_) if !force => return Err(MaterializeError::Exists(path)),
            _ => {}
        }
        let name = path.file_name().ok_or(MaterializeError::NotATarget("a path without a file name"))?;
        let prefix = format!(".{}.", name.to_string_lossy());
        let directory = directory_of(&path);
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(".part")
            // As for any new file; the process's umask takes away what it says.
            .permissions(std::fs::Permissions::from_mode(0o666))
            .tempfile_in(directory)
            .map_err(|source| MaterializeError::Path { operation: "make a file in", path: directory.into(), source })?;
        Ok(Self { temporary, path, force })
    }

    /// The file to write to: empty, open for reading and writing.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn file(&self) -> Result<File, MaterializeError> {
        self.temporary.as_file().try_clone().map_err(MaterializeError::io("duplicate a file descriptor"))
    }

    /// Gives the file its name, durably.
    ///
    /// # Errors
    /// When the name is taken by now and `force` was not given, or the file cannot be renamed.
    pub fn commit(self) -> Result<(), MaterializeError> {
        let failed = |operation, path: &Path, source| MaterializeError::Path { operation, path: path.into(), source };
        self.temporary.as_file().sync_all().map_err(MaterializeError::io("make the file durable"))?;
        let path = self.path;
        let renamed = if self.force { self.temporary.persist(&path) } else { self.temporary.persist_noclobber(&path) };
        renamed.map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => MaterializeError::Exists(path.clone()),
            _ => failed("rename a file to", &path, error.error),
        })?;
        let directory = directory_of(&path);
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| failed("make durable", directory, source))
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens a path for reading and writing if it is a block device.
pub(super) fn open_device(path: &Path) -> Result<Option<File>, MaterializeError> {
    if !path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        return Ok(None);
    }
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(Some).map_err(|source| MaterializeError::Path { operation: "open", path: path.into(), source })
}

impl Copy<'_> {
    /// Writes to an open file: an empty one, or a block device.
    pub(super) fn to_file(
        &self,
        file: File,
        format: Format,
        compress: bool,
        reflink: Reflink,
    ) -> Result<Materialized, MaterializeError> {
        if compress && !matches!(format, Format::Qcow2 | Format::Vmdk) {
            return Err(MaterializeError::Unsupported { format, what: "compressed" });
        }
        let kind = file.metadata().map_err(MaterializeError::io("look at the target"))?.file_type();
        if reflink == Reflink::Always && (format != Format::Raw || kind.is_block_device()) {
            let what = if kind.is_block_device() { "a block device" } else { "an image" };
            return Err(ReflinkError::NotRaw(what).into());
        }
        if kind.is_block_device() {
            if format != Format::Raw {
                return Err(MaterializeError::Unsupported { format, what: "written to a block device" });
            }
            return self.to_device(&file);
        }
        if !kind.is_file() {
            return Err(MaterializeError::NotATarget("something that is neither a file nor a block device"));
        }
        if file_length(&file)? > 0 {
            return Err(MaterializeError::NotEmpty);
        }
        match format {
            Format::Raw => self.to_new_file(file, reflink),
            _ if compress => self.to_compressed(&file, format),
            _ => self.to_image(&file, format),
        }
    }

    fn to_new_file(&self, file: File, reflink: Reflink) -> Result<Materialized, MaterializeError> {
        let sharing = self.sharing(&file, reflink)?;
        file.set_len(self.device.size_bytes()).map_err(MaterializeError::io("set the file's size"))?;
        self.run(&NewFile { file, sharing })
    }

    /// An empty file as one that shares room with the store, where it shall and can.
    fn sharing(&self, file: &File, reflink: Reflink) -> Result<Option<Arc<dyn medium::File>>, MaterializeError> {
        if reflink == Reflink::Never {
            return Ok(None);
        }
        let copy = file.try_clone().map_err(MaterializeError::io("duplicate a file descriptor"))?;
        let target = Host::adopt(copy);
        match self.device.can_share(&*target) {
            Ok(()) => Ok(Some(target)),
            Err(error) if reflink == Reflink::Always => Err(ReflinkError::from(error).into()),
            Err(error) => {
                tracing::debug!(%error, "the target shares no room with the store");
                Ok(None)
            }
        }
    }

    fn to_device(&self, file: &File) -> Result<Materialized, MaterializeError> {
        // Opened exclusively, a device that is mounted or part of something is refused by the kernel (open(2)).
        let exclusive = i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or(0);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
        let file = opened.map_err(|source| match source.kind() {
            std::io::ErrorKind::ResourceBusy => MaterializeError::InUse,
            _ => MaterializeError::Io { operation: "open the block device for itself", source },
        })?;
        self.check_size(file_length(&file)?)?;
        self.run(&Device { file, plain: AtomicBool::new(false) })
    }

    /// Makes an image with qemu and writes to it through its NBD server.
    fn to_image(&self, file: &File, format: Format) -> Result<Materialized, MaterializeError> {
        qemu::create(file, format, self.device.size_bytes())?;
        let (server, disk) = QemuServer::start(file, format, true)?;
        self.check_size(disk.export_bytes())?;
        let done = match self.run(&NewImage { disk: &disk }) {
            Err(MaterializeError::Capture(CaptureError::Nbd(source))) => return Err(server.blame(source).into()),
            other => other?,
        };
        // The server ends when the last connection does, and has then written the image's own tables too.
        drop(disk);
        server.finish()?;
        file.sync_all().map_err(MaterializeError::io("make the image durable"))?;
        Ok(done)
    }

    /// Makes a raw file in the directory for temporary files, and has qemu compress that.
    fn to_compressed(&self, file: &File, format: Format) -> Result<Materialized, MaterializeError> {
        let raw = NamedTempFile::new().map_err(MaterializeError::io("make a temporary file"))?;
        let copy = raw.as_file().try_clone().map_err(MaterializeError::io("duplicate a file descriptor"))?;
        let done = self.to_new_file(copy, Reflink::Never)?;
        qemu::compress(raw.path(), file, format, &|| self.progress.is_cancelled())?;
        self.progress.check()?;
        file.sync_all().map_err(MaterializeError::io("make the image durable"))?;
        Ok(done)
    }
}

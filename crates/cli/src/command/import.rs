//! `brant import`: a foreign disk becomes a version in a bucket.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use node::api::{ApiError, ErrorCode, ImageFormat, ImportRequest, Reflink, SourceSpec};
use rustix::fs::OFlags;
use types::ObjectPath;

use super::place::{Place, require_local};
use crate::arguments::{choice, new_path};
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::wait::{self, Detach};

/// Read a disk image, device or NBD export into a bucket
///
/// It becomes a new version of the object. Only what the bucket's store does not have yet is stored. An import that was interrupted is just run again: what had
/// been stored is not stored twice. A file is opened by this command with your permissions and passed to the node.
///
/// A raw file on the XFS or btrfs file system of the node's directory is not copied: the store shares its room, so that
/// what is new takes no more while the file stays as it is, and is not compressed. The version is the file at the moment
/// of the import; later changes of the file take room of their own. --reflink never compresses instead, which takes less
/// where the file is removed afterwards.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant import debian.qcow2 images/debian
  brant import /dev/vg0/web vms/web -m 'before the upgrade'
  brant import nbd://10.0.0.7/web vms/web")]
pub(crate) struct Arguments {
    /// A file, a block device, or an NBD URI
    #[arg(value_name = "SOURCE", value_parser = Place::parser())]
    source: Place,
    /// Where the new version goes
    #[arg(value_name = "BUCKET/OBJECT", value_parser = new_path)]
    path: ObjectPath,
    /// A note that is kept with the version
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    message: String,
    /// The image's format, where it shall not be found out
    #[arg(long, value_parser = choice::<ImageFormat>(FORMATS))]
    format: Option<ImageFormat>,
    /// Whether the store shares the room of a raw file: where it can, always or else fail, or never
    #[arg(long, value_parser = choice::<Reflink>(REFLINK), default_value = "auto", value_name = "WHEN")]
    reflink: Reflink,
    #[command(flatten)]
    detach: Detach,
}

/// The words for [`Reflink`], as cp(1) has them.
pub(super) const REFLINK: &[&str] = &["auto", "always", "never"];

/// The words for [`ImageFormat`].
pub(super) const FORMATS: &[&str] = &["raw", "qcow2", "vmdk", "vhdx", "vdi"];

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let source = match arguments.source {
        Place::Nbd(uri) => SourceSpec::Nbd { uri },
        Place::Path(path) => {
            require_local(
                &context.client,
                &path,
                "run this on the node's host, or serve the disk to it, for example with qemu-nbd, and import its NBD URI",
            )?;
            let file = open(context, &path)?;
            let ticket = context.client.pass_descriptor(file).await?;
            SourceSpec::Descriptor { ticket, name: path.display().to_string() }
        }
    };
    let path = arguments.path.to_string();
    let (format, message, reflink) = (arguments.format, arguments.message, arguments.reflink);
    let request = ImportRequest { source, format, path, message, reflink };
    let task = context.client.import(&request).await?;
    wait::finish(context, task, arguments.detach).await
}

/// Opens what is imported, and says where a device is in use meanwhile.
fn open(context: &Context, path: &Path) -> Outcome<File> {
    let failed = |error: io::Error| Failure::of_file("open", path, &error);
    // Looked at before it is opened: opening a pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    check_kind(path, &metadata)?;
    let mut options = File::options();
    options.read(true);
    if !metadata.file_type().is_block_device() {
        return options.open(path).map_err(failed);
    }
    // Exclusively first: that fails where the device is mounted, or another one's part (open(2)).
    match options.clone().custom_flags(OFlags::EXCL.bits().cast_signed()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let name = path.display();
            context.output.note(&format!(
                "warning: {name} is in use: what is written to it meanwhile may be in this version or not"
            ));
            options.open(path).map_err(failed)
        }
        opened => opened.map_err(failed),
    }
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), ApiError> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = if kind.is_dir() { "a directory" } else { "neither a file nor a block device" };
    Err(ApiError::new(ErrorCode::Invalid, format!("{} is {what}", path.display()))
        .hint("give a disk image, a block device, or an NBD URI"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_and_devices_are_disks() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &Path| check_kind(path, &std::fs::metadata(path).unwrap());
        assert_eq!(check(folder.path()).unwrap_err().code, ErrorCode::Invalid);
        assert_eq!(check(Path::new("/dev/null")).unwrap_err().code, ErrorCode::Invalid);
        let file = folder.path().join("disk.raw");
        std::fs::write(&file, "x").unwrap();
        assert!(check(&file).is_ok());
    }
}

//! Foreign disks in and out: files, block devices, NBD servers, and image formats through qemu.
//!
//! [`import`](import::import) turns a [`ForeignDisk`] into chunks and a tree in a store;
//! [`materialize`](materialize::materialize) writes any [`volume::BlockDevice`] to foreign storage. Holes cost nothing
//! in either direction. Invariants: nothing that a foreign disk, image or server says is believed without a check; an
//! image makes no other file be read unless that was allowed; a target that is named by path is there complete or not
//! at all. Everything blocks and runs on plain threads; only waiting for absent chunks uses a tokio runtime.

pub mod detect;
pub mod foreign;
pub mod import;
pub mod materialize;
pub mod nbd;
pub mod qemu;
pub mod raw;
pub mod reflink;

mod pieces;

pub use detect::{DetectError, Format, detect};
pub use foreign::{CaptureError, ForeignDisk, ForeignExtent};
pub use import::{ImportError, Imported, import};
pub use materialize::{MaterializeError, Materialized, PendingFile, Target, materialize};
pub use nbd::{NbdDisk, NbdError, NbdOptions, NbdUri};
pub use qemu::{QemuError, QemuImage, QemuOptions};
pub use raw::RawDisk;
pub use reflink::{Reflink, ReflinkError, open_to_share};

/// Opens a file as the foreign disk that it is: as it stands where it is raw, through qemu where it is an image.
///
/// `format` overrides what [`detect`](detect::detect) finds. The path, where it is known, is used for its extension
/// and for files that an image is allowed to refer to.
///
/// # Errors
/// See [`CaptureError`].
pub fn open(
    file: std::fs::File,
    format: Option<Format>,
    options: &QemuOptions,
) -> Result<Box<dyn ForeignDisk>, CaptureError> {
    let format = match format {
        Some(format) => format,
        None => detect(&file, options.path.as_deref())?,
    };
    Ok(match format {
        Format::Raw => Box::new(RawDisk::new(file)?),
        format => Box::new(QemuImage::open(&file, format, options)?),
    })
}

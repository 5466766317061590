//! Sharing room with foreign files, where the file system can: XFS, btrfs.
//!
//! Invariant: sharing changes what a disk costs, never what it holds. A file that is imported by sharing is frozen first:
//! what is imported is the file at one moment.

use std::fs::File;
use std::path::Path;

use medium::Host;
use store::{ChunkStore, FreezeError};

use crate::detect::{Format, detect};
use crate::foreign::{CaptureError, ForeignDisk};
use crate::qemu::QemuOptions;
use crate::raw::RawDisk;

/// Whether room is shared, in the words of cp(1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reflink {
    /// Where it can be.
    #[default]
    Auto,
    /// It must be.
    Always,
    /// It is not.
    Never,
}

/// Room was to be shared, and cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReflinkError {
    /// Only raw files hold disks as they are.
    #[error("{0} shares no room with a store: only raw files do")]
    NotRaw(&'static str),
    /// The file system refuses.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
}

/// Opens a file as [`open`](crate::open) does, to be imported into a store by sharing room with it, if that is asked for
/// and possible.
///
/// # Errors
/// As [`open`](crate::open); [`CaptureError::Reflink`] where room must be shared and cannot be.
pub fn open_to_share(
    file: File,
    format: Option<Format>,
    options: &QemuOptions,
    store: &dyn ChunkStore,
    reflink: Reflink,
) -> Result<Box<dyn ForeignDisk>, CaptureError> {
    let format = match format {
        Some(format) => format,
        None => detect(&file, options.path.as_deref())?,
    };
    if format != Format::Raw && reflink == Reflink::Always {
        return Err(ReflinkError::NotRaw("an image").into());
    }
    if format != Format::Raw || reflink == Reflink::Never {
        return crate::open(file, Some(format), options);
    }
    // What is not a disk is refused as such.
    let disk = RawDisk::new(file)?;
    match disk.freeze(store) {
        Ok(frozen) => Ok(Box::new(frozen)),
        Err(CaptureError::Reflink(error)) if reflink == Reflink::Auto => {
            let path = options.path.as_deref().unwrap_or(Path::new(""));
            tracing::debug!(%error, path = %path.display(), "no room is shared with the file");
            Ok(Box::new(disk))
        }
        Err(error) => Err(error),
    }
}

impl RawDisk {
    /// Freezes the file beside a store's packs: what is read is the disk at one moment, and the store can share its room.
    ///
    /// # Errors
    /// [`CaptureError::Reflink`] where that cannot be; else as [`RawDisk::new`].
    pub fn freeze(&self, store: &dyn ChunkStore) -> Result<Self, CaptureError> {
        let duplicate_failed = || CaptureError::io("duplicate a file descriptor");
        if !self.is_regular()? {
            return Err(ReflinkError::NotRaw("a block device").into());
        }
        let source = Host::adopt(self.file().try_clone().map_err(duplicate_failed())?);
        let frozen = store.freeze(&*source).map_err(ReflinkError::from)?;
        let Some(descriptor) = frozen.file().descriptor() else {
            return Err(ReflinkError::from(FreezeError::Unsupported).into());
        };
        let copy = descriptor.try_clone_to_owned().map_err(duplicate_failed())?;
        Ok(Self::new(copy.into())?.with_frozen(frozen))
    }
}

//! Disks that cannot be written: a volume's at the moment it was frozen, and a sealed snapshot's.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use medium::File;
use store::{FreezeError, InFile, RootChange};
use types::FrozenId;

use crate::base::{Missing, TreeBase};
use crate::device::{BlockDevice, DeviceError, Durability, Extent, Readiness};
use crate::reading::StackCell;
use crate::records::{self, FrozenRecord};
use crate::stack::Stack;

/// A volume's disk at one moment between two requests. Usable at once; its layers are folded into its tree later.
#[derive(Debug)]
pub struct Frozen {
    id: FrozenId,
    pub(crate) cell: Arc<StackCell>,
    /// Held while the disk is sealed: the work is done once.
    pub(crate) sealing: tokio::sync::Mutex<()>,
}

impl Frozen {
    pub(crate) fn new(id: FrozenId, stack: Stack) -> Arc<Self> {
        Arc::new(Self { id, cell: StackCell::new(stack), sealing: tokio::sync::Mutex::new(()) })
    }

    /// The frozen disk's id on this node.
    #[must_use]
    pub fn id(&self) -> FrozenId {
        self.id
    }

    /// The whole disk as a tree, once it is sealed.
    #[must_use]
    pub fn sealed(&self) -> Option<TreeBase> {
        let stack = self.cell.stack();
        stack.is_sealed().then(|| stack.base.clone())
    }

    /// The record of this disk with a stack.
    pub(crate) fn record(id: FrozenId, stack: &Stack) -> RootChange {
        records::put(records::frozen_name(id), &FrozenRecord { version: records::VERSION, stack: stack.record() })
    }
}

/// A sealed snapshot's disk.
#[derive(Debug)]
pub struct TreeView {
    pub(crate) cell: Arc<StackCell>,
}

macro_rules! read_only_device {
    ($device:ident) => {
        impl $device {
            /// The tree, under the layers where there are some.
            #[must_use]
            pub fn base(&self) -> TreeBase {
                self.cell.base()
            }

            /// Counts what the tree lacks; what written sectors cover is counted too.
            ///
            /// # Errors
            /// See [`DeviceError`].
            pub fn missing(&self) -> Result<Missing, DeviceError> {
                self.cell.missing()
            }
        }

        impl BlockDevice for $device {
            fn size_bytes(&self) -> u64 {
                self.cell.size_bytes()
            }

            fn read_only(&self) -> bool {
                true
            }

            fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
                self.cell.try_read(offset, buffer)
            }

            fn will_read(&self, offset: u64, length: u64) {
                self.cell.will_read(offset, length);
            }

            fn read(&self, offset: u64, length: usize) -> BoxFuture<'static, Result<Bytes, DeviceError>> {
                self.cell.read(offset, length)
            }

            fn write(&self, _: u64, _: &[u8], _: Durability) -> Result<(), DeviceError> {
                Err(DeviceError::ReadOnly)
            }

            fn write_zeroes(&self, _: u64, _: u64, _: Durability) -> Result<(), DeviceError> {
                Err(DeviceError::ReadOnly)
            }

            fn discard(&self, _: u64, _: u64, _: Durability) -> Result<(), DeviceError> {
                Err(DeviceError::ReadOnly)
            }

            fn flush(&self) -> Result<(), DeviceError> {
                Ok(())
            }

            fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError> {
                self.cell.extents(offset, length, limit)
            }

            fn chunk_in_file(&self, offset: u64) -> Result<Option<InFile>, DeviceError> {
                self.cell.chunk_in_file(offset)
            }

            fn can_share(&self, file: &dyn File) -> Result<(), FreezeError> {
                self.cell.can_share(file)
            }
        }
    };
}

read_only_device!(Frozen);
read_only_device!(TreeView);

//! Chunks of a disk that lie as they are in files of the store, for who wants to share their room.
//!
//! Invariant: what is found is what a read of the same stack gives, if it has the chunk's hash: nothing lies over it.

use format::tree;
use medium::File;
use store::{FreezeError, InFile};
use types::SECTOR_BYTES;

use crate::base::CHUNK;
use crate::device::DeviceError;
use crate::reading::StackCell;
use crate::stack::{From, Stack, absent_node};

impl Stack {
    fn chunk_in_file(&self, offset: u64) -> Result<Option<InFile>, DeviceError> {
        self.check_range(offset, CHUNK)?;
        self.check_layers()?;
        let (first, end) = (offset / SECTOR_BYTES, (offset + CHUNK) / SECTOR_BYTES);
        if !offset.is_multiple_of(CHUNK) || !matches!(self.find(first, end), (From::Tree, next) if next == end) {
            return Ok(None);
        }
        match tree::lookup(&self.nodes, self.shape, self.base.root, offset / CHUNK) {
            Ok(Some(id)) => Ok(self.context.store.find_in_file(&id, &self.base.domains)?),
            Ok(None) => Ok(None),
            // A read waits for it.
            Err(error) => absent_node(error).map(|_| None),
        }
    }
}

impl StackCell {
    pub(crate) fn chunk_in_file(&self, offset: u64) -> Result<Option<InFile>, DeviceError> {
        self.open()?.chunk_in_file(offset)
    }

    pub(crate) fn can_share(&self, file: &dyn File) -> Result<(), FreezeError> {
        self.stack().context.store.freeze(file).map(drop)
    }
}

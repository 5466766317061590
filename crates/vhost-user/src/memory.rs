//! The memory of a guest, which is mapped here for as long as somebody uses it.
//!
//! Invariant: an address of a guest is looked up for each access, so none can lead elsewhere. The files are the front-end's:
//! one that cuts them off ends this process, as it could end its guest.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::fstat;
use vm_memory::{
    AtomicAccess, Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::message::Region;

/// The memory of a guest could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// There are not as many files as regions.
    #[error("{files} files came for {regions} regions of memory")]
    Files {
        /// The files.
        files: usize,
        /// The regions.
        regions: usize,
    },
    /// A region is longer than its file, or has no place in any address space.
    #[error("a region of memory at {guest_address:#x} does not fit its file")]
    Place {
        /// Where it begins.
        guest_address: u64,
    },
    /// A region could not be mapped.
    #[error("could not map a region of memory at {guest_address:#x}")]
    Map {
        /// Where it begins.
        guest_address: u64,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Regions overlap.
    #[error("the regions of memory make no sense together")]
    Table(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An address that is no memory of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address is no memory of the guest")]
pub struct NoMemory;

/// The memory of a guest.
#[derive(Debug)]
pub struct Memory {
    map: GuestMemoryMmap,
    regions: Vec<Region>,
}

/// Maps a file, of which that much must be there.
pub(crate) fn map(
    file: OwnedFd,
    offset: u64,
    size_bytes: u64,
) -> Result<Option<MmapRegion>, vm_memory::mmap::MmapRegionError> {
    let held = fstat(&file).ok().and_then(|status| u64::try_from(status.st_size).ok()).unwrap_or(0);
    let within = offset.checked_add(size_bytes).is_some_and(|end| end <= held);
    let Some(length) = usize::try_from(size_bytes).ok().filter(|length| within && *length > 0) else { return Ok(None) };
    MmapRegion::from_file(FileOffset::new(File::from(file), offset), length).map(Some)
}

impl Memory {
    /// Maps the regions of a guest's memory.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn new(regions: &[Region], files: Vec<OwnedFd>) -> Result<Memory, MemoryError> {
        if files.len() != regions.len() {
            return Err(MemoryError::Files { files: files.len(), regions: regions.len() });
        }
        let mut table = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            let guest_address = region.guest_address;
            let mapped = map(file, region.file_offset, region.size_bytes)
                .map_err(|error| MemoryError::Map { guest_address, source: error.into() })?;
            let placed = mapped.filter(|_| region.user_address.checked_add(region.size_bytes).is_some());
            let placed = placed.and_then(|mapped| GuestRegionMmap::new(mapped, GuestAddress(guest_address)));
            table.push(placed.ok_or(MemoryError::Place { guest_address })?);
        }
        table.sort_by_key(GuestMemoryRegion::start_addr);
        let map = GuestMemoryMmap::from_regions(table).map_err(|error| MemoryError::Table(error.into()))?;
        Ok(Memory { map, regions: regions.to_vec() })
    }

    /// Where something is for the guest that is there for the front-end.
    #[must_use]
    pub fn guest_address(&self, user_address: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let within = user_address.checked_sub(region.user_address).filter(|within| *within < region.size_bytes)?;
            Some(region.guest_address + within)
        })
    }

    /// Reads.
    ///
    /// # Errors
    /// Where not all of it is memory; the buffer's content is unspecified then.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), NoMemory> {
        self.map.read_slice(buffer, GuestAddress(address)).map_err(|_| NoMemory)
    }

    /// Writes.
    ///
    /// # Errors
    /// Where not all of it is memory; a part may have been written then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), NoMemory> {
        self.map.write_slice(bytes, GuestAddress(address)).map_err(|_| NoMemory)
    }

    /// Reads a number that others may change meanwhile.
    pub(crate) fn load<T: AtomicAccess>(&self, address: u64, order: Ordering) -> Result<T, NoMemory> {
        self.map.load(GuestAddress(address), order).map_err(|_| NoMemory)
    }

    /// Writes a number that others look at meanwhile.
    pub(crate) fn store<T: AtomicAccess>(&self, address: u64, value: T, order: Ordering) -> Result<(), NoMemory> {
        self.map.store(value, GuestAddress(address), order).map_err(|_| NoMemory)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    /// Where the memory of tests begins for the front-end.
    pub(crate) const USER: u64 = 0x7f00_0000_0000;

    pub(crate) fn file(size_bytes: u64) -> OwnedFd {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, size_bytes).unwrap();
        file
    }

    pub(crate) fn region(guest_address: u64, size_bytes: u64) -> Region {
        Region { guest_address, size_bytes, user_address: USER.wrapping_add(guest_address), file_offset: 0 }
    }

    /// A guest with memory from zero on.
    pub(crate) fn guest(size_bytes: u64) -> Memory {
        Memory::new(&[region(0, size_bytes)], vec![file(size_bytes)]).unwrap()
    }

    #[test]
    fn only_what_is_memory_is_read_and_written() {
        let regions = [region(1 << 20, 4096), region(0, 8192)];
        let memory = Memory::new(&regions, vec![file(4096), file(8192)]).unwrap();
        memory.write(8190, &[1, 2]).unwrap();
        let mut read = [0; 2];
        memory.read(8190, &mut read).unwrap();
        assert_eq!(read, [1, 2]);
        for beyond in [8191, 8192, (1 << 20) - 1, (1 << 20) + 4095, u64::MAX] {
            assert_eq!(memory.read(beyond, &mut read), Err(NoMemory), "{beyond:#x}");
            assert_eq!(memory.write(beyond, &read), Err(NoMemory), "{beyond:#x}");
        }
        assert_eq!(memory.load::<u16>(8191, Ordering::Acquire), Err(NoMemory));
        assert_eq!(memory.guest_address(USER + (1 << 20) + 5), Some((1 << 20) + 5));
        assert_eq!(memory.guest_address(USER + 8192), None);
    }

    #[test]
    fn tables_that_make_no_sense_are_refused() {
        let refused = |regions: &[Region], files: Vec<OwnedFd>| Memory::new(regions, files).unwrap_err();
        assert!(matches!(refused(&[region(0, 4096)], vec![]), MemoryError::Files { .. }));
        assert!(matches!(refused(&[region(0, 8192)], vec![file(4096)]), MemoryError::Place { .. }));
        assert!(matches!(refused(&[region(0, 0)], vec![file(4096)]), MemoryError::Place { .. }));
        let odd = Region { file_offset: 100, size_bytes: 100, ..region(0, 0) };
        assert!(matches!(refused(&[odd], vec![file(4096)]), MemoryError::Map { .. }));
        let far = Region { file_offset: u64::MAX, ..region(0, 4096) };
        assert!(matches!(refused(&[far], vec![file(4096)]), MemoryError::Place { .. }));
        let high = Region { user_address: 0, ..region(u64::MAX - 100, 4096) };
        assert!(matches!(refused(&[high], vec![file(4096)]), MemoryError::Place { .. }));
        let twice = [region(0, 8192), region(4096, 4096)];
        assert!(matches!(refused(&twice, vec![file(8192), file(4096)]), MemoryError::Table(_)));
    }
}

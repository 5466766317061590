//! Chains of descriptors, as a guest lays them out (virtio 1.2, 2.7.5): where in its memory a request is.
//!
//! Invariant: a chain that was walked is finite, of memory sizes that add up, with everything that the device reads before
//! everything that it writes. That its addresses are memory is found out when they are used.

use crate::memory::{Memory, NoMemory};

/// The most descriptors of a table of its own, as in QEMU.
const MAX_INDIRECT: u32 = 1024;
const DESCRIPTOR_BYTES: u32 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A chain is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// It leads out of its table.
    #[error("a descriptor is beyond its table")]
    Beyond,
    /// It has more descriptors than its table: it goes round.
    #[error("a chain of descriptors does not end")]
    Endless,
    /// Something to read follows something to write.
    #[error("a chain has something to read behind something to write")]
    Order,
    /// A table of its own is not one, or is in another one.
    #[error("a table of descriptors is not one")]
    Table,
    /// It is longer than any may be.
    #[error("a chain has more than 4 GiB")]
    Long,
    /// A table is not memory.
    #[error(transparent)]
    Memory(#[from] NoMemory),
}

/// A piece of a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins.
    pub address: u64,
    /// How long it is; not zero.
    pub length: u32,
}

/// Where a request is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What the device reads.
    pub readable: Vec<Piece>,
    /// What the device writes.
    pub writable: Vec<Piece>,
}

/// The length of pieces together.
#[must_use]
pub(crate) fn bytes_of(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.length)).sum()
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn read(memory: &Memory, table: u64, index: u32) -> Result<Descriptor, NoMemory> {
        let mut bytes = [0; DESCRIPTOR_BYTES as usize];
        let address = table.checked_add(u64::from(index * DESCRIPTOR_BYTES)).ok_or(NoMemory)?;
        memory.read(address, &mut bytes)?;
        let (address, rest) = bytes.split_at(8);
        let half = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
        Ok(Descriptor {
            address: address.try_into().map_or(0, u64::from_le_bytes),
            length: u32::from(half(0)) | u32::from(half(2)) << 16,
            flags: half(4),
            next: half(6),
        })
    }
}

/// Walks a chain from its head, in the table of a queue of that size.
///
/// # Errors
/// See [`ChainError`].
pub fn walk(memory: &Memory, table: u64, size: u16, head: u16) -> Result<Chain, ChainError> {
    let (mut table, mut size, mut index) = (table, u32::from(size), u32::from(head));
    let (mut chain, mut total, mut seen, mut indirect) = (Chain::default(), 0_u64, 0, false);
    loop {
        if index >= size {
            return Err(ChainError::Beyond);
        }
        if seen == size {
            return Err(ChainError::Endless);
        }
        seen += 1;
        let descriptor = Descriptor::read(memory, table, index)?;
        if descriptor.flags & INDIRECT != 0 {
            let entries = descriptor.length / DESCRIPTOR_BYTES;
            let whole = descriptor.length.is_multiple_of(DESCRIPTOR_BYTES) && (1..=MAX_INDIRECT).contains(&entries);
            if indirect || !whole || descriptor.flags & NEXT != 0 {
                return Err(ChainError::Table);
            }
            (table, size, index, seen, indirect) = (descriptor.address, entries, 0, 0, true);
            continue;
        }
        total += u64::from(descriptor.length);
        if total > u64::from(u32::MAX) {
            return Err(ChainError::Long);
        }
        let piece = Piece { address: descriptor.address, length: descriptor.length };
        let writable = descriptor.flags & WRITE != 0;
        if !writable && !chain.writable.is_empty() {
            return Err(ChainError::Order);
        }
        if piece.length > 0 {
            if writable { &mut chain.writable } else { &mut chain.readable }.push(piece);
        }
        if descriptor.flags & NEXT == 0 {
            return Ok(chain);
        }
        index = u32::from(descriptor.next);
    }
}

/// The part of some pieces from an offset on, of a length; shorter where they end before.
#[must_use]
pub(crate) fn part(pieces: &[Piece], offset: u64, length: u64) -> Vec<Piece> {
    let (mut skip, mut left) = (offset, length);
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let within = skip.min(u64::from(piece.length));
        skip -= within;
        let taken = (u64::from(piece.length) - within).min(left);
        left -= taken;
        if let Some(length) = u32::try_from(taken).ok().filter(|length| *length > 0) {
            // What wraps is no memory, and is found out when it is used.
            parts.push(Piece { address: piece.address.wrapping_add(within), length });
        }
    }
    parts
}

/// Copies from pieces into a buffer, which is as long as they are.
pub(crate) fn gather(memory: &Memory, pieces: &[Piece], buffer: &mut [u8]) -> Result<(), NoMemory> {
    let mut rest = buffer;
    for piece in pieces {
        let (part, behind) = rest.split_at_mut_checked(piece.length as usize).ok_or(NoMemory)?;
        memory.read(piece.address, part)?;
        rest = behind;
    }
    Ok(())
}

/// Copies a buffer into pieces, which are as long as it is.
pub(crate) fn scatter(memory: &Memory, pieces: &[Piece], buffer: &[u8]) -> Result<(), NoMemory> {
    let mut rest = buffer;
    for piece in pieces {
        let (part, behind) = rest.split_at_checked(piece.length as usize).ok_or(NoMemory)?;
        memory.write(piece.address, part)?;
        rest = behind;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::tests::guest;

    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITES: u16 = WRITE;

    /// Puts a descriptor into a table.
    pub(crate) fn put(memory: &Memory, table: u64, index: u16, (address, length): (u64, u32), flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        memory.write(table + u64::from(index) * 16, &bytes).unwrap();
    }

    fn piece(address: u64, length: u32) -> Piece {
        Piece { address, length }
    }

    #[test]
    fn a_chain_is_followed_through_its_tables() {
        let memory = guest(1 << 16);
        put(&memory, 0, 3, (0x1000, 16), READ | NEXT, 1);
        put(&memory, 0, 1, (0x2000, 512), WRITES | NEXT, 0);
        put(&memory, 0, 0, (0x3000, 1), WRITES, 9);
        let expected =
            Chain { readable: vec![piece(0x1000, 16)], writable: vec![piece(0x2000, 512), piece(0x3000, 1)] };
        assert_eq!(walk(&memory, 0, 4, 3), Ok(expected.clone()));
        put(&memory, 0x8000, 0, (0x1000, 16), READ | NEXT, 2);
        put(&memory, 0x8000, 2, (0x2000, 512), WRITES | NEXT, 1);
        put(&memory, 0x8000, 1, (0x3000, 1), WRITES, 0);
        put(&memory, 0, 2, (0x8000, 48), INDIRECT, 0);
        assert_eq!(walk(&memory, 0, 4, 2), Ok(expected));
    }

    #[test]
    fn what_is_no_chain_is_an_error() {
        let memory = guest(1 << 16);
        let walked = |flags: u16, place: (u64, u32), next: u16| {
            put(&memory, 0, 0, place, flags, next);
            walk(&memory, 0, 4, 0).unwrap_err()
        };
        assert_eq!(walk(&memory, 0, 4, 4), Err(ChainError::Beyond));
        assert_eq!(walked(NEXT, (0, 1), 4), ChainError::Beyond);
        assert_eq!(walked(NEXT, (0, 1), 0), ChainError::Endless);
        assert_eq!(walked(NEXT, (0, 0), 0), ChainError::Endless, "also of nothing");
        put(&memory, 0, 1, (0, 1), READ, 0);
        assert_eq!(walked(WRITE | NEXT, (0, 1), 1), ChainError::Order);
        put(&memory, 0, 1, (0, u32::MAX), READ, 0);
        assert_eq!(walked(NEXT, (0, u32::MAX), 1), ChainError::Long);
        for length in [0, 15, 17, 16 * 1025] {
            assert_eq!(walked(INDIRECT, (0x8000, length), 0), ChainError::Table, "{length}");
        }
        assert_eq!(walked(INDIRECT | NEXT, (0x8000, 16), 1), ChainError::Table);
        put(&memory, 0x8000, 0, (0x9000, 16), INDIRECT, 0);
        assert_eq!(walked(INDIRECT, (0x8000, 16), 0), ChainError::Table, "one in another");
        assert_eq!(walked(INDIRECT, (1 << 40, 16), 0), ChainError::Memory(NoMemory));
        assert_eq!(walked(INDIRECT, (u64::MAX - 3, 16), 0), ChainError::Memory(NoMemory));
        assert_eq!(walk(&memory, u64::MAX - 20, 4, 3), Err(ChainError::Memory(NoMemory)));
    }

    #[test]
    fn pieces_are_cut_and_copied() {
        let memory = guest(4096);
        let pieces = [piece(0, 10), piece(100, 10), piece(200, 10)];
        assert_eq!(part(&pieces, 5, 20), [piece(5, 5), piece(100, 10), piece(200, 5)]);
        assert_eq!(part(&pieces, 10, 10), [piece(100, 10)]);
        assert_eq!(part(&pieces, 30, 1), []);
        scatter(&memory, &part(&pieces, 5, 20), &(0..20).collect::<Vec<u8>>()).unwrap();
        let mut all = [9; 30];
        gather(&memory, &pieces, &mut all).unwrap();
        assert_eq!(all[..6], [0, 0, 0, 0, 0, 0]);
        assert_eq!(all[24..26], [19, 0]);
        assert_eq!(gather(&memory, &pieces, &mut [0; 29]), Err(NoMemory));
    }

    proptest! {
        #[test]
        fn any_memory_is_walked_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..600), head in 0_u16..40) {
            let memory = guest(4096);
            memory.write(0, &bytes).unwrap();
            if let Ok(chain) = walk(&memory, 0, 32, head) {
                prop_assert!(chain.readable.len() + chain.writable.len() <= 1024 + 32);
                let total = bytes_of(&chain.readable) + bytes_of(&chain.writable);
                prop_assert!(total <= u64::from(u32::MAX));
            }
        }
    }
}

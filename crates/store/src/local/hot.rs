//! The hot tier: plain copies of chunks of which guests read parts, in a bounded file that the page cache can serve.
//! Without it, 4 KiB of a chunk that is not in memory cost reading, decompressing and hashing all of it. As long as there
//! is room every such chunk is copied, and one that is read as a whole when that happens again; then only one of which a
//! part is read again takes the place of another.
//!
//! Invariants: the file has no name, and nothing in it outlives the process; what is read from it is given only after
//! its checksum, which is kept in memory, was checked; a slot is written again only when nobody can read it any more.

use std::fmt;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use highway::{HighwayHash, HighwayHasher};
use quick_cache::sync::Cache;
use rustix::fs::Advice;
use types::CHUNK_BYTES;

use super::disk::room;
use crate::{Domain, Domains, Key};

/// What has a checksum of its own, and is read as a whole, in bytes.
const BLOCK_BYTES: usize = 4096;
const BLOCKS: usize = CHUNK_BYTES / BLOCK_BYTES;

/// How many slots there are beyond what the tier holds, for chunks that are being replaced while they are read.
const SPARE_SLOTS: u32 = 16;

/// How many chunks are remembered that were read once.
const SEEN_ONCE: usize = 1 << 16;

/// How often the room on the file system is asked for: after so many slots.
const ROOM_STEP: u32 = 256;

/// What stays free on the file system, whatever the tier may hold: this part of it, and at least so many bytes.
const FREE_PART: u64 = 32;
const FREE_BYTES: u64 = 1 << 30;

/// Plain copies of chunks on disk.
#[derive(Debug)]
pub(crate) struct HotTier {
    directory: PathBuf,
    slots: u32,
    free_bytes: u64,
    key: ChecksumKey,
    /// Fingerprints of chunks that were read once, and not copied.
    seen: Box<[AtomicU64]>,
    current: RwLock<Arc<Copies>>,
}

/// One file of copies. Room is given back by letting go of it.
#[derive(Debug)]
struct Copies {
    file: OnceLock<File>,
    chunks: Cache<Key, Arc<Copy>>,
    slots: Arc<Mutex<Slots>>,
}

/// Which slots nobody reads.
#[derive(Debug)]
struct Slots {
    free: Vec<u32>,
    made: u32,
    limit: u32,
}

/// One chunk's copy.
#[derive(Debug)]
struct Copy {
    slot: Slot,
    checksums: [u64; BLOCKS],
    /// Where the chunk was present when it was copied.
    domains: Arc<[Domain]>,
}

/// A place in the file, free again when it is dropped.
#[derive(Debug)]
struct Slot {
    number: u32,
    slots: Arc<Mutex<Slots>>,
}

impl Slot {
    fn place(&self) -> u64 {
        u64::from(self.number) * CHUNK_BYTES as u64
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.slots).free.push(self.number);
    }
}

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HotTier {
    /// Makes a tier that holds about so many bytes; none holds nothing. It leaves `reserve_bytes` of the file system
    /// free, and more.
    pub(crate) fn new(directory: &Path, capacity_bytes: u64, reserve_bytes: u64) -> Self {
        let slots = u32::try_from(capacity_bytes / CHUNK_BYTES as u64).unwrap_or(u32::MAX - SPARE_SLOTS);
        let seen = if slots == 0 { 0 } else { SEEN_ONCE };
        Self {
            directory: directory.to_owned(),
            slots,
            free_bytes: if reserve_bytes == 0 { 0 } else { reserve_bytes.saturating_add(FREE_BYTES) },
            key: ChecksumKey::random(),
            seen: std::iter::repeat_with(AtomicU64::default).take(seen).collect(),
            current: RwLock::new(Arc::new(Copies::new(slots))),
        }
    }

    fn current(&self) -> Arc<Copies> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fills the buffer from a copy of the chunk, if there is one that these domains may see.
    pub(crate) fn read(&self, key: &Key, domains: &Domains, offset: usize, buffer: &mut [u8]) -> bool {
        if self.slots == 0 || offset + buffer.len() > CHUNK_BYTES {
            return false;
        }
        let copies = self.current();
        let Some(copy) = copies.chunks.get(key) else { return false };
        if !domains.meet(&copy.domains) {
            return false;
        }
        match copies.read(&copy, &self.key, offset, buffer) {
            Ok(true) => true,
            outcome => {
                tracing::warn!(%key, error = ?outcome.err(), "a hot copy is damaged; the chunk is read from its pack");
                copies.chunks.remove(key);
                false
            }
        }
    }

    /// Says that part of a chunk will be read soon, and whether there is a copy of it.
    pub(crate) fn will_read(&self, key: &Key, offset: usize, length: usize) -> bool {
        if self.slots == 0 {
            return false;
        }
        let copies = self.current();
        let (Some(copy), Some(file)) = (copies.chunks.peek(key), copies.file.get()) else { return false };
        // Where it is refused, the read itself waits.
        let place = copy.slot.place() + offset as u64;
        let _ = rustix::fs::fadvise(file, place, NonZeroU64::new(length as u64), Advice::WillNeed);
        true
    }

    /// Tells the tier that a chunk, or a part of it, had to be read from its pack; says whether there is a copy now.
    pub(crate) fn missed(&self, key: &Key, plain: &Bytes, domains: &Arc<[Domain]>, is_part: bool) -> bool {
        if self.slots == 0 || plain.len() != CHUNK_BYTES {
            return false;
        }
        let copies = self.current();
        let full = copies.is_full();
        // Who reads all of a disk once drives nothing out, and has nothing written.
        if (full && !is_part) || ((full || !is_part) && self.first_time(key)) {
            return false;
        }
        let Some(slot) = copies.slot(|| self.has_room(&copies)) else { return false };
        let checksums = std::array::from_fn(|block| self.key.checksum(&plain[block * BLOCK_BYTES..][..BLOCK_BYTES]));
        let written = copies.file(&self.directory).and_then(|file| file.write_all_at(plain, slot.place()));
        match &written {
            Ok(()) => copies.chunks.insert(*key, Arc::new(Copy { slot, checksums, domains: domains.clone() })),
            Err(error) => tracing::debug!(%error, "could not make a hot copy"),
        }
        written.is_ok()
    }

    /// Lets go of a chunk's copy.
    pub(crate) fn forget(&self, key: &Key) {
        if self.slots > 0 {
            self.current().chunks.remove(key);
        }
    }

    /// Gives all its room back to the file system, and says whether that was any.
    pub(crate) fn release(&self) -> bool {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.file.get().is_none() {
            return false;
        }
        tracing::info!("the room of the hot copies is needed for other things");
        *current = Arc::new(Copies::new(self.slots));
        true
    }

    /// Whether the chunk was not read lately; now it was.
    fn first_time(&self, key: &Key) -> bool {
        let (place, fingerprint) = key.hash.split_at(8);
        let number = |bytes: &[u8]| u64::from_le_bytes(std::array::from_fn(|byte| bytes[byte]));
        let place = usize::try_from(number(place) % self.seen.len() as u64).unwrap_or(0);
        // Zero means that nothing was seen.
        let fingerprint = number(fingerprint) | 1;
        self.seen[place].swap(fingerprint, Ordering::Relaxed) != fingerprint
    }

    fn has_room(&self, copies: &Copies) -> bool {
        let Ok(file) = copies.file(&self.directory) else { return false };
        room(file).is_ok_and(|(available, total)| {
            let step = u64::from(ROOM_STEP) * CHUNK_BYTES as u64;
            let keep = if self.free_bytes == 0 { 0 } else { self.free_bytes.max(total / FREE_PART) };
            available >= step.saturating_add(keep)
        })
    }
}

impl Copies {
    fn new(slots: u32) -> Self {
        Self {
            file: OnceLock::new(),
            chunks: Cache::new(slots.max(1) as usize),
            slots: Arc::new(Mutex::new(Slots { free: Vec::new(), made: 0, limit: slots.saturating_add(SPARE_SLOTS) })),
        }
    }

    /// The file; made when it is first needed.
    fn file(&self, directory: &Path) -> io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = tempfile::tempfile_in(directory)?;
        Ok(self.file.get_or_init(|| file))
    }

    fn is_full(&self) -> bool {
        let slots = lock(&self.slots);
        slots.made >= slots.limit.saturating_sub(SPARE_SLOTS)
    }

    /// A slot that nobody reads; `has_room` is asked before the file grows by much.
    fn slot(&self, has_room: impl FnOnce() -> bool) -> Option<Slot> {
        let mut slots = lock(&self.slots);
        if slots.free.is_empty() && slots.made < slots.limit {
            if slots.made.is_multiple_of(ROOM_STEP) && !has_room() {
                // From now on copies take the place of others.
                slots.limit = slots.made;
                self.chunks.set_capacity(u64::from(slots.made.saturating_sub(SPARE_SLOTS)));
            } else {
                let made = slots.made;
                slots.free.push(made);
                slots.made += 1;
            }
        }
        let number = slots.free.pop()?;
        drop(slots);
        Some(Slot { number, slots: self.slots.clone() })
    }

    /// Fills the buffer, and says whether the bytes have their checksums.
    fn read(&self, copy: &Copy, key: &ChecksumKey, offset: usize, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(file) = self.file.get() else { return Ok(false) };
        let first = offset / BLOCK_BYTES;
        let end = (offset + buffer.len()).div_ceil(BLOCK_BYTES);
        let place = copy.slot.place() + (first * BLOCK_BYTES) as u64;
        let is_whole = |bytes: &[u8]| {
            let mut blocks = bytes.chunks(BLOCK_BYTES).zip(&copy.checksums[first..]);
            blocks.all(|(bytes, expected)| key.checksum(bytes) == *expected)
        };
        if offset == first * BLOCK_BYTES && buffer.len() == (end - first) * BLOCK_BYTES {
            file.read_exact_at(buffer, place)?;
            return Ok(is_whole(buffer));
        }
        let mut blocks = vec![0; (end - first) * BLOCK_BYTES];
        file.read_exact_at(&mut blocks, place)?;
        buffer.copy_from_slice(&blocks[offset - first * BLOCK_BYTES..][..buffer.len()]);
        Ok(is_whole(&blocks))
    }
}

/// What blocks are sealed with: HighwayHash with a key that nobody else knows, so that a guest cannot make two blocks
/// that pass for each other.
struct ChecksumKey([u64; 4]);

impl ChecksumKey {
    /// A new key. Without random numbers there is one that guards against the medium alone.
    fn random() -> Self {
        Self(std::array::from_fn(|_| getrandom::u64().unwrap_or(0)))
    }

    /// Guards a block against the medium; who may write the file may write the packs, too.
    fn checksum(&self, block: &[u8]) -> u64 {
        HighwayHasher::new(highway::Key(self.0)).hash64(block)
    }
}

impl fmt::Debug for ChecksumKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChecksumKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{chunk_key, sample};

    fn own() -> Arc<[Domain]> {
        [Domain::OWN].into()
    }

    fn tier(directory: &Path, chunks: usize) -> HotTier {
        HotTier::new(directory, (chunks * CHUNK_BYTES) as u64, 0)
    }

    /// Copies a chunk, by reading it twice.
    fn heat(tier: &HotTier, number: u32) -> (Key, Bytes) {
        let plain = Bytes::from(sample(number, CHUNK_BYTES));
        let key = chunk_key(&plain);
        tier.missed(&key, &plain, &own(), true);
        tier.missed(&key, &plain, &own(), true);
        (key, plain)
    }

    fn read(tier: &HotTier, key: &Key, offset: usize, length: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; length];
        tier.read(key, &Domain::OWN.into(), offset, &mut buffer).then_some(buffer)
    }

    #[test]
    fn every_part_of_a_copy_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let tier = tier(directory.path(), 8);
        let (key, plain) = heat(&tier, 1);
        for (offset, length) in [(0, CHUNK_BYTES), (4096, 4096), (512, 512), (3584, 1024), (65024, 512), (1, 65535)] {
            assert_eq!(read(&tier, &key, offset, length).as_deref(), Some(&plain[offset..offset + length]));
        }
        assert_eq!(read(&tier, &key, 65024, 1024), None);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn once_it_is_full_only_what_is_read_again_is_copied() {
        let directory = tempfile::tempdir().unwrap();
        let tier = tier(directory.path(), 8);
        let missed = |number| {
            let plain = Bytes::from(sample(number, CHUNK_BYTES));
            let key = chunk_key(&plain);
            tier.missed(&key, &plain, &own(), true);
            read(&tier, &key, 0, 512).is_some()
        };
        assert!((0..8).all(missed));
        assert!(!missed(8));
        assert!(missed(8));
    }

    #[test]
    fn what_is_read_as_a_whole_is_copied_the_second_time_and_drives_nothing_out() {
        let directory = tempfile::tempdir().unwrap();
        let tier = tier(directory.path(), 8);
        let read_whole = |number| {
            let plain = Bytes::from(sample(number, CHUNK_BYTES));
            let key = chunk_key(&plain);
            tier.missed(&key, &plain, &own(), false);
            assert_eq!(tier.will_read(&key, 4096, 4096), read(&tier, &key, 0, 512).is_some());
            read(&tier, &key, 0, 512).is_some()
        };
        assert!(!(0..8).any(read_whole));
        assert!((0..8).all(read_whole));
        assert!(!(8..16).any(read_whole) && !(8..16).any(read_whole));
        assert!((0..8).all(read_whole));
    }

    #[test]
    fn only_who_may_see_a_chunk_reads_its_copy() {
        let directory = tempfile::tempdir().unwrap();
        let tier = tier(directory.path(), 8);
        let (key, _) = heat(&tier, 1);
        assert!(!tier.read(&key, &Domain(9).into(), 0, &mut [0; 512]));
        assert!(tier.read(&key, &Domains::new(&[Domain(9), Domain::OWN]), 0, &mut [0; 512]));
    }

    #[test]
    fn a_full_tier_replaces_copies_and_every_copy_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let tier = tier(directory.path(), 64);
        let all: Vec<_> = (0..400).map(|number| heat(&tier, number)).collect();
        let kept = all.iter().filter(|(key, plain)| match read(&tier, key, 8192, 4096) {
            Some(bytes) => bytes == plain[8192..12288],
            None => false,
        });
        let right = kept.count();
        let held = all.iter().filter(|(key, _)| read(&tier, key, 0, 512).is_some()).count();
        assert_eq!(right, held);
        assert!((32..=64).contains(&held), "{held}");
        let file = tier.current().file.get().unwrap().metadata().unwrap().len();
        assert!(file <= (64 + u64::from(SPARE_SLOTS)) * CHUNK_BYTES as u64, "{file}");
    }

    #[test]
    fn a_damaged_copy_is_not_given() {
        let directory = tempfile::tempdir().unwrap();
        let tier = tier(directory.path(), 8);
        let (key, plain) = heat(&tier, 1);
        let copies = tier.current();
        let place = copies.chunks.get(&key).unwrap().slot.place();
        copies.file.get().unwrap().write_all_at(&[!plain[5000]], place + 5000).unwrap();
        assert!(read(&tier, &key, 0, 4096).is_some());
        assert_eq!(read(&tier, &key, 4096, 4096), None);
        // It was thrown away.
        assert_eq!(read(&tier, &key, 0, 4096), None);
    }

    #[test]
    fn room_that_is_needed_elsewhere_is_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let tier = tier(directory.path(), 8);
        assert!(!tier.release());
        let (key, _) = heat(&tier, 1);
        assert!(tier.release());
        assert_eq!(read(&tier, &key, 0, 512), None);
        let (key, plain) = heat(&tier, 2);
        assert_eq!(read(&tier, &key, 0, 512).as_deref(), Some(&plain[..512]));
    }

    #[test]
    fn a_file_system_without_room_to_spare_gets_no_copies() {
        let directory = tempfile::tempdir().unwrap();
        let tier = HotTier::new(directory.path(), 8 * CHUNK_BYTES as u64, u64::MAX);
        let (key, _) = heat(&tier, 1);
        assert_eq!(read(&tier, &key, 0, 512), None);
    }

    #[test]
    fn readers_and_copies_at_once_see_only_what_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let tier = tier(directory.path(), 8);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let tier = &tier;
                scope.spawn(move || {
                    for round in 0..60 {
                        let (key, plain) = heat(tier, (thread + round) % 40);
                        if let Some(bytes) = read(tier, &key, 60_000, 5_000) {
                            assert_eq!(bytes, plain[60_000..65_000]);
                        }
                    }
                });
            }
        });
    }
}

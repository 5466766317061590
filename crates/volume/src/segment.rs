//! One file of a journal, and the files that are kept to be used again.
//!
//! Invariant: what a segment has at a position never moves or changes as long as anyone refers to the segment, so that it
//! is read without locks. Its file is used again only when nobody does; before, it may lose its name.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::locks::Mutex;
use format::journal::{
    FooterEntry, HEADER_BYTES, Home, JournalKeys, Record, RecordKind, SEGMENT_HEAD_BYTES, SegmentHeader, SegmentId,
    encode_footer,
};
use medium::{File, Medium, Open, Room};

/// Where the first record of a segment begins.
pub(crate) const FIRST_RECORD: u64 = SEGMENT_HEAD_BYTES as u64;

/// The length of a record's header.
pub(crate) const RECORD_HEADER: u64 = HEADER_BYTES as u64;

/// What file systems read and write in one piece, in bytes.
const BLOCK_BYTES: usize = 4096;

/// What segments of journals are called.
pub(crate) const SEGMENT_EXTENSION: &str = "segment";

/// What the files of layers are called, in version 1.
pub(crate) const LAYER_EXTENSION: &str = "journal";

/// A file of a journal.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) home: Home,
    number: u32,
    path: PathBuf,
    file: Arc<dyn File>,
    /// Where the next record goes: the end of everything appended.
    tail: AtomicU64,
    /// How far it is known to be durable.
    durable: AtomicU64,
    /// The lowest and the highest sequence number in it.
    first_sequence: AtomicU64,
    last_sequence: AtomicU64,
    /// How much of it was torn when it was found again.
    torn_bytes: u64,
    /// How long its file was already when it was used again, in bytes.
    used_bytes: u64,
    /// How far a root record said that it was durable when it was found again, and how much of that was torn.
    pub(crate) listed: Option<(u64, u64)>,
    /// How far it was found to be what was written.
    pub(crate) verified: AtomicU64,
    /// Whether it says where its records are.
    pub(crate) has_footer: AtomicBool,
    /// Whether a flush has said, or will say, that what is in it is durable. Before, it may vanish with all that took
    /// the place of its records.
    pub(crate) promised: AtomicBool,
    /// How many records the journal had when it was found that nothing of this segment counts, and nothing ever will.
    pub(crate) dead_at: AtomicU64,
    /// Whether what counted of it was moved.
    pub(crate) emptied: AtomicBool,
    /// Whether it cannot be emptied, because it cannot be read.
    pub(crate) stuck: AtomicBool,
}

/// What is found in a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) end: u64,
    pub(crate) torn_bytes: u64,
    pub(crate) first_sequence: u64,
    pub(crate) last_sequence: u64,
}

impl Segment {
    fn new(home: Home, path: PathBuf, file: Arc<dyn File>) -> Self {
        let first_record = home.first_record();
        let number = if let Home::Segment(id) = home { id.number } else { 0 };
        Self {
            home,
            number,
            path,
            file,
            tail: AtomicU64::new(first_record),
            durable: AtomicU64::new(first_record),
            first_sequence: AtomicU64::new(u64::MAX),
            last_sequence: AtomicU64::new(0),
            torn_bytes: 0,
            used_bytes: 0,
            listed: None,
            verified: AtomicU64::new(first_record),
            has_footer: AtomicBool::new(false),
            promised: AtomicBool::new(false),
            dead_at: AtomicU64::new(u64::MAX),
            emptied: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
        }
    }

    /// A segment that was there. Nobody knows how far it is durable.
    pub(crate) fn found(home: Home, path: PathBuf, file: Arc<dyn File>, found: Found) -> Self {
        Self {
            tail: AtomicU64::new(found.end),
            first_sequence: AtomicU64::new(found.first_sequence),
            last_sequence: AtomicU64::new(found.last_sequence),
            torn_bytes: found.torn_bytes,
            promised: AtomicBool::new(true),
            ..Self::new(home, path, file)
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &dyn File {
        &*self.file
    }

    pub(crate) fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub(crate) fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    /// How far it is durable, and how much of that was torn.
    pub(crate) fn durable_part(&self) -> (u64, u64) {
        let durable = self.durable();
        self.listed.filter(|(end, _)| *end == durable).unwrap_or((durable, self.torn_bytes))
    }

    pub(crate) fn sequences(&self) -> (u64, u64) {
        (self.first_sequence.load(Ordering::Acquire), self.last_sequence.load(Ordering::Acquire))
    }

    /// Notes that records up to a sequence number were appended. Only one thread appends at a time.
    pub(crate) fn appended(&self, first: u64, last: u64, tail: u64) {
        self.first_sequence.fetch_min(first, Ordering::AcqRel);
        self.last_sequence.fetch_max(last, Ordering::AcqRel);
        self.tail.store(tail, Ordering::Release);
    }

    /// What is to be written behind a record that ends at a position, so that the file system need not read the rest of
    /// a block that the file has from before: nothing that anybody needs is there.
    pub(crate) fn padding(&self, end: u64) -> &'static [u8] {
        static ZEROES: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
        let rest = end.next_multiple_of(BLOCK_BYTES as u64).min(self.used_bytes).saturating_sub(end);
        &ZEROES[..usize::try_from(rest).unwrap_or(0)]
    }

    /// Notes that it is durable up to a position.
    pub(crate) fn is_durable(&self, end: u64) {
        self.durable.fetch_max(end, Ordering::AcqRel);
    }

    /// Makes what has been appended durable, and returns how far: it counts once the file's name is durable too.
    pub(crate) fn sync(&self) -> io::Result<u64> {
        let tail = self.tail();
        self.file.sync_data()?;
        Ok(tail)
    }

    pub(crate) fn read(&self, position: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, position)
    }

    /// Whether data are those of a record in it.
    pub(crate) fn matches(&self, keys: &JournalKeys, record: &Record, data: &[u8]) -> bool {
        let mut hasher = keys.data_hasher(&self.home);
        hasher.update(data);
        record.kind != RecordKind::Write || hasher.finalize() == record.data_checksum
    }

    /// Says in the segment that no more records follow.
    pub(crate) fn end_here(&self, keys: &JournalKeys) -> io::Result<()> {
        let Home::Segment(id) = self.home else { return Ok(()) };
        let header = SegmentHeader { id, end: Some(self.tail()) }.encode(keys);
        self.file.write_all_at(&[&header], HEADER_BYTES as u64)
    }

    /// Says in the segment where its records are, which must be durable: who finds a footer does not look at them again.
    /// Without room for one it has none, and is read through when it is found again.
    pub(crate) fn close(&self, keys: &JournalKeys, entries: &[FooterEntry]) -> io::Result<()> {
        let Home::Segment(id) = self.home else { return Ok(()) };
        let end = self.tail();
        debug_assert!(self.durable() >= end, "a footer says what cannot be lost any more");
        self.file.write_all_at(&[&encode_footer(keys, &id, end, entries)], end)?;
        self.end_here(keys)?;
        self.has_footer.store(true, Ordering::Release);
        Ok(())
    }
}

/// Where segments lie, and the files that are kept to be used again: what they have allocated need not be again.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    pub(crate) medium: Arc<dyn Medium>,
    pub(crate) directory: PathBuf,
    /// How long a segment may grow, in bytes.
    pub(crate) segment_bytes: u64,
    /// How many files are kept.
    pool_files: usize,
    free: Mutex<Vec<(PathBuf, Arc<dyn File>)>>,
}

impl SegmentFiles {
    pub(crate) fn new(medium: Arc<dyn Medium>, directory: PathBuf, segment_bytes: u64, pool_bytes: u64) -> Self {
        let segment_bytes = segment_bytes.clamp(4096, 1 << 30);
        let pool_files = usize::try_from(pool_bytes / segment_bytes).unwrap_or(0);
        Self { medium, directory, segment_bytes, pool_files, free: Mutex::default() }
    }

    /// The room on their file system, where it can be told.
    pub(crate) fn room(&self) -> Option<Room> {
        self.medium.room(&self.directory).ok()
    }

    /// Makes a new segment, in a file that was used before where there is one. Nobody knows whether its name is durable:
    /// who had the file before may never have made it so.
    pub(crate) fn make(&self, id: SegmentId, keys: &JournalKeys) -> io::Result<Segment> {
        let free = self.free.lock().pop();
        let (path, file, used_bytes) = match free {
            Some((path, file)) => {
                let used_bytes = file.length().unwrap_or(0);
                (path, file, used_bytes)
            }
            None => {
                let path = self.directory.join(random_name()?);
                let file = self.medium.open(&path, Open::New)?;
                (path, file, 0)
            }
        };
        let header = SegmentHeader { id, end: None }.encode(keys);
        file.write_all_at(&[&header, &header], 0).inspect_err(|_| self.delete(&path))?;
        Ok(Segment { used_bytes, ..Segment::new(Home::Segment(id), path, file) })
    }

    /// Gives a segment's file back that nothing refers to any more, no durable record either. Whoever still reads it goes
    /// on.
    pub(crate) fn give_back(&self, segment: Arc<Segment>) {
        let path = segment.path.clone();
        match Arc::into_inner(segment) {
            // What was moved has the numbers that it had. If power fails before the file's next owner makes it durable, a
            // recovery may believe its old footer: as long as nobody writes to the file, rightly.
            Some(segment) if matches!(segment.home, Home::Segment(_)) && !segment.emptied.load(Ordering::Acquire) => {
                // A name is never changed: of several changes that are not durable, any may be lost. Whose it is says
                // the header.
                if segment.file.write_all_at(&[&[0; SEGMENT_HEAD_BYTES]], 0).is_ok() {
                    self.keep(segment.path, segment.file);
                } else {
                    self.delete(&path);
                }
            }
            _ => self.delete(&path),
        }
    }

    /// Keeps a file whose header says that it belongs to nobody, unless there are enough.
    pub(crate) fn keep(&self, path: PathBuf, file: Arc<dyn File>) {
        let lengths = self.segment_bytes / 2..=self.segment_bytes.saturating_mul(2);
        let is_worth_it = file.length().is_ok_and(|length| lengths.contains(&length));
        let mut pool = self.free.lock();
        if is_worth_it && pool.len() < self.pool_files {
            return pool.push((path, file));
        }
        drop(pool);
        self.delete(&path);
    }

    /// Deletes the files that are kept, and says whether there were any.
    pub(crate) fn give_room(&self) -> bool {
        let free = std::mem::take(&mut *self.free.lock());
        free.iter().for_each(|(path, _)| self.delete(path));
        !free.is_empty()
    }

    /// Deletes a file that nothing refers to. One that stays is tried again when the volumes are next opened.
    pub(crate) fn delete(&self, path: &Path) {
        match self.medium.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "could not delete a file that is not needed any more");
            }
            _ => {}
        }
    }
}

/// What a new file is called: its header says what it is.
fn random_name() -> io::Result<String> {
    let mut number = [0; 8];
    getrandom::fill(&mut number).map_err(io::Error::other)?;
    Ok(format!("{:016x}.{SEGMENT_EXTENSION}", u64::from_le_bytes(number)))
}

#[cfg(test)]
mod tests {
    use types::JournalId;

    use super::*;

    fn id(number: u32) -> SegmentId {
        SegmentId { journal: JournalId([0xa5; 16]), number, generation: [u8::try_from(number).unwrap(); 16] }
    }

    #[test]
    fn files_are_used_again_when_nobody_reads_them() {
        let directory = tempfile::tempdir().unwrap();
        let files = SegmentFiles::new(medium::Host::shared(), directory.path().to_owned(), 4096, 8192);
        let keys = JournalKeys::new(&[1; 32]);
        let make = |number| {
            let segment = files.make(id(number), &keys).unwrap();
            segment.file.set_length(4096).unwrap();
            Arc::new(segment)
        };
        let names = || std::fs::read_dir(directory.path()).unwrap().count();
        let first = make(1);
        assert_eq!(first.padding(1000).len(), 0, "a new file has nothing to be read");
        let reader = first.clone();
        files.give_back(first);
        assert_eq!(names(), 0, "it loses its name at once");
        reader.read(0, &mut [0; 64]).unwrap();
        let kept: Vec<_> = (2..6).map(make).collect();
        kept.into_iter().for_each(|segment| files.give_back(segment));
        assert_eq!(names(), 2, "no more are kept than the bound says");
        let again = make(9);
        assert_eq!(names(), 2, "a kept file is used again");
        assert_eq!([1000, 4095, 4096, 4100].map(|end| again.padding(end).len()), [3096, 1, 0, 0]);
        assert!(again.path.exists());
        assert!(files.give_room() && !files.give_room());
        assert_eq!(names(), 1);
    }
}

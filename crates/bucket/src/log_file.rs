//! A bucket's log in a file: append-only, each append durable and all or nothing.
//!
//! A file is a header of 16 bytes and frames, one per append; `docs/format.md` has the layout. A crash can leave part
//! of the last frame, which no append has acknowledged: it is cut off when the file is opened. A bad frame with a
//! sound one after it is damage, not a torn tail, and is never cut. The entries are returned as they were written:
//! [`crate::Log::replay`] judges them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use format::entry::SignedEntry;

use crate::fork::ForkEvidence;
use crate::signer::sync_directory_of;

/// What a log file begins with: magic, version, and room.
const HEADER: [u8; 16] = *b"brantlog\x01\0\0\0\0\0\0\0";

/// A frame's header: the length of its body, 4 bytes, and a checksum of that length, the offset and the body.
const FRAME_HEADER_BYTES: usize = 4 + 16;

/// The longest body of a frame, in bytes.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The context of the frames' checksums.
const CHECKSUM_CONTEXT: &str = "brant 2026-11 log file frame v1";

/// Why a log file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The operating system refused.
    #[error("could not {operation} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a log file.
    #[error("{} is not a log file", .0.display())]
    NotALog(PathBuf),
    /// Made by a later version of brant.
    #[error("{} is a log file of version {version}, newer than this brant understands", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// Damaged before its end.
    #[error("the log file {} is damaged at offset {offset}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, in bytes.
        offset: u64,
    },
    /// More than one append may hold.
    #[error("{length} bytes are too many for one append to a log file")]
    TooLong {
        /// The length of the frame's body, in bytes.
        length: usize,
    },
    /// An earlier append failed half-way: only opening the file anew tells what it holds.
    #[error("the log file {} failed earlier and must be opened again", .0.display())]
    Failed(PathBuf),
}

/// An open log file. One process at a time may have it.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    end: u64,
    cut_bytes: u64,
    failed: bool,
}

impl LogFile {
    /// Opens a log file, or makes an empty one, and returns the entries in it; cuts off a torn tail.
    ///
    /// # Errors
    /// The file cannot be used, is something else, or is damaged before its end.
    pub fn open(path: &Path) -> Result<(Self, Vec<SignedEntry>), LogFileError> {
        let io = |operation| move |source| LogFileError::Io { operation, path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(io("open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read"))?;
        if bytes.len() < HEADER.len() && HEADER.starts_with(&bytes) {
            // New, or never finished: no append can have been acknowledged.
            file.seek(SeekFrom::Start(0)).map_err(io("write"))?;
            file.write_all(&HEADER).map_err(io("write"))?;
            file.sync_all().map_err(io("write"))?;
            sync_directory_of(path).map_err(io("write"))?;
            bytes = HEADER.to_vec();
        }
        check_header(path, &bytes)?;
        let mut entries = Vec::new();
        let mut end = HEADER.len();
        while let Some((body, next)) = frame_at(&bytes, end) {
            let damaged = || LogFileError::Damaged { path: path.to_owned(), offset: end as u64 };
            entries.extend(decode_body(body).ok_or_else(damaged)?);
            end = next;
        }
        let cut_bytes = (bytes.len() - end) as u64;
        if cut_bytes > 0 {
            if (end + 1..bytes.len()).any(|offset| frame_at(&bytes, offset).is_some()) {
                return Err(LogFileError::Damaged { path: path.to_owned(), offset: end as u64 });
            }
            tracing::warn!(path = %path.display(), cut_bytes, "cut off the torn tail of a log file");
            file.set_len(end as u64).map_err(io("cut"))?;
            file.sync_all().map_err(io("cut"))?;
        }
        Ok((Self { path: path.to_owned(), file, end: end as u64, cut_bytes, failed: false }, entries))
    }

    /// Adds entries, all or none; they are durable when this returns.
    ///
    /// # Errors
    /// They could not be written. Whether they are there is known after opening the file again.
    pub fn append(&mut self, entries: &[SignedEntry]) -> Result<(), LogFileError> {
        if self.failed {
            return Err(LogFileError::Failed(self.path.clone()));
        }
        if entries.is_empty() {
            return Ok(());
        }
        let frame = encode_frame(self.end, entries)?;
        let written = self.file.write_all_at(&frame, self.end).and_then(|()| self.file.sync_data());
        self.failed = written.is_err();
        written.map_err(|source| self.io("append to", source))?;
        self.end += frame.len() as u64;
        Ok(())
    }

    /// Puts other entries in the place of all that the file holds, atomically and durably: after a rebase.
    ///
    /// # Errors
    /// They could not be written; then the file is as it was.
    pub fn replace(&mut self, entries: &[SignedEntry]) -> Result<(), LogFileError> {
        let mut bytes = HEADER.to_vec();
        if !entries.is_empty() {
            bytes.extend(encode_frame(HEADER.len() as u64, entries)?);
        }
        let file = self.write_beside("new", &bytes, |temporary| fs::rename(temporary, &self.path))?;
        (self.file, self.end, self.failed) = (file, bytes.len() as u64, false);
        Ok(())
    }

    /// Keeps the evidence of a fork in a file beside this one, and returns its path.
    ///
    /// # Errors
    /// It could not be written.
    pub fn keep_evidence(&self, evidence: &ForkEvidence) -> Result<PathBuf, LogFileError> {
        let bytes = evidence.encode();
        let digest = blake3::hash(&bytes);
        // Named by what it holds: the same fork seen again is the same file.
        let place = beside(&self.path, &format!("fork-{}-{}", evidence.sequence, &digest.to_hex()[..16]));
        if fs::read(&place).is_ok_and(|kept| kept == bytes) {
            return Ok(place);
        }
        self.write_beside("fork-new", &bytes, |temporary| fs::rename(temporary, &place))?;
        Ok(place)
    }

    /// How many bytes of a torn tail were cut off when the file was opened.
    #[must_use]
    pub const fn cut_bytes(&self) -> u64 {
        self.cut_bytes
    }

    fn write_beside(
        &self,
        suffix: &str,
        bytes: &[u8],
        place: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<File, LogFileError> {
        let temporary = beside(&self.path, suffix);
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            place(&temporary)?;
            sync_directory_of(&self.path)?;
            Ok(file)
        };
        write().map_err(|source| LogFileError::Io { operation: "write", path: temporary.clone(), source })
    }

    fn io(&self, operation: &'static str, source: io::Error) -> LogFileError {
        LogFileError::Io { operation, path: self.path.clone(), source }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    PathBuf::from(name)
}

fn check_header(path: &Path, bytes: &[u8]) -> Result<(), LogFileError> {
    let (magic, version) = (bytes.get(..8), bytes.get(8..12).and_then(|version| version.try_into().ok()));
    match (magic, version.map(u32::from_le_bytes)) {
        (Some(b"brantlog"), Some(version)) if version > 1 => {
            Err(LogFileError::Newer { path: path.to_owned(), version })
        }
        _ if bytes.starts_with(&HEADER) => Ok(()),
        _ => Err(LogFileError::NotALog(path.to_owned())),
    }
}

/// The sound frame at an offset: its body, and where the next begins.
fn frame_at(bytes: &[u8], offset: usize) -> Option<(&[u8], usize)> {
    let frame = bytes.get(offset..)?;
    let length = u32::from_le_bytes(frame.get(..4)?.try_into().ok()?) as usize;
    let body = frame.get(FRAME_HEADER_BYTES..)?.get(..length)?;
    // An empty body would make a run of zero bytes look nearly like a frame: none is written.
    let sound = length > 0 && length <= MAX_BODY_BYTES && frame[4..FRAME_HEADER_BYTES] == checksum(offset as u64, body);
    sound.then_some((body, offset + FRAME_HEADER_BYTES + length))
}

fn encode_frame(offset: u64, entries: &[SignedEntry]) -> Result<Vec<u8>, LogFileError> {
    let body = format::to_canonical(&entries.to_vec());
    let length = body.len();
    let field = u32::try_from(length).ok().filter(|_| length <= MAX_BODY_BYTES);
    let field = field.ok_or(LogFileError::TooLong { length })?;
    Ok([&field.to_le_bytes()[..], &checksum(offset, &body), &body].concat())
}

fn decode_body(body: &[u8]) -> Option<Vec<SignedEntry>> {
    format::from_canonical(body, MAX_BODY_BYTES).ok()
}

fn checksum(offset: u64, body: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT);
    hasher.update(&offset.to_le_bytes()).update(&(body.len() as u64).to_le_bytes()).update(body);
    let mut checksum = [0; 16];
    hasher.finalize_xof().fill(&mut checksum);
    checksum
}

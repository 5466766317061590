//! Chunks that need not be written, as the target can share the room of the file in which they lie.
//!
//! Invariant: what is shared is checked where it arrived, as the file may be damaged, or hollowed at that moment. What is
//! wrong there is cleared, and written as everything else.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use medium::{File, cannot_share};
use types::{CHUNK_BYTES, ChunkId};
use volume::{BlockDevice, DeviceError};

use super::MaterializeError;

const CHUNK: u64 = CHUNK_BYTES as u64;

/// Chunks that lie one behind the other both in the disk and in a file.
#[derive(Debug)]
pub(super) struct Run {
    /// Where they are in the disk.
    pub(super) range: Range<u64>,
    chunks: Vec<ChunkId>,
    file: Arc<dyn File>,
    offset: u64,
}

impl Run {
    /// Has an empty part of a file share them, and says whether that was possible; else it is empty again.
    pub(super) fn share(&self, target: &dyn File) -> Result<bool, MaterializeError> {
        let failed = || MaterializeError::io("share the room of the store");
        let length = self.range.end - self.range.start;
        match target.clone_range(self.range.start, &*self.file, self.offset, length) {
            Ok(()) if self.is_right(target).map_err(failed())? => return Ok(true),
            Err(error) if !cannot_share(&error) && error.kind() != io::ErrorKind::UnexpectedEof => {
                return Err(failed()(error));
            }
            _ => {}
        }
        target.punch(self.range.start, length).map_err(failed())?;
        Ok(false)
    }

    fn is_right(&self, target: &dyn File) -> io::Result<bool> {
        let mut buffer = vec![0; CHUNK_BYTES];
        for (offset, chunk) in (self.range.start..).step_by(CHUNK_BYTES).zip(&self.chunks) {
            target.read_exact_at(&mut buffer, offset)?;
            if format::chunk_id(&buffer) != *chunk {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What of a range of a disk lies in files as it is, in order.
pub(super) fn runs(device: &dyn BlockDevice, range: Range<u64>) -> Result<Vec<Run>, DeviceError> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = range.start.next_multiple_of(CHUNK);
    while at + CHUNK <= range.end {
        if let Some(found) = device.chunk_in_file(at)? {
            let follows = |run: &&mut Run| {
                let place = run.offset + (at - run.range.start);
                run.range.end == at && Arc::ptr_eq(&run.file, &found.file) && place == found.offset
            };
            match runs.last_mut().filter(follows) {
                Some(last) => {
                    last.range.end += CHUNK;
                    last.chunks.push(found.chunk);
                }
                None => {
                    let (range, chunks) = (at..at + CHUNK, vec![found.chunk]);
                    runs.push(Run { range, chunks, file: found.file, offset: found.offset });
                }
            }
        }
        at += CHUNK;
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use medium::Host;

    use super::*;

    #[test]
    fn what_is_wrong_where_it_arrived_is_cleared() {
        let (source, target) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let content: Vec<u8> = (0..3 * CHUNK_BYTES).map(|at| (at / 1000).to_le_bytes()[0] | 1).collect();
        source.write_all_at(&content, 4096).unwrap();
        target.set_len(8 * CHUNK).unwrap();
        let (source, target) = (Host::adopt(source), Host::adopt(target));
        let chunks: Vec<ChunkId> = content.chunks(CHUNK_BYTES).map(format::chunk_id).collect();
        let run = |offset, chunks: &[ChunkId]| Run {
            range: 2 * CHUNK..5 * CHUNK,
            chunks: chunks.to_vec(),
            file: Arc::clone(&source),
            offset,
        };
        let read = || {
            let mut bytes = vec![1; 8 * CHUNK_BYTES];
            target.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let damaged = [chunks[0], chunks[1], ChunkId([7; 32])];
        assert!(!run(4096, &damaged).share(&*target).unwrap());
        assert!(read() == vec![0; 8 * CHUNK_BYTES]);
        assert!(!run(8192, &chunks).share(&*target).unwrap(), "beyond the end of the file");
        assert!(read() == vec![0; 8 * CHUNK_BYTES]);
        assert!(run(4096, &chunks).share(&*target).unwrap());
        assert!(read()[2 * CHUNK_BYTES..5 * CHUNK_BYTES] == content);
    }
}

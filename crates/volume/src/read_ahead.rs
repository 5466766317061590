//! Read-ahead of what is not here: a guest that reads on where it read before will want what follows, and need not wait
//! for the network again at each request.
//!
//! Only reads that waited are looked at, so it costs nothing once the data are here. What is fetched ahead comes in bulk,
//! behind everything that a guest waits for.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use store::Urgency;
use tokio::sync::Semaphore;

use crate::base::{Absent, CHUNK};
use crate::device::DeviceError;
use crate::locks::Mutex;
use crate::reading::off_the_runtime;
use crate::stack::Stack;

/// How many places a guest may be reading on at.
const STREAMS: usize = 16;

/// The most that is fetched ahead at one place, in chunks.
const MAX_WINDOW: u64 = 16;

/// How many chunks a guest may pass over and still be reading on.
const MAX_GAP: u64 = 2;

/// How many windows of one disk are fetched at once.
const WINDOWS: usize = 4;

/// How long a window is waited for: who needs it later asks for it again.
const PATIENCE: Duration = Duration::from_secs(10);

/// The places where a guest may read on.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    /// The one that was used last in front.
    streams: Mutex<VecDeque<Stream>>,
    windows: Arc<Semaphore>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stream {
    /// The first chunk that was neither read nor fetched ahead.
    next: u64,
    /// How many chunks were fetched ahead last.
    window: u64,
}

impl Default for ReadAhead {
    fn default() -> Self {
        Self { streams: Mutex::new(VecDeque::with_capacity(STREAMS)), windows: Arc::new(Semaphore::new(WINDOWS)) }
    }
}

impl ReadAhead {
    /// Notes a read that has to wait, and says which chunks to fetch ahead, which may be none.
    fn note(&self, chunks: &Range<u64>) -> Range<u64> {
        let mut streams = self.streams.lock();
        let reads_on = |stream: &Stream| {
            (stream.next..=stream.next + MAX_GAP).contains(&chunks.start) || chunks.contains(&stream.next)
        };
        let window = match streams.iter().position(reads_on).and_then(|place| streams.remove(place)) {
            Some(stream) => (stream.window * 2).clamp(1, MAX_WINDOW),
            None => 0,
        };
        let ahead = chunks.end..chunks.end + window;
        streams.truncate(STREAMS - 1);
        streams.push_front(Stream { next: ahead.end, window });
        ahead
    }

    /// Fetches what will be wanted next, if the read of these bytes looks as if anything will. Needs a runtime.
    pub(crate) fn begin(&self, stack: &Arc<Stack>, offset: u64, length: usize) {
        if length == 0 || stack.base.origin.is_none() {
            return;
        }
        let chunks = offset / CHUNK..(offset + length as u64).div_ceil(CHUNK);
        let ahead = self.note(&chunks);
        let ahead = ahead.start..ahead.end.min(stack.base.size_bytes.div_ceil(CHUNK));
        if ahead.is_empty() {
            return;
        }
        let Ok(permit) = self.windows.clone().try_acquire_owned() else { return };
        let stack = stack.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, fetch(stack, ahead)).await {
                tracing::debug!(%error, "nothing was fetched ahead");
            }
        });
    }
}

/// Brings chunks, and the nodes on the way to them.
async fn fetch(stack: Arc<Stack>, chunks: Range<u64>) -> Result<(), DeviceError> {
    // A node of each level, then the chunks.
    for _ in 0..=format::node::MAX_LEVELS {
        let (looked_in, range) = (stack.clone(), chunks.clone());
        let absent = off_the_runtime(move || looked_in.absent_chunks(range)).await??;
        stack.fetch(&absent, Urgency::Bulk).await?;
        if absent.iter().all(|absent| matches!(absent, Absent::Chunk(..))) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_on_gets_more_and_more_ahead() {
        let ahead = ReadAhead::default();
        assert!(ahead.note(&(10..11)).is_empty());
        assert_eq!(ahead.note(&(11..12)), 12..13);
        assert_eq!(ahead.note(&(13..15)), 15..17);
        // Nothing was fetched of what was passed over.
        assert_eq!(ahead.note(&(19..20)), 20..24);
        assert_eq!(ahead.note(&(24..25)), 25..33);
        assert_eq!(ahead.note(&(33..34)), 34..50);
        assert_eq!(ahead.note(&(50..51)), 51..67);
    }

    #[test]
    fn who_jumps_gets_nothing_ahead() {
        let ahead = ReadAhead::default();
        for chunk in (0..1000).step_by(10) {
            assert!(ahead.note(&(chunk..chunk + 1)).is_empty(), "{chunk}");
        }
        // Nor who reads backwards.
        for chunk in (2000..2100).rev() {
            assert!(ahead.note(&(chunk..chunk + 1)).is_empty(), "{chunk}");
        }
    }

    #[test]
    fn many_read_on_at_once() {
        let ahead = ReadAhead::default();
        for step in 0..2 {
            for stream in 0..STREAMS as u64 {
                let chunk = stream * 1000 + step;
                let range = ahead.note(&(chunk..chunk + 1));
                assert_eq!(range.is_empty(), step == 0, "{stream} {step}");
            }
        }
    }
}

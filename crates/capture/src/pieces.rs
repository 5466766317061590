//! Long disks in pieces: planning what to read, and working on the pieces with several threads in order.
//!
//! Everything is bounded: as many pieces are under way as there are threads, and a window of results waits at most.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use types::CHUNK_BYTES;

/// The longest piece of data, in bytes: large enough that a request's cost vanishes, small enough for the CPU's cache.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;

/// How many pieces may be finished, or under way, before the first of them has been collected.
const WINDOW: usize = 64;

/// A part of a disk, in whole chunks except at the disk's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// Whether it is known to be zero; else it is at most [`PIECE_BYTES`] long.
    pub(crate) zero: bool,
}

/// Takes pieces one by one, and says whether it wants more.
pub(crate) type Feed<'f> = &'f dyn Fn(Piece) -> bool;

/// Makes pieces of extents that come from left to right: data is widened to whole chunks, what is left is zero.
pub(crate) struct Planner<'f> {
    size_bytes: u64,
    /// Where the next extent begins.
    position: u64,
    /// Up to where pieces were made.
    planned: u64,
    feed: Feed<'f>,
}

impl<'f> Planner<'f> {
    pub(crate) fn new(size_bytes: u64, feed: Feed<'f>) -> Self {
        Self { size_bytes, position: 0, planned: 0, feed }
    }

    /// Where the next extent begins, while there is one.
    pub(crate) fn next(&self) -> Option<u64> {
        (self.position < self.size_bytes).then_some(self.position)
    }

    /// Adds an extent; false when no more is wanted.
    pub(crate) fn add(&mut self, length: u64, zero: bool) -> bool {
        let chunk = CHUNK_BYTES as u64;
        let begin = (self.position / chunk * chunk).max(self.planned);
        self.position = (self.position + length).min(self.size_bytes);
        if zero {
            return true;
        }
        let end = self.position.next_multiple_of(chunk).min(self.size_bytes);
        let mut more = self.zero_until(begin);
        while more && self.planned < end {
            let next = ((self.planned / PIECE_BYTES + 1) * PIECE_BYTES).min(end);
            more = (self.feed)(Piece { offset: self.planned, length: next - self.planned, zero: false });
            self.planned = next;
        }
        more
    }

    /// Makes the last piece after the last extent.
    pub(crate) fn finish(mut self) {
        self.zero_until(self.size_bytes);
    }

    fn zero_until(&mut self, end: u64) -> bool {
        if end <= self.planned {
            return true;
        }
        let piece = Piece { offset: self.planned, length: end - self.planned, zero: true };
        self.planned = end;
        (self.feed)(piece)
    }
}

type Slot<T> = (Piece, SyncSender<T>);

/// Works on pieces with several threads, and collects the results on this one in the order of the pieces.
///
/// `plan` feeds the pieces; its error comes last. Once `collect` returns, the rest stops.
pub(crate) fn in_order<T, E, R>(
    threads: usize,
    plan: impl FnOnce(Feed<'_>) -> Result<(), E> + Send,
    work: impl Fn(Piece) -> Result<T, E> + Sync,
    collect: impl FnOnce(&mut dyn Iterator<Item = Result<T, E>>) -> R,
) -> R
where
    T: Send,
    E: Send,
{
    let (result_sender, results) = sync_channel::<Receiver<Result<T, E>>>(WINDOW);
    let (work_sender, queue) = sync_channel::<Slot<Result<T, E>>>(threads);
    let (queue, work) = (&Mutex::new(queue), &work);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let feed = |piece| {
                let (sender, receiver) = sync_channel(1);
                result_sender.send(receiver).is_ok() && work_sender.send((piece, sender)).is_ok()
            };
            if let Err(error) = plan(&feed) {
                let (sender, receiver) = sync_channel(1);
                // Where nobody collects any more, nobody wants to know.
                let _: Result<(), _> = sender.send(Err(error));
                let _: Result<(), _> = result_sender.send(receiver);
            }
        });
        for _ in 0..threads {
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((piece, sender)) = next else { return };
                    let _: Result<(), _> = sender.send(work(piece));
                }
            });
        }
        // A worker that panicked ends the results; the scope then passes the panic on.
        let mut results = results.into_iter().map_while(|result| result.recv().ok());
        collect(&mut results)
    })
}

/// How many threads work on pieces where so many are useful besides the processors.
pub(crate) fn threads(useful: usize) -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).max(useful).clamp(1, 32)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const CHUNK: u64 = CHUNK_BYTES as u64;

    fn plan(size_bytes: u64, extents: &[(u64, bool)]) -> Vec<(u64, u64, bool)> {
        let pieces = RefCell::new(Vec::new());
        let feed = |piece: Piece| {
            pieces.borrow_mut().push((piece.offset, piece.length, piece.zero));
            true
        };
        let mut planner = Planner::new(size_bytes, &feed);
        for (length, zero) in extents {
            assert!(planner.add(*length, *zero));
        }
        assert_eq!(planner.next(), None);
        planner.finish();
        pieces.into_inner()
    }

    #[test]
    fn data_is_widened_to_chunks_and_split_and_the_rest_is_zero() {
        let size = 5 * PIECE_BYTES + 512;
        let extents = [(CHUNK + 512, true), (512, false), (512, true), (512, false), (3 * CHUNK, true)];
        let rest = size - extents.iter().map(|extent| extent.0).sum::<u64>();
        let pieces = plan(size, &[&extents[..], &[(rest - 512, true), (512, false)]].concat());
        let tail = 5 * PIECE_BYTES;
        assert_eq!(
            pieces,
            [(0, CHUNK, true), (CHUNK, CHUNK, false), (2 * CHUNK, tail - 2 * CHUNK, true), (tail, 512, false)]
        );
        assert_eq!(
            plan(2 * PIECE_BYTES, &[(CHUNK, true), (2 * PIECE_BYTES - CHUNK, false)]),
            [(0, CHUNK, true), (CHUNK, PIECE_BYTES - CHUNK, false), (PIECE_BYTES, PIECE_BYTES, false)]
        );
        assert_eq!(plan(1024, &[(1024, true)]), [(0, 1024, true)]);
    }

    #[test]
    fn results_come_in_order_and_errors_stop_the_rest() {
        let plan = |feed: Feed<'_>| {
            for index in 0..1000 {
                if !feed(Piece { offset: index, length: 1, zero: false }) {
                    return Ok(());
                }
            }
            Err(1000)
        };
        let all = in_order(3, plan, |piece| Ok(piece.offset), |results| results.collect::<Vec<_>>());
        assert_eq!(all, (0..1000).map(Ok).chain([Err(1000)]).collect::<Vec<_>>());
        let fail = |piece: Piece| if piece.offset == 500 { Err(500) } else { Ok(()) };
        let first = in_order(3, plan, fail, |results| results.filter_map(Result::err).next());
        assert_eq!(first, Some(500));
    }
}

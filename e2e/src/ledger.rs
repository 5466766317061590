//! A writer that knows which of its writes were answered, for disks that change hands.
//!
//! It writes the numbers 1, 2, 3, … one after the other, each into the next of a few blocks, so that any state of the disk tells up to
//! which number it has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use testkit::wait;

use crate::{connect, read_disk};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// The writer.
#[derive(Debug)]
pub struct Ledger {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Ledger {
    /// Begins behind a number that is on the disk already: 0 where there is none.
    #[must_use]
    pub fn start(uri: &str, behind: u64) -> Self {
        let (answered, stop) = (Arc::new(AtomicU64::new(behind)), Arc::new(AtomicBool::new(false)));
        let (uri, counting, stopping) = (uri.to_owned(), Arc::clone(&answered), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let disk = connect(&uri)?;
            for number in behind + 1.. {
                if stopping.load(Ordering::Acquire) {
                    break;
                }
                let block = number.to_le_bytes().repeat(BLOCK / 8);
                disk.write_at(number % BLOCKS * BLOCK as u64, &block)?;
                counting.store(number, Ordering::Release);
            }
            Ok(())
        });
        Self { answered, stop, thread }
    }

    /// The last number that was answered.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Acquire)
    }

    /// Waits until more of them were answered, and returns the last.
    ///
    /// # Errors
    /// When the writer has ended, or none is answered in time.
    pub fn goes_on(&self, further: u64) -> Result<u64> {
        let wanted = self.answered() + further;
        wait::until("further writes are answered", || {
            if self.thread.is_finished() && self.answered() < wanted {
                bail!("a write failed behind {}", self.answered());
            }
            Ok((self.answered() >= wanted).then_some(()))
        })?;
        Ok(self.answered())
    }

    /// Ends, whether the disk is still there or not; the last number that was answered.
    ///
    /// # Panics
    /// When the writer has panicked.
    #[must_use]
    pub fn end(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        // It may have ended with an error, as the disk has gone.
        let _ = self.thread.join().expect("the writer panicked");
        self.answered.load(Ordering::Acquire)
    }

    /// Waits until it has ended by itself, as the disk has gone; the last number that was answered.
    ///
    /// # Errors
    /// When it goes on.
    pub fn ended(self) -> Result<u64> {
        wait::until("the writer has ended", || Ok(self.thread.is_finished().then_some(())))?;
        Ok(self.end())
    }
}

/// Up to which number a disk has come; an error where it is not what any number has left.
///
/// # Errors
/// Where it mixes several states.
pub fn come_to(uri: &str) -> Result<u64> {
    let disk = read_disk(uri)?;
    let number = |block: u64| -> Result<u64> {
        let at = usize::try_from(block)? * BLOCK;
        let words: Vec<u64> = disk.0[at..at + BLOCK]
            .chunks_exact(8)
            .map(|word| word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word)))
            .collect();
        let first = *words.first().context("a block")?;
        ensure!(words.iter().all(|word| *word == first), "the block {block} is torn");
        Ok(first)
    };
    let found = (0..BLOCKS).map(number).collect::<Result<Vec<_>>>()?;
    let last = found.iter().copied().max().unwrap_or(0);
    for (block, number) in (0..BLOCKS).zip(&found) {
        // The latest number up to `last` that belongs into this block.
        let distance = (last + BLOCKS - block) % BLOCKS;
        let expected = last.saturating_sub(distance);
        ensure!(*number == expected, "the block {block} has {number} instead of {expected}: of {last}");
    }
    Ok(last)
}

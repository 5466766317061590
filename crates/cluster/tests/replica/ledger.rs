//! What was written to a disk, in order, and what of it was answered and made durable.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use volume::Durability;

pub(crate) const BLOCK: usize = 4096;
pub(crate) const BLOCKS: usize = 32;

/// What a crash may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Nothing that was answered.
    Kill,
    /// What was answered and not made durable.
    Power,
}

/// What a block was given, oldest first.
#[derive(Debug)]
struct History {
    values: Vec<u64>,
    /// Which of them were found after a crash, and not written.
    found: Vec<usize>,
    /// The last that was answered, and the last that was made durable.
    answered: usize,
    durable: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { values: vec![0], found: Vec::new(), answered: 0, durable: 0 }
    }
}

/// A disk's ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    blocks: Mutex<Vec<History>>,
    next: AtomicU64,
    /// How many writes were answered.
    pub(crate) answered: AtomicU64,
}

impl Default for Ledger {
    fn default() -> Self {
        let blocks = Mutex::new((0..BLOCKS).map(|_| History::default()).collect());
        Self { blocks, next: AtomicU64::new(1), answered: AtomicU64::new(0) }
    }
}

/// The bytes of a value: zero is zeroes.
pub(crate) fn block_of(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}

fn value_of(block: &[u8]) -> Option<u64> {
    let value = u64::from_le_bytes(*block.first_chunk()?);
    (block == block_of(value)).then_some(value)
}

impl Ledger {
    /// A write begins: its place in the block's history, and its value.
    pub(crate) fn begin(&self, block: usize, zero: bool) -> (usize, u64) {
        let value = if zero { 0 } else { self.next.fetch_add(1, Ordering::Relaxed) };
        let history = &mut self.blocks.lock().unwrap()[block];
        history.values.push(value);
        (history.values.len() - 1, value)
    }

    pub(crate) fn answered(&self, block: usize, place: usize, durability: Durability) {
        let history = &mut self.blocks.lock().unwrap()[block];
        history.answered = place;
        if durability == Durability::Power {
            history.durable = place;
        }
        self.answered.fetch_add(1, Ordering::AcqRel);
    }

    /// What a flush that begins now makes durable.
    pub(crate) fn before_flush(&self) -> Vec<usize> {
        self.blocks.lock().unwrap().iter().map(|history| history.answered).collect()
    }

    pub(crate) fn flushed(&self, before: &[usize]) {
        for (history, place) in self.blocks.lock().unwrap().iter_mut().zip(before) {
            history.durable = history.durable.max(*place);
        }
    }

    /// Checks that a disk has in each block what it must have after a crash, or something newer.
    pub(crate) fn check(&self, what: &str, content: &[u8], crash: Crash) -> Result<(), String> {
        for (number, (history, block)) in self.blocks.lock().unwrap().iter().zip(content.chunks(BLOCK)).enumerate() {
            let from = if crash == Crash::Kill { history.answered } else { history.durable };
            let allowed = &history.values[from..];
            match value_of(block) {
                Some(value) if allowed.contains(&value) => {}
                found => {
                    let History { values, answered, durable, .. } = history;
                    let last = &values[values.len().saturating_sub(8)..];
                    return Err(format!(
                        "{what} has {found:?} in block {number} after {crash:?}: {answered} answered, {durable} durable of {} that end with {last:?}",
                        values.len()
                    ));
                }
            }
        }
        Ok(())
    }

    /// How many answered writes of data a disk lacks that is some moment of the past: what zeroes a range is nothing to send.
    pub(crate) fn lost(&self, content: &[u8]) -> Result<u64, String> {
        let blocks = self.blocks.lock().unwrap();
        let lost = blocks.iter().zip(content.chunks(BLOCK)).map(|(history, block)| {
            let value = value_of(block).ok_or("a block mixes two writes")?;
            // Zeroes may be there more than once: the latest of them is meant.
            let place = history.values.iter().rposition(|other| *other == value).ok_or("a value was never written")?;
            let lacking = place + 1..history.answered + 1;
            let written = lacking.filter(|place| history.values[*place] != 0 && !history.found.contains(place));
            Ok(written.count() as u64)
        });
        lost.sum::<Result<u64, &str>>().map_err(str::to_owned)
    }

    /// A home goes on with what it found after a crash.
    pub(crate) fn found(&self, content: &[u8]) {
        for (history, block) in self.blocks.lock().unwrap().iter_mut().zip(content.chunks(BLOCK)) {
            history.found.push(history.values.len());
            history.values.push(value_of(block).unwrap());
        }
    }
}

//! Merging what someone else has of a log into what is known, and the evidence when the two cannot both be true.
//!
//! A log never branches. Where a writer signed two entries with one number on the same predecessor, nothing is merged:
//! both entries together prove what happened, to anyone.

use format::canonical::{CanonicalError, from_canonical, to_canonical};
use format::entry::{Entry, MAX_ENTRY_BYTES, SignedEntry};
use minicbor::{Decode, Encode};
use types::BucketId;

use crate::log::{Log, LogError, decode, verify_author};

/// What a merge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// How many entries are new; they are the log's last.
    pub added: u64,
}

/// Two entries at one place of one log, both signed by those who might write it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ForkEvidence {
    /// The bucket.
    #[n(0)]
    pub bucket: BucketId,
    /// The number that both entries have.
    #[n(1)]
    pub sequence: u64,
    /// The entry that was accepted here.
    #[n(2)]
    pub ours: SignedEntry,
    /// The entry that came later.
    #[n(3)]
    pub theirs: SignedEntry,
}

impl ForkEvidence {
    /// Encodes the evidence, for a file or a report.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        to_canonical(self)
    }

    /// Decodes evidence; [`Log::merge`] of the second entry checks it.
    ///
    /// # Errors
    /// Bytes that are too long or not canonical.
    pub fn decode(bytes: &[u8]) -> Result<Self, CanonicalError> {
        from_canonical(bytes, 2 * MAX_ENTRY_BYTES + 64)
    }
}

impl Log {
    /// Adds what is new in a run of entries that may overlap what is known.
    ///
    /// All or nothing: an error leaves the log as it was.
    ///
    /// # Errors
    /// [`LogError::Fork`] with the evidence where another signed entry stands at an accepted place;
    /// [`LogError::Previous`] where the logs differ before the first entry given (fetch from an earlier one, or from
    /// 0); [`LogError::Sequence`] where entries are missing between; [`LogError::Stale`] where all is known and ends
    /// before the log's head; and everything that makes an entry unacceptable.
    pub fn merge(&mut self, entries: &[SignedEntry]) -> Result<Merged, LogError> {
        let known = self.entries().len();
        let before = self.state.clone();
        let result = self.merge_run(entries);
        if result.is_err() {
            self.roll_back(known, before);
        }
        result
    }

    fn merge_run(&mut self, entries: &[SignedEntry]) -> Result<Merged, LogError> {
        let before = self.length();
        let mut next = None;
        for signed in entries {
            let entry = decode(self.bucket(), next.unwrap_or(before), signed)?;
            let sequence = entry.sequence;
            if let Some(expected) = next.filter(|expected| *expected != sequence) {
                return Err(LogError::Sequence { found: sequence, expected });
            }
            // A number that nobody can have counted to must not overflow ours.
            next = Some(sequence.saturating_add(1));
            match self.entries_from(sequence).first() {
                Some(known) if known.entry == signed.entry => {}
                Some(known) => {
                    let known = known.clone();
                    return Err(self.fork_or_worse(known, &entry, signed));
                }
                None => self.apply(signed.clone())?,
            }
        }
        match next {
            Some(end) if end < before => Err(LogError::Stale { offered: end - 1, known: before - 1 }),
            _ => Ok(Merged { added: self.length() - before }),
        }
    }

    /// Judges an entry that stands where another is known.
    fn fork_or_worse(&self, ours: SignedEntry, entry: &Entry, theirs: &SignedEntry) -> LogError {
        let (bucket, sequence) = (self.bucket(), entry.sequence);
        let follows = sequence.checked_sub(1).and_then(|before| self.hash_at(before)) == entry.previous;
        if !follows {
            return LogError::Previous { sequence };
        }
        // Who might write then: at the beginning only the bucket's own key.
        let state = match self.prefix(sequence) {
            Ok(log) => log.state,
            Err(LogError::Empty) => crate::state::State::default(),
            Err(error) => return error,
        };
        match verify_author(bucket, &state, entry, theirs) {
            Ok(()) => LogError::Fork(Box::new(ForkEvidence { bucket, sequence, ours, theirs: theirs.clone() })),
            Err(error) => error,
        }
    }
}

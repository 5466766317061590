//! What a writer does that lost the race, or worked offline: it signs its tentative entries again on the new head.
//!
//! An entry keeps its author, time and meaning; its number, predecessor and, for versions, the version change. An
//! entry that the new head already holds (the Indexer had accepted it, only the answer was lost) is not written twice.

use std::collections::{BTreeMap, BTreeSet};

use format::entry::{Action, Entry, SignedEntry};
use types::{Name, PublicKey};

use crate::log::{Log, LogError, decode};
use crate::signer::Signer;

/// A version that got another number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renumbered {
    /// The object.
    pub object: Name,
    /// Its number in the tentative entries.
    pub from: u64,
    /// Its number now.
    pub to: u64,
}

/// The outcome of a rebase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebased {
    /// The tentative entries on the new head: signed, not yet in the log, to be offered to the Indexer.
    pub entries: Vec<SignedEntry>,
    /// Versions whose number changed, in order.
    pub renumbered: Vec<Renumbered>,
    /// How many tentative entries fell away: accepted already, or without effect now.
    pub dropped: u64,
}

/// What identifies an entry wherever it stands: author, time and action, the version's number aside.
type Meaning = (PublicKey, u64, Vec<u8>);

impl Log {
    /// Merges `remote` into this log of accepted entries and signs `tentative` again on the new head.
    ///
    /// `self` must not hold the tentative entries ([`Log::prefix`] drops them). On success `self` holds all of
    /// `remote`, and the returned entries can be applied to it one after the other.
    ///
    /// # Errors
    /// As [`Log::merge`]; [`LogError::Writer`] where the signer wrote none of the tentative entries or may write no
    /// longer. Then the log is unchanged.
    pub fn rebase(
        &mut self,
        remote: &[SignedEntry],
        tentative: &[SignedEntry],
        signer: &Signer,
    ) -> Result<Rebased, LogError> {
        let (length, before) = (self.entries().len(), self.state.clone());
        let rebased = match self.merge(remote) {
            // What is remote may be all known, and shorter than what is known: then there is nothing to merge.
            Ok(_) | Err(LogError::Stale { .. }) => self.rebase_on_head(length as u64, tentative, signer),
            Err(error) => Err(error),
        };
        if rebased.is_err() {
            self.roll_back(length, before);
        }
        rebased
    }

    fn rebase_on_head(&self, base: u64, tentative: &[SignedEntry], signer: &Signer) -> Result<Rebased, LogError> {
        let mut accepted = self.meanings(base, tentative)?;
        let mut next = self.clone();
        let mut numbers = BTreeMap::new();
        let mut rebased = Rebased { entries: Vec::new(), renumbered: Vec::new(), dropped: 0 };
        for signed in tentative {
            let entry = decode(self.bucket(), next.length(), signed)?;
            if entry.author != signer.public_key() {
                return Err(LogError::Writer { sequence: entry.sequence, author: entry.author });
            }
            if let Some(places) = accepted.get_mut(&meaning(&entry))
                && let Some(number) = places.pop_first()
            {
                if let Action::Put { object, version, .. } = entry.action {
                    renumber(&mut rebased, &mut numbers, object, version, number);
                }
                rebased.dropped += 1;
                continue;
            }
            let action = match entry.action {
                Action::Put { object, version, snapshot, size_bytes, message } => {
                    let number = next.next_version(&object);
                    renumber(&mut rebased, &mut numbers, object.clone(), version, number);
                    Action::Put { object, version: number, snapshot, size_bytes, message }
                }
                Action::Retire { object, version } => {
                    let version = renumbered(&numbers, &object, version);
                    Action::Retire { object, version }
                }
                Action::Complete { object, version } => {
                    let version = renumbered(&numbers, &object, version);
                    Action::Complete { object, version }
                }
                other => other,
            };
            if next.state.is_idle(&action) {
                rebased.dropped += 1;
                continue;
            }
            rebased.entries.push(next.write(signer, action, entry.time_ms)?);
        }
        Ok(rebased)
    }

    /// The meanings of the entries from `base` on that could be tentative ones, with the version that each put, or 0.
    fn meanings(&self, base: u64, tentative: &[SignedEntry]) -> Result<BTreeMap<Meaning, BTreeSet<u64>>, LogError> {
        // Tentative entries may have been accepted before `base` was known here, but not before they were first based.
        let first = tentative.first().map(|signed| decode(self.bucket(), base, signed)).transpose()?;
        let from = first.map_or(base, |entry| entry.sequence.min(base));
        let mut meanings: BTreeMap<Meaning, BTreeSet<u64>> = BTreeMap::new();
        for (sequence, signed) in (from..).zip(self.entries_from(from)) {
            let entry = decode(self.bucket(), sequence, signed)?;
            let number = match entry.action {
                Action::Put { version, .. } => version,
                _ => sequence,
            };
            meanings.entry(meaning(&entry)).or_default().insert(number);
        }
        Ok(meanings)
    }
}

fn meaning(entry: &Entry) -> Meaning {
    let action = match entry.action.clone() {
        Action::Put { object, snapshot, size_bytes, message, .. } => {
            Action::Put { object, version: 0, snapshot, size_bytes, message }
        }
        other => other,
    };
    (entry.author, entry.time_ms, format::to_canonical(&action))
}

fn renumber(rebased: &mut Rebased, numbers: &mut BTreeMap<(Name, u64), u64>, object: Name, from: u64, to: u64) {
    if from != to {
        rebased.renumbered.push(Renumbered { object: object.clone(), from, to });
    }
    numbers.insert((object, from), to);
}

fn renumbered(numbers: &BTreeMap<(Name, u64), u64>, object: &Name, version: u64) -> u64 {
    numbers.get(&(object.clone(), version)).copied().unwrap_or(version)
}

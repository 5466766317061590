//! Packs that are about to be removed, and what of them does not count as present any more.
//!
//! Invariant: whoever asks whether an object is present, to count on it, asks under [`Condemned::ask`], and pins what is
//! under the same lock; a pack is condemned under the other side of that lock, and what was pinned before is kept. So an
//! answer that was given holds, and after the condemnation what is not kept is put anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::index::Entry;
use crate::Domain;

/// What of a condemned pack's objects changes.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What objects lose, by the places of their records.
    lost: HashMap<u32, Loss>,
    /// Domains that were added since, by place.
    added: Mutex<HashMap<u32, Vec<Domain>>>,
}

/// What an object loses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It is dead.
    All,
    /// It is not present in these domains any more.
    Domains(Vec<Domain>),
}

impl Verdict {
    pub(crate) fn new(lost: HashMap<u32, Loss>) -> Self {
        Self { lost, added: Mutex::default() }
    }

    /// The entry with the domains that it keeps; `None` where it is dead.
    pub(crate) fn apply(&self, entry: Entry) -> Option<Entry> {
        let lost = match self.lost.get(&entry.place) {
            None => return Some(entry),
            Some(Loss::All) => return None,
            Some(Loss::Domains(lost)) => lost,
        };
        let added = self.added.lock().unwrap_or_else(PoisonError::into_inner);
        let added = added.get(&entry.place).map_or(&[][..], Vec::as_slice);
        let mut domains = entry.domains;
        domains.retain(|domain| !lost.contains(domain) || added.contains(domain));
        (!domains.is_empty()).then_some(Entry { domains, ..entry })
    }
}

type Verdicts = BTreeMap<u32, Verdict>;

/// The condemned packs.
#[derive(Debug, Default)]
pub(crate) struct Condemned(RwLock<Verdicts>);

/// Keeps packs from being condemned while somebody counts on what they hold.
#[derive(Debug)]
pub(crate) struct Asking<'c>(RwLockReadGuard<'c, Verdicts>);

impl Condemned {
    /// To be held from finding an object to pinning it.
    pub(crate) fn ask(&self) -> Asking<'_> {
        Asking(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Condemns a pack: `judge` says what becomes of it, while nobody asks.
    pub(crate) fn condemn(&self, pack: u32, judge: impl FnOnce() -> Verdict) {
        let mut verdicts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let verdict = judge();
        verdicts.insert(pack, verdict);
    }

    /// Lets go of packs, which are gone, or stay.
    pub(crate) fn release(&self, packs: &[u32]) {
        let mut verdicts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        packs.iter().for_each(|pack| drop(verdicts.remove(pack)));
    }
}

impl Asking<'_> {
    /// Whether any pack is condemned.
    pub(crate) fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// The entry as it counts now; `None` where it is dead.
    pub(crate) fn apply(&self, entry: Entry) -> Option<Entry> {
        match self.0.get(&entry.pack) {
            Some(verdict) => verdict.apply(entry),
            None => Some(entry),
        }
    }

    /// Notes that an object of a condemned pack is present in one more domain.
    pub(crate) fn add(&self, entry: &Entry, domain: Domain) {
        if let Some(verdict) = self.0.get(&entry.pack).filter(|verdict| verdict.lost.contains_key(&entry.place)) {
            let mut added = verdict.added.lock().unwrap_or_else(PoisonError::into_inner);
            added.entry(entry.place).or_default().push(domain);
        }
    }
}

//! Packs that are about to be removed, and what of them does not count as present any more.
//!
//! Invariant: whoever asks whether an object is present, to count on it, asks under [`Condemned::ask`], and pins what is
//! under the same lock; a pack is condemned under the other side of that lock, and what was pinned before is kept. So an
//! answer that was given holds, and after the condemnation what is not kept is put anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use super::index::Entry;
use crate::Domain;

/// What of a condemned pack's objects changes.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// The places of the records of dead objects, ascending.
    dead: Arc<[u32]>,
    /// Domains in which objects are not present any more, by place.
    lost: HashMap<u32, Vec<Domain>>,
    /// Domains that were added since, by place.
    added: Mutex<HashMap<u32, Vec<Domain>>>,
}

impl Verdict {
    pub(crate) fn new(dead: Arc<[u32]>, lost: HashMap<u32, Vec<Domain>>) -> Self {
        Self { dead, lost, added: Mutex::default() }
    }

    /// The entry with the domains that it keeps; `None` where it is dead.
    pub(crate) fn apply(&self, entry: Entry) -> Option<Entry> {
        if self.dead.binary_search(&entry.place).is_ok() {
            return None;
        }
        let Some(lost) = self.lost.get(&entry.place) else { return Some(entry) };
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

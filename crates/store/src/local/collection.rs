//! Collection: packs of which little is live give their room back.
//!
//! For each pack, in this order: it is condemned, so that nobody counts on what is dead in it any more; where it is not
//! to be hollowed, what is live is copied to the pack that is being written, and committed; the dead leave the index,
//! durably; the pack is hollowed, or removed. A crash in between leaves second copies, of which the later counts, or a
//! pack that nothing refers to; the next collection takes them. Readers hold no lock: one that finds a pack gone, or
//! nothing in it, asks the index again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use format::Stored;
use format::pack::{FOOTER_ENTRY_BYTES, FooterEntry, PACK_HEADER_BYTES, RECORD_HEADER_BYTES, RecordType};
use types::Progress;

use super::committer::{Core, append_claim, append_object, append_shared};
use super::condemned::{Asking, Verdict};
use super::disk::sync_directory;
use super::index::{Entry, index_error};
use super::pack::{Pack, apart};
use super::scan::{Check, Found, key_of, scan};
use super::survey::Share;
use crate::mark::Marks;
use crate::pins::{Pins, Sieve};
use crate::{CollectError, CollectOptions, CollectReport, Domain, Domains, Key, LiveRoots, StoreError};

/// How much is copied, and how many objects may die, before packs are removed.
const STEP_BYTES: u64 = 256 << 20;
const STEP_OBJECTS: usize = 1 << 20;

/// Keeps to a rate.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<u64>,
    begun: Instant,
    done_bytes: u64,
}

impl Pace {
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { rate: rate.filter(|rate| *rate > 0), begun: Instant::now(), done_bytes: 0 }
    }

    /// Waits until so many bytes more are due, or until the work is cancelled.
    pub(crate) fn spend(&mut self, bytes: u64, progress: &Progress) -> Result<(), types::Cancelled> {
        self.done_bytes += bytes;
        loop {
            progress.check()?;
            let Some(rate) = self.rate else { return Ok(()) };
            let nanoseconds = u128::from(self.done_bytes) * 1_000_000_000 / u128::from(rate);
            let due = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            let Some(early) = due.checked_sub(self.begun.elapsed()).filter(|early| !early.is_zero()) else {
                return Ok(());
            };
            std::thread::sleep(early.min(Duration::from_millis(50)));
        }
    }
}

/// One collection.
pub(crate) struct Collection<'c> {
    pub(crate) core: &'c Core,
    pub(crate) marks: Marks,
    pub(crate) pins: Arc<Pins>,
    /// Objects that may be present in more domains than that of their record.
    pub(crate) claimed: Sieve,
    forget: &'c dyn Fn(&Key),
    pub(crate) options: CollectOptions,
    pub(crate) progress: &'c Progress,
    pub(crate) pace: Pace,
    pub(crate) report: CollectReport,
    /// What marks, pins and the like take, in bytes.
    pub(crate) tables_bytes: u64,
    /// Packs that are condemned, and their dead objects.
    step: Vec<Victim>,
    step_bytes: u64,
    step_objects: usize,
}

impl Core {
    /// Collects what nothing refers to. `forget` is told of every object that is not present any more.
    pub(crate) fn collect(
        &self,
        roots: &dyn LiveRoots,
        options: &CollectOptions,
        progress: &Progress,
        forget: &dyn Fn(&Key),
    ) -> Result<CollectReport, CollectError> {
        let _one = match self.collecting.try_lock() {
            Ok(one) => one,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return Err(CollectError::Busy),
        };
        // From here on, what is put or counted on is pinned; what roots refer to that come later was, or is marked.
        let _hold = self.holding.hold();
        let Some(pins) = self.holding.pins() else { unreachable!("there is a hold") };
        self.commit()?;
        let read =
            |id: &types::NodeId, domains: &Domains| Ok(self.load(&(*id).into(), domains)?.map(|(_, _, plain)| plain));
        let marks = Marks::of(roots, &read, progress)?;
        let mut collection = Collection {
            core: self,
            marks,
            pins,
            claimed: Sieve::new(),
            forget,
            options: *options,
            progress,
            pace: Pace::new(options.rate_bytes_per_second),
            report: CollectReport::default(),
            tables_bytes: 0,
            step: Vec::new(),
            step_bytes: 0,
            step_objects: 0,
        };
        tracing::debug!("what is live is marked");
        let victims = collection.survey()?;
        tracing::debug!(packs = victims.len(), "the packs are surveyed");
        if !options.dry_run {
            let swept = collection.sweep(&victims);
            // Also after an error: what was begun is brought to its end.
            collection.end_step()?;
            swept?;
        }
        Ok(collection.report)
    }
}

impl Collection<'_> {
    fn sweep(&mut self, victims: &[Share]) -> Result<(), CollectError> {
        let last = self.core.lock_writer().position().pack;
        if victims.iter().any(|victim| victim.number == last) {
            self.core.lock_writer().begin_another()?;
            self.core.commit()?;
        }
        for victim in victims {
            self.progress.check()?;
            self.empty(victim)?;
            if self.step_bytes >= STEP_BYTES || self.step_objects >= STEP_OBJECTS {
                self.end_step()?;
            }
        }
        Ok(())
    }

    /// Condemns what is dead in a pack, and copies what is live unless the pack is to be hollowed.
    fn empty(&mut self, share: &Share) -> Result<(), CollectError> {
        let number = share.number;
        let pack = self.core.packs.pack(number)?;
        let Some((records, has_footer)) = listing(&pack, pack.length()?)? else { return Ok(()) };
        let doubtful = self.doubtful(number, &records)?;
        let mut victim = Victim { number, ..Victim::default() };
        self.core.condemned.condemn(number, || self.judge(&records, &doubtful, &mut victim));
        self.core.removals.fetch_add(1, Ordering::AcqRel);
        self.step_objects += victim.dead.len();
        // From here on it is in the step, which releases it whatever comes.
        let hollow = share.hollow_bytes.is_some() && has_footer && victim.reduced.is_empty();
        self.step.push(victim);
        if hollow {
            self.pace.spend((records.len() * FOOTER_ENTRY_BYTES) as u64, self.progress)?;
        } else {
            self.copy_all(&pack, &records)?;
        }
        if let Some(victim) = self.step.last_mut() {
            victim.end = if hollow { End::Hollowed } else { End::Removed };
        }
        Ok(())
    }

    fn copy_all(&mut self, pack: &Pack, records: &[FooterEntry]) -> Result<(), CollectError> {
        for record in records {
            match record.header.record {
                RecordType::Object | RecordType::Apart => self.copy(pack, record)?,
                RecordType::Claim => self.copy_claim(pack.number, record)?,
                RecordType::Footer | RecordType::Room => {}
            }
        }
        Ok(())
    }

    /// Whether an object is kept in a domain.
    fn keeps(&self, key: &Key, domain: Domain) -> bool {
        self.marks.contains_in(key, domain) || self.pins.contains_in(key, domain)
    }

    /// The objects of a pack that are live, but maybe not in all domains that they are present in, by place.
    fn doubtful(&self, number: u32, records: &[FooterEntry]) -> Result<HashMap<u32, Entry>, CollectError> {
        let mut doubtful = HashMap::new();
        for record in records.iter().filter(|record| record.header.is_object()) {
            let Some(key) = key_of(&record.header) else { continue };
            let live = self.marks.find(&key).is_some() || self.pins.contains(&key);
            if live && (self.claimed.contains(&key) || !self.keeps(&key, Domain(record.header.domain))) {
                let here = |entry: &Entry| entry.pack == number && entry.place == record.place;
                doubtful.extend(self.core.find(&key)?.filter(here).map(|entry| (record.place, entry)));
            }
        }
        Ok(doubtful)
    }

    /// Decides what dies in a pack, while nobody counts on it. What nothing refers to is dead wherever it lies, so that
    /// the index need not be asked whether it lies here.
    fn judge(&self, records: &[FooterEntry], doubtful: &HashMap<u32, Entry>, victim: &mut Victim) -> Verdict {
        let mut dead = Vec::new();
        let mut reduced = HashMap::new();
        for record in records.iter().filter(|record| record.header.is_object()) {
            let Some(key) = key_of(&record.header) else { continue };
            let pinned = self.pins.contains(&key);
            let Some(entry) = doubtful.get(&record.place) else {
                if !pinned && self.marks.find(&key).is_none() {
                    dead.push(record.place);
                }
                continue;
            };
            let is_lost = |domain: &&Domain| !self.keeps(&key, **domain);
            let lost: Vec<Domain> = entry.domains.iter().filter(is_lost).copied().collect();
            if lost.len() == entry.domains.len() && !pinned {
                dead.push(record.place);
            } else if !lost.is_empty() {
                victim.reduced.push(key);
                reduced.insert(record.place, lost);
            }
        }
        victim.dead = dead.into();
        Verdict::new(Arc::clone(&victim.dead), reduced)
    }

    /// Writes a live object anew, with the domains that it keeps.
    fn copy(&mut self, pack: &Pack, record: &FooterEntry) -> Result<(), CollectError> {
        let Some(victim) = self.step.last_mut() else { unreachable!("the pack is in the step") };
        let Some(key) = key_of(&record.header).filter(|_| !victim.is_dead(record.place)) else { return Ok(()) };
        let (number, place, header) = (victim.number, record.place, record.header);
        let (codec, stored_bytes, plain_bytes) = (header.codec, header.stored_bytes, header.plain_bytes);
        let (content, domains) = (apart(&header), Vec::new());
        let stored = match pack
            .read_object(&key, &Entry { pack: number, place, codec, stored_bytes, plain_bytes, content, domains })
        {
            Ok((stored, _)) => stored,
            Err(error @ StoreError::Damaged { .. }) => {
                // One that is in quarantine, or has a later copy, is not missed.
                let counts = self.core.find(&key)?.is_some_and(|entry| (entry.pack, entry.place) == (number, place));
                if counts {
                    tracing::error!(%error, "a live object is damaged; its pack stays");
                    victim.damaged = true;
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let length = RECORD_HEADER_BYTES as u64 + u64::from(stored_bytes);
        if !self.core.relocate(&key, (pack, place), &stored)? {
            victim.died.push(place);
        }
        self.step_bytes += length;
        self.report.moved_bytes += length;
        self.progress.advance(length, length);
        self.pace.spend(2 * length, self.progress)?;
        Ok(())
    }

    /// Writes anew that an object of another pack is present in one more domain, if the index says so, whether anything
    /// refers to it there or not: it is counted on as long as the index says it.
    fn copy_claim(&mut self, number: u32, record: &FooterEntry) -> Result<(), CollectError> {
        let Some(key) = key_of(&record.header) else { return Ok(()) };
        if self.core.claim_again(&key, number, Domain(record.header.domain))? {
            self.step_bytes += RECORD_HEADER_BYTES as u64;
            self.report.moved_bytes += RECORD_HEADER_BYTES as u64;
        }
        Ok(())
    }

    /// Makes the copies durable, takes the dead out of the index, and removes the packs.
    fn end_step(&mut self) -> Result<(), CollectError> {
        let step = std::mem::take(&mut self.step);
        (self.step_bytes, self.step_objects) = (0, 0);
        if step.is_empty() {
            return Ok(());
        }
        let finished = self.core.commit().and_then(|()| self.remove(&step));
        let numbers: Vec<u32> = step.iter().map(|victim| victim.number).collect();
        self.core.condemned.release(&numbers);
        self.core.removals.fetch_add(1, Ordering::AcqRel);
        step.iter().flat_map(|victim| &victim.reduced).for_each(self.forget);
        Ok(finished?)
    }

    fn remove(&mut self, step: &[Victim]) -> Result<(), StoreError> {
        let core = self.core;
        let repairs = core.repairs();
        let dead: usize = step.iter().map(|victim| victim.dead.len() * size_of::<u32>()).sum();
        self.report.memory_bytes = self.report.memory_bytes.max(self.tables_bytes + dead as u64);
        tracing::debug!(packs = step.len(), "packs are condemned, and what must be copied is");
        core.remove_dead(step, self.forget)?;
        {
            let _committed = core.lock_unrepaired(repairs)?;
            core.persist_index()?;
        }
        tracing::debug!("the dead have left the index");
        for victim in step {
            // Held meanwhile, so that an index that fails is not rebuilt from a pack that is on its way out.
            let _committed = core.lock_unrepaired(repairs)?;
            match victim.end {
                End::Removed if victim.damaged => self.report.damaged_packs += 1,
                End::Removed => {
                    self.report.freed_bytes += core.packs.pack(victim.number)?.length()?;
                    core.remove_pack(victim.number)?;
                    self.report.removed_packs += 1;
                }
                End::Hollowed => self.hollow(victim)?,
                End::Open => {}
            }
        }
        sync_directory(&*core.packs.medium, &core.packs.directory)
    }

    /// Gives the room of what is dead in a pack back. A claim goes only if the index does not say it any more.
    fn hollow(&mut self, victim: &Victim) -> Result<(), StoreError> {
        let pack = self.core.packs.pack(victim.number)?;
        let is_kept = |record: &FooterEntry| match record.header.record {
            RecordType::Object | RecordType::Apart => Ok(!victim.is_dead(record.place)),
            RecordType::Claim => self.core.is_true_claim(record),
            RecordType::Footer | RecordType::Room => Ok(true),
        };
        if let Some(freed) = self.core.hollow(&pack, is_kept)? {
            self.report.freed_bytes += freed;
            self.report.hollowed_packs += 1;
        }
        Ok(())
    }
}

/// What is to become of a pack when the dead have left the index.
#[derive(Clone, Copy, Debug, Default)]
enum End {
    /// Nothing: it was not brought so far.
    #[default]
    Open,
    /// Nothing live is left in it.
    Removed,
    /// What is live stays in it.
    Hollowed,
}

/// A pack of which what is dead is condemned.
#[derive(Debug, Default)]
pub(crate) struct Victim {
    pub(crate) number: u32,
    /// The places of the records of dead objects, ascending.
    dead: Arc<[u32]>,
    /// Those of objects that were found to be in no domain any more.
    died: Vec<u32>,
    /// Objects that are not present any more in some domain.
    reduced: Vec<Key>,
    end: End,
    /// Something live in it cannot be read, so it stays.
    damaged: bool,
}

impl Victim {
    /// Whether the object whose record is at a place is dead.
    pub(crate) fn is_dead(&self, place: u32) -> bool {
        self.dead.binary_search(&place).is_ok() || self.died.contains(&place)
    }

    /// How many objects are dead, at most.
    pub(crate) fn dead_objects(&self) -> usize {
        self.dead.len() + self.died.len()
    }
}

impl Core {
    /// Copies an object from a place that it still has, with the domains that it keeps, and says whether it keeps any.
    fn relocate(&self, key: &Key, (pack, place): (&Pack, u32), stored: &Stored) -> Result<bool, StoreError> {
        let asking = self.condemned.ask();
        let mut writer = self.lock_writer();
        self.require_running()?;
        let found = self.find_once(key).map_err(index_error(&self.directory.path))?;
        let from = (pack.number, place);
        let Some(found) = found.filter(|entry| (entry.pack, entry.place) == from) else { return Ok(true) };
        let content = found.content;
        let Some(kept) = asking.apply(found) else { return Ok(false) };
        // What shares room goes on sharing it, where that can be.
        let shared = match content {
            Some(content) => append_shared(&mut writer, &[*key], kept.domains[0], &*pack.file, content.into())?,
            None => None,
        };
        let entry = match shared.and_then(|mut entries| entries.pop()) {
            Some(entry) => entry,
            None => append_object(&mut writer, key, kept.domains[0], stored)?,
        };
        for domain in &kept.domains[1..] {
            append_claim(&mut writer, key, *domain, &entry)?;
        }
        self.pending.replace(*key, Entry { domains: kept.domains, ..entry });
        Ok(true)
    }

    /// Appends a claim again whose record is going, if it is true and of an object that stays where it is. Says whether
    /// it was appended.
    fn claim_again(&self, key: &Key, going: u32, domain: Domain) -> Result<bool, StoreError> {
        let asking = self.condemned.ask();
        let mut writer = self.lock_writer();
        self.require_running()?;
        let claimed = self.claimed(&asking, key, domain)?;
        let Some(entry) = claimed.filter(|entry| entry.pack != going) else { return Ok(false) };
        append_claim(&mut writer, key, domain, &entry)?;
        Ok(true)
    }

    /// Whether the object of a claim is present in its domain.
    fn is_true_claim(&self, record: &FooterEntry) -> Result<bool, StoreError> {
        let asking = self.condemned.ask();
        // Of what has no key nobody knows.
        let Some(key) = key_of(&record.header) else { return Ok(true) };
        Ok(self.claimed(&asking, &key, Domain(record.header.domain))?.is_some())
    }

    /// The entry of an object, if it counts as present in a domain.
    fn claimed(&self, asking: &Asking<'_>, key: &Key, domain: Domain) -> Result<Option<Entry>, StoreError> {
        let found = self.find_once(key).map_err(index_error(&self.directory.path))?;
        Ok(found.and_then(|entry| asking.apply(entry)).filter(|entry| entry.domains.contains(&domain)))
    }
}

/// The records of a pack by place; `None` where something between them is damaged.
pub(crate) fn records(pack: &Pack, end: u64) -> Result<Option<Vec<FooterEntry>>, StoreError> {
    Ok(listing(pack, end)?.map(|(records, _)| records))
}

/// The records of a pack by place, and whether it has a footer.
pub(crate) fn listing(pack: &Pack, end: u64) -> Result<Option<(Vec<FooterEntry>, bool)>, StoreError> {
    if let Some((entries, _)) = pack.footer()? {
        return Ok(Some((entries, true)));
    }
    let mut entries = Vec::new();
    let mut damaged = false;
    scan(pack, PACK_HEADER_BYTES as u64..end, Check::Headers, &mut |found| {
        match found {
            Found::Damage { .. } => damaged = true,
            Found::Record(record) => entries
                .extend(u32::try_from(record.place).ok().map(|place| FooterEntry { header: record.header, place })),
        }
        Ok(())
    })?;
    let whole = !damaged || pack.never_written()?;
    Ok(whole.then_some((entries, false)))
}

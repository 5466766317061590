//! Surveys the packs: how much of each is live, and what is to be done about it.

use format::pack::{FooterEntry, RECORD_HEADER_BYTES};

use super::collection::{Collection, listing};
use super::disk::failed;
use super::hollow::Remainder;
use super::pack::list_packs;
use super::scan::key_of;
use crate::CollectError;

/// A pack being written is given up for what is dead in it only if that is so much, in bytes.
const WORTH_A_PACK_BYTES: u64 = 1 << 20;

/// A pack without anything dead in it is hollowed only if so much comes back, in bytes.
const WORTH_HOLLOWING_BYTES: u64 = 1 << 16;

/// A pack is hollowed only if so much of what it takes then is live, in percent; else it is copied.
const HOLLOW_LIVE_PERCENT: u64 = 75;

/// What is live in a pack, and what is not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    pub(crate) number: u32,
    live_bytes: u64,
    dead_bytes: u64,
    /// What it takes beside its records, in bytes.
    waste_bytes: u64,
    /// Some of its objects have a later copy.
    has_second_copies: bool,
    /// How many bytes come back if it is hollowed, where that is enough.
    pub(crate) hollow_bytes: Option<u64>,
}

impl Share {
    /// Whether something should be done about it.
    fn is_due(&self, percent: u8) -> bool {
        let total_bytes = self.live_bytes + self.dead_bytes + self.waste_bytes;
        let below = self.live_bytes * 100 < total_bytes * u64::from(percent.min(100));
        // What a hollow pack takes beside its records stays, unless it was to come back and did not.
        below && (self.dead_bytes > 0 || self.hollow_bytes.is_none_or(|bytes| bytes >= WORTH_HOLLOWING_BYTES))
    }

    /// What must be copied to empty it, in bytes.
    fn copied_bytes(&self) -> u64 {
        if self.hollow_bytes.is_some() { 0 } else { self.live_bytes }
    }
}

impl Collection<'_> {
    /// Finds out how much of each pack is live, the latest first: of two copies the later one counts.
    pub(crate) fn survey(&mut self) -> Result<Vec<Share>, CollectError> {
        let packs = &self.core.packs;
        let numbers = list_packs(&*packs.medium, &packs.directory)?;
        let last = self.core.lock_writer().position();
        let mut seen = vec![false; self.marks.places()];
        let mut victims = Vec::new();
        let mut total_bytes = 0;
        for number in numbers.into_iter().rev().filter(|number| *number <= last.pack) {
            let pack = packs.pack(number)?;
            let end = if number == last.pack { last.end } else { pack.length()? };
            let Some((records, has_footer)) = listing(&pack, end)? else {
                // What a damaged pack still holds is evidence; nothing of it is lost by leaving it.
                self.report.damaged_packs += 1;
                continue;
            };
            self.pace.spend(records.len() as u64 * RECORD_HEADER_BYTES as u64, self.progress)?;
            let (mut share, remainder) = self.share(number, &records, &mut seen);
            let allocated_bytes = pack.file.allocated_bytes().map_err(failed("examine", &pack.path))?;
            self.consider_hollowing(&mut share, remainder, allocated_bytes, has_footer || number == last.pack);
            let worth = number != last.pack
                || self.options.live_percent >= 100
                || share.dead_bytes >= WORTH_A_PACK_BYTES.min(end / 2);
            // A pack without any record that is not the last one has nothing to keep.
            let empty = records.is_empty() && number != last.pack;
            if empty || (worth && share.is_due(self.options.live_percent)) {
                total_bytes += share.copied_bytes();
                victims.push(share);
            }
        }
        let sets = self.marks.most_memory_bytes() + self.pins.memory_bytes() + self.claimed.memory_bytes();
        self.tables_bytes = sets + (seen.len() + victims.capacity() * size_of::<Share>()) as u64;
        self.report.memory_bytes = self.tables_bytes;
        self.progress.set_total_bytes(total_bytes);
        // What gives most for least first: it makes room for the rest.
        victims.sort_by_key(|share| (share.copied_bytes(), share.number));
        Ok(victims)
    }

    fn share(&mut self, number: u32, records: &[FooterEntry], seen: &mut [bool]) -> (Share, Remainder) {
        let mut share = Share { number, ..Share::default() };
        let mut remainder = Remainder::new();
        for record in records {
            let Some(key) = key_of(&record.header) else {
                remainder.add(record, true);
                continue;
            };
            let is_object = record.header.is_object();
            let length = RECORD_HEADER_BYTES as u64 + if is_object { u64::from(record.header.stored_bytes) } else { 0 };
            let marked = self.marks.find(&key);
            let live = match marked {
                Some(_) if !is_object => true,
                Some(place) => !std::mem::replace(&mut seen[place], true),
                None => self.pins.contains(&key),
            };
            // The domains of an earlier copy count, too.
            let is_second = is_object && !live && marked.is_some();
            if is_second || (!is_object && live) {
                self.claimed.insert(&key);
            }
            share.has_second_copies |= is_second;
            remainder.add(record, live || is_second);
            if live {
                share.live_bytes += length;
            } else {
                share.dead_bytes += length;
            }
            if is_object {
                let (objects, bytes) = match live {
                    true => (&mut self.report.live_objects, &mut self.report.live_bytes),
                    false => (&mut self.report.dead_objects, &mut self.report.dead_bytes),
                };
                *objects += 1;
                *bytes += u64::from(record.header.stored_bytes);
            }
        }
        (share, remainder)
    }

    /// Finds out what comes back if a pack is hollowed, and whether that is enough.
    fn consider_hollowing(&self, share: &mut Share, remainder: Remainder, allocated_bytes: u64, full: bool) {
        if remainder.has_gaps() {
            let counted = share.live_bytes + share.dead_bytes + remainder.footer_bytes();
            share.waste_bytes = allocated_bytes.saturating_sub(counted);
        }
        let left = remainder.bytes().filter(|left| share.live_bytes * 100 >= left * HOLLOW_LIVE_PERCENT);
        if full && !share.has_second_copies && self.core.can_hollow() {
            share.hollow_bytes = left.map(|left| allocated_bytes.saturating_sub(left));
        }
    }
}

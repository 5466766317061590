//! Scrub and quarantine: what is damaged is not present any more, and its bytes are kept aside.
//!
//! Invariants: an object leaves the index only after its bytes were found to be wrong where the index says they are; the
//! pack is left as it is. An index that is rebuilt takes the object for present again, until it is read or scrubbed;
//! one that was stored anew meanwhile lies in a later pack, and counts.

use std::path::Path;

use format::pack::{FooterEntry, RECORD_HEADER_BYTES, RecordHeader};
use types::Progress;

use super::collection::{Pace, records};
use super::committer::Core;
use super::disk::{create_directory, failed};
use super::index::Entry;
use super::pack::{Pack, apart, checked_content, list_packs};
use super::scan::key_of;
use crate::{Key, Kind, ScrubError, ScrubOptions, ScrubReport, Scrubbed, StoreError};

/// Where the bytes of damaged objects are kept, in the store's directory.
const ASIDE: &str = "damaged";

/// How many damaged objects are kept aside.
const MOST_ASIDE: usize = 1000;

/// How many threads read and hash.
const READERS: usize = 2;

/// How many records a thread reads before the pace is looked at.
const AT_ONCE: usize = 128;

/// What the index says of an object, and where it was read.
type Suspect = (Key, u32);

impl Core {
    /// Reads every object behind a position, and puts what is damaged in quarantine. `forget` is told of each.
    pub(crate) fn scrub(
        &self,
        options: &ScrubOptions,
        progress: &Progress,
        forget: &dyn Fn(&Key),
        tell: &mut dyn FnMut(Scrubbed),
    ) -> Result<ScrubReport, ScrubError> {
        self.commit()?;
        let last = self.lock_writer().position();
        let numbers = list_packs(&*self.packs.medium, &self.packs.directory)?;
        let due: Vec<u32> =
            numbers.into_iter().filter(|number| (options.after + 1..=last.pack).contains(number)).collect();
        let mut report = ScrubReport::default();
        let mut pace = Pace::new(options.rate_bytes_per_second);
        for number in due {
            progress.check()?;
            let Some(pack) = self.pack_if_there(number)? else { continue };
            let end = if number == last.pack { last.end } else { pack.length()? };
            let records = records(&pack, end)?.unwrap_or_default();
            for records in records.chunks(READERS * AT_ONCE) {
                let (suspects, bytes) = check(&pack, records)?;
                report.objects += (records.len() - suspects.len()) as u64;
                report.bytes += bytes;
                progress.advance(bytes, 0);
                for (key, place) in suspects {
                    if self.quarantine(&key, (number, place))? {
                        forget(&key);
                        report.damaged += 1;
                        tell(Scrubbed::Damaged(key));
                    }
                }
                pace.spend(bytes, progress)?;
            }
            tell(Scrubbed::UpTo(number));
        }
        Ok(report)
    }

    /// A pack, unless a collection has removed it.
    fn pack_if_there(&self, number: u32) -> Result<Option<std::sync::Arc<Pack>>, StoreError> {
        match self.packs.pack(number) {
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            pack => pack.map(Some),
        }
    }

    /// Makes an object absent that is damaged where the index says it lies, and says whether it did.
    pub(crate) fn quarantine(&self, key: &Key, place: (u32, u32)) -> Result<bool, StoreError> {
        // What is pending must be in the index, to be taken out of it.
        self.commit()?;
        let here = |entry: &Entry| (entry.pack, entry.place) == place;
        let Some(entry) = self.find(key)?.filter(here) else { return Ok(false) };
        // A pack that is gone has nothing to be kept.
        if let Some(pack) = self.pack_if_there(entry.pack)? {
            match pack.read_object(key, &entry) {
                // The medium has thought better of it.
                Ok(_) => return Ok(false),
                Err(StoreError::Damaged { .. } | StoreError::Io { .. }) => {}
                Err(error) => return Err(error),
            }
            self.keep_aside(key, &pack, &entry);
        }
        let mut committed = self.lock_committed();
        self.remove_entries(&mut committed, entry.pack, &[(*key, entry.place)])?;
        self.persist_index()?;
        drop(committed);
        self.removals.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        tracing::error!(%key, pack = entry.pack, place = entry.place, "an object is damaged, and absent now");
        Ok(true)
    }

    /// What was put in quarantine and whose bytes are kept aside, present again or not.
    pub(crate) fn quarantined(&self) -> Vec<Key> {
        let names = self.packs.medium.list(&self.directory.path.join(ASIDE)).unwrap_or_default();
        let key = |name: &std::ffi::OsString| {
            let mut parts = name.to_str()?.split('-');
            let kind = Kind::from_byte(parts.next()?.parse().ok()?)?;
            let types::ChunkId(hash) = parts.next()?.parse().ok()?;
            Some(Key { kind, hash })
        };
        let keys: std::collections::BTreeSet<Key> = names.iter().filter_map(key).collect();
        keys.into_iter().collect()
    }

    /// Keeps the bytes of a damaged record in a file of their own, where that is possible.
    fn keep_aside(&self, key: &Key, pack: &Pack, entry: &Entry) {
        let directory = self.directory.path.join(ASIDE);
        let name = format!("{}-{}-{:08}-{}", key.kind as u8, types::ChunkId(key.hash), entry.pack, entry.place);
        let keep = |directory: &Path| -> Result<(), StoreError> {
            create_directory(&*self.packs.medium, directory)?;
            let there = self.packs.medium.list(directory).map_err(failed("list", directory))?;
            let bytes = pack.record(entry.place.into(), entry.content, entry.stored_bytes as usize)?;
            if let Some(bytes) = bytes.filter(|_| there.len() < MOST_ASIDE) {
                let path = directory.join(&name);
                self.packs.medium.replace(&path, &bytes).map_err(failed("write", &path))?;
            }
            Ok(())
        };
        if let Err(error) = keep(&directory) {
            tracing::warn!(%error, %key, "the bytes of a damaged object could not be kept aside");
        }
    }
}

/// Reads records, some by each thread; returns those that are not what they say, and how many bytes were read.
fn check(pack: &Pack, all: &[FooterEntry]) -> Result<(Vec<Suspect>, u64), StoreError> {
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = all.chunks(AT_ONCE).map(|some| scope.spawn(move || check_some(pack, some))).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    let mut suspects = Vec::new();
    let mut bytes = 0;
    for result in results {
        match result {
            Ok(checked) => {
                let (some, read) = checked?;
                suspects.extend(some);
                bytes += read;
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok((suspects, bytes))
}

fn check_some(pack: &Pack, records: &[FooterEntry]) -> Result<(Vec<Suspect>, u64), StoreError> {
    let mut suspects = Vec::new();
    let mut read = 0;
    for record in records.iter().filter(|record| record.header.is_object()) {
        let Some(key) = key_of(&record.header) else { continue };
        let length = record.header.stored_bytes as usize;
        read += (RECORD_HEADER_BYTES + length) as u64;
        let sound = match pack.record(record.place.into(), apart(&record.header), length) {
            Ok(Some(bytes)) => {
                let header = RecordHeader::decode(&bytes, &pack.secret, record.place.into());
                let content = bytes.slice(RECORD_HEADER_BYTES..);
                header.is_ok_and(|header| checked_content(&key, &header, content).is_some())
            }
            Ok(None) => false,
            // A sector that cannot be read is as good as wrong.
            Err(StoreError::Io { .. }) => false,
            Err(error) => return Err(error),
        };
        if !sound {
            suspects.push((key, record.place));
        }
    }
    Ok((suspects, read))
}

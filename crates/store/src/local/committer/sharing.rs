//! Chunks that share the room of another file: their bytes are cloned into a pack, not written.
//!
//! Invariant: what is shared is shared from a file that nobody else can change, and that the caller has hashed: a frozen
//! one, or another pack. So what a pack holds is what was hashed, whatever becomes of the file that was imported.

use std::sync::Arc;

use format::Codec;
use format::pack::{ROOM_ALIGNMENT, RecordHeader, RecordType};
use medium::{File, cannot_share};
use types::{CHUNK_BYTES, ChunkId};

use super::super::disk::failed;
use super::super::index::{Entry, index_error};
use super::super::writer::{Shared, Writer};
use super::{Core, MAX_PENDING, header};
use crate::{Domain, Domains, FreezeError, FrozenFile, InFile, Key, Put, StoreError};

/// How many chunks share one room, at most: 16 MiB.
const MOST_AT_ONCE: usize = 256;

/// A chunk's length, as records have it.
const CHUNK: u32 = 1 << 16;

const _: () = assert!(CHUNK as usize == CHUNK_BYTES && (CHUNK_BYTES as u64).is_multiple_of(ROOM_ALIGNMENT));

impl Core {
    /// Freezes a file beside the packs.
    pub(crate) fn freeze(&self, source: &dyn File) -> Result<FrozenFile, FreezeError> {
        let packs = &self.packs.directory;
        let frozen = self.packs.medium.freeze(source, packs).map_err(|error| {
            if cannot_share(&error) {
                FreezeError::Refused(error)
            } else {
                failed("freeze a file in", packs)(error).into()
            }
        })?;
        let block_bytes = match frozen.descriptor() {
            Some(file) => rustix::fs::fstatvfs(file).map_or(0, |status| status.f_bsize),
            None => 0,
        };
        if block_bytes > ROOM_ALIGNMENT { Err(FreezeError::Blocks(block_bytes)) } else { Ok(FrozenFile(frozen)) }
    }

    /// Stores chunks that lie one behind the other in a frozen file. Ends early where they cannot share its room.
    pub(crate) fn share(
        &self,
        domain: Domain,
        chunks: &[ChunkId],
        frozen: &FrozenFile,
        offset: u64,
    ) -> Result<Vec<Put>, StoreError> {
        let mut puts = Vec::with_capacity(chunks.len());
        for chunks in chunks.chunks(MOST_AT_ONCE) {
            let chunks: Vec<Key> = chunks.iter().map(|id| (*id).into()).collect();
            let at = offset + (puts.len() * CHUNK_BYTES) as u64;
            let (waiting, done) = self.share_some(domain, &chunks, &frozen.0, at)?;
            let whole = done.len() == chunks.len();
            puts.extend(done);
            if waiting >= MAX_PENDING {
                self.commit()?;
            }
            if !whole {
                break;
            }
        }
        Ok(puts)
    }

    /// Finds the pack in which a chunk lies as it is.
    pub(crate) fn find_in_file(&self, chunk: &ChunkId, domains: &Domains) -> Result<Option<InFile>, StoreError> {
        let found = self.find(&(*chunk).into())?.filter(|entry| entry.is_present(domains));
        let Some((number, content)) = found.and_then(|entry| Some((entry.pack, entry.content?))) else {
            return Ok(None);
        };
        // Where it is gone or damaged, a read says so, and does what is to be done then.
        let pack = self.packs.pack(number).ok();
        Ok(pack.map(|pack| InFile { chunk: *chunk, file: pack.file.clone(), offset: content.into() }))
    }

    fn share_some(
        &self,
        domain: Domain,
        chunks: &[Key],
        source: &Arc<dyn File>,
        offset: u64,
    ) -> Result<(usize, Vec<Put>), StoreError> {
        let asking = self.condemned.ask();
        let mut writer = self.lock_writer();
        self.require_running()?;
        let (mut waiting, mut puts, mut at) = (0, Vec::with_capacity(chunks.len()), 0);
        while let Some(key) = chunks.get(at) {
            let found = self.find_once(key).map_err(index_error(&self.directory.path))?;
            if let Some(entry) = found.clone().and_then(|entry| asking.apply(entry)) {
                let mut put = Put { new: false, stored_bytes: entry.stored_bytes };
                if !entry.domains.contains(&domain) {
                    (waiting, put) = self.claim(&mut writer, &asking, key, domain, entry)?;
                }
                self.holding.pin(key, [domain]);
                puts.push(put);
                at += 1;
                continue;
            }
            let (run, dead) = self.run_of_new(&chunks[at..], found, &asking)?;
            let from = offset + (at * CHUNK_BYTES) as u64;
            let Some(entries) = append_shared(&mut writer, run, domain, &**source, from)? else { break };
            for ((key, dead), entry) in run.iter().zip(dead).zip(entries) {
                puts.push(Put { new: true, stored_bytes: entry.stored_bytes });
                waiting = self.pending.enter(*key, dead.as_ref(), entry);
                self.holding.pin(key, [domain]);
            }
            at += run.len();
        }
        Ok((waiting, puts))
    }

    /// The chunks from the first on that are new, each once, and what is known of each that does not count any more; of
    /// the first that is given. The writer is locked.
    fn run_of_new<'k>(
        &self,
        chunks: &'k [Key],
        first: Option<Entry>,
        asking: &super::Asking<'_>,
    ) -> Result<(&'k [Key], Vec<Option<Entry>>), StoreError> {
        let mut dead = vec![first];
        while let Some(key) = chunks.get(dead.len()).filter(|key| !chunks[..dead.len()].contains(key)) {
            let found = self.find_once(key).map_err(index_error(&self.directory.path))?;
            if found.clone().and_then(|entry| asking.apply(entry)).is_some() {
                break;
            }
            dead.push(found);
        }
        Ok((&chunks[..dead.len()], dead))
    }
}

/// Appends chunks by cloning them from a file; `None` where it cannot be.
pub(crate) fn append_shared(
    writer: &mut Writer,
    chunks: &[Key],
    domain: Domain,
    source: &dyn File,
    offset: u64,
) -> Result<Option<Vec<Entry>>, StoreError> {
    let entry = |pack, place, content| Entry {
        pack,
        place,
        codec: Codec::Plain,
        stored_bytes: CHUNK,
        plain_bytes: CHUNK,
        content,
        domains: vec![domain],
    };
    let one = entry(0, 0, None);
    let headers: Vec<RecordHeader> = chunks.iter().map(|key| header(RecordType::Apart, key, domain, &one)).collect();
    let Some((pack, shared)) = writer.append_shared(&headers, source, offset)? else { return Ok(None) };
    Ok(Some(shared.into_iter().map(|Shared { place, content }| entry(pack, place, Some(content))).collect()))
}

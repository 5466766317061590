//! Verified logs in memory, so that an append does not verify the whole history again.
//!
//! Only the database is the truth: a cached log is used if its head is the database's, and is else read anew.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bucket::{Log, LogError};
use format::entry::SignedEntry;

use super::error::{Answer, Failure};
use super::state::State;
use crate::api::MAX_ENTRIES;
use crate::db::{DbError, Reference};

/// The most logs that are kept.
const MAX_LOGS: usize = 256;

/// The most entries that are kept in all logs together.
const MAX_ENTRIES_KEPT: u64 = 400_000;

/// How many appends may run at once without waiting for another reference's.
const STRIPES: usize = 64;

/// The logs that were used last, the last first.
#[derive(Debug)]
pub(crate) struct LogCache {
    logs: Mutex<VecDeque<(i64, Log)>>,
    stripes: Vec<Arc<tokio::sync::Mutex<()>>>,
}

impl Default for LogCache {
    fn default() -> Self {
        Self { logs: Mutex::default(), stripes: (0..STRIPES).map(|_| Arc::default()).collect() }
    }
}

impl LogCache {
    /// Waits until nobody else in this process appends to the reference.
    pub(crate) async fn turn(&self, reference_id: i64) -> tokio::sync::OwnedMutexGuard<()> {
        let stripe = usize::try_from(reference_id.rem_euclid(STRIPES as i64)).unwrap_or(0);
        Arc::clone(&self.stripes[stripe]).lock_owned().await
    }

    fn take(&self, reference: &Reference) -> Option<Log> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let place = logs.iter().position(|(id, _)| *id == reference.id)?;
        let (_, log) = logs.remove(place)?;
        (log.head() == reference.head && log.bucket() == reference.bucket).then_some(log)
    }

    /// Keeps a log that agrees with the database.
    pub(crate) fn keep(&self, reference_id: i64, log: Log) {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.retain(|(id, _)| *id != reference_id);
        logs.push_front((reference_id, log));
        while logs.len() > MAX_LOGS || logs.iter().map(|(_, log)| log.length()).sum::<u64>() > MAX_ENTRIES_KEPT {
            logs.pop_back();
        }
    }
}

/// The verified log of a reference, out of the cache.
pub(crate) async fn load(state: &State, reference: &Reference) -> Answer<Log> {
    if let Some(log) = state.logs.take(reference) {
        return Ok(log);
    }
    let mut entries: Vec<SignedEntry> = Vec::new();
    loop {
        let page = state.db.entries(reference, entries.len() as u64, MAX_ENTRIES).await?;
        if page.is_empty() {
            break;
        }
        entries.extend(page);
    }
    // Another process may have appended meanwhile: only what the reference named counts.
    entries.truncate(usize::try_from(reference.head.sequence + 1).unwrap_or(usize::MAX));
    let bucket = reference.bucket;
    let log = verify(move || Log::replay(bucket, entries)).await?;
    match log {
        Ok(log) if log.head() == reference.head => Ok(log),
        Ok(_) => Err(DbError::Damaged("a log without its head").into()),
        Err(error) => Err(Failure::internal(&error)),
    }
}

/// Runs what costs a signature check per entry where it holds up nobody.
pub(crate) async fn verify<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Answer<Result<T, LogError>> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::internal(&error))
}

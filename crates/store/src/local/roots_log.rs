//! The roots of a local store: an append-only log of transactions, and its content in memory.
//!
//! Invariant: a transaction is in memory only after it is durable in the log. The log is written anew, and put in the
//! old one's place in one step, when most of it is outdated, or after a write that failed in an unknown state.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use format::pack::PackSecret;
use format::roots::{ROOTS_HEADER_BYTES, RootsError, TRANSACTION_MAGIC, Transaction, decode_header, encode_header};
use medium::{File, Medium, Open};

use super::disk::{failed, sync_parent};
use crate::roots::{check_changes, list_prefix};
use crate::{RootChange, StoreError};

/// A log below this size is never written anew for being outdated, in bytes.
const SMALL_LOG_BYTES: u64 = 1 << 20;

/// How many times larger than its live records a log may grow.
const OUTDATED_FACTOR: u64 = 4;

/// How many bytes of records go into one transaction of a log that is written anew.
const REWRITE_STEP_BYTES: usize = 8 << 20;

/// What a record takes in the log beside its name and value, in bytes.
const RECORD_OVERHEAD_BYTES: u64 = 7;

#[derive(Debug)]
pub(crate) struct RootsLog {
    medium: Arc<dyn Medium>,
    path: PathBuf,
    log: Mutex<Log>,
    records: RwLock<BTreeMap<String, Vec<u8>>>,
}

#[derive(Debug)]
struct Log {
    file: Arc<dyn File>,
    secret: PackSecret,
    end: u64,
    sequence: u64,
    live_bytes: u64,
    /// The state of the file is unknown since a write failed.
    suspect: bool,
}

impl RootsLog {
    /// Creates an empty log.
    pub(crate) fn create(medium: &dyn Medium, path: &Path) -> Result<(), StoreError> {
        let header = encode_header(&random_secret(path)?);
        medium.replace(path, &header).map(drop).map_err(failed("write", path))
    }

    /// Opens a log; a torn transaction at its end is cut off, damage before that is an error.
    pub(crate) fn open(medium: Arc<dyn Medium>, path: &Path) -> Result<Self, StoreError> {
        let damaged = |what: String| StoreError::Damaged { what, path: path.to_owned() };
        let bytes = match medium.read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("the roots log is missing, and with it what must be kept".to_owned()));
            }
            result => result.map_err(failed("read", path))?,
        };
        let secret = decode_header(&bytes).map_err(|error| match error {
            RootsError::Newer(_) => StoreError::Newer { path: path.to_owned(), what: error.to_string() },
            error => damaged(format!("the head of the roots log ({error})")),
        })?;
        let mut records = BTreeMap::new();
        let (mut end, mut sequence) = (ROOTS_HEADER_BYTES, 0);
        while end < bytes.len() {
            match Transaction::decode(&bytes[end..], &secret) {
                Ok((transaction, length)) if sequence == 0 || transaction.sequence == sequence + 1 => {
                    sequence = transaction.sequence;
                    enter(&mut records, transaction.changes);
                    end += length;
                }
                _ if later_transaction(&bytes[end + 1..], &secret) => {
                    return Err(damaged(format!("a transaction at byte {end}, not the last one,")));
                }
                _ => break,
            }
        }
        let file = medium.open(path, Open::Existing).map_err(failed("open", path))?;
        if end < bytes.len() {
            let torn_bytes = bytes.len() - end;
            tracing::warn!(log = %path.display(), torn_bytes, "roots log ends in a change that was never acknowledged");
            file.set_length(end as u64).map_err(failed("truncate", path))?;
        }
        // The last transaction of a killed process counts from now on, so it must be durable from now on.
        file.sync_data().map_err(failed("synchronise", path))?;
        sync_parent(&*medium, path)?;
        let live_bytes = records.iter().map(|(name, value)| record_bytes(name, value)).sum();
        let log = Log { file, secret, end: end as u64, sequence, live_bytes, suspect: false };
        Ok(Self { medium, path: path.to_owned(), log: Mutex::new(log), records: RwLock::new(records) })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn list(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        list_prefix(&self.records.read().unwrap_or_else(PoisonError::into_inner), prefix)
    }

    /// Puts a log that has not what failed in place of one of which nobody knows: who was told of the failure goes on
    /// as if nothing had changed, and the next process must find it so.
    fn settle(&self, log: &mut Log) {
        if log.suspect
            && let Err(error) = self.rewrite(log)
        {
            tracing::error!(%error, log = %self.path.display(), "a change that failed may still be found at the next start");
        }
    }

    /// Changes records durably, all or none. The caller has committed what they refer to.
    pub(crate) fn apply(&self, changes: Vec<RootChange>) -> Result<(), StoreError> {
        check_changes(&changes)?;
        if changes.is_empty() {
            return Ok(());
        }
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let is_outdated = log.end > SMALL_LOG_BYTES.max(OUTDATED_FACTOR * log.live_bytes);
        if (log.suspect || is_outdated)
            && let Err(error) = self.rewrite(&mut log)
        {
            // What is appended to a file that has lost its name is lost.
            if log.suspect {
                return Err(error);
            }
            tracing::warn!(%error, log = %self.path.display(), "roots log could not be shortened");
        }
        let transaction = Transaction { sequence: log.sequence + 1, changes };
        let bytes = transaction.encode(&log.secret);
        if let Err(error) = log.file.write_all_at(&[&bytes], log.end) {
            // Where this fails too, the rest is taken for a torn tail, or overwritten.
            log.suspect = log.file.set_length(log.end).is_err();
            self.settle(&mut log);
            return Err(failed("write", &self.path)(error));
        }
        if let Err(error) = log.file.sync_data() {
            log.suspect = true;
            let _ = log.file.set_length(log.end);
            self.settle(&mut log);
            return Err(failed("synchronise", &self.path)(error));
        }
        log.end += bytes.len() as u64;
        log.sequence = transaction.sequence;
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        let (removed, added) = enter(&mut records, transaction.changes);
        log.live_bytes = (log.live_bytes + added).saturating_sub(removed);
        Ok(())
    }

    /// Writes the log anew from what is in memory.
    fn rewrite(&self, log: &mut Log) -> Result<(), StoreError> {
        let secret = random_secret(&self.path)?;
        let records = self.records.read().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = encode_header(&secret).to_vec();
        let mut sequence = log.sequence;
        let mut changes = Vec::new();
        let mut step_bytes = 0;
        for (name, value) in records.iter() {
            step_bytes += name.len() + value.len();
            changes.push((name.clone(), Some(value.clone())));
            if step_bytes > REWRITE_STEP_BYTES {
                sequence += 1;
                bytes.extend(Transaction { sequence, changes: std::mem::take(&mut changes) }.encode(&secret));
                step_bytes = 0;
            }
        }
        sequence += 1;
        bytes.extend(Transaction { sequence, changes }.encode(&secret));
        let file = self.medium.write_beside(&self.path, &bytes).map_err(failed("write anew", &self.path))?;
        // From here on nobody knows which of the two has the name, until that is durable.
        log.suspect = true;
        self.medium.put_in_place(&self.path).map_err(failed("write anew", &self.path))?;
        log.file = file;
        (log.secret, log.sequence, log.end, log.suspect) = (secret, sequence, bytes.len() as u64, false);
        Ok(())
    }
}

/// Enters changes, and returns how many bytes of live records went and came.
fn enter(records: &mut BTreeMap<String, Vec<u8>>, changes: Vec<RootChange>) -> (u64, u64) {
    let (mut removed, mut added) = (0, 0);
    for (name, value) in changes {
        if let Some(old) = records.remove(&name) {
            removed += record_bytes(&name, &old);
        }
        if let Some(value) = value {
            added += record_bytes(&name, &value);
            records.insert(name, value);
        }
    }
    (removed, added)
}

fn record_bytes(name: &str, value: &[u8]) -> u64 {
    RECORD_OVERHEAD_BYTES + (name.len() + value.len()) as u64
}

/// Whether a whole transaction begins anywhere in these bytes.
fn later_transaction(bytes: &[u8], secret: &PackSecret) -> bool {
    let candidates = bytes.windows(TRANSACTION_MAGIC.len()).enumerate();
    candidates
        .filter(|(_, candidate)| *candidate == TRANSACTION_MAGIC)
        .any(|(place, _)| Transaction::decode(&bytes[place..], secret).is_ok())
}

/// Fresh random bytes for keyed checksums.
pub(crate) fn random_secret(path: &Path) -> Result<PackSecret, StoreError> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| failed("get random bytes for", path)(io::Error::other(error.to_string())))?;
    Ok(secret)
}

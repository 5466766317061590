//! The buckets that this node knows: its own, which it writes, and those that it follows.
//!
//! A bucket's log is a file of signed entries, verified when it is read. An entry is durable before anyone sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use ::bucket::{Log, LogError, LogFile, Signer};
use format::entry::{Action, Reader, SignedEntry};
use store::{ChunkStore, Domain};
use tokio::sync::watch;
use types::{BucketId, EndpointId, Name, PublicKey, Reference, SnapshotId};

use crate::api::{ApiError, ErrorCode};
use crate::error::{not_found, store_error};
use crate::record::{BucketRecord, Record};
use crate::task::now_ms;

const PREFIX: &str = "bucket/";

/// A bucket's verified log and the file that keeps it.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) log: Log,
    file: LogFile,
}

/// A bucket.
#[derive(Debug)]
pub(crate) struct BucketState {
    /// Its id.
    pub(crate) id: BucketId,
    record: Mutex<BucketRecord>,
    history: Mutex<History>,
    signer: Option<Signer>,
    entries: watch::Sender<u64>,
    problem: Mutex<Option<String>>,
    exchanging: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn log_error(error: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::from_error(ErrorCode::Damaged, error)
}

impl BucketState {
    /// Its record, as it is now.
    pub(crate) fn record(&self) -> BucketRecord {
        lock(&self.record).clone()
    }

    /// Its name on this node.
    pub(crate) fn name(&self) -> Name {
        lock(&self.record).name.clone()
    }

    /// Its log; nobody can append while it is held.
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }

    /// Whether this node has its key.
    pub(crate) fn writable(&self) -> bool {
        self.signer.is_some()
    }

    /// How many entries it has, to wait for more.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.entries.subscribe()
    }

    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    /// Says what is wrong with it, or that nothing is.
    pub(crate) fn set_problem(&self, problem: Option<String>) {
        let mut current = lock(&self.problem);
        if *current != problem {
            if let Some(problem) = &problem {
                tracing::warn!(bucket = %self.name(), problem, "a bucket has a problem");
            }
            *current = problem;
        }
    }

    /// Whether the caller may start to exchange it with an Indexer: nobody does yet.
    pub(crate) fn start_exchanging(&self) -> bool {
        !self.exchanging.swap(true, Ordering::AcqRel)
    }

    /// Says that nobody exchanges it any more.
    pub(crate) fn stop_exchanging(&self) {
        self.exchanging.store(false, Ordering::Release);
    }

    /// Wakes whoever waits for it to grow, to look at it again.
    pub(crate) fn wake(&self) {
        self.entries.send_modify(|_| {});
    }

    /// Where it is published from here.
    pub(crate) fn published(&self) -> Option<Reference> {
        lock(&self.record).published.as_ref().and_then(|text| text.parse().ok())
    }

    /// Where it is followed.
    pub(crate) fn subscribed(&self) -> Option<Reference> {
        lock(&self.record).subscribed.as_ref().and_then(|followed| followed.reference.parse().ok())
    }

    /// Whether a peer may read it.
    pub(crate) fn readable_by(&self, endpoint: EndpointId, accounts: &[(PublicKey, Name)]) -> bool {
        self.history().log.readable_by(endpoint, accounts)
    }

    /// Appends an action of this node's to the log, durably.
    ///
    /// # Errors
    /// Where this node has not the bucket's key, or the log cannot be written.
    pub(crate) fn append(&self, action: Action) -> Result<(), ApiError> {
        let Some(signer) = &self.signer else {
            let error = ApiError::new(ErrorCode::Forbidden, format!("{} is somebody else's bucket", self.name()));
            return Err(error.hint("take snapshots into a bucket of your own: brant bucket create NAME"));
        };
        let mut history = self.history();
        let entry = history.log.propose(signer, action, now_ms()).map_err(|error| log_error(&error))?;
        history.keep(entry)?;
        self.entries.send_replace(history.log.length());
        Ok(())
    }

    /// Takes in entries that were received: verified, then kept.
    ///
    /// # Errors
    /// Where they do not continue the log, are forged, or fork it; the evidence is then kept.
    pub(crate) fn receive(&self, entries: Vec<SignedEntry>) -> Result<u64, ApiError> {
        let mut history = self.history();
        let before = history.log.length();
        // A copy is tried first: what is not on disk changes nothing.
        let mut grown = history.log.clone();
        if let Err(error) = grown.merge(&entries) {
            if let LogError::Fork(evidence) = &error {
                history.file.keep_evidence(evidence).map_err(|error| log_error(&error))?;
            }
            return Err(log_error(&error));
        }
        history.file.append(grown.entries_from(before)).map_err(|error| log_error(&error))?;
        history.log = grown;
        let after = history.log.length();
        self.entries.send_replace(after);
        Ok(after - before)
    }
}

impl History {
    fn keep(&mut self, entry: SignedEntry) -> Result<(), ApiError> {
        self.file.append(std::slice::from_ref(&entry)).map_err(|error| log_error(&error))?;
        self.log.apply(entry).map_err(|error| log_error(&error))
    }
}

/// The buckets of a node.
#[derive(Debug)]
pub(crate) struct Buckets {
    store: Arc<dyn ChunkStore>,
    directory: PathBuf,
    all: RwLock<BTreeMap<BucketId, Arc<BucketState>>>,
}

impl Buckets {
    /// Opens all buckets that the store's roots name.
    pub(crate) fn open(store: Arc<dyn ChunkStore>, directory: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let directory = directory.to_owned();
        for made in [&directory, &directory.join("removed")] {
            medium::Medium::make_directory(&medium::Host, made).context("could not make the directory of buckets")?;
        }
        let mut all = BTreeMap::new();
        for (id, record) in BucketRecord::read_all(&*store, PREFIX)? {
            let id: BucketId = id.parse().with_context(|| format!("a bucket's record has the name {id}"))?;
            let state = load(&directory, id, record).with_context(|| format!("could not open the bucket {id}"))?;
            all.insert(id, Arc::new(state));
        }
        Ok(Self { store, directory, all: RwLock::new(all) })
    }

    /// All buckets, by name.
    pub(crate) fn list(&self) -> Vec<Arc<BucketState>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut buckets: Vec<_> = all.values().cloned().collect();
        buckets.sort_by_key(|bucket| bucket.name());
        buckets
    }

    /// A bucket by name.
    pub(crate) fn find(&self, name: &Name) -> Result<Arc<BucketState>, ApiError> {
        let found = self.list().into_iter().find(|bucket| bucket.name() == *name);
        let hint = || format!("see: brant bucket list, or make one of your own: brant bucket create {name}");
        found.ok_or_else(|| not_found("bucket", name).hint(hint()))
    }

    /// The buckets whose log offers a snapshot.
    pub(crate) fn offering(&self, snapshot: &SnapshotId) -> Vec<Arc<BucketState>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values().filter(|bucket| bucket.history().log.offers(*snapshot)).cloned().collect()
    }

    /// Makes a bucket of this node's own.
    pub(crate) fn create(&self, name: Name) -> Result<Arc<BucketState>, ApiError> {
        let signer = Signer::generate().map_err(|error| log_error(&error))?;
        let log = Log::create(&signer, now_ms());
        signer.save(&key_path(&self.directory, signer.bucket_id())).map_err(|error| log_error(&error))?;
        let record = BucketRecord { name, domain: Domain::OWN.0, published: None, subscribed: None };
        self.add(signer.bucket_id(), record, log.entries().to_vec())
    }

    /// Adds a bucket whose log begins with these entries, which are verified.
    pub(crate) fn add(
        &self,
        id: BucketId,
        record: BucketRecord,
        entries: Vec<SignedEntry>,
    ) -> Result<Arc<BucketState>, ApiError> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(existing) = all.values().find(|bucket| bucket.name() == record.name || bucket.id == id) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("there is a bucket {} already", existing.name())));
        }
        // The record comes last: a log without one is left over from a crash, and is begun anew.
        let path = log_path(&self.directory, id);
        if path.exists() {
            std::fs::remove_file(&path).map_err(|error| log_error(&error))?;
        }
        let (mut file, _) = LogFile::open(&path).map_err(|error| log_error(&error))?;
        file.append(&entries).map_err(|error| log_error(&error))?;
        drop(file);
        let state = load(&self.directory, id, record.clone())
            .map_err(|error| ApiError::new(ErrorCode::Damaged, format!("{error:#}")))?;
        record.write(&*self.store, format!("{PREFIX}{id}")).map_err(store_error)?;
        let state = Arc::new(state);
        all.insert(id, Arc::clone(&state));
        Ok(state)
    }

    /// Changes a bucket's record, durably.
    pub(crate) fn update(&self, bucket: &BucketState, change: impl FnOnce(&mut BucketRecord)) -> Result<(), ApiError> {
        let mut record = lock(&bucket.record);
        let mut changed = record.clone();
        change(&mut changed);
        changed.write(&*self.store, format!("{PREFIX}{}", bucket.id)).map_err(store_error)?;
        *record = changed;
        Ok(())
    }

    /// Forgets a bucket. Its log and key are moved aside, not deleted.
    pub(crate) fn remove(&self, name: &Name) -> Result<(), ApiError> {
        let bucket = self.find(name)?;
        let id = bucket.id;
        let mut changes = vec![(format!("{PREFIX}{id}"), None)];
        changes.extend(self.store.roots().list(&format!("snapshot/{id}/")).into_iter().map(|(name, _)| (name, None)));
        self.store.roots().apply(changes).map_err(store_error)?;
        self.all.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        for path in [log_path(&self.directory, id), key_path(&self.directory, id)] {
            if let Some(file) = path.file_name().filter(|_| path.exists()) {
                std::fs::rename(&path, self.directory.join("removed").join(file)).map_err(|error| log_error(&error))?;
            }
        }
        Ok(())
    }
}

fn log_path(directory: &Path, id: BucketId) -> PathBuf {
    directory.join(format!("{id}.log"))
}

fn key_path(directory: &Path, id: BucketId) -> PathBuf {
    directory.join(format!("{id}.key"))
}

fn load(directory: &Path, id: BucketId, record: BucketRecord) -> anyhow::Result<BucketState> {
    let (file, entries) = LogFile::open(&log_path(directory, id))?;
    let log = Log::replay(id, entries)?;
    let key = key_path(directory, id);
    let signer = if key.exists() { Some(Signer::load(&key)?) } else { None };
    let (entries, _) = watch::channel(log.length());
    Ok(BucketState {
        id,
        record: Mutex::new(record),
        history: Mutex::new(History { log, file }),
        signer,
        entries,
        problem: Mutex::new(None),
        exchanging: AtomicBool::new(false),
    })
}

/// Reads `everyone`, `endpoint:ID` or `account:INDEXER/NAME`; the Indexer's key is looked up by `key_of`.
pub(crate) fn parse_reader(text: &str, key_of: impl FnOnce(&str) -> Option<PublicKey>) -> Result<Reader, ApiError> {
    let invalid = || {
        ApiError::new(ErrorCode::Invalid, format!("{text:?} is no reader"))
            .hint("write everyone, endpoint:ID, or account:INDEXER/NAME")
    };
    if text == "everyone" {
        return Ok(Reader::Everyone);
    }
    match text.split_once(':') {
        Some(("endpoint", id)) => Ok(Reader::Endpoint { endpoint: id.parse().map_err(|_| invalid())? }),
        Some(("account", account)) => {
            let (indexer, account) = account.rsplit_once('/').ok_or_else(invalid)?;
            let indexer = key_of(indexer).ok_or_else(|| {
                ApiError::new(ErrorCode::Unreachable, format!("the key of the Indexer {indexer} is not known"))
                    .hint("log in there first: brant login INDEXER")
            })?;
            Ok(Reader::Account { indexer, account: account.parse().map_err(|_| invalid())? })
        }
        _ => Err(invalid()),
    }
}

/// Says who may read, as [`parse_reader`] reads it; an Indexer is shown by its key.
pub(crate) fn show_reader(reader: &Reader) -> String {
    match reader {
        Reader::Everyone => "everyone".to_owned(),
        Reader::Endpoint { endpoint } => format!("endpoint:{endpoint}"),
        Reader::Account { indexer, account } => format!("account:{}/{account}", indexer.short()),
    }
}

/// Says in words what an action does.
pub(crate) fn show_action(action: &Action) -> String {
    match action {
        Action::Create => "create".to_owned(),
        Action::Put { object, version, snapshot, .. } => format!("put {object}@{version} snapshot {snapshot}"),
        Action::Retire { object, version } => format!("retire {object}@{version}"),
        Action::Complete { object, version } => format!("complete {object}@{version}"),
        Action::Grant { reader } => format!("grant {}", show_reader(reader)),
        Action::Revoke { reader } => format!("revoke {}", show_reader(reader)),
        Action::AddWriter { writer } => format!("add writer {}", writer.short()),
        Action::RemoveWriter { writer } => format!("remove writer {}", writer.short()),
    }
}

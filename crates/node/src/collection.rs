//! Collection of the store: what this node refers to, the task, and doing it by itself now and then.
//!
//! Invariant: everything is listed from one look at all root records, so that what moves from one record to another is
//! seen in one of them; a record that is not understood forbids collection. A retired version is kept for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use format::Manifest;
use format::entry::{Action, Entry};
use store::{
    ChunkStore, CollectError, CollectOptions, CollectReport, Domain, Domains, IncompleteRoots, Key, Live, LiveRoots,
    LiveTree,
};
use types::{BucketId, Name, Progress, SnapshotId};

use crate::api::{ApiError, CollectRequest, CollectionStatus, ErrorCode, Task, TaskKind};
use crate::buckets::{BucketState, Buckets};
use crate::error::{blocking, store_error};
use crate::node::Node;
use crate::record::{AttachmentRecord, PolicyRecord, Record, SnapshotRecord};
use crate::task::{Outcome, now_ms};
use crate::version::parse_place;

/// How long a retired version is kept, unless something else is asked for.
const GRACE: Duration = Duration::from_hours(24);

/// At which rate a node collects by itself, in bytes per second.
const OWN_RATE: u64 = 64 << 20;

/// How long after its start a node collects by itself for the first time.
const FIRST: Duration = Duration::from_hours(1);

/// How often a node looks whether it should collect.
const LOOK: Duration = Duration::from_mins(1);

/// By how much a store must have grown to be collected before it is time, in bytes; and by half of what there was.
const GROWTH_BYTES: u64 = 4 << 30;

/// Everything that this node refers to.
#[derive(Debug)]
struct NodeRoots {
    store: Arc<dyn ChunkStore>,
    buckets: Arc<Buckets>,
    /// What was retired before this moment is not kept, in milliseconds since 1970.
    retired_before_ms: u64,
}

type Place = (BucketId, Name, u64);

impl LiveRoots for NodeRoots {
    fn visit(&self, live: &mut dyn FnMut(Live)) -> Result<(), IncompleteRoots> {
        // The records first, all at once: what comes into a log later was put under a hold.
        let records = self.store.roots().list("");
        let buckets = self.buckets.list();
        let kept_open = attached(&records, &buckets)?;
        let retired: BTreeSet<Place> = buckets.iter().flat_map(|bucket| self.retired(bucket)).collect();
        let is_dropped = |place: &Place| retired.contains(place) && !kept_open.contains(place);
        let mut taken_here = BTreeSet::new();
        for (name, value) in &records {
            if let Some(trees) = volume::live_trees(name, value).map_err(|error| incomplete(name, error))? {
                trees.into_iter().map(Live::Tree).for_each(&mut *live);
            } else if let Some(place) = name.strip_prefix("snapshot/") {
                let unknown = || IncompleteRoots { what: format!("the record {name} has an odd name"), source: None };
                let place = parse_place(place).ok_or_else(unknown)?;
                let record: SnapshotRecord = decode(name, value)?;
                if !is_dropped(&place) {
                    of_record(&record, live);
                }
                taken_here.insert(place);
            } else if let Some(kept) = crate::cluster::live(name, value).map_err(|error| incomplete(name, error))? {
                kept.into_iter().for_each(&mut *live);
            } else if !["bucket/", "attachment/", "domain/", "labels/", "schedule/", "scrub/"]
                .iter()
                .any(|known| name.starts_with(known))
            {
                let what = format!("the record {name} is of a kind that is not known here");
                return Err(IncompleteRoots { what, source: None });
            }
        }
        for bucket in &buckets {
            self.of_log(bucket, &|place| is_dropped(place) || taken_here.contains(place), live)?;
        }
        Ok(())
    }
}

fn incomplete(name: &str, error: impl std::error::Error + Send + Sync + 'static) -> IncompleteRoots {
    IncompleteRoots { what: format!("the record {name} cannot be read"), source: Some(Box::new(error)) }
}

fn decode<R: Record>(name: &str, value: &[u8]) -> Result<R, IncompleteRoots> {
    R::from_bytes(value).map_err(|error| incomplete(name, error))
}

/// The versions that are attached: they are read, retired or not.
fn attached(records: &[(String, Vec<u8>)], buckets: &[Arc<BucketState>]) -> Result<BTreeSet<Place>, IncompleteRoots> {
    let mut places = BTreeSet::new();
    for (name, value) in records.iter().filter(|(name, _)| name.starts_with("attachment/")) {
        let target = decode::<AttachmentRecord>(name, value)?.target;
        let path = target.parse::<types::ObjectPath>().ok();
        let snapshot = target.parse::<SnapshotId>().ok();
        for bucket in buckets {
            if let Some(path) = path.as_ref().filter(|path| path.bucket == bucket.name()) {
                places.extend(path.version.map(|version| (bucket.id, path.object.clone(), version)));
            }
            if let Some(snapshot) = snapshot {
                let history = bucket.history();
                let versions = history.log.snapshot_versions(snapshot).iter();
                places.extend(versions.map(|(object, version)| (bucket.id, object.clone(), *version)));
            }
        }
    }
    Ok(places)
}

/// What a version that was taken or imported here consists of, as far as it is sealed; the rest are frozen disks.
fn of_record(record: &SnapshotRecord, live: &mut dyn FnMut(Live)) {
    let domains = record.domains();
    if let Some(snapshot) = record.snapshot {
        live(Live::Object { key: snapshot.into(), domains: domains.clone() });
    }
    for disk in &record.disks {
        if let Some(root) = disk.root {
            let (size_bytes, domains) = (disk.size_bytes, domains.clone());
            live(Live::Tree(LiveTree { root, size_bytes, domains, chunks: true, partial: disk.origin.is_some() }));
        }
    }
}

impl NodeRoots {
    /// The versions of a bucket that were retired long enough ago.
    fn retired(&self, bucket: &BucketState) -> BTreeSet<Place> {
        let history = bucket.history();
        let entries = history.log.entries().iter().filter_map(|signed| Entry::decode(&signed.entry).ok());
        let old = entries.filter(|entry| entry.time_ms <= self.retired_before_ms);
        let place = |entry: Entry| match entry.action {
            Action::Retire { object, version } => Some((bucket.id, object, version)),
            _ => None,
        };
        old.filter_map(place).collect()
    }

    /// What a log offers that was not taken here: manifests, and what is here of their trees.
    fn of_log(
        &self,
        bucket: &BucketState,
        is_other: &dyn Fn(&Place) -> bool,
        live: &mut dyn FnMut(Live),
    ) -> Result<(), IncompleteRoots> {
        let record = bucket.record();
        let domains = Domains::from(Domain(record.domain));
        let chunks = record.subscribed.is_none_or(|followed| followed.policy != PolicyRecord::Tree);
        let versions: BTreeMap<Place, SnapshotId> = {
            let history = bucket.history();
            let versions = history.log.objects().flat_map(|(object, versions)| {
                (1..).zip(versions).map(|(number, version)| ((bucket.id, object.clone(), number), version.snapshot))
            });
            versions.collect()
        };
        for (_, snapshot) in versions.into_iter().filter(|(place, _)| !is_other(place)) {
            let key = Key::from(snapshot);
            live(Live::Object { key, domains: domains.clone() });
            let damaged = |error: Box<dyn std::error::Error + Send + Sync>| IncompleteRoots {
                what: format!("the manifest {snapshot} cannot be read"),
                source: Some(error),
            };
            let bytes = self.store.get(&key, &domains).map_err(|error| damaged(error.into()))?;
            let Some(bytes) = bytes else { continue };
            for disk in Manifest::decode(&bytes).map_err(|error| damaged(error.into()))?.disks {
                if let Some(root) = disk.root {
                    let (size_bytes, domains) = (disk.size_bytes, domains.clone());
                    live(Live::Tree(LiveTree { root, size_bytes, domains, chunks, partial: true }));
                }
            }
        }
        Ok(())
    }
}

impl Node {
    /// Starts to collect what nothing refers to.
    pub(crate) async fn start_collection(self: &Arc<Self>, request: CollectRequest) -> Result<Task, ApiError> {
        let subject = if request.dry_run { "the store, to look only" } else { "the store" }.to_owned();
        let node = Arc::clone(self);
        let work = |progress| async move { node.collect(request, progress).await };
        self.tasks.start(TaskKind::Collect, subject, work).await
    }

    /// Goes on with a collection that was under way when the node stopped: it begins anew with what is left.
    pub(crate) fn resume_collection(self: &Arc<Self>, task: Task) {
        let node = Arc::clone(self);
        let request = CollectRequest { rate_bytes_per_second: Some(OWN_RATE), ..CollectRequest::default() };
        self.tasks.resume(task, |progress| async move { node.collect(request, progress).await });
    }

    async fn collect(self: &Arc<Self>, request: CollectRequest, progress: Arc<Progress>) -> Outcome {
        let node = Arc::clone(self);
        let report = blocking(move || {
            let grace_ms = request.grace_ms.unwrap_or(u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX));
            let roots = NodeRoots {
                store: Arc::clone(&node.store),
                buckets: Arc::clone(&node.buckets),
                retired_before_ms: now_ms().saturating_sub(grace_ms),
            };
            let options = CollectOptions {
                rate_bytes_per_second: request.rate_bytes_per_second,
                dry_run: request.dry_run,
                ..CollectOptions::default()
            };
            let collected = node.store.collect(&roots, &options, &progress);
            // What was found to be here in whole may not be any more, also where it ended early.
            node.complete.lock().unwrap_or_else(PoisonError::into_inner).clear();
            collected.map_err(collect_error)
        })
        .await?;
        let status = CollectionStatus::new(&report, now_ms(), request.dry_run);
        *self.collection.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        Ok(sentence(&report, request.dry_run))
    }

    /// Collects now and then, and when the store has grown much, until the node stops.
    pub(crate) fn spawn_collector(self: &Arc<Self>) {
        let Some(every) = self.options.collect_every else { return };
        let node = Arc::clone(self);
        self.spawn(async move {
            let mut next = Instant::now() + every.min(FIRST);
            let mut left_bytes = node.stored_bytes();
            let mut collected = false;
            loop {
                tokio::time::sleep(LOOK.min(every)).await;
                if node.tasks.is_running(TaskKind::Collect) {
                    continue;
                }
                let stored_bytes = node.stored_bytes();
                left_bytes = if std::mem::take(&mut collected) { stored_bytes } else { left_bytes.min(stored_bytes) };
                if Instant::now() < next && !has_grown(left_bytes, stored_bytes) {
                    continue;
                }
                (next, collected) = (Instant::now() + every, true);
                let request = CollectRequest { rate_bytes_per_second: Some(OWN_RATE), ..CollectRequest::default() };
                if let Err(error) = node.start_collection(request).await {
                    tracing::warn!(%error, "the store could not be collected");
                }
            }
        });
    }

    /// What the store holds, in bytes; nothing where it cannot tell.
    fn stored_bytes(&self) -> u64 {
        self.store.statistics().map_or(0, |statistics| statistics.stored_bytes)
    }
}

/// Whether a store has grown so much since something was left in it that it should be collected before it is time: what
/// guests overwrite is stored anew each time that their journals are folded.
fn has_grown(left_bytes: u64, stored_bytes: u64) -> bool {
    let grown_bytes = stored_bytes.saturating_sub(left_bytes);
    grown_bytes >= GROWTH_BYTES && grown_bytes >= left_bytes / 2
}

impl CollectionStatus {
    fn new(report: &CollectReport, ended_ms: u64, dry_run: bool) -> Self {
        // What was removed is not dead in the store any more; a dry run removes nothing.
        let gone = if dry_run { 0 } else { report.freed_bytes.saturating_sub(report.moved_bytes) };
        Self {
            ended_ms,
            live_objects: report.live_objects,
            live_bytes: report.live_bytes,
            dead_bytes: report.dead_bytes.saturating_sub(gone),
        }
    }
}

fn sentence(report: &CollectReport, dry_run: bool) -> String {
    let size = |bytes| types::ByteSize(bytes);
    let live = format!("{} objects in {} are referred to", report.live_objects, size(report.live_bytes));
    if dry_run {
        return format!("{live}; {} in {} could go", report.dead_objects, size(report.dead_bytes));
    }
    let freed = size(report.freed_bytes.saturating_sub(report.moved_bytes));
    let damaged = match report.damaged_packs {
        0 => String::new(),
        packs => format!("; {packs} damaged packs were left as they are: brant store scrub"),
    };
    format!("{freed} given back, {} written anew; {live}{damaged}", size(report.moved_bytes))
}

/// Turns a collection's error into the API's.
fn collect_error(error: CollectError) -> ApiError {
    match error {
        CollectError::Cancelled(_) => ApiError::new(ErrorCode::Cancelled, "cancelled")
            .hint("what it had done is whole, and the next one goes on from there"),
        CollectError::Busy => {
            ApiError::from_error(ErrorCode::Conflict, &CollectError::Busy).hint("see: brant task list")
        }
        CollectError::Store(error) => store_error(error),
        CollectError::Roots(_) | CollectError::Node(..) => ApiError::from_error(ErrorCode::Damaged, &error)
            .hint("mend or remove what is named, so that it is known again what must be kept; try: brant store scrub"),
        error => ApiError::from_error(ErrorCode::Internal, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_has_grown_by_half_is_collected_early() {
        let gib = |count: u64| count << 30;
        assert!(has_grown(0, gib(4)) && !has_grown(0, gib(4) - 1));
        assert!(has_grown(gib(100), gib(150)) && !has_grown(gib(100), gib(150) - 1));
        assert!(!has_grown(gib(100), gib(50)));
    }
}

//! Sealing versions in the background: at once, and again after a while where that failed.
//!
//! Invariant: a version that is not sealed has a task that seals it, or waits here for one, unless somebody cancelled that task: then it
//! waits for the next start of the node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use store::Domains;
use types::{BucketId, Name, Progress};
use volume::TreeBase;

use crate::api::{ApiError, ErrorCode, TaskKind};
use crate::buckets::BucketState;
use crate::error::{blocking, not_found};
use crate::node::Node;
use crate::snapshots::volume_error;
use crate::task::Outcome;
use crate::version::Place;

/// How long a version waits that could not be sealed; twice as long after each further time.
const SHORTEST_WAIT: Duration = Duration::from_secs(10);

/// How long it waits at most.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

/// Until when a version waits, and how long that is.
#[derive(Clone, Copy, Debug)]
struct Wait {
    until: Instant,
    length: Duration,
}

/// Versions that could not be sealed.
#[derive(Debug, Default)]
pub(crate) struct Unsealed(Mutex<BTreeMap<Place, Wait>>);

impl Unsealed {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Wait>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a version wait that could not be sealed, longer than it has waited before.
    fn postpone(&self, place: Place, waited: Option<Duration>, now: Instant) {
        let length = waited.map_or(SHORTEST_WAIT, |waited| (waited * 2).min(LONGEST_WAIT));
        self.lock().insert(place, Wait { until: now + length, length });
    }

    /// Has a version wait no more, and says how long it has.
    fn take(&self, place: &Place) -> Option<Duration> {
        self.lock().remove(place).map(|wait| wait.length)
    }

    /// The versions that have waited long enough.
    fn due(&self, now: Instant) -> Vec<Place> {
        self.lock().iter().filter(|(_, wait)| wait.until <= now).map(|(place, _)| place.clone()).collect()
    }
}

impl Node {
    /// Starts to seal a version in the background. What cannot be started, or fails, is tried again after a while.
    pub(crate) async fn start_sealing(
        self: &Arc<Self>,
        bucket: &Arc<BucketState>,
        object: &Name,
        version: u64,
    ) -> Result<(), ApiError> {
        let place = (bucket.id, object.clone(), version);
        let waited = self.unsealed.take(&place);
        let started = self.try_sealing(bucket, place.clone(), waited).await;
        if started.is_err() {
            self.unsealed.postpone(place, waited, Instant::now());
        }
        started
    }

    async fn try_sealing(
        self: &Arc<Self>,
        bucket: &Arc<BucketState>,
        place: Place,
        waited: Option<Duration>,
    ) -> Result<(), ApiError> {
        self.index_bucket(bucket).await?;
        let subject = format!("{}/{}@{}", bucket.name(), place.1, place.2);
        let (node, bucket) = (Arc::clone(self), Arc::clone(bucket));
        let work = |progress| async move {
            let outcome = node.seal(&bucket, &place.1, place.2, &progress).await;
            if outcome.as_ref().is_err_and(|error| error.code != ErrorCode::Cancelled) {
                node.unsealed.postpone(place, waited, Instant::now());
            }
            outcome
        };
        self.tasks.start(TaskKind::Seal, subject, work).await.map(drop)
    }

    /// Starts to seal what could not be sealed and has waited long enough.
    pub(crate) async fn seal_due(self: &Arc<Self>, now: Instant) {
        for place in self.unsealed.due(now) {
            let (id, object, version) = &place;
            let bucket = self.buckets.list().into_iter().find(|bucket| bucket.id == *id);
            let record = self.versions.find(*id, object, *version).filter(|record| record.snapshot.is_none());
            let (Some(bucket), Some(_)) = (bucket, record) else {
                self.unsealed.take(&place);
                continue;
            };
            if self.is_sealing(&bucket, object, *version) {
                continue;
            }
            if let Err(error) = self.start_sealing(&bucket, object, *version).await {
                tracing::warn!(%error, bucket = %bucket.name(), %object, version, "a snapshot cannot be sealed yet");
            }
        }
    }

    /// Whether a task seals a version now.
    pub(crate) fn is_sealing(&self, bucket: &BucketState, object: &Name, version: u64) -> bool {
        self.tasks.find_running(TaskKind::Seal, &format!("{}/{object}@{version}", bucket.name())).is_some()
    }

    /// Seals the disks of a version, gives it its id, and enters it into the bucket's log.
    pub(crate) async fn seal(
        self: &Arc<Self>,
        bucket: &Arc<BucketState>,
        object: &Name,
        version: u64,
        progress: &Arc<Progress>,
    ) -> Outcome {
        let gone = || not_found("version", format!("{}/{object}@{version}", bucket.name()));
        let record = self.versions.find(bucket.id, object, version).ok_or_else(gone)?;
        for (number, disk) in record.disks.iter().enumerate() {
            let Some(frozen) = disk.frozen else { continue };
            let sealed = self.volumes.seal(frozen, progress).await.map_err(volume_error)?;
            let (node, id, object) = (Arc::clone(self), bucket.id, object.clone());
            blocking(move || node.disk_sealed(id, &object, version, number, &sealed)).await?;
            self.volumes.forget_frozen(frozen).map_err(volume_error)?;
        }
        self.finish_version(bucket, object, version).await?;
        let id = self.versions.find(bucket.id, object, version).and_then(|record| record.snapshot).ok_or_else(gone)?;
        Ok(format!("{}/{object}@{version} is snapshot {id}", bucket.name()))
    }

    fn disk_sealed(
        &self,
        bucket: BucketId,
        object: &Name,
        version: u64,
        number: usize,
        sealed: &TreeBase,
    ) -> Result<(), ApiError> {
        self.versions.update(bucket, object, version, |record| {
            let domains = record.domains().with(&sealed.domains).with(&Domains::from(sealed.written));
            record.domains = domains.iter().map(|domain| domain.0).collect();
            if let Some(disk) = record.disks.get_mut(number) {
                disk.frozen = None;
                disk.size_bytes = sealed.size_bytes;
                disk.root = sealed.root;
                disk.origin = sealed.origin.map(Into::into);
            }
        })
    }

    /// Gives a version whose disks are sealed its id, and enters what can be entered into the log.
    pub(crate) async fn finish_version(
        self: &Arc<Self>,
        bucket: &Arc<BucketState>,
        object: &Name,
        version: u64,
    ) -> Result<(), ApiError> {
        let (node, completing, object) = (Arc::clone(self), Arc::clone(bucket), object.clone());
        blocking(move || {
            node.versions.complete(&completing, &object, version)?;
            node.versions.log_sealed(&completing)
        })
        .await?;
        self.index_bucket(bucket).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sqlx::ConnectOptions as _;
    use sqlx::sqlite::SqliteConnectOptions;
    use volume::{BlockDevice as _, Durability};

    use super::*;
    use crate::api::{TakeSnapshotRequest, Task, TaskState};
    use crate::node::NodeOptions;

    /// A node with a bucket and a volume that was written to.
    async fn begin(directory: &Path) -> Arc<Node> {
        let options = NodeOptions { bind: vec!["127.0.0.1:0".parse().unwrap()], ..NodeOptions::new(directory) };
        let node = Node::start(options, None).await.unwrap();
        node.buckets.create("vms".parse().unwrap()).unwrap();
        let web = node.volumes.create(&"web".parse().unwrap(), 1 << 20).unwrap();
        web.write(0, &[7; 4096], Durability::Process).unwrap();
        node
    }

    async fn take(node: &Arc<Node>) -> Result<(), ApiError> {
        let request = TakeSnapshotRequest {
            volumes: vec!["web".parse().unwrap()],
            path: "vms/web".to_owned(),
            message: String::new(),
            disks: Vec::new(),
            machine: None,
        };
        node.take_snapshot(request).await.map(drop)
    }

    /// The tasks that have sealed, once none does any more.
    async fn ended(node: &Node) -> Vec<Task> {
        let mut tasks = node.tasks.list().await.unwrap();
        for task in &mut tasks {
            *task = node.tasks.find(task.id, Duration::from_secs(60)).await.unwrap();
        }
        tasks.into_iter().filter(|task| task.kind == TaskKind::Seal).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_catalog_keeps_from_being_sealed_is_sealed_later() {
        let directory = tempfile::tempdir().unwrap();
        let node = begin(directory.path()).await;
        let catalog = SqliteConnectOptions::new().filename(directory.path().join("catalog.sqlite"));
        let mut other = catalog.connect().await.unwrap();
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
        let error = take(&node).await.unwrap_err();
        assert!(error.message.starts_with("vms/web@1 is taken, but cannot be sealed yet: "), "{error}");
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
        node.seal_due(Instant::now() + SHORTEST_WAIT).await;
        let sealed = ended(&node).await;
        assert_eq!(sealed.last().map(|task| task.state), Some(TaskState::Done), "{sealed:?}");
        assert!(node.unsealed.due(Instant::now() + 2 * LONGEST_WAIT).is_empty());
        node.stop().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_fails_to_be_sealed_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let node = begin(directory.path()).await;
        let segments = std::fs::read_dir(directory.path().join("layers")).unwrap();
        for segment in segments.map(|segment| segment.unwrap().path()) {
            let mut bytes = std::fs::read(&segment).unwrap();
            bytes.iter_mut().rev().take(8).for_each(|byte| *byte ^= 1);
            std::fs::write(&segment, bytes).unwrap();
        }
        take(&node).await.unwrap();
        assert_eq!(ended(&node).await.len(), 1);
        node.seal_due(Instant::now()).await;
        assert_eq!(ended(&node).await.len(), 1, "it has to wait");
        node.seal_due(Instant::now() + SHORTEST_WAIT).await;
        let tried = ended(&node).await;
        assert_eq!(tried.iter().map(|task| task.state).collect::<Vec<_>>(), [TaskState::Failed; 2], "{tried:?}");
        node.stop().await;
    }

    #[test]
    fn what_cannot_be_sealed_waits_longer_each_time() {
        let (unsealed, place) = (Unsealed::default(), (BucketId([1; 32]), "web".parse().unwrap(), 1));
        let mut now = Instant::now();
        let mut waited = Vec::new();
        for _ in 0..12 {
            let before = unsealed.take(&place);
            unsealed.postpone(place.clone(), before, now);
            let length = unsealed.lock()[&place].length;
            assert_eq!(unsealed.due(now + length - Duration::from_nanos(1)), []);
            now += length;
            assert_eq!(unsealed.due(now), std::slice::from_ref(&place));
            waited.push(length.as_secs());
        }
        assert_eq!((waited[..3].to_vec(), waited[11]), (vec![10, 20, 40], 3600));
        unsealed.take(&place);
        unsealed.postpone(place.clone(), None, now);
        assert_eq!(unsealed.lock()[&place].length, SHORTEST_WAIT);
    }
}

//! Scrub of the store: the task, doing it by itself now and then, and healing from peers what was found damaged.
//!
//! Invariant: what is damaged is absent in the store, so nothing here can make it worse. It is looked for in every tree
//! that this node knows, and asked for by its place there, at the snapshot that the tree is of.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use format::Shape;
use format::tree::{self, Found};
use futures_util::StreamExt as _;
use store::{ChunkSource as _, Key, Kind, Nodes, Origin, Part, ScrubError, ScrubOptions, Scrubbed, Urgency, Wanted};
use types::{Progress, SnapshotId};
use volume::TreeBase;

use crate::api::{ApiError, ErrorCode, ScrubRequest, ScrubStatus, Task, TaskKind};
use crate::error::{blocking, store_error};
use crate::node::Node;
use crate::record::{Record, ScrubRecord};
use crate::task::{Outcome, now_ms};

/// Where it is recorded how far the scrub is.
const RECORD: &str = "scrub/position";

/// At which rate a node scrubs by itself, in bytes per second.
const OWN_RATE: u64 = 16 << 20;

/// How often it is looked whether a scrub is due.
const LOOK: Duration = Duration::from_hours(1);

/// How long one object is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often, and how far apart, what is said to have come and is not here is asked for again.
const MOST_IDLE: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// How many objects are asked for at once.
const AT_ONCE: usize = 32;

impl Node {
    /// Starts to read everything again.
    pub(crate) async fn start_scrub(self: &Arc<Self>, request: ScrubRequest) -> Result<Task, ApiError> {
        let node = Arc::clone(self);
        let work = |progress| async move { node.scrub(request, progress).await };
        self.tasks.start(TaskKind::Scrub, "the store".to_owned(), work).await
    }

    /// Goes on with a scrub that was under way when the node stopped, from the pack that it was at.
    pub(crate) fn resume_scrub(self: &Arc<Self>, task: Task) {
        let node = Arc::clone(self);
        let request = ScrubRequest { rate_bytes_per_second: Some(OWN_RATE) };
        self.tasks.resume(task, |progress| async move { node.scrub(request, progress).await });
    }

    async fn scrub(self: &Arc<Self>, request: ScrubRequest, progress: Arc<Progress>) -> Outcome {
        let node = Arc::clone(self);
        let found = blocking(move || node.read_all(request, &progress)).await?;
        let (absent, healed) = self.heal().await?;
        self.count_scrub(|status| {
            status.healed += healed;
            status.absent = absent;
        });
        let what = match (found.damaged, absent) {
            (0, 0) => "none damaged".to_owned(),
            (damaged, absent) => {
                format!("{damaged} damaged, {healed} fetched again, {absent} to be had from nobody now")
            }
        };
        Ok(format!("{} objects in {} read; {what}", found.objects, types::ByteSize(found.bytes)))
    }

    /// Reads everything, from where the last scrub was broken off.
    fn read_all(&self, request: ScrubRequest, progress: &Progress) -> Result<store::ScrubReport, ApiError> {
        let at = |after| ScrubRecord { after, ended_ms: self.last_scrub().map_or(0, |record| record.ended_ms) };
        let options = ScrubOptions {
            rate_bytes_per_second: request.rate_bytes_per_second,
            after: self.last_scrub().map_or(0, |record| record.after),
        };
        progress.set_total_bytes(self.store.statistics().map_err(store_error)?.stored_bytes);
        let mut tell = |scrubbed| match scrubbed {
            Scrubbed::Damaged(_) => {
                self.count_scrub(|status| status.damaged += 1);
                // What was found to be here in whole is not any more.
                self.complete.lock().unwrap_or_else(PoisonError::into_inner).clear();
            }
            Scrubbed::UpTo(pack) => {
                if let Err(error) = at(pack).write(&*self.store, RECORD.to_owned()) {
                    tracing::warn!(%error, "how far the scrub is could not be recorded");
                }
            }
        };
        let report = self.store.scrub(&options, progress, &mut tell).map_err(scrub_error)?;
        ScrubRecord { after: 0, ended_ms: now_ms() }.write(&*self.store, RECORD.to_owned()).map_err(store_error)?;
        self.count_scrub(|status| {
            status.ended_ms = now_ms();
            status.read_bytes += report.bytes;
        });
        Ok(report)
    }

    fn last_scrub(&self) -> Option<ScrubRecord> {
        let records = ScrubRecord::read_all(&*self.store, RECORD).ok()?;
        records.into_iter().map(|(_, record)| record).next()
    }

    fn count_scrub(&self, count: impl FnOnce(&mut ScrubStatus)) {
        count(&mut self.scrubbed.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Fetches what was found damaged, now or before, from whoever has it. Returns how many objects of known trees are
    /// still absent, and how many came.
    async fn heal(self: &Arc<Self>) -> Result<(u64, u64), ApiError> {
        let node = Arc::clone(self);
        let keys: BTreeSet<Key> = blocking(move || Ok(node.store.quarantined().into_iter().collect())).await?;
        let (mut absent, mut healed) = (0, 0);
        if keys.is_empty() {
            return Ok((absent, healed));
        }
        let keys = Arc::new(keys);
        for snapshot in self.known_snapshots() {
            let Ok(resolved) = self.resolve(&snapshot.to_string()) else { continue };
            if keys.contains(&snapshot.into()) {
                let domains = self.domains_of(&resolved);
                let came = tokio::time::timeout(PATIENCE, self.swarm.manifest(snapshot, &domains)).await;
                tracing::info!(%snapshot, healed = matches!(came, Ok(Ok(_))), "a damaged manifest was asked for");
            }
            let bases = match tokio::time::timeout(PATIENCE, self.tree_bases(&resolved)).await {
                Ok(Ok(bases)) => bases,
                Ok(Err(_)) | Err(_) => continue,
            };
            for (disk, (_, base)) in (0..).zip(bases) {
                let base = TreeBase { origin: base.origin.or(Some(Origin { snapshot, disk })), ..base };
                healed += self.heal_tree(&base, &keys).await?;
                absent += self.wanted(&base, &keys).await?.len() as u64;
            }
        }
        for volume in self.volumes.list() {
            healed += self.heal_tree(&volume.status().base, &keys).await?;
        }
        let store = Arc::clone(&self.store);
        blocking(move || store.commit().map_err(store_error)).await?;
        Ok((absent, healed))
    }

    fn known_snapshots(&self) -> BTreeSet<SnapshotId> {
        let buckets = self.buckets.list();
        let offered = buckets.iter().flat_map(|bucket| {
            let history = bucket.history();
            history.log.snapshots().filter(|snapshot| history.log.offers(*snapshot)).collect::<Vec<_>>()
        });
        offered.collect()
    }

    /// Fetches what a tree lacks of some objects, from the top: what is below a node is known when it is here.
    async fn heal_tree(self: &Arc<Self>, base: &TreeBase, keys: &Arc<BTreeSet<Key>>) -> Result<u64, ApiError> {
        let Some(origin) = base.origin else { return Ok(0) };
        let mut healed = 0;
        let mut idle = 0;
        let mut wanted = self.wanted(base, keys).await?;
        while !wanted.is_empty() {
            let before = wanted.clone();
            let fetches = wanted.into_iter().map(|(part, key)| {
                let (domains, urgency) = (base.domains.clone(), Urgency::Lazy);
                let fetch = self.swarm.fetch(Wanted { origin, part, key, domains, urgency });
                async move { matches!(tokio::time::timeout(PATIENCE, fetch).await, Ok(Ok(()))) }
            });
            let came: Vec<bool> = futures_util::stream::iter(fetches).buffer_unordered(AT_ONCE).collect().await;
            wanted = self.wanted(base, keys).await?;
            let here = before.iter().filter(|part| !wanted.contains(part)).count();
            healed += here as u64;
            if here > 0 {
                idle = 0;
                continue;
            }
            idle += 1;
            if idle > MOST_IDLE || !came.contains(&true) {
                break;
            }
            // The swarm takes what has come a moment ago for present without looking.
            tokio::time::sleep(PAUSE).await;
        }
        Ok(healed)
    }

    /// Which of some objects a tree lacks, and where they stand in it.
    async fn wanted(
        self: &Arc<Self>,
        base: &TreeBase,
        keys: &Arc<BTreeSet<Key>>,
    ) -> Result<Vec<(Part, Key)>, ApiError> {
        let (node, base, keys) = (Arc::clone(self), base.clone(), Arc::clone(keys));
        blocking(move || {
            let nodes = Nodes::new(Arc::clone(&node.store), base.domains.clone());
            let shape = Shape::of(base.size_bytes);
            let mut wanted = Vec::new();
            for found in tree::walk(&nodes, shape, base.root, 0..shape.chunks()) {
                let (part, key) = match found {
                    Ok(Found::Chunk { index, id }) => (Part::Chunk(index), Key { kind: Kind::Chunk, hash: id.0 }),
                    Ok(Found::Absent(node)) => (Part::Node(node.position), node.id.into()),
                    Ok(Found::Node { .. }) => continue,
                    // It was made absent, and is seen as such the next time.
                    Err(error) => {
                        tracing::warn!(%error, "a tree could not be looked through for damage");
                        break;
                    }
                };
                if keys.contains(&key) && !node.store.contains(&key, &base.domains).map_err(store_error)? {
                    wanted.push((part, key));
                }
            }
            Ok(wanted)
        })
        .await
    }

    /// Scrubs now and then, until the node stops.
    pub(crate) fn spawn_scrubber(self: &Arc<Self>) {
        let Some(every) = self.options.scrub_every else { return };
        let node = Arc::clone(self);
        self.spawn(async move {
            loop {
                tokio::time::sleep(LOOK.min(every)).await;
                let looking = Arc::clone(&node);
                let due = blocking(move || looking.scrub_is_due(every)).await;
                let request = ScrubRequest { rate_bytes_per_second: Some(OWN_RATE) };
                let started = match due {
                    Ok(true) => node.start_scrub(request).await.map(drop),
                    Ok(false) => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = started {
                    tracing::warn!(%error, "the store could not be scrubbed");
                }
            }
        });
    }

    /// Whether the last scrub is long ago. A store that was never scrubbed counts as new.
    fn scrub_is_due(&self, every: Duration) -> Result<bool, ApiError> {
        let Some(last) = self.last_scrub() else {
            let begun = ScrubRecord { after: 0, ended_ms: now_ms() };
            return begun.write(&*self.store, RECORD.to_owned()).map(|()| false).map_err(store_error);
        };
        let since = Duration::from_millis(now_ms().saturating_sub(last.ended_ms));
        Ok(since >= every && !self.tasks.is_running(TaskKind::Scrub))
    }
}

fn scrub_error(error: ScrubError) -> ApiError {
    match error {
        ScrubError::Cancelled(_) => {
            ApiError::new(ErrorCode::Cancelled, "cancelled").hint("the next one goes on from where it was")
        }
        ScrubError::Store(error) => store_error(error),
        error => ApiError::from_error(ErrorCode::Internal, &error),
    }
}

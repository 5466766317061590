//! What lists and details show, made from the parts that know it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use store::Domain;
use types::Name;
use volume::{BlockDevice as _, TreeBase, Volume};

use crate::api;
use crate::buckets::{BucketState, show_action, show_reader};
use crate::catalog::state_of;
use crate::error::blocking;
use crate::node::Node;
use crate::resolve::{DiskContent, Resolved};
use crate::version::Versions;

/// All versions of a bucket, by object and version: those in its log, and those that are on their way into it.
pub(crate) fn versions_of(bucket: &BucketState, versions: &Versions) -> Vec<api::Snapshot> {
    let name = bucket.name();
    let history = bucket.history();
    let mut all = BTreeMap::new();
    for (object, logged) in history.log.objects() {
        all.extend((1..).zip(logged).map(|(version, logged)| {
            let snapshot = api::Snapshot {
                bucket: name.clone(),
                object: object.clone(),
                version,
                id: Some(logged.snapshot),
                state: state_of(logged.retired, true),
                size_bytes: logged.size_bytes,
                taken_ms: logged.time_ms,
                message: logged.message.clone(),
                scheduled: false,
            };
            ((object.clone(), version), snapshot)
        }));
    }
    drop(history);
    for (object, version, record) in versions.of_bucket(bucket.id) {
        let unlogged = |(object, version): &(Name, u64)| api::Snapshot {
            bucket: name.clone(),
            object: object.clone(),
            version: *version,
            id: record.snapshot,
            state: state_of(false, record.snapshot.is_some()),
            size_bytes: record.size_bytes(),
            taken_ms: record.taken_ms,
            message: record.message.clone(),
            scheduled: false,
        };
        let listed = all.entry((object, version)).or_insert_with_key(unlogged);
        listed.taken_ms = record.taken_ms;
        listed.scheduled = record.scheduled == Some(true);
    }
    all.into_values().collect()
}

/// A bucket, as in a list.
pub(crate) fn show_bucket(bucket: &BucketState, versions: &Versions) -> api::Bucket {
    let all = versions_of(bucket, versions);
    let mut objects: Vec<_> = all.iter().map(|snapshot| &snapshot.object).collect();
    objects.dedup();
    api::Bucket {
        name: bucket.name(),
        id: bucket.id,
        writable: bucket.writable(),
        objects: objects.len() as u64,
        versions: all.len() as u64,
        published: bucket.published(),
        subscribed: bucket.subscribed(),
        policy: bucket.record().subscribed.map(|followed| followed.policy.into()),
        problem: bucket.problem(),
    }
}

/// A bucket, in detail.
pub(crate) fn show_bucket_detail(bucket: &BucketState, versions: &Versions) -> api::BucketDetail {
    let mut contents: Vec<api::BucketObject> = Vec::new();
    for snapshot in versions_of(bucket, versions) {
        contents.retain(|object| object.name != snapshot.object);
        contents.push(api::BucketObject {
            name: snapshot.object,
            latest: snapshot.version,
            snapshot: snapshot.id,
            size_bytes: snapshot.size_bytes,
        });
    }
    let shown = show_bucket(bucket, versions);
    let history = bucket.history();
    api::BucketDetail {
        bucket: shown,
        contents,
        readers: history.log.readers().map(show_reader).collect(),
        writers: history.log.writers().map(|writer| writer.to_string()).collect(),
    }
}

/// The log of a bucket, decoded.
pub(crate) fn show_log(bucket: &BucketState) -> Vec<api::LogEntry> {
    let history = bucket.history();
    let decode = |signed: &format::entry::SignedEntry| {
        let entry = format::entry::Entry::decode(&signed.entry).ok()?;
        Some(api::LogEntry {
            sequence: entry.sequence,
            hash: signed.hash().to_string(),
            time_ms: entry.time_ms,
            author: entry.author.to_string(),
            action: show_action(&entry.action),
        })
    };
    history.log.entries().iter().filter_map(decode).collect()
}

impl Node {
    /// A volume, as in a list.
    pub(crate) fn show_volume(&self, volume: &Volume) -> api::Volume {
        let status = volume.status();
        let name = volume.name().clone();
        let origin = status.base.origin.map(|origin| match self.resolve(&origin.snapshot.to_string()) {
            Ok(resolved) => resolved.path(),
            Err(_) => origin.snapshot.to_string(),
        });
        api::Volume {
            id: volume.id(),
            size_bytes: status.size_bytes,
            origin,
            dirty_bytes: status.dirty_bytes,
            attached: self.attached(name.as_str()),
            labels: self.labels.of(volume.id()),
            replication: self.show_replication(&name),
            home: None,
            name,
        }
    }

    /// A volume, in detail. Counting what is missing and what is shared walks its tree.
    pub(crate) async fn show_volume_detail(
        self: &Arc<Self>,
        volume: &Arc<Volume>,
    ) -> Result<api::VolumeDetail, api::ApiError> {
        let status = volume.status();
        let (node, counting) = (Arc::clone(self), Arc::clone(volume));
        let (missing, sharing) = blocking(move || {
            let missing = counting.missing().map_err(crate::snapshots::device_error)?;
            let sharing = node.volumes.sharing(&counting, &node.version_trees()?);
            Ok((missing, sharing.map_err(crate::snapshots::device_error)?))
        })
        .await?;
        let name = volume.name().as_str();
        Ok(api::VolumeDetail {
            volume: self.show_volume(volume),
            missing: show_missing(missing),
            shared_bytes: sharing.map(|sharing| sharing.shared_bytes),
            own_bytes: sharing.map(|sharing| sharing.own_bytes),
            journal_bytes: status.journal_bytes,
            own_journal_bytes: self.volumes.own_journal_bytes(volume.id()),
            journal_limit_bytes: volume.journal_limit_bytes(),
            rewind: volume.window().map(|window| api::Rewind {
                for_ms: window.protection.for_ms,
                space_bytes: window.protection.space_bytes,
                from_ms: window.from_ms,
                bytes: window.bytes,
            }),
            schedule: self.schedule_of(volume.id()),
            clients: self.attachments.find(name).map_or(0, |attachment| attachment.connections),
            layers: status.layers as u64,
            root: status.base.root.map(|root| root.to_string()),
        })
    }

    /// The trees of all versions that are sealed, not retired, and known here.
    fn version_trees(&self) -> Result<Vec<TreeBase>, api::ApiError> {
        let mut trees = Vec::new();
        for bucket in self.buckets.list() {
            for resolved in self.sealed_versions(&bucket) {
                let domains = self.domains_of(&resolved);
                let tree = |size_bytes, root| TreeBase {
                    size_bytes,
                    root,
                    origin: None,
                    domains: domains.clone(),
                    written: Domain::OWN,
                };
                match &resolved.record {
                    Some(record) => {
                        let sealed = record.disks.iter().filter(|disk| disk.frozen.is_none());
                        trees.extend(sealed.map(|disk| tree(disk.size_bytes, disk.root)));
                    }
                    None => {
                        let disks = self.local_manifest(&resolved)?.map(|manifest| manifest.disks);
                        trees.extend(disks.unwrap_or_default().iter().map(|disk| tree(disk.size_bytes, disk.root)));
                    }
                }
            }
        }
        Ok(trees)
    }

    /// The versions of a bucket that are not retired, with what is known of them here.
    fn sealed_versions(&self, bucket: &Arc<BucketState>) -> Vec<Resolved> {
        let listed = versions_of(bucket, &self.versions).into_iter();
        let kept = listed.filter(|snapshot| snapshot.state != api::SnapshotState::Retired);
        let resolved = |snapshot: api::Snapshot| Resolved {
            bucket: Arc::clone(bucket),
            record: self.versions.find(bucket.id, &snapshot.object, snapshot.version),
            object: snapshot.object,
            version: snapshot.version,
            snapshot: snapshot.id,
        };
        kept.map(resolved).collect()
    }

    /// A version, in detail.
    pub(crate) async fn show_snapshot(
        self: &Arc<Self>,
        resolved: &Resolved,
    ) -> Result<api::SnapshotDetail, api::ApiError> {
        let listed = versions_of(&resolved.bucket, &self.versions)
            .into_iter()
            .find(|snapshot| snapshot.object == resolved.object && snapshot.version == resolved.version)
            .ok_or_else(|| crate::error::not_found("version", resolved.path()))?;
        let names: Vec<_> = match &resolved.record {
            Some(record) => record.disks.iter().map(|disk| disk.name.clone()).collect(),
            None => self.manifest(resolved).await?.disks.into_iter().map(|disk| disk.name).collect(),
        };
        let mut disks = Vec::new();
        for name in names {
            disks.push(match self.disk(resolved, Some(name.as_str())).await? {
                DiskContent::Frozen(id) => {
                    let frozen = self.volumes.frozen(id);
                    let size_bytes = frozen.map_or(0, |frozen| frozen.size_bytes());
                    api::DiskDetail { name, size_bytes, root: None, missing: api::Missing::default() }
                }
                DiskContent::Tree(base) => {
                    let view = self.volumes.view(base.clone());
                    let missing = blocking(move || view.missing().map_err(crate::snapshots::device_error)).await?;
                    let root = base.root.map(|root| root.to_string());
                    api::DiskDetail { name, size_bytes: base.size_bytes, root, missing: show_missing(missing) }
                }
            });
        }
        let (base, machine) = match &resolved.record {
            Some(record) => (record.base, record.machine.clone()),
            None => {
                let manifest = self.manifest(resolved).await?;
                (manifest.base, manifest.machine)
            }
        };
        Ok(api::SnapshotDetail { snapshot: listed, base, disks, machine: machine.map(show_machine) })
    }

    /// Whether everything of a snapshot is here. What is here stays here, so that is remembered.
    pub(crate) fn is_complete(&self, snapshot: types::SnapshotId) -> Result<bool, api::ApiError> {
        if self.complete.lock().unwrap_or_else(PoisonError::into_inner).contains(&snapshot) {
            return Ok(true);
        }
        let resolved = self.resolve(&snapshot.to_string())?;
        let Some(manifest) = self.local_manifest(&resolved)? else { return Ok(false) };
        let domains = self.domains_of(&resolved);
        for disk in manifest.disks {
            let base = volume::TreeBase {
                size_bytes: disk.size_bytes,
                root: disk.root,
                origin: None,
                domains: domains.clone(),
                written: Domain::OWN,
            };
            let missing = self.volumes.view(base).missing().map_err(crate::snapshots::device_error)?;
            if missing.chunks > 0 || missing.nodes > 0 {
                return Ok(false);
            }
        }
        self.complete.lock().unwrap_or_else(PoisonError::into_inner).insert(snapshot);
        Ok(true)
    }
}

fn show_machine(machine: format::manifest::Machine) -> api::Machine {
    let description = String::from_utf8_lossy(&machine.description).into_owned();
    api::Machine { media_type: machine.media_type, description }
}

fn show_missing(missing: volume::Missing) -> api::Missing {
    api::Missing { chunks: missing.chunks, bytes: missing.bytes, nodes: missing.nodes }
}

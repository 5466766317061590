//! From what people write to what is meant: `BUCKET/OBJECT[@VERSION]`, snapshot ids, and volumes.

use std::sync::Arc;

use format::Manifest;
use store::{Domain, Domains, Key, Origin};
use types::{FrozenId, Name, ObjectPath, SnapshotId};
use volume::{BlockDevice, TreeBase};

use crate::api::{ApiError, ErrorCode};
use crate::buckets::BucketState;
use crate::error::{blocking, not_found, store_error};
use crate::node::Node;
use crate::record::SnapshotRecord;

/// A version that was found.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) bucket: Arc<BucketState>,
    pub(crate) object: Name,
    pub(crate) version: u64,
    /// Its record, where it was taken here.
    pub(crate) record: Option<SnapshotRecord>,
    /// Its id, once it is sealed.
    pub(crate) snapshot: Option<SnapshotId>,
}

/// A disk of a version.
#[derive(Clone, Debug)]
pub(crate) enum DiskContent {
    /// Not sealed yet.
    Frozen(FrozenId),
    /// Its tree, and the trust domain for what is written over it.
    Tree(TreeBase),
}

impl Resolved {
    /// `BUCKET/OBJECT@VERSION`.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}@{}", self.bucket.name(), self.object, self.version)
    }
}

impl Node {
    /// Finds a version by path or snapshot id.
    pub(crate) fn resolve(&self, text: &str) -> Result<Resolved, ApiError> {
        if let Ok(snapshot) = text.parse::<SnapshotId>() {
            return self.resolve_id(snapshot);
        }
        let path: ObjectPath = text.parse().map_err(|error: types::NameError| {
            ApiError::new(ErrorCode::Invalid, error.to_string()).hint("a snapshot's id of 64 digits will do as well")
        })?;
        let bucket = self.buckets.find(&path.bucket)?;
        let none = || not_found("object", format!("{}/{}", path.bucket, path.object)).hint("see: brant snapshot list");
        let latest = self.versions.latest(&bucket, &path.object).ok_or_else(none)?;
        let version = path.version.unwrap_or(latest);
        let record = self.versions.find(bucket.id, &path.object, version);
        let logged = bucket.history().log.version(&path.object, version).cloned();
        if logged.as_ref().is_some_and(|version| version.retired) {
            let error =
                ApiError::new(ErrorCode::NotFound, format!("{}/{}@{version} was retired", path.bucket, path.object));
            return Err(error.hint("name a version that is offered: brant snapshot list"));
        }
        if record.is_none() && logged.is_none() {
            let text = format!("{}/{}@{version}", path.bucket, path.object);
            return Err(not_found("version", text).hint(format!("the latest is @{latest}")));
        }
        let snapshot = logged.map(|version| version.snapshot).or_else(|| record.as_ref()?.snapshot);
        Ok(Resolved { bucket, object: path.object, version, record, snapshot })
    }

    fn resolve_id(&self, snapshot: SnapshotId) -> Result<Resolved, ApiError> {
        let offering = self.buckets.offering(&snapshot);
        // A bucket of our own is preferred: its record says where absent parts are.
        let bucket = offering.iter().find(|bucket| bucket.writable()).or_else(|| offering.first());
        let bucket = bucket.ok_or_else(|| not_found("snapshot", snapshot).hint("see: brant snapshot list"))?;
        let place = bucket.history().log.snapshot_versions(snapshot).last().cloned();
        let (object, version) = place.ok_or_else(|| not_found("snapshot", snapshot))?;
        let record = self.versions.find(bucket.id, &object, version);
        Ok(Resolved { bucket: Arc::clone(bucket), object, version, record, snapshot: Some(snapshot) })
    }

    /// Where the data of a version may be found.
    pub(crate) fn domains_of(&self, resolved: &Resolved) -> Domains {
        match &resolved.record {
            Some(record) => record.domains(),
            None => Domain(resolved.bucket.record().domain).into(),
        }
    }

    /// The manifest of a sealed version; asks peers for it where it is not here.
    pub(crate) async fn manifest(&self, resolved: &Resolved) -> Result<Manifest, ApiError> {
        let Some(snapshot) = resolved.snapshot else {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{} is still being sealed", resolved.path())));
        };
        let domains = self.domains_of(resolved);
        let waiting = self.swarm.manifest(snapshot, &domains);
        match tokio::time::timeout(self.options.manifest_timeout, waiting).await {
            Ok(manifest) => manifest.map_err(|error| ApiError::from_error(ErrorCode::Unreachable, &error)),
            Err(_) => {
                Err(ApiError::new(ErrorCode::Unreachable, format!("nobody gave the manifest of {}", resolved.path()))
                    .hint("is a node that publishes it running and reachable? see: brant bucket show"))
            }
        }
    }

    /// The manifest of a sealed version, if it is here.
    pub(crate) fn local_manifest(&self, resolved: &Resolved) -> Result<Option<Manifest>, ApiError> {
        let Some(snapshot) = resolved.snapshot else { return Ok(None) };
        let bytes = self.store.get(&Key::from(snapshot), &self.domains_of(resolved)).map_err(store_error)?;
        let decode = |bytes: bytes::Bytes| {
            Manifest::decode(&bytes).map_err(|error| ApiError::from_error(ErrorCode::Damaged, &error))
        };
        bytes.map(decode).transpose()
    }

    /// The content of one disk of a version: the only one where no name is given.
    pub(crate) async fn disk(&self, resolved: &Resolved, name: Option<&str>) -> Result<DiskContent, ApiError> {
        if let Some(record) = resolved.record.as_ref().filter(|record| record.snapshot.is_none()) {
            let names: Vec<_> = record.disks.iter().map(|disk| disk.name.as_str()).collect();
            let disk = &record.disks[choose(&names, name)?];
            if let Some(frozen) = disk.frozen {
                return Ok(DiskContent::Frozen(frozen));
            }
        }
        let bases = self.tree_bases(resolved).await?;
        let names: Vec<_> = bases.iter().map(|(name, _)| name.as_str()).collect();
        let chosen = choose(&names, name)?;
        Ok(DiskContent::Tree(bases[chosen].1.clone()))
    }

    /// The trees of all disks of a version, by name. Those that are not sealed yet are left out.
    pub(crate) async fn tree_bases(&self, resolved: &Resolved) -> Result<Vec<(Name, TreeBase)>, ApiError> {
        let domains = self.domains_of(resolved);
        if let Some(record) = &resolved.record {
            let sealed = record.disks.iter().filter(|disk| disk.frozen.is_none());
            let base = |disk: &crate::record::DiskRecord| TreeBase {
                size_bytes: disk.size_bytes,
                root: disk.root,
                origin: disk.origin.map(Origin::from),
                domains: domains.clone(),
                written: Domain::OWN,
            };
            return Ok(sealed.map(|disk| (disk.name.clone(), base(disk))).collect());
        }
        let manifest = self.manifest(resolved).await?;
        let snapshot = resolved.snapshot.ok_or_else(|| not_found("snapshot", resolved.path()))?;
        let base = |(number, disk): (u32, format::Disk)| {
            let origin = Some(Origin { snapshot, disk: number });
            let tree = TreeBase {
                size_bytes: disk.size_bytes,
                root: disk.root,
                origin,
                domains: domains.clone(),
                written: Domain::OWN,
            };
            (disk.name, tree)
        };
        Ok((0..).zip(manifest.disks).map(base).collect())
    }

    /// A volume by name, or a disk of a snapshot, as a device, and what it is called.
    pub(crate) async fn device(
        &self,
        target: &str,
        disk: Option<&str>,
    ) -> Result<(String, Arc<dyn BlockDevice>), ApiError> {
        if let Ok(name) = target.parse::<Name>() {
            if let Some(volume) = self.volumes.get(&name).filter(|_| !self.cluster.replicas.holds(&name)) {
                return Ok((name.to_string(), volume));
            }
            if target.parse::<SnapshotId>().is_err() {
                return Err(not_found("volume", name).hint("see: brant volume list and brant snapshot list"));
            }
        }
        let resolved = self.resolve(target)?;
        let device: Arc<dyn BlockDevice> = match self.disk(&resolved, disk).await? {
            DiskContent::Frozen(id) => {
                self.volumes.frozen(id).ok_or_else(|| not_found("frozen disk of", resolved.path()))?
            }
            DiskContent::Tree(base) => self.volumes.view(base),
        };
        Ok((resolved.path(), device))
    }

    /// Writes what the catalog lists of a bucket anew.
    pub(crate) async fn index_bucket(&self, bucket: &Arc<BucketState>) -> Result<(), ApiError> {
        let snapshots = crate::listing::versions_of(bucket, &self.versions);
        let name = bucket.name();
        self.catalog.replace_versions(name.as_str(), &snapshots).await.map_err(crate::error::catalog_error)
    }

    /// As [`BucketState::append`], on a thread for blocking work, with the catalog brought up to date.
    pub(crate) async fn append(
        self: &Arc<Self>,
        bucket: &Arc<BucketState>,
        action: format::entry::Action,
    ) -> Result<(), ApiError> {
        let appending = Arc::clone(bucket);
        blocking(move || appending.append(action)).await?;
        self.index_bucket(bucket).await
    }
}

fn choose(names: &[&str], name: Option<&str>) -> Result<usize, ApiError> {
    match name {
        None if names.len() == 1 => Ok(0),
        None => Err(ApiError::new(ErrorCode::Invalid, format!("the snapshot has {} disks", names.len()))
            .hint(format!("choose one with --disk: {}", names.join(", ")))),
        Some(name) => names
            .iter()
            .position(|candidate| *candidate == name)
            .ok_or_else(|| not_found("disk", name).hint(format!("the snapshot has: {}", names.join(", ")))),
    }
}

//! Taking snapshots of volumes, and cloning snapshots into volumes.

use std::sync::Arc;

use format::manifest::Machine;
use store::{Domain, Domains, RootChange};
use types::{Name, ObjectPath, SnapshotId};
use volume::{CloneOf, TreeBase, Volume};

use crate::api::{self, ApiError, ErrorCode};
use crate::buckets::BucketState;
use crate::error::{blocking, code_beneath, not_found, store_error};
use crate::node::Node;
use crate::record::{DiskRecord, SnapshotRecord};
use crate::resolve::DiskContent;
use crate::task::now_ms;

/// The longest description of a machine that is taken, in bytes: a manifest has room for it and all disks.
const MAX_DESCRIPTION_BYTES: usize = 64 << 10;

/// The longest media type, in bytes.
const MAX_MEDIA_TYPE_BYTES: usize = 100;

/// Reads where a new version shall go; its number is given, not chosen.
pub(crate) fn parse_new_path(text: &str) -> Result<ObjectPath, ApiError> {
    let path: ObjectPath =
        text.parse().map_err(|error: types::NameError| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
    match path.version {
        None => Ok(path),
        Some(_) => Err(ApiError::new(ErrorCode::Invalid, format!("{text} names a version"))
            .hint("a new version's number is given by the bucket: leave @VERSION out")),
    }
}

/// A version that is about to be taken.
#[derive(Debug)]
pub(crate) struct NewVersion {
    pub(crate) object: Name,
    pub(crate) volumes: Vec<Arc<Volume>>,
    /// What the disks are called in it.
    pub(crate) names: Vec<Name>,
    /// When, in milliseconds since 1970.
    pub(crate) taken_ms: u64,
    pub(crate) message: String,
    pub(crate) machine: Option<Machine>,
    /// Whether a schedule takes it.
    pub(crate) scheduled: bool,
}

impl Node {
    /// Takes a snapshot of volumes at one moment. It has its version at once and is sealed in the background.
    pub(crate) async fn take_snapshot(
        self: &Arc<Self>,
        request: api::TakeSnapshotRequest,
    ) -> Result<api::Snapshot, ApiError> {
        let path = parse_new_path(&request.path)?;
        if request.volumes.is_empty() {
            return Err(ApiError::new(ErrorCode::Invalid, "no volume to take a snapshot of"));
        }
        let bucket = self.buckets.find(&path.bucket)?;
        let volumes: Vec<_> = request.volumes.iter().map(|name| self.find_volume(name)).collect::<Result<_, _>>()?;
        if volumes
            .iter()
            .enumerate()
            .any(|(place, volume)| volumes[..place].iter().any(|other| other.id() == volume.id()))
        {
            return Err(ApiError::new(ErrorCode::Invalid, "a volume is named twice"));
        }
        let new = NewVersion {
            object: path.object.clone(),
            names: disk_names(&path.object, &volumes, request.disks)?,
            volumes,
            taken_ms: now_ms(),
            message: request.message,
            machine: request.machine.map(machine_of).transpose()?,
            scheduled: false,
        };
        let (node, taking) = (Arc::clone(self), Arc::clone(&bucket));
        let version = blocking(move || node.freeze(&taking, new, |_| Vec::new())).await?;
        self.start_sealing(&bucket, &path.object, version).await.map_err(|error| {
            let message = format!("{path}@{version} is taken, but cannot be sealed yet: {}", error.message);
            let hint = "do not take it again: it is sealed by itself, once what keeps it from that has gone";
            ApiError::new(error.code, message).hint(hint)
        })?;
        let find = crate::listing::versions_of(&bucket, &self.versions)
            .into_iter()
            .find(|snapshot| snapshot.object == path.object && snapshot.version == version);
        find.ok_or_else(|| not_found("version", request.path))
    }

    /// Freezes volumes as a new version, whose number it returns. `further` are changes of the roots in the same step. Blocks.
    pub(crate) fn freeze(
        &self,
        bucket: &BucketState,
        new: NewVersion,
        further: impl FnOnce(u64) -> Vec<RootChange>,
    ) -> Result<u64, ApiError> {
        let NewVersion { object, volumes, names, taken_ms, message, machine, scheduled } = new;
        let statuses: Vec<_> = volumes.iter().map(|volume| volume.status()).collect();
        let bases: Vec<_> = statuses.iter().map(|status| &status.base).collect();
        let domains = bases.iter().skip(1).fold(bases[0].domains.clone(), |all, base| all.with(&base.domains));
        let domains = bases.iter().fold(domains, |all, base| all.with(&Domains::from(base.written)));
        let record = SnapshotRecord {
            taken_ms,
            message,
            disks: names
                .into_iter()
                .zip(&statuses)
                .map(|(name, status)| DiskRecord {
                    name,
                    size_bytes: status.size_bytes,
                    frozen: None,
                    root: None,
                    origin: status.base.origin.map(Into::into),
                })
                .collect(),
            domains: domains.iter().map(|domain| domain.0).collect(),
            base: bases.iter().find_map(|base| base.origin).map(|origin| origin.snapshot),
            snapshot: None,
            machine,
            scheduled: scheduled.then_some(true),
        };
        let freezing = |version, to_change: Box<dyn FnOnce(&SnapshotRecord) -> RootChange>| {
            let mut record = record;
            let frozen = self
                .volumes
                .freeze(&volumes, |ids| {
                    for (disk, id) in record.disks.iter_mut().zip(ids) {
                        disk.frozen = Some(*id);
                    }
                    let mut changes = further(version);
                    changes.push(to_change(&record));
                    changes
                })
                .map_err(volume_error)?;
            Ok((record, frozen))
        };
        let (version, _) = self.versions.take(bucket, &object, freezing)?;
        Ok(version)
    }

    /// Makes a volume that begins as a disk of a snapshot, or as what another volume is now.
    pub(crate) async fn clone_snapshot(self: &Arc<Self>, request: api::CloneRequest) -> Result<Arc<Volume>, ApiError> {
        if let Some((source, moment)) = request.snapshot.split_once('@')
            && !source.contains('/')
        {
            if request.size_bytes.is_some() || !request.labels.is_empty() {
                return Err(ApiError::new(ErrorCode::Invalid, "a clone of a moment gets no size or labels at once")
                    .hint("give them to it afterwards"));
            }
            return self.clone_moment(source, moment, request.volume).await;
        }
        self.check_not_given(&request.volume).await?;
        let of = self.clone_of(&request).await?;
        let (node, name, size_bytes) = (Arc::clone(self), request.volume, request.size_bytes.map(|size| size.0));
        // In one go, as who asked may be gone before it is done.
        blocking(move || {
            let volume = node.volumes.clone_disk(&name, of, size_bytes).map_err(volume_error)?;
            node.label_new(&volume, request.labels).map(|()| volume)
        })
        .await
    }

    /// What a clone begins as.
    async fn clone_of(&self, request: &api::CloneRequest) -> Result<CloneOf, ApiError> {
        if let Ok(source) = request.snapshot.parse::<Name>()
            && request.snapshot.parse::<SnapshotId>().is_err()
        {
            return match &request.disk {
                None => self.find_volume(&source).map(CloneOf::Volume),
                Some(_) => Err(ApiError::new(ErrorCode::Invalid, format!("{source} is a volume, which is one disk"))),
            };
        }
        let resolved = self.resolve(&request.snapshot)?;
        Ok(match self.disk(&resolved, request.disk.as_deref()).await? {
            DiskContent::Frozen(id) => CloneOf::Frozen(id),
            DiskContent::Tree(base) => CloneOf::Tree(self.base_for_volume(&request.volume, base)?),
        })
    }

    /// The trust domain of what a clone writes: our own, where all that it shows is.
    pub(crate) fn write_domain(&self, name: &Name, base: &TreeBase) -> Result<Domain, ApiError> {
        if base.domains.iter().all(|domain| domain == Domain::OWN) {
            return Ok(Domain::OWN);
        }
        self.domains.of_volume(name)
    }

    /// The version before the next one of an object, which a new one is likely to share most with.
    pub(crate) fn previous_snapshot(&self, bucket: &BucketState, object: &Name) -> Option<SnapshotId> {
        let latest = self.versions.latest(bucket, object)?;
        self.versions.find(bucket.id, object, latest)?.snapshot
    }
}

/// A machine's description as it is kept.
fn machine_of(machine: api::Machine) -> Result<Machine, ApiError> {
    let invalid = |message: String| Err(ApiError::new(ErrorCode::Invalid, message));
    let media_type = machine.media_type;
    if media_type.is_empty()
        || media_type.len() > MAX_MEDIA_TYPE_BYTES
        || !media_type.bytes().all(|b| b.is_ascii_graphic())
    {
        return invalid(format!("{media_type:?} is no media type"));
    }
    if machine.description.len() > MAX_DESCRIPTION_BYTES {
        return invalid(format!("the machine's description is longer than {MAX_DESCRIPTION_BYTES} bytes"));
    }
    Ok(Machine { media_type, description: machine.description.into_bytes() })
}

/// What the disks of a snapshot are called.
pub(crate) fn disk_names(object: &Name, volumes: &[Arc<Volume>], given: Vec<Name>) -> Result<Vec<Name>, ApiError> {
    if given.is_empty() {
        let single = volumes.len() == 1;
        let name = |volume: &Arc<Volume>| if single { object.clone() } else { volume.name().clone() };
        return Ok(volumes.iter().map(name).collect());
    }
    let repeated = given.iter().enumerate().any(|(place, name)| given[..place].contains(name));
    if given.len() != volumes.len() || repeated {
        let message = format!("the {} disks need as many names, each once", volumes.len());
        return Err(ApiError::new(ErrorCode::Invalid, message));
    }
    Ok(given)
}

/// Turns the volumes' error into the API's.
pub(crate) fn volume_error(error: volume::VolumeError) -> ApiError {
    use volume::VolumeError;
    let (code, hint) = match &error {
        VolumeError::Exists(_) | VolumeError::Repeated(_) => {
            (ErrorCode::Conflict, Some("choose another name, or see: brant volume list"))
        }
        VolumeError::Device(volume::DeviceError::Full) => {
            (ErrorCode::Full, Some("make room on the node's file system; see also: brant volume list --deleted"))
        }
        VolumeError::Size(_) => (ErrorCode::Invalid, None),
        VolumeError::Shrinks { .. } => {
            (ErrorCode::Invalid, Some("a disk only grows: its end may be in use; copy it to a smaller one instead"))
        }
        VolumeError::TooSmall { .. } => {
            (ErrorCode::Invalid, Some("a clone is at least as large as what it begins as: ask for more"))
        }
        VolumeError::NotFound(_) | VolumeError::UnknownFrozen(_) | VolumeError::UnknownDeleted(_) => {
            (ErrorCode::NotFound, None)
        }
        VolumeError::Damaged { .. } | VolumeError::Tree(_) => (ErrorCode::Damaged, None),
        VolumeError::Cancelled(_) => (ErrorCode::Cancelled, None),
        VolumeError::Store(_) => match error {
            VolumeError::Store(inner) => return store_error(inner),
            _ => unreachable!("just matched"),
        },
        _ => (code_beneath(&error), None),
    };
    let api = ApiError::from_error(code, &error);
    match hint {
        Some(hint) => api.hint(hint),
        None => api,
    }
}

/// Turns a disk's error into the API's.
pub(crate) fn device_error(error: volume::DeviceError) -> ApiError {
    volume_error(error.into())
}

//! What becomes of volumes: growing, reverting, deleting and taking back, and how their disks differ.

use std::sync::Arc;

use store::Domains;
use types::{Name, SnapshotId, VolumeId};
use volume::{BlockDevice as _, ChangedKind, Deleted, DiskState, RevertTo, TreeBase, Volume};

use crate::api::{self, ApiError, ErrorCode};
use crate::error::{blocking, not_found};
use crate::node::Node;
use crate::resolve::DiskContent;
use crate::snapshots::{device_error, volume_error};
use crate::task::now_ms;

/// How few digits of an id may stand for it.
const FEWEST_DIGITS: usize = 6;

/// How many extents one answer has at most, and where nobody says how many.
const MOST_EXTENTS: usize = 10_000;

/// Which differences are asked for.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
pub(crate) struct DifferencesQuery {
    /// A volume, `BUCKET/OBJECT[@VERSION]`, or a snapshot id.
    from: String,
    /// What it is compared with.
    to: String,
    /// The disk, of snapshots that have several.
    #[serde(default)]
    disk: Option<String>,
    /// Where to begin, in bytes.
    #[serde(default)]
    offset: u64,
    /// How many extents to answer at most.
    #[serde(default)]
    limit: Option<usize>,
}

impl Node {
    /// The volume of a name.
    pub(crate) fn find_volume(&self, name: &Name) -> Result<Arc<Volume>, ApiError> {
        self.volumes.get(name).filter(|_| !self.cluster.replicas.holds(name)).ok_or_else(|| {
            let error = not_found("volume", name);
            match self.volumes.deleted().into_iter().rfind(|deleted| deleted.name() == name) {
                Some(_) => error.hint(format!("it was deleted; take it back with: brant volume restore {name}")),
                None => error.hint("see: brant volume list"),
            }
        })
    }

    /// Makes a volume larger, also while it is in use.
    pub(crate) async fn resize_volume(self: &Arc<Self>, name: &Name, size_bytes: u64) -> Result<api::Volume, ApiError> {
        let volume = self.find_volume(name)?;
        let (node, growing) = (Arc::clone(self), Arc::clone(&volume));
        blocking(move || {
            if size_bytes > growing.size_bytes() {
                node.attachments.check_resizable(growing.name().as_str())?;
            }
            node.volumes.grow(&growing, size_bytes).map_err(volume_error)?;
            node.attachments.follow_size(growing.name().as_str());
            Ok(())
        })
        .await?;
        Ok(self.show_volume(&volume))
    }

    /// Deletes a volume that is not attached, and keeps it for a while unless it shall be gone `now`.
    pub(crate) async fn remove_volume(self: &Arc<Self>, name: &Name, now: bool) -> Result<api::Volume, ApiError> {
        let volume = self.find_volume(name)?;
        self.check_detached(name.as_str())?;
        self.check_not_replicated(name, "removed")?;
        self.forget_arrival(name).await?;
        self.forget_taking(name).await?;
        let shown = self.show_volume(&volume);
        let (node, name) = (Arc::clone(self), name.clone());
        blocking(move || match now {
            true => {
                node.volumes.remove(&name).map_err(volume_error)?;
                node.forget_gone();
                Ok(())
            }
            false => node.volumes.delete(&name, now_ms(), "removed").map(drop).map_err(volume_error),
        })
        .await?;
        Ok(shown)
    }

    /// The deleted volumes, the oldest deletion first.
    pub(crate) fn list_deleted(&self) -> Vec<api::DeletedVolume> {
        self.volumes.deleted().iter().map(|deleted| self.show_deleted(deleted)).collect()
    }

    fn show_deleted(&self, deleted: &Deleted) -> api::DeletedVolume {
        api::DeletedVolume {
            name: deleted.name().clone(),
            id: deleted.id(),
            size_bytes: deleted.status().size_bytes,
            note: deleted.note().to_owned(),
            deleted_ms: deleted.deleted_ms(),
            expires_ms: deleted.deleted_ms().saturating_add(self.keep_deleted_ms()),
            journal_bytes: self.volumes.own_journal_bytes(deleted.id()),
        }
    }

    /// Forgets what was kept with volumes that are gone for good.
    fn forget_gone(&self) {
        self.labels.forget_but(&self.volumes);
        self.schedules.forget_but(&self.volumes);
    }

    fn keep_deleted_ms(&self) -> u64 {
        u64::try_from(self.options.keep_deleted.as_millis()).unwrap_or(u64::MAX)
    }

    /// A deleted volume by its id, the first digits of it, or the name that it had: the latest of that name.
    fn find_deleted(&self, text: &str) -> Result<Deleted, ApiError> {
        let mut all = self.volumes.deleted();
        if let Some(place) = all.iter().rposition(|deleted| deleted.name().as_str() == text) {
            return Ok(all.swap_remove(place));
        }
        let named = |deleted: &Deleted| text.len() >= FEWEST_DIGITS && deleted.id().to_string().starts_with(text);
        let mut matching: Vec<_> = all.into_iter().filter(named).collect();
        match (matching.pop(), matching.is_empty()) {
            (Some(deleted), true) => Ok(deleted),
            (Some(_), false) => Err(ApiError::new(ErrorCode::Conflict, format!("{text} begins several ids"))
                .hint("write more digits; see: brant volume list --deleted")),
            (None, _) => Err(not_found("deleted volume", text).hint("see: brant volume list --deleted")),
        }
    }

    /// Takes a deleted volume back.
    pub(crate) async fn restore_volume(
        self: &Arc<Self>,
        text: &str,
        name: Option<Name>,
    ) -> Result<api::Volume, ApiError> {
        let deleted = self.find_deleted(text)?;
        let name = name.unwrap_or_else(|| deleted.name().clone());
        self.check_not_given(&name).await?;
        let node = Arc::clone(self);
        let restored = blocking(move || match node.volumes.restore(deleted.id(), &name) {
            Err(error @ volume::VolumeError::Exists(_)) => Err(ApiError::from_error(ErrorCode::Conflict, &error)
                .hint(format!("choose another name: brant volume restore {} --as NAME", deleted.id().short()))),
            outcome => outcome.map_err(volume_error),
        })
        .await?;
        Ok(self.show_volume(&restored))
    }

    /// Deletes a deleted volume for good.
    pub(crate) async fn purge_volume(self: &Arc<Self>, text: &str) -> Result<api::DeletedVolume, ApiError> {
        let deleted = self.find_deleted(text)?;
        let shown = self.show_deleted(&deleted);
        let node = Arc::clone(self);
        blocking(move || {
            node.volumes.purge(deleted.id()).map_err(volume_error)?;
            node.forget_gone();
            Ok(())
        })
        .await?;
        Ok(shown)
    }

    /// Deletes for good what has been kept for long enough.
    pub(crate) async fn expire_deleted(self: &Arc<Self>) {
        let Some(until_ms) = now_ms().checked_sub(self.keep_deleted_ms()) else { return };
        if self.volumes.deleted().iter().all(|deleted| deleted.deleted_ms() > until_ms) {
            return;
        }
        let node = Arc::clone(self);
        let expire = move || {
            let expired = node.volumes.expire(until_ms).map_err(volume_error)?;
            node.forget_gone();
            Ok(expired)
        };
        match blocking(expire).await {
            Ok(expired) => {
                for deleted in expired {
                    tracing::info!(volume = %deleted.name(), id = %deleted.id(), "a deleted volume is gone for good");
                }
            }
            Err(error) => tracing::warn!(%error, "deleted volumes could not be removed for good"),
        }
    }

    /// Puts a volume back to a snapshot, or to a deleted volume. Refused while a client is connected; an attachment
    /// that nobody uses stays.
    pub(crate) async fn revert_volume(
        self: &Arc<Self>,
        name: &Name,
        request: api::RevertRequest,
    ) -> Result<api::Reverted, ApiError> {
        let volume = self.find_volume(name)?;
        self.check_not_replicated(name, "reverted")?;
        let (to, shown) = self.revert_target(name, &request).await?;
        let attached = self.attachments.find(name.as_str());
        if let Some(device) = attached.as_ref().and_then(|found| found.device.as_ref()) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} is the device {device}"))
                .hint(format!("first: brant detach {name}, as the kernel may have parts of it in memory")));
        }
        if let Some(attachment) = attached.filter(|found| found.connections > 0) {
            let clients = if attachment.connections == 1 { "client is" } else { "clients are" };
            let message = format!("{name} is in use: {} {clients} connected", attachment.connections);
            return Err(ApiError::new(ErrorCode::Conflict, message)
                .hint("stop whoever uses it first, as its disk would change under it; the attachment may stay"));
        }
        let (node, reverting) = (Arc::clone(self), Arc::clone(&volume));
        let note = format!("before it was reverted to {shown}");
        let kept = blocking(move || node.volumes.revert(&reverting, to, now_ms(), &note).map_err(volume_error)).await?;
        // Who connected meanwhile has seen the old disk, and begins anew with the new one.
        self.attachments.disconnect(name.as_str());
        Ok(api::Reverted { volume: self.show_volume(&volume), kept: self.show_deleted(&kept) })
    }

    async fn revert_target(&self, name: &Name, request: &api::RevertRequest) -> Result<(RevertTo, String), ApiError> {
        if let Ok(id) = request.to.parse::<VolumeId>() {
            let deleted = self.find_deleted(&request.to)?;
            return Ok((RevertTo::Deleted(id), format!("{} ({})", deleted.id(), deleted.note())));
        }
        let resolved = self.resolve(&request.to)?;
        let to = match self.disk(&resolved, request.disk.as_deref()).await? {
            DiskContent::Frozen(id) => RevertTo::Frozen(id),
            DiskContent::Tree(base) => RevertTo::Tree(self.base_for_volume(name, base)?),
        };
        Ok((to, resolved.path()))
    }

    /// A snapshot's tree with the trust domain of what a volume over it writes.
    pub(crate) fn base_for_volume(&self, name: &Name, base: TreeBase) -> Result<TreeBase, ApiError> {
        let written = self.write_domain(name, &base)?;
        let domains = base.domains.with(&Domains::from(written));
        Ok(TreeBase { written, domains, ..base })
    }

    /// What a volume or a disk of a snapshot is, and what it is called.
    async fn disk_state(&self, target: &str, disk: Option<&str>) -> Result<(String, DiskState), ApiError> {
        if let Ok(name) = target.parse::<Name>()
            && target.parse::<SnapshotId>().is_err()
        {
            return self.find_volume(&name).map(|volume| (name.to_string(), volume.state()));
        }
        let resolved = self.resolve(target)?;
        // Of two snapshots only one may have several disks.
        let content = match self.disk(&resolved, None).await {
            Err(_) if disk.is_some() => self.disk(&resolved, disk).await?,
            only => only?,
        };
        let state = match content {
            DiskContent::Frozen(id) => {
                let frozen = self.volumes.frozen(id);
                frozen.ok_or_else(|| not_found("frozen disk of", resolved.path()))?.state()
            }
            DiskContent::Tree(base) => self.volumes.view(base).state(),
        };
        Ok((resolved.path(), state))
    }

    /// Where two disks differ: some of it, and where to go on.
    pub(crate) async fn differences(&self, query: DifferencesQuery) -> Result<api::Differences, ApiError> {
        let (from, before) = self.disk_state(&query.from, query.disk.as_deref()).await?;
        let (to, after) = self.disk_state(&query.to, query.disk.as_deref()).await?;
        let (from_size_bytes, to_size_bytes) = (before.size_bytes(), after.size_bytes());
        let limit = query.limit.unwrap_or(MOST_EXTENTS).clamp(1, MOST_EXTENTS);
        let changes = blocking(move || before.changes(&after, query.offset, limit).map_err(device_error)).await?;
        let extents = changes.extents.into_iter().map(|changed| api::DifferenceExtent {
            offset: changed.offset,
            length: changed.length,
            kind: match changed.kind {
                ChangedKind::Data => api::DifferenceKind::Data,
                ChangedKind::Zero => api::DifferenceKind::Zero,
                ChangedKind::Unknown => api::DifferenceKind::Unknown,
            },
        });
        let extents = extents.collect();
        Ok(api::Differences { from, to, from_size_bytes, to_size_bytes, extents, next: changes.next })
    }
}

//! Foreign disks in and out, and hydration: the tasks that move data.

use std::fs::File;
use std::sync::Arc;

use capture::nbd::{NbdDisk, NbdOptions, NbdUri};
use capture::qemu::QemuOptions;
use capture::{CaptureError, ForeignDisk, ImportError, MaterializeError, QemuError, ReflinkError, Target};
use store::Domain;
use types::{ObjectPath, Progress};

use crate::api::{
    ApiError, ErrorCode, ImageFormat, ImportRequest, MaterializeRequest, Reflink, SourceSpec, TargetSpec, Task,
    TaskKind,
};
use crate::buckets::BucketState;
use crate::error::{blocking, code_beneath};
use crate::node::Node;
use crate::record::{DiskRecord, SnapshotRecord};
use crate::snapshots::parse_new_path;
use crate::task::{Outcome, now_ms};

enum Opened {
    File(File, String),
    Nbd(String),
}

impl Node {
    pub(crate) fn redeem(&self, ticket: &str) -> Result<File, ApiError> {
        self.tickets.redeem(ticket).ok_or_else(|| {
            ApiError::new(ErrorCode::Invalid, "the file's ticket is unknown, used, or older than a minute")
        })
    }

    /// Starts to read a foreign disk into a bucket.
    pub(crate) async fn start_import(self: &Arc<Self>, request: ImportRequest) -> Result<Task, ApiError> {
        let path = parse_new_path(&request.path)?;
        let bucket = self.buckets.find(&path.bucket)?;
        if !bucket.writable() {
            return Err(ApiError::new(ErrorCode::Forbidden, format!("{} is somebody else's bucket", path.bucket))
                .hint("import into a bucket of your own: brant bucket create NAME"));
        }
        let source = match request.source {
            SourceSpec::Descriptor { ticket, name } => Opened::File(self.redeem(&ticket)?, name),
            SourceSpec::Nbd { uri } => Opened::Nbd(uri),
        };
        // What cannot be opened is refused at once, before there is a task.
        let (format, reflink, store) = (request.format, reflink(request.reflink), Arc::clone(&self.store));
        let disk = blocking(move || open_source(source, format, &*store, reflink)).await?;
        let (node, message) = (Arc::clone(self), request.message);
        let subject = request.path;
        let work = |progress| async move { node.import(&bucket, &path, disk, message, progress).await };
        self.tasks.start(TaskKind::Import, subject, work).await
    }

    async fn import(
        self: &Arc<Self>,
        bucket: &Arc<BucketState>,
        path: &ObjectPath,
        disk: Box<dyn ForeignDisk>,
        message: String,
        progress: Arc<Progress>,
    ) -> Outcome {
        let taken_ms = now_ms();
        let previous = self.previous_snapshot(bucket, &path.object);
        let store = Arc::clone(&self.store);
        // Until a record refers to what is stored.
        let hold = self.store.hold();
        let imported = blocking(move || {
            let imported =
                capture::import(&*disk, &store, Domain::OWN, &progress).map_err(|error| import_error(&error));
            drop(disk);
            imported
        })
        .await?;
        let record = SnapshotRecord {
            taken_ms,
            message,
            disks: vec![DiskRecord {
                name: path.object.clone(),
                size_bytes: imported.size_bytes,
                frozen: None,
                root: imported.root,
                origin: None,
            }],
            domains: vec![Domain::OWN.0],
            base: previous,
            snapshot: None,
            machine: None,
            scheduled: None,
        };
        let (node, taking, object) = (Arc::clone(self), Arc::clone(bucket), path.object.clone());
        let version = blocking(move || {
            let write = |_, change: Box<dyn FnOnce(&SnapshotRecord) -> store::RootChange>| {
                node.store.roots().apply(vec![change(&record)]).map_err(crate::error::store_error)?;
                Ok((record, ()))
            };
            node.versions.take(&taking, &object, write).map(|(version, ())| version)
        })
        .await?;
        drop(hold);
        self.finish_version(bucket, &path.object, version).await?;
        let size = types::ByteSize(imported.size_bytes);
        let mut said = format!(
            "{}/{}@{version}: {size} disk, {} new chunks, {} stored",
            path.bucket,
            path.object,
            imported.new_chunks,
            types::ByteSize(imported.new_bytes_stored)
        );
        if imported.shared_bytes > 0 {
            let shared = types::ByteSize(imported.shared_bytes);
            said += &format!(", {shared} shared with the file and not compressed");
        }
        Ok(said)
    }

    /// Starts to write a snapshot or volume out to foreign storage.
    pub(crate) async fn start_materialization(self: &Arc<Self>, request: MaterializeRequest) -> Result<Task, ApiError> {
        let (name, device) = self.device(&request.snapshot, request.disk.as_deref()).await?;
        let format = image_format(request.format.unwrap_or(ImageFormat::Raw));
        let (target, shown) = match request.target {
            TargetSpec::Descriptor { ticket, name } => {
                let (file, reflink) = (self.redeem(&ticket)?, reflink(request.reflink));
                (Target::File { file, format, compress: false, reflink }, name)
            }
            TargetSpec::Nbd { uri } => {
                if request.reflink == Reflink::Always {
                    return Err(reflink_error(&ReflinkError::NotRaw("an NBD export")));
                }
                (Target::Nbd { uri: nbd_uri(&uri)? }, uri)
            }
        };
        let runtime = tokio::runtime::Handle::current();
        let subject = format!("{name} to {shown}");
        let work = |progress: Arc<Progress>| async move {
            let done = blocking(move || {
                capture::materialize(&device, &runtime, target, &progress).map_err(|error| materialize_error(&error))
            })
            .await?;
            let written = types::ByteSize(done.written_bytes);
            Ok(match done.shared_bytes {
                0 => format!("{shown}: {written} written, the rest are holes"),
                shared => {
                    let shared = types::ByteSize(shared);
                    format!("{shown}: {shared} shared with the store, {written} written, the rest are holes")
                }
            })
        };
        self.tasks.start(TaskKind::Materialize, subject, work).await
    }

    /// Starts to bring what is not here of a volume or snapshot.
    pub(crate) async fn start_hydration(self: &Arc<Self>, target: String) -> Result<Task, ApiError> {
        self.hydration_trees(&target).await?;
        let (node, subject) = (Arc::clone(self), target.clone());
        let work = |progress| async move { node.hydrate(&target, progress).await };
        self.tasks.start(TaskKind::Hydrate, subject, work).await
    }

    /// Goes on with a hydration that was under way when the node stopped.
    pub(crate) fn resume_hydration(self: &Arc<Self>, task: Task) {
        let (node, target) = (Arc::clone(self), task.subject.clone());
        self.tasks.resume(task, |progress| async move { node.hydrate(&target, progress).await });
    }

    async fn hydration_trees(&self, target: &str) -> Result<Vec<volume::TreeBase>, ApiError> {
        if let Some(volume) = target.parse().ok().and_then(|name: types::Name| self.find_volume(&name).ok()) {
            return Ok(vec![volume.status().base]);
        }
        if target.contains('/') || target.len() == 64 {
            let resolved = self.resolve(target)?;
            return Ok(self.tree_bases(&resolved).await?.into_iter().map(|(_, base)| base).collect());
        }
        Err(crate::error::not_found("volume", target).hint("see: brant volume list and brant snapshot list"))
    }

    async fn hydrate(&self, target: &str, progress: Arc<Progress>) -> Outcome {
        for base in self.hydration_trees(target).await? {
            self.hydrate_tree(&base, &progress).await?;
        }
        Ok(format!("all of {target} is here"))
    }

    /// Brings everything of a tree.
    pub(crate) async fn hydrate_tree(&self, base: &volume::TreeBase, progress: &Progress) -> Result<(), ApiError> {
        let Some(tree) = remote_tree(base) else { return Ok(()) };
        self.swarm.hydrate(&tree, progress).await.map_err(|error| swarm_error(&error))
    }
}

/// What to ask peers for; `None` where everything is here by construction.
pub(crate) fn remote_tree(base: &volume::TreeBase) -> Option<swarm::RemoteTree> {
    let origin = base.origin?;
    Some(swarm::RemoteTree { origin, size_bytes: base.size_bytes, root: base.root, domains: base.domains.clone() })
}

/// Turns the swarm's error into the API's.
pub(crate) fn swarm_error(error: &swarm::SwarmError) -> ApiError {
    match error {
        swarm::SwarmError::Cancelled(_) => ApiError::new(ErrorCode::Cancelled, "cancelled"),
        error => match code_beneath(error) {
            ErrorCode::Internal => ApiError::from_error(ErrorCode::Unreachable, error),
            code => ApiError::from_error(code, error),
        },
    }
}

fn open_source(
    source: Opened,
    format: Option<ImageFormat>,
    store: &dyn store::ChunkStore,
    reflink: capture::Reflink,
) -> Result<Box<dyn ForeignDisk>, ApiError> {
    match source {
        Opened::Nbd(uri) => {
            if reflink == capture::Reflink::Always {
                return Err(reflink_error(&ReflinkError::NotRaw("an NBD export")));
            }
            let disk = NbdDisk::connect(&nbd_uri(&uri)?, &NbdOptions::default());
            Ok(Box::new(disk.map_err(|error| capture_error(&error.into()))?))
        }
        Opened::File(file, name) => {
            let options = QemuOptions { path: Some(name.into()), ..QemuOptions::default() };
            let format = format.map(image_format);
            capture::open_to_share(file, format, &options, store, reflink).map_err(|error| capture_error(&error))
        }
    }
}

fn reflink(reflink: Reflink) -> capture::Reflink {
    match reflink {
        Reflink::Auto => capture::Reflink::Auto,
        Reflink::Always => capture::Reflink::Always,
        Reflink::Never => capture::Reflink::Never,
    }
}

/// Says that room cannot be shared, and what to do.
fn reflink_error(error: &ReflinkError) -> ApiError {
    let code = match code_beneath(error) {
        ErrorCode::Full => ErrorCode::Full,
        _ => ErrorCode::Invalid,
    };
    ApiError::from_error(code, error)
        .hint("keep the raw file and the node's directory on one XFS or btrfs file system, or give --reflink auto")
}

fn image_format(format: ImageFormat) -> capture::Format {
    match format {
        ImageFormat::Raw => capture::Format::Raw,
        ImageFormat::Qcow2 => capture::Format::Qcow2,
        ImageFormat::Vmdk => capture::Format::Vmdk,
        ImageFormat::Vhdx => capture::Format::Vhdx,
        ImageFormat::Vdi => capture::Format::Vdi,
    }
}

fn nbd_uri(text: &str) -> Result<NbdUri, ApiError> {
    text.parse::<NbdUri>().map_err(|error| ApiError::from_error(ErrorCode::Invalid, &error))
}

fn capture_error(error: &CaptureError) -> ApiError {
    let code = match error {
        CaptureError::NotADisk(_) | CaptureError::Size(_) | CaptureError::Detect(_) => ErrorCode::Invalid,
        CaptureError::Nbd(_) => ErrorCode::Unreachable,
        CaptureError::Qemu(QemuError::Damaged { .. }) => ErrorCode::Damaged,
        CaptureError::Reflink(error) => return reflink_error(error),
        CaptureError::Qemu(QemuError::Encrypted(_) | QemuError::OtherFile(_)) => ErrorCode::Invalid,
        _ => ErrorCode::Internal,
    };
    ApiError::from_error(code, error)
}

fn import_error(error: &ImportError) -> ApiError {
    match error {
        ImportError::Cancelled(_) => ApiError::new(ErrorCode::Cancelled, "cancelled")
            .hint("what was stored is kept: the next try of the same import is quicker"),
        ImportError::Store(store::StoreError::Full { .. }) => ApiError::from_error(ErrorCode::Full, error)
            .hint("make room on the store's file system and run the import again: it goes on from what is stored"),
        ImportError::Read(error) => capture_error(error),
        error => ApiError::from_error(code_beneath(error), error),
    }
}

fn materialize_error(error: &MaterializeError) -> ApiError {
    let code = match error {
        MaterializeError::Cancelled(_) => ErrorCode::Cancelled,
        MaterializeError::Full => ErrorCode::Full,
        MaterializeError::Exists(_) | MaterializeError::NotEmpty | MaterializeError::InUse => ErrorCode::Conflict,
        MaterializeError::NotATarget(_) | MaterializeError::TooSmall { .. } | MaterializeError::Unsupported { .. } => {
            ErrorCode::Invalid
        }
        MaterializeError::Reflink(error) => return reflink_error(error),
        _ => code_beneath(error),
    };
    ApiError::from_error(code, error)
}

//! Attachments: volumes and snapshots as block devices, which come back by themselves after a restart.
//!
//! Each has a server and a socket of its own, `nbd/TARGET.sock` in the node's directory.

mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use export::{Listen, NbdOptions, NbdServer, SingleExport, Tls};
use store::ChunkStore;
use volume::BlockDevice;

use crate::api::{ApiError, AttachRequest, Attachment, ErrorCode, Transport};
use crate::error::{blocking, store_error};
use crate::node::Node;
use crate::passed::PassedSockets;
use crate::record::{AttachmentRecord, Record};
use place::Place;

const PREFIX: &str = "attachment/";

/// How long requests in flight may take when an attachment ends.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Running {
    server: NbdServer,
    read_only: bool,
}

/// The attachments of a node, by target.
#[derive(Debug)]
pub(crate) struct Attachments {
    sockets: PathBuf,
    store: Arc<dyn ChunkStore>,
    runtime: tokio::runtime::Handle,
    passed: PassedSockets,
    running: Mutex<BTreeMap<String, Running>>,
}

impl Attachments {
    pub(crate) fn new(
        directory: &Path,
        store: Arc<dyn ChunkStore>,
        runtime: tokio::runtime::Handle,
        passed: PassedSockets,
    ) -> Self {
        Self { sockets: directory.join("nbd"), store, runtime, passed, running: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(target: &str, running: &Running) -> Attachment {
        let socket = match running.server.listen() {
            Listen::Unix(path) => Some(path.display().to_string()),
            Listen::Tcp(_) => None,
        };
        Attachment {
            target: target.to_owned(),
            via: Transport::Nbd,
            uri: running.server.uri(target),
            socket,
            export: target.to_owned(),
            read_only: running.read_only,
            connections: running.server.connections(target) as u64,
        }
    }

    /// All attachments.
    pub(crate) fn list(&self) -> Vec<Attachment> {
        self.lock().iter().map(|(target, running)| Self::show(target, running)).collect()
    }

    /// Where a target is attached.
    pub(crate) fn find(&self, target: &str) -> Option<Attachment> {
        self.lock().get(target).map(|running| Self::show(target, running))
    }

    fn place(&self, target: &str, record: &AttachmentRecord) -> Result<Place, ApiError> {
        if let Some(text) = &record.listen {
            return Place::parse(text);
        }
        std::fs::create_dir_all(&self.sockets).map_err(|error| ApiError::from_error(ErrorCode::Internal, &error))?;
        Ok(Place::Own(Listen::Unix(self.sockets.join(format!("{}.sock", target.replace('/', "_"))))))
    }

    fn start(
        &self,
        target: &str,
        record: &AttachmentRecord,
        device: Arc<dyn BlockDevice>,
        insecure: bool,
    ) -> Result<Attachment, ApiError> {
        let mut running = self.lock();
        if running.contains_key(target) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{target} is attached already"))
                .hint(format!("see: brant status, or brant detach {target}")));
        }
        let read_only = device.read_only();
        let read_timeout = record.read_timeout_ms.map(Duration::from_millis);
        let options = NbdOptions { read_timeout, tls: place::tls(record)?, ..NbdOptions::default() };
        let required = options.tls.as_ref().is_some_and(Tls::required);
        let exports = Arc::new(SingleExport::new(target, device));
        let place = self.place(target, record)?;
        if !insecure && !required {
            place::check_open(&place, &self.passed)?;
        }
        let server = place.serve(&self.passed, exports, self.runtime.clone(), options)?;
        let started = Running { server, read_only };
        let shown = Self::show(target, &started);
        running.insert(target.to_owned(), started);
        Ok(shown)
    }

    fn stop(&self, target: &str) -> bool {
        let stopped = self.lock().remove(target);
        stopped.map(|running| running.server.stop(GRACE)).is_some()
    }

    /// Closes the connections to a target, which stays attached.
    pub(crate) fn disconnect(&self, target: &str) {
        if let Some(running) = self.lock().get(target) {
            running.server.close_export(target);
        }
    }

    /// Ends all servers; the records stay.
    pub(crate) async fn stop_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        let stop = move || all.into_values().for_each(|running| running.server.stop(GRACE));
        if let Err(error) = tokio::task::spawn_blocking(stop).await {
            tracing::warn!(%error, "attachments could not be stopped in order");
        }
    }
}

impl Node {
    /// Attaches a volume or snapshot.
    pub(crate) async fn attach(self: &Arc<Self>, request: AttachRequest) -> Result<Attachment, ApiError> {
        let (tls_certificates, plain_allowed) = place::tls_record(&request)?;
        let (target, device) = self.device(&request.target, request.disk.as_deref()).await?;
        let mut record = AttachmentRecord {
            target: target.clone(),
            disk: request.disk,
            listen: request.listen,
            read_timeout_ms: request.read_timeout_ms,
            tls_certificates,
            plain_allowed,
        };
        let (node, insecure) = (Arc::clone(self), request.insecure_listen);
        blocking(move || {
            let attachment = node.attachments.start(&target, &record, device, insecure)?;
            // The port that was given stays the same after a restart.
            let chosen = record.listen.as_deref().is_some_and(|listen| !listen.starts_with("fd:"));
            if let (true, Some(Listen::Tcp(address))) = (chosen, node.attachments.address(&target)) {
                record.listen = Some(address.to_string());
            }
            let written = record.write(&*node.store, format!("{PREFIX}{target}")).map_err(store_error);
            if written.is_err() {
                node.attachments.stop(&target);
            }
            written.map(|()| attachment)
        })
        .await
    }

    /// Ends an attachment. One that is in use is only ended by force.
    pub(crate) async fn detach(self: &Arc<Self>, target: &str, force: bool) -> Result<Attachment, ApiError> {
        let found = self.attachments.find(target).or_else(|| {
            let path = self.resolve(target).ok()?.path();
            self.attachments.find(&path)
        });
        let attachment =
            found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("{target} is not attached")))?;
        if attachment.connections > 0 && !force {
            let error = ApiError::new(
                ErrorCode::Conflict,
                format!("{target} is in use by {} connections", attachment.connections),
            );
            return Err(error.hint("stop whoever uses it, or say --force to close its connections"));
        }
        let (node, target) = (Arc::clone(self), attachment.target.clone());
        blocking(move || {
            node.store.roots().apply(vec![(format!("{PREFIX}{target}"), None)]).map_err(store_error)?;
            node.attachments.stop(&target);
            Ok(())
        })
        .await?;
        Ok(attachment)
    }

    /// Brings back the attachments that there were; one that fails does not keep the node from starting.
    pub(crate) async fn restore_attachments(self: &Arc<Self>) {
        let records = match AttachmentRecord::read_all(&*self.attachments.store, PREFIX) {
            Ok(records) => records,
            Err(error) => return tracing::warn!(%error, "the attachments could not be read"),
        };
        for (_, record) in records {
            if let Err(error) = self.restore_attachment(&record).await {
                tracing::warn!(%error, target = record.target, "an attachment did not come back");
            }
        }
    }

    async fn restore_attachment(self: &Arc<Self>, record: &AttachmentRecord) -> Result<(), ApiError> {
        let (target, device) = self.device(&record.target, record.disk.as_deref()).await?;
        // Whoever attached it has said that it may be open to the network.
        self.attachments.start(&target, record, device, true).map(drop)
    }

    /// Where a volume or version is attached, as URIs.
    pub(crate) fn attached(&self, target: &str) -> Vec<String> {
        self.attachments.find(target).map(|attachment| attachment.uri).into_iter().collect()
    }

    /// An error where a target is attached.
    pub(crate) fn check_detached(&self, target: &str) -> Result<(), ApiError> {
        match self.attachments.find(target) {
            None => Ok(()),
            Some(_) => Err(ApiError::new(ErrorCode::Conflict, format!("{target} is attached"))
                .hint(format!("first: brant detach {target}"))),
        }
    }
}

impl Attachments {
    fn address(&self, target: &str) -> Option<Listen> {
        self.lock().get(target).map(|running| running.server.listen().clone())
    }
}

//! The attachments by vhost-user: servers that QEMU connects to again when they come back.
//!
//! Each has a socket of its own, `vhost-user/TARGET.sock` in the node's directory unless another path was given. A node that
//! hands over only stops them: what is under way is noted in memory that QEMU keeps, and the successor makes it again.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::vhost_user::{CacheMode, VhostUserOptions, VhostUserServer};
use export::{ExportError, Listen, Reservation};
use store::ChunkStore;
use volume::BlockDevice;

use super::place::{self, Place};
use super::{GRACE, record_name};
use crate::api::{ApiError, AttachRequest, Attachment, ErrorCode, Transport};
use crate::record::{AttachmentRecord, Record as _, VhostUserRecord};

/// Where their unix sockets are, in the node's directory.
const SOCKETS: &str = "vhost-user";

/// How many queues a guest may have: as many as it has processors, within reason.
const QUEUES: u16 = 64;

/// How often QEMU tries to connect again, in seconds.
const RECONNECT_SECONDS: u32 = 1;

#[derive(Debug)]
struct Running {
    /// Not there only while it is handed over.
    server: Option<VhostUserServer>,
    path: PathBuf,
    device: Arc<dyn BlockDevice>,
    record: AttachmentRecord,
}

/// The attachments of a node by vhost-user, by target.
#[derive(Debug)]
pub(super) struct VhostUserAttachments {
    sockets: PathBuf,
    store: Arc<dyn ChunkStore>,
    runtime: tokio::runtime::Handle,
    running: Mutex<BTreeMap<String, Running>>,
    records: Arc<Mutex<()>>,
}

/// Keeps in the record of an attachment whether its guest has turned the write cache off.
#[derive(Debug)]
struct InRecord {
    target: String,
    store: Arc<dyn ChunkStore>,
    records: Arc<Mutex<()>>,
}

impl CacheMode for InRecord {
    fn remember(&self, write_through: bool) -> Result<(), Box<dyn Error + Send + Sync>> {
        let _records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let name = record_name(&self.target);
        let record = AttachmentRecord::read(&*self.store, name.clone())?.ok_or("it is not attached any more")?;
        let record = AttachmentRecord { vhost_user: Some(VhostUserRecord { write_through }), ..record };
        Ok(record.write(&*self.store, name)?)
    }
}

/// Refuses what vhost-user cannot.
pub(super) fn check(request: &AttachRequest) -> Result<(), ApiError> {
    let path = request.listen.as_deref().is_none_or(|listen| listen.starts_with("unix:"));
    if path && request.tls_certificates.is_none() && request.tls.is_none() {
        return Ok(());
    }
    let message = "vhost-user shares memory, so it is served at a unix socket, without TLS";
    Err(ApiError::new(ErrorCode::Invalid, message)
        .hint("leave out --tls-certificates, and listen at unix:PATH if at all"))
}

/// What QEMU takes, beside the guest's shared memory (a comma in a value is doubled: qemu(1)).
fn qemu_arguments(target: &str, path: &Path) -> Vec<String> {
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
    let id = format!("brant-{}", target.chars().map(plain).collect::<String>());
    let path = path.to_string_lossy().replace(',', ",,");
    vec![
        "-chardev".to_owned(),
        format!("socket,id={id},path={path},reconnect={RECONNECT_SECONDS}"),
        "-device".to_owned(),
        format!("vhost-user-blk-pci,chardev={id}"),
    ]
}

fn show(target: &str, running: &Running) -> Attachment {
    Attachment {
        target: target.to_owned(),
        via: Transport::VhostUser,
        uri: format!("vhost-user+unix:{}", running.path.display()),
        device: None,
        socket: Some(running.path.display().to_string()),
        qemu_drive: String::new(),
        qemu_arguments: qemu_arguments(target, &running.path),
        export: target.to_owned(),
        read_only: running.device.read_only(),
        home: None,
        connections: u64::from(running.server.as_ref().is_some_and(VhostUserServer::is_connected)),
    }
}

impl VhostUserAttachments {
    pub(super) fn new(directory: &Path, store: Arc<dyn ChunkStore>, runtime: tokio::runtime::Handle) -> Self {
        let (running, records) = (Mutex::default(), Arc::default());
        Self { sockets: directory.join(SOCKETS), store, runtime, running, records }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by whoever changes a part of a record.
    pub(super) fn records(&self) -> MutexGuard<'_, ()> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn list(&self) -> Vec<Attachment> {
        self.lock().iter().map(|(target, running)| show(target, running)).collect()
    }

    pub(super) fn find(&self, target: &str) -> Option<Attachment> {
        self.lock().get(target).map(|running| show(target, running))
    }

    /// Begins to serve.
    pub(super) fn start(
        &self,
        target: &str,
        record: &AttachmentRecord,
        device: Arc<dyn BlockDevice>,
    ) -> Result<(), ApiError> {
        let path = match record.listen.as_deref().map(Place::parse).transpose()? {
            Some(Place::Own(Listen::Unix(path))) => {
                place::make_folder(&path)?;
                path
            }
            Some(_) => return Err(ApiError::new(ErrorCode::Invalid, "vhost-user is served at a unix socket")),
            None => self.sockets.join(format!("{}.sock", target.replace('/', "_"))),
        };
        let mut running = Running { server: None, path, device, record: record.clone() };
        let server = self.serve(target, &running).map_err(|error| ApiError::from_error(ErrorCode::Conflict, &error))?;
        running.server = Some(server);
        self.lock().insert(target.to_owned(), running);
        Ok(())
    }

    fn serve(&self, target: &str, running: &Running) -> Result<VhostUserServer, ExportError> {
        let Running { path, device, record, .. } = running;
        let (store, records) = (Arc::clone(&self.store), Arc::clone(&self.records));
        let options = VhostUserOptions {
            queues: QUEUES,
            read_timeout: record.read_timeout_ms.map(Duration::from_millis),
            serial: target.to_owned(),
            write_through: record.vhost_user.is_some_and(|record| record.write_through),
            cache_mode: Arc::new(InRecord { target: target.to_owned(), store, records }),
        };
        VhostUserServer::start(path, Arc::clone(device), self.runtime.clone(), options)
    }

    /// Ends an attachment; whether there was one. Blocks.
    pub(super) fn stop(&self, target: &str) -> bool {
        let stopped = self.lock().remove(target);
        stopped.map(|running| running.server.map(|server| server.stop(GRACE))).is_some()
    }

    /// Stops all servers, and returns the targets of those that take longer than `patience`. Blocks.
    pub(super) fn suspend_all(&self, patience: Duration) -> Vec<String> {
        let mut all = self.lock();
        let mut stuck = Vec::new();
        for (target, running) in all.iter_mut() {
            if let Some(Err(server)) = running.server.take().map(|server| server.suspend(patience)) {
                running.server = Some(server);
                stuck.push(target.clone());
            }
        }
        stuck
    }

    /// Serves those again that were stopped to be handed over. Blocks.
    pub(super) fn resume_all(&self) {
        let mut all = self.lock();
        for (target, running) in all.iter_mut() {
            if let Some(server) = running.server.take() {
                server.stop(GRACE);
            }
            // What a guest has done to its cache since.
            if let Ok(Some(record)) = AttachmentRecord::read(&*self.store, record_name(target)) {
                running.record = record;
            }
            match self.serve(target, running) {
                Ok(server) => running.server = Some(server),
                Err(error) => tracing::error!(%error, target, "an attachment is lost"),
            }
        }
    }

    /// Has a guest know its disk's size.
    pub(super) fn follow_size(&self, target: &str) {
        if let Some(server) = self.lock().get(target).and_then(|running| running.server.as_ref()) {
            server.follow_size();
        }
    }

    /// Closes the connection to a target, which stays attached.
    pub(super) fn disconnect(&self, target: &str) {
        if let Some(server) = self.lock().get(target).and_then(|running| running.server.as_ref()) {
            server.disconnect();
        }
    }

    /// Takes all servers away, to be stopped.
    pub(super) fn take_all(&self) -> Vec<VhostUserServer> {
        std::mem::take(&mut *self.lock()).into_values().filter_map(|running| running.server).collect()
    }

    /// Removes the sockets that a dead process has left and at which nothing is served any more.
    pub(super) fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(&self.sockets) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            // What somebody listens at, and what is no socket, is let be.
            if let Ok(left) = Reservation::new(&Listen::Unix(path)) {
                left.give_up();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_is_told_where_and_to_come_again() {
        let arguments = qemu_arguments("vms/web@3", Path::new("/run/a,b.sock"));
        let expected = [
            "-chardev",
            "socket,id=brant-vms-web-3,path=/run/a,,b.sock,reconnect=1",
            "-device",
            "vhost-user-blk-pci,chardev=brant-vms-web-3",
        ];
        assert_eq!(arguments, expected);
    }

    #[test]
    fn what_cannot_be_shared_is_refused() {
        let request = |listen: Option<&str>, tls: Option<&str>| AttachRequest {
            target: "web".to_owned(),
            disk: None,
            via: crate::api::Via::VhostUser,
            listen: listen.map(str::to_owned),
            insecure_listen: false,
            read_timeout_ms: None,
            tls_certificates: tls.map(str::to_owned),
            tls: None,
        };
        assert!(check(&request(None, None)).is_ok() && check(&request(Some("unix:/run/web"), None)).is_ok());
        for (listen, tls) in [(Some("127.0.0.1:1"), None), (Some("fd:web"), None), (None, Some("/etc/pki"))] {
            assert_eq!(check(&request(listen, tls)).unwrap_err().code, ErrorCode::Invalid, "{listen:?} {tls:?}");
        }
    }
}

//! Attachments: volumes and snapshots as block devices, which come back by themselves after a restart.
//!
//! Each has a server and a socket of its own, `nbd/TARGET.sock` in the node's directory. A device of the kernel is beside it,
//! as a client of that server, or served by the node itself ([`kernel`]). Those by vhost-user have servers and sockets of another
//! kind ([`vhost_user`]).

mod devices;
mod kernel;
mod place;
mod vhost_user;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use export::{ExportError, Listen, NbdOptions, NbdServer, Reservation, SingleExport, Suspended, Tls};
use store::ChunkStore;
use types::Name;
use volume::BlockDevice;

use crate::api::{ApiError, AttachRequest, Attachment, ErrorCode, Transport};
use crate::error::{blocking, store_error};
use crate::node::Node;
use crate::passed::PassedSockets;
use crate::record::{AttachmentRecord, Record, VhostUserRecord};
use kernel::{Home, KernelDevice};
use place::Place;
use vhost_user::VhostUserAttachments;

const PREFIX: &str = "attachment/";

/// Where their unix sockets are, in the node's directory.
const SOCKETS: &str = "nbd";

/// How long requests in flight may take when an attachment ends.
const GRACE: Duration = Duration::from_secs(5);

/// For how long guests are told to wait for a node that was killed, in seconds: longer than any recovery.
const RECONNECT_SECONDS: u32 = 300;

#[derive(Debug)]
struct Running {
    /// Not there only while it is handed over.
    server: Option<NbdServer>,
    listen: Listen,
    uri: String,
    exports: Arc<SingleExport>,
    options: NbdOptions,
    read_only: bool,
    /// The device of the kernel, where it is one.
    kernel: Option<Arc<dyn KernelDevice>>,
}

/// QEMU's `-drive` for an export (a comma in a value is doubled: qemu(1), `-drive`).
fn qemu_drive(listen: &Listen, export: &str, tls: bool, read_only: bool) -> String {
    let quote = |text: &str| text.replace(',', ",,");
    let server = match listen {
        Listen::Unix(path) => format!("type=unix,file.server.path={}", quote(&path.to_string_lossy())),
        Listen::Tcp(address) => {
            format!("type=inet,file.server.host={},file.server.port={}", address.ip(), address.port())
        }
    };
    let tls = match (tls, listen) {
        (false, _) => "",
        (true, Listen::Tcp(_)) => ",file.tls-creds=tls0",
        (true, Listen::Unix(_)) => ",file.tls-creds=tls0,file.tls-hostname=localhost",
    };
    let read_only = if read_only { ",readonly=on" } else { "" };
    format!(
        "file.driver=nbd,file.server.{server},file.export={}{tls},file.reconnect-delay={RECONNECT_SECONDS},format=raw,\
         if=virtio{read_only}",
        quote(export)
    )
}

/// How an attachment begins.
#[derive(Debug)]
enum Begin {
    /// Somebody asks for it.
    Asked,
    /// Somebody asks for it, and lets everybody on the network in.
    AskedOfAll,
    /// It was there before this process, perhaps with clients.
    Again(Option<Suspended>),
}

impl Running {
    fn stop(self) {
        if let Some(device) = self.kernel {
            device.stop(GRACE);
        }
        if let Some(server) = self.server {
            server.stop(GRACE);
        }
    }
}

/// An attachment that can be started, or gone on with.
#[derive(Debug)]
pub(crate) struct Prepared {
    target: String,
    record: AttachmentRecord,
    device: Arc<dyn BlockDevice>,
    suspended: Option<Suspended>,
}

/// The name of an attachment's record.
pub(crate) fn record_name(target: &str) -> String {
    format!("{PREFIX}{target}")
}

/// The attachments of a node, by target.
#[derive(Debug)]
pub(crate) struct Attachments {
    home: Home,
    sockets: PathBuf,
    store: Arc<dyn ChunkStore>,
    runtime: tokio::runtime::Handle,
    passed: PassedSockets,
    running: Mutex<BTreeMap<String, Running>>,
    /// Those by vhost-user. A target is here or in `running`, which is locked first where both are.
    vhost_user: VhostUserAttachments,
    reserved: Mutex<BTreeMap<PathBuf, Reservation>>,
    /// Held while a device of the kernel is given another connection.
    reconnecting: Mutex<()>,
    /// Whether it is listened to what becomes of such connections.
    watching: Mutex<bool>,
}

/// Listens at the sockets that a dead process has left in the node's directory, so that who connects while the node
/// recovers waits, instead of trying again some seconds later. What cannot be listened at is somebody else's.
pub(crate) fn reserve(directory: &Path) -> BTreeMap<PathBuf, Reservation> {
    let Ok(entries) = std::fs::read_dir(directory.join(SOCKETS)) else { return BTreeMap::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let reserve = |path: PathBuf| Some((path.clone(), Reservation::new(&Listen::Unix(path)).ok()?));
    paths.filter_map(reserve).collect()
}

impl Attachments {
    pub(crate) fn new(
        directory: &Path,
        key: [u8; 32],
        reserved: BTreeMap<PathBuf, Reservation>,
        store: Arc<dyn ChunkStore>,
        runtime: tokio::runtime::Handle,
        passed: PassedSockets,
    ) -> Self {
        let (running, reserved) = (Mutex::default(), Mutex::new(reserved));
        let vhost_user = VhostUserAttachments::new(directory, Arc::clone(&store), runtime.clone());
        let (home, sockets) = (Home { directory: directory.to_owned(), key }, directory.join(SOCKETS));
        let (reconnecting, watching) = (Mutex::default(), Mutex::default());
        Self { home, sockets, store, runtime, passed, running, vhost_user, reserved, reconnecting, watching }
    }

    fn reconnecting(&self) -> std::sync::MutexGuard<'_, ()> {
        self.reconnecting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watching(&self) -> std::sync::MutexGuard<'_, bool> {
        self.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reserved(&self) -> std::sync::MutexGuard<'_, BTreeMap<PathBuf, Reservation>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reservation(&self, place: &Place) -> Option<Reservation> {
        let Place::Own(Listen::Unix(path)) = place else { return None };
        self.reserved().remove(path)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(target: &str, running: &Running) -> Attachment {
        let socket = match &running.listen {
            Listen::Unix(path) => Some(path.display().to_string()),
            Listen::Tcp(_) => None,
        };
        let device = running.kernel.as_ref().and_then(|device| device.block());
        let connected = running.server.as_ref().map_or(0, |server| server.connections(target));
        let drive = qemu_drive(&running.listen, target, running.options.tls.is_some(), running.read_only);
        Attachment {
            target: target.to_owned(),
            via: running.kernel.as_ref().map_or(Transport::Nbd, |device| device.transport()),
            uri: running.uri.clone(),
            device: device.map(|device| device.path().display().to_string()),
            socket,
            export: target.to_owned(),
            home: None,
            qemu_arguments: vec!["-drive".to_owned(), drive.clone()],
            qemu_drive: drive,
            read_only: running.read_only,
            connections: connected as u64 + running.kernel.as_ref().map_or(0, |device| device.clients()),
        }
    }

    /// All attachments.
    pub(crate) fn list(&self) -> Vec<Attachment> {
        let mut all: Vec<_> = self.lock().iter().map(|(target, running)| Self::show(target, running)).collect();
        all.extend(self.vhost_user.list());
        all.sort_by(|one, other| one.target.cmp(&other.target));
        all
    }

    /// Where a target is attached.
    pub(crate) fn find(&self, target: &str) -> Option<Attachment> {
        let found = self.lock().get(target).map(|running| Self::show(target, running));
        found.or_else(|| self.vhost_user.find(target))
    }

    fn place(&self, target: &str, record: &AttachmentRecord) -> Result<Place, ApiError> {
        if let Some(text) = &record.listen {
            return Place::parse(text);
        }
        std::fs::create_dir_all(&self.sockets).map_err(|error| ApiError::from_error(ErrorCode::Internal, &error))?;
        Ok(Place::Own(Listen::Unix(self.sockets.join(format!("{}.sock", kernel::file_name(target))))))
    }

    fn start(
        &self,
        target: &str,
        record: &AttachmentRecord,
        device: Arc<dyn BlockDevice>,
        begin: Begin,
    ) -> Result<(), ApiError> {
        let mut running = self.lock();
        if running.contains_key(target) || self.vhost_user.find(target).is_some() {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{target} is attached already"))
                .hint(format!("see: brant attach, or end it: brant detach {target}")));
        }
        if record.vhost_user.is_some() {
            return self.vhost_user.start(target, record, device);
        }
        let read_only = device.read_only();
        let read_timeout = record.read_timeout_ms.map(Duration::from_millis);
        let options = NbdOptions { read_timeout, tls: place::tls(record)?, ..NbdOptions::default() };
        let required = options.tls.as_ref().is_some_and(Tls::required);
        let exports = Arc::new(SingleExport::new(target, device));
        let (offered, runtime, limits) = (Arc::clone(&exports), self.runtime.clone(), options.clone());
        let failed = |error: ExportError| ApiError::from_error(ErrorCode::Conflict, &error);
        let server = match begin {
            Begin::Again(Some(suspended)) => NbdServer::resume(suspended, offered, runtime, limits).map_err(failed)?,
            begin => {
                let place = self.place(target, record)?;
                if matches!(begin, Begin::Asked) && !required {
                    place::check_open(&place, &self.passed)?;
                }
                match self.reservation(&place) {
                    Some(reserved) => NbdServer::start_reserved(reserved, offered, runtime, limits).map_err(failed)?,
                    None => place.serve(&self.passed, offered, runtime, limits)?,
                }
            }
        };
        let (listen, uri) = (server.listen().clone(), server.uri(target));
        let started = Running { server: Some(server), listen, uri, exports, options, read_only, kernel: None };
        running.insert(target.to_owned(), started);
        Ok(())
    }

    fn stop(&self, target: &str) -> bool {
        let stopped = self.lock().remove(target);
        stopped.map(Running::stop).is_some() || self.vhost_user.stop(target)
    }

    /// Stops all servers between two requests of each connection, all at once; where one cannot be stopped within
    /// `patience`, all go on. Blocks.
    pub(crate) fn suspend_all(&self, patience: Duration) -> Result<Vec<(String, Suspended)>, ApiError> {
        // Held throughout, so that nobody finds a server that is neither here nor there.
        let mut running = self.lock();
        let servers: Vec<(String, Option<NbdServer>)> =
            running.iter_mut().map(|(target, running)| (target.clone(), running.server.take())).collect();
        let suspend = |server: Option<NbdServer>| server.map(|server| server.suspend(patience));
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let begin = |(target, server)| (target, scope.spawn(move || suspend(server)));
            let threads: Vec<_> = servers.into_iter().map(begin).collect();
            threads.into_iter().map(|(target, thread)| (target, thread.join())).collect()
        });
        let (mut suspended, mut stuck) = (Vec::new(), Vec::new());
        for (target, outcome) in outcomes {
            match outcome {
                Ok(Some(Ok(one))) => suspended.push((target, one)),
                Ok(Some(Err(server))) => {
                    stuck.push(target.clone());
                    running.entry(target).and_modify(|running| running.server = Some(server));
                }
                Ok(None) | Err(_) => tracing::error!(target, "an attachment is lost"),
            }
        }
        stuck.extend(self.vhost_user.suspend_all(patience));
        stuck.extend(self.suspend_devices(&running, patience));
        drop(running);
        if stuck.is_empty() {
            return Ok(suspended);
        }
        self.resume_all(suspended);
        let message = format!("a request takes too long: {}", stuck.join(", "));
        Err(ApiError::new(ErrorCode::Conflict, message).hint("try again when the disk is less busy"))
    }

    /// Goes on with servers that were stopped.
    pub(crate) fn resume_all(&self, suspended: Vec<(String, Suspended)>) {
        let mut all = self.lock();
        for (target, suspended) in suspended {
            let Some(running) = all.get_mut(&target) else { continue };
            let exports = Arc::<SingleExport>::clone(&running.exports);
            match NbdServer::resume(suspended, exports, self.runtime.clone(), running.options.clone()) {
                Ok(server) => running.server = Some(server),
                Err(error) => tracing::error!(%error, target, "an attachment is lost"),
            }
        }
        drop(all);
        self.vhost_user.resume_all();
        self.go_on_with_suspended();
    }

    /// Closes the connections to a target, which stays attached.
    pub(crate) fn disconnect(&self, target: &str) {
        self.vhost_user.disconnect(target);
        if let Some(server) = self.lock().get(target).and_then(|running| running.server.as_ref()) {
            server.close_export(target);
        }
    }

    /// Ends all servers; the records stay.
    pub(crate) async fn stop_all(&self) {
        let (all, vhost_user) = (std::mem::take(&mut *self.lock()), self.vhost_user.take_all());
        let stop = move || {
            all.into_values().for_each(Running::stop);
            vhost_user.into_iter().for_each(|server| server.stop(GRACE));
        };
        if let Err(error) = tokio::task::spawn_blocking(stop).await {
            tracing::warn!(%error, "attachments could not be stopped in order");
        }
    }
}

impl Node {
    /// Attaches a volume or snapshot.
    pub(crate) async fn attach(self: &Arc<Self>, request: AttachRequest) -> Result<Attachment, ApiError> {
        let transport = kernel::choose(request.via)?;
        if transport == Transport::VhostUser {
            vhost_user::check(&request)?;
        } else if transport.makes_device() && (request.listen.is_some() || request.tls_certificates.is_some()) {
            let message = "a device of the kernel is served at a unix socket of its own, without TLS";
            return Err(ApiError::new(ErrorCode::Invalid, message).hint("leave out --listen and --tls-certificates"));
        }
        let (tls_certificates, plain_allowed) = place::tls_record(&request)?;
        let (target, device, remote) = self.attachable(&request.target, request.disk.as_deref(), None).await?;
        let mut record = AttachmentRecord {
            target: target.clone(),
            disk: request.disk,
            listen: request.listen,
            read_timeout_ms: request.read_timeout_ms,
            tls_certificates,
            plain_allowed,
            kernel: None,
            remote,
            vhost_user: (transport == Transport::VhostUser).then_some(VhostUserRecord { write_through: false }),
        };
        let volume = target.parse::<Name>().ok().filter(|name| self.volumes.get(name).is_some());
        let (node, insecure) = (Arc::clone(self), request.insecure_listen);
        blocking(move || {
            let begin = if insecure { Begin::AskedOfAll } else { Begin::Asked };
            node.attachments.start(&target, &record, device, begin)?;
            if volume.is_some_and(|name| node.volumes.get(&name).is_none()) {
                node.attachments.stop(&target);
                let message = format!("{target} has just been given to another member or removed");
                return Err(
                    ApiError::new(ErrorCode::Conflict, message).hint("try again: it is attached from where it is")
                );
            }
            if transport.makes_device() {
                let made =
                    node.watch_devices(transport).and_then(|()| node.attachments.make_device(&target, transport));
                if made.is_err() {
                    node.attachments.stop(&target);
                }
                record.kernel = Some(made?);
            }
            // The port that was given stays the same after a restart.
            let chosen = record.listen.as_deref().is_some_and(|listen| !listen.starts_with("fd:"));
            if let (true, Some(Listen::Tcp(address))) = (chosen, node.attachments.address(&target)) {
                record.listen = Some(address.to_string());
            }
            let written = record.write(&*node.store, record_name(&target)).map_err(store_error);
            if written.is_err() {
                node.attachments.remove_device(&target, true)?;
                node.attachments.stop(&target);
            }
            written?;
            let gone = || ApiError::new(ErrorCode::Conflict, format!("{target} was detached meanwhile"));
            node.attachments.find(&target).ok_or_else(gone)
        })
        .await
        .map(|attachment| self.with_home(attachment))
    }

    /// All attachments.
    pub(crate) fn list_attachments(&self) -> Vec<Attachment> {
        self.attachments.list().into_iter().map(|attachment| self.with_home(attachment)).collect()
    }

    /// An attachment, with the member where its volume is.
    fn with_home(&self, attachment: Attachment) -> Attachment {
        Attachment { home: self.home_name(&attachment.target), ..attachment }
    }

    /// Ends an attachment. One that is in use is only ended by force.
    pub(crate) async fn detach(self: &Arc<Self>, target: &str, force: bool) -> Result<Attachment, ApiError> {
        let found = self.attachments.find(target).or_else(|| {
            let path = self.resolve(target).ok()?.path();
            self.attachments.find(&path)
        });
        let attachment =
            found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("{target} is not attached")))?;
        let (node, target) = (Arc::clone(self), attachment.target.clone());
        blocking(move || {
            if !force {
                node.attachments.check_unused(&target)?;
            }
            node.attachments.remove_device(&target, force)?;
            let records = node.attachments.records();
            node.store.roots().apply(vec![(record_name(&target), None)]).map_err(store_error)?;
            // A server that is being stopped may want to write into the record.
            drop(records);
            node.attachments.stop(&target);
            Ok(())
        })
        .await?;
        Ok(attachment)
    }

    /// Finds the devices of the attachments that there were. One that is not there keeps the node from starting only
    /// where clients were handed over that use it.
    pub(crate) async fn prepare_attachments(
        self: &Arc<Self>,
        mut suspended: BTreeMap<String, Suspended>,
    ) -> Result<Vec<Prepared>, ApiError> {
        let records = AttachmentRecord::read_all(&*self.attachments.store, PREFIX)
            .inspect_err(|error| tracing::warn!(%error, "the attachments could not be read"))
            .unwrap_or_default();
        let mut prepared = Vec::with_capacity(records.len());
        for (_, record) in records {
            match self.attachable(&record.target, record.disk.as_deref(), record.remote).await {
                Ok((target, device, remote)) => {
                    let record = AttachmentRecord { remote, ..record };
                    let suspended = suspended.remove(&target);
                    prepared.push(Prepared { target, record, device, suspended });
                }
                Err(error) => tracing::warn!(%error, target = record.target, "an attachment did not come back"),
            }
        }
        match suspended.into_iter().find(|(_, suspended)| suspended.connections() > 0) {
            None => Ok(prepared),
            Some((target, _)) => Err(ApiError::new(ErrorCode::Damaged, format!("{target} is in use and is not here"))),
        }
    }

    /// Starts attachments; one that fails does not keep the others from starting.
    pub(crate) async fn start_attachments(self: &Arc<Self>, prepared: Vec<Prepared>) -> Result<(), ApiError> {
        let mut kernel = Vec::new();
        for Prepared { target, record, device, suspended } in prepared {
            kernel.extend(record.kernel.map(|_| (target.clone(), record.clone())));
            // Whoever attached it has said that it may be open to the network.
            if let Err(error) = self.attachments.start(&target, &record, device, Begin::Again(suspended)) {
                tracing::warn!(%error, target, "an attachment did not come back");
            }
        }
        // Nothing is attached there any more.
        std::mem::take(&mut *self.attachments.reserved()).into_values().for_each(Reservation::give_up);
        self.attachments.vhost_user.sweep();
        let node = Arc::clone(self);
        blocking(move || {
            for transport in kernel.iter().filter_map(|(_, record)| Some(record.kernel?.transport())) {
                if let Err(error) = node.watch_devices(transport) {
                    tracing::warn!(%error, "devices that lose their connection do not get another");
                }
            }
            node.attachments.resume_devices(kernel);
            Ok(())
        })
        .await
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
    /// Held by whoever changes a part of an attachment's record, so that no other part is lost.
    pub(crate) fn records(&self) -> std::sync::MutexGuard<'_, ()> {
        self.vhost_user.records()
    }

    fn address(&self, target: &str) -> Option<Listen> {
        self.lock().get(target).map(|running| running.listen.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn sockets_that_were_left_are_listened_at_and_others_are_let_be() {
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path().join(SOCKETS);
        assert!(reserve(directory.path()).is_empty());
        std::fs::create_dir(&sockets).unwrap();
        drop(UnixListener::bind(sockets.join("left.sock")).unwrap());
        let _running = UnixListener::bind(sockets.join("running.sock")).unwrap();
        std::fs::write(sockets.join("file"), "precious").unwrap();
        let mut reserved = reserve(directory.path());
        assert_eq!(reserved.keys().collect::<Vec<_>>(), [&sockets.join("left.sock")]);
        UnixStream::connect(sockets.join("left.sock")).unwrap();
        reserved.pop_first().unwrap().1.give_up();
        assert!(!sockets.join("left.sock").exists());
        assert_eq!(std::fs::read(sockets.join("file")).unwrap(), b"precious");
    }

    #[test]
    fn a_comma_does_not_end_qemus_value() {
        let listen = Listen::Unix("/run/a,b.sock".into());
        assert_eq!(
            qemu_drive(&listen, "web", false, true),
            "file.driver=nbd,file.server.type=unix,file.server.path=/run/a,,b.sock,file.export=web,\
             file.reconnect-delay=300,format=raw,if=virtio,readonly=on"
        );
        let listen = Listen::Tcp("[::1]:10809".parse().unwrap());
        assert!(
            qemu_drive(&listen, "web", true, false).contains("type=inet,file.server.host=::1,file.server.port=10809,")
        );
    }
}

//! The attachments that are devices of the kernel: how they come about, are found again, grow and end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use export::nbd_device::NbdNews;
use export::{Exports as _, KernelBlock, Listen};

use super::kernel::{self, A_MOMENT, KernelDevice, Source, wait_until};
use super::{Attachments, PREFIX, Running, record_name};
use crate::api::{ApiError, ErrorCode, Transport};
use crate::error::store_error;
use crate::node::Node;
use crate::record::{AttachmentRecord, KernelRecord, Record as _};

/// For how long it is listened before it is looked whether the node stops.
const LISTEN: Duration = Duration::from_millis(500);
/// For how long it is tried to give a device another connection.
const RECONNECT: Duration = Duration::from_mins(1);

fn record_of(device: &dyn KernelDevice, block: KernelBlock) -> Result<KernelRecord, ApiError> {
    let none = || ApiError::new(ErrorCode::Internal, format!("{} is no device to keep", block.path().display()));
    KernelRecord::of(device.transport(), block.number()).ok_or_else(none)
}

impl Attachments {
    fn source(&self, target: &str) -> Result<Source, ApiError> {
        let running = self.lock();
        let running = running.get(target).ok_or_else(|| not_attached(target))?;
        let Listen::Unix(socket) = &running.listen else {
            return Err(ApiError::new(ErrorCode::Internal, format!("{target} has no unix socket")));
        };
        let server = running.server.as_ref().ok_or_else(|| not_attached(target))?;
        let device = running.exports.open(target).ok_or_else(|| not_attached(target))?;
        Ok(Source {
            socket: socket.clone(),
            export: target.to_owned(),
            direct: server.direct(target),
            read_only: running.read_only,
            size_bytes: device.size_bytes(),
            device,
            runtime: self.runtime.clone(),
            read_timeout: running.options.read_timeout,
        })
    }

    /// The device of the kernel that a target is, if it is one.
    pub(super) fn kernel(&self, target: &str) -> Option<Arc<dyn KernelDevice>> {
        self.lock().get(target)?.kernel.clone()
    }

    /// Remembers that a target is a device of the kernel; `false` where it is not attached any more.
    fn remember(&self, target: &str, device: &Arc<dyn KernelDevice>) -> bool {
        let mut running = self.lock();
        let running = running.get_mut(target).map(|running| running.kernel = Some(Arc::clone(device)));
        running.is_some()
    }

    /// Makes an attachment a device of the kernel. Blocks.
    pub(super) fn make_device(&self, target: &str, transport: Transport) -> Result<KernelRecord, ApiError> {
        let device = kernel::device(&self.home, target, transport)?;
        let made = device.make(&self.source(target)?, None)?;
        if self.remember(target, &device) {
            return record_of(&*device, made);
        }
        device.remove(true)?;
        Err(not_attached(target))
    }

    /// Removes an attachment's device of the kernel, if it has one. Blocks.
    pub(super) fn remove_device(&self, target: &str, force: bool) -> Result<(), ApiError> {
        self.kernel(target).map_or(Ok(()), |device| device.remove(force))
    }

    /// An error where somebody uses an attachment. Blocks.
    pub(super) fn check_unused(&self, target: &str) -> Result<(), ApiError> {
        let device = self.kernel(target);
        let in_use = |how: String| ApiError::new(ErrorCode::Conflict, format!("{target} is in use: {how}"));
        if let Some(users) = device.as_ref().map(|device| device.users()).filter(|users| !users.is_empty()) {
            let hint = "unmount and close it first, or say --force: whoever uses it gets I/O errors";
            return Err(in_use(users.join(", ")).hint(hint));
        }
        // What serves the device is a client, and a front asks for the size by a connection of its own.
        let (allowed, patience) = if device.is_some() { (1, A_MOMENT) } else { (0, Duration::ZERO) };
        let mut connections = 0;
        let unused = wait_until(patience, || {
            connections = self.find(target).map_or(0, |found| found.connections);
            connections <= allowed
        });
        if unused {
            return Ok(());
        }
        let more = connections - allowed;
        let clients = if more == 1 { "client is" } else { "clients are" };
        let hint = "stop whoever uses it, or say --force to close its connections";
        Err(in_use(format!("{more} {clients} connected")).hint(hint))
    }

    /// Has the kernel know a volume's size, where it has a device of it, and a guest that uses it by vhost-user. Blocks.
    pub(crate) fn follow_size(&self, target: &str) {
        self.vhost_user.follow_size(target);
        if let (Some(device), Ok(source)) = (self.kernel(target), self.source(target)) {
            device.follow_size(source.size_bytes);
        }
    }

    /// An error where a target has a device of the kernel that cannot become larger while it is there.
    pub(crate) fn check_resizable(&self, target: &str) -> Result<(), ApiError> {
        let refused =
            |error: ApiError| ApiError { message: format!("{target} cannot grow now: {}", error.message), ..error };
        self.kernel(target).map_or(Ok(()), |device| device.check_resizable().map_err(refused))
    }

    /// Stops the devices of the kernel that this process serves itself, between two requests; returns the targets of those
    /// that take longer than `patience`. Blocks.
    pub(super) fn suspend_devices(&self, running: &BTreeMap<String, Running>, patience: Duration) -> Vec<String> {
        let devices = running.iter().filter_map(|(target, running)| Some((target.clone(), running.kernel.clone()?)));
        devices.filter(|(_, device)| !device.suspend(patience)).map(|(target, _)| target).collect()
    }

    /// Goes on with devices of the kernel that were stopped to be handed over. Blocks, also for those that took long.
    pub(super) fn go_on_with_suspended(&self) {
        let served = |running: &Running| running.kernel.clone().filter(|device| device.transport() == Transport::Ublk);
        let devices: Vec<_> = {
            let running = self.lock();
            running.iter().filter_map(|(target, running)| Some((target.clone(), served(running)?))).collect()
        };
        for (target, device) in devices {
            let Ok(source) = self.source(&target) else { continue };
            let _one_at_a_time = self.reconnecting();
            if device.go_on(&source, device.block().map(KernelBlock::number)).is_none() {
                tracing::error!(target, "a device of the kernel is not served: see brant detach and brant attach");
            }
        }
    }

    /// Goes on with the devices of the kernel of attachments that are served again, and removes what others have left.
    /// Blocks.
    pub(super) fn resume_devices(&self, records: Vec<(String, AttachmentRecord)>) {
        // All are looked at before the first one is gone on with: what takes a moment takes it once.
        let found = |(target, record): (String, AttachmentRecord)| {
            let device = kernel::recorded(&self.home, &target, record.kernel?);
            Some((target, device, record))
        };
        for (target, device, record) in records.into_iter().filter_map(found).collect::<Vec<_>>() {
            if let Err(error) = device.and_then(|device| self.resume_device(&target, device, record)) {
                tracing::warn!(%error, target, "a device of the kernel did not come back");
            }
        }
        // What is not known to be ours to remove stays.
        let Ok(all) = AttachmentRecord::read_all(&*self.store, PREFIX) else { return };
        let kept = all.into_iter().filter_map(|(_, record)| Some((record.target, record.kernel?)));
        kernel::sweep(&self.home, &kept.collect::<Vec<_>>());
    }

    fn resume_device(
        &self,
        target: &str,
        device: Arc<dyn KernelDevice>,
        mut record: AttachmentRecord,
    ) -> Result<(), ApiError> {
        let source = self.source(target)?;
        // Remembered also where it does not come back, so that it can be detached.
        self.remember(target, &device);
        let _one_at_a_time = self.reconnecting();
        let now = record_of(&*device, device.resume(&source, record.kernel.map(KernelRecord::number))?)?;
        if record.kernel != Some(now) {
            record.kernel = Some(now);
            record.write(&*self.store, record_name(target)).map_err(store_error)?;
        }
        Ok(())
    }

    /// Gives devices whose connections have died others. Blocks.
    fn reconnect_devices(&self, news: &NbdNews) {
        let concerned = |device: &dyn KernelDevice| match news {
            NbdNews::Missed => true,
            NbdNews::Dead(numbers) => device.block().is_some_and(|block| numbers.contains(&block.number())),
        };
        let of_the_driver = |device: &dyn KernelDevice| device.transport() == Transport::NbdKernel;
        let devices: Vec<_> = {
            let running = self.lock();
            let devices =
                running.iter().filter_map(|(target, running)| Some((target.clone(), running.kernel.clone()?)));
            devices.filter(|(_, device)| of_the_driver(&**device) && concerned(&**device)).collect()
        };
        for (target, device) in devices {
            let mut outcome = Ok(());
            wait_until(RECONNECT, || {
                // Where it is not attached any more, nothing is to be done.
                let Ok(source) = self.source(&target) else { return true };
                // The driver says that a connection is dead a little before it closes it.
                wait_until(A_MOMENT, || !source.direct.is_connected());
                let _one_at_a_time = self.reconnecting();
                outcome = device.reconnect(&source);
                outcome.is_ok()
            });
            match outcome {
                Ok(()) => tracing::info!(target, "a device of the kernel had lost its connection"),
                Err(error) => tracing::error!(%error, target, "a device of the kernel gets no connection"),
            }
        }
    }
}

impl Node {
    /// Has devices whose connections die while this node runs get others, from the first one that needs it on.
    pub(super) fn watch_devices(self: &Arc<Self>, transport: Transport) -> Result<(), ApiError> {
        if transport != Transport::NbdKernel {
            return Ok(());
        }
        let mut watching = self.attachments.watching();
        if *watching {
            return Ok(());
        }
        let links = kernel::listen_to_the_driver()?;
        *watching = true;
        let node = Arc::clone(self);
        self.background.spawn_blocking(move || {
            while !node.stopping.is_cancelled() {
                match links.next(LISTEN) {
                    Ok(None) => {}
                    Ok(Some(news)) => node.attachments.reconnect_devices(&news),
                    Err(error) => {
                        tracing::error!(%error, "devices of the kernel that lose their connection get no other");
                        break;
                    }
                }
            }
            *node.attachments.watching() = false;
        });
        Ok(())
    }
}

fn not_attached(target: &str) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("{target} is not attached any more"))
}

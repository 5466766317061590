//! The attachments that are devices of the kernel: how they come about, are found again, grow and end.

use std::time::Duration;

use export::loop_device::LoopDevice;
use export::{Exports as _, Listen};

use super::kernel::{self, A_MOMENT, KernelDevice, Source, wait_until};
use super::{Attachments, PREFIX, record_name};
use crate::api::{ApiError, ErrorCode};
use crate::error::store_error;
use crate::record::{AttachmentRecord, KernelRecord, Record as _};

fn record_of(device: &LoopDevice) -> KernelRecord {
    KernelRecord::Fuse { number: device.number() }
}

impl Attachments {
    fn source(&self, target: &str) -> Result<Source, ApiError> {
        let running = self.lock();
        let running = running.get(target).ok_or_else(|| not_attached(target))?;
        let Listen::Unix(socket) = &running.listen else {
            return Err(ApiError::new(ErrorCode::Internal, format!("{target} has no unix socket")));
        };
        let size_bytes = running.exports.open(target).map_or(0, |device| device.size_bytes());
        Ok(Source { socket: socket.clone(), export: target.to_owned(), read_only: running.read_only, size_bytes })
    }

    /// The device of the kernel that a target is, if it is one.
    pub(super) fn kernel(&self, target: &str) -> Option<KernelDevice> {
        self.lock().get(target)?.kernel.clone()
    }

    /// Remembers that a target is a device of the kernel; `false` where it is not attached any more.
    fn remember(&self, target: &str, device: &KernelDevice) -> bool {
        let mut running = self.lock();
        let running = running.get_mut(target).map(|running| running.kernel = Some(device.clone()));
        running.is_some()
    }

    /// Makes an attachment a device of the kernel. Blocks.
    pub(super) fn make_device(&self, target: &str) -> Result<KernelRecord, ApiError> {
        let device = KernelDevice::of(&self.directory, target)?;
        let made = device.make(&self.source(target)?, None)?;
        if self.remember(target, &device) {
            return Ok(record_of(&made));
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
        if let Some(users) = device.as_ref().map(KernelDevice::users).filter(|users| !users.is_empty()) {
            let hint = "unmount and close it first, or say --force: whoever uses it gets I/O errors";
            return Err(in_use(users.join(", ")).hint(hint));
        }
        // The front is a client, and asks for the size by a connection of its own.
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

    /// Has the kernel know a volume's size, where it has a device of it. Blocks.
    pub(crate) fn follow_size(&self, target: &str) {
        if let (Some(device), Ok(source)) = (self.kernel(target), self.source(target)) {
            device.follow_size(source.size_bytes);
        }
    }

    /// Goes on with the devices of the kernel of attachments that are served again, and removes what others have left.
    /// Blocks.
    pub(super) fn resume_devices(&self, records: Vec<(String, AttachmentRecord)>) {
        for (target, record) in records {
            if let Err(error) = self.resume_device(&target, record) {
                tracing::warn!(%error, target, "a device of the kernel did not come back");
            }
        }
        // What is not known to be ours to remove stays.
        let Ok(all) = AttachmentRecord::read_all(&*self.store, PREFIX) else { return };
        let kept = all.into_iter().filter(|(_, record)| record.kernel.is_some());
        let kept: Result<Vec<_>, _> =
            kept.map(|(_, record)| KernelDevice::of(&self.directory, &record.target)).collect();
        match kept {
            Ok(kept) => kernel::sweep(&self.directory, &kept),
            Err(error) => tracing::warn!(%error, "what devices have left could not be looked for"),
        }
    }

    fn resume_device(&self, target: &str, mut record: AttachmentRecord) -> Result<(), ApiError> {
        let Some(KernelRecord::Fuse { number }) = record.kernel else { return Ok(()) };
        let device = KernelDevice::of(&self.directory, target)?;
        let source = self.source(target)?;
        // Remembered also where it does not come back, so that it can be detached.
        self.remember(target, &device);
        let now = record_of(&device.resume(&source, Some(number))?);
        if record.kernel != Some(now) {
            record.kernel = Some(now);
            record.write(&*self.store, record_name(target)).map_err(store_error)?;
        }
        Ok(())
    }
}

fn not_attached(target: &str) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("{target} is not attached any more"))
}

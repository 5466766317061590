//! A device of the kernel's ublk driver, which this process serves itself.
//!
//! Nothing else is there: the driver keeps the requests of a node that is gone, and a node that starts takes the device over.
//! The driver keeps a number with the device: a part of it tells the node, by its key and its directory, the rest the target.
//! Two targets of a node whose numbers are one cannot both be attached: who comes second finds the device of the first one
//! served by this process, and is refused.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use export::KernelBlock;
use export::ublk_device::{self, UblkDevice, UblkServer, UblkSource};

use super::{A_MOMENT, Home, KernelDevice, PATIENCE, Source, internal, wait_until};
use crate::api::{ApiError, ErrorCode, Transport};

/// How many bits of a device's number tell the node.
const NODE_BITS: u32 = 24;

/// What keeps this machine from having such devices, if anything does.
pub(super) fn missing() -> Option<String> {
    ublk_device::missing().map(|error| ApiError::from_error(ErrorCode::Invalid, &error).message)
}

/// What keeps such devices from becoming larger, if anything does.
pub(super) fn missing_or_fixed() -> Option<String> {
    missing().or_else(|| (!ublk_device::can_resize()).then(|| ublk_device::UblkDeviceError::NoResize.to_string()))
}

/// The part of a device's number that tells the node.
fn node_part(home: &Home) -> u64 {
    let directory = home.directory.canonicalize().unwrap_or_else(|_| home.directory.clone());
    let mut hasher = blake3::Hasher::new_derive_key("brant 2026-11-27 ublk device: the node");
    hasher.update(&home.key).update(directory.as_os_str().as_encoded_bytes());
    // Never none: so it is nobody's who keeps small numbers of his own there.
    first_number(&hasher) << (u64::BITS - NODE_BITS) | 1 << (u64::BITS - 1)
}

/// The number of a target's device.
fn identity(home: &Home, target: &str) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("brant 2026-11-27 ublk device: the target");
    hasher.update(target.as_bytes());
    node_part(home) | first_number(&hasher) >> NODE_BITS
}

fn first_number(hasher: &blake3::Hasher) -> u64 {
    hasher.finalize().as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Whether a device is of a node.
fn is_of(home: &Home, identity: u64) -> bool {
    identity >> (u64::BITS - NODE_BITS) == node_part(home) >> (u64::BITS - NODE_BITS)
}

/// Such a device of one target.
#[derive(Debug)]
pub(super) struct UblkKernelDevice {
    identity: u64,
    /// What serves it, where this process does.
    server: Mutex<Option<UblkServer>>,
    /// When it was found waiting for a server, until it is gone on with.
    waits_since: Mutex<Option<Instant>>,
}

impl UblkKernelDevice {
    pub(super) fn of(home: &Home, target: &str) -> UblkKernelDevice {
        let identity = identity(home, target);
        let mut device = UblkKernelDevice { identity, server: Mutex::default(), waits_since: Mutex::default() };
        let waits = device.left().iter().any(|device| device.waits);
        device.waits_since = Mutex::new(waits.then(Instant::now));
        device
    }

    fn server(&self) -> MutexGuard<'_, Option<UblkServer>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn source(&self, source: &Source) -> UblkSource {
        UblkSource {
            device: source.device.clone(),
            runtime: source.runtime.clone(),
            read_timeout: source.read_timeout,
            identity: self.identity,
        }
    }

    /// What there is of the device that this object does not serve.
    fn left(&self) -> Vec<UblkDevice> {
        ublk_device::find(|identity| identity == self.identity)
    }

    /// The device that can be taken over: first that of the number that was recorded.
    fn found(&self, recorded: Option<u32>) -> Option<UblkDevice> {
        let ours = |device: &UblkDevice| device.identity == self.identity && device.goes_on;
        recorded.and_then(ublk_device::at).filter(ours).or_else(|| self.left().into_iter().find(ours))
    }

    /// Ends what there is of it that nobody serves.
    fn end_what_is_left(&self) -> Result<(), ApiError> {
        for device in self.left() {
            if device.served_by == Some(std::process::id()) {
                let message = format!("{} has the number of another attachment", device.block().path().display());
                return Err(ApiError::new(ErrorCode::Conflict, message)
                    .hint("attach it via nbd-kernel or fuse, or detach the other one"));
            }
            end(&device)?;
        }
        Ok(())
    }
}

fn end(device: &UblkDevice) -> Result<(), ApiError> {
    device.end().map_err(|error| internal(&format!("end {}", device.block().path().display()), &error))
}

impl KernelDevice for UblkKernelDevice {
    fn transport(&self) -> Transport {
        Transport::Ublk
    }

    fn block(&self) -> Option<KernelBlock> {
        let served = self.server().as_ref().map(UblkServer::block);
        served.or_else(|| self.found(None).map(|device| device.block()))
    }

    fn make(&self, source: &Source, preferred: Option<u32>) -> Result<KernelBlock, ApiError> {
        self.remove(true)?;
        let made = UblkServer::make(&self.source(source), preferred);
        let server = made.map_err(|error| internal("have a device of the kernel", &error))?;
        let block = server.block();
        *self.server() = Some(server);
        Ok(block)
    }

    fn go_on(&self, source: &Source, recorded: Option<u32>) -> Option<KernelBlock> {
        let block = self.found(recorded)?.block();
        // What this process was still doing for it must not come after what is asked for again.
        let before = self.server().take();
        drop(before);
        let waits_since = self.waits_since.lock().unwrap_or_else(PoisonError::into_inner).take();
        match UblkServer::take_over(&self.source(source), block.number(), waits_since, PATIENCE) {
            Ok(server) => {
                *self.server() = Some(server);
                Some(block)
            }
            Err(error) => {
                tracing::warn!(%error, device = %block.path().display(), "it cannot be gone on with");
                None
            }
        }
    }

    /// The driver has no connection that could be lost.
    fn reconnect(&self, _: &Source) -> Result<(), ApiError> {
        Ok(())
    }

    fn check_resizable(&self) -> Result<(), ApiError> {
        if ublk_device::can_resize() {
            return Ok(());
        }
        Err(ApiError::from_error(ErrorCode::Conflict, &ublk_device::UblkDeviceError::NoResize)
            .hint("detach it first, or attach it with --via nbd-kernel, whose devices grow while they are used"))
    }

    fn resize(&self, size_bytes: u64) -> Result<(), ApiError> {
        let resized = self.server().as_ref().map_or(Ok(()), |server| server.resize(size_bytes));
        resized.map_err(|error| internal("have the kernel know the size", &error))
    }

    fn clients(&self) -> u64 {
        self.server().as_ref().is_some_and(UblkServer::is_serving).into()
    }

    fn suspend(&self, patience: Duration) -> bool {
        self.server().as_mut().is_none_or(|server| server.suspend(patience))
    }

    fn stop(&self, grace: Duration) {
        // Not under the lock: others ask for the device meanwhile.
        let server = self.server().take();
        if let Some(server) = server {
            server.stop(grace);
        }
    }

    fn remove(&self, force: bool) -> Result<(), ApiError> {
        let served = self.server().take();
        if let Some(server) = served {
            let path = server.block().path();
            server.end(force).map_err(|error| internal(&format!("end {}", path.display()), &error))?;
        }
        self.end_what_is_left()
    }
}

/// Removes devices of this node that belong to none of the attachments.
pub(super) fn sweep(home: &Home, attached: &[&str]) {
    let kept: Vec<u64> = attached.iter().map(|target| identity(home, target)).collect();
    for device in ublk_device::find(|identity| is_of(home, identity) && !kept.contains(&identity)) {
        let path = device.block().path();
        // Who has only just died still seems to serve it.
        let number = device.block().number();
        if !wait_until(A_MOMENT, || ublk_device::at(number).is_none_or(|device| device.served_by.is_none())) {
            tracing::warn!(device = %path.display(), "a device without an attachment is served by somebody");
            continue;
        }
        tracing::info!(device = %path.display(), "a device without an attachment is removed");
        if let Err(error) = end(&device) {
            tracing::warn!(%error, "a device is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn home(directory: &Path, key: u8) -> Home {
        Home { directory: directory.to_owned(), key: [key; 32] }
    }

    #[test]
    fn a_device_is_known_by_its_node_and_its_target() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let of = |directory: &Path, key: u8, target: &str| identity(&home(directory, key), target);
        let web = of(one.path(), 1, "web");
        assert_eq!(web, of(one.path(), 1, "web"));
        for different in [of(one.path(), 1, "vms/web@3"), of(one.path(), 2, "web"), of(other.path(), 1, "web")] {
            assert_ne!(web, different);
        }
        assert!(is_of(&home(one.path(), 1), web) && is_of(&home(one.path(), 1), of(one.path(), 1, "vms/web@3")));
        assert!(!is_of(&home(one.path(), 2), web) && !is_of(&home(other.path(), 1), web));
        // What others keep there is small.
        assert!(!is_of(&home(one.path(), 1), 0) && !is_of(&home(one.path(), 1), 7));
    }

    #[test]
    fn where_there_is_no_device_there_is_nothing_to_remove() {
        let node = tempfile::tempdir().unwrap();
        let device = UblkKernelDevice::of(&home(node.path(), 1), "vms/web@3");
        assert!(device.block().is_none() && device.clients() == 0 && device.suspend(Duration::ZERO));
        device.remove(false).unwrap();
        sweep(&home(node.path(), 1), &["vms/web@3"]);
    }
}

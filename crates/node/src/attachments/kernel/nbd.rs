//! A device of the kernel's own NBD driver, whose connection is one to the attachment's server.
//!
//! Nothing else is there: the driver keeps the requests of a node that is gone, and a node that starts gives it another
//! connection. The device is known by a name, which the driver keeps: the path of the attachment's socket, and the node's mark.
//! One that was ended by force while somebody had it open keeps its name until it is closed; another one made meanwhile has a
//! number behind it.

use std::path::{Path, PathBuf};

use export::KernelBlock;
use export::nbd_device::{self, NbdDevice, NbdDeviceError, NbdLinks, NbdSource};

use super::super::SOCKETS;
use super::{A_MOMENT, Home, KernelDevice, LOOK_AGAIN, Source, file_name, internal, wait_until};
use crate::api::{ApiError, ErrorCode, Transport};

/// What keeps this machine from having such devices, if anything does.
pub(super) fn missing() -> Option<String> {
    nbd_device::missing().map(|error| ApiError::from_error(ErrorCode::Invalid, &error).message)
}

/// Listens to what becomes of the connections of such devices.
pub(in super::super) fn listen() -> Result<NbdLinks, ApiError> {
    NbdLinks::listen().map_err(|error| internal("watch devices of the kernel", &error))
}

/// The directory of the sockets of a node, as the kernel names it.
fn sockets(home: &Home) -> Result<PathBuf, ApiError> {
    let all = home.directory.join(SOCKETS);
    let made = std::fs::create_dir_all(&all).and_then(|()| all.canonicalize());
    made.map_err(|error| internal(&format!("make {}", all.display()), &error))
}

/// Such a device of one target.
#[derive(Clone, Debug)]
pub(super) struct NbdKernelDevice {
    name: String,
}

/// Which of the devices of a name an identity is: the first one, or a later one; nothing where it is of another name.
fn generation(identity: &str, name: &str) -> Option<u32> {
    match identity.strip_prefix(name)? {
        "" => Some(0),
        number => number.strip_prefix(':')?.parse().ok(),
    }
}

impl NbdKernelDevice {
    pub(super) fn of(home: &Home, target: &str) -> Result<NbdKernelDevice, ApiError> {
        let socket = sockets(home)?.join(format!("{}.sock", file_name(target)));
        let name = socket.to_str().map(|path| format!("{path}@{}", home.mark()));
        let unnamed = || ApiError::new(ErrorCode::Invalid, format!("{} is not UTF-8", socket.display()));
        Ok(NbdKernelDevice { name: name.ok_or_else(unnamed)? })
    }

    /// All devices of the name, with their identities, the last one made at the end.
    fn all(&self) -> Vec<(NbdDevice, String)> {
        let ours = NbdDevice::find(|identity| generation(identity, &self.name).is_some());
        let mut found: Vec<_> = ours.into_iter().filter_map(|device| Some((device, device.identity()?))).collect();
        found.sort_by_key(|(_, identity)| generation(identity, &self.name));
        found
    }

    fn found(&self) -> Option<(NbdDevice, String)> {
        self.all().pop()
    }

    /// Does something that takes a connection with the driver.
    fn connected<T>(
        &self,
        source: &Source,
        identity: &str,
        work: impl FnOnce(&NbdSource<'_>) -> Result<T, NbdDeviceError>,
    ) -> Result<T, ApiError> {
        // What the dead connection has still in hand must not come after what is sent again.
        source.direct.wait_for_the_gone();
        let connection = source.direct.connect().map_err(|error| internal("connect the kernel", &error))?;
        let with = NbdSource {
            connection: &connection,
            transmission_flags: source.direct.transmission_flags(),
            size_bytes: source.size_bytes,
            identity,
        };
        work(&with).map_err(|error| internal("have a device of the kernel", &error))
    }
}

impl KernelDevice for NbdKernelDevice {
    fn transport(&self) -> Transport {
        Transport::NbdKernel
    }

    fn block(&self) -> Option<KernelBlock> {
        self.found().map(|(device, _)| device.block())
    }

    fn make(&self, source: &Source, preferred: Option<u32>) -> Result<KernelBlock, ApiError> {
        self.remove(true)?;
        let open_still = self.found().and_then(|(_, identity)| generation(&identity, &self.name));
        let identity = open_still.map_or_else(|| self.name.clone(), |last| format!("{}:{}", self.name, last + 1));
        self.connected(source, &identity, |with| NbdDevice::make(with, preferred)).map(|device| device.block())
    }

    fn go_on(&self, source: &Source, _: Option<u32>) -> Option<KernelBlock> {
        let (device, _) = self.found()?;
        match self.reconnect(source) {
            Ok(()) => Some(device.block()),
            Err(error) => {
                tracing::warn!(%error, device = %device.block().path().display(), "it cannot be gone on with");
                None
            }
        }
    }

    fn reconnect(&self, source: &Source) -> Result<(), ApiError> {
        match self.found() {
            Some((device, identity)) if !source.direct.is_connected() => {
                self.connected(source, &identity, |with| device.reconnect(with))
            }
            _ => Ok(()),
        }
    }

    fn resize(&self, size_bytes: u64) -> Result<(), ApiError> {
        let resized = self.found().map_or(Ok(()), |(device, identity)| device.resize(&identity, size_bytes));
        resized.map_err(|error| internal("have the kernel know the size", &error))
    }

    fn remove(&self, force: bool) -> Result<(), ApiError> {
        let patience = if force { LOOK_AGAIN } else { A_MOMENT };
        for (device, identity) in self.all() {
            let path = device.block().path();
            device.free().map_err(|error| internal(&format!("free {}", path.display()), &error))?;
            if !wait_until(patience, || device.identity().as_ref() != Some(&identity)) {
                tracing::warn!(device = %path.display(), "it is in use still, and goes when it is closed");
            }
        }
        Ok(())
    }
}

/// Whether an identity is one of a node whose sockets are in a directory.
fn is_of(identity: &str, sockets: &Path, mark: &str) -> bool {
    let marked = identity.rsplit_once('@').is_some_and(|(_, behind)| generation(behind, mark).is_some());
    marked && Path::new(identity).parent() == Some(sockets)
}

/// Removes devices of this node that belong to none of the attachments.
pub(super) fn sweep(home: &Home, attached: &[&str]) {
    let kept: Result<Vec<_>, _> = attached.iter().map(|target| NbdKernelDevice::of(home, target)).collect();
    let (Ok(sockets), Ok(kept)) = (sockets(home), kept) else { return };
    let mark = home.mark();
    let is_kept = |identity: &str| kept.iter().any(|device| generation(identity, &device.name).is_some());
    for device in NbdDevice::find(|identity| is_of(identity, &sockets, &mark) && !is_kept(identity)) {
        tracing::info!(device = %device.block().path().display(), "a device without an attachment is removed");
        if let Err(error) = device.free() {
            tracing::warn!(%error, "a device is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_the_socket_of_its_attachment_and_its_node() {
        let node = tempfile::tempdir().unwrap();
        let home = Home { directory: node.path().to_owned(), key: [0xa1; 32] };
        let device = NbdKernelDevice::of(&home, "vms/web@3").unwrap();
        assert!(device.name.ends_with("/nbd/vms_web@3.sock@a1a1a1a1a1a1a1a1"), "{}", device.name);
        let of = |behind: &str| generation(&format!("{}{behind}", device.name), &device.name);
        assert_eq!([of(""), of(":1"), of(":12")], [Some(0), Some(1), Some(12)]);
        assert_eq!([of(":"), of("1"), of(":x"), of("/x")], [None; 4]);
        assert_eq!(generation("/other.sock", &device.name), None);

        let sockets = sockets(&home).unwrap();
        let ours = |identity: &str| is_of(identity, &sockets, &home.mark());
        assert!(ours(&device.name) && ours(&format!("{}:2", device.name)));
        let other = Home { key: [0xa2; 32], ..home.clone() };
        assert!(!ours(&NbdKernelDevice::of(&other, "vms/web@3").unwrap().name), "another node's, in its own namespace");
        assert!(!ours("/elsewhere/nbd/web.sock@a1a1a1a1a1a1a1a1") && !ours("anything"));
        // Nothing is there, and nothing has to be removed.
        assert!(device.block().is_none());
        device.remove(false).unwrap();
        sweep(&home, &["vms/web@3"]);
    }
}

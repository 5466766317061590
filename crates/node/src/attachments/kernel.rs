//! Block devices of the kernel, in whatever way this machine can have them.
//!
//! Each way is a module: [`ublk`] by the kernel's ublk driver, [`nbd`] by its NBD driver, [`fuse`] by a front and a loop device.
//! All outlive the node, and a node that starts finds them again. Invariant: what is there is asked of the kernel each time and never remembered;
//! what does not fit together is removed and made anew, and nothing is touched that is not of the node's own directory.

mod fuse;
mod nbd;
mod ublk;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::{Direct, KernelBlock};
use volume::BlockDevice;

use crate::api::{ApiError, ErrorCode, Transport, Via};
use crate::record::KernelRecord;

pub(super) use nbd::listen as listen_to_the_driver;

/// How long something of a device may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it is waited for whoever only had a look at a device, such as udev, or only asked something, as fronts do.
pub(super) const A_MOMENT: Duration = Duration::from_secs(3);
/// How often it is looked whether something that is waited for has come about.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What keeps this machine from something, if anything does.
type Missing = fn() -> Option<String>;

/// The ways, the best first, and what keeps this machine from having each of them.
const WAYS: [(Transport, Missing); 3] =
    [(Transport::Ublk, ublk::missing), (Transport::NbdKernel, nbd::missing), (Transport::Fuse, fuse::missing)];

/// The same ways for whoever does not say which: their devices can all that is promised of such devices, and so become larger
/// while they are used.
const ANY_WAY: [(Transport, Missing); 3] =
    [(Transport::Ublk, ublk::missing_or_fixed), (Transport::NbdKernel, nbd::missing), (Transport::Fuse, fuse::missing)];

/// The transport that someone asked for; of those that make a device of the kernel, the best one that this machine has.
pub(super) fn choose(via: Via) -> Result<Transport, ApiError> {
    let wanted = match via {
        Via::Nbd => return Ok(Transport::Nbd),
        Via::VhostUser => return Ok(Transport::VhostUser),
        Via::Ublk => Some(Transport::Ublk),
        Via::NbdKernel => Some(Transport::NbdKernel),
        Via::Fuse => Some(Transport::Fuse),
        Via::Kernel => None,
    };
    let mut reasons = Vec::new();
    let ways = if wanted.is_none() { ANY_WAY } else { WAYS };
    for (transport, missing) in ways.into_iter().filter(|(way, _)| wanted.is_none_or(|wanted| wanted == *way)) {
        if !rustix::process::geteuid().is_root() {
            reasons.push("the node does not run as root".to_owned());
            break;
        }
        match missing() {
            None => return Ok(transport),
            Some(reason) => reasons.push(format!("{}: {reason}", transport.name())),
        }
    }
    let message = format!("this machine cannot make a device of the kernel ({})", reasons.join("; "));
    Err(ApiError::new(ErrorCode::Invalid, message).hint("use the NBD export: brant attach --via nbd"))
}

/// What a device is made of.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The node's socket for the export.
    pub(super) socket: PathBuf,
    /// Its name there.
    pub(super) export: String,
    /// Connections to it that need no handshake.
    pub(super) direct: Direct,
    /// Whether writes are refused.
    pub(super) read_only: bool,
    /// Its size, in bytes.
    pub(super) size_bytes: u64,
    /// The disk itself.
    pub(super) device: Arc<dyn BlockDevice>,
    /// Where reads of what is not here wait.
    pub(super) runtime: tokio::runtime::Handle,
    /// After how long they fail.
    pub(super) read_timeout: Option<Duration>,
}

/// A node, as its devices know it.
#[derive(Clone, Debug)]
pub(super) struct Home {
    /// Its directory.
    pub(super) directory: PathBuf,
    /// The public half of its key.
    pub(super) key: [u8; 32],
}

impl Home {
    /// Sixteen digits of the key: they tell the node's devices from those of another one whose directory has the same path in a
    /// mount namespace of its own, as in containers. The kernel has all of them in one list.
    fn mark(&self) -> String {
        self.key[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The device of the kernel of one target, which need not be there.
pub(super) trait KernelDevice: Debug + Send + Sync {
    /// In which way it is one.
    fn transport(&self) -> Transport;

    /// The block device, where there is one that is there to stay.
    fn block(&self) -> Option<KernelBlock>;

    /// Makes it, of that number if it is free. What a crash may have left is removed. Blocks.
    fn make(&self, source: &Source, preferred: Option<u32>) -> Result<KernelBlock, ApiError>;

    /// Goes on with it as it is after the node was another process, where it is there and can be gone on with; it had the
    /// number that was recorded. Blocks.
    fn go_on(&self, source: &Source, recorded: Option<u32>) -> Option<KernelBlock>;

    /// Gives it another connection to the node where it has lost its own, and cannot help itself. Blocks.
    fn reconnect(&self, source: &Source) -> Result<(), ApiError>;

    /// An error where the device cannot become larger while it is there.
    fn check_resizable(&self) -> Result<(), ApiError> {
        Ok(())
    }

    /// Has the kernel know that the volume has another size. Blocks.
    fn resize(&self, size_bytes: u64) -> Result<(), ApiError>;

    /// How many clients it is to the attachment, beside those that are connected.
    fn clients(&self) -> u64 {
        0
    }

    /// Stops serving it between two requests where this process itself serves it, so that it can be gone on with; whether
    /// that took no longer than `patience`. Blocks.
    fn suspend(&self, patience: Duration) -> bool {
        let _ = patience;
        true
    }

    /// As [`suspend`](KernelDevice::suspend), for however long it takes; after `grace`, nobody waits for the disk any more.
    fn stop(&self, grace: Duration) {
        let _ = grace;
    }

    /// Removes it. By force, also where somebody uses it: who does gets errors. Where nothing is there, nothing happens.
    /// Blocks.
    fn remove(&self, force: bool) -> Result<(), ApiError>;
}

/// The device of a target of a node, in one of the ways.
pub(super) fn device(home: &Home, target: &str, transport: Transport) -> Result<Arc<dyn KernelDevice>, ApiError> {
    match transport {
        Transport::Ublk => Ok(Arc::new(ublk::UblkKernelDevice::of(home, target))),
        Transport::NbdKernel => Ok(Arc::new(nbd::NbdKernelDevice::of(home, target)?)),
        Transport::Fuse => Ok(Arc::new(fuse::FuseDevice::of(home, target)?)),
        Transport::Nbd | Transport::VhostUser => {
            Err(ApiError::new(ErrorCode::Internal, format!("{target} is no device of the kernel")))
        }
    }
}

/// The device that a record tells of.
pub(super) fn recorded(home: &Home, target: &str, record: KernelRecord) -> Result<Arc<dyn KernelDevice>, ApiError> {
    device(home, target, record.transport())
}

impl dyn KernelDevice {
    /// Goes on with it as it is; what is not right is made anew, with the number that was recorded if that is free.
    pub(super) fn resume(&self, source: &Source, recorded: Option<u32>) -> Result<KernelBlock, ApiError> {
        if let Some(block) = self.go_on(source, recorded) {
            self.follow_size(source.size_bytes);
            return Ok(block);
        }
        tracing::warn!(target = source.export, "the device is not there any more: it is made anew");
        self.make(source, recorded)
    }

    /// Has the kernel know a volume's size, where it has another one.
    pub(super) fn follow_size(&self, size_bytes: u64) {
        let Some(block) = self.block().filter(|block| block.size_bytes() != Some(size_bytes)) else { return };
        match self.resize(size_bytes) {
            Ok(()) => tracing::info!(device = %block.path().display(), size_bytes, "the device has a new size"),
            Err(error) => tracing::warn!(%error, device = %block.path().display(), "the device keeps its old size"),
        }
    }

    /// Who uses the device; nobody where it is not there.
    pub(super) fn users(&self) -> Vec<String> {
        let Some(block) = self.block() else { return Vec::new() };
        let mut users = Vec::new();
        // Whoever has it open for a moment, as udev does, does not count.
        wait_until(A_MOMENT, || {
            users = block.users();
            users.iter().all(|user| !user.starts_with("open in"))
        });
        users
    }
}

/// Removes what devices have left that belong to no attachment.
pub(super) fn sweep(home: &Home, attached: &[(String, KernelRecord)]) {
    let targets = |transport: Transport| {
        let of_it = attached.iter().filter(move |(_, record)| record.transport() == transport);
        of_it.map(|(target, _)| target.as_str()).collect::<Vec<_>>()
    };
    fuse::sweep(home, &targets(Transport::Fuse));
    nbd::sweep(home, &targets(Transport::NbdKernel));
    ublk::sweep(home, &targets(Transport::Ublk));
}

fn internal(doing: &str, error: &(dyn std::error::Error + 'static)) -> ApiError {
    let reason = ApiError::from_error(ErrorCode::Internal, error);
    ApiError { message: format!("could not {doing}: {}", reason.message), ..reason }
}

/// A target as the name of one file.
pub(super) fn file_name(target: &str) -> String {
    target.replace('/', "_")
}

/// Looks again and again for a while.
pub(super) fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let begin = Instant::now();
    while !done() {
        if begin.elapsed() > patience {
            return false;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nbd_needs_nothing_of_the_machine() {
        assert_eq!(choose(Via::Nbd).unwrap(), Transport::Nbd);
    }

    #[test]
    fn what_is_missing_is_said() {
        for (via, transport, missing) in [
            (Via::Ublk, Transport::Ublk, ublk::missing as Missing),
            (Via::NbdKernel, Transport::NbdKernel, nbd::missing),
            (Via::Fuse, Transport::Fuse, fuse::missing),
        ] {
            match choose(via) {
                Ok(chosen) => assert_eq!(chosen, transport),
                Err(error) if !rustix::process::geteuid().is_root() => assert!(error.message.contains("root")),
                Err(error) => assert!(error.message.contains(&missing().unwrap()), "{}", error.message),
            }
        }
    }
}

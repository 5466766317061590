//! Block devices of the kernel: a front that serves the node's export as a file over FUSE, and a loop device over it.
//!
//! All of one attachment is in a directory of its own, `fuse/TARGET` in the node's: `disk`, on which the front mounts, and
//! `lock`, which it holds. The front outlives the node, and a node that starts finds it again by these. Invariant: what is
//! there is asked of the kernel each time and never remembered; what does not fit together is removed and made anew, and
//! nothing outside the node's own directory is touched.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use export::fuse::{FRONT_READY, MOUNT_SOURCE};
use export::loop_device::{self, LoopDevice};
use export::mounts::{mount_at, mounts};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::api::{ApiError, ErrorCode, Transport, Via};
use crate::handover::same_program;

/// Where the files of fronts are, in the node's directory.
const DIRECTORY: &str = "fuse";

/// How long a front may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it is waited for whoever only had a look at a device, such as udev, or only asked something, as fronts do.
pub(super) const A_MOMENT: Duration = Duration::from_secs(3);
/// How often it is looked whether something that is waited for has come about.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The transport that someone asked for; of those that make a device of the kernel, the best one that this machine has.
pub(super) fn choose(via: Via) -> Result<Transport, ApiError> {
    // The best first.
    let kernel = [(Transport::Fuse, fuse_missing as fn() -> Option<String>)];
    match via {
        Via::Nbd => return Ok(Transport::Nbd),
        Via::Fuse | Via::Kernel => {}
    }
    let mut reasons = Vec::new();
    for (transport, missing) in kernel {
        match missing() {
            None => return Ok(transport),
            Some(reason) => reasons.push(format!("{}: {reason}", transport.name())),
        }
    }
    let message = format!("this machine cannot make a device of the kernel ({})", reasons.join("; "));
    Err(ApiError::new(ErrorCode::Invalid, message).hint("use the NBD export: brant attach --via nbd"))
}

fn fuse_missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("the node does not run as root".to_owned());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Some(format!("/dev/fuse cannot be opened (modprobe fuse): {error}"));
    }
    loop_device::missing()
}

fn internal(doing: &str, error: &(dyn std::error::Error + 'static)) -> ApiError {
    let reason = ApiError::from_error(ErrorCode::Internal, error);
    ApiError { message: format!("could not {doing}: {}", reason.message), ..reason }
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

/// The directory of all kernel devices of a node, as the kernel names it; nothing where it has had none.
fn home(node: &Path) -> Option<PathBuf> {
    node.join(DIRECTORY).canonicalize().ok()
}

/// The kernel's device of one target.
#[derive(Clone, Debug)]
pub(super) struct KernelDevice {
    directory: PathBuf,
}

/// What a device is made of.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The node's socket for the export.
    pub(super) socket: PathBuf,
    /// Its name there.
    pub(super) export: String,
    /// Whether writes are refused.
    pub(super) read_only: bool,
    /// Its size, in bytes.
    pub(super) size_bytes: u64,
}

impl KernelDevice {
    /// The device of a target, which need not be there.
    pub(super) fn of(node: &Path, target: &str) -> Result<KernelDevice, ApiError> {
        let all = node.join(DIRECTORY);
        let made = fs::create_dir_all(&all).and_then(|()| all.canonicalize());
        let all = made.map_err(|error| internal(&format!("make {}", all.display()), &error))?;
        Ok(KernelDevice { directory: all.join(target.replace('/', "_")) })
    }

    fn file(&self) -> PathBuf {
        self.directory.join("disk")
    }

    fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// The loop device, where there is one that is there to stay.
    pub(super) fn device(&self) -> Option<LoopDevice> {
        let file = self.file();
        LoopDevice::find(|found| found == file).into_iter().find(|device| !device.is_ending())
    }

    /// Whether the front runs and has mounted the file.
    fn is_served(&self) -> bool {
        self.is_locked() && mount_at(&self.file()).is_some_and(|mount| mount.source == MOUNT_SOURCE)
    }

    /// Whether a front runs.
    fn is_locked(&self) -> bool {
        let Ok(file) = File::open(self.lock()) else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    }

    /// Makes front and device, of that number if it is free.
    pub(super) fn make(&self, source: &Source, preferred: Option<u32>) -> Result<LoopDevice, ApiError> {
        // What a crash may have left.
        self.remove(true)?;
        self.start_front(source)?;
        let made = LoopDevice::make(&self.file(), source.read_only, preferred);
        made.map_err(|error| {
            if let Err(error) = self.remove(true) {
                tracing::warn!(%error, "a front is left");
            }
            internal("make a loop device", &error)
        })
    }

    /// Goes on with front and device as they are; what is not right is made anew.
    pub(super) fn resume(&self, source: &Source, preferred: Option<u32>) -> Result<LoopDevice, ApiError> {
        match self.device().filter(|_| self.is_served()) {
            Some(device) => {
                self.follow_size(source.size_bytes);
                Ok(device)
            }
            None => {
                tracing::warn!(directory = %self.directory.display(), "the device is not there any more: it is made anew");
                self.make(source, preferred)
            }
        }
    }

    /// Has the kernel know that the volume has another size.
    pub(super) fn follow_size(&self, size_bytes: u64) {
        let Some(device) = self.device().filter(|device| device.size_bytes() != Some(size_bytes)) else { return };
        match device.refresh_size() {
            Ok(()) => tracing::info!(device = %device.path().display(), size_bytes, "the device has a new size"),
            Err(error) => tracing::warn!(%error, device = %device.path().display(), "the device keeps its old size"),
        }
    }

    /// Who uses the device; nobody where it is not there.
    pub(super) fn users(&self) -> Vec<String> {
        let Some(device) = self.device() else { return Vec::new() };
        let mut users = Vec::new();
        // Whoever has it open for a moment, as udev does, does not count.
        wait_until(A_MOMENT, || {
            users = device.users();
            users.iter().all(|user| !user.starts_with("open in"))
        });
        users
    }

    fn start_front(&self, source: &Source) -> Result<(), ApiError> {
        let prepare = |error: std::io::Error| internal(&format!("prepare {}", self.directory.display()), &error);
        fs::create_dir_all(&self.directory).map_err(prepare)?;
        File::create(self.file()).map_err(prepare)?;
        let mut command = same_program();
        command.arg("fuse-front").arg("--socket").arg(&source.socket).arg("--export").arg(&source.export);
        command.arg("--file").arg(self.file()).arg("--lock").arg(self.lock());
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).env_remove("NOTIFY_SOCKET");
        let mut child = command.spawn().map_err(|error| internal("start a front", &error))?;
        let said = child.stdout.take().map_or_else(|| Ok(String::new()), first_line);
        match said {
            Ok(line) if line == FRONT_READY => {
                reap(child);
                Ok(())
            }
            Ok(line) => Err(self.failed(child, &line)),
            Err(reason) => Err(self.failed(child, reason)),
        }
    }

    /// Ends a front that did not begin.
    fn failed(&self, mut child: Child, reason: &str) -> ApiError {
        if let Err(error) = child.kill() {
            tracing::debug!(%error, "the front has ended already");
        }
        reap(child);
        if let Err(error) = self.remove(true) {
            tracing::warn!(%error, "a front is left");
        }
        let reason = if reason.is_empty() { "it said nothing: the node's log may say more" } else { reason };
        ApiError::new(ErrorCode::Internal, format!("the device's front did not begin: {reason}"))
    }

    /// Frees the device, unmounts the file and ends the front. By force, also where somebody uses it: who does gets errors.
    /// Where nothing is there, nothing happens.
    pub(super) fn remove(&self, force: bool) -> Result<(), ApiError> {
        let file = self.file();
        let patience = if force { Duration::ZERO } else { A_MOMENT };
        for device in LoopDevice::find(|found| found == file) {
            device.free().map_err(|error| internal(&format!("free {}", device.path().display()), &error))?;
            if !wait_until(patience.max(LOOK_AGAIN), || device.file().as_ref() != Some(&file)) {
                tracing::warn!(device = %device.path().display(), "it is in use still, and goes when it is closed");
            }
        }
        self.unmount(patience)?;
        if force || !wait_until(PATIENCE, || !self.is_locked()) {
            self.kill_front();
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(internal(&format!("remove {}", self.directory.display()), &error))
            }
            _ => Ok(()),
        }
    }

    fn unmount(&self, patience: Duration) -> Result<(), ApiError> {
        let file = self.file();
        while mount_at(&file).is_some() {
            let mut outcome = unmount(&file, UnmountFlags::empty());
            wait_until(patience, || {
                if outcome == Err(Errno::BUSY) {
                    outcome = unmount(&file, UnmountFlags::empty());
                }
                outcome != Err(Errno::BUSY)
            });
            if outcome == Err(Errno::BUSY) {
                outcome = unmount(&file, UnmountFlags::DETACH);
            }
            outcome.map_err(|error| internal(&format!("unmount {}", file.display()), &error))?;
        }
        Ok(())
    }

    /// Kills the front that holds the lock, if one does.
    fn kill_front(&self) {
        let mut text = String::new();
        let read = File::open(self.lock()).and_then(|mut file| file.read_to_string(&mut text));
        let Some(pid) = read.ok().and_then(|_| text.trim().parse().ok()).and_then(Pid::from_raw) else { return };
        let Ok(front) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        // Whoever holds the lock has written its own number: the process is the one that was opened.
        if !self.is_locked() {
            return;
        }
        match pidfd_send_signal(&front, Signal::KILL) {
            Ok(()) if wait_until(PATIENCE, || !self.is_locked()) => {}
            Ok(()) => tracing::warn!(pid = pid.as_raw_nonzero(), "a front was killed and does not end"),
            Err(error) => tracing::debug!(%error, "the front has ended already"),
        }
    }
}

/// Removes what fronts have left for which there is no attachment.
pub(super) fn sweep(node: &Path, attached: &[KernelDevice]) {
    let Some(home) = home(node) else { return };
    let ours = |path: &Path| {
        path.strip_prefix(&home).ok().and_then(|rest| rest.components().next()).map(|name| home.join(name))
    };
    let entries = fs::read_dir(&home).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> = entries.collect();
    found.extend(LoopDevice::find(|file| ours(file).is_some()).iter().filter_map(|device| ours(&device.file()?)));
    found.extend(mounts().iter().filter_map(|mount| ours(&mount.point)));
    found.sort();
    found.dedup();
    for directory in found.into_iter().filter(|found| attached.iter().all(|device| device.directory != *found)) {
        tracing::info!(directory = %directory.display(), "what a device has left is removed");
        if let Err(error) = (KernelDevice { directory }).remove(true) {
            tracing::warn!(%error, "something of a device is left");
        }
    }
}

/// The first line that a front says, or why there is none.
fn first_line(output: ChildStdout) -> Result<String, &'static str> {
    let (send, line) = sync_channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        if let Err(error) = BufReader::new(output).read_line(&mut line) {
            tracing::debug!(%error, "a front could not be heard");
        }
        // Who does not wait any more does not need it.
        let _: Result<(), _> = send.send(line.trim_end().to_owned());
    });
    line.recv_timeout(PATIENCE).map_err(|_| "it takes too long")
}

/// Waits in the background until a front has ended, so that nothing of it is left in the table of processes.
fn reap(mut child: Child) {
    std::thread::spawn(move || match child.wait() {
        Ok(status) => tracing::info!(%status, "a front has ended"),
        Err(error) => tracing::debug!(%error, "a front could not be waited for"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(node: &Path, target: &str) -> KernelDevice {
        let device = KernelDevice::of(node, target).unwrap();
        fs::create_dir(&device.directory).unwrap();
        File::create(device.file()).unwrap();
        device
    }

    #[test]
    fn what_nobody_knows_is_swept_and_what_is_attached_stays() {
        let node = tempfile::tempdir().unwrap();
        sweep(node.path(), &[]);
        let (kept, stray) = (device(node.path(), "vms/web@3"), device(node.path(), "stray"));
        let beside = node.path().join("beside");
        fs::write(&beside, "precious").unwrap();
        sweep(node.path(), std::slice::from_ref(&kept));
        assert!(kept.file().exists() && !stray.directory.exists() && beside.exists());
    }

    #[test]
    fn a_front_is_known_by_its_lock_and_nobody_else_is_killed() {
        let node = tempfile::tempdir().unwrap();
        let device = device(node.path(), "web");
        assert!(!device.is_locked());
        // The number of a front that has ended may be another process by now: this one.
        fs::write(device.lock(), format!("{}\n", std::process::id())).unwrap();
        assert!(!device.is_locked());
        device.kill_front();
        let held = File::open(device.lock()).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(device.is_locked() && !device.is_served());
        drop(held);
        device.remove(true).unwrap();
        assert!(!device.directory.exists());
        device.remove(true).unwrap();
    }

    #[test]
    fn nbd_needs_nothing_of_the_machine() {
        assert_eq!(choose(Via::Nbd).unwrap(), Transport::Nbd);
    }
}

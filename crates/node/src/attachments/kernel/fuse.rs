//! A front that serves the node's export as a file over FUSE, and a loop device over it.
//!
//! All of one attachment is in a directory of its own, `fuse/TARGET` in the node's: `disk-MARK`, on which the front mounts, and
//! `lock`, which it holds. The front outlives the node, and a node that starts finds it again by these. The mark is the
//! node's: its devices are known by the paths of their files.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use export::KernelBlock;
use export::fuse::{FRONT_READY, MOUNT_SOURCE};
use export::loop_device::{self, LoopDevice};
use export::mounts::{mount_at, mounts};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{A_MOMENT, Home, KernelDevice, LOOK_AGAIN, PATIENCE, Source, file_name, internal, wait_until};
use crate::api::{ApiError, ErrorCode, Transport};
use crate::handover::same_program;

/// Where the files of fronts are, in the node's directory.
const DIRECTORY: &str = "fuse";

/// What keeps this machine from having such devices, if anything does.
pub(super) fn missing() -> Option<String> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Some(format!("/dev/fuse cannot be opened (modprobe fuse): {error}"));
    }
    loop_device::missing()
}

/// The directory of all fronts of a node, as the kernel names it; nothing where it has had none.
fn fronts(home: &Home) -> Option<PathBuf> {
    home.directory.join(DIRECTORY).canonicalize().ok()
}

/// What the file of each of a node's fronts is called.
fn disk(home: &Home) -> String {
    format!("disk-{}", home.mark())
}

/// Such a device of one target.
#[derive(Clone, Debug)]
pub(super) struct FuseDevice {
    directory: PathBuf,
    /// What its file is called.
    disk: String,
}

impl FuseDevice {
    pub(super) fn of(home: &Home, target: &str) -> Result<FuseDevice, ApiError> {
        let all = home.directory.join(DIRECTORY);
        let made = fs::create_dir_all(&all).and_then(|()| all.canonicalize());
        let all = made.map_err(|error| internal(&format!("make {}", all.display()), &error))?;
        Ok(FuseDevice { directory: all.join(file_name(target)), disk: disk(home) })
    }

    fn file(&self) -> PathBuf {
        self.directory.join(&self.disk)
    }

    fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// The loop device, where there is one that is there to stay.
    fn device(&self) -> Option<LoopDevice> {
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

impl KernelDevice for FuseDevice {
    fn transport(&self) -> Transport {
        Transport::Fuse
    }

    fn block(&self) -> Option<KernelBlock> {
        self.device().map(|device| device.block())
    }

    fn make(&self, source: &Source, preferred: Option<u32>) -> Result<KernelBlock, ApiError> {
        self.remove(true)?;
        self.start_front(source)?;
        let made = LoopDevice::make(&self.file(), source.read_only, preferred);
        made.map(|device| device.block()).map_err(|error| {
            if let Err(error) = self.remove(true) {
                tracing::warn!(%error, "a front is left");
            }
            internal("make a loop device", &error)
        })
    }

    fn go_on(&self, _: &Source, _: Option<u32>) -> Option<KernelBlock> {
        self.block().filter(|_| self.is_served())
    }

    /// The front does that by itself.
    fn reconnect(&self, _: &Source) -> Result<(), ApiError> {
        Ok(())
    }

    /// The front asks the node for the size.
    fn resize(&self, _: u64) -> Result<(), ApiError> {
        let resized = self.device().map_or(Ok(()), |device| device.refresh_size());
        resized.map_err(|error| internal("have the kernel look at the size", &error))
    }

    /// Frees the device, unmounts the file and ends the front.
    fn remove(&self, force: bool) -> Result<(), ApiError> {
        let file = self.file();
        let patience = if force { Duration::ZERO } else { A_MOMENT };
        for device in LoopDevice::find(|found| found == file) {
            device.free().map_err(|error| internal(&format!("free {}", device.block().path().display()), &error))?;
            if !wait_until(patience.max(LOOK_AGAIN), || device.file().as_ref() != Some(&file)) {
                tracing::warn!(device = %device.block().path().display(), "it is in use still, and goes when it is closed");
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
}

/// Removes what fronts have left for which there is no attachment.
pub(super) fn sweep(home: &Home, attached: &[&str]) {
    let Some(fronts) = fronts(home) else { return };
    let disk = disk(home);
    let kept: Vec<PathBuf> = attached.iter().map(|target| fronts.join(file_name(target))).collect();
    let ours = |path: &Path| {
        path.strip_prefix(&fronts).ok().and_then(|rest| rest.components().next()).map(|name| fronts.join(name))
    };
    let is_ours = |file: &Path| file.ends_with(&disk) && ours(file).is_some();
    let entries = fs::read_dir(&fronts).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> = entries.collect();
    found.extend(LoopDevice::find(is_ours).iter().filter_map(|device| ours(&device.file()?)));
    found.extend(mounts().iter().filter_map(|mount| ours(&mount.point)));
    found.sort();
    found.dedup();
    for directory in found.into_iter().filter(|found| !kept.contains(found)) {
        tracing::info!(directory = %directory.display(), "what a device has left is removed");
        if let Err(error) = (FuseDevice { directory, disk: disk.clone() }).remove(true) {
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

    fn home(directory: &Path) -> Home {
        Home { directory: directory.to_owned(), key: [1; 32] }
    }

    fn device(home: &Home, target: &str) -> FuseDevice {
        let device = FuseDevice::of(home, target).unwrap();
        fs::create_dir(&device.directory).unwrap();
        File::create(device.file()).unwrap();
        device
    }

    #[test]
    fn what_nobody_knows_is_swept_and_what_is_attached_stays() {
        let node = tempfile::tempdir().unwrap();
        let home = home(node.path());
        sweep(&home, &[]);
        let (kept, stray) = (device(&home, "vms/web@3"), device(&home, "stray"));
        let beside = node.path().join("beside");
        fs::write(&beside, "precious").unwrap();
        sweep(&home, &["vms/web@3"]);
        assert!(kept.file().exists() && !stray.directory.exists() && beside.exists());
    }

    #[test]
    fn a_front_is_known_by_its_lock_and_nobody_else_is_killed() {
        let node = tempfile::tempdir().unwrap();
        let device = device(&home(node.path()), "web");
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
}

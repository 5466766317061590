//! The driver's control device: devices are made, started, asked about, taken over and removed.

use std::fs::{self, File};
use std::io;

use rustix::io::Errno;

use crate::layout::{
    ADD_DEV, ANY_DEVICE, DEL_DEV_ASYNC, DeviceInfo, END_USER_RECOVERY, FEATURES_BYTES, Features, GET_DEV_INFO,
    GET_FEATURES, INFO_BYTES, NewDevice, Parameters, SET_PARAMS, START_DEV, START_USER_RECOVERY, STOP_DEV, UPDATE_SIZE,
};
use crate::ring::CommandRing;

/// Where the driver takes commands.
const CONTROL: &str = "/dev/ublk-control";
/// Where the kernel shows the driver's devices.
const SYSFS: &str = "/sys/class/ublk-char";

/// The driver could not be spoken to, or did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UblkError {
    /// The kernel has no such driver.
    #[error("the kernel has no ublk driver (modprobe ublk_drv)")]
    NoDriver,
    /// The control device could not be opened.
    #[error("could not open {CONTROL}")]
    Open(#[source] io::Error),
    /// There is no io_uring, or it is not allowed.
    #[error("io_uring cannot be used (see kernel.io_uring_disabled in sysctl)")]
    Ring(#[source] io::Error),
    /// The driver is too old.
    #[error("the ublk driver cannot keep and copy requests: Linux 6.9 or newer is needed")]
    TooOld,
    /// A command failed.
    #[error("the ublk driver did not {doing}")]
    Command {
        /// What it was told.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device's file could not be used.
    #[error("could not use {path}")]
    Device {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device's requests could not be mapped.
    #[error("could not map the requests of {path}")]
    Map {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl UblkError {
    /// What the kernel said, where it said something.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            UblkError::Open(source)
            | UblkError::Ring(source)
            | UblkError::Command { source, .. }
            | UblkError::Device { source, .. } => source.raw_os_error(),
            UblkError::NoDriver | UblkError::TooOld | UblkError::Map { .. } => None,
        }
    }
}

/// The numbers of all devices of the driver, in order.
#[must_use]
pub fn numbers() -> Vec<u32> {
    let entries = fs::read_dir(SYSFS).into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u32> = names.filter_map(|name| name.strip_prefix("ublkc")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// The driver's control device. Its commands block until they are done.
pub struct Control {
    file: File,
    ring: CommandRing,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Control").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Control {
    /// Opens it.
    ///
    /// # Errors
    /// Where there is no driver, or no io_uring.
    pub fn open() -> Result<Control, UblkError> {
        let file = File::options().read(true).write(true).open(CONTROL).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => UblkError::NoDriver,
            _ => UblkError::Open(error),
        })?;
        Ok(Control { file, ring: CommandRing::new().map_err(UblkError::Ring)? })
    }

    fn run(
        &mut self,
        doing: &'static str,
        operation: u32,
        device: u32,
        data: u64,
        buffer: &[u8],
    ) -> Result<Box<[u8]>, UblkError> {
        let outcome = self.ring.run(&self.file, operation, device, data, buffer.into());
        outcome.map_err(|source| UblkError::Command { doing, source })
    }

    /// What the driver can do.
    ///
    /// # Errors
    /// Where it is too old to say so.
    pub fn features(&mut self) -> Result<Features, UblkError> {
        let answer = self.run("say what it can do", GET_FEATURES, 0, 0, &[0; FEATURES_BYTES]);
        let bytes = answer.ok().and_then(|answer| answer.first_chunk().copied());
        bytes.map(Features::from_bytes).ok_or(UblkError::TooOld)
    }

    /// Makes a device that is not started yet, of a number or any.
    ///
    /// # Errors
    /// [`UblkError::Command`], also where the number is not free.
    pub fn add(&mut self, device: NewDevice, number: Option<u32>) -> Result<DeviceInfo, UblkError> {
        let doing = "make a device";
        let answer = self.run(doing, ADD_DEV, number.unwrap_or(ANY_DEVICE), 0, &device.to_bytes(number))?;
        Ok(info_of(&answer))
    }

    /// What there is of a number; nothing where there is no device.
    ///
    /// # Errors
    /// [`UblkError::Command`]
    pub fn info(&mut self, number: u32) -> Result<Option<DeviceInfo>, UblkError> {
        match self.run("tell of a device", GET_DEV_INFO, number, 0, &[0; INFO_BYTES]) {
            Ok(answer) => Ok(Some(info_of(&answer))),
            Err(error) if error.errno() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Says what the users of a device will see. Only before it is started.
    ///
    /// # Errors
    /// [`UblkError::Command`]
    pub fn set_parameters(&mut self, number: u32, parameters: Parameters) -> Result<(), UblkError> {
        self.run("take the parameters of a device", SET_PARAMS, number, 0, &parameters.to_bytes()).map(drop)
    }

    /// Makes a device's block device, whose requests must be served already: the kernel looks for partitions. Blocks until it
    /// has, and for ever where nobody asks for requests.
    ///
    /// # Errors
    /// [`UblkError::Command`]
    pub fn start(&mut self, number: u32) -> Result<(), UblkError> {
        let process = u64::from(std::process::id());
        self.run("start a device", START_DEV, number, process, &[]).map(drop)
    }

    /// Ends a device's block device. What was asked and not answered is waited for where somebody serves, and fails where
    /// nobody does; whoever has it open gets errors from then on. Blocks.
    ///
    /// # Errors
    /// [`UblkError::Command`]
    pub fn stop(&mut self, number: u32) -> Result<(), UblkError> {
        self.run("stop a device", STOP_DEV, number, 0, &[]).map(drop)
    }

    /// Removes a device that was stopped. Its number is free when nobody has it open any more.
    ///
    /// # Errors
    /// [`UblkError::Command`]
    pub fn remove(&mut self, number: u32) -> Result<(), UblkError> {
        self.run("remove a device", DEL_DEV_ASYNC, number, 0, &[]).map(drop)
    }

    /// Begins to take over a device whose server is gone. `false` where that server has not gone altogether yet.
    ///
    /// # Errors
    /// [`UblkError::Command`]
    pub fn begin_recovery(&mut self, number: u32) -> Result<bool, UblkError> {
        match self.run("give a device to another process", START_USER_RECOVERY, number, 0, &[]) {
            Ok(_) => Ok(true),
            // Somebody has begun before and died before he asked for a request: it is as he found it.
            Err(error) if error.errno() == Some(Errno::INVAL.raw_os_error()) => Ok(true),
            Err(error) if error.errno() == Some(Errno::BUSY.raw_os_error()) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has a device's requests go on, which must be served already. Blocks for ever where nobody asks for requests.
    ///
    /// # Errors
    /// [`UblkError::Command`]
    pub fn end_recovery(&mut self, number: u32) -> Result<(), UblkError> {
        let process = u64::from(std::process::id());
        self.run("go on with a device", END_USER_RECOVERY, number, process, &[]).map(drop)
    }

    /// Gives a device another size, where the driver can ([`Features::can_resize`]).
    ///
    /// # Errors
    /// [`UblkError::Command`]
    pub fn resize(&mut self, number: u32, size_bytes: u64) -> Result<(), UblkError> {
        self.run("give a device another size", UPDATE_SIZE, number, size_bytes / 512, &[]).map(drop)
    }
}

/// The driver answers with as much as it is asked with.
fn info_of(answer: &[u8]) -> DeviceInfo {
    let mut bytes = [0; INFO_BYTES];
    let length = answer.len().min(INFO_BYTES);
    bytes[..length].copy_from_slice(&answer[..length]);
    DeviceInfo::from_bytes(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_driver_says_what_to_do() {
        // Where the driver is there, it can be asked.
        match Control::open() {
            Ok(mut control) => assert!(control.features().is_ok()),
            Err(UblkError::NoDriver) => assert!(UblkError::NoDriver.to_string().contains("modprobe ublk_drv")),
            Err(error) => assert!(matches!(error, UblkError::Open(_) | UblkError::Ring(_)), "{error}"),
        }
    }
}

//! Devices of the kernel's own NBD driver (`nbd`, drivers/block/nbd.c): made, found again, given another connection, told
//! that they have grown, and freed, all by generic netlink.
//!
//! A device has one connection. When it dies, the driver keeps what was not answered, for as long as it is told to, and sends
//! it again over the next one: a request that it had sent already when that request's timer runs out the next time
//! (five seconds), all others at once. So no request of a user fails because a server has gone. The driver gives up requests
//! that take longer than a time-out; the time-out is set to none. A device is known by a text that the driver keeps and shows
//! (`backend`), never remembered.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use netlink_sys::Socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::kernel_block::KernelBlock;
use crate::netlink::{Attributes, Family};

/// The driver's name, also that of its family.
const DRIVER: &str = "nbd";
const GROUP: &str = "nbd_mc_group";

// include/uapi/linux/nbd-netlink.h
const NBD_CMD_CONNECT: u8 = 1;
const NBD_CMD_DISCONNECT: u8 = 2;
const NBD_CMD_RECONFIGURE: u8 = 3;
const NBD_CMD_LINK_DEAD: u8 = 4;
const NBD_ATTR_INDEX: u16 = 1;
const NBD_ATTR_SIZE_BYTES: u16 = 2;
const NBD_ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const NBD_ATTR_TIMEOUT: u16 = 4;
const NBD_ATTR_SERVER_FLAGS: u16 = 5;
const NBD_ATTR_SOCKETS: u16 = 7;
const NBD_ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const NBD_ATTR_BACKEND_IDENTIFIER: u16 = 10;
const NBD_SOCK_ITEM: u16 = 1;
const NBD_SOCK_FD: u16 = 1;

/// What the device's users see as a sector, in bytes: what disks of machines have.
const BLOCK_BYTES: u64 = 512;
/// For how long the driver keeps requests without a connection, in seconds: a hundred years.
const KEPT_SECONDS: u64 = 100 * 365 * 24 * 3600;
/// How often the driver looks at a request that was not answered. One whose connection has been replaced is sent again
/// then; of others it says in the kernel's log that they may be stuck.
const TIMER: Duration = Duration::from_secs(5);
/// What is usual there.
const USUAL_TIMER: Duration = Duration::from_secs(30);

/// A device of the NBD driver could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NbdDeviceError {
    /// The kernel could not be asked.
    #[error("could not ask the kernel for its NBD driver")]
    Netlink(#[source] io::Error),
    /// The kernel has no such driver.
    #[error("the kernel has no NBD driver (modprobe nbd), or this process is in a network namespace of its own")]
    NoDriver,
    /// The device could not be made.
    #[error("the NBD driver made no device")]
    Connect(#[source] io::Error),
    /// The driver does not say which device it has made, or shows no `backend` of it.
    #[error("the NBD driver does not tell its devices apart: Linux 5.14 or newer is needed")]
    Unknown,
    /// The device could not be changed.
    #[error("the NBD driver did not change {device}")]
    Change {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What happens to the driver's connections could not be listened to.
    #[error("could not listen to the NBD driver")]
    Listen(#[source] io::Error),
}

/// What a device is made of.
#[derive(Debug)]
pub struct NbdSource<'s> {
    /// A connection to the export, past its handshake, with simple replies.
    pub connection: &'s UnixStream,
    /// What the server has said of the export (`NBD_FLAG_*`).
    pub transmission_flags: u16,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The text by which the device is found again.
    pub identity: &'s str,
}

/// A device of the NBD driver that is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NbdDevice {
    block: KernelBlock,
}

fn family() -> Result<Family, NbdDeviceError> {
    Family::find(DRIVER).map_err(NbdDeviceError::Netlink)?.ok_or(NbdDeviceError::NoDriver)
}

/// What keeps this machine from having devices of the NBD driver, if anything does.
#[must_use]
pub fn missing() -> Option<NbdDeviceError> {
    family().err()
}

fn sockets(connection: &UnixStream) -> Attributes {
    let descriptor = connection.as_fd().as_raw_fd().cast_unsigned();
    let item = Attributes::default().with_u32(NBD_SOCK_FD, descriptor);
    Attributes::default().with_nested(NBD_SOCK_ITEM, &item)
}

impl NbdDevice {
    /// Makes a device: that of a number if it is free, else any.
    ///
    /// # Errors
    /// See [`NbdDeviceError`].
    pub fn make(source: &NbdSource<'_>, preferred: Option<u32>) -> Result<NbdDevice, NbdDeviceError> {
        let family = family()?;
        let connect = |number: Option<u32>| {
            let chosen = match number {
                Some(number) => Attributes::default().with_u32(NBD_ATTR_INDEX, number),
                None => Attributes::default(),
            };
            let attributes = chosen
                .with_u64(NBD_ATTR_SIZE_BYTES, source.size_bytes)
                .with_u64(NBD_ATTR_BLOCK_SIZE_BYTES, BLOCK_BYTES)
                .with_u64(NBD_ATTR_TIMEOUT, 0)
                .with_u64(NBD_ATTR_DEAD_CONN_TIMEOUT, KEPT_SECONDS)
                .with_u64(NBD_ATTR_SERVER_FLAGS, source.transmission_flags.into())
                .with_text(NBD_ATTR_BACKEND_IDENTIFIER, source.identity)
                .with_nested(NBD_ATTR_SOCKETS, &sockets(source.connection));
            family.ask(NBD_CMD_CONNECT, &attributes)
        };
        let answers = match preferred.map(|number| connect(Some(number))) {
            Some(Ok(answers)) => answers,
            Some(Err(_)) | None => connect(None).map_err(NbdDeviceError::Connect)?,
        };
        let number = answers.iter().find_map(|answer| answer.number(NBD_ATTR_INDEX)).ok_or(NbdDeviceError::Unknown)?;
        let device = NbdDevice { block: KernelBlock::new(DRIVER, number) };
        device.block.set_request_timer(TIMER);
        if device.identity().as_deref() == Some(source.identity) {
            return Ok(device);
        }
        device.free()?;
        Err(NbdDeviceError::Unknown)
    }

    /// The devices of all identities for which that is wanted.
    pub fn find(wanted: impl Fn(&str) -> bool) -> Vec<NbdDevice> {
        let devices = KernelBlock::all(DRIVER).into_iter().map(|block| NbdDevice { block });
        devices.filter(|device| device.identity().is_some_and(|identity| wanted(&identity))).collect()
    }

    /// The block device.
    #[must_use]
    pub fn block(&self) -> KernelBlock {
        self.block
    }

    /// The text by which it is known, if it is connected.
    #[must_use]
    pub fn identity(&self) -> Option<String> {
        self.block.attribute("backend").filter(|identity| !identity.is_empty())
    }

    /// Gives it another connection where the one that it has is dead. One that the driver believes to live stays, and the
    /// new one is closed; [`NbdLinks`] tells when that turns out to be wrong.
    ///
    /// # Errors
    /// See [`NbdDeviceError`].
    pub fn reconnect(&self, source: &NbdSource<'_>) -> Result<(), NbdDeviceError> {
        let attributes = self.known(source.identity).with_nested(NBD_ATTR_SOCKETS, &sockets(source.connection));
        self.reconfigure(&attributes)?;
        self.block.set_request_timer(TIMER);
        Ok(())
    }

    /// Has its users know that it has another size. Its connection must not be dead.
    ///
    /// # Errors
    /// See [`NbdDeviceError`].
    pub fn resize(&self, identity: &str, size_bytes: u64) -> Result<(), NbdDeviceError> {
        self.reconfigure(&self.known(identity).with_u64(NBD_ATTR_SIZE_BYTES, size_bytes))
    }

    /// Ends it. Requests that were not answered fail; who has it open keeps a device that gives errors.
    ///
    /// # Errors
    /// See [`NbdDeviceError`].
    pub fn free(&self) -> Result<(), NbdDeviceError> {
        self.block.set_request_timer(USUAL_TIMER);
        let attributes = Attributes::default().with_u32(NBD_ATTR_INDEX, self.block.number());
        let asked = family()?.ask(NBD_CMD_DISCONNECT, &attributes);
        asked.map(drop).map_err(|source| self.unchanged(source))
    }

    fn known(&self, identity: &str) -> Attributes {
        let number = Attributes::default().with_u32(NBD_ATTR_INDEX, self.block.number());
        number.with_text(NBD_ATTR_BACKEND_IDENTIFIER, identity)
    }

    fn reconfigure(&self, attributes: &Attributes) -> Result<(), NbdDeviceError> {
        let asked = family()?.ask(NBD_CMD_RECONFIGURE, attributes);
        asked.map(drop).map_err(|source| self.unchanged(source))
    }

    fn unchanged(&self, source: io::Error) -> NbdDeviceError {
        NbdDeviceError::Change { device: self.block.path().display().to_string(), source }
    }
}

/// What has happened to connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdNews {
    /// Those of devices of these numbers have died.
    Dead(Vec<u32>),
    /// Something was missed: any may have died.
    Missed,
}

/// What the driver tells of its devices' connections.
#[derive(Debug)]
pub struct NbdLinks {
    family: Family,
    socket: Socket,
}

impl NbdLinks {
    /// Listens from now on.
    ///
    /// # Errors
    /// See [`NbdDeviceError`].
    pub fn listen() -> Result<NbdLinks, NbdDeviceError> {
        let family = family()?;
        let socket = family.join(GROUP).map_err(NbdDeviceError::Listen)?;
        Ok(NbdLinks { family, socket })
    }

    /// Waits until a connection dies, or nothing has happened for a while. Blocks.
    ///
    /// # Errors
    /// See [`NbdDeviceError`].
    pub fn next(&self, patience: Duration) -> Result<Option<NbdNews>, NbdDeviceError> {
        let mut watched = [PollFd::new(&self.socket, PollFlags::IN)];
        let patience = Timespec::try_from(patience).ok();
        match poll(&mut watched, patience.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(NbdDeviceError::Listen(error.into())),
        }
        let (datagram, from) = match self.socket.recv_from_full() {
            Ok(received) => received,
            // There was more than the socket could hold.
            Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                return Ok(Some(NbdNews::Missed));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(NbdDeviceError::Listen(error)),
        };
        let told = self.family.told(&datagram, &from);
        let dead = told.iter().filter(|message| message.command() == Some(NBD_CMD_LINK_DEAD));
        let numbers: Vec<u32> = dead.filter_map(|message| message.number(NBD_ATTR_INDEX)).collect();
        Ok((!numbers.is_empty()).then_some(NbdNews::Dead(numbers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_driver_says_what_to_do() {
        // Where the driver is there, nothing is missing.
        if let Some(error) = missing() {
            assert!(error.to_string().contains("modprobe nbd"), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_not_connected_has_no_identity() {
        let device = NbdDevice { block: KernelBlock::new(DRIVER, u32::MAX) };
        assert_eq!(device.identity(), None);
        assert!(NbdDevice::find(|identity| identity == "of nobody").is_empty());
    }
}

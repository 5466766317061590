//! Devices of the kernel's ublk driver, which are served by this process: made, found again, taken over, and ended.
//!
//! A thread serves a device, as one serves a connection (`docs/decisions/012-one-thread-a-connection.md`). When the process
//! dies, the driver keeps what was not answered, and gives it to whoever takes the device over. A device is known by a number
//! that the driver keeps for whoever made it (`identity`), never remembered (`docs/decisions/019-ublk.md`).
//! Invariant: what is not answered has not been promised, so that it may be done again; no server's request is under way when
//! another one begins.

mod orders;
mod service;
mod wait;

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::ublk::{Control, DeviceState, NewDevice, Parameters, Queue, UblkError};
use tokio::runtime::Handle;
use volume::BlockDevice;

use crate::disk::Disk;
use crate::kernel_block::KernelBlock;
use orders::Orders;
use service::Service;
use wait::Waits;

/// What the block devices of the driver are called.
const NAME: &str = "ublkb";
/// How many requests may be under way.
const DEPTH: u16 = 128;
/// How long a request's data can be.
const MOST_BYTES: u32 = 1 << 20;
/// How often the driver looks whether who has all the requests that there can be has died: only then it has to look.
const TIMER: Duration = Duration::from_secs(1);
/// For how long the kernel may wait for data that are elsewhere while it looks for partitions.
const PARTITION_PATIENCE: Duration = Duration::from_secs(3);
/// How long it is waited for what is asked to end, before nobody waits for the disk any more.
const GRACE: Duration = Duration::from_secs(5);
/// For how long a device is left alone after it has begun to wait for another server, where the driver cancels what the old one
/// had asked for only after that, and would cancel what the next one asks for (6.12; not those that can resize, 6.16).
const SETTLING: Duration = Duration::from_millis(200);
/// How often it is looked whether a dead server has gone altogether.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A device of the ublk driver could not be made, served or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UblkDeviceError {
    /// The driver did not do something.
    #[error(transparent)]
    Driver(#[from] UblkError),
    /// A thread, or what it is woken by, could not be had.
    #[error("could not start a thread")]
    Thread(#[source] std::io::Error),
    /// There is no device to be taken over.
    #[error("there is no {device} that could be gone on with")]
    Gone {
        /// Its name.
        device: String,
    },
    /// Who served the device is there still.
    #[error("{device} is served by somebody else still")]
    Served {
        /// Its name.
        device: String,
    },
    /// The driver cannot change a device's size.
    #[error("this kernel's ublk driver cannot make a device larger while it is there (Linux 6.16 can)")]
    NoResize,
}

/// What a device is made of.
#[derive(Clone, Debug)]
pub struct UblkSource {
    /// The disk.
    pub device: Arc<dyn BlockDevice>,
    /// Where reads of what is not here wait; it must have a timer.
    pub runtime: Handle,
    /// After how long they fail; never where it is not said.
    pub read_timeout: Option<Duration>,
    /// The number by which the device is found again.
    pub identity: u64,
}

/// A device that the driver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UblkDevice {
    number: u32,
    /// The number that was kept with it.
    pub identity: u64,
    /// The process that serves it, where one does.
    pub served_by: Option<u32>,
    /// Whether it has a block device, and can be taken over when nobody serves it.
    pub goes_on: bool,
    /// Whether it waits for another server.
    pub waits: bool,
}

impl UblkDevice {
    /// The block device.
    #[must_use]
    pub fn block(&self) -> KernelBlock {
        KernelBlock::new(NAME, self.number)
    }

    /// Ends one that this process does not serve. Its users get errors; what they have open goes when they close it.
    ///
    /// # Errors
    /// See [`UblkDeviceError`].
    pub fn end(&self) -> Result<(), UblkDeviceError> {
        let mut control = Control::open()?;
        control.stop(self.number)?;
        Ok(control.remove(self.number)?)
    }
}

/// What keeps this machine from having devices of the ublk driver, if anything does.
#[must_use]
pub fn missing() -> Option<UblkDeviceError> {
    let sufficient = || match Control::open()?.features()?.suffices() && is_new_enough() {
        true => Ok(()),
        false => Err(UblkError::TooOld),
    };
    sufficient().err().map(UblkDeviceError::Driver)
}

/// Whether the kernel can remove a device that somebody has open without waiting for him, which no feature tells of.
fn is_new_enough() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(|digits| digits.parse::<u32>());
    let version = (numbers.next().and_then(Result::ok), numbers.next().and_then(Result::ok));
    version >= (Some(6), Some(9))
}

/// Whether devices can become larger while they are there.
#[must_use]
pub fn can_resize() -> bool {
    Control::open().and_then(|mut control| control.features()).is_ok_and(::ublk::Features::can_resize)
}

/// The devices whose identities are wanted, by number.
pub fn find(wanted: impl Fn(u64) -> bool) -> Vec<UblkDevice> {
    let Ok(mut control) = Control::open() else { return Vec::new() };
    let mut info = |number| control.info(number).ok().flatten();
    let infos = ::ublk::numbers().into_iter().filter_map(&mut info).filter(|info| wanted(info.identity));
    infos.map(|info| of_info(&info)).collect()
}

/// The device of a number, if there is one.
#[must_use]
pub fn at(number: u32) -> Option<UblkDevice> {
    Control::open().ok()?.info(number).ok().flatten().map(|info| of_info(&info))
}

fn of_info(info: &::ublk::DeviceInfo) -> UblkDevice {
    let live = info.state == DeviceState::Live;
    UblkDevice {
        number: info.number,
        identity: info.identity,
        served_by: info.process.filter(|_| live),
        goes_on: (live || info.state == DeviceState::Quiesced) && info.is_like_ours(),
        waits: info.state == DeviceState::Quiesced,
    }
}

/// A device that this process serves. Dropping it leaves the device to whoever takes it over.
#[derive(Debug)]
pub struct UblkServer {
    number: u32,
    device: Arc<dyn BlockDevice>,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
    /// The thread's own. Kept until it has gone: a request that is on its way to a thread which is there still, and whose
    /// ring is not, is nobody's in Linux 6.12, and the driver waits for its answer for ever.
    queue: Option<Arc<Mutex<Queue>>>,
    ended: Receiver<()>,
}

impl UblkServer {
    /// Makes a device and serves it: that of a number if it is free, else any. Blocks, for the network at most some seconds.
    ///
    /// # Errors
    /// See [`UblkDeviceError`].
    pub fn make(source: &UblkSource, preferred: Option<u32>) -> Result<UblkServer, UblkDeviceError> {
        let mut control = Control::open()?;
        let new = NewDevice { depth: DEPTH, most_bytes: MOST_BYTES, identity: source.identity };
        let number = match preferred.map(|number| control.add(new, Some(number))) {
            Some(Ok(info)) => info.number,
            Some(Err(_)) | None => control.add(new, None)?.number,
        };
        let made = Self::start_new(&mut control, source, number);
        if made.is_err()
            && let Err(error) = control.stop(number).and_then(|()| control.remove(number))
        {
            tracing::warn!(%error, number, "a device is left");
        }
        made
    }

    fn start_new(control: &mut Control, source: &UblkSource, number: u32) -> Result<UblkServer, UblkDeviceError> {
        let (size_bytes, read_only) = (source.device.size_bytes(), source.device.read_only());
        control.set_parameters(number, Parameters { size_bytes, read_only, most_bytes: MOST_BYTES })?;
        let orders = Orders::new().map_err(UblkDeviceError::Thread)?;
        // The driver cannot be told to stop meanwhile.
        orders.hurry(Some(Instant::now() + PARTITION_PATIENCE));
        let server = Self::serve(source, number, DEPTH, orders)?;
        control.start(number)?;
        server.orders.hurry(None);
        server.block().set_request_timer(TIMER);
        Ok(server)
    }

    /// Takes over a device whose server has died, within a time. What that one had not answered is asked for again. Where it is
    /// known since when the device waits for another server at least, that saves a moment. Blocks.
    ///
    /// # Errors
    /// See [`UblkDeviceError`].
    pub fn take_over(
        source: &UblkSource,
        number: u32,
        mut waits_since: Option<Instant>,
        patience: Duration,
    ) -> Result<UblkServer, UblkDeviceError> {
        let mut control = Control::open()?;
        let settling = if control.features()?.can_resize() { Duration::ZERO } else { SETTLING };
        let device = KernelBlock::new(NAME, number).name();
        let begin = Instant::now();
        let info = loop {
            let ours = |info: &::ublk::DeviceInfo| info.identity == source.identity && info.is_like_ours();
            let info = control.info(number)?.filter(ours).filter(|info| info.state != DeviceState::Dead);
            let info = info.ok_or_else(|| UblkDeviceError::Gone { device: device.clone() })?;
            if info.state == DeviceState::Quiesced {
                let since = *waits_since.get_or_insert_with(Instant::now);
                std::thread::sleep(settling.saturating_sub(since.elapsed()));
                if control.begin_recovery(number)? {
                    break info;
                }
            }
            if begin.elapsed() > patience {
                return Err(UblkDeviceError::Served { device });
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        let orders = Orders::new().map_err(UblkDeviceError::Thread)?;
        let server = Self::serve(source, number, info.depth, orders)?;
        control.end_recovery(number)?;
        Ok(server)
    }

    /// Starts the thread, and waits until it asks for requests.
    fn serve(source: &UblkSource, number: u32, depth: u16, orders: Arc<Orders>) -> Result<UblkServer, UblkDeviceError> {
        let (say_begun, begun) = sync_channel(1);
        let (say_ended, ended) = sync_channel(1);
        let (told, source, device) = (Arc::clone(&orders), source.clone(), Arc::clone(&source.device));
        let thread = std::thread::Builder::new().name(format!("{NAME}{number}")).spawn(move || {
            let _say_when_it_ends = say_ended;
            let queue = match Queue::new(number, depth, told.event()) {
                Ok(queue) => Arc::new(Mutex::new(queue)),
                Err(error) => {
                    let _nobody_waits_any_more = say_begun.send(Err(error));
                    return;
                }
            };
            let _nobody_waits_any_more = say_begun.send(Ok(Arc::clone(&queue)));
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            let UblkSource { device, runtime, read_timeout, .. } = source;
            let disk = Disk::new(device);
            let waits = Waits::new(disk.clone(), runtime, read_timeout, Arc::clone(&told));
            match Service::new(&mut queue, disk, waits, told).run() {
                Ok(()) => tracing::debug!(number, "a device is not served any more"),
                Err(error) => tracing::error!(%error, number, "a device is not served any more: its requests wait"),
            }
        });
        let thread = Some(thread.map_err(UblkDeviceError::Thread)?);
        let mut server = UblkServer { number, device, orders, thread, queue: None, ended };
        match begun.recv() {
            Ok(Ok(queue)) => server.queue = Some(queue),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(UblkDeviceError::Gone { device: server.block().name() }),
        }
        Ok(server)
    }

    /// The block device.
    #[must_use]
    pub fn block(&self) -> KernelBlock {
        KernelBlock::new(NAME, self.number)
    }

    /// Whether requests are being served.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Has the device's users know that it has another size.
    ///
    /// # Errors
    /// [`UblkDeviceError::NoResize`] where the driver cannot.
    pub fn resize(&self, size_bytes: u64) -> Result<(), UblkDeviceError> {
        let mut control = Control::open()?;
        if !control.features()?.can_resize() {
            return Err(UblkDeviceError::NoResize);
        }
        Ok(control.resize(self.number, size_bytes)?)
    }

    /// Stops serving after the request in hand, so that another server can go on. Whether that took no longer than `patience`;
    /// else it happens later. Blocks.
    #[must_use]
    pub fn suspend(&mut self, patience: Duration) -> bool {
        self.orders.stop();
        let stopped = self.has_ended_within(patience);
        if stopped {
            self.join();
        }
        stopped
    }

    /// As [`UblkServer::suspend`]; where it takes longer than `grace`, nobody waits for the disk any more.
    pub fn stop(mut self, grace: Duration) {
        if !self.suspend(grace) {
            self.device.abandon();
        }
        self.join();
    }

    /// Ends the device. What is asked is waited for, for a while; by force it fails at once. Who has it open gets errors from
    /// then on, and its number is free when he closes it. Blocks.
    ///
    /// # Errors
    /// See [`UblkDeviceError`].
    pub fn end(mut self, force: bool) -> Result<(), UblkDeviceError> {
        let mut control = Control::open()?;
        if force {
            self.orders.fail();
        }
        let number = self.number;
        let stopped = std::thread::scope(|scope| {
            // The driver waits for what was asked, and then asks for nothing any more.
            let stopping = scope.spawn(|| control.stop(number));
            if !self.has_ended_within(GRACE) {
                self.orders.fail();
                self.device.abandon();
            }
            stopping.join()
        });
        match stopped {
            Ok(outcome) => outcome?,
            Err(_) => tracing::error!(number, "the thread that stops a device has panicked"),
        }
        self.orders.stop();
        self.join();
        Ok(control.remove(number)?)
    }

    fn has_ended_within(&self, patience: Duration) -> bool {
        // Nothing is ever sent: what is received is that the thread has ended.
        self.ended.recv_timeout(patience) != Err(RecvTimeoutError::Timeout)
    }

    fn join(&mut self) {
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(number = self.number, "the thread of a device has panicked");
        }
        self.queue = None;
    }
}

impl Drop for UblkServer {
    fn drop(&mut self) {
        self.orders.stop();
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_driver_says_what_to_do() {
        // Where the driver is there, nothing is missing.
        if let Some(UblkDeviceError::Driver(UblkError::NoDriver)) = missing() {
            assert!(missing().unwrap().to_string().contains("modprobe ublk_drv"));
            assert!(find(|_| true).is_empty() && at(0).is_none() && !can_resize());
        }
    }

    #[test]
    fn what_there_is_not_cannot_be_ended() {
        assert!(
            UblkDevice { number: u32::MAX, identity: 0, served_by: None, goes_on: false, waits: false }.end().is_err()
        );
    }
}

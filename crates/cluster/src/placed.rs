//! A volume as its clients see it, wherever its home is.
//!
//! Invariant: a request is made at one home. Whoever changes the home waits for the changes that are under way, and new requests wait
//! for it.

use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use medium::File;
use store::{FreezeError, InFile};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock as AsyncRwLock};
use volume::{BlockDevice, DeviceError, Durability, Extent, Readiness};

use crate::remote::RemoteVolume;

/// A device that can be exchanged while it is used.
#[derive(Debug)]
pub struct Placed {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    /// Held shared by changes under way, and alone by who exchanges the device.
    gate: Arc<AsyncRwLock<()>>,
    device: RwLock<Arc<dyn BlockDevice>>,
}

impl State {
    fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.device.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// All changes wait for as long as this is there.
#[derive(Debug)]
pub struct Switching {
    state: Arc<State>,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl Switching {
    /// Puts another device in place.
    pub fn to(self, device: Arc<dyn BlockDevice>) {
        *self.state.device.write().unwrap_or_else(PoisonError::into_inner) = device;
    }
}

impl Placed {
    /// Begins with a device.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>) -> Arc<Self> {
        let state = State { gate: Arc::default(), device: RwLock::new(device) };
        Arc::new(Self { state: Arc::new(state) })
    }

    /// Waits for the changes under way, and keeps others from beginning. Reads that are under way go on; those that fail as the
    /// device is closed meanwhile are made again at the next one.
    ///
    /// # Cancel safety
    /// Dropping the future lets everything go on.
    pub async fn hold(&self) -> Switching {
        let gate = Arc::clone(&self.state.gate).write_owned().await;
        Switching { state: Arc::clone(&self.state), _gate: gate }
    }

    /// Puts another device in place of one that cannot answer any more, as its volume has been given. What is under way there is
    /// not waited for: it fails, and is made again at the other device.
    pub async fn replace(&self, given: &RemoteVolume, device: Arc<dyn BlockDevice>) {
        let mut hold = pin!(self.hold());
        let switching = tokio::select! {
            biased;
            switching = &mut hold => switching,
            // It waits in line now: whoever fails finds the other device behind it.
            () = std::future::ready(()) => {
                given.close();
                hold.await
            }
        };
        switching.to(device);
        given.close();
    }

    /// Does something to the device, on a thread that may wait. What fails as the device is closed meanwhile is done again at the next
    /// one.
    fn with<T>(&self, work: impl Fn(&dyn BlockDevice) -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        loop {
            let (device, outcome) = {
                let _shared = self.state.gate.blocking_read();
                let device = self.state.device();
                let outcome = work(&*device);
                (device, outcome)
            };
            if !matches!(outcome, Err(DeviceError::Closed)) {
                return outcome;
            }
            let _shared = self.state.gate.blocking_read();
            if Arc::ptr_eq(&device, &self.state.device()) {
                return outcome;
            }
        }
    }
}

impl BlockDevice for Placed {
    fn size_bytes(&self) -> u64 {
        self.state.device().size_bytes()
    }

    fn read_only(&self) -> bool {
        self.state.device().read_only()
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
        let Ok(_shared) = self.state.gate.try_read() else { return Ok(Readiness::Wait) };
        self.state.device().try_read(offset, buffer)
    }

    fn will_read(&self, offset: u64, length: u64) {
        self.state.device().will_read(offset, length);
    }

    fn read(&self, offset: u64, length: usize) -> BoxFuture<'static, Result<Bytes, DeviceError>> {
        let state = Arc::clone(&self.state);
        Box::pin(async move {
            loop {
                let device = {
                    let _shared = state.gate.read().await;
                    state.device()
                };
                let outcome = device.read(offset, length).await;
                if !matches!(outcome, Err(DeviceError::Closed)) {
                    return outcome;
                }
                // It may have been closed because another one takes its place.
                let _shared = state.gate.read().await;
                if Arc::ptr_eq(&device, &state.device()) {
                    return outcome;
                }
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), DeviceError> {
        self.with(|device| device.write(offset, data, durability))
    }

    fn write_many(&self, writes: &[(u64, &[u8])], durability: Durability) -> Result<(), DeviceError> {
        self.with(|device| device.write_many(writes, durability))
    }

    fn write_zeroes(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.with(|device| device.write_zeroes(offset, length, durability))
    }

    fn discard(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.with(|device| device.discard(offset, length, durability))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.with(|device| device.flush())
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError> {
        self.with(|device| device.extents(offset, length, limit))
    }

    fn abandon(&self) {
        self.state.device().abandon();
    }

    fn chunk_in_file(&self, offset: u64) -> Result<Option<InFile>, DeviceError> {
        self.state.device().chunk_in_file(offset)
    }

    fn can_share(&self, file: &dyn File) -> Result<(), FreezeError> {
        self.state.device().can_share(file)
    }
}

//! A disk in memory, which notes what is done to it, and parts of which can be elsewhere.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use volume::{BlockDevice, DeviceError, Durability, Extent, Readiness};

/// A disk.
#[derive(Debug)]
pub(crate) struct MemoryDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    size_bytes: AtomicU64,
    read_only: bool,
    /// From here on everything is elsewhere until it has arrived.
    absent_from: AtomicU64,
    arrived: watch::Sender<bool>,
    pub(crate) closed: AtomicBool,
    /// What was done, in words.
    pub(crate) done: Mutex<Vec<String>>,
}

impl MemoryDisk {
    pub(crate) fn new(size_bytes: usize) -> MemoryDisk {
        MemoryDisk {
            bytes: Arc::new(Mutex::new(vec![0; size_bytes])),
            size_bytes: AtomicU64::new(size_bytes as u64),
            read_only: false,
            absent_from: AtomicU64::new(u64::MAX),
            arrived: watch::Sender::new(false),
            closed: AtomicBool::new(false),
            done: Mutex::default(),
        }
    }

    pub(crate) fn for_reading(self) -> MemoryDisk {
        MemoryDisk { read_only: true, ..self }
    }

    pub(crate) fn without(self, from: u64) -> MemoryDisk {
        self.absent_from.store(from, Ordering::Relaxed);
        self
    }

    pub(crate) fn arrive(&self) {
        self.arrived.send_replace(true);
    }

    /// Whether somebody waits for what is elsewhere.
    pub(crate) fn is_awaited(&self) -> bool {
        self.arrived.receiver_count() > 0
    }

    pub(crate) fn grow(&self, size_bytes: usize) {
        self.bytes.lock().unwrap().resize(size_bytes, 0);
        self.size_bytes.store(size_bytes as u64, Ordering::Release);
    }

    pub(crate) fn put(&self, offset: usize, bytes: &[u8]) {
        self.bytes.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn has(&self, offset: usize, length: usize) -> Vec<u8> {
        self.bytes.lock().unwrap()[offset..offset + length].to_vec()
    }

    pub(crate) fn take_done(&self) -> Vec<String> {
        std::mem::take(&mut *self.done.lock().unwrap())
    }

    fn change(&self, what: &str, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(DeviceError::Closed);
        }
        let size_bytes = self.size_bytes();
        if offset + length > size_bytes {
            return Err(DeviceError::OutOfRange { offset, length, size_bytes });
        }
        let durable = if durability == Durability::Power { " durably" } else { "" };
        self.done.lock().unwrap().push(format!("{what} {offset}+{length}{durable}"));
        Ok(())
    }
}

impl BlockDevice for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(DeviceError::Closed);
        }
        let end = offset + buffer.len() as u64;
        if end > self.absent_from.load(Ordering::Relaxed) && !*self.arrived.borrow() {
            return Ok(Readiness::Wait);
        }
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..end as usize]);
        Ok(Readiness::Ready)
    }

    fn read(&self, offset: u64, length: usize) -> BoxFuture<'static, Result<Bytes, DeviceError>> {
        let (bytes, mut arrived) = (Arc::clone(&self.bytes), self.arrived.subscribe());
        Box::pin(async move {
            arrived.wait_for(|arrived| *arrived).await.map_err(|_| DeviceError::Closed)?;
            let offset = offset as usize;
            Ok(Bytes::copy_from_slice(&bytes.lock().unwrap()[offset..offset + length]))
        })
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), DeviceError> {
        self.change("write", offset, data.len() as u64, durability)?;
        self.put(offset as usize, data);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.change("zero", offset, length, durability)?;
        self.put(offset as usize, &vec![0; length as usize]);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.change("discard", offset, length, durability)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.change("flush", 0, 0, Durability::Process)
    }

    fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Extent>, DeviceError> {
        Err(DeviceError::Closed)
    }
}

//! A disk of ours in memory, parts of which may be somewhere else until a test lets them come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::watch;
use volume::{BlockDevice, DeviceError, Durability, Extent, ExtentKind, Readiness};

/// Content, holes where it is zero for whole blocks of 4 KiB, and a range that is absent until it is let come.
#[derive(Debug)]
pub(crate) struct Memory {
    content: Bytes,
    absent: std::ops::Range<u64>,
    come: watch::Sender<bool>,
    pub(crate) bytes_read: AtomicU64,
}

const BLOCK: usize = 4096;

impl Memory {
    pub(crate) fn new(content: Vec<u8>, absent: std::ops::Range<u64>) -> Arc<Self> {
        let come = watch::Sender::new(absent.is_empty());
        Arc::new(Self { content: content.into(), absent, come, bytes_read: 0.into() })
    }

    pub(crate) fn come(&self) {
        self.come.send_replace(true);
    }

    /// Whether someone waits for the absent range.
    pub(crate) fn waited_for(&self) -> bool {
        self.come.receiver_count() > 0
    }

    fn range(&self, offset: u64, length: u64) -> std::ops::Range<usize> {
        let aligned = offset.is_multiple_of(512) && length.is_multiple_of(512);
        assert!(aligned && offset + length <= self.size_bytes(), "a request within the disk");
        usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap()
    }

    fn lacks(&self, offset: u64, length: u64) -> bool {
        offset < self.absent.end && self.absent.start < offset + length && !*self.come.borrow()
    }

    fn kind(&self, offset: usize) -> ExtentKind {
        let end = (offset + BLOCK).min(self.content.len());
        if self.lacks(offset as u64, (end - offset) as u64) {
            ExtentKind::Absent
        } else if format::is_zero(&self.content[offset..end]) {
            // Both kinds of zero.
            if offset.is_multiple_of(2 * BLOCK) { ExtentKind::Zero } else { ExtentKind::Hole }
        } else if offset.is_multiple_of(3 * BLOCK) {
            ExtentKind::Written
        } else {
            ExtentKind::Local
        }
    }
}

impl BlockDevice for Memory {
    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn read_only(&self) -> bool {
        true
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
        let range = self.range(offset, buffer.len() as u64);
        if self.lacks(offset, buffer.len() as u64) {
            buffer.fill(0xee);
            return Ok(Readiness::Wait);
        }
        self.bytes_read.fetch_add(buffer.len() as u64, Ordering::SeqCst);
        buffer.copy_from_slice(&self.content[range]);
        Ok(Readiness::Ready)
    }

    fn read(
        &self,
        offset: u64,
        length: usize,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Bytes, DeviceError>> + Send + 'static>> {
        let bytes = self.content.slice(self.range(offset, length as u64));
        let mut come = self.come.subscribe();
        Box::pin(async move {
            come.wait_for(|come| *come).await.map_err(|_| DeviceError::Closed)?;
            Ok(bytes)
        })
    }

    fn write(&self, _: u64, _: &[u8], _: Durability) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Durability) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn discard(&self, _: u64, _: u64, _: Durability) -> Result<(), DeviceError> {
        Err(DeviceError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError> {
        let mut list: Vec<Extent> = Vec::new();
        let mut position = offset;
        while position < offset + length {
            let block = BLOCK as u64;
            let next = ((position / block + 1) * block).min(offset + length);
            let kind = self.kind(usize::try_from(position / block * block).unwrap());
            let full = list.len() == limit;
            match list.last_mut() {
                Some(last) if last.kind == kind => last.length += next - position,
                _ if full => break,
                _ => list.push(Extent { length: next - position, kind }),
            }
            position = next;
        }
        Ok(list)
    }
}

//! A disk in memory whose sectors can be absent until a test lets them come.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::watch;
use volume::{BlockDevice, DeviceError, Durability, Extent, ExtentKind, Readiness};

const SECTOR: usize = 512;

#[derive(Debug)]
struct Content {
    bytes: Vec<u8>,
    kinds: Vec<ExtentKind>,
    /// The changes since the last flush that must survive a loss of power, and all others.
    durable: usize,
    volatile: usize,
}

/// What a test has ordered to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Full,
    Damaged,
    Closed,
}

#[derive(Debug)]
pub(crate) struct MemoryDisk {
    content: Arc<Mutex<Content>>,
    size_bytes: u64,
    read_only: bool,
    fault: Mutex<Option<Fault>>,
    arrivals: watch::Sender<u64>,
    waiting: Arc<AtomicUsize>,
    pub(crate) flushes: AtomicUsize,
    pub(crate) requests: AtomicUsize,
    /// How many extents are told at most, whatever the limit.
    pub(crate) extents: AtomicUsize,
    /// How many writes came together, the most of them.
    pub(crate) together: AtomicUsize,
    /// From where on there is no room.
    pub(crate) full_from: AtomicU64,
}

impl MemoryDisk {
    pub(crate) fn new(size_bytes: usize) -> MemoryDisk {
        let content = Content {
            bytes: vec![0; size_bytes],
            kinds: vec![ExtentKind::Hole; size_bytes / SECTOR],
            durable: 0,
            volatile: 0,
        };
        MemoryDisk {
            content: Arc::new(Mutex::new(content)),
            size_bytes: size_bytes as u64,
            read_only: false,
            fault: Mutex::default(),
            arrivals: watch::Sender::new(0),
            waiting: Arc::default(),
            flushes: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            extents: AtomicUsize::new(usize::MAX),
            together: AtomicUsize::new(0),
            full_from: AtomicU64::new(u64::MAX),
        }
    }

    /// A disk whose every byte tells its place.
    pub(crate) fn patterned(size_bytes: usize) -> MemoryDisk {
        let disk = MemoryDisk::new(size_bytes);
        {
            let mut content = disk.content.lock().unwrap();
            content.bytes.copy_from_slice(&pattern(0, size_bytes));
            content.kinds.fill(ExtentKind::Local);
        }
        disk
    }

    pub(crate) fn read_only(mut self) -> MemoryDisk {
        self.read_only = true;
        self
    }

    pub(crate) fn mark(&self, offset: usize, length: usize, kind: ExtentKind) {
        self.content.lock().unwrap().kinds[offset / SECTOR..(offset + length) / SECTOR].fill(kind);
    }

    /// Lets absent sectors come.
    pub(crate) fn arrive(&self, offset: usize, length: usize) {
        self.mark(offset, length, ExtentKind::Local);
        self.arrivals.send_modify(|count| *count += 1);
    }

    pub(crate) fn fail(&self, fault: Fault) {
        *self.fault.lock().unwrap() = Some(fault);
    }

    /// Lets every request hang for as long as the answer lives.
    pub(crate) fn hang(&self) -> impl Drop {
        self.content.lock().unwrap()
    }

    /// How many reads wait right now.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(crate) fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        self.content.lock().unwrap().bytes[offset..offset + length].to_vec()
    }

    /// How many changes were asked to be (durable, volatile).
    pub(crate) fn changes(&self) -> (usize, usize) {
        let content = self.content.lock().unwrap();
        (content.durable, content.volatile)
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let size_bytes = self.size_bytes();
        let whole = offset.is_multiple_of(512) && length.is_multiple_of(512);
        if !whole || offset.checked_add(length).is_none_or(|end| end > size_bytes) {
            return Err(DeviceError::OutOfRange { offset, length, size_bytes });
        }
        match *self.fault.lock().unwrap() {
            None => Ok(()),
            Some(Fault::Full) => Err(DeviceError::Full),
            Some(Fault::Closed) => Err(DeviceError::Closed),
            Some(Fault::Damaged) => Err(DeviceError::Store(store::StoreError::Damaged {
                what: "chunk 7".to_owned(),
                path: "/store/pack".into(),
            })),
        }
    }

    fn change(
        &self,
        offset: u64,
        length: u64,
        durability: Durability,
        kind: ExtentKind,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), DeviceError> {
        self.check(offset, length)?;
        if self.read_only {
            return Err(DeviceError::ReadOnly);
        }
        if offset >= self.full_from.load(Ordering::SeqCst) {
            return Err(DeviceError::Full);
        }
        let (start, end) = range(offset, length);
        let mut content = self.content.lock().unwrap();
        fill(&mut content.bytes[start..end]);
        content.kinds[start / SECTOR..end / SECTOR].fill(kind);
        match durability {
            Durability::Process => content.volatile += 1,
            Durability::Power => content.durable += 1,
        }
        Ok(())
    }
}

/// Counts a wait for as long as it lasts, also when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockDevice for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
        self.check(offset, buffer.len() as u64)?;
        let (start, end) = range(offset, buffer.len() as u64);
        let content = self.content.lock().unwrap();
        if content.kinds[start / SECTOR..end / SECTOR].contains(&ExtentKind::Absent) {
            buffer.fill(0xEE);
            return Ok(Readiness::Wait);
        }
        buffer.copy_from_slice(&content.bytes[start..end]);
        Ok(Readiness::Ready)
    }

    fn read(
        &self,
        offset: u64,
        length: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, DeviceError>> + Send + 'static>> {
        let checked = self.check(offset, length as u64);
        let (start, end) = range(offset, length as u64);
        let mut arrivals = self.arrivals.subscribe();
        let content = Arc::clone(&self.content);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.waiting));
        Box::pin(async move {
            let _counted = counted;
            checked?;
            loop {
                {
                    let content = content.lock().unwrap();
                    if !content.kinds[start / SECTOR..end / SECTOR].contains(&ExtentKind::Absent) {
                        return Ok(Bytes::copy_from_slice(&content.bytes[start..end]));
                    }
                }
                arrivals.changed().await.map_err(|_| DeviceError::Closed)?;
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), DeviceError> {
        let fill = |bytes: &mut [u8]| bytes.copy_from_slice(data);
        self.change(offset, data.len() as u64, durability, ExtentKind::Written, fill)
    }

    fn write_many(&self, writes: &[(u64, &[u8])], durability: Durability) -> Result<(), DeviceError> {
        self.together.fetch_max(writes.len(), Ordering::SeqCst);
        writes.iter().try_for_each(|(offset, data)| self.write(*offset, data, durability))
    }

    fn write_zeroes(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.change(offset, length, durability, ExtentKind::Zero, |bytes| bytes.fill(0))
    }

    fn discard(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.write_zeroes(offset, length, durability)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.check(0, 0)?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError> {
        self.check(offset, length)?;
        let (start, end) = range(offset, length);
        let limit = limit.min(self.extents.load(Ordering::SeqCst));
        let content = self.content.lock().unwrap();
        let mut extents: Vec<Extent> = Vec::new();
        for kind in &content.kinds[start / SECTOR..end / SECTOR] {
            let full = extents.len() == limit;
            match extents.last_mut() {
                Some(last) if last.kind == *kind => last.length += 512,
                _ if full => break,
                _ => extents.push(Extent { length: 512, kind: *kind }),
            }
        }
        Ok(extents)
    }
}

fn range(offset: u64, length: u64) -> (usize, usize) {
    (usize::try_from(offset).unwrap(), usize::try_from(offset + length).unwrap())
}

/// What a patterned disk holds.
pub(crate) fn pattern(offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length).map(|at| (at / SECTOR * 31 + at % SECTOR * 7 + 1).to_le_bytes()[0]).collect()
}

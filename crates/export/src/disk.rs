//! A disk as exports see it: any offset and any length, over a device of whole sectors.
//!
//! What covers a sector in part is written by read-modify-write. Invariant: between its read and its write no other
//! write of this process reaches the device, whichever connection or export it comes from, so none is lost; whole
//! sectors go through side by side. Nothing waits for the network while that lock is held: a sector that is not here
//! is named to the caller, who fetches it and tries again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use bytes::Bytes;
use volume::{BlockDevice, DeviceError, Durability, Extent, Readiness};

/// The device's unit, in bytes.
const SECTOR: u64 = 512;
const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

/// Who may write to a device: sharers write whole sectors, the owner parts of them.
type Edges = RwLock<()>;

/// The locks of the devices in use, by address, so that all exports of one device share one.
static EDGES: Mutex<BTreeMap<usize, Weak<Edges>>> = Mutex::new(BTreeMap::new());

/// Whether a write was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It was.
    Done,
    /// Nothing was written: these sectors are not here, and the write covers them in part.
    Needs { offset: u64, length: usize },
}

/// A disk.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    device: Arc<dyn BlockDevice>,
    edges: Arc<Edges>,
}

impl Disk {
    pub(crate) fn new(device: Arc<dyn BlockDevice>) -> Disk {
        let edges = edges_of(&device);
        Disk { device, edges }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    pub(crate) fn read_only(&self) -> bool {
        self.device.read_only()
    }

    pub(crate) fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }

    /// Fills the buffer if everything is here.
    pub(crate) fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
        let sectors = Sectors::around(offset, buffer.len());
        if sectors.exact() {
            return self.device.try_read(offset, buffer);
        }
        let mut whole = vec![0; sectors.bytes()];
        let readiness = self.device.try_read(sectors.start, &mut whole)?;
        if readiness == Readiness::Ready {
            let skip = sectors.head();
            buffer.copy_from_slice(&whole[skip..skip + buffer.len()]);
        }
        Ok(readiness)
    }

    /// Says that a range will be read soon.
    pub(crate) fn will_read(&self, offset: u64, length: u64) {
        let (start, end) = (round_down(offset), round_up(offset + length));
        self.device.will_read(start, end - start);
    }

    /// Reads, waiting for what is not here.
    pub(crate) fn read(
        &self,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = Result<Bytes, DeviceError>> + Send + use<> {
        let sectors = Sectors::around(offset, length);
        let whole = self.device.read(sectors.start, sectors.bytes());
        async move {
            let whole = whole.await?;
            let skip = sectors.head();
            Ok(if sectors.exact() { whole } else { whole.slice(skip..skip + length) })
        }
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<Written, DeviceError> {
        let sectors = Sectors::around(offset, data.len());
        if sectors.exact() {
            let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
            self.device.write(offset, data, durability)?;
            return Ok(Written::Done);
        }
        let _owned = self.edges.write().unwrap_or_else(PoisonError::into_inner);
        let mut whole = vec![0; sectors.bytes()];
        for edge in sectors.edges() {
            let at = index(edge - sectors.start);
            if self.device.try_read(edge, &mut whole[at..at + SECTOR_BYTES])? == Readiness::Wait {
                return Ok(Written::Needs { offset: edge, length: SECTOR_BYTES });
            }
        }
        let skip = sectors.head();
        whole[skip..skip + data.len()].copy_from_slice(data);
        self.device.write(sectors.start, &whole, durability)?;
        Ok(Written::Done)
    }

    /// Makes several writes of whole sectors, one after the other. After an error some of them may have been made.
    pub(crate) fn write_many(&self, writes: &[(u64, &[u8])]) -> Result<(), DeviceError> {
        debug_assert!(writes.iter().all(|(offset, data)| Sectors::around(*offset, data.len()).exact()));
        let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
        self.device.write_many(writes, Durability::Process)
    }

    pub(crate) fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        durability: Durability,
    ) -> Result<Written, DeviceError> {
        let end = offset + length;
        if offset.is_multiple_of(SECTOR) && end.is_multiple_of(SECTOR) {
            let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
            self.device.write_zeroes(offset, length, durability)?;
            return Ok(Written::Done);
        }
        let _owned = self.edges.write().unwrap_or_else(PoisonError::into_inner);
        let sectors = Sectors { start: round_down(offset), end: round_up(end), offset, tail: end };
        let mut edges: Vec<(u64, Sector)> = Vec::with_capacity(2);
        for edge in sectors.edges() {
            let mut sector = [0; SECTOR_BYTES];
            if self.device.try_read(edge, &mut sector)? == Readiness::Wait {
                return Ok(Written::Needs { offset: edge, length: SECTOR_BYTES });
            }
            let from = index(offset.saturating_sub(edge));
            let to = index((end - edge).min(SECTOR));
            sector[from..to].fill(0);
            edges.push((edge, sector));
        }
        for (edge, sector) in &edges {
            self.device.write(*edge, sector, durability)?;
        }
        if let Some((inner, length)) = inner(offset, end) {
            self.device.write_zeroes(inner, length, durability)?;
        }
        Ok(Written::Done)
    }

    /// Discards the whole sectors of a range: the rest is kept, as the protocol allows.
    pub(crate) fn discard(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        let Some((offset, length)) = inner(offset, offset + length) else { return Ok(()) };
        let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
        self.device.discard(offset, length, durability)
    }

    /// What a range consists of; the extents begin at `offset`, cover at least one byte and nothing behind the range.
    pub(crate) fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError> {
        let (start, end) = (round_down(offset), round_up(offset + length));
        let mut extents = self.device.extents(start, end - start, limit)?;
        if let Some(first) = extents.first_mut() {
            first.length = first.length.saturating_sub(offset - start);
        }
        let mut left = length;
        for extent in &mut extents {
            extent.length = extent.length.min(left);
            left -= extent.length;
        }
        extents.retain(|extent| extent.length > 0);
        Ok(extents)
    }
}

/// Whether a range is one of whole sectors.
pub(crate) fn is_whole(offset: u64, length: u32) -> bool {
    offset.is_multiple_of(SECTOR) && u64::from(length).is_multiple_of(SECTOR)
}

/// The lock of a device.
fn edges_of(device: &Arc<dyn BlockDevice>) -> Arc<Edges> {
    // An entry can be upgraded only while some `Disk` keeps its device, so no other device can have its address.
    let address = Arc::as_ptr(device).cast::<()>().addr();
    let mut all = EDGES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(edges) = all.get(&address).and_then(Weak::upgrade) {
        return edges;
    }
    all.retain(|_, edges| edges.strong_count() > 0);
    let edges = Arc::new(Edges::new(()));
    all.insert(address, Arc::downgrade(&edges));
    edges
}

/// The whole sectors that a range of bytes touches.
#[derive(Clone, Copy, Debug)]
struct Sectors {
    /// The first sector's first byte.
    start: u64,
    /// The first byte behind the last sector.
    end: u64,
    /// The range's first byte.
    offset: u64,
    /// The first byte behind the range.
    tail: u64,
}

impl Sectors {
    fn around(offset: u64, length: usize) -> Sectors {
        let tail = offset + length as u64;
        Sectors { start: round_down(offset), end: round_up(tail), offset, tail }
    }

    fn exact(&self) -> bool {
        self.start == self.offset && self.end == self.tail
    }

    fn bytes(&self) -> usize {
        index(self.end - self.start)
    }

    /// How many bytes of the first sector lie before the range.
    fn head(&self) -> usize {
        index(self.offset - self.start)
    }

    /// The sectors that the range covers in part: at most the first and the last.
    fn edges(&self) -> impl Iterator<Item = u64> + use<> {
        let first = (self.start != self.offset).then_some(self.start);
        let last = (self.end != self.tail).then(|| self.end - SECTOR).filter(|last| first != Some(*last));
        first.into_iter().chain(last)
    }
}

/// The whole sectors inside a range.
fn inner(offset: u64, end: u64) -> Option<(u64, u64)> {
    let (start, end) = (round_up(offset), round_down(end));
    (start < end).then(|| (start, end - start))
}

fn round_down(offset: u64) -> u64 {
    offset - offset % SECTOR
}

fn round_up(offset: u64) -> u64 {
    offset.next_multiple_of(SECTOR)
}

/// A distance inside a request, which fits in memory.
fn index(distance: u64) -> usize {
    usize::try_from(distance).expect("a request fits in memory")
}

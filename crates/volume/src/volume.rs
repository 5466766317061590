//! A writable thin disk.
//!
//! Invariants: writes go one after the other into the journal of the open layer, and are seen by every reader when
//! they return; whoever exchanges the stack holds the writer, so that no write falls between two layers.

use std::sync::Arc;

use bytes::Bytes;
use format::journal::{DATA_CHECKSUM_BYTES, JournalKeys, MAX_DATA_BYTES, Record, RecordKind};
use futures_util::future::BoxFuture;
use types::{JournalId, Name, Progress, SECTOR_BYTES, VolumeId};

use crate::base::{Missing, TreeBase};
use crate::device::{BlockDevice, DeviceError, Durability, Extent, Readiness};
use crate::history::{History, MOST_LAYERS};
use crate::layer::Layer;
use crate::locks::{Mutex, RwLock};
use crate::observer::{Change, Observer, Told};
use crate::pressure::{self, FoldDue, Journals, Look, NoRoom, Pressure};
use crate::reading::StackCell;
use crate::records::{self, DeletedRecord, VolumeRecord};
use crate::stack::{Context, Stack};
use medium::{File, Room};
use store::{FreezeError, InFile, RootChange};

/// A volume.
#[derive(Debug)]
pub struct Volume {
    id: VolumeId,
    name: Name,
    pub(crate) cell: Arc<StackCell>,
    pub(crate) writer: Mutex<Writer>,
    /// What its journal's records are sealed with.
    keys: JournalKeys,
    /// Held while the volume is folded: one fold at a time.
    pub(crate) folding: Arc<tokio::sync::Mutex<()>>,
    pub(crate) pressure: Pressure,
    /// That it was deleted: it is closed then, and only kept.
    pub(crate) deleted: RwLock<Option<DeletedRecord>>,
    /// What is kept of its past, where it is protected.
    pub(crate) history: Mutex<Option<History>>,
    /// When it was made here, in milliseconds since 1970; nothing where it was made elsewhere, or before that was recorded.
    born_ms: Option<u64>,
    /// Who is told of every change.
    pub(crate) observer: RwLock<Option<Arc<dyn Observer>>>,
}

/// What only the one who writes may touch.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) open: Arc<Layer>,
    pub(crate) next_sequence: u64,
    pub(crate) closed: bool,
}

/// What a volume consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// The disk's size, in bytes.
    pub size_bytes: u64,
    /// The length of its journal, and of what of other journals it needs, in bytes.
    pub journal_bytes: u64,
    /// How much of that still counts, in bytes.
    pub dirty_bytes: u64,
    /// How many layers lie over the tree; at least the open one.
    pub layers: usize,
    /// The tree.
    pub base: TreeBase,
}

/// How far a volume has been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its journal: a volume that is reverted begins another one.
    pub journal: JournalId,
    /// The number that the next record of the journal gets.
    pub sequence: u64,
}

impl Volume {
    /// Makes a volume of a stack whose first layer is the open one.
    pub(crate) fn new(
        id: VolumeId,
        name: Name,
        stack: Stack,
        (open, next_sequence): (Arc<Layer>, u64),
        born_ms: Option<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            name,
            keys: open.journal.keys().clone(),
            pressure: Pressure::new(stack.context.options.limits()),
            writer: Mutex::new(Writer { open, next_sequence, closed: false }),
            cell: StackCell::new(stack),
            folding: Arc::default(),
            deleted: RwLock::default(),
            history: Mutex::default(),
            born_ms,
            observer: RwLock::default(),
        })
    }

    /// The volume's id on this node.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// The volume's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// When it was made, cloned or taken back here, in milliseconds since 1970; nothing where it came from elsewhere
    /// ([`adopt`](crate::Volumes::adopt), [`rename`](crate::Volumes::rename)), or before that was recorded.
    #[must_use]
    pub fn born_ms(&self) -> Option<u64> {
        self.born_ms
    }

    /// The tree under the layers.
    #[must_use]
    pub fn base(&self) -> TreeBase {
        self.cell.base()
    }

    /// What the volume consists of now.
    #[must_use]
    pub fn status(&self) -> VolumeStatus {
        let stack = self.cell.stack();
        VolumeStatus {
            size_bytes: stack.size_bytes,
            journal_bytes: stack.journal_bytes(),
            dirty_bytes: stack.dirty_bytes(),
            layers: stack.layers.len(),
            base: stack.base.clone(),
        }
    }

    /// How far the volume has been written: as long as it is the same, and so is the size, nothing has changed.
    #[must_use]
    pub fn position(&self) -> Position {
        let writer = self.writer.lock();
        Position { journal: writer.open.journal.id(), sequence: writer.next_sequence }
    }

    /// Makes everything durable here that was written. Nobody is told, and nobody else is waited for.
    ///
    /// # Errors
    /// A journal that cannot be made durable, or a volume that is closed.
    pub fn sync(&self) -> Result<(), DeviceError> {
        // Frozen layers were made durable when they were frozen.
        self.cell.open()?.layers.first().map_or(Ok(()), |open| open.journal.sync())
    }

    /// Counts what the tree lacks; what written sectors cover is counted too.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn missing(&self) -> Result<Missing, DeviceError> {
        self.cell.missing()
    }

    /// How much may count in its journals before they are folded even while they are written to, in bytes: less where the
    /// file system has little left.
    #[must_use]
    pub fn journal_limit_bytes(&self) -> u64 {
        self.pressure.fold_from(self.cell.stack().context.room())
    }

    /// Whether the journals have grown so long that [`crate::Volumes::fold`] is due.
    #[must_use]
    pub fn needs_fold(&self) -> Option<FoldDue> {
        let stack = self.cell.stack();
        let deep = stack.layers.len() > MOST_LAYERS && self.window().is_some();
        if deep {
            return Some(FoldDue::Full);
        }
        let (now_ms, room) = (stack.context.options.clock.now_ms(), stack.context.room());
        self.pressure.is_fold_due(self.journals(&stack, room), room, now_ms)
    }

    /// Whether a fold that began because the volume rested ([`FoldDue::Resting`]) can wait: the guest writes again.
    #[must_use]
    pub fn fold_may_wait(&self) -> bool {
        let stack = self.cell.stack();
        let (now_ms, room) = (stack.context.options.clock.now_ms(), stack.context.room());
        self.pressure.may_wait(self.journals(&stack, room), room, now_ms)
    }

    /// Whether a fold will not find room for what it has yet to write, judging by what it has written so far. It had better
    /// be put off before it takes what guests could write to.
    #[must_use]
    pub fn fold_lacks_room(&self, progress: &Progress) -> bool {
        pressure::fold_lacks_room(progress, self.cell.stack().context.room())
    }

    /// What a fold may give back of its journals: what is kept of the past is in them too, and stays.
    fn journals(&self, stack: &Stack, room: Option<Room>) -> Journals {
        let past = self.window().map(|window| window.bytes);
        let length_bytes = stack.journal_bytes().saturating_sub(past.unwrap_or(0));
        let live_bytes = length_bytes.min(stack.dirty_bytes());
        let folded_bytes = stack.folded_bytes(pressure::foldable(room));
        // Of the layers of a protected volume tidying gives nothing back.
        let kept_bytes = if past.is_some() { length_bytes } else { 0 };
        Journals { length_bytes, live_bytes, folded_bytes: folded_bytes.max(kept_bytes) }
    }

    /// The record of this volume with a stack.
    pub(crate) fn record(&self, stack: &Stack) -> RootChange {
        self.record_as(stack, self.deleted.read().clone())
    }

    /// The record of this volume with a stack, as a deleted one or not.
    pub(crate) fn record_as(&self, stack: &Stack, deleted: Option<DeletedRecord>) -> RootChange {
        let record = VolumeRecord {
            version: records::VERSION,
            name: self.name.clone(),
            stack: stack.record(),
            deleted,
            born_ms: self.born_ms,
        };
        records::put(records::volume_name(self.id), &record)
    }

    /// Makes every request fail from now on.
    pub(crate) fn close(&self) {
        self.cell.close();
        self.writer.lock().closed = true;
        if let Some(observer) = self.observer.write().take() {
            observer.abandon(true);
        }
    }

    /// Waits as long as the room demands before so much is written.
    fn admit(&self, bytes: u64) -> Result<(), DeviceError> {
        let look = || {
            let stack = self.cell.stack();
            let (now_ms, room) = (stack.context.options.clock.now_ms(), stack.context.room());
            let journals = self.journals(&stack, room);
            if self.pressure.is_fold_due(journals, room, now_ms).is_some() || self.pressure.missing(room) > 0 {
                stack.context.room_due.notify_one();
            }
            // Where folding may wait for what is elsewhere, writes do not wait for folding: only the room counts.
            let waits = stack.base.origin.is_none();
            Look { journals: if waits { journals } else { Journals::default() }, room }
        };
        let wait = self.pressure.admit(bytes, look).map_err(|NoRoom| DeviceError::Full)?;
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        Ok(())
    }

    /// Changes the disk; where there is no room, once more with what the store can do without.
    fn with_room(&self, change: impl Fn() -> Result<Told, DeviceError>) -> Result<(), DeviceError> {
        let told = match change() {
            Err(DeviceError::Full) if self.cell.stack().context.make_room() => change(),
            outcome => outcome,
        };
        told?.settle()
    }

    fn write_once(&self, writes: &[(u64, &[u8])], durability: Durability) -> Result<Told, DeviceError> {
        let stack = self.cell.open()?;
        for (offset, data) in writes {
            stack.check_range(*offset, data.len() as u64)?;
        }
        // Checksums need no lock.
        let pieces = writes.iter().flat_map(|(offset, data)| {
            let starts = (*offset..).step_by(MAX_DATA_BYTES);
            starts.zip(data.chunks(MAX_DATA_BYTES))
        });
        let record = |(offset, data): (u64, _)| {
            let data: &[u8] = data;
            let (sector, sectors) = (offset / SECTOR_BYTES, data.len() as u64 / SECTOR_BYTES);
            let data_checksum = self.keys.data_checksum(data);
            (Record { kind: RecordKind::Write, sequence: 0, time_ms: 0, sector, sectors, data_checksum }, data)
        };
        let mut records: Vec<_> = pieces.map(record).collect();
        if records.is_empty() {
            return Ok(Told::NOBODY);
        }
        let mut writer = self.writer.lock();
        writer.append(&stack.context, &mut records)?;
        let changes = writes.iter().map(|&(offset, data)| Change::Write { offset, data });
        let told = self.tell(&writer, changes, durability);
        writer.finish(durability).map(|()| told)
    }

    fn zero(&self, change: Change<'_>, offset: u64, length: u64, durability: Durability) -> Result<Told, DeviceError> {
        let stack = self.cell.open()?;
        stack.check_range(offset, length)?;
        if length == 0 {
            return Ok(Told::NOBODY);
        }
        let kind = if matches!(change, Change::Discard { .. }) { RecordKind::Discard } else { RecordKind::Zero };
        let mut writer = self.writer.lock();
        let (sector, sectors) = writer.open.with_zeroes_around(offset / SECTOR_BYTES, length / SECTOR_BYTES);
        let data_checksum = [0; DATA_CHECKSUM_BYTES];
        let record = Record { kind, sequence: 0, time_ms: 0, sector, sectors, data_checksum };
        writer.append(&stack.context, &mut [(record, &[])])?;
        let told = self.tell(&writer, [change], durability);
        writer.finish(durability).map(|()| told)
    }
}

impl Writer {
    /// Appends records, after numbering and dating them.
    fn append(&mut self, context: &Context, records: &mut [(Record, &[u8])]) -> Result<(), DeviceError> {
        if self.closed {
            return Err(DeviceError::Closed);
        }
        let time_ms = context.options.clock.now_ms();
        for (record, _) in records.iter_mut() {
            (record.sequence, record.time_ms) = (self.next_sequence, time_ms);
            self.next_sequence += 1;
        }
        if self.open.append(records)? {
            context.ask_to_tidy(&self.open.journal);
        }
        Ok(())
    }
}

/// Lets go of the writer, then makes the write durable where that was asked for.
trait Finish {
    fn finish(self, durability: Durability) -> Result<(), DeviceError>;
}

impl Finish for std::sync::MutexGuard<'_, Writer> {
    fn finish(self, durability: Durability) -> Result<(), DeviceError> {
        match durability {
            Durability::Process => Ok(()),
            Durability::Power => {
                let open = self.open.clone();
                drop(self);
                open.journal.sync()
            }
        }
    }
}

impl BlockDevice for Volume {
    fn size_bytes(&self) -> u64 {
        self.cell.size_bytes()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<Readiness, DeviceError> {
        self.cell.try_read(offset, buffer)
    }

    fn will_read(&self, offset: u64, length: u64) {
        self.cell.will_read(offset, length);
    }

    fn read(&self, offset: u64, length: usize) -> BoxFuture<'static, Result<Bytes, DeviceError>> {
        self.cell.read(offset, length)
    }

    fn write(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), DeviceError> {
        self.write_many(&[(offset, data)], durability)
    }

    fn write_many(&self, writes: &[(u64, &[u8])], durability: Durability) -> Result<(), DeviceError> {
        self.admit_at_observer(writes.iter().map(|(_, data)| data.len() as u64).sum())?;
        self.with_room(|| {
            self.admit(writes.iter().map(|(_, data)| data.len() as u64).sum())?;
            self.write_once(writes, durability)
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.admit_at_observer(0)?;
        self.with_room(|| self.zero(Change::Zero { offset, length }, offset, length, durability))
    }

    fn discard(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DeviceError> {
        self.admit_at_observer(0)?;
        self.with_room(|| self.zero(Change::Discard { offset, length }, offset, length, durability))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        // Frozen layers were made durable when they were frozen.
        let stack = self.cell.open()?;
        // Not held while the writer is waited for: whoever has that may wait for it.
        let is_observed = self.observer.read().is_some();
        let told =
            if is_observed { self.tell(&self.writer.lock(), [Change::Flush], Durability::Power) } else { Told::NOBODY };
        stack.layers.first().map_or(Ok(()), |open| open.journal.sync())?;
        told.settle()
    }

    fn abandon(&self) {
        let observer = self.observer.read().clone();
        if let Some(observer) = observer {
            observer.abandon(false);
        }
    }

    fn extents(&self, offset: u64, length: u64, limit: usize) -> Result<Vec<Extent>, DeviceError> {
        self.cell.extents(offset, length, limit)
    }

    fn chunk_in_file(&self, offset: u64) -> Result<Option<InFile>, DeviceError> {
        self.cell.chunk_in_file(offset)
    }

    fn can_share(&self, file: &dyn File) -> Result<(), FreezeError> {
        self.cell.can_share(file)
    }
}

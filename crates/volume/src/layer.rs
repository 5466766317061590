//! A layer: what was written to a volume between two moments. Frozen, it never changes, and volumes share it.

use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use format::journal::{JournalKeys, Record, RecordKind};
use medium::{File, Medium, Open};
use types::LayerId;

use crate::device::DeviceError;
use crate::error::VolumeError;
use crate::extent_map::{ExtentMap, Place, Run};
use crate::journal::{FIRST_RECORD, Journal};
use crate::locks::RwLock;
use crate::records::{JournalEnd, LayerRecord, VERSION};
use crate::replay::{Replay, Visit, replay, scan};

/// A journal and the map of what in it counts.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) journal: Journal,
    map: RwLock<ExtentMap>,
    secret: Secret,
    first_sequence: u64,
    /// How much of the journal was torn when the layer was found again.
    torn_bytes: u64,
    /// Whether the frozen journal was found to be what was written.
    verified: AtomicBool,
    /// Whether it was found not to be.
    damaged: bool,
}

/// The secret of a volume's journals.
#[derive(Clone, Copy)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Layer {
    /// An empty layer, whose journal is not made yet.
    pub(crate) fn new(
        medium: &Arc<dyn Medium>,
        directory: &Path,
        id: LayerId,
        secret: Secret,
        first_sequence: u64,
    ) -> Self {
        let journal = Journal::new(medium.clone(), directory, id, JournalKeys::new(&secret.0));
        Self {
            journal,
            map: RwLock::default(),
            secret,
            first_sequence,
            torn_bytes: 0,
            verified: AtomicBool::new(false),
            damaged: false,
        }
    }

    /// Finds a layer again by its record, and returns it with the next sequence number.
    pub(crate) fn recover(
        medium: &Arc<dyn Medium>,
        directory: &Path,
        id: LayerId,
        record: &LayerRecord,
    ) -> Result<(Self, u64), VolumeError> {
        let mut layer = Self::new(medium, directory, id, Secret(record.secret), record.first_sequence);
        let path = layer.journal.path().to_owned();
        let error = |operation| {
            let path = path.clone();
            move |source| VolumeError::Io { operation, path, source }
        };
        let file = match medium.open(&path, Open::Existing) {
            Ok(file) => file,
            // Nobody had written yet; or, where the layer was frozen with data, they are lost.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                layer.damaged = record.end.is_some_and(|end| end.bytes > FIRST_RECORD);
                return Ok((layer, record.first_sequence));
            }
            Err(source) => return Err(error("open")(source)),
        };
        let found = replay(&*file, layer.journal.keys(), id).map_err(error("read"))?;
        if let Some(version) = found.newer {
            return Err(VolumeError::Newer { path, version });
        }
        match record.end {
            Some(end) => {
                layer.damaged = !is_whole(&found, end);
                layer.verified = AtomicBool::new(!layer.damaged);
            }
            None => cut_tail(&*file, &path, &found).map_err(error("cut the torn end of"))?,
        }
        if layer.damaged {
            tracing::error!(path = %path.display(), "the frozen journal is damaged: what is over it cannot be read");
        }
        layer.torn_bytes = found.torn_bytes;
        layer.map = RwLock::new(found.map);
        layer.journal = layer.journal.found(file, found.end);
        let next = found.last_sequence.map_or(record.first_sequence, |last| last.saturating_add(1));
        Ok((layer, next))
    }

    pub(crate) fn id(&self) -> LayerId {
        self.journal.layer()
    }

    /// Calls `visit` with each record that counts, in the order of writing, and the place of its data, until it says stop.
    ///
    /// # Errors
    /// A journal that is damaged or cannot be read.
    pub(crate) fn each_record(&self, visit: &mut Visit<'_>) -> Result<(), VolumeError> {
        let path = || self.journal.path().to_owned();
        if self.damaged {
            return Err(VolumeError::Damaged { path: path() });
        }
        let Some(file) = self.journal.file() else { return Ok(()) };
        scan(file, self.journal.keys(), self.id(), visit).map(drop).map_err(|source| VolumeError::Io {
            operation: "read",
            path: path(),
            source,
        })
    }

    pub(crate) fn secret(&self) -> Secret {
        self.secret
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged
    }

    /// The record of this layer, with its end once it is frozen.
    pub(crate) fn record(&self, last_sequence: Option<u64>) -> LayerRecord {
        let end = last_sequence.map(|sequence| JournalEnd {
            bytes: self.journal.tail(),
            sequence,
            torn_bytes: self.torn_bytes,
        });
        LayerRecord { version: VERSION, secret: self.secret.0, first_sequence: self.first_sequence, end }
    }

    /// Appends a record and enters it in the map. The caller holds the volume's writer.
    pub(crate) fn append(&self, record: &Record, data: &[u8]) -> Result<(), DeviceError> {
        let position = self.journal.append(record, data)?;
        let place = match record.kind {
            RecordKind::Write => NonZeroU64::new(position + FIRST_RECORD).map_or(Place::Zero, Place::Journal),
            RecordKind::Zero | RecordKind::Discard => Place::Zero,
        };
        self.map.write().insert(record.sector, record.sector + record.sectors, place);
        Ok(())
    }

    /// Finds what begins at a sector, at most to `end`.
    pub(crate) fn find(&self, start: u64, end: u64) -> Run {
        self.map.read().find(start, end)
    }

    /// How many sectors have data that still count.
    pub(crate) fn data_sectors(&self) -> u64 {
        self.map.read().data_sectors()
    }

    /// Enters all that this layer says into a map, over what is there.
    pub(crate) fn overlay(&self, map: &mut ExtentMap) {
        for (start, end, place) in self.map.read().iter() {
            map.insert(start, end, place);
        }
    }

    /// Checks that a frozen journal still is what was written, before anything is made of it for good.
    pub(crate) fn verify(&self) -> Result<(), VolumeError> {
        let damaged = || VolumeError::Damaged { path: self.journal.path().to_owned() };
        if self.damaged {
            return Err(damaged());
        }
        let Some(file) = self.journal.file().filter(|_| !self.verified.load(Ordering::Acquire)) else { return Ok(()) };
        let found = replay(file, self.journal.keys(), self.id()).map_err(|source| VolumeError::Io {
            operation: "read",
            path: self.journal.path().to_owned(),
            source,
        })?;
        if found.map != *self.map.read() {
            return Err(damaged());
        }
        self.verified.store(true, Ordering::Release);
        Ok(())
    }
}

/// Whether a frozen journal was found as its record says.
fn is_whole(found: &Replay, end: JournalEnd) -> bool {
    found.end == end.bytes && found.last_sequence == Some(end.sequence) && found.torn_bytes == end.torn_bytes
}

/// Cuts off what follows the last record that counts, so that the next one begins there.
fn cut_tail(file: &dyn File, path: &Path, found: &Replay) -> io::Result<()> {
    let length = file.length()?;
    if found.torn_bytes > 0 {
        let (torn_bytes, path) = (found.torn_bytes, path.display());
        tracing::warn!(%path, torn_bytes, "skipped torn records, which nobody had flushed, before later ones");
    }
    if length > found.end {
        let cut_bytes = length - found.end;
        tracing::info!(path = %path.display(), cut_bytes, "cut a torn record from the end of the journal");
        file.set_length(found.end)?;
        // A later loss of power must not bring back what was read as absent: what is appended next could complete it.
        file.sync_data()?;
    }
    Ok(())
}

//! Versions of objects in this node's own buckets: from the moment a snapshot is taken until it is in the log.
//!
//! A version has its number and its record, durable, before it is answered; it can be cloned, attached and
//! materialized from then on. It enters the bucket's log once it is sealed, in the order of the numbers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use format::Manifest;
use format::entry::Action;
use format::manifest::{Disk, VERSION};
use store::{ChunkStore, Domain, RootChange};
use types::{BucketId, CHUNK_BYTES, Name, SnapshotId};

use crate::api::{ApiError, ErrorCode};
use crate::buckets::{BucketState, Buckets};
use crate::error::store_error;
use crate::record::{Record, SnapshotRecord};

const PREFIX: &str = "snapshot/";

/// A bucket, an object of it, and the number of a version.
pub(crate) type Place = (BucketId, Name, u64);

/// A version that a schedule took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scheduled {
    pub(crate) version: u64,
    /// When it was taken, in milliseconds since 1970.
    pub(crate) taken_ms: u64,
}

/// The versions that were taken or imported here.
#[derive(Debug)]
pub(crate) struct Versions {
    store: Arc<dyn ChunkStore>,
    records: Mutex<BTreeMap<Place, SnapshotRecord>>,
}

impl Versions {
    pub(crate) fn open(store: Arc<dyn ChunkStore>) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let mut records = BTreeMap::new();
        for (name, record) in SnapshotRecord::read_all(&*store, PREFIX)? {
            let place = parse_place(&name).with_context(|| format!("a version's record has the name {name}"))?;
            records.insert(place, record);
        }
        Ok(Self { store, records: Mutex::new(records) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, SnapshotRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of a version, where it was taken here.
    pub(crate) fn find(&self, bucket: BucketId, object: &Name, version: u64) -> Option<SnapshotRecord> {
        self.lock().get(&(bucket, object.clone(), version)).cloned()
    }

    /// All records of a bucket, by object and version.
    pub(crate) fn of_bucket(&self, bucket: BucketId) -> Vec<(Name, u64, SnapshotRecord)> {
        let records = self.lock();
        let of_bucket = records.iter().filter(|((id, _, _), _)| *id == bucket);
        of_bucket.map(|((_, object, version), record)| (object.clone(), *version, record.clone())).collect()
    }

    /// The versions that are not sealed yet.
    pub(crate) fn unsealed(&self) -> Vec<Place> {
        self.lock().iter().filter(|(_, record)| record.snapshot.is_none()).map(|(place, _)| place.clone()).collect()
    }

    /// The latest version of an object, sealed or not.
    pub(crate) fn latest(&self, bucket: &BucketState, object: &Name) -> Option<u64> {
        let logged = bucket.history().log.next_version(object) - 1;
        let taken = self.last_taken(&self.lock(), bucket.id, object);
        Some(logged.max(taken)).filter(|version| *version > 0)
    }

    fn last_taken(&self, records: &BTreeMap<Place, SnapshotRecord>, bucket: BucketId, object: &Name) -> u64 {
        let range = (bucket, object.clone(), 0)..=(bucket, object.clone(), u64::MAX);
        records.range(range).next_back().map_or(0, |((_, _, version), _)| *version)
    }

    /// The versions of an object that a schedule took, the oldest first.
    pub(crate) fn scheduled(&self, bucket: BucketId, object: &Name) -> Vec<Scheduled> {
        let records = self.lock();
        let of_object = records.range((bucket, object.clone(), 0)..=(bucket, object.clone(), u64::MAX));
        let scheduled = of_object.filter(|(_, record)| record.scheduled == Some(true));
        let of = |version: u64, record: &SnapshotRecord| Scheduled { version, taken_ms: record.taken_ms };
        scheduled.map(|((_, _, version), record)| of(*version, record)).collect()
    }

    /// Gives the next version of an object to a record that `write` makes durable together with its own changes.
    ///
    /// # Errors
    /// Where the bucket is somebody else's, or what `write` says; nothing is taken then.
    pub(crate) fn take<T>(
        &self,
        bucket: &BucketState,
        object: &Name,
        write: impl FnOnce(u64, Box<dyn FnOnce(&SnapshotRecord) -> RootChange>) -> Result<(SnapshotRecord, T), ApiError>,
    ) -> Result<(u64, T), ApiError> {
        if !bucket.writable() {
            let error = ApiError::new(ErrorCode::Forbidden, format!("{} is somebody else's bucket", bucket.name()));
            return Err(error.hint("use a bucket of your own: brant bucket create NAME"));
        }
        let logged = bucket.history().log.next_version(object);
        let mut records = self.lock();
        let version = logged.max(self.last_taken(&records, bucket.id, object) + 1);
        let name = SnapshotRecord::name(bucket.id, object, version);
        let (record, value) = write(version, Box::new(move |record| record.change(name)))?;
        records.insert((bucket.id, object.clone(), version), record);
        Ok((version, value))
    }

    /// Changes the record of a version, durably.
    pub(crate) fn update(
        &self,
        bucket: BucketId,
        object: &Name,
        version: u64,
        change: impl FnOnce(&mut SnapshotRecord),
    ) -> Result<(), ApiError> {
        let mut records = self.lock();
        let Some(record) = records.get_mut(&(bucket, object.clone(), version)) else {
            return Err(ApiError::new(ErrorCode::NotFound, format!("there is no version {version} of {object}")));
        };
        let mut changed = record.clone();
        change(&mut changed);
        changed.write(&*self.store, SnapshotRecord::name(bucket, object, version)).map_err(store_error)?;
        *record = changed;
        Ok(())
    }

    /// Stores the manifest of a version whose disks are all sealed, and gives the version its id.
    pub(crate) fn complete(&self, bucket: &BucketState, object: &Name, version: u64) -> Result<(), ApiError> {
        let Some(record) = self.find(bucket.id, object, version) else { return Ok(()) };
        if record.snapshot.is_some() || record.disks.iter().any(|disk| disk.frozen.is_some()) {
            return Ok(());
        }
        let _hold = self.store.hold();
        let id = store_manifest(&*self.store, &record)?;
        self.update(bucket.id, object, version, |record| record.snapshot = Some(id))
    }

    /// Enters every version into the bucket's log that is sealed and whose predecessors are there.
    pub(crate) fn log_sealed(&self, bucket: &BucketState) -> Result<(), ApiError> {
        for (object, version, record) in self.of_bucket(bucket.id) {
            let next = bucket.history().log.next_version(&object);
            if let Some(snapshot) = record.snapshot.filter(|_| version == next) {
                let size_bytes = record.size_bytes();
                bucket.append(Action::Put { object, version, snapshot, size_bytes, message: record.message })?;
            }
        }
        Ok(())
    }

    /// Forgets the records of a bucket, which are gone from the store.
    pub(crate) fn forget(&self, bucket: BucketId) {
        self.lock().retain(|(id, _, _), _| *id != bucket);
    }

    /// Enters what was sealed, in every bucket: a crash may have come in between.
    pub(crate) fn recover(&self, buckets: &Buckets) -> Result<(), ApiError> {
        for bucket in buckets.list().iter().filter(|bucket| bucket.writable()) {
            for (object, version, _) in self.of_bucket(bucket.id) {
                self.complete(bucket, &object, version)?;
            }
            self.log_sealed(bucket)?;
        }
        Ok(())
    }
}

pub(crate) fn parse_place(name: &str) -> Option<Place> {
    let mut parts = name.split('/');
    let place = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(place)
}

/// Stores the manifest of a version whose disks are sealed, durably, and returns the snapshot's id. The caller holds the store until
/// a record refers to it.
pub(crate) fn store_manifest(store: &dyn ChunkStore, record: &SnapshotRecord) -> Result<SnapshotId, ApiError> {
    let (id, bytes) = manifest_of(record).identify();
    let domain = record.domains().iter().last().unwrap_or(Domain::OWN);
    store.put(&id.into(), domain, &bytes).map_err(store_error)?;
    store.commit().map_err(store_error)?;
    Ok(id)
}

fn manifest_of(record: &SnapshotRecord) -> Manifest {
    let chunk_bytes = u32::try_from(CHUNK_BYTES).expect("a chunk is 64 KiB");
    let disks = record.disks.iter().map(|disk| Disk {
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        chunk_bytes,
        root: disk.root,
    });
    Manifest {
        version: VERSION,
        taken_ms: record.taken_ms,
        disks: disks.collect(),
        base: record.base,
        message: record.message.clone(),
        machine: record.machine.clone(),
    }
}

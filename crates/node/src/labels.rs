//! Labels of volumes: short texts by key, which whoever drives the node keeps with a volume. They mean nothing here.
//!
//! Invariants: they are records of the store, by the volume's id, so that they survive renaming, deleting and taking back;
//! what is in memory has been written before. Those of volumes that are gone for good go with them, at the latest when
//! the node starts again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use store::{ChunkStore, RootChange};
use types::{Name, VolumeId};
use volume::Volumes;

use crate::api::{self, ApiError, ErrorCode};
use crate::error::{blocking, store_error};
use crate::node::Node;
use crate::record::{LabelsRecord, Record, RecordError};

const PREFIX: &str = "labels/";

/// The longest value, in bytes.
const MAX_VALUE_BYTES: usize = 1000;

/// The most labels that one volume has.
const MAX_LABELS: usize = 64;

/// Labels by key.
type OfVolume = BTreeMap<Name, String>;

/// The labels of all volumes.
#[derive(Debug)]
pub(crate) struct Labels {
    store: Arc<dyn ChunkStore>,
    all: Mutex<BTreeMap<VolumeId, OfVolume>>,
}

impl Labels {
    /// Reads all labels, and drops those of volumes that there are no more.
    pub(crate) fn open(store: Arc<dyn ChunkStore>, volumes: &Volumes) -> Result<Self, RecordError> {
        let records = LabelsRecord::read_all(&*store, PREFIX)?;
        let read = |(id, record): (String, LabelsRecord)| Some((id.parse::<VolumeId>().ok()?, record.labels));
        let all: BTreeMap<_, _> = records.into_iter().filter_map(read).collect();
        let labels = Self { store, all: Mutex::new(all) };
        labels.forget_but(volumes);
        Ok(labels)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, OfVolume>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The labels of a volume.
    pub(crate) fn of(&self, id: VolumeId) -> OfVolume {
        self.lock().get(&id).cloned().unwrap_or_default()
    }

    /// Sets labels, and removes those without a value; durable when it returns.
    pub(crate) fn change(&self, id: VolumeId, changes: &BTreeMap<Name, Option<String>>) -> Result<(), ApiError> {
        let mut all = self.lock();
        let mut labels = all.get(&id).cloned().unwrap_or_default();
        for (key, value) in changes {
            match value {
                Some(value) => drop(labels.insert(key.clone(), checked(key, value)?)),
                None => drop(labels.remove(key)),
            }
        }
        if labels.len() > MAX_LABELS {
            return Err(ApiError::new(ErrorCode::Invalid, format!("a volume has at most {MAX_LABELS} labels")));
        }
        if all.get(&id).is_some_and(|before| *before == labels) || (labels.is_empty() && !all.contains_key(&id)) {
            return Ok(());
        }
        let record = LabelsRecord { labels: labels.clone() };
        record.write(&*self.store, format!("{PREFIX}{id}")).map_err(store_error)?;
        all.insert(id, labels);
        Ok(())
    }

    /// The change that gives a volume without labels all of its labels, to be noted by [`Self::given`].
    pub(crate) fn giving(&self, id: VolumeId, labels: OfVolume) -> RootChange {
        LabelsRecord { labels }.change(format!("{PREFIX}{id}"))
    }

    /// Notes the labels of a volume.
    pub(crate) fn given(&self, id: VolumeId, labels: OfVolume) {
        self.lock().insert(id, labels);
    }

    /// Drops the labels of volumes that are gone for good.
    pub(crate) fn forget_but(&self, volumes: &Volumes) {
        // Held first: whoever has labels by now has been made before.
        let mut all = self.lock();
        let mut kept: Vec<VolumeId> = volumes.list().iter().map(|volume| volume.id()).collect();
        kept.extend(volumes.deleted().iter().map(volume::Deleted::id));
        let gone: Vec<VolumeId> = all.keys().filter(|id| !kept.contains(id)).copied().collect();
        if gone.is_empty() {
            return;
        }
        let changes = gone.iter().map(|id| (format!("{PREFIX}{id}"), None)).collect();
        match self.store.roots().apply(changes) {
            Ok(()) => all.retain(|id, _| !gone.contains(id)),
            // They are in nobody's way, and the next start tries again.
            Err(error) => tracing::warn!(%error, "labels of volumes that are gone could not be removed"),
        }
    }
}

fn checked(key: &Name, value: &str) -> Result<String, ApiError> {
    if value.len() > MAX_VALUE_BYTES || value.chars().any(char::is_control) {
        let message = format!("the value of the label {key} is not text of at most {MAX_VALUE_BYTES} bytes");
        return Err(ApiError::new(ErrorCode::Invalid, message));
    }
    Ok(value.to_owned())
}

impl Node {
    /// Changes the labels of a volume.
    pub(crate) async fn label_volume(
        self: &Arc<Self>,
        name: &Name,
        request: api::LabelRequest,
    ) -> Result<api::Volume, ApiError> {
        let volume = self.find_volume(name)?;
        let (node, id) = (Arc::clone(self), volume.id());
        blocking(move || node.labels.change(id, &request.labels)).await?;
        self.settings_changed(name).await?;
        Ok(self.show_volume(&volume))
    }

    /// Gives a volume that was just made its labels; where that fails, the volume is gone again.
    pub(crate) fn label_new(&self, volume: &volume::Volume, labels: OfVolume) -> Result<(), ApiError> {
        let changes = labels.into_iter().map(|(key, value)| (key, Some(value))).collect();
        self.labels.change(volume.id(), &changes).inspect_err(|_| {
            if let Err(error) = self.volumes.remove(volume.name()) {
                tracing::warn!(%error, volume = %volume.name(), "a volume that could not be labelled stays");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use store::{MemoryStore, NoSource};
    use volume::VolumeOptions;

    use super::*;

    fn open(directory: &std::path::Path, store: &Arc<MemoryStore>) -> Arc<Volumes> {
        let store = Arc::clone(store) as Arc<dyn ChunkStore>;
        Volumes::open(directory, store, Arc::new(NoSource), VolumeOptions::default()).unwrap()
    }

    fn change(key: &str, value: Option<&str>) -> BTreeMap<Name, Option<String>> {
        [(key.parse().unwrap(), value.map(str::to_owned))].into()
    }

    #[test]
    fn they_last_as_long_as_the_volume_can_be_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        let volumes = open(directory.path(), &store);
        let name: Name = "web1".parse().unwrap();
        let id = volumes.create(&name, 512).unwrap().id();
        let labels = Labels::open(store.clone(), &volumes).unwrap();
        labels.change(id, &change("owner", Some("alice"))).unwrap();
        labels.change(id, &change("rack", Some("7"))).unwrap();
        labels.change(id, &change("rack", None)).unwrap();
        volumes.delete(&name, 1, "removed").unwrap();
        labels.forget_but(&volumes);
        drop(labels);
        let labels = Labels::open(store.clone(), &volumes).unwrap();
        assert_eq!(labels.of(id), [("owner".parse().unwrap(), "alice".to_owned())].into());
        volumes.purge(id).unwrap();
        labels.forget_but(&volumes);
        assert!(labels.of(id).is_empty());
        assert!(store.roots().list(PREFIX).is_empty(), "nothing is left in the store");
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::new());
        let volumes = open(directory.path(), &store);
        let id = volumes.create(&"web1".parse().unwrap(), 512).unwrap().id();
        let labels = Labels::open(store, &volumes).unwrap();
        for bad in ["x".repeat(MAX_VALUE_BYTES + 1), "two\nlines".to_owned()] {
            assert_eq!(labels.change(id, &change("note", Some(&bad))).unwrap_err().code, ErrorCode::Invalid);
        }
        for number in 0..MAX_LABELS {
            labels.change(id, &change(&format!("label-{number}"), Some("x"))).unwrap();
        }
        assert_eq!(labels.change(id, &change("more", Some("x"))).unwrap_err().code, ErrorCode::Invalid);
        assert_eq!(labels.of(id).len(), MAX_LABELS);
    }
}

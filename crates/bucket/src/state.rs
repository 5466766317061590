//! What a log amounts to: objects with their versions, readers and writers; and the rules of each action.
//!
//! `State::check` decides whether an action may follow and `State::apply` carries it out; nothing else changes a
//! state, so that everyone who replays a log has the same one.

use std::collections::{BTreeMap, BTreeSet};

use format::entry::{Action, Reader};
use types::{BucketId, Name, PublicKey, SnapshotId};

use crate::log::LogError;

/// A version of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The sum of its disks' sizes, in bytes.
    pub size_bytes: u64,
    /// A note.
    pub message: String,
    /// When it was put, in milliseconds since 1970, by the writer's clock.
    pub time_ms: u64,
    /// The number of the log entry that put it.
    pub sequence: u64,
    /// Whether it was withdrawn.
    pub retired: bool,
    /// Whether a publisher holds all of it.
    pub complete: bool,
}

/// What the entries so far amount to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct State {
    /// Each object's versions, version 1 first.
    pub(crate) objects: BTreeMap<Name, Vec<Version>>,
    /// Where each snapshot is a version: object and number.
    pub(crate) snapshots: BTreeMap<SnapshotId, Vec<(Name, u64)>>,
    /// Who may read.
    pub(crate) readers: BTreeSet<Reader>,
    /// Who may write beside the bucket's own key.
    pub(crate) writers: BTreeSet<PublicKey>,
}

impl State {
    /// Whether a key may write a bucket's next entry.
    pub(crate) fn may_write(&self, bucket: BucketId, author: PublicKey) -> bool {
        author.0 == bucket.0 || self.writers.contains(&author)
    }

    /// Decides whether an action may follow.
    pub(crate) fn check(&self, bucket: BucketId, action: &Action) -> Result<(), LogError> {
        match action {
            Action::Create | Action::Grant { .. } | Action::Revoke { .. } => Ok(()),
            Action::Put { object, version, .. } => {
                let expected = self.next_version(object);
                if *version == expected {
                    Ok(())
                } else {
                    Err(LogError::VersionOrder { object: object.clone(), version: *version, expected })
                }
            }
            Action::Retire { object, version } | Action::Complete { object, version } => {
                match self.version(object, *version) {
                    Some(_) => Ok(()),
                    None => Err(LogError::NoSuchVersion { object: object.clone(), version: *version }),
                }
            }
            Action::AddWriter { writer } | Action::RemoveWriter { writer } if writer.0 == bucket.0 => {
                Err(LogError::BucketKey)
            }
            Action::AddWriter { .. } | Action::RemoveWriter { .. } => Ok(()),
        }
    }

    /// Carries out an action that was checked.
    pub(crate) fn apply(&mut self, action: Action, sequence: u64, time_ms: u64) {
        match action {
            Action::Create => {}
            Action::Put { object, version, snapshot, size_bytes, message } => {
                let (retired, complete) = (false, false);
                let put = Version { snapshot, size_bytes, message, time_ms, sequence, retired, complete };
                self.snapshots.entry(snapshot).or_default().push((object.clone(), version));
                self.objects.entry(object).or_default().push(put);
            }
            Action::Retire { object, version } => {
                if let Some(version) = self.version_mut(&object, version) {
                    version.retired = true;
                }
            }
            Action::Complete { object, version } => {
                if let Some(version) = self.version_mut(&object, version) {
                    version.complete = true;
                }
            }
            Action::Grant { reader } => {
                self.readers.insert(reader);
            }
            Action::Revoke { reader } => {
                self.readers.remove(&reader);
            }
            Action::AddWriter { writer } => {
                self.writers.insert(writer);
            }
            Action::RemoveWriter { writer } => {
                self.writers.remove(&writer);
            }
        }
    }

    /// Whether an action that may follow would change nothing.
    pub(crate) fn is_idle(&self, action: &Action) -> bool {
        match action {
            Action::Create | Action::Put { .. } => false,
            Action::Retire { object, version } => self.version(object, *version).is_some_and(|found| found.retired),
            Action::Complete { object, version } => self.version(object, *version).is_some_and(|found| found.complete),
            Action::Grant { reader } => self.readers.contains(reader),
            Action::Revoke { reader } => !self.readers.contains(reader),
            Action::AddWriter { writer } => self.writers.contains(writer),
            Action::RemoveWriter { writer } => !self.writers.contains(writer),
        }
    }

    pub(crate) fn next_version(&self, object: &Name) -> u64 {
        self.objects.get(object).map_or(0, |versions| versions.len() as u64) + 1
    }

    pub(crate) fn version(&self, object: &Name, version: u64) -> Option<&Version> {
        self.objects.get(object)?.get(place(version)?)
    }

    fn version_mut(&mut self, object: &Name, version: u64) -> Option<&mut Version> {
        self.objects.get_mut(object)?.get_mut(place(version)?)
    }
}

fn place(version: u64) -> Option<usize> {
    usize::try_from(version.checked_sub(1)?).ok()
}

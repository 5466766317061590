//! The index in memory, for media that are not the host's file system: built from the packs at every opening.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use super::index::{Entry, Index, IndexError, State};
use crate::Key;

/// Entries by key, and the state that was written with the last of them.
#[derive(Debug, Default)]
pub(crate) struct MemoryIndex(RwLock<Content>);

#[derive(Debug, Default)]
struct Content {
    entries: BTreeMap<Key, Entry>,
    state: Option<State>,
}

impl MemoryIndex {
    fn read(&self) -> RwLockReadGuard<'_, Content> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index for MemoryIndex {
    fn get(&self, key: &Key) -> Result<Option<Entry>, IndexError> {
        Ok(self.read().entries.get(key).cloned())
    }

    fn visit(&self, after: Option<&Key>, visit: &mut dyn FnMut(Key, Entry) -> bool) -> Result<(), IndexError> {
        let content = self.read();
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut entries = content.entries.range::<Key, _>((begin, Bound::Unbounded));
        let _ended_early = entries.any(|(key, entry)| !visit(*key, entry.clone()));
        Ok(())
    }

    fn apply(&self, entries: &BTreeMap<Key, Entry>, state: &State) -> Result<(), IndexError> {
        let mut content = self.0.write().unwrap_or_else(PoisonError::into_inner);
        content.entries.extend(entries.iter().map(|(key, entry)| (*key, entry.clone())));
        content.state = Some(*state);
        Ok(())
    }

    fn remove(&self, keys: &[Key], state: &State) -> Result<(), IndexError> {
        let mut content = self.0.write().unwrap_or_else(PoisonError::into_inner);
        keys.iter().for_each(|key| drop(content.entries.remove(key)));
        content.state = Some(*state);
        Ok(())
    }

    fn persist(&self) -> Result<(), IndexError> {
        Ok(())
    }

    fn state(&self) -> Result<Option<State>, IndexError> {
        Ok(self.read().state)
    }
}

//! Directories: the names that are seen, those that are durable, and the changes that lie between.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path};

use rustix::io::Errno;

use super::chance::Survival;

/// The directory that is always there.
pub(super) const ROOT: u64 = 0;

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File(u64),
    Directory(u64),
}

impl Entry {
    fn file(self) -> Option<u64> {
        match self {
            Self::File(file) => Some(file),
            Self::Directory(_) => None,
        }
    }
}

/// A name's place: its directory, and itself.
pub(super) type Place = (u64, OsString);

#[derive(Clone, Debug)]
enum What {
    Put(Place, Entry),
    Remove(Place),
    /// In one step.
    Move {
        from: Place,
        to: Place,
        entry: Entry,
    },
}

impl What {
    fn touches(&self, directory: u64) -> bool {
        match self {
            Self::Put(place, _) | Self::Remove(place) => place.0 == directory,
            Self::Move { from, to, .. } => from.0 == directory || to.0 == directory,
        }
    }
}

type Directories = BTreeMap<u64, BTreeMap<OsString, Entry>>;

fn change(directories: &mut Directories, what: &What) {
    match what {
        What::Put((directory, name), entry) => {
            directories.entry(*directory).or_default().insert(name.clone(), *entry);
        }
        What::Remove((directory, name)) => {
            directories.entry(*directory).or_default().remove(name);
        }
        What::Move { from, to, entry } => {
            let source = directories.entry(from.0).or_default();
            if source.get(&from.1) == Some(entry) {
                source.remove(&from.1);
            }
            directories.entry(to.0).or_default().insert(to.1.clone(), *entry);
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Names {
    seen: Directories,
    durable: Directories,
    unsynced: Vec<(u64, What)>,
}

impl Default for Names {
    fn default() -> Self {
        Self::of(BTreeMap::from([(ROOT, BTreeMap::new())]))
    }
}

impl Names {
    fn of(directories: Directories) -> Self {
        Self { seen: directories.clone(), durable: directories, unsynced: Vec::new() }
    }

    /// What a path leads to.
    pub(super) fn find(&self, path: &Path) -> io::Result<Option<Entry>> {
        let mut entry = Entry::Directory(ROOT);
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
            };
            let Entry::Directory(directory) = entry else { return Err(Errno::NOTDIR.into()) };
            match self.entry(directory, name) {
                Some(found) => entry = found,
                None => return Ok(None),
            }
        }
        Ok(Some(entry))
    }

    fn entry(&self, directory: u64, name: &OsStr) -> Option<Entry> {
        self.seen.get(&directory)?.get(name).copied()
    }

    /// The directory at a path.
    pub(super) fn directory(&self, path: &Path) -> io::Result<u64> {
        match self.find(path)? {
            Some(Entry::Directory(directory)) => Ok(directory),
            Some(Entry::File(_)) => Err(Errno::NOTDIR.into()),
            None => Err(Errno::NOENT.into()),
        }
    }

    /// The place of a name in a directory that is there.
    pub(super) fn place(&self, path: &Path) -> io::Result<Place> {
        let name = path.file_name().ok_or(io::Error::from(Errno::INVAL))?;
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name.to_owned()))
    }

    pub(super) fn list(&self, directory: u64) -> Vec<OsString> {
        self.seen.get(&directory).map(|names| names.keys().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn put(&mut self, number: u64, place: Place, entry: Entry) {
        if let Entry::Directory(directory) = entry {
            self.seen.entry(directory).or_default();
        }
        self.note(number, What::Put(place, entry));
    }

    pub(super) fn remove(&mut self, number: u64, place: Place) {
        self.note(number, What::Remove(place));
    }

    pub(super) fn rename(&mut self, number: u64, from: Place, to: Place, entry: Entry) {
        self.note(number, What::Move { from, to, entry });
    }

    fn note(&mut self, number: u64, what: What) {
        change(&mut self.seen, &what);
        self.unsynced.push((number, what));
    }

    /// Makes the names in a directory durable.
    pub(super) fn sync(&mut self, directory: u64) {
        let (synced, unsynced) =
            std::mem::take(&mut self.unsynced).into_iter().partition(|(_, what)| what.touches(directory));
        self.unsynced = unsynced;
        let synced: Vec<(u64, What)> = synced;
        synced.iter().for_each(|(_, what)| change(&mut self.durable, what));
    }

    /// What a loss of power leaves.
    pub(super) fn survivor(&self, survival: &mut Survival) -> Self {
        let mut durable = self.durable.clone();
        for (number, what) in &self.unsynced {
            if survival.keeps(*number) {
                change(&mut durable, what);
            }
        }
        Self::of(durable)
    }

    /// All files that have a name.
    pub(super) fn files(&self) -> BTreeSet<u64> {
        self.seen.values().flat_map(BTreeMap::values).filter_map(|entry| entry.file()).collect()
    }

    /// All files that a loss of power can give a name again.
    pub(super) fn files_that_may_return(&self) -> BTreeSet<u64> {
        let durable = self.durable.values().flat_map(BTreeMap::values);
        let noted = self.unsynced.iter().filter_map(|(_, what)| match what {
            What::Put(_, entry) | What::Move { entry, .. } => Some(entry),
            What::Remove(_) => None,
        });
        durable.chain(noted).filter_map(|entry| entry.file()).collect()
    }
}

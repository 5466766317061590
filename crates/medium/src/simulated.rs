//! A file system in memory that loses power, fails and fills up, repeatably from a seed: for tests.
//!
//! It keeps the contract of [`Medium`] and nothing beyond it. After [`power_cut`](Simulated::power_cut) every sector that
//! was not synchronised is old, or what any write since has made of it, each for itself; so is every length and every name.
//! What was synchronised is there. After [`kill`](Simulated::kill) everything is as the process left it. Handles of a
//! medium that is off fail, as nobody can hold a file across the end of its process.
//!
//! A test cuts the power at every step in one of two ways. It lets the medium keep its [moments](Simulated::keep_moments):
//! copies of all of it after each change, which share their pages, and tries each afterwards. Or it runs again and again
//! with [`cut_after`](Simulated::cut_after) one operation later, which is what threads need.

mod chance;
mod content;
mod image;
mod names;
mod state;

use std::any::Any;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::chance::Chance;
use self::state::State;
use crate::{File, Lock, Medium, Open, Room};

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// To open or make a file.
    Open,
    /// To read.
    Read,
    /// To write; part of it may be written.
    Write,
    /// To synchronise a file; part of it may be durable, and nobody will try the rest again.
    Sync,
    /// To set a length.
    SetLength,
    /// To ask for a length, or what is allocated.
    Length,
    /// To give room back.
    Punch,
    /// To share the room of another file.
    Clone,
    /// To rename.
    Rename,
    /// To remove.
    Remove,
    /// To list a directory.
    List,
    /// To make a directory.
    CreateDirectory,
    /// To synchronise a directory.
    SyncDirectory,
    /// To ask whether a name is there.
    Exists,
    /// To ask for the room.
    Room,
    /// To lock a file.
    Lock,
}

/// One failure that is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What fails; `None` for whatever it is.
    pub operation: Option<Operation>,
    /// How many such operations succeed before.
    pub after: u64,
    /// Whether all that follow fail too.
    pub lasting: bool,
}

/// A file system in memory. Its copies are the same one.
#[derive(Clone, Debug)]
pub struct Simulated(Arc<Mutex<State>>);

impl Simulated {
    /// Makes an empty one, whose choices follow from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with(State::new(seed))
    }

    fn with(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As what a store or volumes take.
    #[must_use]
    pub fn shared(&self) -> Arc<dyn Medium> {
        Arc::new(self.clone())
    }

    /// Counts the operations so far, those that failed included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Cuts the power in the middle of an operation: so many succeed from the first on, and none after it.
    pub fn cut_after(&self, operations: u64) {
        self.state().cut_after = Some(operations);
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// Plans a failure.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Forgets the failures that were planned, and says what has failed.
    pub fn mend(&self) -> BTreeSet<Operation> {
        let mut state = self.state();
        state.faults.clear();
        std::mem::take(&mut state.failed)
    }

    /// Sets how much there is room for, in bytes.
    pub fn set_total_bytes(&self, bytes: u64) {
        self.state().total_bytes = bytes;
    }

    /// Has no holes punched from now on, as some file systems have it.
    pub fn refuse_holes(&self) {
        self.state().refuses_holes = true;
    }

    /// Has no files share their room from now on, as many file systems have it.
    pub fn refuse_clones(&self) {
        self.state().refuses_clones = true;
    }

    /// The file behind a handle of this medium.
    fn id_of(&self, file: &dyn File) -> io::Result<u64> {
        let handle = (file as &dyn Any).downcast_ref::<Handle>();
        let own = handle.filter(|handle| Arc::ptr_eq(&handle.medium.0, &self.0));
        own.map(|handle| handle.id).ok_or(io::ErrorKind::Unsupported.into())
    }

    /// Keeps a copy of everything after each change from now on, and in the middle of each write.
    pub fn keep_moments(&self) {
        self.state().moments = Some(Vec::new());
    }

    /// Takes the copies that were kept, oldest first; more are kept.
    #[must_use]
    pub fn take_moments(&self) -> Vec<Self> {
        let mut state = self.state();
        let moments = state.moments.as_mut().map(std::mem::take).unwrap_or_default();
        moments.into_iter().map(Self::with).collect()
    }

    /// Ends the process that uses it, and returns what the next one finds: everything that was done.
    #[must_use]
    pub fn kill(&self) -> Self {
        let mut state = self.state();
        state.off = true;
        Self::with(state.for_another_process())
    }

    /// Cuts the power, where that was not done, and returns what is left. Another seed leaves something else.
    #[must_use]
    pub fn power_cut(&self, seed: u64) -> Self {
        let mut state = self.state();
        state.off = true;
        Self::with(state.survivor(seed))
    }
}

impl Medium for Simulated {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let id = self.state().open(path, how)?;
        Ok(Arc::new(Handle { medium: self.clone(), id }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.state().rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state().remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        self.state().list(directory)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        self.state().create_directory(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.state().exists(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.state().sync_directory(path)
    }

    fn room(&self, _: &Path) -> io::Result<Room> {
        self.state().room()
    }

    fn freeze(&self, source: &dyn File, directory: &Path) -> io::Result<Arc<dyn File>> {
        let id = self.id_of(source)?;
        let id = self.state().freeze(id, directory)?;
        Ok(Arc::new(Handle { medium: self.clone(), id }))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        let id = self.state().lock(path)?;
        Ok(Box::new(Held(Handle { medium: self.clone(), id })))
    }
}

/// An open file.
#[derive(Debug)]
struct Handle {
    medium: Simulated,
    id: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.medium.state().close(self.id);
    }
}

impl File for Handle {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.medium.state().read(self.id, buffer, offset)
    }

    fn write_all_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.medium.state().write(self.id, parts, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.medium.state().sync(self.id)
    }

    fn length(&self) -> io::Result<u64> {
        self.medium.state().length(self.id)
    }

    fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.medium.state().set_length(self.id, bytes)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.medium.state().allocated_bytes(self.id)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.medium.state().punch(self.id, offset, length)
    }

    fn clone_range(&self, offset: u64, source: &dyn File, source_offset: u64, length: u64) -> io::Result<()> {
        let source = self.medium.id_of(source)?;
        self.medium.state().clone_range(self.id, offset, source, source_offset, length)
    }
}

/// A lock that is held.
#[derive(Debug)]
struct Held(Handle);

impl Lock for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.medium.state().unlock(self.0.id);
    }
}

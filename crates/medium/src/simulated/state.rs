//! All that a simulated medium is at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::chance::{Chance, Survival};
use super::content::Content;
use super::image::{PAGE_BYTES, as_index};
use super::names::{Entry, Names, ROOT};
use super::{Fault, Operation};
use crate::{Open, Room};

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) chance: Chance,
    /// Nothing works any more.
    pub(super) off: bool,
    /// All operations so far.
    pub(super) operations: u64,
    /// The operation after which the power fails.
    pub(super) cut_after: Option<u64>,
    pub(super) faults: Vec<Fault>,
    /// What has failed as it was planned.
    pub(super) failed: BTreeSet<Operation>,
    pub(super) total_bytes: u64,
    /// Files do not share their room.
    pub(super) refuses_clones: bool,
    /// No holes can be punched.
    pub(super) refuses_holes: bool,
    /// The states between changes, where they are kept.
    pub(super) moments: Option<Vec<State>>,
    names: Names,
    contents: BTreeMap<u64, Content>,
    /// How many handles each file has.
    handles: BTreeMap<u64, usize>,
    locked: BTreeSet<u64>,
    next_id: u64,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// The medium fails, and goes on.
    Fault,
    /// The power fails in the middle of it.
    Cut,
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            chance: Chance::new(seed),
            off: false,
            operations: 0,
            cut_after: None,
            faults: Vec::new(),
            failed: BTreeSet::new(),
            total_bytes: 1 << 40,
            refuses_clones: false,
            refuses_holes: false,
            moments: None,
            names: Names::default(),
            contents: BTreeMap::new(),
            handles: BTreeMap::new(),
            locked: BTreeSet::new(),
            next_id: ROOT + 1,
        }
    }

    /// What another process finds that comes after this one.
    pub(super) fn for_another_process(&self) -> Self {
        let mut state = Self {
            off: false,
            cut_after: None,
            faults: Vec::new(),
            failed: BTreeSet::new(),
            moments: None,
            handles: BTreeMap::new(),
            locked: BTreeSet::new(),
            ..self.clone_without_moments()
        };
        state.drop_nameless();
        state
    }

    fn clone_without_moments(&self) -> Self {
        Self {
            chance: self.chance.clone(),
            faults: self.faults.clone(),
            failed: self.failed.clone(),
            moments: None,
            names: self.names.clone(),
            contents: self.contents.clone(),
            handles: self.handles.clone(),
            locked: self.locked.clone(),
            ..*self
        }
    }

    /// What a loss of power leaves.
    pub(super) fn survivor(&self, seed: u64) -> Self {
        let mut survival = Survival::new(seed, self.operations);
        let names = self.names.survivor(&mut survival);
        let content = |(id, content): (&u64, &Content)| (*id, Content::of(content.survivor(&mut survival)));
        let contents = self.contents.iter().map(content).collect();
        let mut state = Self { names, contents, chance: Chance::new(seed), ..self.for_another_process() };
        state.drop_nameless();
        state
    }

    /// Counts an operation, and decides what becomes of it.
    fn begin(&mut self, operation: Operation) -> io::Result<Outcome> {
        if self.off {
            return Err(power_is_off());
        }
        if self.cut_after.is_some_and(|last| self.operations >= last) {
            self.off = true;
            return Ok(Outcome::Cut);
        }
        self.operations += 1;
        let mut outcome = Outcome::Done;
        self.faults.retain_mut(|fault| {
            if fault.operation.is_some_and(|kind| kind != operation) {
                return true;
            }
            let due = fault.after == 0;
            fault.after = fault.after.saturating_sub(1);
            if due {
                outcome = Outcome::Fault;
            }
            !due || fault.lasting
        });
        if outcome == Outcome::Fault {
            self.failed.insert(operation);
        }
        Ok(outcome)
    }

    /// Begins an operation that changes nothing, or nothing where it fails.
    fn begin_whole(&mut self, operation: Operation) -> io::Result<()> {
        match self.begin(operation)? {
            Outcome::Done => Ok(()),
            Outcome::Fault => Err(Errno::IO.into()),
            Outcome::Cut => Err(power_is_off()),
        }
    }

    /// Begins a change that is made or not made where the power fails; says whether to make it.
    fn begin_change(&mut self, operation: Operation) -> io::Result<Outcome> {
        match self.begin(operation)? {
            Outcome::Fault => Err(Errno::IO.into()),
            outcome => Ok(outcome),
        }
    }

    fn end(&mut self, outcome: Outcome) -> io::Result<()> {
        match outcome {
            Outcome::Done => self.keep_moment(),
            Outcome::Fault => return Err(Errno::IO.into()),
            Outcome::Cut => return Err(power_is_off()),
        }
        Ok(())
    }

    fn keep_moment(&mut self) {
        if self.moments.is_some() {
            let moment = self.clone_without_moments();
            self.moments.get_or_insert_default().push(moment);
        }
    }

    fn drop_nameless(&mut self) {
        let mut kept = self.names.files();
        kept.extend(self.names.files_that_may_return());
        kept.extend(self.handles.keys());
        self.contents.retain(|id, _| kept.contains(id));
    }

    fn content(&self, id: u64) -> &Content {
        self.contents.get(&id).expect("a file with a name or a handle has a content")
    }

    fn content_mut(&mut self, id: u64) -> &mut Content {
        self.contents.get_mut(&id).expect("a file with a name or a handle has a content")
    }

    fn available_bytes(&self) -> u64 {
        let mut users = self.names.files();
        users.extend(self.handles.keys());
        let used: u64 = users.iter().map(|id| self.content(*id).allocated_bytes()).sum();
        self.total_bytes.saturating_sub(used)
    }
}

/// Names.
impl State {
    pub(super) fn open(&mut self, path: &Path, how: Open) -> io::Result<u64> {
        let outcome = self.begin_change(Operation::Open)?;
        let id = match (self.names.find(path)?, how) {
            (Some(Entry::Directory(_)), _) => return Err(Errno::ISDIR.into()),
            (Some(Entry::File(_)), Open::New) => return Err(Errno::EXIST.into()),
            (None, Open::Existing) => return Err(Errno::NOENT.into()),
            (Some(Entry::File(id)), Open::Existing) if outcome == Outcome::Done => {
                *self.handles.entry(id).or_default() += 1;
                return Ok(id);
            }
            (Some(Entry::File(id)), _) => {
                let number = self.operations;
                self.content_mut(id).set_length(number, 0);
                id
            }
            (None, _) => self.make_file(path)?,
        };
        self.end(outcome)?;
        *self.handles.entry(id).or_default() += 1;
        Ok(id)
    }

    fn make_file(&mut self, path: &Path) -> io::Result<u64> {
        let place = self.names.place(path)?;
        // Only sometimes does a name take a block of its own.
        if self.available_bytes() < PAGE_BYTES && self.chance.in_256(128) {
            return Err(Errno::NOSPC.into());
        }
        let id = self.make_id();
        self.contents.insert(id, Content::default());
        self.names.put(self.operations, place, Entry::File(id));
        Ok(id)
    }

    fn make_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    pub(super) fn close(&mut self, id: u64) {
        if let Some(handles) = self.handles.get_mut(&id) {
            *handles -= 1;
            if *handles == 0 {
                self.handles.remove(&id);
                self.drop_nameless();
            }
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let outcome = self.begin_change(Operation::Rename)?;
        let entry = self.names.find(from)?.ok_or(io::Error::from(Errno::NOENT))?;
        let (from, to, target) = (self.names.place(from)?, self.names.place(to)?, self.names.find(to)?);
        match (entry, target) {
            _ if target == Some(entry) => return self.end(outcome),
            (Entry::File(_), Some(Entry::Directory(_))) => return Err(Errno::ISDIR.into()),
            (Entry::Directory(_), Some(Entry::File(_))) => return Err(Errno::NOTDIR.into()),
            (Entry::Directory(_), Some(Entry::Directory(id))) if !self.names.list(id).is_empty() => {
                return Err(Errno::NOTEMPTY.into());
            }
            _ => {}
        }
        self.names.rename(self.operations, from, to, entry);
        self.drop_nameless();
        self.end(outcome)
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let outcome = self.begin_change(Operation::Remove)?;
        match self.names.find(path)? {
            Some(Entry::File(_)) => {}
            Some(Entry::Directory(_)) => return Err(Errno::ISDIR.into()),
            None => return Err(Errno::NOENT.into()),
        }
        let place = self.names.place(path)?;
        self.names.remove(self.operations, place);
        self.drop_nameless();
        self.end(outcome)
    }

    pub(super) fn list(&mut self, path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        self.begin_whole(Operation::List)?;
        Ok(self.names.list(self.names.directory(path)?))
    }

    pub(super) fn create_directory(&mut self, path: &Path) -> io::Result<()> {
        let outcome = self.begin_change(Operation::CreateDirectory)?;
        let mut above: Vec<&Path> = path.ancestors().collect();
        above.reverse();
        for path in above {
            match self.names.find(path)? {
                Some(Entry::Directory(_)) => {}
                Some(Entry::File(_)) => return Err(Errno::EXIST.into()),
                None => {
                    let place = self.names.place(path)?;
                    let id = self.make_id();
                    self.names.put(self.operations, place, Entry::Directory(id));
                }
            }
        }
        self.end(outcome)
    }

    pub(super) fn exists(&mut self, path: &Path) -> io::Result<bool> {
        self.begin_whole(Operation::Exists)?;
        Ok(self.names.find(path)?.is_some())
    }

    pub(super) fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        // Where the power fails, the names survive or not as before.
        self.begin_whole(Operation::SyncDirectory)?;
        let directory = self.names.directory(path)?;
        self.names.sync(directory);
        self.drop_nameless();
        self.end(Outcome::Done)
    }

    pub(super) fn room(&mut self) -> io::Result<Room> {
        self.begin_whole(Operation::Room)?;
        Ok(Room { available_bytes: self.available_bytes(), total_bytes: self.total_bytes })
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<u64> {
        let outcome = self.begin_change(Operation::Lock)?;
        let id = match self.names.find(path)? {
            Some(Entry::File(id)) => id,
            Some(Entry::Directory(_)) => return Err(Errno::ISDIR.into()),
            None => self.make_file(path)?,
        };
        self.end(outcome)?;
        if self.locked.insert(id) {
            *self.handles.entry(id).or_default() += 1;
            Ok(id)
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    pub(super) fn unlock(&mut self, id: u64) {
        self.locked.remove(&id);
    }
}

/// Contents.
impl State {
    pub(super) fn read(&mut self, id: u64, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.begin_whole(Operation::Read)?;
        let image = self.content(id).cache();
        if buffer.is_empty() {
            return Ok(());
        }
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > image.length()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        image.read(offset, buffer);
        Ok(())
    }

    pub(super) fn write(&mut self, id: u64, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let outcome = self.begin(Operation::Write)?;
        self.write_bytes(outcome, id, &parts.concat(), offset)
    }

    fn write_bytes(&mut self, outcome: Outcome, id: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        let length = bytes.len() as u64;
        let mut possible = self.content(id).cache().fitting(offset, length, 0);
        if possible < length {
            possible = self.content(id).cache().fitting(offset, length, self.available_bytes());
        }
        let full = possible < length;
        if outcome == Outcome::Fault {
            possible = self.chance.below(possible + 1);
        }
        // A write is made piece by piece: a process can die between two.
        let first = if self.moments.is_some() { self.chance.below(possible + 1) } else { possible };
        for piece in [0..first, first..possible] {
            if !piece.is_empty() {
                let number = self.operations;
                let part = &bytes[as_index(piece.start)..as_index(piece.end)];
                self.content_mut(id).write(number, offset + piece.start, part);
                self.keep_moment();
            }
        }
        match outcome {
            Outcome::Done if full => Err(Errno::NOSPC.into()),
            Outcome::Done => Ok(()),
            outcome => self.end(outcome),
        }
    }

    pub(super) fn sync(&mut self, id: u64) -> io::Result<()> {
        match self.begin(Operation::Sync)? {
            Outcome::Done => self.content_mut(id).sync(),
            Outcome::Cut => return Err(power_is_off()),
            Outcome::Fault => {
                let (seed, forget) = (self.chance.number(), self.chance.in_256(128));
                let mut survival = Survival::new(seed, self.operations);
                self.content_mut(id).fail_to_sync(&mut survival, forget);
                self.keep_moment();
                return Err(Errno::IO.into());
            }
        }
        self.end(Outcome::Done)
    }

    pub(super) fn length(&mut self, id: u64) -> io::Result<u64> {
        self.begin_whole(Operation::Length)?;
        Ok(self.content(id).cache().length())
    }

    pub(super) fn set_length(&mut self, id: u64, bytes: u64) -> io::Result<()> {
        let outcome = self.begin_change(Operation::SetLength)?;
        let number = self.operations;
        self.content_mut(id).set_length(number, bytes);
        self.end(outcome)
    }

    pub(super) fn allocated_bytes(&mut self, id: u64) -> io::Result<u64> {
        self.begin_whole(Operation::Length)?;
        Ok(self.content(id).allocated_bytes())
    }

    pub(super) fn punch(&mut self, id: u64, offset: u64, length: u64) -> io::Result<()> {
        if self.refuses_holes {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let outcome = self.begin_change(Operation::Punch)?;
        let number = self.operations;
        self.content_mut(id).punch(number, offset, length);
        self.end(outcome)
    }

    /// A copy that is made as a write is, only that it is refused where files share nothing.
    pub(super) fn clone_range(
        &mut self,
        id: u64,
        offset: u64,
        source: u64,
        source_offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let outcome = self.begin(Operation::Clone)?;
        self.require_clones()?;
        let image = self.content(source).cache();
        if source_offset.checked_add(length).is_none_or(|end| end > image.length()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; as_index(length)];
        image.read(source_offset, &mut bytes);
        self.write_bytes(outcome, id, &bytes, offset)
    }

    /// A file without a name that has the content of another.
    pub(super) fn freeze(&mut self, source: u64, directory: &Path) -> io::Result<u64> {
        self.begin_whole(Operation::Clone)?;
        self.require_clones()?;
        self.names.directory(directory)?;
        let content = Content::of(self.content(source).cache().clone());
        if self.available_bytes() < content.allocated_bytes() {
            return Err(Errno::NOSPC.into());
        }
        let id = self.make_id();
        self.contents.insert(id, content);
        *self.handles.entry(id).or_default() += 1;
        Ok(id)
    }

    fn require_clones(&self) -> io::Result<()> {
        if self.refuses_clones { Err(Errno::OPNOTSUPP.into()) } else { Ok(()) }
    }
}

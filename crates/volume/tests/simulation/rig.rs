//! A node's store and volumes on a simulated medium, and a look at everything in them.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use medium::{Medium, Simulated};
use store::{
    ChunkStore, CollectOptions, Domain, IncompleteRoots, Key, Live, LiveRoots, LocalOptions, LocalStore, NoSource,
};
use types::{FrozenId, Progress, VolumeId};
use volume::{BlockDevice, Clock, Readiness, VolumeOptions, Volumes};

use crate::model::{Found, Model, SECTOR, Token, fill, read_token, token};

/// Where a version's frozen disks are recorded.
pub(crate) const VERSION: &str = "version/";

thread_local! {
    /// What time it is in a simulation, in milliseconds since 1970; never put back.
    static NOW_MS: Cell<u64> = const { Cell::new(1) };
}

/// Lets the clock go on to a moment.
pub(crate) fn go_on_to(now_ms: u64) {
    NOW_MS.set(NOW_MS.get().max(now_ms));
}

/// Where an import's objects are recorded.
pub(crate) const IMPORT: &str = "import/";

pub(crate) struct Rig {
    pub(crate) medium: Simulated,
    pub(crate) store: Arc<LocalStore>,
    pub(crate) volumes: Arc<Volumes>,
}

/// An error with its causes.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let causes: Vec<_> = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    causes.join(": ")
}

impl Rig {
    /// Begins with an empty medium, and the clock anew.
    pub(crate) fn begin(seed: u64) -> Result<Self, String> {
        NOW_MS.set(1);
        Self::open(&Simulated::new(seed))
    }

    /// Opens what a medium holds, with packs so small that a few chunks fill one.
    pub(crate) fn open(medium: &Simulated) -> Result<Self, String> {
        let options = LocalOptions { pack_bytes: 150_000, cache_bytes: 1 << 20, hot_bytes: 0, reserve_bytes: 0 };
        let failed = |error: &dyn std::error::Error| format!("the store does not open: {}", told(error));
        let store = LocalStore::open_on(medium.shared(), "/node/store", options).map_err(|error| failed(&error))?;
        let (directory, source) = (Path::new("/node/volumes"), Arc::new(NoSource));
        // Small, so that a short history fills, empties and uses again many a segment; when that is, is for the seed.
        let mut options = VolumeOptions::default();
        (options.segment_bytes, options.pool_bytes, options.tidy_in_background) = (20_000, 60_000, false);
        options.clock = Clock::new(|| NOW_MS.get());
        let volumes = Volumes::open_on(medium.shared(), directory, store.clone(), source, options)
            .map_err(|error| format!("the volumes do not open: {}", told(&error)))?;
        Ok(Self { medium: medium.clone(), store, volumes })
    }

    /// The frozen disks of a version.
    pub(crate) fn version(&self, number: u64) -> Vec<FrozenId> {
        let bytes = self.store.roots().get(&format!("{VERSION}{number}")).expect("the version has a record");
        bytes.as_chunks::<16>().0.iter().map(|id| FrozenId(*id)).collect()
    }

    /// Reads everything.
    pub(crate) fn look(&self) -> Result<Found, String> {
        let mut found = Found::default();
        for volume in self.volumes.list() {
            found.disks.insert(volume.name().to_string(), read_disk(&*volume)?);
        }
        for number in self.numbers(VERSION) {
            let disks = self
                .version(number)
                .into_iter()
                .map(|id| self.volumes.frozen(id).map(|disk| read_disk(&*disk)).transpose());
            found.versions.insert(number, disks.collect::<Result<_, _>>()?);
        }
        for number in self.numbers(IMPORT) {
            found.imports.insert(number, self.read_import(number)?);
        }
        for deleted in self.volumes.deleted() {
            let size_bytes = deleted.status().size_bytes;
            let sectors = usize::try_from(size_bytes).expect("a small disk") / SECTOR;
            found.deleted.insert(deleted.note().parse().expect("the note is a number"), sectors);
        }
        Ok(found)
    }

    /// The deleted volume of a number.
    pub(crate) fn deleted(&self, number: u64) -> VolumeId {
        let deleted = self.volumes.deleted().into_iter().find(|deleted| deleted.note() == number.to_string());
        deleted.expect("the deleted volume is there").id()
    }

    /// Collects what nothing refers to.
    pub(crate) fn collect(&self) -> Result<(), store::CollectError> {
        let options = CollectOptions { live_percent: 100, ..CollectOptions::default() };
        self.store.collect(self, &options, &Progress::default()).map(drop)
    }

    /// Checks that the store calls nothing damage that a killed process left. After a loss of power, what was never
    /// committed looks like damage where something behind it survived: then nothing can be told.
    pub(crate) fn check_store(&self, power_was_lost: bool) -> Result<(), String> {
        let report = self.store.recovery();
        if report.damages > 0 && !power_was_lost {
            return Err(format!("the store calls a crash damage: {report:?}"));
        }
        Ok(())
    }

    fn numbers(&self, prefix: &str) -> Vec<u64> {
        let records = self.store.roots().list(prefix);
        records.iter().map(|(name, _)| name[prefix.len()..].parse().expect("a number")).collect()
    }

    fn read_import(&self, number: u64) -> Result<Vec<u32>, String> {
        let record = self.store.roots().get(&format!("{IMPORT}{number}")).expect("the import has a record");
        let objects: Vec<u32> = record.as_chunks::<4>().0.iter().map(|object| u32::from_le_bytes(*object)).collect();
        for object in &objects {
            let (key, plain) = object_of(*object);
            match self.store.get(&key, &Domain::OWN.into()) {
                Ok(Some(bytes)) if bytes == plain => {}
                Ok(other) => return Err(format!("object {object} of import {number}: {:?}", other.map(|_| "wrong"))),
                Err(error) => return Err(format!("object {object} of import {number}: {}", told(&error))),
            }
        }
        Ok(objects)
    }

    /// Checks that protected volumes still have their past, of which `at` chooses one moment each.
    pub(crate) fn check_past(
        &self,
        before: &Model,
        after: &Model,
        mut at: impl FnMut(usize) -> usize,
    ) -> Result<(), String> {
        for (name, moments) in before.past.iter().filter(|(name, _)| after.past.contains_key(*name)) {
            let Some(volume) = self.volumes.get(&name.parse().expect("a name")) else { continue };
            if moments.is_empty() {
                continue;
            }
            let (at_ms, disk) = &moments[at(moments.len())];
            let probe = "probe".parse().expect("a name");
            let failed = |error: &dyn std::error::Error| format!("{name} as of {at_ms}: {}", told(error));
            let clone = self.volumes.clone_at(&volume, *at_ms, &probe).map_err(|error| failed(&error))?;
            if let Some(wrong) = disk.wrong_although_grown(&read_disk(&*clone)?) {
                return Err(format!("{name} as of {at_ms}: {wrong}"));
            }
            self.volumes.remove(&probe).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Checks that there is no journal that no layer owns.
    pub(crate) fn check_nothing_is_left_over(&self) -> Result<(), String> {
        let journals = self.medium.list(Path::new("/node/volumes/layers")).map_err(|error| error.to_string())?;
        for journal in &journals {
            let name = journal.to_string_lossy();
            let head = self
                .medium
                .read(&Path::new("/node/volumes/layers").join(journal))
                .map_err(|error| error.to_string())?;
            // The journal's id, in hexadecimal; a file that is kept to be used again begins with zeroes.
            let id: String = head.iter().skip(16).take(16).map(|byte| format!("{byte:02x}")).collect();
            let used = head.iter().take(64).any(|byte| *byte != 0);
            if used && self.store.roots().get(&format!("journal/{id}")).is_none() {
                return Err(format!("{name} belongs to nothing"));
            }
        }
        Ok(())
    }
}

impl LiveRoots for Rig {
    fn visit(&self, live: &mut dyn FnMut(Live)) -> Result<(), IncompleteRoots> {
        for (name, value) in self.store.roots().list("") {
            let trees = volume::live_trees(&name, &value).expect("volumes can read their own records");
            trees.into_iter().flatten().map(Live::Tree).for_each(&mut *live);
        }
        for (_, record) in self.store.roots().list(IMPORT) {
            for object in record.as_chunks::<4>().0 {
                let (key, _) = object_of(u32::from_le_bytes(*object));
                live(Live::Object { key, domains: Domain::OWN.into() });
            }
        }
        Ok(())
    }
}

/// An object of an import.
pub(crate) fn object_of(number: u32) -> (Key, Vec<u8>) {
    let mut plain = vec![0; 1024 + number as usize % 7 * 9000];
    fill(token(u64::from(number) << 8 | 0xff, 0, number.is_multiple_of(2)), &mut plain);
    (format::chunk_id(&plain).into(), plain)
}

pub(crate) fn read_disk(device: &dyn BlockDevice) -> Result<Vec<Token>, String> {
    let mut bytes = vec![0xee; usize::try_from(device.size_bytes()).expect("a small disk")];
    match device.try_read(0, &mut bytes) {
        Ok(Readiness::Ready) => {}
        Ok(Readiness::Wait) => return Err("something of a disk is not there".to_owned()),
        Err(error) => return Err(format!("a disk cannot be read: {}", told(&error))),
    }
    let sector = |(number, sector): (usize, &[u8])| {
        read_token(sector).ok_or_else(|| format!("sector {number} holds what nobody wrote: {:x?}", &sector[..16]))
    };
    bytes.chunks(SECTOR).enumerate().map(sector).collect()
}

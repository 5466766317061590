//! What happens to a node: chosen from a seed, done, and entered into the model.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use medium::simulated::Chance;
use store::ChunkStore;
use types::{Name, Progress};
use volume::{BlockDevice, Durability, Promised, Protection, RevertTo, VolumeError};

use crate::model::{Disk, Model, SECTOR, Token, fill, token};
use crate::rig::{IMPORT, Rig, VERSION, go_on_to, object_of, told};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The largest disk, in sectors: five chunks and a half.
const MOST_SECTORS: u64 = 700;

/// What is written, sector by sector.
#[derive(Clone)]
pub(crate) struct Tokens(pub(crate) Vec<Token>);

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} from {:x}", self.0.len(), self.0[0])
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create {
        name: String,
        sectors: usize,
    },
    Write {
        name: String,
        first: usize,
        tokens: Tokens,
        fua: bool,
    },
    Zeroes {
        name: String,
        first: usize,
        sectors: usize,
        fua: bool,
        discard: bool,
    },
    /// Gives the room of a journal back.
    Tidy {
        name: String,
        promised: Promised,
    },
    Flush {
        name: String,
    },
    Freeze {
        names: Vec<String>,
        version: u64,
    },
    Clone {
        version: u64,
        disk: usize,
        name: String,
    },
    Seal {
        version: u64,
        disk: usize,
    },
    Fold {
        name: String,
    },
    Forget {
        version: u64,
        disk: usize,
    },
    Remove {
        name: String,
    },
    Grow {
        name: String,
        sectors: usize,
    },
    /// Under a hold, and perhaps with a collection before anything refers to what was put.
    Import {
        number: u64,
        objects: Vec<u32>,
        collect: bool,
    },
    DropImport {
        number: u64,
    },
    /// So that it can be taken back.
    Delete {
        name: String,
        number: u64,
    },
    Restore {
        number: u64,
        name: String,
    },
    Purge {
        number: u64,
    },
    Revert {
        name: String,
        version: u64,
        disk: usize,
        number: u64,
    },
    /// From now on any moment can be cloned, until it is not protected any more.
    Protect {
        name: String,
    },
    Unprotect {
        name: String,
    },
    /// All that was written is durable, and before anything else is a millisecond passes.
    Moment {
        name: String,
        at_ms: u64,
    },
    Collect,
    Reopen,
}

fn pick<T: Clone>(chance: &mut Chance, of: &[T]) -> Option<T> {
    let number = usize::try_from(chance.below(of.len() as u64)).expect("small");
    of.get(number).cloned()
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("small")
}

impl Step {
    /// Chooses what comes next.
    pub(crate) fn choose(chance: &mut Chance, model: &Model, number: u64) -> Self {
        loop {
            if let Some(step) = Self::attempt(chance, model, number) {
                return step;
            }
        }
    }

    fn attempt(chance: &mut Chance, model: &Model, number: u64) -> Option<Self> {
        let names: Vec<String> = model.disks.keys().cloned().collect();
        let free: Vec<&str> = NAMES.into_iter().filter(|name| !model.disks.contains_key(*name)).collect();
        let frozen: Vec<(u64, usize)> = model
            .versions
            .iter()
            .flat_map(|(version, disks)| {
                (0..disks.len()).filter(|disk| disks[*disk].is_some()).map(|disk| (*version, disk))
            })
            .collect();
        let deleted: Vec<u64> = model.deleted.keys().copied().collect();
        let protected: Vec<String> = model.past.keys().cloned().collect();
        let step = match chance.below(117) {
            0..2 => {
                Self::Create { name: pick(chance, &free)?.to_owned(), sectors: index(1 + chance.below(MOST_SECTORS)) }
            }
            2..41 => {
                let name = pick(chance, &names)?;
                Self::write(chance, model, &name, number)
            }
            41..45 => {
                let promised = if chance.in_256(128) { Promised::Replace } else { Promised::Await };
                Self::Tidy { name: pick(chance, &names)?, promised }
            }
            45..53 => {
                let name = pick(chance, &names)?;
                Self::zeroes(chance, model, &name)
            }
            53..63 => Self::Flush { name: pick(chance, &names)? },
            63..73 => Self::Freeze { names: group(chance, names)?, version: number },
            73..77 => {
                let (version, disk) = pick(chance, &frozen)?;
                Self::Clone { version, disk, name: pick(chance, &free)?.to_owned() }
            }
            77..82 => {
                let (version, disk) = pick(chance, &frozen)?;
                Self::Seal { version, disk }
            }
            82..87 => Self::Fold { name: pick(chance, &names)? },
            87..90 => {
                let (version, disk) = pick(chance, &frozen)?;
                Self::Forget { version, disk }
            }
            90..92 => Self::Remove { name: pick(chance, &names)? },
            92..94 => {
                let name = pick(chance, &names)?;
                let sectors = model.disks[&name].sectors();
                Self::Grow { name, sectors: sectors + index(chance.below(200)) }
            }
            94..96 => {
                let objects = (0..1 + chance.below(4)).map(|_| u32::try_from(chance.below(40)).expect("small"));
                Self::Import { number, objects: objects.collect(), collect: chance.in_256(64) }
            }
            96..97 => Self::DropImport { number: pick(chance, &model.imports.keys().copied().collect::<Vec<_>>())? },
            97..99 => Self::Collect,
            99..101 => Self::Delete { name: pick(chance, &names)?, number },
            101..103 => Self::Restore { number: pick(chance, &deleted)?, name: pick(chance, &free)?.to_owned() },
            103..104 => Self::Purge { number: pick(chance, &deleted)? },
            104..105 => {
                let (version, disk) = pick(chance, &frozen)?;
                Self::Revert { name: pick(chance, &names)?, version, disk, number }
            }
            105..108 => Self::Protect { name: pick(chance, &names)? },
            108..109 => Self::Unprotect { name: pick(chance, &protected)? },
            109..116 => Self::Moment { name: pick(chance, &protected)?, at_ms: 1000 * (1 + number) },
            _ => Self::Reopen,
        };
        Some(step)
    }

    fn range(chance: &mut Chance, disk: &Disk) -> (usize, usize) {
        let sectors = disk.sectors() as u64;
        let length = match chance.below(4) {
            0 => 1,
            1 => 8,
            2 => 1 + chance.below(40),
            _ => 1 + chance.below(260),
        };
        let length = length.min(sectors);
        (index(chance.below(sectors - length + 1)), index(length))
    }

    fn write(chance: &mut Chance, model: &Model, name: &str, number: u64) -> Self {
        let (first, length) = Self::range(chance, &model.disks[name]);
        // Some writes bring what others have brought: equal chunks are stored once.
        let write = if chance.in_256(40) { 1 + chance.below(3) } else { 16 + number };
        let (compresses, equal) = (chance.in_256(128), chance.in_256(40));
        let sector = |sector: usize| token(write, if equal { 0 } else { sector as u64 }, compresses);
        let tokens = Tokens((first..first + length).map(sector).collect());
        Self::Write { name: name.to_owned(), first, tokens, fua: chance.in_256(40) }
    }

    fn zeroes(chance: &mut Chance, model: &Model, name: &str) -> Self {
        let (first, sectors) = Self::range(chance, &model.disks[name]);
        Self::Zeroes { name: name.to_owned(), first, sectors, fua: chance.in_256(40), discard: chance.in_256(128) }
    }

    /// Whether it changes what disks hold and not which there are.
    pub(crate) fn is_data(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zeroes { .. } | Self::Flush { .. })
    }

    /// What the model is after this, if it succeeds.
    pub(crate) fn after(&self, model: &Model) -> Model {
        self.enter(model, true)
    }

    /// What the model is after this has failed: data may have changed, and nothing else.
    pub(crate) fn after_failure(&self, model: &Model) -> Model {
        match self {
            Self::Write { .. } | Self::Zeroes { .. } => self.enter(model, false),
            _ => model.clone(),
        }
    }

    fn enter(&self, model: &Model, acknowledged: bool) -> Model {
        let mut model = model.clone();
        match self {
            Self::Create { name, sectors } => drop(model.disks.insert(name.clone(), Disk::new(*sectors))),
            Self::Write { name, first, tokens, fua } => {
                // Where the next process may find that the volume was removed, there is nothing to enter.
                let disk = model.disks.get_mut(name);
                disk.into_iter().for_each(|disk| disk.write(*first, &tokens.0, acknowledged, *fua));
            }
            Self::Zeroes { name, first, sectors, fua, .. } => {
                let disk = model.disks.get_mut(name);
                disk.into_iter().for_each(|disk| disk.write(*first, &vec![0; *sectors], acknowledged, *fua));
            }
            Self::Flush { name } => model.disks.get_mut(name).into_iter().for_each(Disk::flush),
            Self::Freeze { names, version } => {
                let frozen = names.iter().map(|name| {
                    let disk = model.disks.get_mut(name).expect("chosen from the model");
                    disk.flush();
                    Some(disk.freeze())
                });
                let frozen = frozen.collect();
                model.versions.insert(*version, frozen);
            }
            Self::Clone { version, disk, name } => {
                let frozen = model.versions[version][*disk].clone().expect("chosen from the model");
                model.disks.insert(name.clone(), frozen);
            }
            Self::Forget { version, disk } => {
                model.versions.get_mut(version).expect("chosen from the model")[*disk] = None;
            }
            Self::Remove { name } => {
                model.disks.remove(name);
                model.past.remove(name);
            }
            Self::Grow { name, sectors } => model.disks.get_mut(name).expect("chosen from the model").grow(*sectors),
            Self::Import { number, objects, .. } => drop(model.imports.insert(*number, objects.clone())),
            Self::DropImport { number } => drop(model.imports.remove(number)),
            Self::Delete { name, number } => {
                let disk = model.disks.remove(name).expect("chosen from the model");
                model.past.remove(name);
                model.deleted.insert(*number, disk.freeze());
            }
            Self::Restore { number, name } => {
                let disk = model.deleted.remove(number).expect("chosen from the model");
                model.disks.insert(name.clone(), disk);
            }
            Self::Purge { number } => drop(model.deleted.remove(number)),
            Self::Revert { name, version, disk, number } => {
                let frozen = model.versions[version][*disk].clone().expect("chosen from the model");
                let before = model.disks.insert(name.clone(), frozen).expect("chosen from the model");
                model.deleted.insert(*number, before.freeze());
            }
            Self::Protect { name } => drop(model.past.entry(name.clone()).or_default()),
            Self::Unprotect { name } => drop(model.past.remove(name)),
            Self::Moment { name, at_ms } => {
                let disk = model.disks.get_mut(name).expect("chosen from the model");
                disk.flush();
                let then = disk.freeze();
                model.past.get_mut(name).expect("chosen from the model").push((*at_ms, then));
            }
            Self::Tidy { .. } | Self::Seal { .. } | Self::Fold { .. } | Self::Collect | Self::Reopen => {}
        }
        model
    }

    /// Does it.
    pub(crate) fn run(&self, slot: &mut Option<Rig>) -> Result<(), String> {
        if matches!(self, Self::Reopen) {
            // One at a time has the store.
            let medium = slot.take().expect("a node is open").medium;
            *slot = Some(Rig::open(&medium)?);
            return Ok(());
        }
        self.work(slot.as_ref().expect("a node is open"))
    }

    fn work(&self, rig: &Rig) -> Result<(), String> {
        let device = |name: &String| rig.volumes.get(&named(name)).expect("the volume is there");
        let durability = |fua: bool| if fua { Durability::Power } else { Durability::Process };
        let offset = |sector: usize| (sector * SECTOR) as u64;
        let done = match self {
            Self::Create { name, sectors } => rig.volumes.create(&named(name), offset(*sectors)).map(drop),
            Self::Write { name, first, tokens, fua } => {
                let mut bytes = vec![0; tokens.0.len() * SECTOR];
                bytes.chunks_mut(SECTOR).zip(&tokens.0).for_each(|(sector, token)| fill(*token, sector));
                device(name).write(offset(*first), &bytes, durability(*fua)).map_err(VolumeError::from)
            }
            Self::Zeroes { name, first, sectors, fua, discard } => {
                let (device, durability) = (device(name), durability(*fua));
                let (offset, length) = (offset(*first), offset(*sectors));
                let zeroed = if *discard {
                    device.discard(offset, length, durability)
                } else {
                    device.write_zeroes(offset, length, durability)
                };
                zeroed.map_err(VolumeError::from)
            }
            Self::Flush { name } => device(name).flush().map_err(VolumeError::from),
            Self::Tidy { name, promised } => rig.volumes.tidy(&device(name), *promised),
            Self::Freeze { names, version } => {
                let volumes: Vec<_> = names.iter().map(device).collect();
                let record = |ids: &[types::FrozenId]| {
                    let ids = ids.iter().flat_map(|id| id.0).collect();
                    vec![(format!("{VERSION}{version}"), Some(ids))]
                };
                rig.volumes.freeze(&volumes, record).map(drop)
            }
            Self::Clone { version, disk, name } => {
                let frozen = rig.version(*version)[*disk];
                match rig.volumes.frozen(frozen).expect("the frozen disk is there").sealed() {
                    Some(base) => rig.volumes.clone_tree(&named(name), base).map(drop),
                    None => rig.volumes.clone_frozen(&named(name), frozen).map(drop),
                }
            }
            Self::Seal { version, disk } => {
                let frozen = rig.version(*version)[*disk];
                wait(rig.volumes.seal(frozen, &Progress::default())).map(drop)
            }
            Self::Fold { name } => wait(rig.volumes.fold(&device(name), &Progress::default())),
            Self::Forget { version, disk } => rig.volumes.forget_frozen(rig.version(*version)[*disk]),
            Self::Remove { name } => rig.volumes.remove(&named(name)),
            Self::Grow { name, sectors } => rig.volumes.grow(&device(name), offset(*sectors)),
            Self::Import { number, objects, collect } => return import(rig, *number, objects, *collect),
            Self::Collect => return rig.collect().map_err(|error| told(&error)),
            Self::DropImport { number } => {
                rig.store.roots().apply(vec![(format!("{IMPORT}{number}"), None)]).map_err(VolumeError::from)
            }
            Self::Delete { name, number } => rig.volumes.delete(&named(name), *number, &number.to_string()).map(drop),
            Self::Restore { number, name } => rig.volumes.restore(rig.deleted(*number), &named(name)).map(drop),
            Self::Purge { number } => rig.volumes.purge(rig.deleted(*number)),
            Self::Revert { name, version, disk, number } => {
                let to = RevertTo::Frozen(rig.version(*version)[*disk]);
                rig.volumes.revert(&device(name), to, *number, &number.to_string()).map(drop)
            }
            Self::Protect { name } => {
                rig.volumes.protect(&device(name), Protection { for_ms: 1 << 40, space_bytes: None })
            }
            Self::Unprotect { name } => rig.volumes.unprotect(&device(name)),
            Self::Moment { name, at_ms } => {
                go_on_to(*at_ms);
                let flushed = device(name).flush().map_err(VolumeError::from);
                go_on_to(at_ms + 1);
                flushed
            }
            Self::Reopen => Ok(()),
        };
        done.map_err(|error| told(&error))
    }
}

fn group(chance: &mut Chance, mut names: Vec<String>) -> Option<Vec<String>> {
    let first = pick(chance, &names)?;
    if chance.in_256(128) {
        return Some(vec![first]);
    }
    names.retain(|name| *name == first || chance.in_256(128));
    Some(names)
}

fn import(rig: &Rig, number: u64, objects: &[u32], collect: bool) -> Result<(), String> {
    let _hold = rig.store.hold();
    for number in objects {
        let (key, plain) = object_of(*number);
        rig.store.put(&key, store::Domain::OWN, &plain).map_err(|error| told(&error))?;
    }
    if collect {
        rig.collect().map_err(|error| told(&error))?;
    }
    let record = objects.iter().flat_map(|object| object.to_le_bytes()).collect();
    rig.store.roots().apply(vec![(format!("{IMPORT}{number}"), Some(record))]).map_err(|error| told(&error))
}

pub(crate) fn named(name: &str) -> Name {
    name.parse().expect("a name")
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(work)
}

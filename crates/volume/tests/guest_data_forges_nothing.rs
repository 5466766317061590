//! A guest that writes what it could have read from the medium itself: journal records, pack records and footers, tree nodes
//! and root changes, byte for byte, at every alignment and where they stood before. Whatever a loss of power tears around
//! them, nothing changes its meaning.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/rig.rs"]
mod rig;
#[path = "simulation/seeds.rs"]
mod seeds;

use std::path::{Path, PathBuf};

use medium::simulated::Chance;
use medium::{Medium, Simulated};
use store::{ChunkStore, Domain, Key, Kind};
use types::{CHUNK_BYTES, Name, Progress};
use volume::{BlockDevice, Durability, Readiness, TreeBase};

use crate::model::{SECTOR, fill, token};
use crate::rig::{Rig, VERSION, read_disk};

const GUEST_BYTES: usize = 6 * CHUNK_BYTES;
const VICTIM_BYTES: usize = 2 * CHUNK_BYTES;

fn name(name: &str) -> Name {
    name.parse().unwrap()
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

/// All files of a node, with what they hold.
fn files(medium: &Simulated) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut directories = vec![PathBuf::from("/node")];
    while let Some(directory) = directories.pop() {
        for name in medium.list(&directory).unwrap() {
            let path = directory.join(name);
            match medium.read(&path) {
                Ok(bytes) => files.push((path, bytes)),
                Err(_) => directories.push(path),
            }
        }
    }
    files
}

fn read(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0xee; index(device.size_bytes())];
    assert_eq!(device.try_read(0, &mut bytes).unwrap(), Readiness::Ready);
    bytes
}

/// A node with a victim of known content, a snapshot of it, and the guest's disk.
fn prepared(seed: u64) -> Rig {
    let rig = Rig::open(&Simulated::new(seed)).unwrap();
    let victim = rig.volumes.create(&name("victim"), VICTIM_BYTES as u64).unwrap();
    let guest = rig.volumes.create(&name("guest"), GUEST_BYTES as u64).unwrap();
    let mut bytes = vec![0; VICTIM_BYTES];
    bytes.chunks_mut(SECTOR).enumerate().for_each(|(sector, bytes)| fill(token(7, sector as u64, false), bytes));
    for (number, piece) in bytes.chunks(20 * SECTOR).enumerate() {
        victim.write((number * 20 * SECTOR) as u64, piece, Durability::Power).unwrap();
        guest.write((number * 20 * SECTOR) as u64, piece, Durability::Power).unwrap();
    }
    let record = |ids: &[types::FrozenId]| vec![(format!("{VERSION}1"), Some(ids[0].0.to_vec()))];
    let frozen = rig.volumes.freeze(std::slice::from_ref(&victim), record).unwrap();
    wait(rig.volumes.seal(frozen[0].id(), &Progress::default())).unwrap();
    victim.write(0, &bytes[..SECTOR], Durability::Power).unwrap();
    rig
}

/// What a guest makes of a file: its bytes from some place on, as whole sectors.
fn forgery(chance: &mut Chance, bytes: &[u8]) -> Vec<u8> {
    // A record's data begins 128 bytes into a journal that is new: so, what stood in another stands where it stood.
    let from = match chance.below(3) {
        0 => 128,
        1 => index(chance.below(bytes.len() as u64 / 64 + 1)) * 64,
        _ => index(chance.below(bytes.len() as u64 + 1)),
    };
    let length = 1 + index(chance.below(GUEST_BYTES as u64 / 2));
    let mut forged: Vec<u8> = bytes.iter().skip(from).take(length).copied().collect();
    forged.resize(forged.len().next_multiple_of(SECTOR).max(SECTOR), 0);
    forged
}

fn history(seed: u64) -> Result<(), String> {
    let mut chance = Chance::new(!seed);
    let mut rig = prepared(seed);
    for round in 0..6 {
        let guest = rig.volumes.get(&name("guest")).unwrap();
        // The disk before, and after each write: a sector may come from any of them, as nothing is flushed.
        let mut states = vec![read(&*guest)];
        let files = files(&rig.medium);
        for _ in 0..1 + chance.below(4) {
            let file = index(chance.below(files.len() as u64));
            let forged = forgery(&mut chance, &files[file].1);
            let first = index(chance.below(((GUEST_BYTES - forged.len()) / SECTOR + 1) as u64)) * SECTOR;
            guest.write(first as u64, &forged, Durability::Process).unwrap();
            let mut state = states.last().unwrap().clone();
            state[first..first + forged.len()].copy_from_slice(&forged);
            states.push(state);
        }
        // Sometimes it lies in a pack then, as chunks.
        let folded = chance.in_256(100);
        if folded {
            wait(rig.volumes.fold(&guest, &Progress::default())).unwrap();
            states.drain(..states.len() - 1);
        }
        let (roots, victim) = (rig.store.roots().list(""), read_disk(&*rig.volumes.get(&name("victim")).unwrap())?);
        rig = Rig::open(&rig.medium.power_cut(chance.number()))?;
        let what = |what: &str| format!("round {round}, folded {folded}: {what}");
        if rig.store.roots().list("") != roots {
            return Err(what("other roots"));
        }
        if read_disk(&*rig.volumes.get(&name("victim")).unwrap())? != victim {
            return Err(what("another victim"));
        }
        let frozen = rig.volumes.frozen(rig.version(1)[0]).ok_or_else(|| what("no snapshot"))?;
        if read_disk(&*frozen)?.len() * SECTOR != VICTIM_BYTES {
            return Err(what("another snapshot"));
        }
        let found = read(&*rig.volumes.get(&name("guest")).unwrap());
        for (sector, found) in found.chunks(SECTOR).enumerate() {
            let place = sector * SECTOR..(sector + 1) * SECTOR;
            if !states.iter().any(|state| state[place.clone()] == *found) {
                return Err(what(&format!("the guest's sector {sector} holds what it did not write there")));
            }
        }
    }
    Ok(())
}

#[test]
fn nothing_on_the_medium_means_anything_as_guest_data() {
    seeds::run(150, 10_000, "guest_data_forges_nothing", |seed| history(seed).map(|()| 1));
}

#[test]
fn a_chunk_that_is_a_tree_node_is_no_tree_node() {
    let rig = prepared(1);
    let own = Domain::OWN.into();
    let frozen = rig.volumes.frozen(rig.version(1)[0]).unwrap();
    let root = frozen.sealed().unwrap().root.unwrap();
    let node = rig.store.get(&root.into(), &own).unwrap().unwrap();
    // The guest makes a chunk of it, as long as a node can be and as it would lie on a disk.
    let mut chunk = node.to_vec();
    chunk.resize(CHUNK_BYTES, 0);
    let guest = rig.volumes.get(&name("guest")).unwrap();
    guest.write(0, &chunk, Durability::Power).unwrap();
    wait(rig.volumes.fold(&guest, &Progress::default())).unwrap();
    for plain in [&node[..], &chunk[..]] {
        let id = format::chunk_id(plain);
        rig.store.put(&id.into(), Domain::OWN, plain).unwrap();
        rig.store.commit().unwrap();
        let as_node = Key { kind: Kind::Node, hash: id.0 };
        assert_eq!(rig.store.get(&as_node, &own).unwrap(), None);
        let stored = format::Stored::plain(plain.to_vec().into());
        assert!(rig.store.put_stored(&as_node, Domain::OWN, &stored).is_err(), "its hash is a chunk's");
        // A tree that names the chunk as its root has none.
        let tree = TreeBase { root: Some(types::NodeId(id.0)), ..TreeBase::empty(VICTIM_BYTES as u64, Domain::OWN) };
        let disk = rig.volumes.clone_tree(&name("forged"), tree).unwrap();
        let mut bytes = vec![0; SECTOR];
        assert!(!matches!(disk.try_read(0, &mut bytes), Ok(Readiness::Ready)));
        rig.volumes.remove(&name("forged")).unwrap();
    }
    assert!(rig.medium.exists(Path::new("/node/store/roots")).unwrap());
}

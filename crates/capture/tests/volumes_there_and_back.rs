//! A disk that is imported, cloned to a volume, written to and materialized is what it should be, byte for byte; and
//! imported again it has the same tree.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/disk.rs"]
mod disk;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use capture::{Format, Imported, RawDisk, Reflink, Target, import, materialize};
use disk::{noise, sparse};
use proptest::prelude::*;
use store::{ChunkStore, Domain, MemoryStore, NoSource};
use tokio::runtime::Runtime;
use types::Progress;
use volume::{BlockDevice, Durability, TreeBase, VolumeOptions, Volumes};

const MIB: usize = 1 << 20;

fn import_file(path: &Path, store: &Arc<dyn ChunkStore>) -> Imported {
    let raw = RawDisk::new(File::open(path).unwrap()).unwrap();
    import(&raw, store, Domain::OWN, &Progress::default()).unwrap()
}

fn write_out(device: &Arc<dyn BlockDevice>, path: &Path) {
    let target =
        Target::Path { path: path.into(), format: Format::Raw, compress: false, force: false, reflink: Reflink::Auto };
    let runtime = Runtime::new().unwrap();
    materialize(device, runtime.handle(), target, &Progress::default()).unwrap();
}

#[derive(Clone, Debug)]
enum Change {
    Write { sector: usize, sectors: usize },
    Zero { sector: usize, sectors: usize },
    Discard { sector: usize, sectors: usize },
}

fn change(sectors: usize) -> impl Strategy<Value = Change> {
    let range = (0..sectors, 1..700_usize).prop_map(move |(sector, length)| (sector, length.min(sectors - sector)));
    prop_oneof![
        3 => range.clone().prop_map(|(sector, sectors)| Change::Write { sector, sectors }),
        1 => range.clone().prop_map(|(sector, sectors)| Change::Zero { sector, sectors }),
        1 => range.prop_map(|(sector, sectors)| Change::Discard { sector, sectors }),
    ]
}

fn apply(device: &dyn BlockDevice, content: &mut [u8], change: &Change) {
    let bytes = |sector: usize, sectors: usize| sector * 512..(sector + sectors) * 512;
    match *change {
        Change::Write { sector, sectors } => {
            let data = noise(sector as u64 ^ 0x5555, sectors * 512);
            device.write(sector as u64 * 512, &data, Durability::Process).unwrap();
            content[bytes(sector, sectors)].copy_from_slice(&data);
        }
        Change::Zero { sector, sectors } => {
            device.write_zeroes(sector as u64 * 512, sectors as u64 * 512, Durability::Process).unwrap();
            content[bytes(sector, sectors)].fill(0);
        }
        Change::Discard { sector, sectors } => {
            device.discard(sector as u64 * 512, sectors as u64 * 512, Durability::Process).unwrap();
            content[bytes(sector, sectors)].fill(0);
        }
    }
}

const SECTORS: usize = 6 * MIB / 512 + 3;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_changed_clone_comes_out_as_it_is(
        data in proptest::collection::vec((0..SECTORS, 1_usize..2000), 0..5),
        changes in proptest::collection::vec(change(SECTORS), 0..12),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let [source, same, changed] = ["source", "same", "changed"].map(|name| directory.path().join(name));
        let data: Vec<_> = data.iter().map(|(at, length)| (at * 512, (*length).min(SECTORS - at) * 512)).collect();
        let mut content = sparse(&source, SECTORS * 512, &data);
        let store: Arc<dyn ChunkStore> = Arc::new(MemoryStore::new());
        let imported = import_file(&source, &store);
        let options = VolumeOptions::default();
        let volumes = Volumes::open(directory.path(), store.clone(), Arc::new(NoSource), options).unwrap();
        let base = TreeBase { root: imported.root, ..TreeBase::empty(imported.size_bytes, Domain::OWN) };

        let view: Arc<dyn BlockDevice> = volumes.view(base.clone());
        write_out(&view, &same);
        prop_assert!(std::fs::read(&same).unwrap() == content);
        prop_assert!(same.metadata().unwrap().blocks() <= source.metadata().unwrap().blocks() + 8);
        prop_assert_eq!(import_file(&same, &store).root, imported.root);

        let clone: Arc<dyn BlockDevice> = volumes.clone_tree(&"clone".parse().unwrap(), base).unwrap();
        for change in &changes {
            apply(clone.as_ref(), &mut content, change);
        }
        write_out(&clone, &changed);
        prop_assert!(std::fs::read(&changed).unwrap() == content);
    }
}

//! Volumes, snapshots and clones of the real engine behind the server: what one client writes, every other sees where
//! it should and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use store::{ChunkSource, ChunkStore, MemoryStore, NoSource, Wanted};
use tempfile::TempDir;
use types::Progress;
use volume::{BlockDevice, TreeBase, VolumeOptions, Volumes};

use crate::client::Server;
use crate::memory_disk::pattern;
use crate::tool::{installed, run};

const MIB: usize = 1 << 20;

fn volumes(directory: &TempDir, store: &Arc<MemoryStore>) -> Arc<Volumes> {
    let store = Arc::clone(store) as Arc<dyn ChunkStore>;
    Volumes::open(directory.path(), store, Arc::new(NoSource), VolumeOptions::default()).unwrap()
}

#[test]
fn a_snapshot_and_its_clone_do_not_see_later_writes() {
    let (directory, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
    let volumes = volumes(&directory, &store);
    let volume = volumes.create(&"vm".parse().unwrap(), 16 << 20).unwrap();
    let server = Server::of(&volume);
    let mut client = server.structured();
    assert_eq!(client.write(0, 0, &pattern(0, MIB)).error, 0);
    assert_eq!(client.write(0, 12_345, &[0xAB; 1]).error, 0);
    assert_eq!(client.ask(6, 0, 65_536, 4096, &[]).error, 0);
    let mut expected = pattern(0, MIB);
    expected[12_345] = 0xAB;
    expected[65_536..65_536 + 4096].fill(0);
    let frozen = volumes.freeze(&[Arc::clone(&volume)], |_| Vec::new()).unwrap().remove(0);
    assert_eq!(client.write(0, 0, &[9; 4096]).error, 0);
    let clone = volumes.clone_frozen(&"copy".parse().unwrap(), frozen.id()).unwrap();
    let (of_frozen, of_clone) = (Server::of(&frozen), Server::of(&clone));
    let (mut snapshot, mut copy) = (of_frozen.structured(), of_clone.simple());
    assert!(snapshot.read(0, 1 << 20) == expected, "the snapshot differs");
    assert_eq!(snapshot.write(0, 0, &[1; 512]).error, 1);
    assert!(copy.read(0, 1 << 20) == expected, "the clone differs");
    assert_eq!(copy.write(0, 4096, &[7; 512]).error, 0);
    assert_eq!(client.read(0, 4096), [9; 4096]);
    assert_eq!(client.read(4096, 512), pattern(4096, 512));
    // Sealing moves all that under the tree, and nobody notices.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(volumes.seal(frozen.id(), &Progress::default())).unwrap();
    assert!(snapshot.read(0, 1 << 20) == expected, "the sealed snapshot differs");
    assert_eq!(copy.read(4096, 512), [7; 512]);
    assert_eq!(copy.read(8192, 4096), expected[8192..12288]);
}

#[test]
fn what_was_flushed_is_there_after_a_restart() {
    let (directory, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
    {
        let volumes = volumes(&directory, &store);
        let volume = volumes.create(&"vm".parse().unwrap(), 16 << 20).unwrap();
        let mut server = Server::of(&volume);
        let mut client = server.structured();
        assert_eq!(client.write(0, 4096, &pattern(4096, 8192)).error, 0);
        assert_eq!(client.ask(3, 0, 0, 0, &[]).error, 0);
        server.stop(Duration::ZERO);
    }
    let volume = volumes(&directory, &store).get(&"vm".parse().unwrap()).unwrap();
    assert_eq!(Server::of(&volume).simple().read(4096, 8192), pattern(4096, 8192));
}

#[test]
fn a_volume_that_grew_can_be_written_behind_its_old_end() {
    let (directory, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
    let volumes = volumes(&directory, &store);
    let volume = volumes.create(&"vm".parse().unwrap(), 1 << 20).unwrap();
    let server = Server::of(&volume);
    let mut client = server.structured();
    assert_eq!(client.write(0, 1 << 20, &[1; 512]).error, 28);
    volumes.grow(&volume, 2 << 20).unwrap();
    assert_eq!(client.write(0, 1 << 20, &[1; 512]).error, 0);
    volumes.remove(&"vm".parse().unwrap()).unwrap();
    assert_eq!(client.ask(0, 0, 0, 512, &[]).error, 108);
}

/// Brings objects from another store as soon as they are asked for.
#[derive(Debug)]
struct Neighbour {
    from: Arc<MemoryStore>,
    to: Arc<MemoryStore>,
}

impl ChunkSource for Neighbour {
    fn fetch(
        &self,
        wanted: Wanted,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), store::FetchError>> + Send + 'static>> {
        let plain = self.from.get(&wanted.key, &wanted.domains).unwrap().expect("the neighbour has it");
        self.to.put(&wanted.key, wanted.domains.first(), &plain).unwrap();
        Box::pin(async { Ok(()) })
    }
}

#[test]
fn a_clone_whose_data_are_elsewhere_is_whole() {
    if !installed(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let (directory, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
    let source = volumes(&directory, &store);
    let volume = source.create(&"vm".parse().unwrap(), 16 << 20).unwrap();
    let mut expected = vec![0; 16 * MIB];
    expected[3 * MIB..9 * MIB].copy_from_slice(&pattern(3 * MIB, 6 * MIB));
    volume.write(3 << 20, &expected[3 * MIB..9 * MIB], volume::Durability::Process).unwrap();
    let frozen = source.freeze(&[volume], |_| Vec::new()).unwrap().remove(0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let base = runtime.block_on(source.seal(frozen.id(), &Progress::default())).unwrap();

    let (elsewhere, empty) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::new()));
    let neighbour = Neighbour { from: store, to: Arc::clone(&empty) };
    let to = Arc::clone(&empty) as Arc<dyn ChunkStore>;
    let target = Volumes::open(elsewhere.path(), to, Arc::new(neighbour), VolumeOptions::default()).unwrap();
    let origin = store::Origin { snapshot: types::SnapshotId([1; 32]), disk: 0 };
    let clone = target.clone_tree(&"copy".parse().unwrap(), TreeBase { origin: Some(origin), ..base }).unwrap();
    let server = Server::of(&clone);
    let mut client = server.structured();
    // In the middle of an absent sector.
    assert_eq!(client.write(0, (4 << 20) + 100, &[1; 5]).error, 0);
    expected[4 * MIB + 100..4 * MIB + 105].fill(1);
    run(elsewhere.path(), "nbdcopy", &["--connections=2", &server.uri(), "copy.raw"]).content();
    assert!(std::fs::read(elsewhere.path().join("copy.raw")).unwrap() == expected, "the clone differs");
    run(elsewhere.path(), "qemu-img", &["compare", "-f", "raw", "-F", "raw", &server.uri(), "copy.raw"]).content();
    assert_eq!(clone.missing().unwrap(), volume::Missing::default());
}

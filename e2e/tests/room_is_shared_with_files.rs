//! On XFS and btrfs an imported raw file and the store, and what is materialized, share their room; what becomes of one is
//! nothing to the others. Elsewhere they do not, and all is the same.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use e2e::{attach, read_disk, write_disk};
use testkit::{Disk, Node, World, wait};
use xtask::mounted::{FileSystem, Mounted};
use xtask::setup;

const MIB: u64 = 1 << 20;
const CHUNK: usize = 1 << 16;
/// The disk ends within a chunk, and within a block.
const SIZE: usize = (24 << 20) + 3 * 512;

/// A node whose directory is on a file system of its own. What is declared first goes first.
struct Place {
    node: Option<Node>,
    mounted: Mounted,
    world: World,
}

impl Place {
    /// Makes it, or says what is missing and returns nothing.
    fn new(kind: FileSystem) -> Result<Option<Self>> {
        if !e2e::can_mount_or_skip(kind) {
            return Ok(None);
        }
        let world = World::new(e2e::brant())?;
        let mounted = Mounted::make(kind, &world.path("image"), 512 * MIB, &world.path("mnt"))?;
        let mut place = Self { node: None, mounted, world };
        place.start()?;
        place.node().brant(&["bucket", "create", "vms"])?;
        Ok(Some(place))
    }

    fn start(&mut self) -> Result<()> {
        if let Some(node) = self.node.take() {
            node.kill()?;
        }
        self.node = Some(self.world.start_node_in("node", &self.path("node"))?);
        Ok(())
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("it is started")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mounted.directory().join(name)
    }

    /// Writes a disk to a file there.
    fn file(&self, disk: &Disk, name: &str) -> Result<String> {
        let path = self.path(name);
        disk.write_to(&path)?;
        Ok(path.to_str().context("a path of text")?.to_owned())
    }

    /// How much of the packs is shared.
    fn shared_in_packs(&self) -> Result<u64> {
        let packs = std::fs::read_dir(self.path("node/store/packs"))?;
        packs.map(|pack| shared_bytes(&pack?.path())).sum()
    }

    /// Materializes something, and returns what it said and the file, which has the disk in it.
    fn materialize(&self, what: &str, reflink: &str, expected: &Disk) -> Result<(String, PathBuf)> {
        let path = self.path("out.raw");
        let text = path.to_str().context("a path of text")?;
        let said = self.node().brant(&["materialize", what, text, "--force", "--reflink", reflink])?.stdout;
        let found = Disk::read_from(&path)?;
        ensure!(expected.first_difference(&found).is_none(), "{what} differs: {said}");
        Ok((said, path))
    }
}

/// How much of a file shares its room with others, as the kernel tells (FIEMAP).
fn shared_bytes(path: &Path) -> Result<u64> {
    let filefrag = setup::find("filefrag").context("filefrag")?;
    let output = Command::new(filefrag).args(["-v", "-b512"]).arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    let extents = text.lines().filter(|line| line.contains("shared"));
    let sectors =
        extents.map(|line| line.split(':').nth(3).context("a length")?.trim().parse::<u64>().context("a number"));
    Ok(sectors.sum::<Result<u64>>()? * 512)
}

/// The chunks of a disk that are whole and not zero, each once, in bytes.
fn data_bytes(disk: &Disk) -> u64 {
    let chunks: std::collections::BTreeSet<&[u8]> = disk.0.chunks_exact(CHUNK).collect();
    (chunks.iter().filter(|chunk| chunk.iter().any(|byte| *byte != 0)).count() * CHUNK) as u64
}

fn shares(kind: FileSystem) -> Result<()> {
    let Some(mut place) = Place::new(kind)? else { return Ok(()) };
    let disk = Disk::random(1, SIZE);
    let file = place.file(&disk, "disk.raw")?;
    let said = place.node().brant(&["import", &file, "vms/web", "--reflink", "always"])?.stdout;
    ensure!(said.contains("shared with the file"), "{said}");
    let data = data_bytes(&disk);
    ensure!(place.shared_in_packs()? >= data, "{} of {data} bytes are shared", place.shared_in_packs()?);

    // The file changes, is cut, and goes.
    let source = std::fs::File::options().write(true).open(&file)?;
    source.write_all_at(&vec![0xee; 20 << 20], 0)?;
    source.set_len(100)?;
    source.sync_all()?;
    std::fs::remove_file(&file)?;
    let (said, out) = place.materialize("vms/web", "always", &disk)?;
    ensure!(said.contains("shared with the store"), "{said}");
    ensure!(shared_bytes(&out)? >= data, "{} of {data} bytes are shared", shared_bytes(&out)?);
    std::fs::File::options().write(true).open(&out)?.write_all_at(&[0xdd; 3 << 20], 0)?;
    let (said, out) = place.materialize("vms/web", "never", &disk)?;
    ensure!(!said.contains("shared") && shared_bytes(&out)? == 0, "{said}");

    // A volume shares what was not written since; a crash costs nothing; nothing is damaged.
    place.node().brant(&["clone", "vms/web", "web1"])?;
    let mut written = disk.clone();
    written.0[5 << 20..][..70_000 / 512 * 512].fill(7);
    write_disk(&attach(place.node(), "web1")?, 5 << 20, &written.0[5 << 20..][..70_000 / 512 * 512])?;
    place.start()?;
    let (said, out) = place.materialize("web1", "auto", &written)?;
    ensure!(said.contains("shared with the store") && shared_bytes(&out)? >= data - 4 * CHUNK as u64, "{said}");
    let scrubbed = place.node().brant(&["store", "scrub"])?.stdout;
    ensure!(place.node().json(&["store", "show"])?["scrub"]["damaged"] == 0, "{scrubbed}");
    Ok(())
}

#[test]
fn import_and_materialize_share_room_on_xfs() -> Result<()> {
    shares(FileSystem::Xfs)
}

#[test]
fn import_and_materialize_share_room_on_btrfs() -> Result<()> {
    shares(FileSystem::Btrfs)
}

/// What a collection leaves, moved or in its place, is shared still, and what is dead gives its room back.
fn is_collected(kind: FileSystem) -> Result<()> {
    let Some(mut place) = Place::new(kind)? else { return Ok(()) };
    let (all, mut some) = (Disk::random(2, SIZE), Disk(vec![0; SIZE]));
    for (number, chunk) in all.0.chunks(CHUNK).enumerate().filter(|(number, _)| number % 5 == 0) {
        some.0[number * CHUNK..][..chunk.len()].copy_from_slice(chunk);
    }
    let (whole, part) = (place.file(&all, "all.raw")?, place.file(&some, "some.raw")?);
    place.node().brant(&["import", &whole, "vms/all"])?;
    let said = place.node().brant(&["import", &part, "vms/some"])?.stdout;
    ensure!(said.contains(" 0 new chunks"), "{said}");
    place.node().brant(&["snapshot", "retire", "vms/all@1"])?;
    let before = place.shared_in_packs()?;
    place.node().brant(&["store", "gc", "--grace", "0s"])?;
    let (after, data) = (place.shared_in_packs()?, data_bytes(&some));
    ensure!(after >= data && after < before / 2, "{after} of {data} bytes are shared, and {before} were");
    place.start()?;
    place.materialize("vms/some", "always", &some)?;
    let uri = attach(place.node(), "vms/some@1")?;
    ensure!(read_disk(&uri)? == some);
    Ok(())
}

#[test]
fn what_a_collection_leaves_stays_shared() -> Result<()> {
    is_collected(FileSystem::Xfs)?;
    is_collected(FileSystem::Btrfs)
}

/// The node is killed when packs have grown so long, in the midst of an import that shares.
fn is_sound_after_kills(kind: FileSystem) -> Result<()> {
    let Some(mut place) = Place::new(kind)? else { return Ok(()) };
    let disk = Disk::random(5, 96 << 20);
    let file = place.file(&disk, "disk.raw")?;
    for part in 1..6 {
        let mut import = place.node().begin(&["import", &file, "vms/web", "--reflink", "always"])?;
        let packs = place.path("node/store/packs");
        let grown = || -> Result<bool> {
            let lengths = std::fs::read_dir(&packs)?.map(|pack| Ok(pack?.metadata()?.len()));
            Ok(lengths.sum::<Result<u64>>()? >= part * 8 * MIB)
        };
        wait::until("the packs have grown, or the import has ended", || {
            Ok((grown()? || import.try_wait()?.is_some()).then_some(()))
        })?;
        place.start()?;
        import.wait()?;
        place.node().brant(&["store", "scrub"])?;
        ensure!(place.node().json(&["store", "show"])?["scrub"]["damaged"] == 0);
    }
    place.node().brant(&["import", &file, "vms/web", "--reflink", "always"])?;
    place.materialize("vms/web", "always", &disk).map(drop)
}

#[test]
fn a_node_that_is_killed_in_the_midst_leaves_a_sound_store() -> Result<()> {
    is_sound_after_kills(FileSystem::Xfs)?;
    is_sound_after_kills(FileSystem::Btrfs)
}

/// Imports a file that cannot share its room: copied by itself, refused where it must share.
fn is_copied(place: &Place, file: &str, object: &str, disk: &Disk, reason: &str) -> Result<()> {
    let path = format!("vms/{object}");
    let refused = place.node().try_brant(&["import", file, &path, "--reflink", "always"])?.failed_with(2)?;
    ensure!(refused.stderr.contains(reason) && refused.stderr.contains("--reflink auto"), "{}", refused.stderr);
    let said = place.node().brant(&["import", file, &path])?.stdout;
    ensure!(!said.contains("shared"), "{said}");
    place.materialize(&path, "auto", disk).map(drop)
}

#[test]
fn elsewhere_files_are_copied() -> Result<()> {
    let disk = Disk::random(3, 4 << 20);
    let cannot = "cannot share room";
    if let Some(place) = Place::new(FileSystem::Ext4)? {
        is_copied(&place, &place.file(&disk, "disk.raw")?, "web", &disk, cannot)?;
        let out = place.path("out.raw");
        let text = out.to_str().context("a path of text")?;
        let refused = &["materialize", "vms/web", text, "--force", "--reflink", "always"];
        place.node().try_brant(refused)?.failed_with(2)?;
    }
    if let Some(place) = Place::new(FileSystem::Xfs)? {
        // On another file system.
        let far = place.world.path("far.raw");
        disk.write_to(&far)?;
        is_copied(&place, far.to_str().context("a path of text")?, "far", &disk, cannot)?;
        let near = place.file(&Disk::random(4, 4 << 20), "near.raw")?;
        place.node().brant(&["import", &near, "vms/never", "--reflink", "never"])?;
        ensure!(place.shared_in_packs()? == 0);
        let refused = place.node().try_brant(&["import", "nbd://[::1]:1/", "vms/nbd", "--reflink", "always"])?;
        ensure!(refused.failed_with(2)?.stderr.contains("only raw files do"));
    }
    if let Some(place) = Place::new(FileSystem::Btrfs)? {
        // A file that is not to be copied on writes shares nothing with one that is.
        let path = place.path("nocow.raw");
        std::fs::File::create(&path)?;
        let chattr = setup::find("chattr").context("chattr")?;
        ensure!(Command::new(chattr).arg("+C").arg(&path).status()?.success());
        disk.write_to(&path)?;
        is_copied(&place, path.to_str().context("a path of text")?, "nocow", &disk, cannot)?;
    }
    Ok(())
}

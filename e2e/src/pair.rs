//! Two nodes and an Indexer as real processes, told what an operator would type.

use anyhow::{Context as _, Result};
use capture::{ForeignDisk as _, NbdDisk, NbdOptions, NbdUri};
use serde_json::Value;
use testkit::world::Indexer;
use testkit::{Disk, Node, World, wait};

/// How much is read or written at once, in bytes.
const PIECE: usize = 1 << 20;

/// Alice's node A and Bob's node B, with accounts at one Indexer, and a bucket `vms` at A.
#[derive(Debug)]
pub struct Pair {
    /// Alice's node.
    pub a: Node,
    /// Bob's node.
    pub b: Node,
    /// Their Indexer.
    pub indexer: Indexer,
    /// Where they live.
    pub world: World,
}

impl Pair {
    /// Starts everything.
    ///
    /// # Errors
    /// When something does not start.
    pub fn new() -> Result<Self> {
        let world = World::new(crate::brant())?;
        let indexer = world.start_indexer(0)?;
        let (alice, bob) = (world.add_account("alice")?, world.add_account("bob")?);
        let (a, b) = (world.start_node("a")?, world.start_node("b")?);
        a.login(&indexer, &alice)?;
        b.login(&indexer, &bob)?;
        a.brant(&["bucket", "create", "vms"])?;
        Ok(Self { a, b, indexer, world })
    }

    /// A reference at the Indexer.
    #[must_use]
    pub fn reference(&self, account: &str, name: &str) -> String {
        format!("{}/{account}/{name}", self.indexer.authority)
    }

    /// Writes a disk to a file of the world.
    ///
    /// # Errors
    /// When there is no room.
    pub fn file(&self, disk: &Disk, name: &str) -> Result<String> {
        let path = self.world.path(name);
        disk.write_to(&path)?;
        Ok(path.to_str().context("a path of text")?.to_owned())
    }

    /// Imports a disk at A.
    ///
    /// # Errors
    /// When that fails.
    pub fn import(&self, disk: &Disk, object: &str) -> Result<()> {
        let file = self.file(disk, &format!("{object}.raw"))?;
        self.a.brant(&["import", &file, &format!("vms/{object}")]).map(drop)
    }

    /// Imports a disk at A, publishes the bucket, and lets Bob read it.
    ///
    /// # Errors
    /// When that fails.
    pub fn import_and_publish(&self, disk: &Disk, object: &str) -> Result<()> {
        self.import(disk, object)?;
        self.a.brant(&["publish", "vms", &self.reference("alice", "vms")])?;
        self.grant(&self.a, "vms", "bob")
    }

    /// Lets an account read a bucket.
    ///
    /// # Errors
    /// When that fails.
    pub fn grant(&self, node: &Node, bucket: &str, account: &str) -> Result<()> {
        node.brant(&["bucket", "grant", bucket, &format!("account:{}/{account}", self.indexer.authority)]).map(drop)
    }

    /// Subscribes B to A's bucket, as soon as the grant has reached the Indexer.
    ///
    /// # Errors
    /// When it never has.
    pub fn subscribe(&self, node: &Node, reference: &str, policy: &str) -> Result<()> {
        wait::until("the reference may be read", || {
            let output = node.try_brant(&["subscribe", reference, "--policy", policy])?;
            Ok((output.code == 0).then_some(()))
        })
    }

    /// Clones the latest version of a bucket's object, as soon as the bucket's log has it.
    ///
    /// # Errors
    /// When it never has.
    pub fn clone_when_there(&self, node: &Node, object: &str, volume: &str) -> Result<()> {
        wait::until("the version is there", || {
            let output = node.try_brant(&["clone", object, volume])?;
            Ok((output.code == 0).then_some(()))
        })
    }

    /// The whole way from a disk at A to a volume at B.
    ///
    /// # Errors
    /// When any step fails.
    pub fn clone_at_b(&self, disk: &Disk, volume: &str) -> Result<()> {
        self.import_and_publish(disk, "disk")?;
        self.subscribe(&self.b, &self.reference("alice", "vms"), "lazy")?;
        self.clone_when_there(&self.b, "vms/disk", volume)
    }
}

/// Attaches a volume or snapshot and returns its URI.
///
/// # Errors
/// When that fails.
pub fn attach(node: &Node, target: &str) -> Result<String> {
    let attachment = node.json(&["attach", target])?;
    Ok(attachment["uri"].as_str().context("a URI")?.to_owned())
}

/// What came from peers, in bytes, since the node started.
///
/// # Errors
/// When the node does not answer.
pub fn received(node: &Node) -> Result<u64> {
    node.json(&["status"])?["swarm"]["received_bytes"].as_u64().context("a number of bytes")
}

/// Whether a `missing` says that all is here.
#[must_use]
pub fn nothing_missing(missing: &Value) -> bool {
    missing["chunks"] == 0 && missing["nodes"] == 0
}

/// A client of an NBD export.
///
/// # Errors
/// When it cannot be connected to.
pub fn connect(uri: &str) -> Result<NbdDisk> {
    Ok(NbdDisk::connect(&uri.parse::<NbdUri>()?, &NbdOptions::default())?)
}

/// Reads a whole disk over NBD.
///
/// # Errors
/// When a read fails.
pub fn read_disk(uri: &str) -> Result<Disk> {
    let client = connect(uri)?;
    let mut bytes = vec![0; usize::try_from(client.size_bytes())?];
    for (number, piece) in bytes.chunks_mut(PIECE).enumerate() {
        client.read_at((number * PIECE) as u64, piece)?;
    }
    Ok(Disk(bytes))
}

/// Writes bytes over NBD, and flushes them.
///
/// # Errors
/// When a write fails.
pub fn write_disk(uri: &str, offset: u64, bytes: &[u8]) -> Result<()> {
    let client = connect(uri)?;
    client.write_at(offset, bytes)?;
    client.flush()?;
    Ok(())
}

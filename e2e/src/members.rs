//! Two nodes of one operator, which are members of one cluster.

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context as _, Result};
use testkit::{Node, World, wait};

/// The members A and B.
#[derive(Debug)]
pub struct Members {
    /// One node.
    pub a: Node,
    /// The other.
    pub b: Node,
    /// Where they live.
    pub site: Site,
}

/// Where they live, and where they are reached.
#[derive(Debug)]
pub struct Site {
    world: World,
    addresses: [SocketAddr; 2],
}

/// An address of this machine that nobody has.
fn free_address() -> Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

impl Members {
    /// Starts both, and makes each a member for the other.
    ///
    /// # Errors
    /// When something does not start.
    pub fn new() -> Result<Self> {
        let addresses = [free_address()?, free_address()?];
        let site = Site { world: World::new(crate::brant())?, addresses };
        let members = Self { a: site.start_a()?, b: site.start_b()?, site };
        members.a.brant(&["cluster", "add", "b", &endpoint(&members.b)?, &addresses[1].to_string()])?;
        members.b.brant(&["cluster", "add", "a", &endpoint(&members.a)?, &addresses[0].to_string()])?;
        Ok(members)
    }
}

impl Site {
    /// Starts A, also after it was killed.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_a(&self) -> Result<Node> {
        self.world.start_node_at("a", &self.world.path("a"), self.addresses[0])
    }

    /// Starts B, also after it was killed.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_b(&self) -> Result<Node> {
        self.world.start_node_at("b", &self.world.path("b"), self.addresses[1])
    }
}

fn endpoint(node: &Node) -> Result<String> {
    Ok(node.json(&["cluster", "show"])?["endpoint"].as_str().context("an endpoint")?.to_owned())
}

/// Whether a volume is at a node.
///
/// # Errors
/// When the node does not answer.
pub fn has(node: &Node, volume: &str) -> Result<bool> {
    let volumes = node.json(&["volume", "list"])?;
    Ok(volumes.as_array().context("a list")?.iter().any(|found| found["name"] == volume))
}

/// Waits until a volume has come to a node, and nothing of it is missing.
///
/// # Errors
/// When that does not happen in time.
pub fn wait_until_taken(node: &Node, volume: &str) -> Result<()> {
    wait::until("the volume has come", || {
        let tasks = node.json(&["task", "list"])?;
        let tasks = tasks.as_array().context("a list")?;
        let running = tasks.iter().any(|task| task["kind"] == "take" && task["state"] == "running");
        Ok((!running && has(node, volume)?).then_some(()))
    })
}

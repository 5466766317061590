//! Nodes of one operator, which are members of one cluster: two, or three.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;

use anyhow::{Context as _, Result};
use testkit::{Node, World, wait};

use crate::islands::Islands;

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
    addresses: [SocketAddr; 3],
    /// What keeps them apart, if anything does.
    pub islands: Option<Islands>,
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
        let addresses = [free_address()?, free_address()?, free_address()?];
        let site = Site { world: World::new(crate::brant())?, addresses, islands: None };
        Self::start(site)
    }

    /// The same, each in a network of its own that can be cut off.
    ///
    /// # Errors
    /// When something does not start.
    pub fn on_islands() -> Result<Self> {
        let addresses = [0, 1, 2].map(|place| SocketAddr::from((Islands::address(place), PORT)));
        let site = Site { world: World::new(crate::brant())?, addresses, islands: None };
        let islands = Islands::new(&site.world.path("islands.log"))?;
        Self::start(Site { islands: Some(islands), ..site })
    }

    fn start(site: Site) -> Result<Self> {
        let members = Self { a: site.start_a()?, b: site.start_b()?, site };
        members.site.acquaint([("a", 0, &members.a), ("b", 1, &members.b)])?;
        Ok(members)
    }

    /// Starts a third member.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start_c(&self) -> Result<Node> {
        let c = self.site.start_c()?;
        self.site.acquaint([("a", 0, &self.a), ("c", 2, &c)])?;
        self.site.acquaint([("b", 1, &self.b), ("c", 2, &c)])?;
        Ok(c)
    }
}

/// The port of every member that has an address of its own.
const PORT: u16 = 4077;

impl Site {
    /// Starts A, also after it was killed.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_a(&self) -> Result<Node> {
        self.start_at("a", 0)
    }

    fn start_at(&self, name: &str, place: usize) -> Result<Node> {
        let (directory, address) = (self.world.path(name), self.addresses[place]);
        match &self.islands {
            Some(islands) => {
                let command = islands.command(place, self.world.program());
                self.world.start_node_by(command, name, &directory, address)
            }
            None => self.world.start_node_by(Command::new(self.world.program()), name, &directory, address),
        }
    }

    /// Makes each of two a member for the other.
    fn acquaint(&self, [left, right]: [(&str, usize, &Node); 2]) -> Result<()> {
        for ((_, _, at), (name, place, other)) in [(left, right), (right, left)] {
            at.brant(&["cluster", "add", name, &endpoint(other)?, &self.addresses[place].to_string()])?;
        }
        Ok(())
    }

    /// Starts C, also after it was killed.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_c(&self) -> Result<Node> {
        self.start_at("c", 2)
    }

    /// Starts B, also after it was killed.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_b(&self) -> Result<Node> {
        self.start_at("b", 1)
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

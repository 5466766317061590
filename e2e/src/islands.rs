//! Three networks on one switch, each with a line to it that can be cut. Nothing else is on it.
//!
//! Invariant: each lives as long as a process of its own, which ends with the test.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use testkit::Service;
use xtask::process::run_apart;
use xtask::setup;
use xtask::tally::SKIP_MARK;

/// How long a command of the system's may take.
const SYSTEM_LIMIT: Duration = Duration::from_secs(20);

/// Whether networks can be made here; says what is missing where they cannot.
#[must_use]
pub fn can_have_islands_or_skip() -> bool {
    let made = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link add br0 type bridge && ip link add one type veth peer name two"]);
        run_apart(&mut command, SYSTEM_LIMIT).is_ok_and(|outcome| outcome.status.success())
    };
    let can = setup::is_root() && made();
    if !can {
        crate::say(&format!("{SKIP_MARK}networks that are cut off: it needs root, and namespaces with bridges"));
    }
    can
}

/// Three networks.
#[derive(Debug)]
pub struct Islands {
    switch: Service,
    networks: Vec<Service>,
}

/// A process that keeps a network.
fn network(name: &str, begin: &str, log: &Path) -> Result<Service> {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &format!("ip link set lo up && {begin} && echo ready && exec sleep 1800")]);
    Service::start(name, &mut command, "ready", log)
}

/// Runs `ip` in the network of a process, which succeeds.
fn ip(process: u32, line: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.args(["--target", &process.to_string(), "--net", "--", "ip"]).args(line.split(' '));
    let outcome = run_apart(&mut command, SYSTEM_LIMIT)?;
    ensure!(outcome.status.success(), "{command:?} failed:\n{}{}", outcome.output, outcome.errors);
    Ok(())
}

impl Islands {
    /// The address of a network.
    #[must_use]
    pub fn address(place: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, u8::try_from(place + 1).unwrap_or(u8::MAX))
    }

    /// Makes them.
    ///
    /// # Errors
    /// Where the system does not let us.
    pub fn new(log: &Path) -> Result<Self> {
        let switch = network("the switch", "ip link add br0 type bridge && ip link set br0 up", log)?;
        let mut islands = Self { switch, networks: Vec::new() };
        for place in 0..3 {
            let island = network("a network", "true", log)?;
            let hub = islands.switch.id();
            ip(hub, &format!("link add port{place} type veth peer name eth0 netns {}", island.id()))?;
            ip(hub, &format!("link set port{place} master br0 up"))?;
            ip(island.id(), &format!("addr add {}/24 dev eth0", Self::address(place)))?;
            ip(island.id(), "link set eth0 up")?;
            islands.networks.push(island);
        }
        Ok(islands)
    }

    /// A command that runs a program in a network.
    #[must_use]
    pub fn command(&self, place: usize, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.networks[place].id().to_string(), "--net", "--"]).arg(program);
        command
    }

    /// Cuts a network off from the others.
    ///
    /// # Errors
    /// Where that fails.
    pub fn cut(&self, place: usize) -> Result<()> {
        ip(self.switch.id(), &format!("link set port{place} down"))
    }

    /// Connects it again.
    ///
    /// # Errors
    /// Where that fails.
    pub fn mend(&self, place: usize) -> Result<()> {
        ip(self.switch.id(), &format!("link set port{place} up"))
    }
}

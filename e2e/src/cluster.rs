//! Real Ganeti clusters on one machine: each node in namespaces of its own, with a brant node of its own in it, and all of
//! them on one switch, which reaches nothing else.
//!
//! Invariants: everything that is started is below one process for each node and one for the switch, which end with the
//! test however that ends; nothing outside the world's directory is written, and the host's own Ganeti, if it has one, sees
//! nothing of it.

mod moving;
mod node;

use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
pub use moving::JobEnd;
pub use node::{ClusterNode, Listener, Printed};
use testkit::world::Indexer;
use testkit::{Service, World, wait};
use xtask::images::Kernel;
use xtask::process::run_apart;
use xtask::setup;
use xtask::tally::SKIP_MARK;

/// The switch's own address, where the Indexer listens.
const SWITCH: &str = "10.77.0.1";

/// 128 MiB and two pages. QEMU before 9.0 loses pages that an emulated processor writes while memory moves, where that is a
/// multiple of 256 KiB, and the guest crashes at the target, whatever its disks are ("physmem: Fix migration dirty bitmap
/// coherency with TCG memory access", March 2024): otherwise it looks at each page by itself, and loses none. Ganeti reads
/// a number behind each `-m`.
const GUEST_MEMORY: &str = "--m 131080k";

/// How long a command of the system's may take.
const SYSTEM_LIMIT: Duration = Duration::from_secs(20);

/// Whether a Ganeti cluster can be run here; says what is missing where it cannot.
#[must_use]
pub fn can_run_ganeti_or_skip() -> bool {
    let mut reasons = Vec::new();
    if !setup::is_root() {
        reasons.push("it needs root, for namespaces".to_owned());
    }
    let absent = setup::missing(&setup::GANETI);
    if !absent.is_empty() {
        reasons.push(format!("missing: {}", setup::describe(&absent)));
    }
    if reasons.is_empty() && !namespaces_work() {
        reasons.push("namespaces cannot be made here, or overlayfs is not there".to_owned());
    }
    if !reasons.is_empty() {
        crate::say(&format!("{SKIP_MARK}Ganeti: {}", reasons.join("; ")));
    }
    reasons.is_empty()
}

fn namespaces_work() -> bool {
    let script = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/a /mnt/b && \
        mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/a,workdir=/mnt/b /etc && ip link add br0 type bridge && \
        ip link add one type veth peer name two";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "sh", "-c", script]);
    run_apart(&mut command, SYSTEM_LIMIT).is_ok_and(|outcome| outcome.status.success())
}

/// Runs a program on the host, which succeeds.
fn run(command: &mut Command) -> Result<()> {
    let outcome = run_apart(command, SYSTEM_LIMIT)?;
    ensure!(outcome.status.success(), "{command:?} failed:\n{}{}", outcome.output, outcome.errors);
    Ok(())
}

/// Runs `ip` in the network of a process, which succeeds. Processes are numbered as on the host.
fn ip(process: u32, line: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.args(["--target", &process.to_string(), "--net", "--", "ip"]).args(line.split(' '));
    run(&mut command)
}

/// What connects nodes with each other and with the Indexer, and with nothing else.
#[derive(Debug)]
pub struct Switch {
    process: Service,
    keys: PathBuf,
}

impl Switch {
    /// Makes a switch in a network of its own, and the keys by which all nodes know each other.
    ///
    /// # Errors
    /// When that is not allowed.
    pub fn new(world: &World) -> Result<Self> {
        let keys = world.path("keys");
        std::fs::create_dir(&keys)?;
        for name in ["id_rsa", "host"] {
            let mut command = Command::new("ssh-keygen");
            run(command.args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-C", "test", "-f"]).arg(keys.join(name)))?;
        }
        let script = format!(
            "ip link set lo up && ip link add sw0 type bridge && ip link set sw0 up && ip addr add {SWITCH}/16 dev sw0 && \
             echo 'switch ready' && exec sleep infinity"
        );
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", &script]);
        let process = Service::start("the switch", &mut command, "switch ready", &world.path("switch.log"))?;
        Ok(Self { process, keys })
    }

    /// Starts the world's Indexer, which all nodes can reach. They log in at `http://` and its authority.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_indexer(&self, world: &World) -> Result<Indexer> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.process.id().to_string(), "--net", "--"]).arg(crate::brant());
        world.start_indexer_by(command, &format!("{SWITCH}:7070"), &["--insecure-listen"])
    }

    /// Connects a node's network to the switch.
    fn connect(&self, init: u32, address: &Address) -> Result<()> {
        let (switch, port) = (self.process.id(), format!("c{}n{}", address.cluster, address.number));
        ip(init, &format!("link add eth0 type veth peer name {port} netns {switch}"))?;
        ip(switch, &format!("link set {port} master sw0 up"))?;
        ip(init, "link set eth0 master br0 up")
    }

    /// Takes a node's network away, at once.
    fn disconnect(&self, address: &Address) -> Result<()> {
        let (switch, port) = (self.process.id(), format!("c{}n{}", address.cluster, address.number));
        wait::until("the port is gone", || {
            // With the node's own network it goes by itself, a moment later.
            let _ = ip(switch, &format!("link del {port}"));
            Ok(ip(switch, &format!("link show {port}")).is_err().then_some(()))
        })
    }
}

/// What a node is called, and where it is.
#[derive(Clone, Copy, Debug)]
struct Address {
    cluster: usize,
    number: usize,
}

impl Address {
    fn name(self) -> String {
        format!("node{}.cluster{}.test", self.number, self.cluster)
    }

    fn ip(self) -> String {
        format!("10.77.{}.{}", self.cluster, 10 + self.number)
    }

    /// Where the node's brant is reached by others.
    fn brant(self) -> String {
        format!("{}:4701", self.ip())
    }
}

/// A Ganeti cluster. What Ganeti is told, its first node is told, which is the master.
#[derive(Debug)]
pub struct Cluster {
    /// All nodes, the master first.
    pub nodes: Vec<ClusterNode>,
}

impl Deref for Cluster {
    type Target = ClusterNode;

    fn deref(&self) -> &ClusterNode {
        &self.nodes[0]
    }
}

impl Cluster {
    /// Brings up the cluster of a number, from 1, with nodes `nodeN.clusterM.test`, for guests that run a kernel. At each
    /// node there is a brant node with the provider, a member of one cluster with the others, and the operating system `marked`.
    ///
    /// # Errors
    /// When something of it does not come up.
    pub fn up(world: &World, switch: &Switch, number: usize, nodes: usize, kernel: &Kernel) -> Result<Self> {
        let addresses: Vec<_> = (1..=nodes).map(|node| Address { cluster: number, number: node }).collect();
        let start = |address: &Address| ClusterNode::start(world, switch, *address, nodes);
        let nodes = std::thread::scope(|scope| {
            let starting: Vec<_> = addresses.iter().map(|address| scope.spawn(move || start(address))).collect();
            let started = starting.into_iter().map(|thread| thread.join().expect("a thread that does not panic"));
            started.collect::<Result<Vec<_>>>()
        })?;
        ensure!(!nodes.is_empty(), "a cluster has a node");
        let cluster = Self { nodes };
        cluster.init(number, kernel)?;
        for node in &cluster.nodes[1..] {
            cluster.gnt(&format!("gnt-node add --no-ssh-key-check {}", node.name()))?;
        }
        cluster.know_each_other()?;
        cluster.await_online()?;
        Ok(cluster)
    }

    fn init(&self, number: usize, kernel: &Kernel) -> Result<()> {
        let hypervisor = format!(
            "--hypervisor-parameters=kvm:kvm_path=/usr/bin/qemu-system-x86_64,kvm_flag=disabled,kernel_path={},initrd_path={},\
             root_path=/dev/ram0,serial_console=true,vnc_bind_address=,kvm_extra={GUEST_MEMORY}",
            kernel.kernel.display(),
            kernel.initrd.display()
        );
        let bounds = "min:memory-size=64,cpu-count=1,disk-count=0,disk-size=1,nic-count=0,spindle-use=1/\
            max:memory-size=4096,cpu-count=4,disk-count=8,disk-size=1048576,nic-count=8,spindle-use=12";
        let line = format!(
            "gnt-cluster init --enabled-hypervisors=kvm --enabled-disk-templates=ext,diskless \
             --ipolicy-disk-templates=ext,diskless --no-etc-hosts --no-ssh-init --master-netdev=br0 \
             --nic-parameters=mode=bridged,link=br0 --backend-parameters=minmem=128,maxmem=128,vcpus=1 \
             --ipolicy-bounds-specs={bounds}"
        );
        let words = line.split_whitespace().map(str::to_owned);
        self.succeed(&words.chain([hypervisor, format!("cluster{number}.test")]).collect::<Vec<_>>()).map(drop)
    }

    /// Makes the brant nodes members of one cluster.
    fn know_each_other(&self) -> Result<()> {
        let mut pairs = self.nodes.iter().enumerate().flat_map(|(place, node)| {
            let others = self.nodes.iter().enumerate().filter(move |(other, _)| *other != place);
            others.map(move |(_, other)| (node, other))
        });
        pairs.try_for_each(|(node, other)| node.add_member(other))
    }

    /// Logs every node's brant in at an Indexer with a token.
    ///
    /// # Errors
    /// When the Indexer does not accept it.
    pub fn login(&self, indexer: &Indexer, token: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.login(indexer, token))
    }

    /// Stops an instance and looks whether all records are there, at a node; the guest goes on with further ones.
    ///
    /// # Errors
    /// When some are missing, or Ganeti cannot.
    pub fn has_kept(&self, node: &ClusterNode, instance: &str, promised: u64) -> Result<()> {
        self.gnt(&format!("gnt-instance stop --timeout=2 {instance}"))?;
        self.starts_with(node, instance, promised)
    }

    /// Starts an instance, at a node, whose guest looks whether all records are there, and goes on with further ones.
    ///
    /// # Errors
    /// When some are missing, or Ganeti cannot.
    pub fn starts_with(&self, node: &ClusterNode, instance: &str, promised: u64) -> Result<()> {
        let started = self.start_instance(instance, "brant.check brant.records=100000");
        started.with_context(|| format!("{} says:\n{}", node.name(), node.log()))?;
        let said = node.console(instance, "BRANT records")?;
        let kept: u64 = said.rsplit(' ').next().context("a number")?.parse()?;
        ensure!(kept >= promised, "{promised} records were durable, {kept} are there");
        Ok(())
    }

    /// Waits until the master finds all nodes online.
    ///
    /// # Errors
    /// When it does not.
    pub fn await_online(&self) -> Result<()> {
        wait::until("all nodes are online", || {
            let listed = self.gnt("gnt-node list --no-headers --separator=: -o name,mfree,offline")?;
            let online = listed.lines().filter(|line| line.ends_with(":N") && !line.contains('?')).count();
            Ok((online == self.nodes.len()).then_some(()))
        })
    }
}

/// The process that another one has started.
fn only_child(parent: u32) -> Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    children.split_whitespace().next().and_then(|id| id.parse().ok()).context("it has a child")
}

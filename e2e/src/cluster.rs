//! A real Ganeti cluster on one machine: each node in namespaces of its own, with a brant node of its own in it.
//!
//! Invariants: everything that is started is below one process for each node, which ends with the test however that
//! ends; nothing outside the world's directory is written, and the host's own Ganeti, if it has one, sees nothing of it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use testkit::{Service, World};
use xtask::images::Kernel;
use xtask::process::run_apart;
use xtask::setup;
use xtask::tally::SKIP_MARK;

/// How long one command of Ganeti's may take.
const COMMAND_LIMIT: Duration = Duration::from_mins(4);

/// How long a guest may take to say something.
const GUEST_LIMIT: Duration = Duration::from_mins(2);

/// What a program printed, and whether it ended well.
#[derive(Debug)]
pub struct Printed {
    /// Whether its exit code was 0.
    pub success: bool,
    /// On standard output.
    pub stdout: String,
    /// On standard error.
    pub stderr: String,
}

impl Printed {
    /// Both, for searching.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A node of the cluster.
#[derive(Debug)]
pub struct ClusterNode {
    /// `nsenter`, whose child is the brant node; that one ends with the namespaces at the latest.
    brant: Option<Service>,
    _namespaces: Service,
    /// The first process in the namespaces, as the host numbers it.
    init: u32,
    number: u32,
    directory: PathBuf,
    program: PathBuf,
}

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
        mount -t overlay overlay -o lowerdir=/etc,upperdir=/mnt/a,workdir=/mnt/b /etc && ip link add br0 type bridge";
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "sh", "-c", script]);
    run_apart(&mut command, Duration::from_secs(20)).is_ok_and(|outcome| outcome.status.success())
}

impl ClusterNode {
    /// Makes a node: its namespaces, and a brant node in them that has the provider installed.
    ///
    /// # Errors
    /// When something of it does not start.
    pub fn start(world: &World, number: u32) -> Result<Self> {
        let directory = world.path(&format!("ganeti-{number}"));
        std::fs::create_dir_all(&directory)?;
        let assets = xtask::workspace::root().join("e2e/ganeti");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(assets.join("node.sh")).arg(number.to_string()).arg(&directory);
        let name = format!("Ganeti node {number}");
        let namespaces = Service::start(&name, &mut command, "node ready", &directory.join("node.log"))?;
        let init = only_child(namespaces.id())?;
        let program = crate::brant();
        let mut node = Self { brant: None, _namespaces: namespaces, init, number, directory, program };
        node.start_brant()?;
        node.succeed(&node.brant_command(&["ganeti", "install"]))?;
        Ok(node)
    }

    /// Starts the brant node, which stands for what systemd does.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_brant(&mut self) -> Result<()> {
        let directory = self.brant_directory();
        let program = self.program.to_string_lossy().into_owned();
        let mut command = self.entered(&[&program, "node", "serve", "--bind", "127.0.0.1:0", "--dir", &directory]);
        let log = self.directory.join("brant.log");
        self.brant = Some(Service::start("brant at a Ganeti node", &mut command, "brant node ready:", &log)?);
        Ok(())
    }

    /// Kills the brant node.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill_brant(&mut self) -> Result<()> {
        let Some(mut nsenter) = self.brant.take() else { return Ok(()) };
        let killed = Command::new("kill").arg("-KILL").arg(only_child(nsenter.id())?.to_string()).status()?;
        ensure!(killed.success(), "brant was not there");
        nsenter.kill()
    }

    fn brant_directory(&self) -> String {
        self.directory.join("brant").to_string_lossy().into_owned()
    }

    fn brant_command(&self, arguments: &[&str]) -> Vec<String> {
        let own = [self.program.to_string_lossy().into_owned()];
        let node = ["--node".to_owned(), self.brant_directory()];
        own.into_iter().chain(arguments.iter().map(|word| (*word).to_owned())).chain(node).collect()
    }

    fn entered(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--mount", "--pid", "--uts", "--ipc", "--"]);
        command.args(["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        command.args(["HOME=/root", "LANG=C.UTF-8", "TERM=dumb"]).args(words).current_dir("/");
        command
    }

    /// Runs a program in the node.
    ///
    /// # Errors
    /// When it cannot be run, or takes too long.
    pub fn run(&self, words: &[&str]) -> Result<Printed> {
        let outcome = run_apart(&mut self.entered(words), COMMAND_LIMIT)?;
        Ok(Printed { success: outcome.status.success(), stdout: outcome.output, stderr: outcome.errors })
    }

    fn succeed(&self, words: &[String]) -> Result<String> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let printed = self.run(&words)?;
        if printed.success {
            return Ok(printed.stdout);
        }
        let brant = std::fs::read_to_string(self.directory.join("brant.log")).unwrap_or_default();
        bail!("{} failed:\n{}\nbrant's log:\n{brant}", words.join(" "), printed.all())
    }

    /// Runs a command line of Ganeti's in the node, split at spaces, which succeeds; returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn gnt(&self, line: &str) -> Result<String> {
        self.succeed(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    /// Runs a command line of Ganeti's in the node that fails; returns what it printed.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn gnt_fails(&self, line: &str) -> Result<String> {
        let printed = self.run(&line.split_whitespace().collect::<Vec<_>>())?;
        if printed.success {
            bail!("{line} succeeded:\n{}", printed.all());
        }
        Ok(printed.all())
    }

    /// Starts an instance, whose guest is given orders on its kernel's command line.
    ///
    /// # Errors
    /// When Ganeti cannot.
    pub fn start_instance(&self, instance: &str, orders: &str) -> Result<()> {
        let arguments = format!("kernel_args=console=ttyS0 panic=-1 quiet {orders}");
        self.succeed(&["gnt-instance", "start", "-H", &arguments, instance].map(str::to_owned)).map(drop)
    }

    /// Runs `brant` in the node.
    ///
    /// # Errors
    /// When it fails.
    pub fn brant(&self, arguments: &[&str]) -> Result<String> {
        self.succeed(&self.brant_command(arguments))
    }

    /// Runs `brant` in the node and reads its `--json`.
    ///
    /// # Errors
    /// When it fails.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let printed = self.brant(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&printed).with_context(|| format!("not JSON: {printed}"))
    }

    /// A path of the node's, as the host sees it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.init)).join(path.trim_start_matches('/'))
    }

    /// The names of the volumes that an instance has here.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn volumes_of(&self, instance: &str) -> Result<Vec<String>> {
        let volumes = self.json(&["volume", "list"])?;
        let all = volumes.as_array().context("a list")?.iter();
        let own = all.filter(|volume| volume["labels"]["ganeti.instance"] == instance);
        own.map(|volume| Ok(volume["name"].as_str().context("a name")?.to_owned())).collect()
    }

    /// A client of a disk that is attached.
    ///
    /// # Errors
    /// When it is not.
    pub fn connect(&self, volume: &str) -> Result<capture::NbdDisk> {
        let attachments = self.json(&["attach"])?;
        let mut all = attachments.as_array().context("a list")?.iter();
        let found = all.find(|attachment| attachment["target"] == volume).context("it is attached")?;
        let socket = found["socket"].as_str().context("a socket")?;
        // Only what is below /run differs from what the host has there; a longer path would not fit a socket's address.
        let socket = if socket.starts_with("/run") { self.path(socket) } else { socket.into() };
        crate::connect(&format!("nbd+unix:///?socket={}", socket.display()))
    }

    /// Makes a cluster of this node alone, for guests that run a kernel.
    ///
    /// # Errors
    /// When Ganeti does not come up.
    pub fn make_cluster(&self, kernel: &Kernel) -> Result<()> {
        let hypervisor = format!(
            "kvm:kvm_path=/usr/bin/qemu-system-x86_64,kvm_flag=disabled,kernel_path={},initrd_path={},root_path=/dev/ram0,\
             serial_console=true,vnc_bind_address=",
            kernel.kernel.display(),
            kernel.initrd.display()
        );
        let bounds = "min:memory-size=64,cpu-count=1,disk-count=0,disk-size=1,nic-count=0,spindle-use=1/\
            max:memory-size=4096,cpu-count=4,disk-count=8,disk-size=1048576,nic-count=8,spindle-use=12";
        self.gnt(&format!(
            "gnt-cluster init --enabled-hypervisors=kvm --enabled-disk-templates=ext,diskless \
             --ipolicy-disk-templates=ext,diskless --no-etc-hosts --no-ssh-init --master-netdev=br0 \
             --nic-parameters=mode=bridged,link=br0 --hypervisor-parameters={hypervisor} \
             --backend-parameters=minmem=128,maxmem=128,vcpus=1 --ipolicy-bounds-specs={bounds} cluster.brant.test"
        ))
        .map(drop)
    }

    /// Reads what a guest says on its console from now on, up to a line that contains a text; returns that line.
    ///
    /// # Errors
    /// When it does not say it in time; quotes what it said.
    pub fn console(&self, instance: &str, text: &str) -> Result<String> {
        let path = self.path(&format!("/run/ganeti/kvm-hypervisor/ctrl/{instance}.serial"));
        let stream = testkit::wait::until("the guest has a console", || Ok(UnixStream::connect(&path).ok()))?;
        stream.set_read_timeout(Some(GUEST_LIMIT))?;
        let mut said = String::new();
        for line in BufReader::new(stream).split(b'\n') {
            let line = line.with_context(|| format!("{instance} did not say {text:?}, but:\n{said}"))?;
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            if line.contains(text) {
                return Ok(line);
            }
            said.push_str(&line);
            said.push('\n');
        }
        bail!("{instance} did not say {text:?}, but:\n{said}")
    }

    /// The node's number in the cluster, from 1.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for ClusterNode {
    /// Ends all attachments: a loop device does not go with the namespaces that it was made in.
    fn drop(&mut self) {
        let end = || -> Result<()> {
            for attachment in self.json(&["attach"])?.as_array().context("a list")? {
                self.brant(&["detach", "--force", attachment["target"].as_str().context("a target")?])?;
            }
            Ok(())
        };
        if self.brant.is_some()
            && let Err(error) = end()
        {
            crate::say(&format!("devices may be left: {error:#}"));
        }
    }
}

/// The process that another one has started.
fn only_child(parent: u32) -> Result<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    children.split_whitespace().next().and_then(|id| id.parse().ok()).context("unshare has a child")
}

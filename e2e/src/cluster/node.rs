//! A node of a Ganeti cluster: Ganeti's commands and `brant` as they are typed there, and its guests' consoles.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use testkit::world::Indexer;
use testkit::{Service, World};
use xtask::process::run_apart;

use super::{Address, Switch, only_child};

/// How long one command of Ganeti's may take.
const COMMAND_LIMIT: Duration = Duration::from_mins(4);

/// How long a guest may take to say something.
const GUEST_LIMIT: Duration = Duration::from_mins(2);

/// Where the brant node's directory is. Loop devices are the machine's, whatever namespaces it is divided into, and are told apart by the
/// paths of their files: so the directories have names of their own.
const BRANT_DIRECTORIES: &str = "/srv/brant";

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
    address: Address,
    directory: PathBuf,
    program: PathBuf,
}

impl ClusterNode {
    /// Makes a node of a cluster of some nodes: its namespaces, and a brant node in them that has the provider installed.
    ///
    /// # Errors
    /// When something of it does not start.
    pub(super) fn start(world: &World, switch: &Switch, address: Address, nodes: usize) -> Result<Self> {
        let directory = world.path(&address.name());
        std::fs::create_dir_all(&directory)?;
        let assets = xtask::workspace::root().join("e2e/ganeti");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(assets.join("node.sh")).args([address.cluster, address.number, nodes].map(|n| n.to_string()));
        command.arg(&directory).arg(&switch.keys);
        let namespaces = Service::start(&address.name(), &mut command, "node ready", &directory.join("node.log"))?;
        let init = only_child(namespaces.id())?;
        switch.connect(init, &address)?;
        let program = crate::brant();
        let mut node = Self { brant: None, _namespaces: namespaces, init, address, directory, program };
        node.start_brant()?;
        node.brant(&["ganeti", "install"])?;
        Ok(node)
    }

    /// Starts the brant node, which stands for what systemd does.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_brant(&mut self) -> Result<()> {
        let (program, bind) = (self.program.to_string_lossy().into_owned(), self.address.brant());
        let mut command = self.entered(&[&program, "node", "serve", "--bind", &bind, "--dir", &self.brant_directory()]);
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
        format!("{BRANT_DIRECTORIES}/{}", self.address.name())
    }

    fn brant_command(&self, arguments: &[&str]) -> Vec<String> {
        let program = self.program.to_string_lossy();
        [&[&*program], arguments, &["--node", &self.brant_directory()]]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    /// Makes the brant node of another node a member for this one.
    pub(super) fn add_member(&self, other: &Self) -> Result<()> {
        let shown = other.json(&["cluster", "show"])?;
        let endpoint = shown["endpoint"].as_str().context("an endpoint")?;
        let (name, address) = (format!("node{}", other.address.number), other.address.brant());
        self.brant(&["cluster", "add", &name, endpoint, &address]).map(drop)
    }

    /// Logs the brant node in at an Indexer with a token.
    ///
    /// # Errors
    /// When the Indexer does not accept it.
    pub(super) fn login(&self, indexer: &Indexer, token: &str) -> Result<()> {
        let url = format!("http://{}", indexer.authority);
        let token = ["env".to_owned(), format!("BRANT_TOKEN={token}")];
        let words: Vec<_> = token.into_iter().chain(self.brant_command(&["login", &url])).collect();
        self.succeed(&words).map(drop)
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
        bail!("{} failed:\n{}\nbrant's log:\n{}", words.join(" "), printed.all(), self.log())
    }

    /// What the brant node has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("brant.log")).unwrap_or_default()
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

    /// Runs `brant` in the node, which may fail.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub fn try_brant(&self, arguments: &[&str]) -> Result<Printed> {
        let words = self.brant_command(arguments);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
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
        let socket = self.path(found["socket"].as_str().context("a socket")?);
        crate::connect(&format!("nbd+unix:///?socket={}", socket.display()))
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

    /// The node's name, as Ganeti knows it.
    #[must_use]
    pub fn name(&self) -> String {
        self.address.name()
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

//! A node of a Ganeti cluster: Ganeti's commands and `brant` as they are typed there, and its guests' consoles.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use testkit::world::Indexer;
use testkit::{Service, World, wait};
use xtask::process::run_apart;

use super::{Address, Switch, only_child};

/// How long one command of Ganeti's may take.
const COMMAND_LIMIT: Duration = Duration::from_mins(4);

/// How long a guest may take to say something.
const GUEST_LIMIT: Duration = Duration::from_mins(2);

/// Where the brant node's directory is. Loop devices are the machine's, whatever namespaces it is divided into, and are told apart by the
/// paths of their files: so the directories have names of their own.
const BRANT_DIRECTORIES: &str = "/srv/brant";

/// How a guest says that a record is durable, before its number.
const RECORD: &str = "BRANT record ";

fn record_of(line: &str) -> Option<u64> {
    line.trim().split_once(RECORD)?.1.parse().ok()
}

/// What a guest has said to be durable.
#[derive(Debug)]
pub struct Listener {
    last: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Listener {
    /// Waits until the guest has made a record durable behind that of a number.
    ///
    /// # Errors
    /// When it does not.
    pub fn goes_on(&self, behind: u64) -> Result<u64> {
        let last = || self.last.load(Ordering::Acquire);
        wait::until("the guest goes on", || Ok(Some(last()).filter(|number| *number > behind)))
    }

    /// Waits until the guest is dead; the last record that it has said to be durable.
    ///
    /// # Errors
    /// When it lives.
    pub fn ended(self) -> Result<u64> {
        wait::until("the guest is dead", || Ok(self.thread.is_finished().then_some(())))?;
        Ok(self.last.load(Ordering::Acquire))
    }
}

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
    /// None while the node is dead.
    namespaces: Option<Service>,
    /// The first process in the namespaces, as the host numbers it.
    init: u32,
    /// Its arguments.
    words: Vec<String>,
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
        let script = xtask::workspace::root().join("e2e/ganeti/node.sh");
        let words = [script.as_path(), &directory, &switch.keys].map(|path| path.to_string_lossy().into_owned());
        let [script, place, keys] = words;
        let numbers = [address.cluster, address.number, nodes].map(|number| number.to_string());
        let words = std::iter::once(script).chain(numbers).chain([place, keys]).collect();
        let program = crate::brant();
        let mut node = Self { brant: None, namespaces: None, init: 0, words, address, directory, program };
        node.power_on(switch)?;
        node.brant(&["ganeti", "install"])?;
        Ok(node)
    }

    /// Starts the machine, so to say, and brant on it.
    fn power_on(&mut self, switch: &Switch) -> Result<()> {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]);
        let log = self.directory.join("node.log");
        let namespaces = Service::start(&self.address.name(), command.args(&self.words), "node ready", &log)?;
        self.init = only_child(namespaces.id())?;
        self.namespaces = Some(namespaces);
        switch.connect(self.init, &self.address)?;
        self.start_brant()
    }

    /// Lets the machine lose its power: all that runs there is killed at once, and its network is gone.
    ///
    /// # Errors
    /// When its first process cannot be waited for.
    pub fn power_off(&mut self, switch: &Switch) -> Result<()> {
        if let Some(mut namespaces) = self.namespaces.take() {
            namespaces.kill()?;
        }
        if let Some(mut nsenter) = self.brant.take() {
            nsenter.kill()?;
        }
        switch.disconnect(&self.address)
    }

    /// Starts a machine again that has lost its power, with brant and Ganeti's daemons, as its init system does.
    ///
    /// # Errors
    /// When something of it does not start.
    pub fn power_on_again(&mut self, switch: &Switch) -> Result<()> {
        self.power_on(switch)?;
        self.gnt("/usr/lib/ganeti/daemon-util start-all").map(drop)
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

    /// Kills the brant node, and waits until it is gone: whoever starts it again does so too, and until then it has its store.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill_brant(&mut self) -> Result<()> {
        let Some(nsenter) = self.brant.take() else { return Ok(()) };
        let killed = Command::new("kill").arg("-KILL").arg(only_child(nsenter.id())?.to_string()).status()?;
        ensure!(killed.success(), "brant was not there");
        // It ends when its child has ended.
        nsenter.await_end().map(drop)
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

    pub(super) fn succeed(&self, words: &[String]) -> Result<String> {
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

    fn console_of(&self, instance: &str) -> Result<UnixStream> {
        let path = self.path(&format!("/run/ganeti/kvm-hypervisor/ctrl/{instance}.serial"));
        wait::until("the guest has a console", || Ok(UnixStream::connect(&path).ok()))
    }

    /// Hears all that a guest makes durable from now on, for as long as it lives.
    ///
    /// # Errors
    /// When it has no console.
    pub fn listen(&self, instance: &str) -> Result<Listener> {
        let (stream, last) = (self.console_of(instance)?, Arc::<AtomicU64>::default());
        let hearing = Arc::clone(&last);
        let thread = std::thread::spawn(move || {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            // A line without an end was cut off.
            while lines.read_until(b'\n', &mut line).is_ok_and(|_| line.last() == Some(&b'\n')) {
                if let Some(number) = record_of(&String::from_utf8_lossy(&line)) {
                    hearing.store(number, Ordering::Release);
                }
                line.clear();
            }
        });
        Ok(Listener { last, thread })
    }

    /// Reads what a guest says on its console from now on, up to a line that contains a text; returns that line.
    ///
    /// # Errors
    /// When it does not say it in time; quotes what it said.
    pub fn console(&self, instance: &str, text: &str) -> Result<String> {
        let stream = self.console_of(instance)?;
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

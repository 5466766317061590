//! Virtual machines under QEMU: started, watched on their serial console, ended by their process id.
//!
//! Uses KVM only where a guest has been seen to run under it; a `/dev/kvm` that opens says little. A machine that is dropped
//! is ended, whatever happened before.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::images::Kernel;
use crate::interrupt;
use crate::process::{Group, describe};
use crate::setup;

/// How long the guest that tries KVM has to show a sign of life.
const KVM_PROBE: Duration = Duration::from_secs(10);
/// How often a wait looks whether the machine has ended or Ctrl-C was pressed.
const POLL: Duration = Duration::from_millis(100);

/// What a guest runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// Translation: about ten times slower, and everywhere.
    Tcg,
}

impl Accelerator {
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

/// The disk of a machine, which it sees as `/dev/vda`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    /// A raw file or a block device.
    Raw(PathBuf),
    /// An NBD export on a unix socket.
    Nbd {
        /// The socket.
        socket: PathBuf,
        /// The name of the export.
        export: String,
    },
}

impl Disk {
    /// Reads an NBD address as `brant attach` prints it: `nbd+unix:///EXPORT?socket=PATH`.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse_nbd(uri: &str) -> Result<Disk> {
        let rest =
            uri.strip_prefix("nbd+unix:///").with_context(|| format!("not an NBD address on a unix socket: {uri}"))?;
        let (export, socket) = rest.split_once("?socket=").with_context(|| format!("no socket in {uri}"))?;
        Ok(Disk::Nbd { socket: PathBuf::from(socket), export: export.to_owned() })
    }

    fn drive(&self) -> String {
        // In a QEMU option a comma is written twice.
        let quote = |text: &str| text.replace(',', ",,");
        let mut drive = "if=none,id=disk,format=raw,cache=none,discard=unmap".to_owned();
        match self {
            Disk::Raw(path) => {
                let _infallible = write!(drive, ",file.filename={}", quote(&path.to_string_lossy()));
            }
            Disk::Nbd { socket, export } => {
                let _infallible = write!(
                    drive,
                    ",file.driver=nbd,file.server.type=unix,file.server.path={},file.export={}",
                    quote(&socket.to_string_lossy()),
                    quote(export)
                );
            }
        }
        drive
    }
}

/// What a machine is started with.
#[derive(Clone, Debug)]
pub struct Boot {
    /// What it boots.
    pub kernel: Kernel,
    /// The kernel's command line; `console=ttyS0` is added.
    pub append: String,
    /// Its disk, if it has one.
    pub disk: Option<Disk>,
    /// Its memory.
    pub memory_mib: u32,
    /// What it runs on.
    pub accelerator: Accelerator,
}

impl Boot {
    fn command(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
            "-smp",
            "2",
        ]);
        command.args(self.accelerator.arguments());
        command.args(["-m", &format!("{}M", self.memory_mib), "-serial", "stdio"]);
        command.arg("-kernel").arg(&self.kernel.kernel).arg("-initrd").arg(&self.kernel.initrd);
        command.args(["-append", &format!("console=ttyS0 panic=-1 {}", self.append)]);
        if let Some(disk) = &self.disk {
            command.args(["-drive", &disk.drive(), "-device", "virtio-blk-pci,drive=disk"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    process: Group,
    console: Arc<Console>,
}

impl Machine {
    /// Starts a machine.
    ///
    /// # Errors
    /// When QEMU is not there or cannot be started.
    pub fn start(boot: &Boot) -> Result<Machine> {
        if !setup::QEMU.is_present() {
            bail!("missing: {}", setup::describe(&[setup::QEMU]));
        }
        let mut process = Group::spawn(&mut boot.command())?;
        let console = Arc::new(Console::default());
        if let Some(pipe) = process.child.stdout.take() {
            console.watch(pipe);
        }
        if let Some(pipe) = process.child.stderr.take() {
            console.watch(pipe);
        }
        Ok(Machine { process, console })
    }

    /// Waits until the console has shown a line that contains `text`, now or before, and returns the line.
    ///
    /// # Errors
    /// When that takes longer than `limit`, the machine ends without showing it, or Ctrl-C is pressed; the error carries the end of
    /// the console.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let begun = Instant::now();
        loop {
            // Asked before looking, so that what a machine wrote last is not missed.
            let ended = self.process.ended()?;
            if let Some(line) = self.console.find(text, POLL) {
                return Ok(line);
            }
            interrupt::check()?;
            if let Some(status) = ended {
                // Nothing comes after the end but what the readers have not yet taken.
                if let Some(line) = self.console.find(text, 10 * POLL) {
                    return Ok(line);
                }
                bail!("the machine ended ({}) before showing `{text}`:\n{}", describe(status), self.console.tail());
            }
            if begun.elapsed() >= limit {
                bail!("the machine has not shown `{text}` in {} s:\n{}", limit.as_secs(), self.console.tail());
            }
        }
    }

    /// Waits until the machine has powered itself off.
    ///
    /// # Errors
    /// When that takes longer than `limit` (the machine has been ended then), or QEMU failed.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        let status =
            self.process.wait(limit).with_context(|| format!("wait for power-off:\n{}", self.console.tail()))?;
        if !status.success() {
            bail!("QEMU: {}\n{}", describe(status), self.console.tail());
        }
        Ok(())
    }

    /// Returns the values of the guest's lines `BRANT KIND VALUE`, in order.
    #[must_use]
    pub fn reports(&self, kind: &str) -> Vec<String> {
        let prefix = format!("BRANT {kind} ");
        let value = |line: String| line.split_once(&prefix).map(|(_, value)| value.trim().to_owned());
        self.console.lines().into_iter().filter_map(value).collect()
    }

    /// Returns everything the console has shown.
    #[must_use]
    pub fn console(&self) -> Vec<String> {
        self.console.lines()
    }

    /// Returns the process id of QEMU.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends the machine at once, as a power cut does.
    ///
    /// # Errors
    /// When the kernel does not say how it ended.
    pub fn cut_power(&mut self) -> Result<ExitStatus> {
        self.process.kill()
    }
}

/// The lines that a machine has written; grows for as long as it runs.
#[derive(Debug, Default)]
struct Console {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Console {
    fn watch(self: &Arc<Self>, pipe: impl Read + Send + 'static) {
        let console = Arc::clone(self);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                console.lines.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                console.grown.notify_all();
                line.clear();
            }
        });
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks for a line, waiting for new ones for at most about `patience`.
    fn find(&self, text: &str, patience: Duration) -> Option<String> {
        let find = |lines: &Vec<String>| lines.iter().find(|line| line.contains(text)).cloned();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, _timeout) = self
            .grown
            .wait_timeout_while(lines, patience, |lines| find(lines).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        find(&lines)
    }

    fn tail(&self) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Finds out, once, what guests can run on here: KVM if the given kernel shows a sign of life under it, else translation.
pub fn accelerator(kernel: &Kernel) -> Accelerator {
    static FOUND: OnceLock<Accelerator> = OnceLock::new();
    *FOUND.get_or_init(|| if kvm_works(kernel) { Accelerator::Kvm } else { Accelerator::Tcg })
}

fn kvm_works(kernel: &Kernel) -> bool {
    if std::fs::File::options().read(true).write(true).open(Path::new("/dev/kvm")).is_err() {
        return false;
    }
    let boot = Boot {
        kernel: kernel.clone(),
        append: "earlyprintk=serial".to_owned(),
        disk: None,
        memory_mib: 256,
        accelerator: Accelerator::Kvm,
    };
    Machine::start(&boot).and_then(|mut machine| machine.wait_for("Linux version", KVM_PROBE)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_address_of_an_export() {
        let disk = Disk::parse_nbd("nbd+unix:///web?socket=/run/brant/web.sock").unwrap();
        assert_eq!(disk, Disk::Nbd { socket: "/run/brant/web.sock".into(), export: "web".to_owned() });
        assert!(Disk::parse_nbd("nbd://127.0.0.1/web").is_err());
        assert!(Disk::parse_nbd("nbd+unix:///web").is_err());
    }

    #[test]
    fn a_comma_in_a_name_does_not_end_an_option() {
        let drive = Disk::Raw("/a,readonly=on/b".into()).drive();
        assert!(drive.ends_with("file.filename=/a,,readonly=on/b"), "{drive}");
    }
}

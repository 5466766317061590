//! Virtual machines under QEMU: started, watched on their serial console, ended by their process id.
//!
//! Uses KVM only where a guest has been seen to run under it; a `/dev/kvm` that opens says little. A machine that is dropped
//! is ended, whatever happened before.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::images::Kernel;
use crate::setup;
use crate::watched::Watched;

/// How long the guest that tries KVM has to show a sign of life.
const KVM_PROBE: Duration = Duration::from_secs(10);

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
        /// For how long requests wait for a server that has gone, in seconds; 0 lets them fail.
        reconnect_delay_seconds: u32,
    },
    /// What QEMU takes for a disk that shares the machine's memory, word by word.
    SharedMemory(Vec<String>),
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
        Ok(Disk::Nbd { socket: PathBuf::from(socket), export: export.to_owned(), reconnect_delay_seconds: 0 })
    }

    /// Lets requests to an NBD export wait for a server that has gone.
    #[must_use]
    pub fn reconnecting(mut self, seconds: u32) -> Disk {
        if let Disk::Nbd { reconnect_delay_seconds, .. } = &mut self {
            *reconnect_delay_seconds = seconds;
        }
        self
    }

    /// What QEMU takes for it, in a machine with so much memory.
    fn arguments(&self, memory_mib: u32) -> Vec<String> {
        if let Disk::SharedMemory(arguments) = self {
            let memory = format!("memory-backend-memfd,id=ram,size={memory_mib}M,share=on");
            let shared = ["-object", &memory, "-machine", "memory-backend=ram"];
            return shared.into_iter().map(str::to_owned).chain(arguments.iter().cloned()).collect();
        }
        ["-drive", &self.drive(), "-device", "virtio-blk-pci,drive=disk"].map(str::to_owned).to_vec()
    }

    fn drive(&self) -> String {
        // In a QEMU option a comma is written twice.
        let quote = |text: &str| text.replace(',', ",,");
        let mut drive = "if=none,id=disk,format=raw,cache=none,discard=unmap".to_owned();
        match self {
            Disk::Raw(path) => {
                let _infallible = write!(drive, ",file.filename={}", quote(&path.to_string_lossy()));
            }
            Disk::Nbd { socket, export, reconnect_delay_seconds } => {
                let _infallible = write!(
                    drive,
                    ",file.driver=nbd,file.server.type=unix,file.server.path={},file.export={},file.reconnect-delay={}",
                    quote(&socket.to_string_lossy()),
                    quote(export),
                    reconnect_delay_seconds
                );
            }
            Disk::SharedMemory(_) => {}
        }
        drive
    }
}

/// What a machine is started with.
#[derive(Clone, Debug)]
pub struct Boot {
    /// What it boots; the disk's own boot loader where there is none.
    pub kernel: Option<Kernel>,
    /// The kernel's command line; `console=ttyS0` is added. A boot loader has its own.
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
        if let Some(kernel) = &self.kernel {
            command.arg("-kernel").arg(&kernel.kernel).arg("-initrd").arg(&kernel.initrd);
            command.args(["-append", &format!("console=ttyS0 panic=-1 {}", self.append)]);
        }
        if let Some(disk) = &self.disk {
            command.args(disk.arguments(self.memory_mib));
        }
        command
    }
}

/// A machine that runs.
#[derive(Debug)]
pub struct Machine {
    console: Watched,
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
        Ok(Machine { console: Watched::start("the machine", &mut boot.command())? })
    }

    /// Waits until the console has shown a line that contains `text`, now or before, and returns the line.
    ///
    /// # Errors
    /// As [`Watched::wait_for`].
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        self.console.wait_for(text, limit)
    }

    /// Waits until the machine has powered itself off.
    ///
    /// # Errors
    /// When that takes longer than `limit` (the machine has been ended then), or QEMU failed.
    pub fn wait_off(&mut self, limit: Duration) -> Result<()> {
        self.console.wait_success(limit)
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
        self.console.process.id()
    }

    /// Ends the machine at once, as a power cut does.
    ///
    /// # Errors
    /// When the kernel does not say how it ended.
    pub fn cut_power(&mut self) -> Result<()> {
        self.console.process.kill().map(drop)
    }
}

/// Finds out, once, what guests can run on here: KVM if the given kernel shows a sign of life under it, else translation.
#[must_use]
pub fn accelerator(kernel: Option<&Kernel>) -> Accelerator {
    static FOUND: OnceLock<Accelerator> = OnceLock::new();
    *FOUND.get_or_init(|| if kernel.is_some_and(kvm_works) { Accelerator::Kvm } else { Accelerator::Tcg })
}

fn kvm_works(kernel: &Kernel) -> bool {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let boot = Boot {
        kernel: Some(kernel.clone()),
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
        assert_eq!(
            disk,
            Disk::Nbd { socket: "/run/brant/web.sock".into(), export: "web".to_owned(), reconnect_delay_seconds: 0 }
        );
        assert!(Disk::parse_nbd("nbd://127.0.0.1/web").is_err());
        assert!(Disk::parse_nbd("nbd+unix:///web").is_err());
    }

    #[test]
    fn a_comma_in_a_name_does_not_end_an_option() {
        let drive = Disk::Raw("/a,readonly=on/b".into()).drive();
        assert!(drive.ends_with("file.filename=/a,,readonly=on/b"), "{drive}");
    }
}

//! Instances that move between the nodes of a cluster: their guests' records, Ganeti's jobs, and gates at which these stop.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::wait;
use xtask::process::run_apart;

use super::{ClusterNode, SYSTEM_LIMIT};

/// Where the provider is, in a node.
const PROVIDER: &str = "/usr/share/ganeti/extstorage/brant";

/// Where gates are closed, in a node.
const GATES: &str = "/srv/gates";

/// What QEMU's monitor writes when it takes the next command.
const PROMPT: &[u8] = b"(qemu) ";

/// How long QEMU's monitor may take.
const MONITOR_LIMIT: Duration = Duration::from_secs(20);

/// What a job of Ganeti's has come to.
#[derive(Debug)]
pub struct JobEnd {
    /// Whether it succeeded.
    pub success: bool,
    /// What it said.
    pub said: String,
}

impl ClusterNode {
    /// The number of a record that the guest of an instance has just said to be durable.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn record(&self, instance: &str) -> Result<u64> {
        let said = self.console(instance, "BRANT record ")?;
        let number = said.rsplit(' ').next().and_then(|number| number.parse().ok());
        number.with_context(|| format!("a number: {said}"))
    }

    /// Waits until the guest has made a record durable behind that of a number. What it said last is said again where it has moved.
    ///
    /// # Errors
    /// When it does not go on.
    pub fn goes_on(&self, instance: &str, behind: u64) -> Result<u64> {
        let on =
            wait::until("the guest goes on", || Ok(Some(self.record(instance)?).filter(|number| *number > behind)));
        on.with_context(|| {
            let status = [self.monitor(instance, "info status"), self.brant(&["attach"])];
            format!("{instance} at {}: {status:?}\n{}", self.name(), self.log())
        })
    }

    /// Waits until all disks of an instance are at this node, and none at the other.
    ///
    /// # Errors
    /// When they do not come.
    pub fn has_disks(&self, other: &Self, instance: &str, disks: usize) -> Result<()> {
        let come = wait::until("the disks have come", || {
            let tasks = self.json(&["task", "list"])?;
            let mut tasks = tasks.as_array().context("a list")?.iter();
            let moves = tasks.any(|task| task["kind"] == "take" && task["state"] == "running");
            Ok((!moves && self.volumes_of(instance)?.len() == disks).then_some(()))
        });
        come.with_context(|| format!("at {}:\n{}\nat {}:\n{}", self.name(), self.log(), other.name(), other.log()))?;
        ensure!(other.volumes_of(instance)?.is_empty(), "each has one home");
        Ok(())
    }

    /// How many records the disk of an instance holds at this moment, as whoever mounts a copy of it finds them. The guest may write on.
    ///
    /// # Errors
    /// When its file system is damaged.
    pub fn records_on_disk(&self, instance: &str) -> Result<u64> {
        let disk = self.volumes_of(instance)?.pop().context("one volume")?;
        let copy = "/srv/copy.raw";
        self.run(&["rm", "-f", copy])?;
        self.brant(&["materialize", &disk, copy])?;
        let path = self.path(copy);
        // 1 is: repaired, by replaying the journal.
        let checked = run_apart(Command::new("e2fsck").arg("-fy").arg(&path), SYSTEM_LIMIT)?;
        ensure!(matches!(checked.status.code(), Some(0 | 1)), "{}{}", checked.output, checked.errors);
        let read = run_apart(Command::new("debugfs").args(["-R", "cat /records"]).arg(&path), SYSTEM_LIMIT)?;
        ensure!(read.status.success(), "{}", read.errors);
        let (mut count, mut lines) = (0, read.output.lines());
        while let Some(line) = lines.next() {
            if line != format!("{} record", count + 1) {
                // One that the guest had just begun: ext4 may know that the file is longer before it has its data.
                let last = lines.next();
                ensure!(last.is_none(), "after {count} records: {line:?}, and then {last:?}");
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    /// Whether a QEMU of the instance is at this node.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn has_qemu(&self, instance: &str) -> Result<bool> {
        let Some(process) = self.qemu(instance) else { return Ok(false) };
        Ok(self.run(&["kill", "-0", &process])?.success)
    }

    /// Kills the QEMU of an instance.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_qemu(&self, instance: &str) -> Result<()> {
        let process = self.qemu(instance).context("a QEMU")?;
        let killed = self.run(&["kill", "-KILL", &process])?;
        ensure!(killed.success, "{}", killed.all());
        wait::until("QEMU has ended", || Ok((!self.has_qemu(instance)?).then_some(())))
    }

    fn qemu(&self, instance: &str) -> Option<String> {
        let file = self.path(&format!("/run/ganeti/kvm-hypervisor/pid/{instance}"));
        Some(std::fs::read_to_string(file).ok()?.trim().to_owned())
    }

    /// Asks the monitor of an instance's QEMU.
    ///
    /// # Errors
    /// When there is none.
    pub fn monitor(&self, instance: &str, command: &str) -> Result<String> {
        let path = self.path(&format!("/run/ganeti/kvm-hypervisor/ctrl/{instance}.monitor"));
        let mut stream = UnixStream::connect(&path).with_context(|| format!("connect {}", path.display()))?;
        stream.set_read_timeout(Some(MONITOR_LIMIT))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut until_prompt = || -> Result<String> {
            let mut said = Vec::new();
            while !said.ends_with(PROMPT) {
                ensure!(reader.read_until(b' ', &mut said)? > 0, "QEMU's monitor has gone");
            }
            Ok(String::from_utf8_lossy(&said).into_owned())
        };
        until_prompt()?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        until_prompt()
    }

    /// Runs a command line of Ganeti's with `--submit`, and returns the job's number.
    ///
    /// # Errors
    /// When Ganeti does not accept it.
    pub fn submit(&self, line: &str) -> Result<u64> {
        let said = self.run(&line.split_whitespace().collect::<Vec<_>>())?.all();
        let number = said.split_whitespace().find_map(|word| word.parse().ok());
        number.with_context(|| format!("the number of a job: {said}"))
    }

    /// Waits until a job has ended.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn job_ends(&self, job: u64) -> Result<JobEnd> {
        let watched = self.run(&["gnt-job", "watch", &job.to_string()])?;
        Ok(JobEnd { success: watched.success, said: watched.all() })
    }

    /// Kills the process that works on a job: nothing of what it would have done afterwards is done.
    ///
    /// # Errors
    /// When Ganeti cannot.
    pub fn kill_job(&self, job: u64) -> Result<()> {
        wait::until("the job has died", || {
            // It is by the second word that Ganeti sees that the first one has worked; by itself it looks every five minutes.
            self.run(&["gnt-job", "cancel", "--kill", "--yes-do-it", &job.to_string()])?;
            let status = self.gnt(&format!("gnt-job list --no-headers -o status {job}"))?;
            Ok((status.trim() == "error").then_some(()))
        })
    }

    /// Puts gates before the scripts of the provider: nobody is stopped there yet.
    ///
    /// # Errors
    /// When the provider is not installed.
    pub fn put_gates(&self) -> Result<()> {
        std::fs::create_dir_all(self.path(GATES))?;
        let gate = xtask::workspace::root().join("e2e/ganeti/gate.sh");
        for script in ["open", "close"] {
            let place = self.path(&format!("{PROVIDER}/{script}"));
            std::fs::rename(&place, place.with_file_name(format!(".{script}")))?;
            std::fs::copy(&gate, &place)?;
        }
        Ok(())
    }

    fn gate(&self, name: &str) -> PathBuf {
        self.path(&format!("{GATES}/{name}"))
    }

    /// Closes a gate, a script's name and what Ganeti says to it: `open.False`, `close.`.
    ///
    /// # Errors
    /// When there are no gates.
    pub fn close_gate(&self, name: &str) -> Result<()> {
        Ok(std::fs::write(self.gate(name), "")?)
    }

    /// Waits until somebody stands at a closed gate.
    ///
    /// # Errors
    /// When nobody comes.
    pub fn await_at_gate(&self, name: &str) -> Result<()> {
        let reached = self.gate(&format!("{name}.reached"));
        wait::until("somebody stands at the gate", || Ok(reached.exists().then_some(())))
    }

    /// Lets who stands at a gate go on.
    ///
    /// # Errors
    /// When nobody does.
    pub fn open_gate(&self, name: &str) -> Result<()> {
        Ok(std::fs::remove_file(self.gate(&format!("{name}.reached")))?)
    }
}

//! A server process: started, waited for by its readiness line, killed, and never left behind.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{PATIENCE, until};

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    /// The line that said it was ready.
    pub ready: String,
}

impl Service {
    /// Starts a command and waits until it prints a line that begins with `readiness`. Standard error goes to a file,
    /// which is quoted if the command ends before.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready in time.
    pub fn start(name: &str, command: &mut Command, readiness: &str, log: &Path) -> Result<Self> {
        let errors = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().with_context(|| format!("could not start {name}"))?;
        let output = child.stdout.take().context("standard output is a pipe")?;
        let (send, lines) = sync_channel(64);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Nobody listens any more after readiness; the pipe is still drained.
                let _ = send.try_send(line);
            }
        });
        let mut service = Self { name: name.to_owned(), child, ready: String::new() };
        service.ready = service.await_line(&lines, readiness, log)?;
        Ok(service)
    }

    fn await_line(&mut self, lines: &Receiver<String>, readiness: &str, log: &Path) -> Result<String> {
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with(readiness) => return Ok(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("{} was not ready in time", self.name),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    let errors = std::fs::read_to_string(log).unwrap_or_default();
                    bail!("{} ended with {status} before it was ready:\n{errors}", self.name);
                }
            }
        }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Kills it without warning, as a crash would.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended, which somebody else sees to.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn await_end(mut self) -> Result<ExitStatus> {
        until(&format!("{} has ended", self.name), || Ok(self.child.try_wait()?))
    }

    /// Waits until it has ended by itself, with success.
    ///
    /// # Errors
    /// When it does not end in time, or without success.
    pub fn ended(self) -> Result<()> {
        let name = self.name.clone();
        let status = self.await_end()?;
        if status.success() { Ok(()) } else { bail!("{name} ended with {status}") }
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.await_end()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

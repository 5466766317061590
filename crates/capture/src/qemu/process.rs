//! Runs a tool to its end, within limits of time and of what it may say.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::QemuError;

/// The most of a tool's output that is read, in bytes.
const MAX_OUTPUT_BYTES: u64 = 4 << 20;

/// How long to wait between looks at a child, at most.
const LOOK: Duration = Duration::from_millis(20);

/// A tool that is about to be run.
#[derive(Debug)]
pub(super) struct Tool {
    name: &'static str,
    command: Command,
}

impl Tool {
    pub(super) fn new(name: &'static str) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Messages are quoted and sometimes understood: they shall not depend on who runs this.
        command.env("LC_ALL", "C").current_dir("/");
        Self { name, command }
    }

    /// Gives the tool a file as its standard input.
    pub(super) fn stdin(mut self, file: &File) -> Result<Self, QemuError> {
        let file = file.try_clone().map_err(|source| QemuError::Run { tool: self.name, source })?;
        self.command.stdin(file);
        Ok(self)
    }

    pub(super) fn arg(mut self, text: &str) -> Self {
        self.command.arg(text);
        self
    }

    pub(super) fn args<const N: usize>(mut self, texts: [&str; N]) -> Self {
        self.command.args(texts);
        self
    }

    /// Starts the tool, its standard error going to a file.
    pub(super) fn spawn(mut self, stderr: &File) -> Result<Running, QemuError> {
        let failed = |source| QemuError::Run { tool: self.name, source };
        self.command.stderr(stderr.try_clone().map_err(failed)?);
        let child = self.command.spawn().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => QemuError::Missing(self.name),
            _ => QemuError::Run { tool: self.name, source },
        })?;
        Ok(Running { name: self.name, child })
    }

    /// Runs the tool to its end, unless that takes too long or is not wanted any more.
    pub(super) fn run(mut self, limit: Duration, stop: &dyn Fn() -> bool) -> Result<Finished, QemuError> {
        let tool = self.name;
        let failed = |source| QemuError::Run { tool, source };
        let (stdout, stderr) = (tempfile::tempfile().map_err(failed)?, tempfile::tempfile().map_err(failed)?);
        self.command.stdout(stdout.try_clone().map_err(failed)?);
        let status = self.spawn(&stderr)?.wait(limit, stop)?;
        Ok(Finished { tool, status, stdout: contents(stdout).map_err(failed)?, stderr })
    }
}

/// A tool that runs; killed when dropped.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) name: &'static str,
    child: Child,
}

impl Running {
    /// The way in which the tool has ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>, QemuError> {
        self.child.try_wait().map_err(|source| QemuError::Run { tool: self.name, source })
    }

    pub(super) fn wait(mut self, limit: Duration, stop: &dyn Fn() -> bool) -> Result<ExitStatus, QemuError> {
        let begin = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if begin.elapsed() > limit {
                return Err(QemuError::TimedOut { tool: self.name, seconds: limit.as_secs() });
            }
            if stop() {
                return Err(QemuError::Failed { tool: self.name, said: "it was stopped".into() });
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is not killed: its id may be another's by now, and std knows that.
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::warn!(tool = self.name, %error, "could not end a child");
        }
    }
}

/// A tool that has ended.
#[derive(Debug)]
pub(super) struct Finished {
    tool: &'static str,
    status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    stderr: File,
}

impl Finished {
    pub(super) fn success(&self) -> bool {
        self.status.success()
    }

    pub(super) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// What it wrote to its standard error, made short.
    pub(super) fn said(&self) -> String {
        let said = said(&self.stderr, self.tool);
        if said.is_empty() { self.status.to_string() } else { said }
    }

    pub(super) fn failed(&self) -> QemuError {
        QemuError::Failed { tool: self.tool, said: self.said() }
    }

    pub(super) fn check(&self) -> Result<(), QemuError> {
        if self.success() { Ok(()) } else { Err(self.failed()) }
    }
}

fn contents(mut file: File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The first lines of what a tool wrote to its standard error, without its name and control characters.
pub(super) fn said(stderr: &File, tool: &str) -> String {
    const MAX_CHARACTERS: usize = 600;
    let bytes = stderr.try_clone().and_then(contents).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let prefix = format!("{tool}: ");
    let lines =
        text.lines().map(|line| line.strip_prefix(&prefix).unwrap_or(line).trim()).filter(|line| !line.is_empty());
    let short = lines.take(3).collect::<Vec<_>>().join("; ");
    short.chars().filter(|c| !c.is_control()).take(MAX_CHARACTERS).collect()
}

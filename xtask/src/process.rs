//! Runs other programs: output echoed and kept, a limit of time, and nothing left behind on failure or Ctrl-C.
//!
//! Every program gets a process group of its own, so that ending it ends what it started too, and only that.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::interrupt;

/// How often a wait looks at what it waits for.
const POLL: Duration = Duration::from_millis(20);
/// How long a program has to go once it has been asked to.
const GRACE: Duration = Duration::from_secs(10);

/// What becomes of a program's output while it runs; it is kept in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// Shown line by line as it comes.
    Live,
    /// Only kept.
    Quiet,
}

/// How a program ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to standard output and, unless that is kept apart, standard error, as the lines came.
    pub output: String,
    /// What it wrote to standard error, where that was kept apart.
    pub errors: String,
}

impl Outcome {
    /// Fails unless the program ended with status 0; the error carries the end of its output.
    ///
    /// # Errors
    /// When it did not succeed.
    pub fn success(self, what: &str) -> Result<String> {
        if self.status.success() {
            return Ok(self.output);
        }
        let lines: Vec<&str> = self.output.lines().chain(self.errors.lines()).collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!("{what}: {}\n{tail}", describe(self.status))
    }
}

/// Says in words how a process ended.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// Runs a program to its end and returns its output.
///
/// # Errors
/// When it cannot be started, takes longer than `limit`, or a signal asks this process to stop. In the last two cases the
/// program has been ended before this returns.
pub fn run(command: &mut Command, limit: Duration, echo: Echo) -> Result<Outcome> {
    let kept = Arc::default();
    run_into(command, limit, echo, [Arc::clone(&kept), kept])
}

/// Runs a program to its end, quietly, and returns its output and its errors apart.
///
/// # Errors
/// As [`run`].
pub fn run_apart(command: &mut Command, limit: Duration) -> Result<Outcome> {
    run_into(command, limit, Echo::Quiet, [Arc::default(), Arc::default()])
}

/// Where lines are kept; one for both pipes, or one for each.
type Kept = Arc<Mutex<String>>;

fn run_into(command: &mut Command, limit: Duration, echo: Echo, [output, errors]: [Kept; 2]) -> Result<Outcome> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut group = Group::spawn(command)?;
    let readers = [
        group.child.stdout.take().map(|pipe| read_lines(pipe, Arc::clone(&output), echo)),
        group.child.stderr.take().map(|pipe| read_lines(pipe, Arc::clone(&errors), echo)),
    ];
    let status = group.wait(limit).with_context(|| format!("run {name}"))?;
    // What the program itself left running (there should be nothing) would keep the pipes open.
    group.signal(Signal::KILL);
    for reader in readers.into_iter().flatten() {
        if reader.join().is_err() {
            bail!("the thread that reads the output of {name} panicked");
        }
    }
    let take = |kept: &Kept| std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Outcome { status, output: take(&output), errors: take(&errors) })
}

fn read_lines(pipe: impl Read + Send + 'static, kept: Kept, echo: Echo) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        // An error here means that the pipe is gone, as at its end.
        while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if echo == Echo::Live {
                print!("{text}");
            }
            kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            line.clear();
        }
    })
}

/// A program that was started here, with everything it starts; dropping it ends them all.
#[derive(Debug)]
pub struct Group {
    /// The program itself, for its pipes.
    pub child: Child,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts a program in a process group of its own.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Result<Group> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.process_group(0).spawn().with_context(|| format!("start {name}"))?;
        Ok(Group { child, status: None })
    }

    /// Returns the program's process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the program and all it started; one that has ended already is no error.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(id) = id {
            // The only way to fail is that nobody is left in the group.
            let _gone = rustix::process::kill_process_group(id, signal);
        }
    }

    /// Returns how the program ended, or nothing while it runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context("wait for a process")?;
        }
        Ok(self.status)
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// When it takes longer than `limit`, or a signal asks this process to stop; the program has been ended then.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            let reason = if interrupt::requested() {
                "interrupted".to_owned()
            } else if begun.elapsed() >= limit {
                format!("still running after {} s", limit.as_secs())
            } else {
                thread::sleep(POLL);
                continue;
            };
            self.stop(GRACE)?;
            bail!(reason);
        }
    }

    /// Asks the program to end (SIGTERM), and makes it end (SIGKILL) when it has not after `grace`; returns how it ended.
    ///
    /// # Errors
    /// When the kernel does not say how.
    pub fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < grace {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        self.kill()
    }

    /// Ends the program at once (SIGKILL) and returns how it ended.
    ///
    /// # Errors
    /// When the kernel does not say how.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(Signal::KILL);
        let status = self.child.wait().context("wait for a killed process")?;
        self.status = Some(status);
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("warning: process {}: {error:#}", self.child.id());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn keeps_the_output_and_the_status() {
        let outcome = run(&mut shell("echo one; echo two >&2; exit 3"), Duration::from_secs(20), Echo::Quiet).unwrap();
        assert_eq!(outcome.status.code(), Some(3));
        assert!(outcome.output.contains("one\n") && outcome.output.contains("two\n"), "{}", outcome.output);
        assert!(outcome.success("a script").unwrap_err().to_string().contains("exit status 3"));
    }

    #[test]
    fn ends_what_takes_too_long_with_all_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("sleep 600 & echo $! >{0}/child; wait", directory.path().display());
        let error = run(&mut shell(&script), Duration::from_millis(500), Echo::Quiet).unwrap_err();
        assert!(format!("{error:#}").contains("still running"), "{error:#}");
        let child: i32 = std::fs::read_to_string(directory.path().join("child")).unwrap().trim().parse().unwrap();
        let child = Pid::from_raw(child).unwrap();
        // The kernel needs a moment to take the grandchild down; without an init to reap it, it stays as a zombie.
        let begun = Instant::now();
        while rustix::process::test_kill_process(child).is_ok() && !is_zombie(child) {
            assert!(begun.elapsed() < Duration::from_secs(20), "the grandchild lives");
            thread::sleep(POLL);
        }
    }

    fn is_zombie(process: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
        stat.is_ok_and(|stat| stat.contains(") Z "))
    }
}

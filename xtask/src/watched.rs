//! A program that runs beside us and is watched by what it writes, line by line: a server, a machine's console.
//!
//! Waits are for lines, never for a time; a program that ends, or that says nothing for too long, ends the wait with an error that
//! quotes its last lines. Dropping it ends the program.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt;
use crate::process::{Group, describe};

/// How often a wait looks whether the program has ended or Ctrl-C was pressed.
const POLL: Duration = Duration::from_millis(100);
/// How many lines an error quotes.
const QUOTED_LINES: usize = 30;

/// A running program with the lines that it has written to standard output and standard error.
#[derive(Debug)]
pub struct Watched {
    name: String,
    /// The program.
    pub process: Group,
    written: Arc<Written>,
}

impl Watched {
    /// Starts a program; `name` is for messages.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Watched> {
        Watched::spawn(name, command.stdin(Stdio::null()))
    }

    /// Starts a program that is talked to: its standard input is the caller's to take.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with_input(name: &str, command: &mut Command) -> Result<Watched> {
        Watched::spawn(name, command.stdin(Stdio::piped()))
    }

    fn spawn(name: &str, command: &mut Command) -> Result<Watched> {
        let mut process = Group::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let written = Arc::new(Written::default());
        if let Some(pipe) = process.child.stdout.take() {
            written.follow(pipe);
        }
        if let Some(pipe) = process.child.stderr.take() {
            written.follow(pipe);
        }
        Ok(Watched { name: name.to_owned(), process, written })
    }

    /// Waits until the program has written a line that contains `text`, now or before, and returns the line.
    ///
    /// # Errors
    /// When that takes longer than `limit`, the program ends without writing it, or Ctrl-C is pressed.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let begun = Instant::now();
        loop {
            // Asked before looking, so that what a program wrote last is not missed.
            let ended = self.process.ended()?;
            if let Some(line) = self.written.find(text, POLL) {
                return Ok(line);
            }
            interrupt::check()?;
            if let Some(status) = ended {
                // Nothing comes after the end but what has not yet been read.
                if let Some(line) = self.written.find(text, 10 * POLL) {
                    return Ok(line);
                }
                bail!("{} ended ({}) before writing `{text}`:\n{}", self.name, describe(status), self.tail());
            }
            if begun.elapsed() >= limit {
                bail!("{} has not written `{text}` in {} s:\n{}", self.name, limit.as_secs(), self.tail());
            }
        }
    }

    /// Waits until the program has ended by itself, with status 0.
    ///
    /// # Errors
    /// When it takes longer than `limit` (it has been ended then), or ended otherwise.
    pub fn wait_success(&mut self, limit: Duration) -> Result<()> {
        match self.process.wait(limit) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("{}: {}\n{}", self.name, describe(status), self.tail()),
            Err(error) => Err(error.context(format!("{} should end; it wrote:\n{}", self.name, self.tail()))),
        }
    }

    /// Returns all lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.written.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the last lines, for a message.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n")
    }
}

/// The lines that a program has written; grows for as long as it runs.
#[derive(Debug, Default)]
struct Written {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Written {
    fn follow(self: &Arc<Self>, pipe: impl Read + Send + 'static) {
        let written = Arc::clone(self);
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                written.lines.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                written.grown.notify_all();
                line.clear();
            }
        });
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Watched {
        Watched::start("a script", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn finds_a_line_that_was_written_before_the_end() {
        let mut script = shell("echo first; echo 'ready: http://127.0.0.1:1'; exit 1");
        assert_eq!(script.wait_for("ready:", Duration::from_secs(20)).unwrap(), "ready: http://127.0.0.1:1");
        assert!(script.wait_success(Duration::from_secs(20)).unwrap_err().to_string().contains("exit status 1"));
    }

    #[test]
    fn an_early_end_is_an_error_that_quotes() {
        let mut script = shell("echo 'the disk is full' >&2; exit 1");
        let error = script.wait_for("ready:", Duration::from_secs(20)).unwrap_err().to_string();
        assert!(error.contains("exit status 1") && error.contains("the disk is full"), "{error}");
    }

    #[test]
    fn patience_ends() {
        let mut script = shell("sleep 600");
        let error = script.wait_for("ready:", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("has not written `ready:`"), "{error}");
    }
}

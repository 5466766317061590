//! The one place that prints: values as JSON, or text for people; notes and errors on standard error.
//!
//! Invariant: text that came from elsewhere cannot steer the terminal, as control characters are replaced before they
//! are printed. A reader that closes the pipe early ends the command quietly.

pub(crate) mod table;
pub(crate) mod text;

use std::io::{self, IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use node::api::ApiError;
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// The narrowest terminal that tables are fitted to, in columns.
const MIN_WIDTH: usize = 40;

/// What texts depend on, beside the value that they show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    /// The columns of the terminal; none where the output is no terminal, which gets everything in full.
    pub(crate) width: Option<usize>,
    /// The time, in milliseconds since 1970.
    pub(crate) now_ms: u64,
}

/// Prints the results of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON was asked for.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints a value: as JSON where that was asked for, else as the text that `human` makes of it.
    pub(crate) fn show<T: Serialize + ?Sized>(self, value: &T, human: impl FnOnce(View) -> String) -> Outcome {
        let text = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|error| Failure::of_service(&anyhow::Error::new(error).context("could not write JSON")))?
        } else {
            printable(&human(View { width: width(), now_ms: now_ms() }))
        };
        write_out(text.trim_end_matches('\n').as_bytes(), true)
    }

    /// Prints a list: an empty one says on standard error what could be done about that.
    pub(crate) fn list<T: Serialize>(self, values: &[T], empty: &str, human: impl FnOnce(View) -> String) -> Outcome {
        if values.is_empty() && !self.json {
            self.note(empty);
            return Ok(());
        }
        self.show(values, human)
    }

    /// Says that something was done whose answer is of no interest to a person, and may be none.
    pub(crate) fn done(self, answer: &serde_json::Value, text: &str) -> Outcome {
        if self.json && answer.is_null() {
            return Ok(());
        }
        self.show(answer, |_| text.to_owned())
    }

    /// Prints one line and goes on: a service's readiness, as JSON on one line where that was asked for.
    pub(crate) fn line(self, value: &serde_json::Value, text: &str) -> Outcome {
        let line = if self.json { value.to_string() } else { printable(text) };
        write_out(line.as_bytes(), true)
    }

    /// Prints bytes as they are.
    pub(crate) fn raw(bytes: &[u8]) -> Outcome {
        write_out(bytes, false)
    }

    /// Tells a person something beside the result; programs do not hear it.
    pub(crate) fn note(self, text: &str) {
        if !self.json {
            progress(text);
        }
    }
}

/// Prints a line about how far something is, on standard error.
pub(crate) fn progress(text: &str) {
    // Standard error may be closed, and there is nowhere else to say so.
    let _ = writeln!(io::stderr().lock(), "{}", printable(text));
}

/// Prints an error and its hint on standard error.
pub(crate) fn error(error: &ApiError) {
    progress(&format!("error: {}", error.message));
    if let Some(hint) = &error.hint {
        progress(&format!("hint: {hint}"));
    }
}

/// The time in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn write_out(bytes: &[u8], newline: bool) -> Outcome {
    let mut stdout = io::stdout().lock();
    let end: &[u8] = if newline { b"\n" } else { b"" };
    let written = stdout.write_all(bytes).and_then(|()| stdout.write_all(end)).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
        _ => Failure::of_file("write to", "standard output".as_ref(), &error),
    })
}

fn width() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col).max(MIN_WIDTH))
}

/// Replaces what could steer a terminal or reorder its text, but for line ends.
fn printable(text: &str) -> String {
    let steers =
        |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\r\u{202e}c\nd é"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c\nd é");
    }
}

//! Where a token comes from: a file, the environment, standard input, or a person whose typing is not shown.
//!
//! Invariant: the terminal shows what is typed again, however the prompt ends.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;

use node::api::{ApiError, ErrorCode};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::failure::{Failure, Outcome};
use crate::output;

/// The variable that a token is taken from.
const VARIABLE: &str = "BRANT_TOKEN";

/// The longest first line that is read, in bytes.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Finds the token: in a file, in the environment, or by asking.
pub(super) async fn obtain(indexer: &str, file: Option<&Path>) -> Outcome<String> {
    if let Some(path) = file.filter(|path| *path != Path::new("-")) {
        let opened = File::open(path).and_then(first_line);
        return checked(&opened.map_err(|error| Failure::of_file("read", path, &error))?);
    }
    if file.is_none() {
        if let Ok(token) = std::env::var(VARIABLE) {
            return checked(&token);
        }
        if io::stdin().is_terminal() {
            return checked(&ask(indexer).await?);
        }
    }
    checked(&first_line(io::stdin()).map_err(read_failed)?)
}

/// Asks on the terminal. Ctrl-C ends the command, after the terminal shows again what is typed.
async fn ask(indexer: &str) -> Outcome<String> {
    let hidden = Hidden::begin().map_err(read_failed)?;
    output::progress(&format!("token for {indexer} (it is not shown):"));
    let typed = tokio::task::spawn_blocking(|| first_line(io::stdin()));
    let line = tokio::select! {
        typed = typed => typed.map_err(|error| Failure::of_service(&error.into()))?.map_err(read_failed),
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    };
    drop(hidden);
    line
}

fn read_failed(error: io::Error) -> Failure {
    Failure::of_file("read the token from", Path::new("standard input"), &error)
}

fn first_line(source: impl Read) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(source.take(MAX_TOKEN_BYTES)).read_line(&mut line)?;
    Ok(line)
}

fn checked(text: &str) -> Outcome<String> {
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let error = ApiError::new(ErrorCode::Invalid, "there is no token, or it is not one");
        return Err(error.hint(format!("give --token-file FILE, set {VARIABLE}, or type it when asked")).into());
    }
    Ok(token.to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden {
    before: Termios,
}

impl Hidden {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Self { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_first_line_without_its_end() {
        assert_eq!(checked(&first_line(&b"secret\r\nsecond"[..]).unwrap()).unwrap(), "secret");
        for bad in ["", "\n", "two words", "\u{e9}"] {
            assert!(checked(bad).is_err(), "{bad:?}");
        }
    }
}

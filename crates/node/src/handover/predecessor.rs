//! The side that hands over: it hears a successor out, and becomes the guard.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::VERSIONS;
use super::parcel::{Parcel, ParcelError, Sealed};
use super::passing::{Word, say};

/// How long a caller may take to say what it wants.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The length of the word that asks.
const ASK_BYTES: usize = 20;

/// A successor that asked, and reads what this program writes.
#[derive(Debug)]
pub(crate) struct Successor(StdUnixStream);

/// Waits until a successor asks to which can be handed over.
pub(crate) async fn await_successor(listener: &UnixListener) -> Successor {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "nobody can ask for a hand-over");
                std::future::pending().await
            }
        };
        match tokio::time::timeout(CALL_TIMEOUT, hear_out(stream)).await {
            Ok(Ok(Some(successor))) => return successor,
            Ok(Ok(None)) => tracing::warn!("a successor asked that takes over in other ways than this version's"),
            Ok(Err(error)) => tracing::debug!(%error, "a caller of the hand-over socket went away"),
            Err(_) => tracing::debug!("a caller of the hand-over socket said nothing"),
        }
    }
}

async fn hear_out(mut stream: UnixStream) -> io::Result<Option<Successor>> {
    let mut bytes = [0; ASK_BYTES];
    stream.read_exact(&mut bytes).await?;
    let mut left = bytes.as_slice();
    let word = Word::decode(|part| io::Read::read_exact(&mut left, part))?;
    let Word::Ask(oldest, newest) = word else { return Err(io::ErrorKind::InvalidData.into()) };
    if !(oldest..=newest).contains(&VERSIONS.1) {
        let why = format!(
            "the running node hands over in version {}, the new one takes {oldest} to {newest}: stop the one and start the other",
            VERSIONS.1
        );
        stream.write_all(&Word::Refused(why).encode()).await?;
        return Ok(None);
    }
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(Some(Successor(stream)))
}

impl Successor {
    /// Tells it that there will be no hand-over.
    pub(crate) fn refuse(&self, why: &str) {
        if let Err(error) = say(&self.0, &Word::Refused(why.to_owned())) {
            tracing::debug!(%error, "the successor has gone");
        }
    }

    /// Prepares everything that the guard needs.
    pub(crate) fn prepare(&self, parcel: &Parcel) -> Result<HandOver, ParcelError> {
        let prepare = |error| ParcelError::Io("prepare", error);
        let state = parcel.seal()?;
        let mut descriptors = parcel.descriptors(&state);
        descriptors.push(self.0.as_fd());
        let (ours, its) = StdUnixStream::pair().map_err(prepare)?;
        // Nobody reads before this process has become the guard: what does not fit must be an error.
        ours.set_nonblocking(true).map_err(prepare)?;
        Sealed::send(&ours, VERSIONS.1, &descriptors)?;
        Ok(HandOver { parcel: its.into() })
    }
}

/// A hand-over that is prepared: all that is left to do is to become the guard.
#[derive(Debug)]
pub struct HandOver {
    /// Where the guard finds the parcel.
    parcel: OwnedFd,
}

impl HandOver {
    /// Replaces this program by the guard, in the same process. `serving` are the arguments that this node was started
    /// with.
    ///
    /// # Errors
    /// It returns only when that has failed.
    #[must_use = "whoever comes back has failed"]
    pub fn become_guard(self, serving: &[OsString]) -> io::Error {
        let mut command = same_program();
        command.args(["node", "guard", "--"]).args(serving).stdin(Stdio::from(self.parcel));
        command.exec()
    }
}

/// This very program, even where its file has been replaced.
pub(crate) fn same_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

//! The guard: what the predecessor is while its successor starts.
//!
//! It has the parcel and nothing else: no store, no lock, no network. It waits for one word of the successor.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::parcel::{ParcelError, Sealed};
use super::passing::{Word, hear};
use super::predecessor::same_program;
use crate::systemd;

/// How long a successor may take to start. Guests wait meanwhile, which they bear better than an error.
const PATIENCE: Duration = Duration::from_secs(120);

/// The guard could neither hand over nor take back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// There is no parcel at standard input.
    #[error("the guard is started by a node that hands over, and by nobody else")]
    NoParcel(#[source] ParcelError),
    /// The socket pair for the old node could not be made.
    #[error("could not give everything back to the old node")]
    GiveBack(#[source] io::Error),
    /// The old node could not be started again.
    #[error("could not become the old node again")]
    Again(#[source] io::Error),
}

/// Hands the parcel at standard input over; returns when that was done. Otherwise this becomes the node again that was
/// started with `serving`.
///
/// # Errors
/// See [`GuardError`].
pub fn guard(serving: &[OsString]) -> Result<(), GuardError> {
    let no_parcel = |error| GuardError::NoParcel(ParcelError::Io("receive", error));
    let input = std::io::stdin().as_fd().try_clone_to_owned().map_err(no_parcel)?;
    let mut sealed = Sealed::receive(&UnixStream::from(input)).map_err(GuardError::NoParcel)?;
    let Some(successor) = sealed.descriptors.pop().map(UnixStream::from) else {
        return Err(GuardError::NoParcel(ParcelError::Size));
    };
    let pid = socket_peercred(&successor).ok().map(|credentials| credentials.pid);
    match offer(&sealed, &successor) {
        Ok(()) => {
            if let Some(pid) = pid {
                systemd::notify(&format!("MAINPID={}", pid.as_raw_nonzero()));
            }
            Ok(())
        }
        Err(why) => {
            // It must not come to itself later: from here on the sockets are ours again.
            end(pid);
            take_back(&sealed, serving, &why)
        }
    }
}

/// Offers the parcel, and waits until the successor serves, or says why it does not.
fn offer(sealed: &Sealed, successor: &UnixStream) -> Result<(), String> {
    let gone = "the new process ended before it was ready: see the log";
    let waiting = successor.set_read_timeout(Some(PATIENCE));
    waiting.map_err(|error| format!("could not wait for the new process: {error}"))?;
    sealed.forward(successor).map_err(|_| gone.to_owned())?;
    match hear(successor) {
        Ok(Word::Taken) => Ok(()),
        Ok(Word::Refused(why)) => Err(why),
        Ok(_) => Err("the new process said something else than it should".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(format!("the new process was not ready in {} seconds", PATIENCE.as_secs()))
        }
        Err(_) => Err(gone.to_owned()),
    }
}

/// Ends the successor; it may have ended already.
fn end(pid: Option<Pid>) {
    let Some(pid) = pid else { return };
    let _ = kill_process(pid, Signal::KILL);
    // It is only sometimes a child of this process.
    let _ = waitpid(Some(pid), WaitOptions::empty());
}

fn take_back(sealed: &Sealed, serving: &[OsString], why: &str) -> Result<(), GuardError> {
    let (ours, its) = UnixStream::pair().map_err(GuardError::GiveBack)?;
    ours.set_nonblocking(true).map_err(GuardError::GiveBack)?;
    let given = sealed.forward(&ours);
    given.map_err(|error| GuardError::GiveBack(io::Error::other(error)))?;
    let mut command = same_program();
    command.args(serving).arg(format!("--taken-back={why}")).stdin(Stdio::from(std::os::fd::OwnedFd::from(its)));
    Err(GuardError::Again(command.exec()))
}

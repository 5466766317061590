//! The side that takes over: it asks the node that runs, and says when it serves.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use export::Suspended;

use super::parcel::{Parcel, ParcelError, Sealed};
use super::passing::{Word, say};
use super::{HAND_OVER_SOCKET, VERSIONS};

/// How long the node that runs may take to come between two requests everywhere.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who waits for a word of this process.
#[derive(Debug)]
pub(crate) struct Predecessor(Option<UnixStream>);

impl Predecessor {
    /// Says that this process serves from now on. Nobody listening means the same: who is dead takes nothing back.
    pub(crate) fn taken(&self) {
        self.say(&Word::Taken);
    }

    /// Says why this process ends.
    pub(crate) fn failed(&self, why: &str) {
        self.say(&Word::Refused(why.to_owned()));
    }

    fn say(&self, word: &Word) {
        if let Some(Err(error)) = self.0.as_ref().map(|stream| say(stream, word)) {
            tracing::debug!(%error, "the old process has gone");
        }
    }
}

/// What a node goes on with.
#[derive(Debug)]
pub(crate) struct Taken {
    /// When the exports were stopped, in milliseconds since 1970.
    pub(crate) began_ms: u64,
    /// The exports, by target, until they are gone on with.
    pub(crate) servers: Mutex<BTreeMap<String, Suspended>>,
    pub(crate) predecessor: Predecessor,
}

impl Taken {
    /// The exports, by target.
    pub(crate) fn take_servers(&self) -> BTreeMap<String, Suspended> {
        std::mem::take(&mut *self.servers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Asks the node that runs in a directory for everything; nothing where none runs.
///
/// # Errors
/// Where it refuses, or what it sends cannot be understood.
pub(crate) fn ask(directory: &Path) -> Result<Option<(Parcel, Predecessor)>, ParcelError> {
    let path = directory.join(HAND_OVER_SOCKET);
    let stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(ParcelError::Io("ask for", error)),
    };
    let asking = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        say(&stream, &Word::Ask(VERSIONS.0, VERSIONS.1))
    };
    asking().map_err(|error| ParcelError::Io("ask for", error))?;
    let predecessor = Predecessor(stream.try_clone().ok());
    match Sealed::receive(&stream).and_then(Sealed::open) {
        Ok(parcel) => Ok(Some((parcel, predecessor))),
        Err(error) => {
            predecessor.failed(&error.to_string());
            Err(error)
        }
    }
}

/// Takes back at standard input what this node had handed over in vain.
///
/// # Errors
/// Where there is nothing, or it cannot be understood.
pub(crate) fn take_back() -> Result<(Parcel, Predecessor), ParcelError> {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(|error| ParcelError::Io("take back", error))?;
    let parcel = Sealed::receive(&UnixStream::from(input)).and_then(Sealed::open)?;
    Ok((parcel, Predecessor(None)))
}

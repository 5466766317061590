//! What is handed over: the state of all exports in a file without a name, and the sockets.
//!
//! The file is described in docs/format.md ("Hand-over"). The descriptors are, in this order: the file, the API's
//! socket, the socket for descriptors, and then the sockets of each server. Whoever reads a parcel believes nothing of
//! it that was not checked.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use export::Suspended;
use export::nbd::state::{ServerState, StateError};
use format::{CanonicalError, from_canonical, to_canonical};
use minicbor::{Decode, Encode};
use rustix::fs::{MemfdFlags, memfd_create};

use super::VERSIONS;
use super::passing::{Word, hear, receive_descriptors, say, send_descriptors};

/// The longest state: hundreds of connections with the largest requests in hand fit.
const MAX_STATE_BYTES: u64 = 1 << 30;
/// The most descriptors.
const MAX_DESCRIPTORS: u32 = 1 << 16;

/// A parcel could not be made, sent, or understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParcelError {
    /// A system call failed.
    #[error("could not {0} what is handed over")]
    Io(&'static str, #[source] io::Error),
    /// The other side does not hand over, and says why.
    #[error("{0}")]
    Refused(String),
    /// It was made by another version.
    #[error("the other process hands over in version {0}, this one takes {oldest} to {newest}", oldest = VERSIONS.0, newest = VERSIONS.1)]
    Version(u32),
    /// It is too large, or has too many descriptors, or too few.
    #[error("what was handed over cannot be so large or so small")]
    Size,
    /// The state is not what it should be.
    #[error("what was handed over is damaged")]
    Contents(#[from] CanonicalError),
    /// A server's state makes no sense.
    #[error("the state of the export of {0} makes no sense")]
    Server(String, #[source] StateError),
}

/// The contents of the file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Contents {
    /// When the exports were stopped, in milliseconds since 1970.
    #[n(0)]
    began_ms: u64,
    #[n(1)]
    servers: Vec<ServerContents>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct ServerContents {
    /// What is attached.
    #[n(0)]
    target: String,
    #[n(1)]
    server: ServerState,
}

/// Decodes a parcel's state, and checks what can be checked without its sockets.
///
/// # Errors
/// See [`ParcelError`].
pub fn decode_contents(bytes: &[u8]) -> Result<Contents, ParcelError> {
    let limit = usize::try_from(MAX_STATE_BYTES).unwrap_or(usize::MAX);
    let contents: Contents = from_canonical(bytes, limit)?;
    for ServerContents { target, server } in &contents.servers {
        server.check(server.sockets()).map_err(|error| ParcelError::Server(target.clone(), error))?;
    }
    Ok(contents)
}

/// Everything that a successor goes on with.
#[derive(Debug)]
pub(crate) struct Parcel {
    /// When the exports were stopped, in milliseconds since 1970.
    pub(crate) began_ms: u64,
    /// The API's listening socket.
    pub(crate) api: OwnedFd,
    /// The listening socket for descriptors.
    pub(crate) descriptors: OwnedFd,
    /// The exports, by target.
    pub(crate) servers: Vec<(String, Suspended)>,
}

impl Parcel {
    /// Writes the state down.
    pub(crate) fn seal(&self) -> Result<OwnedFd, ParcelError> {
        let server = |(target, suspended): &(String, Suspended)| ServerContents {
            target: target.clone(),
            server: suspended.state().clone(),
        };
        let contents = Contents { began_ms: self.began_ms, servers: self.servers.iter().map(server).collect() };
        let write = |error: io::Error| ParcelError::Io("write down", error);
        let file = memfd_create("brant hand-over", MemfdFlags::CLOEXEC).map_err(|error| write(error.into()))?;
        let mut file = File::from(file);
        file.write_all(&to_canonical(&contents)).map_err(write)?;
        Ok(file.into())
    }

    /// The descriptors of the parcel, that of its state first.
    pub(crate) fn descriptors<'a>(&'a self, state: &'a OwnedFd) -> Vec<BorrowedFd<'a>> {
        let own = [state.as_fd(), self.api.as_fd(), self.descriptors.as_fd()];
        let of_servers = self.servers.iter().flat_map(|(_, suspended)| suspended.sockets());
        own.into_iter().chain(of_servers.map(|socket| socket.as_fd())).collect()
    }
}

/// A parcel that was not looked into.
#[derive(Debug)]
pub(crate) struct Sealed {
    version: u32,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Sealed {
    /// Sends a parcel.
    pub(crate) fn send(stream: &UnixStream, version: u32, descriptors: &[BorrowedFd<'_>]) -> Result<(), ParcelError> {
        let send = |error| ParcelError::Io("send", error);
        let count = u32::try_from(descriptors.len()).map_err(|_| ParcelError::Size)?;
        say(stream, &Word::Parcel(version, count)).map_err(send)?;
        send_descriptors(stream, descriptors).map_err(send)
    }

    /// Sends this parcel on.
    pub(super) fn forward(&self, stream: &UnixStream) -> Result<(), ParcelError> {
        let descriptors: Vec<BorrowedFd<'_>> = self.descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        Sealed::send(stream, self.version, &descriptors)
    }

    /// Receives a parcel, or why there is none.
    pub(crate) fn receive(stream: &UnixStream) -> Result<Sealed, ParcelError> {
        let receive = |error| ParcelError::Io("receive", error);
        match hear(stream).map_err(receive)? {
            Word::Parcel(version, count) if count <= MAX_DESCRIPTORS => {
                let descriptors = receive_descriptors(stream, count).map_err(receive)?;
                Ok(Sealed { version, descriptors })
            }
            Word::Refused(why) => Err(ParcelError::Refused(why)),
            _ => Err(ParcelError::Size),
        }
    }

    /// Looks into it.
    pub(crate) fn open(self) -> Result<Parcel, ParcelError> {
        if !(VERSIONS.0..=VERSIONS.1).contains(&self.version) {
            return Err(ParcelError::Version(self.version));
        }
        let mut descriptors = self.descriptors.into_iter();
        let (Some(state), Some(api), Some(tickets)) = (descriptors.next(), descriptors.next(), descriptors.next())
        else {
            return Err(ParcelError::Size);
        };
        let contents = decode_contents(&read_state(state)?)?;
        let wanted: usize = contents.servers.iter().map(|contents| contents.server.sockets()).sum();
        if wanted != descriptors.len() {
            return Err(ParcelError::Size);
        }
        let mut servers = Vec::with_capacity(contents.servers.len());
        for ServerContents { target, server } in contents.servers {
            let sockets = descriptors.by_ref().take(server.sockets()).collect();
            let suspended = Suspended::from_parts(server, sockets);
            servers.push((target.clone(), suspended.map_err(|error| ParcelError::Server(target, error))?));
        }
        Ok(Parcel { began_ms: contents.began_ms, api, descriptors: tickets, servers })
    }
}

fn read_state(descriptor: OwnedFd) -> Result<Vec<u8>, ParcelError> {
    let read = |error| ParcelError::Io("read", error);
    let file = File::from(descriptor);
    let length = file.metadata().map_err(read)?.len();
    if length > MAX_STATE_BYTES {
        return Err(ParcelError::Size);
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| ParcelError::Size)?];
    // Not from where the file stands: all who have it share that.
    file.read_exact_at(&mut bytes, 0).map_err(read)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &[u8] = include_bytes!("../../../export/golden/server-v1.cbor");

    /// The bytes of version 1, for ever.
    #[test]
    fn golden() {
        let server: ServerState = minicbor::decode(SERVER).unwrap();
        let contents = Contents {
            began_ms: 1_790_000_000_000,
            servers: vec![ServerContents { target: "web".to_owned(), server }],
        };
        let bytes = to_canonical(&contents);
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/hand-over-v1.cbor");
        if std::env::var_os("BRANT_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, &bytes).unwrap();
        }
        assert!(std::fs::read(&golden).unwrap() == bytes, "the encoding of version 1 has changed");
        assert_eq!(decode_contents(&bytes).unwrap(), contents);
        assert!(decode_contents(&bytes[1..]).is_err());
    }

    fn parcel() -> Parcel {
        let socket = || OwnedFd::from(UnixStream::pair().unwrap().0);
        Parcel { began_ms: 1, api: socket(), descriptors: socket(), servers: Vec::new() }
    }

    fn sent(version: u32, descriptors: &[BorrowedFd<'_>]) -> Result<Parcel, ParcelError> {
        let (one, other) = UnixStream::pair().unwrap();
        Sealed::send(&one, version, descriptors).unwrap();
        Sealed::receive(&other).and_then(Sealed::open)
    }

    #[test]
    fn a_parcel_arrives_and_another_version_is_refused() {
        let parcel = parcel();
        let state = parcel.seal().unwrap();
        let descriptors = parcel.descriptors(&state);
        assert_eq!(sent(1, &descriptors).unwrap().began_ms, 1);
        assert!(matches!(sent(2, &descriptors), Err(ParcelError::Version(2))));
        assert!(matches!(sent(1, &descriptors[..2]), Err(ParcelError::Size)));
        let more = [descriptors.as_slice(), &[parcel.api.as_fd()]].concat();
        assert!(matches!(sent(1, &more), Err(ParcelError::Size)));
        assert!(matches!(sent(1, &descriptors[1..]), Err(ParcelError::Size | ParcelError::Io(..))));
    }
}

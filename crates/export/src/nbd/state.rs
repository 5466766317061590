//! What one process tells another of a server whose connections it hands over: canonical CBOR, described in
//! docs/format.md ("Hand-over").
//!
//! The sockets themselves travel beside it, the listening one first, then one for each connection in order. What is
//! read here was written by another process, perhaps of another version: everything is checked before it is used.

use std::net::SocketAddr;
use std::path::PathBuf;

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use super::connection::{Remains, Skip};
use super::context::Context;
use super::listen::Listen;
use super::protocol::{
    MAXIMUM_PAYLOAD_BYTES, NBD_CMD_CACHE, NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, Request,
};
use super::refusal::Refusal;
use super::transmission::Terms;
use super::wait::{Purpose, Waiting};

/// The state that another process has told cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Not one socket for each connection and one to listen on.
    #[error("{sockets} sockets came with {connections} connections")]
    Sockets {
        /// How many there are.
        sockets: usize,
        /// How many connections are described.
        connections: usize,
    },
    /// The place to listen at cannot be.
    #[error("a server listens at {0:?}, which is no place to listen at")]
    Listen(String),
    /// A metadata context that does not exist.
    #[error("there is no metadata context {0}")]
    Context(u32),
    /// A request that cannot wait, or not for this.
    #[error("request {cookie:#x} cannot wait as it is said to")]
    Waiting {
        /// The client's name for it.
        cookie: u64,
    },
    /// A payload is passed over that no request can have.
    #[error("{0} bytes of a payload are to be passed over")]
    Skip(u64),
}

/// A server: where it listens, and its connections.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ServerState {
    /// The socket's path, where it is a unix socket.
    #[n(0)]
    path: Option<ByteVec>,
    /// The address, where it is TCP.
    #[n(1)]
    address: Option<String>,
    /// The socket file's device and inode.
    #[n(2)]
    file: Option<(u64, u64)>,
    #[n(3)]
    connections: Vec<ConnectionState>,
}

/// A connection between two requests.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ConnectionState {
    #[n(0)]
    export: String,
    #[n(1)]
    structured: bool,
    #[n(2)]
    contexts: Vec<u32>,
    #[n(3)]
    input: ByteVec,
    #[n(4)]
    output: ByteVec,
    #[n(5)]
    waiting: Vec<WaitingState>,
    #[n(6)]
    skip: Option<SkipState>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct RequestState {
    #[n(0)]
    flags: u16,
    #[n(1)]
    command: u16,
    #[n(2)]
    cookie: u64,
    #[n(3)]
    offset: u64,
    #[n(4)]
    length: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct WaitingState {
    #[n(0)]
    request: RequestState,
    /// Of a read: from where on it is not answered yet.
    #[n(1)]
    unanswered_from: Option<u64>,
    /// Of a write: its payload.
    #[n(2)]
    payload: Option<ByteVec>,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct SkipState {
    #[n(0)]
    left_bytes: u64,
    #[n(1)]
    request: RequestState,
    #[n(2)]
    error: u32,
    #[n(3)]
    message: String,
}

impl ServerState {
    pub(crate) fn new(listen: &Listen, file: Option<(u64, u64)>, connections: Vec<ConnectionState>) -> ServerState {
        use std::os::unix::ffi::OsStrExt as _;
        let (path, address) = match listen {
            Listen::Unix(path) => (Some(path.as_os_str().as_bytes().to_vec().into()), None),
            Listen::Tcp(address) => (None, Some(address.to_string())),
        };
        ServerState { path, address, file, connections }
    }

    /// How many sockets belong to it.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.connections.len() + 1
    }

    /// How many clients are connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn file(&self) -> Option<(u64, u64)> {
        self.file
    }

    pub(crate) fn listen(&self) -> Result<Listen, StateError> {
        use std::os::unix::ffi::OsStringExt as _;
        match (&self.path, &self.address) {
            (Some(path), None) => Ok(Listen::Unix(PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())))),
            (None, Some(address)) => {
                let parsed: Result<SocketAddr, _> = address.parse();
                parsed.map(Listen::Tcp).map_err(|_| StateError::Listen(address.clone()))
            }
            _ => Err(StateError::Listen(String::new())),
        }
    }

    /// Checks everything that can be checked without the devices.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn check(&self, sockets: usize) -> Result<(), StateError> {
        if sockets != self.sockets() {
            return Err(StateError::Sockets { sockets, connections: self.connections.len() });
        }
        self.listen()?;
        self.connections.iter().try_for_each(|connection| connection.remains().map(drop))
    }

    pub(crate) fn into_connections(self) -> Vec<ConnectionState> {
        self.connections
    }
}

impl ConnectionState {
    pub(crate) fn new(export: String, remains: Remains) -> ConnectionState {
        ConnectionState {
            export,
            structured: remains.terms.structured,
            contexts: remains.terms.contexts.iter().map(|context| context.id()).collect(),
            input: remains.input.into(),
            output: remains.output.into(),
            waiting: remains.waiting.into_iter().map(WaitingState::from).collect(),
            skip: remains.skip.map(SkipState::from),
        }
    }

    pub(crate) fn export(&self) -> &str {
        &self.export
    }

    pub(crate) fn remains(&self) -> Result<Remains, StateError> {
        let context =
            |id: &u32| Context::ALL.into_iter().find(|context| context.id() == *id).ok_or(StateError::Context(*id));
        Ok(Remains {
            terms: Terms {
                structured: self.structured,
                contexts: self.contexts.iter().map(context).collect::<Result<_, _>>()?,
            },
            input: self.input.to_vec(),
            output: self.output.to_vec(),
            waiting: self.waiting.iter().map(WaitingState::waiting).collect::<Result<_, _>>()?,
            skip: self.skip.as_ref().map(SkipState::skip).transpose()?,
        })
    }
}

impl From<Request> for RequestState {
    fn from(request: Request) -> RequestState {
        let Request { flags, command, cookie, offset, length } = request;
        RequestState { flags, command, cookie, offset, length }
    }
}

impl RequestState {
    fn request(&self) -> Request {
        let RequestState { flags, command, cookie, offset, length } = *self;
        Request { flags, command, cookie, offset, length }
    }
}

impl From<Waiting> for WaitingState {
    fn from(waiting: Waiting) -> WaitingState {
        let (unanswered_from, payload) = match waiting.purpose {
            Purpose::Read(offset) => (Some(offset), None),
            Purpose::Retry(payload) => (None, Some(payload.into())),
            Purpose::Cache => (None, None),
        };
        WaitingState { request: waiting.request.into(), unanswered_from, payload }
    }
}

impl WaitingState {
    /// Whether the device has the range is checked when the request is done again.
    fn waiting(&self) -> Result<Waiting, StateError> {
        let request = self.request.request();
        let wrong = StateError::Waiting { cookie: request.cookie };
        let purpose = match (request.command, self.unanswered_from, &self.payload) {
            (NBD_CMD_READ, Some(from), None) if from >= request.offset && Some(from) < request.end() => {
                Purpose::Read(from)
            }
            (NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES, None, Some(payload))
                if payload.len() == request.payload_bytes() as usize =>
            {
                Purpose::Retry(payload.to_vec())
            }
            (NBD_CMD_CACHE, None, None) => Purpose::Cache,
            _ => return Err(wrong),
        };
        Ok(Waiting { request, purpose })
    }
}

impl From<Skip> for SkipState {
    fn from(skip: Skip) -> SkipState {
        let Refusal { error, message } = skip.refusal;
        SkipState { left_bytes: skip.left, request: skip.request.into(), error, message }
    }
}

impl SkipState {
    fn skip(&self) -> Result<Skip, StateError> {
        if self.left_bytes > u64::from(u32::MAX) || self.message.len() > MAXIMUM_PAYLOAD_BYTES as usize {
            return Err(StateError::Skip(self.left_bytes));
        }
        let refusal = Refusal::new(self.error, self.message.clone());
        Ok(Skip { left: self.left_bytes, request: self.request.request(), refusal })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(command: u16, cookie: u64) -> Request {
        Request { flags: 1, command, cookie, offset: 512, length: 4096 }
    }

    fn connection() -> ConnectionState {
        let waiting = vec![
            Waiting { request: request(NBD_CMD_READ, 7), purpose: Purpose::Read(1024) },
            Waiting {
                request: Request { length: 3, ..request(NBD_CMD_WRITE, 8) },
                purpose: Purpose::Retry(vec![9; 3]),
            },
            Waiting { request: request(NBD_CMD_WRITE_ZEROES, 9), purpose: Purpose::Retry(Vec::new()) },
            Waiting { request: request(NBD_CMD_CACHE, 10), purpose: Purpose::Cache },
        ];
        let refusal = Refusal::new(1, "the export is read-only");
        let remains = Remains {
            terms: Terms { structured: true, contexts: vec![Context::Allocation, Context::State] },
            input: vec![1, 2],
            output: vec![3],
            waiting,
            skip: Some(Skip { left: 100, request: request(NBD_CMD_WRITE, 11), refusal }),
        };
        ConnectionState::new("web".to_owned(), remains)
    }

    fn changed(change: impl FnOnce(&mut ConnectionState)) -> Result<(), StateError> {
        let mut connection = connection();
        change(&mut connection);
        let listen = Listen::Tcp("127.0.0.1:10809".parse().unwrap());
        ServerState::new(&listen, None, vec![connection]).check(2)
    }

    /// The bytes of version 1, for ever.
    #[test]
    fn golden() {
        let listen = Listen::Unix("/var/lib/brant/nbd/web.sock".into());
        let state = ServerState::new(&listen, Some((2049, 77)), vec![connection()]);
        let bytes = minicbor::to_vec(&state).unwrap();
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/server-v1.cbor");
        if std::env::var_os("BRANT_WRITE_GOLDEN").is_some() {
            std::fs::write(&golden, &bytes).unwrap();
        }
        assert!(std::fs::read(&golden).unwrap() == bytes, "the encoding of version 1 has changed");
        let decoded: ServerState = minicbor::decode(&bytes).unwrap();
        assert_eq!(decoded, state);
        assert_eq!(decoded.listen().unwrap(), listen);
        let again = ConnectionState::new("web".to_owned(), decoded.connections[0].remains().unwrap());
        assert_eq!(again, connection());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(changed(|_| ()), Ok(()));
        assert_eq!(changed(|connection| connection.contexts.push(9)), Err(StateError::Context(9)));
        let read = |from| changed(move |connection| connection.waiting[0].unanswered_from = from);
        assert_eq!(read(Some(511)), Err(StateError::Waiting { cookie: 7 }));
        assert_eq!(read(Some(512 + 4096)), Err(StateError::Waiting { cookie: 7 }));
        assert_eq!(read(None), Err(StateError::Waiting { cookie: 7 }));
        let write = changed(|connection| connection.waiting[1].payload = Some(vec![0; 4].into()));
        assert_eq!(write, Err(StateError::Waiting { cookie: 8 }));
        let flush = changed(|connection| connection.waiting[3].request.command = 3);
        assert_eq!(flush, Err(StateError::Waiting { cookie: 10 }));
        let skip = changed(|connection| connection.skip.as_mut().unwrap().left_bytes = u64::MAX);
        assert_eq!(skip, Err(StateError::Skip(u64::MAX)));
        let listen = Listen::Unix("/socket".into());
        let state = ServerState::new(&listen, None, Vec::new());
        assert_eq!(state.check(2), Err(StateError::Sockets { sockets: 2, connections: 0 }));
        let nowhere = ServerState { path: None, ..state };
        assert!(matches!(nowhere.check(1), Err(StateError::Listen(_))));
    }
}

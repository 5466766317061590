//! What the swarm needs of a network: authenticated connections between endpoints, with many streams on each.
//!
//! Invariant: [`Connection::peer`] is who really is at the other end; everything else that comes from there is foreign.
//! The swarm's own protocol is above this line (`message`), addresses and encryption are below it. There are two
//! implementations: QUIC by iroh, and memory with faults for tests.

pub mod iroh;
pub mod memory;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use types::EndpointId;

/// What is spoken on a connection; both ends agree on it when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Parts of snapshots, which the swarm itself asks for and serves.
    Chunks,
    /// Volumes among the nodes of one cluster; the swarm passes these connections on.
    Cluster,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Chunks, Self::Cluster];

    /// Its name in the handshake of TLS (RFC 7301).
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Chunks => crate::message::ALPN,
            Self::Cluster => b"brant/cluster/1",
        }
    }

    /// The protocol of a name.
    #[must_use]
    pub fn of_alpn(alpn: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.alpn() == alpn)
    }
}

/// A network operation failed. Every one of these may pass: the swarm tries again, or elsewhere.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Nobody knows where the endpoint can be reached.
    #[error("no address is known for endpoint {0}")]
    NoAddress(EndpointId),
    /// An id is not a public key, so that nobody can have it.
    #[error("{0} is not the id of an endpoint")]
    NotAnEndpoint(EndpointId),
    /// The endpoint could not be started.
    #[error("could not bind the endpoint")]
    Bind(#[source] BoxError),
    /// A connection could not be made.
    #[error("could not connect to endpoint {peer}")]
    Connect {
        /// Whom to.
        peer: EndpointId,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// A connection or stream was lost or ended.
    #[error("the connection was lost")]
    Lost(#[source] BoxError),
    /// The other end stopped in the middle of a message, or sent a longer one than is allowed.
    #[error("the stream ended in the wrong place")]
    Framing,
    /// The other end did not answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// The transport was closed.
    #[error("the transport is closed")]
    Closed,
}

/// Any error of a network library.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The two directions of a stream.
pub type Stream = (Box<dyn SendStream>, Box<dyn ReceiveStream>);

/// A connection that someone is making to us: the rest of its handshake, which takes as long as that end likes.
pub type Incoming = BoxFuture<'static, Result<Arc<dyn Connection>, TransportError>>;

/// A way to reach other endpoints and to be reached.
pub trait Transport: Send + Sync + Debug {
    /// This end's id.
    fn endpoint(&self) -> EndpointId;

    /// Where this end can be reached, as far as it knows itself.
    fn addresses(&self) -> Vec<SocketAddr>;

    /// Connects to an endpoint. Dropping the future gives up.
    fn connect(
        &self,
        peer: EndpointId,
        protocol: Protocol,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, TransportError>>;

    /// Waits for the next connection that someone begins to make to us; `None` once closed.
    fn accept(&self) -> BoxFuture<'_, Option<Incoming>>;

    /// Closes all connections and stops.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A connection to a peer whose identity has been proven.
pub trait Connection: Send + Sync + Debug {
    /// Who is at the other end.
    fn peer(&self) -> EndpointId;

    /// What is spoken on it.
    fn protocol(&self) -> Protocol;

    /// Opens a stream. The peer hears of it with the first bytes sent.
    fn open(&self) -> BoxFuture<'_, Result<Stream, TransportError>>;

    /// Waits for the next stream that the peer opens, in the order in which it opens them.
    fn accept(&self) -> BoxFuture<'_, Result<Stream, TransportError>>;

    /// Whether the connection has ended.
    fn is_closed(&self) -> bool;

    /// Ends the connection.
    fn close(&self);
}

/// The sending direction of a stream. Dropped without [`finish`](SendStream::finish), it is reset.
pub trait SendStream: Send {
    /// Sends bytes, waiting while the peer is slower.
    fn send(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), TransportError>>;

    /// Says that nothing follows.
    fn finish(&mut self);

    /// Prefers this stream to others of the same connection with lower numbers.
    fn set_priority(&mut self, priority: i32);
}

/// The receiving direction of a stream. Dropped early, the peer is told to stop.
pub trait ReceiveStream: Send {
    /// Receives exactly `length` bytes; `None` if the stream ends before the first of them.
    fn receive(&mut self, length: usize) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>>;

    /// Receives everything up to the end, at most `limit` bytes.
    fn receive_all(&mut self, limit: usize) -> BoxFuture<'_, Result<Bytes, TransportError>>;
}

//! One connection's TLS session: what is received is decrypted, what is sent encrypted, on the thread that serves it.
//!
//! It stands between a [`super::link::Link`] and its socket once TLS was begun; a link without TLS never comes here.
//! Invariants: everything whole that was received is decrypted at once, so that nothing waits here while the socket looks
//! silent; what was encrypted is sent to its end, or the connection is over.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{Error, ServerConfig};

/// What one receive takes, and the most that is decrypted at once, in bytes. A TLS record has at most 16 KiB and a little.
const INCOMING_BYTES: usize = 256 << 10;
/// What is encrypted before it is sent, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// About what encrypting adds to a piece, in bytes: for each 16 KiB, a header and a tag.
const OVERHEAD_BYTES: usize = (PIECE_BYTES / (16 << 10) + 1) * 64;

/// A session.
pub(crate) struct Session {
    connection: UnbufferedServerConnection,
    /// Received, and not decrypted from `start` to `end`.
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    /// Decrypted, and not taken from `taken` on.
    plain: Vec<u8>,
    taken: usize,
    outgoing: Vec<u8>,
    ended: bool,
    /// Whether a socket's time limit only makes a send look again.
    patient: bool,
}

/// What the session could do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The handshake waits for the client.
    Handshake,
    /// Data may be sent.
    Traffic,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl Session {
    /// Does the server's part of the handshake; `before_waiting` is called before each receive and may end it.
    pub(crate) fn begin(
        config: Arc<ServerConfig>,
        socket: &OwnedFd,
        mut before_waiting: impl FnMut() -> io::Result<()>,
    ) -> io::Result<Session> {
        let mut session = Session {
            connection: UnbufferedServerConnection::new(config).map_err(invalid)?,
            incoming: vec![0; INCOMING_BYTES],
            start: 0,
            end: 0,
            plain: Vec::new(),
            taken: 0,
            outgoing: Vec::new(),
            ended: false,
            patient: false,
        };
        while session.advance(socket)? == Step::Handshake {
            before_waiting()?;
            if !session.fill(socket)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(session)
    }

    /// Lets sends wait for as long as the client takes, whatever the socket's time limit.
    pub(crate) fn be_patient(&mut self) {
        self.patient = true;
    }

    /// Whether something can be received without asking the socket.
    pub(crate) fn has_received(&self) -> bool {
        self.ended || self.taken < self.plain.len()
    }

    /// Receives at least one byte, or 0 at the end of the stream.
    pub(crate) fn receive(&mut self, socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.has_received() {
            if self.fill(socket)? {
                self.advance(socket)?;
            } else {
                // The protocol above has its own word for the end, so a missing one of TLS hides nothing.
                self.ended = true;
            }
        }
        let length = buffer.len().min(self.plain.len() - self.taken);
        buffer[..length].copy_from_slice(&self.plain[self.taken..self.taken + length]);
        self.taken += length;
        if self.taken == self.plain.len() {
            self.plain.clear();
            self.taken = 0;
        }
        Ok(length)
    }

    /// Sends all of it.
    pub(crate) fn send(&mut self, socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.advance(socket)?;
            self.outgoing.resize(PIECE_BYTES + OVERHEAD_BYTES, 0);
            let UnbufferedStatus { state, .. } =
                self.connection.process_tls_records(&mut self.incoming[self.start..self.end]);
            let ConnectionState::WriteTraffic(mut traffic) = state.map_err(invalid)? else {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the TLS session is over"));
            };
            let length = match traffic.encrypt(piece, &mut self.outgoing) {
                Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size, .. })) => {
                    self.outgoing.resize(required_size, 0);
                    traffic.encrypt(piece, &mut self.outgoing)
                }
                result => result,
            };
            let length = length.map_err(|error| io::Error::other(error.to_string()))?;
            send_all(socket, &self.outgoing[..length], self.patient)?;
        }
        self.outgoing.clear();
        Ok(())
    }

    /// Tells the client that nothing more will come, if its socket takes that at once.
    pub(crate) fn farewell(&mut self, socket: &OwnedFd) {
        let mut bytes = [0; 128];
        let status = self.connection.process_tls_records(&mut self.incoming[self.start..self.end]);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state
            && let Ok(length) = traffic.queue_close_notify(&mut bytes)
        {
            // A client that is gone needs no farewell.
            let _ = send(socket, &bytes[..length], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }

    /// Receives more; false at the end of the stream.
    fn fill(&mut self, socket: &OwnedFd) -> io::Result<bool> {
        self.incoming.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.incoming.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the client sends TLS records without end"));
        }
        loop {
            match recv(socket, &mut self.incoming[self.end..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                result => {
                    let length = result?.0;
                    self.end += length;
                    return Ok(length > 0);
                }
            }
        }
    }

    /// Decrypts what is whole and sends what the session itself has to say, until nothing is left to do.
    fn advance(&mut self, socket: &OwnedFd) -> io::Result<Step> {
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.connection.process_tls_records(&mut self.incoming[self.start..self.end]);
            let step = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(invalid)?;
                        discard += record.discard;
                        self.plain.extend_from_slice(record.payload);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let filled = self.outgoing.len();
                    if let Err(EncodeError::InsufficientSize(error)) = data.encode(&mut []) {
                        self.outgoing.resize(filled + error.required_size, 0);
                    }
                    data.encode(&mut self.outgoing[filled..]).map_err(|error| io::Error::other(error.to_string()))?;
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    send_all(socket, &self.outgoing, self.patient)?;
                    self.outgoing.clear();
                    data.done();
                    None
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Step::Handshake),
                Ok(ConnectionState::WriteTraffic(_)) => Some(Step::Traffic),
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.ended = true;
                    Some(Step::Traffic)
                }
                Ok(other) => return Err(io::Error::other(format!("TLS went to {other:?}"))),
                Err(error) => return Err(self.complain(socket, error)),
            };
            self.start += discard;
            if let Some(step) = step {
                return Ok(step);
            }
        }
    }

    /// Tells the client, as far as that goes, what was wrong with what it sent.
    fn complain(&mut self, socket: &OwnedFd, error: Error) -> io::Error {
        while let Ok(ConnectionState::EncodeTlsData(mut data)) = self.connection.process_tls_records(&mut []).state {
            let mut alert = [0; 256];
            let Ok(length) = data.encode(&mut alert) else { break };
            if send_all(socket, &alert[..length], false).is_err() {
                break;
            }
        }
        invalid(error)
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Sends all. Half a record cannot be taken back: whoever is not patient has to give the connection up.
fn send_all(socket: &OwnedFd, bytes: &[u8], patient: bool) -> io::Result<()> {
    let mut left = bytes;
    while !left.is_empty() {
        match send(socket, left, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if patient => {}
            result => left = &left[result?..],
        }
    }
    Ok(())
}

//! One connection to a server with many requests in flight: threads send, one thread receives and hands out.
//!
//! A connection that fails once is of no use any more: every request in flight gets the reason.

use std::collections::HashMap;
use std::io::{BufReader, IoSlice, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::handshake::{Export, negotiate};
use super::reply::{Answer, Failure, Gathering, Header, Wanted};
use super::stream::{Deadline, Stream};
use super::uri::NbdUri;
use super::{Lost, NbdError, error_of, number};

/// One request's kind and place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) command: u16,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    fn verb(&self) -> &'static str {
        match self.command {
            number::COMMAND_READ => "read",
            number::COMMAND_WRITE => "write",
            number::COMMAND_FLUSH => "flush",
            number::COMMAND_WRITE_ZEROES => "zero",
            _ => "tell the status of",
        }
    }

    fn encode(&self, cookie: u64) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..4].copy_from_slice(&number::REQUEST_MAGIC.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    fn failed(&self, failure: Failure) -> NbdError {
        NbdError::Request {
            command: self.verb(),
            offset: self.offset,
            length: u64::from(self.length),
            message: failure.message,
            source: error_of(failure.error),
        }
    }
}

type Outcome = Result<Result<Answer, Failure>, Lost>;

struct Pending {
    gathering: Gathering,
    sender: SyncSender<Outcome>,
}

#[derive(Default)]
struct State {
    pending: HashMap<u64, Pending>,
    lost: Option<Lost>,
}

/// What senders and the receiver share.
struct Shared {
    stream: Stream,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half done here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the connection up, and tells everyone who waits.
    fn fail(&self, lost: Lost) -> Lost {
        let mut state = self.state();
        let reason = state.lost.get_or_insert(lost).clone();
        let pending = std::mem::take(&mut state.pending);
        drop(state);
        self.stream.shutdown(Shutdown::Both);
        for pending in pending.into_values() {
            // Whoever does not wait any more does not need it.
            let _: Result<(), _> = pending.sender.send(Err(reason.clone()));
        }
        reason
    }

    fn receive(&self) -> Lost {
        let mut stream = BufReader::with_capacity(256 << 10, &self.stream);
        loop {
            if let Err(lost) = self.receive_one(&mut stream) {
                return lost;
            }
        }
    }

    fn receive_one(&self, stream: &mut impl Read) -> Result<(), Lost> {
        let header = Header::read(stream)?;
        let pending = self.state().pending.remove(&header.cookie());
        let mut pending = pending.ok_or(Lost::Protocol("a reply to nothing"))?;
        match pending.gathering.take(&header, stream) {
            Ok(false) => {
                self.state().pending.insert(header.cookie(), pending);
                Ok(())
            }
            outcome => {
                let outcome = outcome.and_then(|_| pending.gathering.finish());
                let broken = outcome.as_ref().err().cloned();
                let _: Result<(), _> = pending.sender.send(outcome);
                broken.map_or(Ok(()), Err)
            }
        }
    }
}

pub(super) struct Connection {
    shared: Arc<Shared>,
    /// Held while a request is sent, so that requests do not mix.
    sending: Mutex<()>,
    next_cookie: AtomicU64,
    receiver: Option<JoinHandle<()>>,
    reply_timeout: Duration,
    pub(super) export: Export,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("export", &self.export).finish_non_exhaustive()
    }
}

/// A request that was sent and whose reply is awaited.
pub(super) struct Ticket<'c> {
    connection: &'c Connection,
    request: Request,
    receiver: Receiver<Outcome>,
}

impl Connection {
    pub(super) fn open(uri: &NbdUri, connect: Duration, reply: Duration) -> Result<Self, NbdError> {
        let address = || uri.address.to_string();
        let until = Instant::now() + connect;
        let stream = Stream::connect(&uri.address, connect)
            .map_err(|source| NbdError::Connect { address: address(), source })?;
        let export = negotiate(&mut Deadline { stream: &stream, until }, &uri.export).map_err(|error| match error {
            NbdError::Lost(lost) if timed_out(&lost) => NbdError::Stalled { seconds: connect.as_secs() },
            other => other,
        })?;
        let setup = stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(Some(reply)));
        setup.map_err(|source| NbdError::Connect { address: address(), source })?;
        let shared = Arc::new(Shared { stream, state: Mutex::default() });
        let receiving = Arc::clone(&shared);
        let receiver = std::thread::Builder::new()
            .name("nbd-receive".into())
            .spawn(move || {
                let lost = receiving.receive();
                receiving.fail(lost);
            })
            .map_err(|source| NbdError::Connect { address: address(), source })?;
        Ok(Self {
            shared,
            sending: Mutex::default(),
            next_cookie: AtomicU64::new(1),
            receiver: Some(receiver),
            reply_timeout: reply,
            export,
        })
    }

    pub(super) fn is_lost(&self) -> bool {
        self.shared.state().lost.is_some()
    }

    /// Sends a request, with the data of a write.
    pub(super) fn send(&self, request: Request, wanted: Wanted, data: &[u8]) -> Result<Ticket<'_>, NbdError> {
        let cookie = self.next_cookie.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = sync_channel(1);
        let gathering = Gathering::new(wanted, self.export.structured);
        {
            let mut state = self.shared.state();
            if let Some(lost) = &state.lost {
                return Err(lost.clone().into());
            }
            state.pending.insert(cookie, Pending { gathering, sender });
        }
        let sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = write_both(&self.shared.stream, &request.encode(cookie), data);
        drop(sending);
        if let Err(error) = sent {
            let lost = self.shared.fail(error.into());
            return Err(self.stalled(lost));
        }
        Ok(Ticket { connection: self, request, receiver })
    }

    fn stalled(&self, lost: Lost) -> NbdError {
        if timed_out(&lost) { NbdError::Stalled { seconds: self.reply_timeout.as_secs() } } else { lost.into() }
    }
}

impl Ticket<'_> {
    /// Waits for the reply.
    pub(super) fn wait(self) -> Result<Answer, NbdError> {
        match self.receiver.recv_timeout(self.connection.reply_timeout) {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(failure))) => Err(self.request.failed(failure)),
            Ok(Err(lost)) => Err(self.connection.stalled(lost)),
            Err(RecvTimeoutError::Timeout) => {
                let lost = self.connection.shared.fail(Lost::from(std::io::Error::from(std::io::ErrorKind::TimedOut)));
                Err(self.connection.stalled(lost))
            }
            // The receiver forgets a request only together with its reason.
            Err(RecvTimeoutError::Disconnected) => Err(Lost::Closed.into()),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let goodbye = Request { command: number::COMMAND_DISCONNECT, offset: 0, length: 0 };
        if !self.is_lost()
            && let Err(error) = write_both(&self.shared.stream, &goodbye.encode(0), &[])
        {
            tracing::trace!(%error, "the server did not hear the goodbye");
        }
        self.shared.stream.shutdown(Shutdown::Both);
        if let Some(receiver) = self.receiver.take()
            && receiver.join().is_err()
        {
            tracing::error!("the receiver of an NBD connection panicked");
        }
    }
}

fn timed_out(lost: &Lost) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(lost, Lost::Io(error) if matches!(error.kind(), TimedOut | WouldBlock))
}

/// Writes a head and what follows it, in one system call where the socket takes it.
fn write_both(mut stream: &Stream, head: &[u8], data: &[u8]) -> std::io::Result<()> {
    let mut written = 0;
    while written < head.len() {
        match stream.write_vectored(&[IoSlice::new(&head[written..]), IoSlice::new(data)]) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(length) => written += length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.write_all(&data[written - head.len()..])
}

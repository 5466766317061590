//! One connection after the handshake: receive, serve all that is complete, send, again.
//!
//! Only this thread reads from and writes to the socket. While requests wait for the network it sleeps in a poll, and
//! when as many wait as may, it receives no more. It ends when the client has disconnected, when it is told to, or when
//! the stream is out of step; waits that are left are cancelled then. Held, it ends between two requests with all that
//! another process needs to go on.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::ahead::{Foresight, run_of_writes};
use super::input::Input;
use super::link::{Link, Ready};
use super::protocol::{NBD_CMD_DISC, NBD_CMD_READ, REQUEST_BYTES, Request, WrongMagic, decode_request};
use super::refusal::{Refusal, check};
use super::transmission::{Terms, Transmission};
use super::wait::Waiting;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The stream is out of step.
    #[error("the client sent no request where one belongs")]
    OutOfStep(#[from] WrongMagic),
    /// The client went away with requests unanswered.
    #[error("the client is gone")]
    HungUp,
}

/// How a connection ended in its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client, or the server, has no more to say.
    Done,
    /// It is held between two requests.
    Held,
}

/// A refused write's payload, which is received and thrown away before the refusal is sent.
#[derive(Debug)]
pub(crate) struct Skip {
    pub(crate) left: u64,
    pub(crate) request: Request,
    pub(crate) refusal: Refusal,
}

/// What there is of a connection between two requests, beside its socket.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) terms: Terms,
    /// Received, and not served.
    pub(crate) input: Vec<u8>,
    /// Answered, and not sent.
    pub(crate) output: Vec<u8>,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) skip: Option<Skip>,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    link: Arc<Link>,
    input: Input,
    transmission: Transmission,
    foresight: Foresight,
    skip: Option<Skip>,
    disconnecting: bool,
}

impl Connection {
    pub(crate) fn new(link: Arc<Link>, transmission: Transmission) -> Connection {
        Connection {
            link,
            input: Input::new(),
            transmission,
            foresight: Foresight::default(),
            skip: None,
            disconnecting: false,
        }
    }

    /// Goes on where another connection object, perhaps of another process, was held.
    pub(crate) fn resume(
        link: Arc<Link>,
        mut transmission: Transmission,
        remains: Remains,
    ) -> Result<Connection, ConnectionError> {
        transmission.resume(remains.output, remains.waiting)?;
        let mut connection = Connection::new(link, transmission);
        (connection.input, connection.skip) = (Input::with(&remains.input), remains.skip);
        Ok(connection)
    }

    /// Takes a held connection apart. A client that has disconnected says so again: its word was not consumed.
    pub(crate) fn suspend(mut self) -> Result<Remains, ConnectionError> {
        let (output, waiting) = self.transmission.suspend()?;
        let input = self.input.received().to_vec();
        Ok(Remains { terms: self.transmission.terms().clone(), input, output, waiting, skip: self.skip })
    }

    /// Serves until the end.
    pub(crate) fn run(&mut self) -> Result<End, ConnectionError> {
        self.link.begin_transmission()?;
        let mut lull = false;
        loop {
            for ended in self.transmission.waits.take() {
                self.transmission.ended(ended)?;
            }
            self.serve()?;
            self.transmission.send()?;
            if self.link.holding() {
                return Ok(End::Held);
            }
            let waiting = !self.transmission.waits.is_empty();
            let ending = self.disconnecting || self.link.draining();
            if ending && !waiting {
                return Ok(End::Done);
            }
            let receiving = !ending && !self.transmission.waits.is_full();
            if waiting || lull {
                match self.link.wait(receiving)? {
                    Ready::HungUp => return Err(ConnectionError::HungUp),
                    Ready::Event => continue,
                    Ready::Socket => {}
                }
            }
            let received = self.link.receive_for_a_while(self.input.room())?;
            lull = received.is_none();
            self.input.filled(received.unwrap_or(0));
            // When we are told to end, the stream ends too: then nothing is lost.
            if received == Some(0) && !self.link.draining() {
                return self.end_of_stream();
            }
        }
    }

    /// A client that leaves without a word loses what it waits for.
    fn end_of_stream(&self) -> Result<End, ConnectionError> {
        let idle = self.transmission.waits.is_empty() && self.input.received().is_empty() && self.skip.is_none();
        if idle { Ok(End::Done) } else { Err(ConnectionError::HungUp) }
    }

    /// Serves every complete request that was received, as long as another one may have to wait.
    fn serve(&mut self) -> Result<(), ConnectionError> {
        while !self.disconnecting && !self.transmission.waits.is_full() && !self.link.holding() {
            if let Some(skip) = &mut self.skip {
                let received = self.input.received().len();
                let length = usize::try_from(skip.left).unwrap_or(usize::MAX).min(received);
                self.input.consume(length);
                self.foresight.consumed(length);
                skip.left -= length as u64;
                if skip.left > 0 {
                    return Ok(());
                }
                self.transmission.refuse(&skip.request, &skip.refusal)?;
                self.skip = None;
            }
            let limits = self.transmission.limits();
            self.foresight.look(self.input.received(), &limits, self.transmission.disk());
            let run = run_of_writes(self.input.received(), &limits);
            if run.writes.len() > 1 {
                self.transmission.write_run(&run.writes)?;
                self.transmission.send_if_much()?;
                let length = run.length;
                self.consume(length);
                continue;
            }
            let Some(header) = self.input.header() else { return Ok(()) };
            let request = decode_request(header)?;
            if request.command == NBD_CMD_DISC {
                self.disconnecting = true;
                return Ok(());
            }
            if let Err(refusal) = check(&request, &limits) {
                self.consume(REQUEST_BYTES);
                self.skip = Some(Skip { left: u64::from(request.payload_bytes()), request, refusal });
                continue;
            }
            let Some(payload) = self.input.payload(request.payload_bytes()) else { return Ok(()) };
            let length = REQUEST_BYTES + payload.len();
            let begin = Instant::now();
            self.transmission.perform(&request, payload)?;
            if request.command == NBD_CMD_READ {
                self.foresight.has_read(request.length, begin.elapsed());
            }
            self.transmission.send_if_much()?;
            self.consume(length);
        }
        Ok(())
    }

    fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.foresight.consumed(length);
    }
}

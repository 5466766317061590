//! One connection's socket, and how other threads reach the thread that serves it.
//!
//! The serving thread sleeps in a receive, or in a poll of socket and event when something else may happen, or when
//! nothing has come for a while: a receive cannot be ended from outside without ending the stream, so it ends by itself
//! after a [`LULL`], and a busy connection never pays for a poll. Before it sleeps it stays awake for a moment, as long as
//! that is rewarded: who asks one thing after the other has the next request ready sooner than a processor wakes up. Others never touch the stream's content: they wake the
//! thread, or shut the socket down, which ends its sleep.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketAddrUnix, getsockname, recv, send, shutdown};
use rustls::ServerConfig;

use super::session::Session;

/// How long a receive or a send sleeps before it looks whether it is to be held.
const LULL: Duration = Duration::from_millis(20);

/// How long it is stayed awake for the next request.
const AWAKE: Duration = Duration::from_micros(50);
/// For how many receives, at most, nobody stays awake after that was in vain.
const MOST_NAPS: u32 = 64;

/// A wake-up call between threads.
#[derive(Debug)]
pub(crate) struct Event(OwnedFd);

impl Event {
    pub(crate) fn new() -> io::Result<Event> {
        Ok(Event(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn wake(&self) {
        // Any number but zero will do. It fails only when the counter is full: then the other side was woken already.
        let _ = rustix::io::write(&self.0, &1_u64.to_le_bytes());
    }

    pub(crate) fn clear(&self) {
        // It fails only when nobody has called.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }
}

/// What ended a sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// There is something to receive, be it the end.
    Socket,
    /// Another thread has called.
    Event,
    /// The client is gone.
    HungUp,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    socket: OwnedFd,
    event: Event,
    draining: AtomicBool,
    holding: AtomicBool,
    /// For how many receives it sleeps at once, and for how many it did the last time.
    naps: AtomicU32,
    last_naps: AtomicU32,
    /// Once TLS was begun; only the serving thread locks it.
    session: OnceLock<Mutex<Session>>,
}

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Link> {
        Ok(Link {
            socket,
            event: Event::new()?,
            draining: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            naps: AtomicU32::new(0),
            last_naps: AtomicU32::new(0),
            session: OnceLock::new(),
        })
    }

    /// Begins TLS: from here on, everything that is received was encrypted, and everything sent is. `before_waiting` is
    /// called before each receive of the handshake, and may end it.
    pub(crate) fn begin_tls(
        &self,
        config: Arc<ServerConfig>,
        before_waiting: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let session = Session::begin(config, &self.socket, before_waiting)?;
        self.session.set(Mutex::new(session)).map_err(|_| io::Error::other("TLS was begun before"))
    }

    /// Whether TLS was begun.
    pub(crate) fn encrypted(&self) -> bool {
        self.session.get().is_some()
    }

    fn session(&self) -> Option<MutexGuard<'_, Session>> {
        self.session.get().map(|session| session.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Receives at least one byte, or 0 at the end of the stream.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        debug_assert!(!buffer.is_empty(), "an empty receive looks like the end");
        if let Some(mut session) = self.session() {
            return session.receive(&self.socket, buffer);
        }
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                result => return Ok(result?.0),
            }
        }
    }

    /// Receives exactly this many bytes.
    pub(crate) fn receive_exact(&self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.receive(&mut buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => filled += length,
            }
        }
        Ok(())
    }

    /// Receives at least one byte, or 0 at the end of the stream; `None` if nothing has come for a [`LULL`].
    pub(crate) fn receive_for_a_while(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        if let Some(received) = self.receive_awake(buffer) {
            return received.map(Some);
        }
        match self.receive(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            result => result.map(Some),
        }
    }

    /// Receives what comes at once or in a moment; `None` where that is nothing, or has been in vain lately.
    fn receive_awake(&self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        if self.encrypted() {
            return None;
        }
        let naps = self.naps.load(Ordering::Relaxed);
        if naps > 0 {
            self.naps.store(naps - 1, Ordering::Relaxed);
            return None;
        }
        let begin = Instant::now();
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) if begin.elapsed() < AWAKE => std::thread::yield_now(),
                Err(Errno::AGAIN | Errno::INTR) => break,
                result => {
                    self.last_naps.store(0, Ordering::Relaxed);
                    return Some(result.map(|(length, _)| length).map_err(io::Error::from));
                }
            }
        }
        let naps = (self.last_naps.load(Ordering::Relaxed) * 2 + 1).min(MOST_NAPS);
        self.last_naps.store(naps, Ordering::Relaxed);
        self.naps.store(naps, Ordering::Relaxed);
        None
    }

    /// Sends all, or as much as the client takes before this is to be held; how much that was.
    pub(crate) fn send_unless_held(&self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(mut session) = self.session() {
            session.send(&self.socket, bytes)?;
            return Ok(bytes.len());
        }
        let mut sent = 0;
        while sent < bytes.len() {
            match send(&self.socket, &bytes[sent..], SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.holding() => break,
                Err(Errno::AGAIN) => {}
                result => sent += result?,
            }
        }
        Ok(sent)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        if let Some(mut session) = self.session() {
            return session.send(&self.socket, bytes);
        }
        let mut left = bytes;
        while !left.is_empty() {
            match send(&self.socket, left, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                result => left = &left[result?..],
            }
        }
        Ok(())
    }

    /// Bounds every receive and send from now on, or lets them wait for ever.
    pub(crate) fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, timeout)?;
        set_socket_timeout(&self.socket, Timeout::Send, timeout)?;
        Ok(())
    }

    /// Bounds every receive and send from now on by a [`LULL`].
    pub(crate) fn begin_transmission(&self) -> io::Result<()> {
        if let Some(mut session) = self.session() {
            session.be_patient();
        }
        self.set_timeout(Some(LULL))
    }

    /// Sleeps until another thread calls.
    pub(crate) fn wait_for_call(&self) -> io::Result<()> {
        let mut watched = [PollFd::new(&self.event.0, PollFlags::IN)];
        while watched[0].revents().is_empty() {
            match poll(&mut watched, None) {
                Err(Errno::INTR) => {}
                result => drop(result?),
            }
        }
        self.event.clear();
        Ok(())
    }

    /// Sleeps until another thread calls, the client is gone, or, if `receiving`, there is something to receive.
    pub(crate) fn wait(&self, receiving: bool) -> io::Result<Ready> {
        if receiving && self.session().is_some_and(|session| session.has_received()) {
            return Ok(Ready::Socket);
        }
        // When we have shut our own side down, the socket reports the end of the stream for ever.
        let of_socket = if self.draining() {
            PollFlags::empty()
        } else if receiving {
            PollFlags::IN | PollFlags::RDHUP
        } else {
            PollFlags::RDHUP
        };
        let mut watched = [PollFd::new(&self.socket, of_socket), PollFd::new(&self.event.0, PollFlags::IN)];
        loop {
            match poll(&mut watched, None) {
                Err(Errno::INTR) => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        let of_socket = watched[0].revents();
        if !watched[1].revents().is_empty() {
            self.event.clear();
            return Ok(Ready::Event);
        }
        let gone = if self.draining() {
            PollFlags::HUP | PollFlags::ERR
        } else {
            PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP
        };
        // What was sent before hanging up is still received, and served.
        if receiving && of_socket.contains(PollFlags::IN) {
            return Ok(Ready::Socket);
        }
        Ok(if of_socket.intersects(gone) { Ready::HungUp } else { Ready::Event })
    }

    /// Whether this is one end of a pair of sockets, where nobody has connected to a place.
    pub(crate) fn is_of_a_pair(&self) -> bool {
        let address = getsockname(&self.socket).ok().and_then(|address| SocketAddrUnix::try_from(address).ok());
        // rustix gives a socket without a name an empty one (`is_unnamed` says no).
        let is_empty = |name: Option<&[u8]>| name.is_none_or(<[u8]>::is_empty);
        address.is_some_and(|address| is_empty(address.path_bytes()) && is_empty(address.abstract_name()))
    }

    /// Whether the client has gone, be it that what it has sent is still to be served.
    pub(crate) fn client_is_gone(&self) -> bool {
        let mut watched = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        // A poll that fails has seen nothing.
        let _ = poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        watched[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP)
    }

    /// Calls the serving thread.
    pub(crate) fn wake(&self) {
        self.event.wake();
    }

    /// Whether no more requests are to be received.
    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether the serving thread is to stop between two requests.
    pub(crate) fn holding(&self) -> bool {
        self.holding.load(Ordering::Acquire)
    }

    /// Makes the serving thread stop between two requests, as soon as it comes there. A connection with TLS is closed: its
    /// keys go to no other process, and its client may connect again.
    pub(crate) fn hold(&self) {
        if self.encrypted() {
            return self.close();
        }
        self.holding.store(true, Ordering::Release);
        self.wake();
    }

    /// Ends a hold; for whoever has joined the serving thread.
    pub(crate) fn release(&self) {
        self.holding.store(false, Ordering::Release);
    }

    /// The socket, for another process.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Lets the serving thread finish what it has received, and then end.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        // It fails only when the client is gone already.
        let _ = shutdown(&self.socket, Shutdown::Read);
        self.wake();
    }

    /// Makes the serving thread end as soon as it has come back from the device.
    pub(crate) fn close(&self) {
        self.draining.store(true, Ordering::Release);
        let _ = shutdown(&self.socket, Shutdown::Both);
        self.wake();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(mut session) = self.session() {
            session.farewell(&self.socket);
        }
    }
}

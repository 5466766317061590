//! The server of one disk: listens at a unix socket, and serves one front-end after the other.
//!
//! Invariant: when [`VhostUserServer::stop`] has returned, nobody changes the disk through it any more.

use std::error::Error;
use std::fmt::Debug;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use export::{ExportError, Listen, Reservation};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use tokio::runtime::Handle;
use volume::BlockDevice;

use crate::call::{Call, wait};
use crate::channel::{Channel, tell};
use crate::message::configuration_changed;
use crate::request::ID_BYTES;
use crate::session::Session;
use crate::worker::Target;

/// Remembers, for the next life of this process, whether a guest has turned the write cache off.
pub trait CacheMode: Send + Sync + Debug {
    /// Remembers it, durably. May block.
    ///
    /// # Errors
    /// Why it cannot be remembered; the guest is refused then.
    fn remember(&self, write_through: bool) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// How a disk is served.
#[derive(Clone, Debug)]
pub struct VhostUserOptions {
    /// How many queues a guest may have at most.
    pub queues: u16,
    /// After how long a read of what nobody has fails; `None` lets it wait for ever.
    pub read_timeout: Option<Duration>,
    /// What the disk calls itself; cut off after 20 bytes.
    pub serial: String,
    /// Whether the write cache was turned off before.
    pub write_through: bool,
    /// Who remembers it.
    pub cache_mode: Arc<dyn CacheMode>,
}

/// What all that serve the disk have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) target: Arc<Target>,
    pub(crate) queues: u16,
    cache_mode: Arc<dyn CacheMode>,
    /// Called once, and for good.
    pub(crate) stop: Call,
    stopping: AtomicBool,
    listener: Reservation,
    /// The front-end that is connected.
    current: Mutex<Option<Channel>>,
    /// Where the front-end hears from the back-end.
    backend_channel: Mutex<Option<OwnedFd>>,
    ended: Mutex<bool>,
    changed: Condvar,
}

/// A disk that is served. Dropping it stops it without grace.
#[derive(Debug)]
pub struct VhostUserServer {
    shared: Arc<Shared>,
    path: PathBuf,
    serving: Option<JoinHandle<()>>,
}

impl VhostUserServer {
    /// Begins to listen and to serve. Reads of what is not here wait on the runtime, which must have a timer.
    ///
    /// # Errors
    /// See [`ExportError`].
    pub fn start(
        path: &Path,
        device: Arc<dyn BlockDevice>,
        runtime: Handle,
        options: VhostUserOptions,
    ) -> Result<VhostUserServer, ExportError> {
        let VhostUserOptions { queues, read_timeout, serial, write_through, cache_mode } = options;
        let mut id = [0; ID_BYTES];
        id.iter_mut().zip(serial.bytes()).for_each(|(place, byte)| *place = byte);
        let write_through = AtomicBool::new(write_through);
        let target = Arc::new(Target { device, runtime, read_timeout, serial: id, write_through });
        let listen = Listen::Unix(path.to_owned());
        let stop = Call::new().map_err(|source| ExportError::Listen { listen: listen.clone(), source })?;
        let shared = Arc::new(Shared {
            target,
            queues,
            cache_mode,
            stop,
            stopping: AtomicBool::new(false),
            listener: Reservation::new(&listen)?,
            current: Mutex::default(),
            backend_channel: Mutex::default(),
            ended: Mutex::default(),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("vhost-user".to_owned()).spawn(move || {
            let ended = Ended(&serving);
            serving.serve();
            drop(ended);
        });
        let serving = Some(thread.map_err(ExportError::Thread)?);
        tracing::info!(path = %path.display(), "vhost-user-blk server started");
        Ok(VhostUserServer { shared, path: path.to_owned(), serving })
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a front-end is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.current().is_some()
    }

    /// Has the guest know the disk's size.
    pub fn follow_size(&self) {
        self.shared.tell_configuration();
    }

    /// Ends the connection of the front-end; it may come again.
    pub fn disconnect(&self) {
        if let Some(channel) = &*self.shared.current() {
            channel.hang_up();
        }
    }

    /// Stops listening, ends the connection after the requests in hand, and removes the socket. What is not answered then, a
    /// front-end that connects again has made again. Where that takes longer than `grace`, nobody waits for the device any
    /// more. Blocks; not for async threads.
    pub fn stop(mut self, grace: Duration) {
        self.shut_down(grace);
    }

    /// As [`VhostUserServer::stop`], so that another process can go on; nobody is made not to wait for the device.
    ///
    /// # Errors
    /// Where a request in hand takes longer than `patience`. The server ends later, or by [`VhostUserServer::stop`].
    pub fn suspend(mut self, patience: Duration) -> Result<(), VhostUserServer> {
        if !self.ends_within(patience) {
            return Err(self);
        }
        self.shut_down(Duration::ZERO);
        Ok(())
    }

    /// Says that it is to end; whether it has done so in time.
    fn ends_within(&self, patience: Duration) -> bool {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.stop.make();
        self.shared.listener.remove();
        let ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.shared.changed.wait_timeout_while(ended, patience, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn shut_down(&mut self, grace: Duration) {
        if self.serving.is_none() {
            return;
        }
        if !self.ends_within(grace) {
            self.shared.target.device.abandon();
        }
        let Some(serving) = self.serving.take() else { return };
        if serving.join().is_err() {
            tracing::error!("the thread of a vhost-user-blk server has panicked");
        }
        tracing::info!(path = %self.path.display(), "vhost-user-blk server stopped");
    }
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        self.shut_down(Duration::ZERO);
    }
}

/// Says that serving has ended, however that came about.
#[derive(Debug)]
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, Option<Channel>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: &Arc<Self>) {
        while !self.stopping.load(Ordering::Acquire) {
            let events = [(self.listener.socket(), PollFlags::IN), (self.stop.as_fd(), PollFlags::IN)];
            if let Err(error) = wait(events) {
                return tracing::error!(%error, "front-ends cannot be waited for");
            }
            let Some(channel) = self.accept() else { continue };
            *self.current() = Some(channel.clone());
            tracing::debug!("a front-end has connected");
            Session::new(Arc::clone(self), channel).run(self.listener.socket());
            *self.current() = None;
        }
    }

    fn accept(&self) -> Option<Channel> {
        match accept_with(self.listener.socket(), SocketFlags::CLOEXEC) {
            Ok(socket) => Some(Channel::new(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => None,
            Err(error) => {
                tracing::warn!(%error, "a front-end could not be accepted");
                // Others may give descriptors back meanwhile.
                std::thread::sleep(Duration::from_secs(1));
                None
            }
        }
    }

    /// Closes a connection that came while there is one.
    pub(crate) fn turn_away(&self) {
        if self.accept().is_some() {
            tracing::warn!("a second front-end was turned away: a disk has one at a time");
        }
    }

    pub(crate) fn set_backend_channel(&self, channel: Option<OwnedFd>) {
        *self.backend_channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    /// Has the front-end look at the configuration.
    pub(crate) fn tell_configuration(&self) {
        let channel = self.backend_channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = channel.as_ref().map(|channel| tell(channel, &configuration_changed())) {
            tracing::warn!(%error, "a front-end was not told that the disk has another size");
        }
    }

    /// Turns the write cache off or on. When it is off, all that was written before is durable.
    pub(crate) fn set_write_through(&self, write_through: bool) -> Result<(), Box<dyn Error + Send + Sync>> {
        let before = self.target.write_through.swap(write_through, Ordering::AcqRel);
        if before == write_through {
            return Ok(());
        }
        let flushed = if write_through { self.target.device.flush().map_err(Into::into) } else { Ok(()) };
        let done = flushed.and_then(|()| self.cache_mode.remember(write_through));
        if done.is_err() && !write_through {
            // It stays off.
            self.target.write_through.store(true, Ordering::Release);
        }
        tracing::info!(write_through, "a guest has changed its write cache");
        done
    }
}

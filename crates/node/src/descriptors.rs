//! The descriptor socket: callers open local files themselves and pass them here for a ticket.
//!
//! The node often runs as root; it must not open paths for others. A ticket is random, good for one use and a minute.

use std::collections::HashMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

/// How long a ticket is good.
const TICKET_LIFE: Duration = Duration::from_secs(60);

/// How many tickets may wait to be used.
const MAX_TICKETS: usize = 256;

/// The files that were passed and wait to be used.
#[derive(Debug, Default)]
pub(crate) struct Tickets {
    waiting: Mutex<HashMap<String, (Instant, File)>>,
}

impl Tickets {
    /// Takes the file of a ticket; `None` where it is unknown, used, or too old.
    pub(crate) fn redeem(&self, ticket: &str) -> Option<File> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, file) = waiting.remove(ticket)?;
        (since.elapsed() < TICKET_LIFE).then_some(file)
    }

    fn issue(&self, file: File) -> std::io::Result<String> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| std::io::Error::other(error.to_string()))?;
        let ticket = HEXLOWER.encode(&random);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| since.elapsed() < TICKET_LIFE);
        if waiting.len() >= MAX_TICKETS {
            return Err(std::io::Error::other("too many descriptors wait to be used"));
        }
        waiting.insert(ticket.clone(), (Instant::now(), file));
        Ok(ticket)
    }
}

/// Serves the descriptor socket until the future is dropped.
///
/// # Errors
/// When the socket fails.
pub(crate) async fn serve(listener: UnixListener, tickets: Arc<Tickets>) -> std::io::Result<()> {
    loop {
        accept(&listener, &tickets).await?;
    }
}

async fn accept(listener: &UnixListener, tickets: &Arc<Tickets>) -> std::io::Result<()> {
    let (stream, _) = listener.accept().await?;
    let tickets = Arc::clone(tickets);
    tokio::spawn(async move {
        // A caller that does not send within seconds is not one of ours.
        let exchange = tokio::time::timeout(Duration::from_secs(10), exchange(stream, &tickets));
        if let Ok(Err(error)) = exchange.await {
            tracing::debug!(%error, "a caller of the descriptor socket went away");
        }
    });
    Ok(())
}

async fn exchange(mut stream: UnixStream, tickets: &Tickets) -> std::io::Result<()> {
    let descriptor = stream.async_io(Interest::READABLE, || receive(&stream)).await?;
    let ticket = tickets.issue(File::from(descriptor))?;
    stream.write_all(ticket.as_bytes()).await?;
    stream.shutdown().await
}

fn receive(stream: &UnixStream) -> std::io::Result<OwnedFd> {
    let mut byte = [0; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| std::io::Error::other("no descriptor was passed"))
}

/// Whether something answers at a unix socket.
pub(crate) fn answers(path: &Path) -> bool {
    StdUnixStream::connect(path).is_ok()
}

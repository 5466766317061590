//! Passing open files to the node, which does not open paths for others.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::address::{DESCRIPTOR_SOCKET, Reachable};
use super::{ApiError, Client, ErrorCode};

/// The length of a ticket, in hexadecimal digits.
const TICKET_DIGITS: usize = 32;

/// How long the node may take to hand out a ticket.
const TICKET_TIMEOUT: Duration = Duration::from_secs(30);

impl Client {
    /// Passes an open file to the node and returns the ticket that it is known by there.
    ///
    /// The ticket is good for one request within a minute.
    ///
    /// # Errors
    /// [`ErrorCode::Unreachable`] when the node does not take it.
    pub async fn pass_descriptor(&self, file: File) -> Result<String, ApiError> {
        let socket = self.address().socket()?.with_file_name(DESCRIPTOR_SOCKET);
        let outcome = tokio::task::spawn_blocking(move || exchange(&socket, &file).map_err(|error| (socket, error)));
        match outcome.await {
            Ok(Ok(ticket)) => Ok(ticket),
            Ok(Err((socket, Failure::Connect(error)))) => Err(self.address().unreachable(&socket, &error)),
            Ok(Err((_, Failure::Exchange(error)))) => {
                Err(ApiError::new(ErrorCode::Unreachable, format!("the node did not take the open file: {error}")))
            }
            Err(error) => Err(ApiError::from_error(ErrorCode::Internal, &error)),
        }
    }
}

enum Failure {
    Connect(io::Error),
    Exchange(io::Error),
}

fn exchange(socket: &Path, file: &File) -> Result<String, Failure> {
    let reachable = Reachable::new(socket);
    let stream = UnixStream::connect(reachable.path()).map_err(Failure::Connect)?;
    send(&stream, file).and_then(|()| receive_ticket(stream)).map_err(Failure::Exchange)
}

fn send(stream: &UnixStream, file: &File) -> io::Result<()> {
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
    assert!(fits, "the buffer has room for one descriptor");
    let sent = rustix::io::retry_on_intr(|| sendmsg(stream, &[IoSlice::new(b"F")], &mut control, SendFlags::NOSIGNAL))?;
    if sent == 1 { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn receive_ticket(mut stream: UnixStream) -> io::Result<String> {
    stream.set_read_timeout(Some(TICKET_TIMEOUT))?;
    let mut ticket = [0; TICKET_DIGITS];
    stream.read_exact(&mut ticket)?;
    if !ticket.iter().all(u8::is_ascii_hexdigit) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is not a ticket"));
    }
    Ok(String::from_utf8_lossy(&ticket).into_owned())
}

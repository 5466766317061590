//! The connection with a front-end: messages with descriptors beside them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, Shutdown, recvmsg, send, sendmsg, shutdown,
};

use crate::message::{HEADER_BYTES, Header, MAX_REGIONS, Message, MessageError, decode};

/// A connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    /// What came is no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// More descriptors came than any message has.
    #[error("too many descriptors came with a message")]
    Descriptors,
    /// It broke.
    #[error("the connection with the front-end broke")]
    Io(#[from] io::Error),
}

/// A message with what came beside it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) code: u32,
    pub(crate) need_reply: bool,
    pub(crate) message: Message,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A connection. Others than its reader may only hang up.
#[derive(Clone, Debug)]
pub(crate) struct Channel(Arc<OwnedFd>);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    pub(crate) fn new(socket: OwnedFd) -> Channel {
        Channel(Arc::new(socket))
    }

    /// Ends it: whoever reads gets the end.
    pub(crate) fn hang_up(&self) {
        if let Err(error) = shutdown(&self.0, Shutdown::Both) {
            tracing::debug!(%error, "the front-end had hung up");
        }
    }

    /// The next message; nothing at the end.
    pub(crate) fn receive(&self) -> Result<Option<Received>, ChannelError> {
        let (mut header, mut descriptors) = ([0; HEADER_BYTES], Vec::new());
        if !self.fill(&mut header, &mut descriptors)? {
            return Ok(None);
        }
        let Header { code, need_reply, size_bytes } = Header::decode(&header)?;
        let mut payload = vec![0; size_bytes as usize];
        if !self.fill(&mut payload, &mut descriptors)? {
            return Ok(None);
        }
        Ok(Some(Received { code, need_reply, message: decode(code, &payload)?, descriptors }))
    }

    /// Receives so many bytes; false where the end comes before them.
    fn fill(&self, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<bool, ChannelError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_REGIONS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut buffer[filled..])];
            let received = match recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Ok(false),
                Err(error) => return Err(io::Error::from(error).into()),
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_REGIONS {
                return Err(ChannelError::Descriptors);
            }
            if received.bytes == 0 {
                return Ok(false);
            }
            filled += received.bytes;
        }
        Ok(true)
    }

    /// Sends a message, with a descriptor where there is one.
    pub(crate) fn send(&self, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(descriptor) = &descriptor {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor))), "one fits");
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        whole(sent, message.len())
    }
}

/// Sends a message at a channel of the back-end's own, and waits for nobody.
pub(crate) fn tell(channel: &OwnedFd, message: &[u8]) -> io::Result<()> {
    whole(send(channel, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?, message.len())
}

/// Messages are shorter than any socket's room: one that went in part goes to somebody who does not read.
fn whole(sent: usize, length: usize) -> io::Result<()> {
    if sent == length { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

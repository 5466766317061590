//! Wake-up calls between threads, and between this process and a guest: eventfds.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// A call that anybody may make and one waits for.
#[derive(Debug)]
pub(crate) struct Call(OwnedFd);

impl Call {
    pub(crate) fn new() -> io::Result<Call> {
        Ok(Call(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn make(&self) {
        make(&self.0);
    }

    /// Forgets the calls that were made.
    pub(crate) fn forget(&self) {
        forget(&self.0);
    }
}

impl AsFd for Call {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes a call at somebody's eventfd.
pub(crate) fn make(event: &OwnedFd) {
    // It fails where the counter is full, and so the other side was called; or where it is no eventfd, and nobody waits.
    let _ = rustix::io::write(event, &1_u64.to_le_bytes());
}

/// Takes what calls there were at an eventfd that is ready.
pub(crate) fn forget(event: &OwnedFd) {
    // It fails where nobody has called.
    let _ = rustix::io::read(event, &mut [0_u8; 8]);
}

/// Sleeps until one of some descriptors is ready, and says which are.
pub(crate) fn wait<const N: usize>(events: [(BorrowedFd<'_>, PollFlags); N]) -> io::Result<[bool; N]> {
    let mut polled = events.map(|(event, flags)| PollFd::from_borrowed_fd(event, flags));
    loop {
        match poll(&mut polled, None) {
            Ok(_) => return Ok(std::array::from_fn(|at| !polled[at].revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

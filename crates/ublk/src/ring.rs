//! The rings of io_uring by which the driver is spoken to, and all unsafe code there is.
//!
//! Pushing an entry is unsafe, as the kernel may use memory that it names until it has been completed. Invariants: an entry of
//! [`RequestRing`] names no memory; an entry of [`CommandRing`] names one buffer, which nobody else has until the entry is
//! completed, and which is given up for good where that is not seen.
#![expect(unsafe_code, reason = "entries are pushed onto rings, which no crate has without")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::layout::{COMMIT_AND_FETCH_REQ, FETCH_REQ, answer, control_command};

/// A ring for control commands, one at a time.
pub(crate) struct CommandRing {
    ring: IoUring<Entry128, cqueue::Entry>,
    /// The last command's number, by which its end is known.
    last: u64,
}

impl CommandRing {
    pub(crate) fn new() -> io::Result<CommandRing> {
        let ring = IoUring::<Entry128, cqueue::Entry>::builder().build(2)?;
        Ok(CommandRing { ring, last: 0 })
    }

    /// Sends a command with a buffer, of at most 64 KiB, that the driver reads or fills, and waits for its end. Blocks.
    pub(crate) fn run(
        &mut self,
        control: &File,
        operation: u32,
        device: u32,
        data: u64,
        mut buffer: Box<[u8]>,
    ) -> io::Result<Box<[u8]>> {
        let length = u16::try_from(buffer.len()).map_err(|_| io::Error::from(Errno::INVAL))?;
        let address = if buffer.is_empty() { 0 } else { buffer.as_mut_ptr().expose_provenance() as u64 };
        self.last += 1;
        let command = control_command(device, data, address, length);
        let entry = opcode::UringCmd80::new(types::Fd(control.as_raw_fd()), operation).cmd(command).build();
        let entry = entry.user_data(self.last);
        // SAFETY: The only memory that the entry names is the buffer, with its length. It is ours alone; below it is neither
        // touched nor freed before the entry has been completed, and where that cannot be seen it is never freed. The file
        // stays open for as long as this call lasts, and the kernel holds it from the submission on.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            // One that was never submitted names a buffer that was given up.
            return Err(Errno::NOBUFS.into());
        }
        match self.wait() {
            Ok(result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            Ok(_) => Ok(buffer),
            Err(error) => {
                std::mem::forget(buffer);
                Err(error)
            }
        }
    }

    /// Waits until the last command has ended, and returns its result.
    fn wait(&mut self) -> io::Result<i32> {
        loop {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let ended = self.ring.completion().find(|ended| ended.user_data() == self.last);
            if let Some(ended) = ended {
                return Ok(ended.result());
            }
        }
    }
}

/// A ring for the requests of one queue. Only the thread that makes it may use it.
pub(crate) struct RequestRing(IoUring);

impl RequestRing {
    /// A ring for so many requests, and one descriptor to be watched.
    pub(crate) fn new(requests: u16) -> io::Result<RequestRing> {
        let entries = (u32::from(requests) + 1).next_power_of_two();
        let mut builder = IoUring::builder();
        // Not with IORING_SETUP_DEFER_TASKRUN: what is on its way then waits in the ring, and with it for the thread.
        builder.setup_single_issuer().setup_coop_taskrun();
        builder.build(entries).map(RequestRing)
    }

    /// Asks for the first request of a tag.
    pub(crate) fn fetch(&mut self, device: &File, tag: u16) -> io::Result<()> {
        self.command(device, FETCH_REQ, tag, 0)
    }

    /// Answers a request, and asks for the next one of its tag.
    pub(crate) fn answer(&mut self, device: &File, tag: u16, result: i32) -> io::Result<()> {
        self.command(device, COMMIT_AND_FETCH_REQ, tag, result)
    }

    fn command(&mut self, device: &File, operation: u32, tag: u16, result: i32) -> io::Result<()> {
        let command = answer(tag, result);
        let entry = opcode::UringCmd16::new(types::Fd(device.as_raw_fd()), operation).cmd(command).build();
        let entry = entry.user_data(u64::from(tag));
        // SAFETY: The entry names no memory: its command is within it, and has no address. The descriptor is that of a file
        // that the caller has open at its submission, as `Queue` keeps it for longer than this ring.
        unsafe { self.0.submission().push(&entry) }.map_err(|_| Errno::NOBUFS.into())
    }

    /// Watches a descriptor until it can be read, once.
    pub(crate) fn watch(&mut self, descriptor: BorrowedFd<'_>, name: u64) -> io::Result<()> {
        let flags = u32::from(PollFlags::IN.bits());
        let entry = opcode::PollAdd::new(types::Fd(descriptor.as_raw_fd()), flags).build().user_data(name);
        // SAFETY: The entry names no memory.
        unsafe { self.0.submission().push(&entry) }.map_err(|_| Errno::NOBUFS.into())
    }

    /// Hands over what was pushed.
    pub(crate) fn submit(&self) -> io::Result<()> {
        again(|| self.0.submit())
    }

    /// Hands over what was pushed, and waits until something has ended. Blocks.
    pub(crate) fn submit_and_wait(&self) -> io::Result<()> {
        again(|| self.0.submit_and_wait(1))
    }

    /// The next thing that has ended: its name, and its result.
    pub(crate) fn next(&mut self) -> Option<(u64, i32)> {
        self.0.completion().next().map(|ended| (ended.user_data(), ended.result()))
    }
}

/// Does a call again that a signal has interrupted.
fn again(call: impl Fn() -> io::Result<usize>) -> io::Result<()> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn skip() {
        eprintln!("SKIPPED: io_uring cannot be used here");
    }

    /// A file that knows no such commands refuses them, and gives the buffer back to nobody twice.
    #[test]
    fn a_file_that_is_no_device_refuses_commands() {
        let Ok(mut ring) = CommandRing::new() else { return skip() };
        let file = tempfile::tempfile().unwrap();
        for _ in 0..5 {
            let refused = ring.run(&file, FETCH_REQ, 0, 0, vec![7; 64].into()).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::OPNOTSUPP.raw_os_error()), "{refused}");
        }
    }

    #[test]
    fn what_was_asked_for_ends_by_its_name() {
        let Ok(mut ring) = RequestRing::new(4) else { return skip() };
        let file = tempfile::tempfile().unwrap();
        let event = rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        ring.fetch(&file, 2).unwrap();
        ring.watch(event.as_fd(), 99).unwrap();
        let mut ended = Vec::new();
        while ended.len() < 2 {
            ring.submit_and_wait().unwrap();
            ended.extend(std::iter::from_fn(|| ring.next()));
        }
        ended.sort_unstable();
        assert_eq!(ended[0], (2, -Errno::OPNOTSUPP.raw_os_error()));
        assert!(ended[1].0 == 99 && ended[1].1 > 0, "{ended:?}");
    }
}

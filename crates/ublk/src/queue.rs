//! The requests of one device: taken, given their data, and answered.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::{Bytes as _, FileOffset, MmapRegion, VolatileMemory as _};

use crate::control::UblkError;
use crate::layout::{REQUEST_BYTES, Request, data_offset, mapped_bytes};
use crate::ring::RequestRing;

/// The name of the descriptor that is watched; those of requests are their tags.
const WATCHED: u64 = u64::MAX;

/// Where a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    /// The driver has it, and gives it back with a request.
    Asked,
    /// Its request is being served.
    InHand,
    /// The driver has ended it.
    Ended,
}

/// The line of requests of a device. The thread that makes it is the one that serves the device, and the only one that may use
/// it. Dropping it leaves what is in hand to whoever takes the device over.
///
/// Once the device has begun, it is dropped only after that thread has ended: Linux 6.12 gives a request that is on its way to
/// the thread while that lives, also when the ring has gone, and then waits for its answer for ever.
pub struct Queue {
    // The ring goes before the files that its entries are for.
    ring: RequestRing,
    requests: MmapRegion,
    file: Arc<File>,
    path: String,
    wake: Arc<OwnedFd>,
    tags: Vec<Tag>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Queue").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Queue {
    /// Asks for the requests of a device with one queue of a depth, and for what happens at an eventfd that does not block.
    ///
    /// # Errors
    /// Where the device is served by somebody else, or there is no io_uring.
    pub fn new(number: u32, depth: u16, wake: Arc<OwnedFd>) -> Result<Queue, UblkError> {
        let path = format!("/dev/ublkc{number}");
        let failed = |source: io::Error| UblkError::Device { path: path.clone(), source };
        let file = Arc::new(File::options().read(true).write(true).open(&path).map_err(failed)?);
        let mut ring = RequestRing::new(depth).map_err(UblkError::Ring)?;
        for tag in 0..depth {
            ring.fetch(&file, tag).map_err(failed)?;
        }
        ring.watch(wake.as_fd(), WATCHED).map_err(failed)?;
        // All in one call, and before the requests are mapped: a process that dies before it leaves the device as it was, and
        // one that dies after it leaves one that can be taken over again.
        ring.submit().map_err(failed)?;
        let requests = map(&file, depth).map_err(|source| UblkError::Map { path: path.clone(), source })?;
        Ok(Queue { ring, requests, file, path, wake, tags: vec![Tag::Asked; usize::from(depth)] })
    }

    /// Hands over the answers that were given, and waits until there are requests, which it adds to `requests`, or until the
    /// eventfd was written to. Blocks.
    ///
    /// # Errors
    /// Where the driver cannot be asked any more.
    pub fn wait(&mut self, requests: &mut Vec<Request>) -> Result<(), UblkError> {
        self.ring.submit_and_wait().map_err(|source| self.failed(source))?;
        while let Some((name, result)) = self.ring.next() {
            if name == WATCHED {
                // It fails where nobody has written.
                let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
                self.ring.watch(self.wake.as_fd(), WATCHED).map_err(|source| self.failed(source))?;
                continue;
            }
            let Some((tag, place)) = u16::try_from(name)
                .ok()
                .filter(|tag| usize::from(*tag) < self.tags.len())
                .map(|tag| (tag, usize::from(tag)))
            else {
                continue;
            };
            if result == 0 {
                self.tags[place] = Tag::InHand;
                requests.push(self.request(tag)?);
            } else {
                self.tags[place] = Tag::Ended;
                // The device was stopped, or another ring of its server has ended.
                if result != -Errno::NODEV.raw_os_error() {
                    return Err(self.failed(io::Error::from_raw_os_error(-result)));
                }
            }
        }
        Ok(())
    }

    /// Whether the driver asks for nothing any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.tags.iter().all(|tag| *tag == Tag::Ended)
    }

    /// Hands over the answers that were given, without waiting.
    ///
    /// # Errors
    /// Where the driver cannot be asked any more.
    pub fn submit(&mut self) -> Result<(), UblkError> {
        self.ring.submit().map_err(|source| self.failed(source))
    }

    /// Takes data of a request that writes, from its beginning on.
    ///
    /// # Errors
    /// Where the driver does not give all of it.
    pub fn take(&self, request: &Request, data: &mut [u8]) -> Result<(), UblkError> {
        self.file.read_exact_at(data, data_offset(request.tag, 0)).map_err(|source| self.failed(source))
    }

    /// Gives data to a request that reads, from its beginning on.
    ///
    /// # Errors
    /// Where the driver does not take all of it.
    pub fn give(&self, request: &Request, data: &[u8]) -> Result<(), UblkError> {
        self.file.write_all_at(data, data_offset(request.tag, 0)).map_err(|source| self.failed(source))
    }

    /// Answers a request: that all of it was done, or with an error's number. What is not in hand is not answered.
    ///
    /// # Errors
    /// Where the driver cannot be told any more.
    pub fn answer(&mut self, request: &Request, outcome: Result<(), Errno>) -> Result<(), UblkError> {
        let Some(tag) = self.tags.get_mut(usize::from(request.tag)).filter(|tag| **tag == Tag::InHand) else {
            return Ok(());
        };
        *tag = Tag::Asked;
        let result = match outcome {
            Ok(()) => i32::try_from(request.length).unwrap_or(i32::MAX),
            Err(error) => -error.raw_os_error(),
        };
        self.ring.answer(&self.file, request.tag, result).map_err(|source| self.failed(source))
    }

    /// What the driver asks for with a tag.
    fn request(&self, tag: u16) -> Result<Request, UblkError> {
        let mut bytes = [0; REQUEST_BYTES];
        let read = self.requests.as_volatile_slice().read_slice(&mut bytes, usize::from(tag) * REQUEST_BYTES);
        read.map_err(|source| UblkError::Map { path: self.path.clone(), source: source.into() })?;
        Ok(Request::from_bytes(tag, &bytes))
    }

    fn failed(&self, source: io::Error) -> UblkError {
        UblkError::Device { path: self.path.clone(), source }
    }
}

fn map(file: &Arc<File>, depth: u16) -> Result<MmapRegion, Box<dyn std::error::Error + Send + Sync>> {
    let length = usize::try_from(mapped_bytes(depth))?;
    let offset = FileOffset::from_arc(Arc::clone(file), 0);
    let protection = i32::try_from(ProtFlags::READ.bits())?;
    let flags = i32::try_from(MapFlags::SHARED.bits())?;
    Ok(MmapRegion::build(Some(offset), length, protection, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_from_a_mapping() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(4096).unwrap();
        let mapped = map(&file, 4).unwrap();
        file.write_all_at(&[5, 0, 0, 0, 1, 0, 0, 0, 2], 24).unwrap();
        let mut bytes = [0; REQUEST_BYTES];
        mapped.as_volatile_slice().read_slice(&mut bytes, 24).unwrap();
        let request = Request::from_bytes(1, &bytes);
        assert_eq!((request.offset, request.length), (1024, 512));
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let wake = Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap());
        let error = Queue::new(u32::MAX, 1, wake).unwrap_err();
        assert!(error.to_string().contains("/dev/ublkc4294967295"), "{error}");
    }
}

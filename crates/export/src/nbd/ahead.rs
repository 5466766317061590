//! What can be seen of a connection's next requests before their turn: writes that can be made in one go, and reads that
//! the medium can be told of.
//!
//! Nothing is done here that has to be right: each request is checked, done and answered when its turn comes.

use std::time::Duration;

use super::protocol::{NBD_CMD_FLAG_FUA, NBD_CMD_READ, NBD_CMD_WRITE, REQUEST_BYTES, Request, decode_request};
use super::refusal::{Limits, check};
use crate::disk::{Disk, is_whole};

/// The most writes that are made in one go.
const MOST_WRITES: usize = 64;
/// Behind so many bytes no more writes join those that are made in one go.
const MOST_BYTES: usize = 512 << 10;

/// How many reads the medium is told of at once, and of how many bytes.
const MOST_READS: usize = 64;
const MOST_BYTES_READ: u64 = 4 << 20;

/// A read that takes longer, and half a nanosecond for each byte, had to wait for the medium.
const FAST: Duration = Duration::from_micros(20);
/// For how many reads after such a one the medium is told before.
const SLOW_READS: u32 = 64;

/// Writes that were received one behind the other, and how long they are with their headers.
pub(crate) struct Run<'i> {
    pub(crate) writes: Vec<(Request, &'i [u8])>,
    pub(crate) length: usize,
}

/// The writes of whole sectors that received bytes begin with. One that is not complete, that has to be durable at once, or
/// that must be refused is none of them, and is met when its turn comes.
pub(crate) fn run_of_writes<'i>(received: &'i [u8], limits: &Limits) -> Run<'i> {
    let mut run = Run { writes: Vec::new(), length: 0 };
    while run.writes.len() < MOST_WRITES && run.length < MOST_BYTES {
        let rest = &received[run.length..];
        let Some((request, length)) = complete(rest) else { break };
        let plain = request.command == NBD_CMD_WRITE && !request.has(NBD_CMD_FLAG_FUA);
        if !plain || !is_whole(request.offset, request.length) || check(&request, limits).is_err() {
            break;
        }
        run.writes.push((request, &rest[REQUEST_BYTES..length]));
        run.length += length;
    }
    run
}

/// The request that bytes begin with, and its length with its payload, if all of it is there.
fn complete(bytes: &[u8]) -> Option<(Request, usize)> {
    let request = decode_request(bytes.first_chunk()?).ok()?;
    let length = REQUEST_BYTES + request.payload_bytes() as usize;
    (length <= bytes.len()).then_some((request, length))
}

/// Whether reads wait for the medium, and how far it was told of those that come. While they do not, nothing is told:
/// that would cost about as much as such a read.
#[derive(Debug, Default)]
pub(crate) struct Foresight {
    /// For how many reads more the medium is told.
    slow: u32,
    /// How many of the received bytes have been looked at.
    seen: usize,
}

impl Foresight {
    /// Tells the medium of the reads among what was received, so that it works on all of them at once.
    pub(crate) fn look(&mut self, received: &[u8], limits: &Limits, disk: &Disk) {
        if self.slow == 0 || self.seen > 0 {
            return;
        }
        let mut reads = Vec::new();
        let mut bytes = 0;
        while reads.len() < MOST_READS && bytes < MOST_BYTES_READ {
            let Some((request, length)) = complete(&received[self.seen..]) else { break };
            self.seen += length;
            if request.command == NBD_CMD_READ && check(&request, limits).is_ok() {
                bytes += u64::from(request.length);
                reads.push(request);
            }
        }
        // The next one alone is read at once.
        if reads.len() > 1 {
            reads.iter().for_each(|read| disk.will_read(read.offset, u64::from(read.length)));
        }
    }

    /// Notes that received bytes were consumed.
    pub(crate) fn consumed(&mut self, length: usize) {
        self.seen = self.seen.saturating_sub(length);
    }

    /// Notes how long a read took.
    pub(crate) fn has_read(&mut self, length: u32, took: Duration) {
        let fast = FAST + Duration::from_nanos(u64::from(length) / 2);
        self.slow = if took > fast { SLOW_READS } else { self.slow.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;

    use volume::{BlockDevice, DeviceError, Durability, Extent, Readiness};

    use super::super::protocol::encode_request;
    use super::*;

    /// Notes what it is told.
    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<(u64, u64)>>);

    impl BlockDevice for Told {
        fn size_bytes(&self) -> u64 {
            1 << 30
        }
        fn read_only(&self) -> bool {
            false
        }
        fn try_read(&self, _: u64, _: &mut [u8]) -> Result<Readiness, DeviceError> {
            Err(DeviceError::Closed)
        }
        fn will_read(&self, offset: u64, length: u64) {
            self.0.lock().unwrap().push((offset, length));
        }
        fn read(&self, _: u64, _: usize) -> Pin<Box<dyn Future<Output = Result<Bytes, DeviceError>> + Send + 'static>> {
            Box::pin(async { Err(DeviceError::Closed) })
        }
        fn write(&self, _: u64, _: &[u8], _: Durability) -> Result<(), DeviceError> {
            Err(DeviceError::Closed)
        }
        fn write_zeroes(&self, _: u64, _: u64, _: Durability) -> Result<(), DeviceError> {
            Err(DeviceError::Closed)
        }
        fn discard(&self, _: u64, _: u64, _: Durability) -> Result<(), DeviceError> {
            Err(DeviceError::Closed)
        }
        fn flush(&self) -> Result<(), DeviceError> {
            Err(DeviceError::Closed)
        }
        fn extents(&self, _: u64, _: u64, _: usize) -> Result<Vec<Extent>, DeviceError> {
            Err(DeviceError::Closed)
        }
    }

    fn request(command: u16, offset: u64, length: u32) -> Vec<u8> {
        let request = Request { flags: 0, command, cookie: 1, offset, length };
        let mut bytes = encode_request(&request).to_vec();
        bytes.resize(bytes.len() + request.payload_bytes() as usize, 7);
        bytes
    }

    const LIMITS: Limits = Limits { size_bytes: 1 << 30, read_only: false, structured: false, contexts: false };

    #[test]
    fn the_medium_is_told_of_reads_that_follow_a_slow_one_and_once_of_each() {
        let device = Arc::new(Told::default());
        let disk = Disk::new(device.clone());
        let told = || std::mem::take(&mut *device.0.lock().unwrap());
        let [first, write, second] =
            [request(NBD_CMD_READ, 4100, 8), request(NBD_CMD_WRITE, 0, 512), request(NBD_CMD_READ, 8192, 4096)];
        let beyond = request(NBD_CMD_READ, 1 << 30, 512);
        let received = [&first[..], &write, &beyond, &second, &first[..20]].concat();
        let mut foresight = Foresight::default();
        foresight.look(&received, &LIMITS, &disk);
        assert_eq!(told(), [], "as long as no read is slow");
        foresight.has_read(4096, Duration::from_millis(1));
        foresight.look(&received, &LIMITS, &disk);
        assert_eq!(told(), [(4096, 512), (8192, 4096)]);
        foresight.consumed(first.len());
        foresight.look(&received[first.len()..], &LIMITS, &disk);
        assert_eq!(told(), [], "it knows");
        foresight.consumed(write.len() + beyond.len() + second.len());
        foresight.look(&second, &LIMITS, &disk);
        assert_eq!(told(), [], "one alone is read at once");
        foresight.consumed(second.len());
        (0..SLOW_READS).for_each(|_| foresight.has_read(4096, Duration::from_micros(3)));
        foresight.look(&received, &LIMITS, &disk);
        assert_eq!(told(), [], "they are fast again");
    }

    #[test]
    fn a_run_ends_before_what_is_no_plain_write() {
        let write = request(NBD_CMD_WRITE, 512, 1024);
        let count = |after: &[u8]| run_of_writes(&[&write[..], &write, after].concat(), &LIMITS).writes.len();
        assert_eq!(count(&write), 3);
        assert_eq!(count(&write[..600]), 2, "it is not complete");
        assert_eq!(count(&request(NBD_CMD_READ, 0, 512)), 2);
        assert_eq!(count(&request(NBD_CMD_WRITE, 3, 512)), 2, "it is not of whole sectors");
        assert_eq!(count(&request(NBD_CMD_WRITE, 1 << 30, 512)), 2, "it must be refused");
        assert_eq!(count(&[0; 64]), 2, "it is no request");
        assert_eq!(run_of_writes(&request(NBD_CMD_READ, 0, 512), &LIMITS).length, 0);
        let many = request(NBD_CMD_WRITE, 0, 4096).repeat(1000);
        assert_eq!(run_of_writes(&many, &LIMITS).writes.len(), MOST_WRITES);
    }
}

//! What was received and not served yet.
//!
//! One receive takes as much as fits. A request is served from the buffer itself; only the part of a last, incomplete
//! one is moved to the front. The buffer grows for a large payload up to the protocol's limit, when the header was
//! checked, and shrinks when such payloads have stopped.

use super::protocol::{MAXIMUM_PAYLOAD_BYTES, REQUEST_BYTES};

/// The usual length, in bytes. Untouched pages cost nothing.
const USUAL_BYTES: usize = 1 << 20;
/// After how many refills without a large payload the buffer shrinks.
const PATIENCE: u32 = 64;

/// Received bytes.
#[derive(Debug)]
pub(crate) struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    needed: usize,
    unneeded: u32,
}

impl Input {
    pub(crate) fn new() -> Input {
        Input { buffer: vec![0; USUAL_BYTES], start: 0, end: 0, needed: 0, unneeded: 0 }
    }

    /// What another process has received and not served.
    pub(crate) fn with(received: &[u8]) -> Input {
        let mut input = Input::new();
        input.buffer.resize(received.len().max(USUAL_BYTES), 0);
        input.buffer[..received.len()].copy_from_slice(received);
        input.end = received.len();
        input
    }

    /// What was not consumed yet.
    pub(crate) fn received(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(crate) fn header(&self) -> Option<&[u8; REQUEST_BYTES]> {
        self.received().first_chunk()
    }

    /// A request's payload, if all of it is here; else the buffer makes room for it at the next
    /// [`Input::room`].
    pub(crate) fn payload(&mut self, length: u32) -> Option<&[u8]> {
        debug_assert!(length <= MAXIMUM_PAYLOAD_BYTES, "checked before");
        let whole = REQUEST_BYTES + length as usize;
        if self.end - self.start < whole {
            self.needed = whole;
            return None;
        }
        Some(&self.buffer[self.start + REQUEST_BYTES..self.start + whole])
    }

    pub(crate) fn consume(&mut self, length: usize) {
        self.start += length;
        assert!(self.start <= self.end, "consumed more than was received");
    }

    /// The free part of the buffer, never empty: what is received goes there, then [`Input::filled`] is called.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.adapt();
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    pub(crate) fn filled(&mut self, length: usize) {
        self.end += length;
        assert!(self.end <= self.buffer.len(), "received more than there was room for");
    }

    fn adapt(&mut self) {
        let needed = std::mem::take(&mut self.needed);
        if needed > USUAL_BYTES {
            self.unneeded = 0;
            if needed > self.buffer.len() {
                self.buffer.resize(needed, 0);
            }
        } else if self.buffer.len() > USUAL_BYTES && self.start == self.end {
            self.unneeded += 1;
            if self.unneeded > PATIENCE {
                *self = Input::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(input: &mut Input, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            let room = input.room();
            let length = room.len().min(left.len());
            room[..length].copy_from_slice(&left[..length]);
            input.filled(length);
            left = &left[length..];
        }
    }

    #[test]
    fn an_incomplete_payload_waits_for_its_rest() {
        let mut input = Input::new();
        receive(&mut input, &[1; REQUEST_BYTES + 10]);
        assert_eq!(input.header(), Some(&[1; REQUEST_BYTES]));
        assert_eq!(input.payload(20), None);
        receive(&mut input, &[2; 10]);
        assert_eq!(input.payload(20), Some([[1; 10], [2; 10]].concat().as_slice()));
        input.consume(REQUEST_BYTES + 20);
        assert_eq!(input.header(), None);
    }

    #[test]
    fn the_buffer_grows_for_a_payload_and_shrinks_later() {
        let mut input = Input::new();
        let large = 3 << 20;
        receive(&mut input, &[1; REQUEST_BYTES]);
        assert_eq!(input.payload(large), None);
        receive(&mut input, &vec![5; large as usize]);
        assert!(input.payload(large).is_some());
        input.consume(REQUEST_BYTES + large as usize);
        for _ in 0..PATIENCE {
            assert!(input.room().len() > USUAL_BYTES);
        }
        assert_eq!(input.room().len(), USUAL_BYTES);
    }
}

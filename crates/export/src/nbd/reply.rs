//! Replies gathered for one send.
//!
//! The buffer is made once and filled in place, also by the device's reads, so that data are copied once. What has
//! been begun can be taken back as long as it was not sent.

use super::protocol::{
    CHUNK_HEADER_BYTES, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_ERROR,
    NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_TYPE_OFFSET_HOLE, SIMPLE_REPLY_BYTES, encode_chunk_header,
    encode_simple_reply,
};
use super::refusal::Refusal;

/// What the buffer holds when idle, in bytes. Untouched pages cost nothing.
const USUAL_BYTES: usize = 1 << 20;

/// The most that surrounds one content: a header and an offset.
pub(crate) const FRAME_BYTES: usize = CHUNK_HEADER_BYTES + 8;

/// Replies that were not sent yet.
#[derive(Debug)]
pub(crate) struct Replies {
    buffer: Vec<u8>,
    filled: usize,
}

impl Replies {
    pub(crate) fn new() -> Replies {
        Replies { buffer: vec![0; USUAL_BYTES], filled: 0 }
    }

    pub(crate) fn pending(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Whether this many bytes of content, and what surrounds them, fit behind what is there.
    pub(crate) fn fits(&self, content: usize) -> bool {
        self.buffer.len() - self.filled >= content + FRAME_BYTES
    }

    /// Forgets what was sent, and gives back what an unusually large reply took.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        if self.buffer.len() > USUAL_BYTES {
            self.buffer = vec![0; USUAL_BYTES];
        }
    }

    /// Takes back everything from a [`Replies::mark`] on.
    pub(crate) fn take_back(&mut self, mark: usize) {
        self.filled = mark;
    }

    pub(crate) fn mark(&self) -> usize {
        self.filled
    }

    /// The next bytes, for the caller to fill; their content is whatever was there.
    pub(crate) fn space(&mut self, length: usize) -> &mut [u8] {
        let start = self.filled;
        self.filled += length;
        if self.filled > self.buffer.len() {
            self.buffer.resize(self.filled, 0);
        }
        &mut self.buffer[start..self.filled]
    }

    fn put(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// A simple reply's header.
    pub(crate) fn simple(&mut self, cookie: u64, error: u32) {
        self.put(&encode_simple_reply(cookie, error));
    }

    /// The header of a chunk of data; the data follow.
    pub(crate) fn data(&mut self, cookie: u64, done: bool, offset: u64, length: u32) {
        self.put(&encode_chunk_header(cookie, flags(done), NBD_REPLY_TYPE_OFFSET_DATA, length + 8));
        self.put(&offset.to_be_bytes());
    }

    /// A chunk of zeroes.
    pub(crate) fn hole(&mut self, cookie: u64, done: bool, offset: u64, length: u32) {
        self.put(&encode_chunk_header(cookie, flags(done), NBD_REPLY_TYPE_OFFSET_HOLE, 12));
        self.put(&offset.to_be_bytes());
        self.put(&length.to_be_bytes());
    }

    /// A chunk of a context's extents.
    pub(crate) fn status(&mut self, cookie: u64, done: bool, context: u32, descriptors: &[(u32, u32)]) {
        let length = u32::try_from(4 + 8 * descriptors.len()).expect("block status is bounded");
        self.put(&encode_chunk_header(cookie, flags(done), NBD_REPLY_TYPE_BLOCK_STATUS, length));
        self.put(&context.to_be_bytes());
        for (length, status) in descriptors {
            self.put(&length.to_be_bytes());
            self.put(&status.to_be_bytes());
        }
    }

    /// An error; with its message where structured replies were negotiated.
    pub(crate) fn error(&mut self, cookie: u64, structured: bool, refusal: &Refusal) {
        if !structured {
            return self.simple(cookie, refusal.error);
        }
        let message = refusal.message.as_bytes();
        let length = u16::try_from(message.len()).expect("messages are bounded");
        self.put(&encode_chunk_header(cookie, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, u32::from(length) + 6));
        self.put(&refusal.error.to_be_bytes());
        self.put(&length.to_be_bytes());
        self.put(message);
    }
}

fn flags(done: bool) -> u16 {
    if done { NBD_REPLY_FLAG_DONE } else { 0 }
}

const _: () = assert!(FRAME_BYTES >= SIMPLE_REPLY_BYTES, "a simple reply's header fits where a chunk's does");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_can_be_taken_back() {
        let mut replies = Replies::new();
        replies.simple(1, 0);
        let mark = replies.mark();
        replies.data(2, true, 0, 512);
        replies.space(512).fill(7);
        replies.take_back(mark);
        assert_eq!(replies.pending().len(), SIMPLE_REPLY_BYTES);
    }

    #[test]
    fn a_large_reply_does_not_keep_its_room() {
        let mut replies = Replies::new();
        replies.space(3 * USUAL_BYTES).fill(1);
        assert_eq!(replies.pending().len(), 3 * USUAL_BYTES);
        replies.clear();
        assert!(replies.fits(USUAL_BYTES - FRAME_BYTES));
        assert!(!replies.fits(USUAL_BYTES));
    }

    #[test]
    fn an_error_is_a_chunk_with_its_message() {
        let mut replies = Replies::new();
        replies.error(9, true, &Refusal::new(5, "why"));
        assert_eq!(replies.pending()[16..20], 9_u32.to_be_bytes());
        assert_eq!(replies.pending()[20..], [0, 0, 0, 5, 0, 3, b'w', b'h', b'y']);
    }
}

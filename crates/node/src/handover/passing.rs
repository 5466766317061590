//! What goes over the sockets between predecessor, guard and successor: words of fixed length, texts, and descriptors.
//!
//! Every word begins with a magic number and says what follows; what was not expected is an error, never a guess.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

const MAGIC: [u8; 8] = *b"BRANTHND";
const WORD_BYTES: usize = 20;
/// How many descriptors go in one message; Linux takes 253.
const DESCRIPTORS: usize = 128;
/// The longest text.
const TEXT_BYTES: u32 = 4096;

/// What one side tells the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The successor asks, and reads parcels from the first version to the second.
    Ask(u32, u32),
    /// The predecessor does not hand over, or the successor could not take over.
    Refused(String),
    /// A parcel follows: its version, and how many descriptors it has.
    Parcel(u32, u32),
    /// The successor serves.
    Taken,
}

impl Word {
    /// The word as it is sent.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, first, second, text) = match self {
            Word::Ask(oldest, newest) => (1_u32, *oldest, *newest, ""),
            Word::Refused(text) => (2, 0, 0, shortened(text)),
            Word::Parcel(version, descriptors) => (3, *version, *descriptors, ""),
            Word::Taken => (4, 0, 0, ""),
        };
        let first = if text.is_empty() { first } else { u32::try_from(text.len()).unwrap_or(TEXT_BYTES) };
        let mut bytes = MAGIC.to_vec();
        for field in [kind, first, second] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(text.as_bytes());
        bytes
    }

    /// Reads a word: the bytes come from `read`, which fills what it is given.
    pub(super) fn decode(mut read: impl FnMut(&mut [u8]) -> io::Result<()>) -> io::Result<Word> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "this is no hand-over");
        let mut bytes = [0; WORD_BYTES];
        read(&mut bytes)?;
        if bytes[..8] != MAGIC {
            return Err(wrong());
        }
        let field = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (kind, first, second) = (field(8), field(12), field(16));
        match kind {
            1 => Ok(Word::Ask(first, second)),
            2 if first <= TEXT_BYTES => {
                let mut text = vec![0; first as usize];
                read(&mut text)?;
                Ok(Word::Refused(String::from_utf8_lossy(&text).into_owned()))
            }
            3 => Ok(Word::Parcel(first, second)),
            4 => Ok(Word::Taken),
            _ => Err(wrong()),
        }
    }
}

fn shortened(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES as usize);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

pub(super) fn say(mut stream: &UnixStream, word: &Word) -> io::Result<()> {
    stream.write_all(&word.encode())
}

pub(super) fn hear(mut stream: &UnixStream) -> io::Result<Word> {
    Word::decode(|bytes| stream.read_exact(bytes))
}

/// Sends descriptors, a byte with each batch of them.
pub(super) fn send_descriptors(stream: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    for batch in descriptors.chunks(DESCRIPTORS) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(batch)), "a batch fits");
        sendmsg(stream, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// Receives exactly this many descriptors, as they were sent.
pub(super) fn receive_descriptors(stream: &UnixStream, count: u32) -> io::Result<Vec<OwnedFd>> {
    let mut received: Vec<OwnedFd> = Vec::new();
    while received.len() < count as usize {
        let expected = (count as usize - received.len()).min(DESCRIPTORS);
        let batch = receive_batch(stream)?;
        if batch.len() != expected {
            let text = format!("{} descriptors came where {expected} belong", batch.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        received.extend(batch);
    }
    Ok(received)
}

fn receive_batch(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut received = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            received.extend(descriptors);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("there was no room for all descriptors (see ulimit -n)"));
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn words_are_heard_as_they_were_said() {
        let (one, other) = UnixStream::pair().unwrap();
        let long = "ä".repeat(3000);
        for word in [Word::Ask(1, 2), Word::Refused("why".into()), Word::Parcel(1, 500), Word::Taken] {
            say(&one, &word).unwrap();
            assert_eq!(hear(&other).unwrap(), word);
        }
        say(&one, &Word::Refused(long)).unwrap();
        assert_eq!(hear(&other).unwrap(), Word::Refused("ä".repeat(2048)));
        (&one).write_all(&[7; WORD_BYTES]).unwrap();
        assert!(hear(&other).is_err());
        drop(one);
        assert_eq!(hear(&other).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn many_descriptors_arrive_in_order() {
        let (one, other) = UnixStream::pair().unwrap();
        let files: Vec<File> = (0..300).map(|_| tempfile::tempfile().unwrap()).collect();
        for (number, file) in files.iter().enumerate() {
            file.set_len(number as u64).unwrap();
        }
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        send_descriptors(&one, &borrowed).unwrap();
        let received = receive_descriptors(&other, 300).unwrap();
        for (number, descriptor) in received.into_iter().enumerate() {
            assert_eq!(File::from(descriptor).metadata().unwrap().len(), number as u64);
        }
    }

    #[test]
    fn fewer_descriptors_than_announced_are_an_error() {
        let (one, other) = UnixStream::pair().unwrap();
        send_descriptors(&one, &[one.as_fd()]).unwrap();
        drop(one);
        assert!(receive_descriptors(&other, 2).is_err());
    }
}

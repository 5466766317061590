//! Replies to requests: reading them from any stream, and gathering the pieces of a structured one.
//!
//! Invariant: a read has succeeded only when every byte of its buffer was sent exactly once; nothing is allocated on
//! the server's word alone.

use std::io::Read;

use super::handshake::message;
use super::{Lost, number};

/// The first bytes of a simple reply or of a chunk of a structured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A whole reply; the data of a successful read follows.
    Simple {
        /// Zero, or the error's number.
        error: u32,
        /// Which request it answers.
        cookie: u64,
    },
    /// One chunk of a reply.
    Chunk {
        /// Whether it is the last.
        done: bool,
        /// What follows.
        kind: u16,
        /// Which request it answers.
        cookie: u64,
        /// How many bytes follow.
        length: u32,
    },
}

impl Header {
    /// Which request it answers.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        match *self {
            Self::Simple { cookie, .. } | Self::Chunk { cookie, .. } => cookie,
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the stream ends or fails, or it is none.
    pub fn read(stream: &mut impl Read) -> Result<Self, Lost> {
        match u32::from_be_bytes(take(stream)?) {
            number::SIMPLE_REPLY_MAGIC => {
                let error = u32::from_be_bytes(take(stream)?);
                Ok(Self::Simple { error, cookie: u64::from_be_bytes(take(stream)?) })
            }
            number::STRUCTURED_REPLY_MAGIC => {
                let flags = u16::from_be_bytes(take(stream)?);
                let kind = u16::from_be_bytes(take(stream)?);
                let cookie = u64::from_be_bytes(take(stream)?);
                let length = u32::from_be_bytes(take(stream)?);
                Ok(Self::Chunk { done: flags & number::CHUNK_DONE != 0, kind, cookie, length })
            }
            _ => Err(Lost::Protocol("not a reply")),
        }
    }
}

/// What a request shall bring.
#[derive(Debug)]
pub enum Wanted {
    /// The bytes from an offset on, as many as the buffer is long.
    Data {
        /// Where the buffer lies in the export.
        offset: u64,
        /// What is filled.
        buffer: Vec<u8>,
    },
    /// Block status in a context.
    Extents {
        /// The context's number.
        context: u32,
    },
    /// That it has been done.
    Done,
}

/// What a request brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The filled buffer.
    Data(Vec<u8>),
    /// Lengths and states.
    Extents(Vec<(u32, u32)>),
    /// It has been done.
    Done,
}

/// The server could not do what was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The error's number; never zero.
    pub error: u32,
    /// What the server says.
    pub message: String,
}

/// The longest message in an error chunk, in bytes.
const MAX_MESSAGE_BYTES: u32 = 8 << 10;

/// The most extents of one block status reply.
const MAX_EXTENTS: u32 = 1 << 16;

/// The most separate pieces that a read's data may come in at a time.
const MAX_PIECES: usize = 1 << 12;

/// A reply as far as it has come.
#[derive(Debug)]
pub struct Gathering {
    wanted: Wanted,
    structured: bool,
    /// Which ranges of the buffer have come, ascending, disjoint, and not touching.
    pieces: Vec<std::ops::Range<usize>>,
    extents: Option<Vec<(u32, u32)>>,
    failure: Option<Failure>,
}

impl Gathering {
    /// Begins to gather the reply to a request, on a connection with or without structured replies.
    #[must_use]
    pub fn new(wanted: Wanted, structured: bool) -> Self {
        Self { wanted, structured, pieces: Vec::new(), extents: None, failure: None }
    }

    /// Reads what follows a header, and says whether the reply is complete.
    ///
    /// # Errors
    /// When the stream ends or fails, or the protocol does not allow what it holds.
    pub fn take(&mut self, header: &Header, stream: &mut impl Read) -> Result<bool, Lost> {
        match *header {
            Header::Simple { error, .. } => {
                if error != 0 {
                    self.failure = Some(Failure { error, message: String::new() });
                } else if let Wanted::Data { buffer, .. } = &mut self.wanted {
                    if self.structured {
                        return Err(Lost::Protocol("a simple reply to a read"));
                    }
                    stream.read_exact(buffer)?;
                    cover(&mut self.pieces, 0..buffer.len())?;
                }
                Ok(true)
            }
            Header::Chunk { .. } if !self.structured => {
                Err(Lost::Protocol("a structured reply that was not agreed on"))
            }
            Header::Chunk { done, kind, length, .. } => {
                self.chunk(kind, length, stream)?;
                Ok(done)
            }
        }
    }

    fn chunk(&mut self, kind: u16, length: u32, stream: &mut impl Read) -> Result<(), Lost> {
        match (kind, &mut self.wanted) {
            (number::CHUNK_NONE, _) if length == 0 => Ok(()),
            (number::CHUNK_OFFSET_DATA, Wanted::Data { offset, buffer }) if length > 8 => {
                let at = u64::from_be_bytes(take(stream)?);
                let range = place(*offset, buffer.len(), at, length - 8)?;
                stream.read_exact(&mut buffer[range.clone()])?;
                cover(&mut self.pieces, range)
            }
            (number::CHUNK_OFFSET_HOLE, Wanted::Data { offset, buffer }) if length == 12 => {
                let at = u64::from_be_bytes(take(stream)?);
                let range = place(*offset, buffer.len(), at, u32::from_be_bytes(take(stream)?))?;
                buffer[range.clone()].fill(0);
                cover(&mut self.pieces, range)
            }
            (number::CHUNK_BLOCK_STATUS, Wanted::Extents { context }) => {
                let count = length.checked_sub(4).filter(|rest| rest % 8 == 0 && rest / 8 <= MAX_EXTENTS);
                let count = count.ok_or(Lost::Protocol("a block status of a wrong length"))? / 8;
                if u32::from_be_bytes(take(stream)?) != *context || count == 0 || self.extents.is_some() {
                    return Err(Lost::Protocol("a block status that was not asked for"));
                }
                let mut extents = Vec::with_capacity(count as usize);
                for _ in 0..count {
                    let length = u32::from_be_bytes(take(stream)?);
                    extents.push((length, u32::from_be_bytes(take(stream)?)));
                    if length == 0 {
                        return Err(Lost::Protocol("an extent of no length"));
                    }
                }
                self.extents = Some(extents);
                Ok(())
            }
            (kind, _) if kind & number::CHUNK_ERROR != 0 && (6..=MAX_MESSAGE_BYTES).contains(&length) => {
                let mut data = vec![0; length as usize];
                stream.read_exact(&mut data)?;
                let (error, rest) = data.split_first_chunk().ok_or(Lost::Protocol("a short error"))?;
                let (said, rest) = rest.split_first_chunk().ok_or(Lost::Protocol("a short error"))?;
                let text = rest.get(..usize::from(u16::from_be_bytes(*said)));
                let text = text.ok_or(Lost::Protocol("an error whose message is cut off"))?;
                // Errors without a number are errors all the same.
                let error = u32::from_be_bytes(*error).max(1);
                self.failure.get_or_insert(Failure { error, message: message(text) });
                Ok(())
            }
            _ => Err(Lost::Protocol("a chunk of a reply that does not fit the request")),
        }
    }

    /// What the complete reply brings.
    ///
    /// # Errors
    /// Outside, that the server did not send what it had to; inside, that it could not do what was asked.
    pub fn finish(self) -> Result<Result<Answer, Failure>, Lost> {
        if let Some(failure) = self.failure {
            return Ok(Err(failure));
        }
        match self.wanted {
            Wanted::Data { buffer, .. } if self.pieces.first() == Some(&(0..buffer.len())) => {
                Ok(Ok(Answer::Data(buffer)))
            }
            Wanted::Data { .. } => Err(Lost::Protocol("a read that does not bring all its bytes")),
            Wanted::Extents { .. } => {
                let extents = self.extents.ok_or(Lost::Protocol("no block status"))?;
                Ok(Ok(Answer::Extents(extents)))
            }
            Wanted::Done => Ok(Ok(Answer::Done)),
        }
    }
}

/// Where bytes of the export lie in a buffer.
fn place(offset: u64, size: usize, at: u64, length: u32) -> Result<std::ops::Range<usize>, Lost> {
    at.checked_sub(offset)
        .and_then(|start| usize::try_from(start).ok())
        .and_then(|start| Some(start..start.checked_add(length as usize)?))
        .filter(|range| range.end <= size && !range.is_empty())
        .ok_or(Lost::Protocol("data outside the range that was asked for"))
}

/// Notes that a range has come; nothing may come twice.
fn cover(pieces: &mut Vec<std::ops::Range<usize>>, range: std::ops::Range<usize>) -> Result<(), Lost> {
    let next = pieces.partition_point(|piece| piece.start < range.start);
    let (before, after) =
        (next.checked_sub(1).map(|index| pieces[index].end), pieces.get(next).map(|piece| piece.start));
    if before.is_some_and(|end| end > range.start) || after.is_some_and(|start| start < range.end) {
        return Err(Lost::Protocol("the same data twice"));
    }
    match (before == Some(range.start), after == Some(range.end)) {
        (true, true) => pieces[next - 1].end = pieces.remove(next).end,
        (true, false) => pieces[next - 1].end = range.end,
        (false, true) => pieces[next].start = range.start,
        (false, false) if pieces.len() >= MAX_PIECES => return Err(Lost::Protocol("data in too many pieces")),
        (false, false) => pieces.insert(next, range),
    }
    Ok(())
}

fn take<const N: usize>(stream: &mut impl Read) -> Result<[u8; N], Lost> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(length: usize) -> Gathering {
        Gathering::new(Wanted::Data { offset: 1000, buffer: vec![9; length] }, true)
    }

    fn chunk(kind: u16, body: &[u8]) -> (Header, Vec<u8>) {
        (Header::Chunk { done: false, kind, cookie: 1, length: u32::try_from(body.len()).unwrap() }, body.to_vec())
    }

    fn piece(at: u64, bytes: &[u8]) -> (Header, Vec<u8>) {
        chunk(number::CHUNK_OFFSET_DATA, &[&at.to_be_bytes()[..], bytes].concat())
    }

    fn hole(at: u64, length: u32) -> (Header, Vec<u8>) {
        chunk(number::CHUNK_OFFSET_HOLE, &[&at.to_be_bytes()[..], &length.to_be_bytes()].concat())
    }

    fn feed(gathering: &mut Gathering, (header, body): (Header, Vec<u8>)) -> Result<bool, Lost> {
        gathering.take(&header, &mut body.as_slice())
    }

    #[test]
    fn pieces_in_any_order_make_a_read() {
        let mut gathering = data(10);
        for part in [piece(1006, &[3; 2]), hole(1000, 4), piece(1004, &[2; 2]), piece(1008, &[4; 2])] {
            feed(&mut gathering, part).unwrap();
        }
        let bytes = vec![0, 0, 0, 0, 2, 2, 3, 3, 4, 4];
        assert_eq!(gathering.finish().unwrap(), Ok(Answer::Data(bytes)));
    }

    #[test]
    fn a_read_that_is_short_doubled_or_elsewhere_is_refused() {
        let mut short = data(10);
        feed(&mut short, piece(1000, &[1; 9])).unwrap();
        assert!(short.finish().is_err());
        for bad in
            [piece(999, &[1; 4]), piece(1008, &[1; 4]), piece(u64::MAX, &[1]), hole(1000, 0), hole(1000, u32::MAX)]
        {
            assert!(feed(&mut data(10), bad).is_err());
        }
        for twice in [piece(1003, &[1; 2]), piece(1001, &[1; 3]), hole(1000, 10), piece(1004, &[1; 1])] {
            let mut gathering = data(10);
            feed(&mut gathering, piece(1003, &[1; 2])).unwrap();
            assert!(feed(&mut gathering, twice).is_err());
        }
    }

    #[test]
    fn errors_are_told_with_the_servers_words() {
        let mut gathering = data(10);
        let body = [&5_u32.to_be_bytes()[..], &4_u16.to_be_bytes(), b"dis\x07", &1000_u64.to_be_bytes()].concat();
        feed(&mut gathering, chunk(number::CHUNK_ERROR_OFFSET, &body)).unwrap();
        assert_eq!(gathering.finish().unwrap(), Err(Failure { error: 5, message: "dis".into() }));
        let cut = [&5_u32.to_be_bytes()[..], &40_u16.to_be_bytes(), b"dis"].concat();
        assert!(feed(&mut data(10), chunk(number::CHUNK_ERROR_OFFSET, &cut)).is_err());
    }

    #[test]
    fn block_status_is_checked() {
        let status = |context: u32, words: &[u32]| {
            let words: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            chunk(number::CHUNK_BLOCK_STATUS, &[&context.to_be_bytes()[..], &words].concat())
        };
        let new = || Gathering::new(Wanted::Extents { context: 7 }, true);
        let mut good = new();
        feed(&mut good, status(7, &[4096, 3, 512, 0])).unwrap();
        assert_eq!(good.finish().unwrap(), Ok(Answer::Extents(vec![(4096, 3), (512, 0)])));
        for bad in [status(8, &[4096, 3]), status(7, &[]), status(7, &[0, 3]), status(7, &[1])] {
            assert!(feed(&mut new(), bad).is_err());
        }
        assert!(new().finish().is_err());
    }
}

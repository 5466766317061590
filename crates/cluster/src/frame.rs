//! The frames in which a volume is used from elsewhere: requests with a number, and replies in any order.
//!
//! A request is a head of 32 bytes (number, offset and length, each 64 bits; the operation and whether it shall survive the loss
//! of power, 8 bits each; the rest zero), and the data of a write. A reply is a head of 24 bytes (number and length, 64
//! bits each; an outcome, 8 bits; the rest zero), and the data of a read. Numbers are little-endian. What is said of settings is data, too.

use volume::{DeviceError, Durability};

use crate::message::MAX_MESSAGE_BYTES;

/// The longest data of a request or a reply, in bytes: as long as NBD's.
pub const MAX_PAYLOAD_BYTES: u64 = 32 << 20;

/// A request's head, in bytes.
pub const REQUEST_BYTES: usize = 32;

/// A reply's head, in bytes.
pub const REPLY_BYTES: usize = 24;

/// The largest offset and length: beyond any disk, and their sum is still a number.
const MAX_DISTANCE: u64 = 1 << 62;

/// A head that no member sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the member sent what is no frame")]
pub struct FrameError;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read.
    Read,
    /// Write the data that follow.
    Write,
    /// Make zero.
    Zero,
    /// Say that it is not needed.
    Discard,
    /// Make everything durable that was acknowledged.
    Flush,
    /// The disk is larger from now on: `length` bytes. For a replica only.
    Grow,
    /// Nothing is answered any more that the replica lacks. For a replica only.
    Current,
    /// The data that follow are what was set for the volume, [`crate::message::Settings`]. For a replica only.
    Settings,
}

impl Operation {
    const ALL: [Self; 8] =
        [Self::Read, Self::Write, Self::Zero, Self::Discard, Self::Flush, Self::Grow, Self::Current, Self::Settings];

    const fn code(self) -> u8 {
        self as u8
    }

    /// Whether it changes the disk.
    pub(crate) const fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Discard)
    }

    /// Whether only a replica is told of it.
    pub(crate) const fn is_for_replicas(self) -> bool {
        matches!(self, Self::Grow | Self::Current | Self::Settings)
    }
}

/// A request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFrame {
    /// Its number.
    pub id: u64,
    /// What to do.
    pub operation: Operation,
    /// How durable a change is before it is answered.
    pub durability: Durability,
    /// Where, in bytes.
    pub offset: u64,
    /// How long, in bytes.
    pub length: u64,
}

impl RequestFrame {
    /// The head, as it is sent.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut head = [0; REQUEST_BYTES];
        head[..8].copy_from_slice(&self.id.to_le_bytes());
        head[8..16].copy_from_slice(&self.offset.to_le_bytes());
        head[16..24].copy_from_slice(&self.length.to_le_bytes());
        head[24] = self.operation.code();
        head[25] = u8::from(self.durability == Durability::Power);
        head
    }

    /// Reads a head of 32 bytes.
    ///
    /// # Errors
    /// A head of another length, with an unknown operation, or with more data than may follow.
    pub fn decode(head: &[u8]) -> Result<Self, FrameError> {
        let head: &[u8; REQUEST_BYTES] = head.try_into().map_err(|_| FrameError)?;
        let operation = Operation::ALL.into_iter().find(|known| known.code() == head[24]).ok_or(FrameError)?;
        let durability = match head[25] {
            0 => Durability::Process,
            1 => Durability::Power,
            _ => return Err(FrameError),
        };
        let (id, offset, length) = (number(head, 0), number(head, 8), number(head, 16));
        let most_bytes = match operation {
            Operation::Read | Operation::Write => MAX_PAYLOAD_BYTES,
            Operation::Settings => MAX_MESSAGE_BYTES as u64,
            _ => MAX_DISTANCE,
        };
        if offset > MAX_DISTANCE || length > most_bytes || head[26..] != [0; 6] {
            return Err(FrameError);
        }
        Ok(Self { id, operation, durability, offset, length })
    }

    /// How many bytes of data follow.
    pub(crate) fn payload_bytes(&self) -> usize {
        let carries = matches!(self.operation, Operation::Write | Operation::Settings);
        usize::try_from(if carries { self.length } else { 0 }).unwrap_or(usize::MAX)
    }

    /// How much is in memory for it, in bytes: the data that follow, or those of its answer.
    pub(crate) fn carried_bytes(&self) -> u64 {
        if self.operation == Operation::Read { self.length } else { self.payload_bytes() as u64 }
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The volume is not used here any more: whoever asked looks for its home again.
    Gone,
    /// It lies beyond the end.
    OutOfRange,
    /// The disk cannot be changed.
    ReadOnly,
    /// There is no room.
    Full,
    /// It failed; the home's log says why.
    Failed,
}

impl Outcome {
    const ALL: [Self; 6] = [Self::Done, Self::Gone, Self::OutOfRange, Self::ReadOnly, Self::Full, Self::Failed];

    pub(crate) fn of(error: &DeviceError) -> Self {
        match error {
            DeviceError::Closed => Self::Gone,
            DeviceError::OutOfRange { .. } => Self::OutOfRange,
            DeviceError::ReadOnly => Self::ReadOnly,
            DeviceError::Full => Self::Full,
            _ => Self::Failed,
        }
    }
}

/// A reply's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyFrame {
    /// The request's number.
    pub id: u64,
    /// How many bytes of data follow.
    pub length: u64,
    /// What became of it.
    pub outcome: Outcome,
}

impl ReplyFrame {
    /// The head, as it is sent.
    #[must_use]
    pub fn encode(&self) -> [u8; REPLY_BYTES] {
        let mut head = [0; REPLY_BYTES];
        head[..8].copy_from_slice(&self.id.to_le_bytes());
        head[8..16].copy_from_slice(&self.length.to_le_bytes());
        head[16] = self.outcome as u8;
        head
    }

    /// Reads a head of 24 bytes.
    ///
    /// # Errors
    /// A head of another length, with an unknown outcome, or with more data than may follow.
    pub fn decode(head: &[u8]) -> Result<Self, FrameError> {
        let head: &[u8; REPLY_BYTES] = head.try_into().map_err(|_| FrameError)?;
        let outcome = Outcome::ALL.into_iter().find(|known| *known as u8 == head[16]).ok_or(FrameError)?;
        let (id, length) = (number(head, 0), number(head, 8));
        if length > MAX_PAYLOAD_BYTES || head[17..] != [0; 7] {
            return Err(FrameError);
        }
        Ok(Self { id, length, outcome })
    }
}

fn number(head: &[u8], at: usize) -> u64 {
    head[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_read_and_all_else_is_refused() {
        let frame = RequestFrame {
            id: 7,
            operation: Operation::Zero,
            durability: Durability::Power,
            offset: 512,
            length: 1 << 40,
        };
        let head = frame.encode();
        assert_eq!(RequestFrame::decode(&head), Ok(frame));
        for (at, value) in [(24, 8), (25, 2), (26, 1), (31, 1), (15, 0x80), (23, 0x80)] {
            let mut other = head;
            other[at] = value;
            assert_eq!(RequestFrame::decode(&other), Err(FrameError), "byte {at}");
        }
        let long = RequestFrame { operation: Operation::Write, length: MAX_PAYLOAD_BYTES + 1, ..frame };
        assert_eq!(RequestFrame::decode(&long.encode()), Err(FrameError));
        let length = MAX_MESSAGE_BYTES as u64;
        let settings = RequestFrame { operation: Operation::Settings, length, ..frame };
        assert_eq!(RequestFrame::decode(&settings.encode()).map(|frame| frame.payload_bytes()), Ok(MAX_MESSAGE_BYTES));
        let long = RequestFrame { length: length + 1, ..settings };
        assert_eq!(RequestFrame::decode(&long.encode()), Err(FrameError));
        assert_eq!(RequestFrame::decode(&head[1..]), Err(FrameError));
    }

    #[test]
    fn a_reply_is_read_back() {
        let frame = ReplyFrame { id: u64::MAX, length: MAX_PAYLOAD_BYTES, outcome: Outcome::Full };
        let mut head = frame.encode();
        assert_eq!(ReplyFrame::decode(&head), Ok(frame));
        head[16] = 6;
        assert_eq!(ReplyFrame::decode(&head), Err(FrameError));
    }
}

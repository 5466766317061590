//! The messages of the vhost-user protocol, as bytes: what a front-end sends, and what it is answered.
//!
//! Nothing here does I/O. A message is a header of 12 bytes, a payload, and descriptors beside it. What is not a message
//! that this back-end has offered to understand is an error, and ends the connection.

/// The length of a header.
pub const HEADER_BYTES: usize = 12;
/// The longest payload that is taken.
pub const MAX_PAYLOAD_BYTES: u32 = 4096;
/// The most memory regions of one table, and so the most descriptors beside one message.
pub const MAX_REGIONS: usize = 8;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// In the payload of a message about a queue's descriptor: there is none.
const NO_DESCRIPTOR: u64 = 1 << 8;

/// Protocol feature: more than one queue.
pub const F_MQ: u64 = 1 << 0;
/// Protocol feature: every message may be acknowledged.
pub const F_REPLY_ACK: u64 = 1 << 3;
/// Protocol feature: a channel for requests of the back-end.
pub const F_BACKEND_REQ: u64 = 1 << 5;
/// Protocol feature: the back-end has the device's configuration.
pub const F_CONFIG: u64 = 1 << 9;
/// Protocol feature: a log of requests under way, which the front-end keeps.
pub const F_INFLIGHT_SHMFD: u64 = 1 << 12;

/// All that is offered.
pub const PROTOCOL_FEATURES: u64 = F_MQ | F_REPLY_ACK | F_BACKEND_REQ | F_CONFIG | F_INFLIGHT_SHMFD;

/// Some bytes are not a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageError {
    /// The header is of another version, is a reply, or announces a payload that no message has.
    #[error("a header of flags {flags:#x} and a payload of {size_bytes} bytes is none of this protocol")]
    Header {
        /// Its flags.
        flags: u32,
        /// The length that it announces.
        size_bytes: u32,
    },
    /// A message that this back-end does not understand.
    #[error("message {code} is not understood")]
    Unknown {
        /// Its number.
        code: u32,
    },
    /// The payload is not that of its message.
    #[error("message {code} has a payload that is not one of it")]
    Payload {
        /// The message's number.
        code: u32,
    },
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub code: u32,
    /// Whether it shall be acknowledged.
    pub need_reply: bool,
    /// How long its payload is.
    pub size_bytes: u32,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, MessageError> {
        let (code, flags, size_bytes) = (word(bytes, 0), word(bytes, 4), word(bytes, 8));
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 || size_bytes > MAX_PAYLOAD_BYTES {
            return Err(MessageError::Header { flags, size_bytes });
        }
        Ok(Header { code, need_reply: flags & NEED_REPLY != 0, size_bytes })
    }
}

/// A piece of the guest's memory, in a file that comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it is for the guest.
    pub guest_address: u64,
    /// How long it is.
    pub size_bytes: u64,
    /// Where it is for the front-end, which says by these addresses where queues are.
    pub user_address: u64,
    /// Where it begins in its file.
    pub file_offset: u64,
}

/// The place of the log of requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightArea {
    /// Its length in its file.
    pub size_bytes: u64,
    /// Where it begins there.
    pub file_offset: u64,
    /// How many queues it is for.
    pub queues: u16,
    /// How many requests each can have.
    pub queue_size: u16,
}

/// A message of the front-end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the protocol's own names and fields")]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<Region>),
    SetVringNum { index: u32, size: u32 },
    SetVringAddr { index: u32, descriptors: u64, used: u64, available: u64 },
    SetVringBase { index: u32, base: u32 },
    GetVringBase { index: u32 },
    SetVringKick { index: u32, none: bool },
    SetVringCall { index: u32, none: bool },
    SetVringErr { index: u32 },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { index: u32, enable: bool },
    SetBackendReqFd,
    GetConfig { offset: u32, size_bytes: u32, flags: u32 },
    SetConfig { offset: u32, bytes: Vec<u8> },
    GetInflightFd(InflightArea),
    SetInflightFd(InflightArea),
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Reads a message, whose payload is as long as its header has said.
///
/// # Errors
/// See [`MessageError`].
pub fn decode(code: u32, payload: &[u8]) -> Result<Message, MessageError> {
    let of = |length: usize| if payload.len() == length { Ok(payload) } else { Err(MessageError::Payload { code }) };
    let state = || of(8).map(|bytes| (word(bytes, 0), word(bytes, 4)));
    let descriptor = || {
        let value = of(8).map(|bytes| long(bytes, 0))?;
        Ok((u32::from(value.to_le_bytes()[0]), value & NO_DESCRIPTOR != 0))
    };
    Ok(match code {
        1 => of(0).map(|_| Message::GetFeatures)?,
        2 => Message::SetFeatures(long(of(8)?, 0)),
        3 => of(0).map(|_| Message::SetOwner)?,
        4 => of(0).map(|_| Message::ResetOwner)?,
        5 => Message::SetMemTable(regions(payload).ok_or(MessageError::Payload { code })?),
        8 => state().map(|(index, size)| Message::SetVringNum { index, size })?,
        9 => {
            let bytes = of(40)?;
            let (descriptors, used, available) = (long(bytes, 8), long(bytes, 16), long(bytes, 24));
            Message::SetVringAddr { index: word(bytes, 0), descriptors, used, available }
        }
        10 => state().map(|(index, base)| Message::SetVringBase { index, base })?,
        11 => state().map(|(index, _)| Message::GetVringBase { index })?,
        12 => descriptor().map(|(index, none)| Message::SetVringKick { index, none })?,
        13 => descriptor().map(|(index, none)| Message::SetVringCall { index, none })?,
        14 => descriptor().map(|(index, _)| Message::SetVringErr { index })?,
        15 => of(0).map(|_| Message::GetProtocolFeatures)?,
        16 => Message::SetProtocolFeatures(long(of(8)?, 0)),
        17 => of(0).map(|_| Message::GetQueueNum)?,
        18 => match state()? {
            (index, enable @ (0 | 1)) => Message::SetVringEnable { index, enable: enable == 1 },
            _ => return Err(MessageError::Payload { code }),
        },
        21 => of(payload.len()).map(|_| Message::SetBackendReqFd)?,
        24 | 25 => configuration(code, payload).ok_or(MessageError::Payload { code })?,
        31 => Message::GetInflightFd(area(payload).ok_or(MessageError::Payload { code })?),
        32 => Message::SetInflightFd(area(payload).ok_or(MessageError::Payload { code })?),
        _ => return Err(MessageError::Unknown { code }),
    })
}

fn regions(payload: &[u8]) -> Option<Vec<Region>> {
    let count = usize::try_from(word(payload.get(..8)?, 0)).ok().filter(|count| (1..=MAX_REGIONS).contains(count))?;
    let bytes = payload[8..].get(..32 * count).filter(|bytes| bytes.len() + 8 == payload.len())?;
    let region = |bytes: &[u8]| Region {
        guest_address: long(bytes, 0),
        size_bytes: long(bytes, 8),
        user_address: long(bytes, 16),
        file_offset: long(bytes, 24),
    };
    Some(bytes.chunks_exact(32).map(region).collect())
}

fn configuration(code: u32, payload: &[u8]) -> Option<Message> {
    let head = payload.get(..12)?;
    let (offset, size_bytes, flags) = (word(head, 0), word(head, 4), word(head, 8));
    let bytes = payload[12..].to_vec();
    if bytes.len() != usize::try_from(size_bytes).ok()? {
        return None;
    }
    Some(if code == 24 {
        Message::GetConfig { offset, size_bytes, flags }
    } else {
        Message::SetConfig { offset, bytes }
    })
}

/// QEMU's structure has four bytes after its last field, as its compiler aligns it.
fn area(payload: &[u8]) -> Option<InflightArea> {
    let bytes = payload.get(..20).filter(|_| matches!(payload.len(), 20 | 24))?;
    let (size_bytes, file_offset) = (long(bytes, 0), long(bytes, 8));
    Some(InflightArea { size_bytes, file_offset, queues: half(bytes, 16), queue_size: half(bytes, 18) })
}

impl InflightArea {
    /// The payload that says it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(self.size_bytes.to_le_bytes());
        bytes.extend(self.file_offset.to_le_bytes());
        bytes.extend(self.queues.to_le_bytes());
        bytes.extend(self.queue_size.to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    }
}

/// A reply to a message.
#[must_use]
pub fn reply(code: u32, payload: &[u8]) -> Vec<u8> {
    message(code, VERSION | REPLY, payload)
}

/// A message, as a front-end sends it.
#[must_use]
pub fn encode(code: u32, need_reply: bool, payload: &[u8]) -> Vec<u8> {
    message(code, if need_reply { VERSION | NEED_REPLY } else { VERSION }, payload)
}

/// The back-end's request that says that the configuration has changed.
#[must_use]
pub fn configuration_changed() -> Vec<u8> {
    const BACKEND_CONFIG_CHANGE_MSG: u32 = 2;
    message(BACKEND_CONFIG_CHANGE_MSG, VERSION, &[])
}

fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size_bytes = u32::try_from(payload.len()).expect("payloads are short");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    for field in [code, flags, size_bytes] {
        bytes.extend(field.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_follows() {
        let bytes = encode(5, true, &[7; 40]);
        let header = Header::decode(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap();
        assert_eq!(header, Header { code: 5, need_reply: true, size_bytes: 40 });
        let reply = reply(5, &[]);
        assert!(Header::decode(reply[..].try_into().unwrap()).is_err(), "a front-end sends no replies");
        let mut long = encode(5, false, &[]);
        long[8..].copy_from_slice(&(MAX_PAYLOAD_BYTES + 1).to_le_bytes());
        assert!(Header::decode(long[..].try_into().unwrap()).is_err());
    }

    #[test]
    fn payloads_have_the_length_of_their_message() {
        let state = [1, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(decode(8, &state), Ok(Message::SetVringNum { index: 1, size: 256 }));
        assert_eq!(decode(8, &state[..7]), Err(MessageError::Payload { code: 8 }));
        assert_eq!(decode(18, &state), Err(MessageError::Payload { code: 18 }), "on or off");
        assert_eq!(decode(12, &[3, 1, 0, 0, 0, 0, 0, 0]), Ok(Message::SetVringKick { index: 3, none: true }));
        assert_eq!(decode(99, &[]), Err(MessageError::Unknown { code: 99 }));
    }

    #[test]
    fn a_memory_table_has_as_many_regions_as_it_says() {
        let mut payload = vec![2, 0, 0, 0, 0, 0, 0, 0];
        for field in 1..=8_u64 {
            payload.extend(field.to_le_bytes());
        }
        let Message::SetMemTable(regions) = decode(5, &payload).unwrap() else { panic!("a table") };
        let first = Region { guest_address: 1, size_bytes: 2, user_address: 3, file_offset: 4 };
        assert_eq!((regions.len(), regions[0], regions[1].file_offset), (2, first, 8));
        for wrong in [0, 1, 3, 9, u8::MAX] {
            payload[0] = wrong;
            assert_eq!(decode(5, &payload), Err(MessageError::Payload { code: 5 }), "{wrong}");
        }
        assert!(decode(5, &[]).is_err());
    }

    #[test]
    fn the_place_of_the_log_is_what_it_was() {
        let area = InflightArea { size_bytes: 1 << 13, file_offset: 4096, queues: 3, queue_size: 256 };
        assert_eq!(decode(32, &area.encode()), Ok(Message::SetInflightFd(area)));
        assert_eq!(area.encode().len(), 24, "QEMU takes no other length");
        assert!(decode(31, &area.encode()[..21]).is_err());
    }

    #[test]
    fn configuration_comes_whole() {
        let mut payload = Vec::new();
        [32_u32, 1, 0].iter().for_each(|field| payload.extend(field.to_le_bytes()));
        assert!(decode(25, &payload).is_err());
        payload.push(1);
        assert_eq!(decode(25, &payload), Ok(Message::SetConfig { offset: 32, bytes: vec![1] }));
        assert_eq!(decode(24, &payload), Ok(Message::GetConfig { offset: 32, size_bytes: 1, flags: 0 }));
    }
}

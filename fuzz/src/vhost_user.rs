//! What a vhost-user back-end is told: messages by a front-end, requests by a guest in its memory.

use std::cell::RefCell;

use ::vhost_user::message::{HEADER_BYTES, Header, MAX_PAYLOAD_BYTES, MAX_REGIONS, Message, Region, decode, encode};
use ::vhost_user::request::{HEAD_BYTES, Head, Limits, MAX_DATA_BYTES, Request};
use ::vhost_user::{Chain, Memory, Piece, walk};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

pub(crate) fn message(data: &[u8]) -> bool {
    let Some((header, payload)) = data.split_first_chunk::<HEADER_BYTES>() else { return false };
    let Ok(header) = Header::decode(header) else { return false };
    assert!(header.size_bytes <= MAX_PAYLOAD_BYTES);
    let Ok(message) = decode(header.code, payload) else { return false };
    match message {
        Message::SetMemTable(regions) => assert!((1..=MAX_REGIONS).contains(&regions.len())),
        Message::SetConfig { bytes, .. } => assert!(bytes.len() + 12 == payload.len()),
        Message::GetConfig { size_bytes, .. } => assert!(size_bytes as usize + 12 == payload.len()),
        _ => {}
    }
    true
}

pub(crate) fn message_seeds() -> Vec<Vec<u8>> {
    let lengths = [
        (1, 0),
        (2, 8),
        (3, 0),
        (8, 8),
        (9, 40),
        (10, 8),
        (11, 8),
        (12, 8),
        (13, 8),
        (14, 8),
        (15, 0),
        (16, 8),
        (17, 0),
        (18, 8),
        (21, 0),
        (24, 12),
        (25, 12),
        (31, 24),
        (32, 20),
    ];
    let mut seeds: Vec<_> = lengths.iter().map(|(code, length)| encode(*code, true, &vec![0; *length])).collect();
    let mut table = vec![0; 8 + 64];
    table[0] = 2;
    seeds.push(encode(5, false, &table));
    let mut cache = vec![0; 13];
    (cache[0], cache[4]) = (32, 1);
    seeds.push(encode(25, true, &cache));
    seeds
}

const MEMORY_BYTES: u64 = 1 << 16;
const QUEUE_SIZE: u16 = 16;

fn guest() -> Option<Memory> {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).ok()?;
    ftruncate(&file, MEMORY_BYTES).ok()?;
    let region = Region { guest_address: 0, size_bytes: MEMORY_BYTES, user_address: 0, file_offset: 0 };
    Memory::new(&[region], vec![file]).ok()
}

thread_local! {
    static GUEST: RefCell<Option<Memory>> = RefCell::new(guest());
}

/// The memory of a guest from zero on: a table of descriptors, and what they lead to. The first byte is the chain's head.
pub(crate) fn request(data: &[u8]) -> bool {
    let Some((head, data)) = data.split_first() else { return false };
    GUEST.with_borrow(|memory| {
        let memory = memory.as_ref().expect("a guest has memory");
        let data = &data[..data.len().min(1 << 16)];
        memory.write(0, data).expect("it fits");
        let Ok(Chain { readable, writable }) = walk(memory, 0, QUEUE_SIZE, u16::from(*head)) else { return false };
        let total = |pieces: &[Piece]| pieces.iter().map(|piece| u64::from(piece.length)).sum::<u64>();
        let (readable_bytes, writable_bytes) = (total(&readable), total(&writable));
        assert!(readable_bytes + writable_bytes <= u64::from(u32::MAX));
        assert!(readable.iter().chain(&writable).all(|piece| piece.length > 0));
        let Some(first) = readable.first().filter(|piece| piece.length >= 16) else { return false };
        let mut bytes = [0; HEAD_BYTES];
        if memory.read(first.address, &mut bytes).is_err() {
            return false;
        }
        let segments = &data[data.len().min(256)..data.len().min(512)];
        let limits = Limits { size_bytes: 1 << 30, read_only: false };
        let request = Head::decode(&bytes).check(readable_bytes, writable_bytes, segments, &limits);
        let inside = |offset: u64, length: u64| assert!(offset.checked_add(length).is_some_and(|end| end <= 1 << 30));
        match &request {
            Ok(Request::Read(range) | Request::Write(range)) => {
                inside(range.offset, range.length);
                assert!(range.length <= MAX_DATA_BYTES);
            }
            Ok(Request::Discard(ranges) | Request::WriteZeroes(ranges)) => {
                ranges.iter().for_each(|range| inside(range.offset, range.length));
            }
            Ok(Request::Flush | Request::Identify) | Err(_) => {}
        }
        request.is_ok()
    })
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let descriptor = |address: u64, length: u32, flags: u16, next: u16| {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes
    };
    let seed = |kind: u32, sector: u64, middle: (u64, u32, u16)| {
        let mut bytes = vec![0];
        bytes.extend(descriptor(0x80, 16, 1, 1));
        bytes.extend(descriptor(middle.0, middle.1, middle.2 | 1, 2));
        bytes.extend(descriptor(0xa0, 1, 2, 0));
        bytes.resize(1 + 0x80, 0);
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes.resize(1 + 512, 0);
        // One range of eight sectors, sixteen times.
        (256..512).step_by(16).for_each(|at| bytes[1 + at + 8] = 8);
        bytes
    };
    // Their lengths are with the status, which the engine takes off before.
    let mut seeds = vec![seed(1, 3, (0x1000, 4096, 0)), seed(4, 0, (0x1000, 16, 0)), seed(8, 0, (0x1000, 20, 2))];
    seeds.push(seed(0, 8, (0x1000, 4095, 2)));
    seeds.push(seed(11, 0, (0x100, 16, 0)));
    seeds.push(seed(13, 0, (0x100, 16, 0)));
    seeds
}

//! What a server sends to our NBD client: the negotiation, and replies.

use std::io::{self, Read, Write};

use capture::nbd::handshake::negotiate;
use capture::nbd::number;
use capture::nbd::reply::{Answer, Gathering, Header, Wanted};

/// A server that has said everything in advance, and does not listen.
struct Script<'d>(&'d [u8]);

impl Read for Script<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Script<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn negotiation(data: &[u8]) -> bool {
    let Ok(export) = negotiate(&mut Script(data), "disk") else { return false };
    assert!((1..=types::MAX_DISK_BYTES).contains(&export.size_bytes));
    assert!(export.minimum_block.is_power_of_two() && export.minimum_block <= 65536);
    assert!(export.maximum_payload >= 65536);
    assert!(export.structured || export.allocation.is_none());
    true
}

pub(crate) fn negotiation_seeds() -> Vec<Vec<u8>> {
    let hello = [&number::MAGIC.to_be_bytes()[..], &number::OPTION_MAGIC.to_be_bytes(), &[0, 3]].concat();
    let answer = |option: u32, kind: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap_or(0).to_be_bytes();
        let magic = number::OPTION_REPLY_MAGIC.to_be_bytes();
        [&magic[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length, data].concat()
    };
    let (structured, context, go) =
        (number::OPTION_STRUCTURED_REPLY, number::OPTION_SET_META_CONTEXT, number::OPTION_GO);
    let (ack, info, unsupported) = (number::REPLY_ACK, number::REPLY_INFO, number::REPLY_ERROR_UNSUPPORTED);
    let export = [&[0, 0][..], &(1_u64 << 30).to_be_bytes(), &[1, 0x6d]].concat();
    let blocks = [&[0, 3][..], &512_u32.to_be_bytes(), &4096_u32.to_be_bytes(), &(32_u32 << 20).to_be_bytes()].concat();
    let allocation = [&1_u32.to_be_bytes()[..], b"base:allocation"].concat();
    let modern = [
        &hello[..],
        &answer(structured, ack, &[]),
        &answer(context, number::REPLY_META_CONTEXT, &allocation),
        &answer(context, ack, &[]),
        &answer(go, info, &export),
        &answer(go, info, &blocks),
        &answer(go, ack, &[]),
    ]
    .concat();
    let old = [
        &hello[..],
        &answer(structured, unsupported, &[]),
        &answer(go, unsupported, &[]),
        &(1_u64 << 30).to_be_bytes(),
        &[0, 1],
    ]
    .concat();
    let refused = [
        &hello[..],
        &answer(structured, ack, &[]),
        &answer(context, ack, &[]),
        &answer(go, number::REPLY_ERROR_UNKNOWN, b"no"),
    ];
    vec![modern, old, refused.concat()]
}

const BUFFER_BYTES: usize = 4096;

/// The first byte says what was asked; the rest are replies to it.
pub(crate) fn reply(data: &[u8]) -> bool {
    let Some((kind, mut rest)) = data.split_first() else { return false };
    let wanted = match kind >> 1 {
        0 => Wanted::Data { offset: 8192, buffer: vec![0xee; BUFFER_BYTES] },
        1 => Wanted::Extents { context: 1 },
        _ => Wanted::Done,
    };
    let mut gathering = Gathering::new(wanted, kind & 1 == 1);
    loop {
        let Ok(header) = Header::read(&mut rest) else { return false };
        match gathering.take(&header, &mut rest) {
            Ok(true) => break,
            Ok(false) => {}
            Err(_) => return false,
        }
    }
    match gathering.finish() {
        Ok(Ok(Answer::Data(buffer))) => assert_eq!(buffer.len(), BUFFER_BYTES),
        Ok(Ok(Answer::Extents(extents))) => assert!(extents.iter().all(|extent| extent.0 > 0)),
        Ok(Ok(Answer::Done)) => {}
        Ok(Err(failure)) => assert!(failure.error != 0 && failure.message.chars().all(|c| !c.is_control())),
        Err(_) => return false,
    }
    true
}

pub(crate) fn reply_seeds() -> Vec<Vec<u8>> {
    let chunk = |done: u16, kind: u16, body: &[u8]| {
        let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
        let magic = number::STRUCTURED_REPLY_MAGIC.to_be_bytes();
        [&magic[..], &done.to_be_bytes(), &kind.to_be_bytes(), &[0; 8], &length, body].concat()
    };
    let data = [&8192_u64.to_be_bytes()[..], &[7; 2048]].concat();
    let hole = [&10240_u64.to_be_bytes()[..], &2048_u32.to_be_bytes()].concat();
    let (data, hole) = (chunk(0, number::CHUNK_OFFSET_DATA, &data), chunk(1, number::CHUNK_OFFSET_HOLE, &hole));
    let status: Vec<u8> = [1_u32, 4096, 3, 65536, 0].iter().flat_map(|word| word.to_be_bytes()).collect();
    let error = [&5_u32.to_be_bytes()[..], &3_u16.to_be_bytes(), b"bad"].concat();
    let simple = [&number::SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &[0; 12], &[9; BUFFER_BYTES]].concat();
    vec![
        [&[1][..], &data, &hole].concat(),
        [&[3][..], &chunk(1, number::CHUNK_BLOCK_STATUS, &status)].concat(),
        [&[1][..], &chunk(1, number::CHUNK_ERROR + 1, &error)].concat(),
        [&[5][..], &chunk(1, number::CHUNK_NONE, &[])].concat(),
        [&[0][..], &simple].concat(),
    ]
}

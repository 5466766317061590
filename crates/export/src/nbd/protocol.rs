//! The NBD protocol's transmission phase on the wire: its numbers, named as in the protocol document, the decoding of
//! requests and the encoding of reply headers.
//!
//! Source: `doc/proto.md` of the `NetworkBlockDevice/nbd` project. Everything is big-endian. Decoding is pure and
//! total: any bytes give a value or an error. The handshake is in [`super::option`].

/// First word of the server's greeting.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and first word of every option request.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// First word of every option reply.
pub const NBD_REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of every request.
pub const NBD_REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const NBD_SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply's chunk.
pub const NBD_STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag: more options than the export's name, and replies to them.
pub const NBD_FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: no padding after `NBD_OPT_EXPORT_NAME`.
pub const NBD_FLAG_NO_ZEROES: u16 = 1 << 1;
/// Client flag that answers [`NBD_FLAG_FIXED_NEWSTYLE`].
pub const NBD_FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Client flag that answers [`NBD_FLAG_NO_ZEROES`].
pub const NBD_FLAG_C_NO_ZEROES: u32 = 1 << 1;

/// Transmission flag: always set.
pub const NBD_FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: writes are refused.
pub const NBD_FLAG_READ_ONLY: u16 = 1 << 1;
/// Transmission flag: [`NBD_CMD_FLUSH`] works.
pub const NBD_FLAG_SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: [`NBD_CMD_FLAG_FUA`] works.
pub const NBD_FLAG_SEND_FUA: u16 = 1 << 3;
/// Transmission flag: [`NBD_CMD_TRIM`] works.
pub const NBD_FLAG_SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: [`NBD_CMD_WRITE_ZEROES`] works.
pub const NBD_FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: [`NBD_CMD_FLAG_DF`] works.
pub const NBD_FLAG_SEND_DF: u16 = 1 << 7;
/// Transmission flag: a flush on one connection covers writes completed on all.
pub const NBD_FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: [`NBD_CMD_CACHE`] works.
pub const NBD_FLAG_SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: [`NBD_CMD_FLAG_FAST_ZERO`] works.
pub const NBD_FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

/// Reads.
pub const NBD_CMD_READ: u16 = 0;
/// Writes the payload that follows the request.
pub const NBD_CMD_WRITE: u16 = 1;
/// Ends the connection.
pub const NBD_CMD_DISC: u16 = 2;
/// Makes all completed writes durable.
pub const NBD_CMD_FLUSH: u16 = 3;
/// Says that a range is not needed.
pub const NBD_CMD_TRIM: u16 = 4;
/// Asks to bring a range near.
pub const NBD_CMD_CACHE: u16 = 5;
/// Makes a range zero.
pub const NBD_CMD_WRITE_ZEROES: u16 = 6;
/// Asks what a range consists of.
pub const NBD_CMD_BLOCK_STATUS: u16 = 7;

/// Request flag: durable before the reply.
pub const NBD_CMD_FLAG_FUA: u16 = 1 << 0;
/// Request flag of write-zeroes: the range should keep its room.
pub const NBD_CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// Request flag of read: one content chunk.
pub const NBD_CMD_FLAG_DF: u16 = 1 << 2;
/// Request flag of block status: one extent.
pub const NBD_CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Request flag of write-zeroes: fail unless it is faster than a write.
pub const NBD_CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// Chunk flag: the last of its reply.
pub const NBD_REPLY_FLAG_DONE: u16 = 1 << 0;
/// Chunk: no content.
pub const NBD_REPLY_TYPE_NONE: u16 = 0;
/// Chunk: an offset and data.
pub const NBD_REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// Chunk: an offset and a number of zero bytes.
pub const NBD_REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Chunk: a context's extents.
pub const NBD_REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Chunk: an error and a message.
pub const NBD_REPLY_TYPE_ERROR: u16 = (1 << 15) + 1;

/// `base:allocation`: nothing is stored there.
pub const NBD_STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: it reads as zeroes.
pub const NBD_STATE_ZERO: u32 = 1 << 1;

/// Not permitted.
pub const NBD_EPERM: u32 = 1;
/// Input/output error.
pub const NBD_EIO: u32 = 5;
/// Invalid argument.
pub const NBD_EINVAL: u32 = 22;
/// No space left.
pub const NBD_ENOSPC: u32 = 28;
/// Not supported.
pub const NBD_ENOTSUP: u32 = 95;
/// The server is shutting down.
pub const NBD_ESHUTDOWN: u32 = 108;

/// The smallest unit: any offset and length is served, parts of sectors by read-modify-write.
pub const MINIMUM_BLOCK_BYTES: u32 = 1;
/// The smallest unit at which requests are efficient.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;
/// The largest payload of a read or a write.
pub const MAXIMUM_PAYLOAD_BYTES: u32 = 32 << 20;
/// The largest string of the protocol.
pub const MAXIMUM_STRING_BYTES: usize = 4096;

/// Length of a request without its payload.
pub const REQUEST_BYTES: usize = 28;
/// Length of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Length of a structured chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 20;

/// A request began with the wrong number: the stream is out of step and cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request with magic number {0:#010x}")]
pub struct WrongMagic(
    /// What was there instead.
    pub u32,
);

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `NBD_CMD_FLAG_*`, unchecked.
    pub flags: u16,
    /// `NBD_CMD_*`, unchecked.
    pub command: u16,
    /// The client's name for the request, repeated in the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How long, in bytes.
    pub length: u32,
}

impl Request {
    /// The number of bytes that follow the header.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        if self.command == NBD_CMD_WRITE { self.length } else { 0 }
    }

    /// The first byte behind the range, if there is one.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.offset.checked_add(u64::from(self.length))
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Decodes a request's header.
///
/// # Errors
/// [`WrongMagic`], after which nothing that follows can be understood.
pub fn decode_request(bytes: &[u8; REQUEST_BYTES]) -> Result<Request, WrongMagic> {
    let [m0, m1, m2, m3, f0, f1, c0, c1, rest @ ..] = *bytes;
    let [k0, k1, k2, k3, k4, k5, k6, k7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
    let magic = u32::from_be_bytes([m0, m1, m2, m3]);
    if magic != NBD_REQUEST_MAGIC {
        return Err(WrongMagic(magic));
    }
    Ok(Request {
        flags: u16::from_be_bytes([f0, f1]),
        command: u16::from_be_bytes([c0, c1]),
        cookie: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
        offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
        length: u32::from_be_bytes([l0, l1, l2, l3]),
    })
}

/// Encodes a request's header; what a client does.
#[must_use]
pub fn encode_request(request: &Request) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[0..4].copy_from_slice(&NBD_REQUEST_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&request.flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&request.command.to_be_bytes());
    bytes[8..16].copy_from_slice(&request.cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&request.offset.to_be_bytes());
    bytes[24..28].copy_from_slice(&request.length.to_be_bytes());
    bytes
}

/// Encodes a simple reply's header.
#[must_use]
pub fn encode_simple_reply(cookie: u64, error: u32) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[0..4].copy_from_slice(&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// Encodes the header of a structured reply's chunk; `length` is that of its content.
#[must_use]
pub fn encode_chunk_header(cookie: u64, flags: u16, kind: u16, length: u32) -> [u8; CHUNK_HEADER_BYTES] {
    let mut bytes = [0; CHUNK_HEADER_BYTES];
    bytes[0..4].copy_from_slice(&NBD_STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&length.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_decodes_to_its_fields() {
        let bytes = [0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0];
        let request = decode_request(&bytes).unwrap();
        let expected =
            Request { flags: NBD_CMD_FLAG_FUA, command: NBD_CMD_WRITE_ZEROES, cookie: 9, offset: 4096, length: 512 };
        assert_eq!(request, expected);
        assert_eq!(request.payload_bytes(), 0);
    }

    #[test]
    fn a_wrong_magic_number_is_refused() {
        assert_eq!(decode_request(&[7; REQUEST_BYTES]), Err(WrongMagic(0x0707_0707)));
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(decode_request(&encode_request(&request)), Ok(request));
        }
    }
}

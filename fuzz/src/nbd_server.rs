//! What the NBD server is told: options and requests by a client, the state of connections by another process.

use export::nbd::option::{
    OPTION_HEADER_BYTES, decode_export_name, decode_info, decode_meta_context, decode_option_header,
};
use export::nbd::protocol::{REQUEST_BYTES, Request, decode_request, encode_request};
use export::nbd::refusal::{Limits, check};
use export::nbd::state::ServerState;

pub(crate) fn request(data: &[u8]) -> bool {
    let Some(bytes) = data.first_chunk::<REQUEST_BYTES>() else { return false };
    let Ok(request) = decode_request(bytes) else { return false };
    assert_eq!(encode_request(&request), *bytes, "one form");
    let size_bytes = 1 << 30;
    let mut taken = false;
    for flags in 0..8_u8 {
        let [read_only, structured, contexts] = [1, 2, 4].map(|flag| flags & flag != 0);
        if check(&request, &Limits { size_bytes, read_only, structured, contexts }).is_ok() {
            taken = true;
            let inside = request.end().is_some_and(|end| end <= size_bytes);
            // A disconnect is always taken, whatever it says.
            assert!(inside || request.command == 2, "{request:?}");
        }
    }
    taken
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let make = |(command, flags)| {
        let length = if command == 3 { 0 } else { 4096 };
        let offset = u64::from(length);
        encode_request(&Request { flags, command, cookie: 0x0123_4567_89ab_cdef, offset, length }).to_vec()
    };
    [(0, 0), (0, 4), (1, 1), (2, 0), (3, 0), (4, 0), (5, 0), (6, 2), (6, 16), (7, 8)].map(make).to_vec()
}

/// An option's header, and its data as each option would read them.
pub(crate) fn option(data: &[u8]) -> bool {
    let Some((header, rest)) = data.split_first_chunk::<OPTION_HEADER_BYTES>() else { return false };
    let header = decode_option_header(header);
    let name = decode_export_name(rest).is_ok_and(|name| name.len() == rest.len());
    let info = decode_info(rest).is_ok_and(|info| info.name.len() + 2 * info.wanted.len() <= rest.len());
    let contexts = decode_meta_context(rest);
    if let Ok(contexts) = &contexts {
        assert!(contexts.queries.len() <= rest.len() / 4, "as many queries as were sent");
    }
    header.is_ok() && (name || info || contexts.is_ok())
}

pub(crate) fn option_seeds() -> Vec<Vec<u8>> {
    let make = |option: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).unwrap_or(0).to_be_bytes();
        [b"IHAVEOPT", &option.to_be_bytes()[..], &length, data].concat()
    };
    let info = [&4_u32.to_be_bytes()[..], b"disk", &2_u16.to_be_bytes(), &[0, 0, 0, 3]].concat();
    let contexts = [&4_u32.to_be_bytes()[..], b"disk", &1_u32.to_be_bytes(), &15_u32.to_be_bytes(), b"base:allocation"];
    vec![make(1, b"disk"), make(7, &info), make(10, &contexts.concat()), make(3, b"")]
}

/// A server's state, as it is handed over: nothing of it is used before it was checked.
pub(crate) fn state(data: &[u8]) -> bool {
    let decoded = format::from_canonical::<ServerState>(data, 1 << 20);
    decoded.is_ok_and(|state| state.check(state.sockets()).is_ok())
}

pub(crate) fn state_seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../crates/export/golden/server-v1.cbor").to_vec()]
}

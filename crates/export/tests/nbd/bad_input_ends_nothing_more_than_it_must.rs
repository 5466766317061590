//! Garbage, torn streams and too many clients cost the one connection, and nobody else.

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use export::NbdOptions;
use export::nbd::protocol::{NBD_CMD_WRITE, Request, encode_request};
use proptest::prelude::*;

use crate::client::{Server, eventually};
use crate::memory_disk::{MemoryDisk, pattern};

const MIB: usize = 1 << 20;

#[test]
fn a_stream_out_of_step_ends_its_connection() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
    let mut good = server.structured();
    let mut bad = server.structured();
    bad.stream.write_all(&[0x55; 64]).unwrap();
    assert!(bad.ended());
    assert_eq!(good.read(0, 512), pattern(0, 512));
}

#[test]
fn requests_that_come_in_crumbs_are_served() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let server = Server::of(&disk);
    let mut client = server.simple();
    let request = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 5, offset: 512, length: 512 };
    for byte in [encode_request(&request).as_slice(), &[6; 512]].concat() {
        client.stream.write_all(&[byte]).unwrap();
    }
    let reply = client.reply(0, 0);
    assert_eq!((reply.cookie, reply.error), (5, 0));
    assert_eq!(disk.bytes(512, 512), [6; 512]);
}

#[test]
fn a_torn_write_changes_nothing() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let server = Server::of(&disk);
    let mut client = server.simple();
    client.send(NBD_CMD_WRITE, 0, 0, 4096, &[1; 4095]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.ended());
    assert_eq!(disk.bytes(0, 4096), pattern(0, 4096));
}

#[test]
fn clients_beyond_the_limit_are_turned_away() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let server = Server::with(&disk, NbdOptions { max_connections: 2, ..NbdOptions::default() });
    let (first, mut second) = (server.structured(), server.structured());
    assert!(server.connect().ended());
    assert_eq!(second.read(0, 512), pattern(0, 512));
    drop(first);
    eventually("there is room again", || server.nbd().connections("disk") == 1);
    assert_eq!(server.structured().read(0, 512), pattern(0, 512));
}

#[test]
fn a_client_that_never_chooses_is_let_go() {
    let disk = Arc::new(MemoryDisk::new(MIB));
    let options = NbdOptions { negotiation_timeout: Duration::from_millis(30), ..NbdOptions::default() };
    let server = Server::with(&disk, options);
    let mut client = server.connect();
    client.greet();
    assert!(client.ended());
    // The limit is for the handshake alone.
    let mut chosen = server.structured();
    assert!(server.connect().receive::<18>().starts_with(b"NBDMAGIC"));
    assert_eq!(chosen.read(0, 512), [0; 512]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_leave_the_server_serving(
        handshake in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        requests in proptest::collection::vec((any::<u16>(), 0_u16..9, 0_u64..3 << 20, 0_u32..1 << 19), 0..8),
    ) {
        let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
        let mut client = if handshake { server.structured() } else { server.connect() };
        for (flags, command, offset, length) in requests {
            let request = Request { flags, command, cookie: 1, offset, length };
            let _ = client.stream.write_all(&encode_request(&request));
        }
        let _ = client.stream.write_all(&bytes);
        drop(client);
        prop_assert_eq!(server.structured().read(512, 512).len(), 512);
        eventually("the connections are gone", || server.nbd().connections("disk") == 0);
    }
}

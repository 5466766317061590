//! A client that is given a connection is served at once, is told from others, and is handed over as they are.

use std::sync::Arc;
use std::time::Duration;

use export::nbd::protocol::{
    NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_WRITE, NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_TRIM,
};

use crate::client::{Server, eventually};
use crate::memory_disk::{MemoryDisk, pattern};

#[test]
fn it_is_served_and_handed_over() {
    let disk = Arc::new(MemoryDisk::patterned(1 << 20));
    let mut server = Server::of(&disk);
    // Others are no such clients.
    let _other = server.simple();
    assert!(!server.nbd().direct("disk").is_connected());
    let mut client = server.direct();
    assert!(server.nbd().direct("").is_connected());
    eventually("two are connected", || server.nbd().connections("disk") == 2);
    assert_eq!(client.ask(NBD_CMD_READ, 0, 4096, 512, &[]).data(4096, 512), pattern(4096, 512));
    server.hand_over();
    assert!(server.nbd().direct("disk").is_connected());
    assert_eq!(client.ask(NBD_CMD_WRITE, 0, 8192, 512, &[7; 512]).error, 0);
    assert_eq!(client.ask(NBD_CMD_FLUSH, 0, 0, 0, &[]).error, 0);
    assert_eq!(disk.bytes(8192, 512), [7; 512]);
    drop(client);
    server.nbd().direct("disk").wait_for_the_gone();
    assert!(!server.nbd().direct("disk").is_connected());
    assert_eq!(server.nbd().connections("disk"), 1);
}

#[test]
fn it_is_told_what_the_disk_can_do() {
    let flags = |disk: MemoryDisk| Server::of(&Arc::new(disk)).nbd().direct("disk").transmission_flags();
    let writable = flags(MemoryDisk::new(1 << 20));
    assert!(writable & NBD_FLAG_SEND_FLUSH != 0 && writable & NBD_FLAG_SEND_TRIM != 0);
    assert_eq!(writable & NBD_FLAG_READ_ONLY, 0);
    let read_only = flags(MemoryDisk::new(1 << 20).read_only());
    assert!(read_only & NBD_FLAG_READ_ONLY != 0 && read_only & NBD_FLAG_SEND_TRIM == 0);
}

#[test]
fn a_server_that_stops_begins_none() {
    let mut server = Server::of(&Arc::new(MemoryDisk::new(1 << 20)));
    let direct = server.nbd().direct("disk");
    let client = direct.connect().unwrap();
    server.stop(Duration::ZERO);
    assert!(!direct.is_connected() && direct.connect().is_err());
    drop(client);
}

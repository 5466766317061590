//! Ending a server or an export: what was acknowledged is done, nothing is touched afterwards, sockets are cleaned up.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use export::nbd::protocol::{NBD_CMD_READ, NBD_CMD_WRITE, Request, SIMPLE_REPLY_BYTES, encode_request};
use export::{Listen, NbdOptions, NbdServer, SingleExport};
use volume::ExtentKind;

use crate::client::{PATIENCE, Server, eventually};
use crate::memory_disk::{MemoryDisk, pattern};

const MIB: usize = 1 << 20;

#[test]
fn stopping_under_load_keeps_every_acknowledged_write() {
    let disk = Arc::new(MemoryDisk::new(4 * MIB));
    let mut server = Server::of(&disk);
    let acknowledged: Vec<u64> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u64)
            .map(|writer| {
                let client = server.simple();
                scope.spawn(move || write_until_the_end(client.stream, writer * MIB as u64))
            })
            .collect();
        eventually("the load is on", || disk.requests.load(Ordering::SeqCst) > 200);
        server.stop(PATIENCE);
        let after = disk.requests.load(Ordering::SeqCst);
        assert!(!server.socket().exists(), "the socket is still there");
        let acknowledged = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        assert_eq!(disk.requests.load(Ordering::SeqCst), after, "the disk was used after the stop");
        acknowledged
    });
    assert!(acknowledged.iter().any(|count| *count > 0));
    for (writer, count) in acknowledged.into_iter().enumerate() {
        let count = usize::try_from(count).unwrap();
        assert!(disk.bytes(writer * MIB, 512 * count.min(2048)).iter().all(|byte| *byte == 7));
    }
}

/// Writes sector after sector, many at a time, and counts the replies.
fn write_until_the_end(mut stream: impl Read + Write, base: u64) -> u64 {
    let (mut sent, mut answered) = (0_u64, 0);
    loop {
        while sent < answered + 8 {
            let offset = base + sent % 2048 * 512;
            let request = Request { flags: 0, command: NBD_CMD_WRITE, cookie: sent, offset, length: 512 };
            if stream.write_all(&[encode_request(&request).as_slice(), &[7; 512]].concat()).is_err() {
                break;
            }
            sent += 1;
        }
        let mut reply = [0; SIMPLE_REPLY_BYTES];
        if stream.read_exact(&mut reply).is_err() {
            return answered;
        }
        assert_eq!(reply[4..8], [0; 4]);
        answered += 1;
    }
}

#[test]
fn a_stop_with_grace_lets_waits_finish() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    disk.mark(0, 4096, ExtentKind::Absent);
    let mut server = Server::of(&disk);
    let mut client = server.structured();
    client.send(NBD_CMD_READ, 0, 0, 512, &[]);
    eventually("the read waits", || disk.waiting() == 1);
    std::thread::scope(|scope| {
        let socket = server.socket();
        let stopping = scope.spawn(|| server.stop(PATIENCE));
        eventually("the server stops listening", || !socket.exists());
        disk.arrive(0, 4096);
        assert_eq!(client.reply(0, 512).data(0, 512), pattern(0, 512));
        stopping.join().unwrap();
    });
    assert!(client.ended());
}

#[test]
fn a_stop_without_grace_cancels_waits_and_answers_nothing() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    disk.mark(0, 4096, ExtentKind::Absent);
    let mut server = Server::of(&disk);
    let mut client = server.structured();
    let mut haggling = server.connect();
    haggling.greet();
    client.send(NBD_CMD_READ, 0, 0, 512, &[]);
    eventually("the read waits", || disk.waiting() == 1);
    server.stop(Duration::ZERO);
    assert!(client.ended());
    assert!(haggling.ended());
    eventually("the wait is cancelled", || disk.waiting() == 0);
}

#[test]
fn closing_an_export_ends_its_connections() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    disk.mark(0, 4096, ExtentKind::Absent);
    let server = Server::of(&disk);
    let (mut idle, mut waiting) = (server.structured(), server.structured());
    waiting.send(NBD_CMD_READ, 0, 0, 512, &[]);
    eventually("the read waits", || disk.waiting() == 1);
    assert_eq!(server.nbd().close_export("other"), 0);
    // The empty name is the same export.
    assert_eq!(server.nbd().close_export(""), 2);
    assert_eq!(server.nbd().connections("disk"), 0);
    assert!(idle.ended());
    assert!(waiting.ended());
    eventually("the wait is cancelled", || disk.waiting() == 0);
    // The export itself is still offered.
    assert_eq!(server.structured().read(8192, 512), pattern(8192, 512));
}

#[test]
fn tcp_serves_and_tells_its_real_port() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let start = |listen| {
        let exports = Arc::new(SingleExport::new("disk", Arc::<MemoryDisk>::clone(&disk)));
        NbdServer::start(listen, exports, runtime.handle().clone(), NbdOptions::default())
    };
    let server = start(Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
    let Listen::Tcp(address) = *server.listen() else { panic!("not TCP") };
    assert_eq!(server.uri("disk"), format!("nbd://{address}/disk"));
    let error = start(Listen::Tcp(address)).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[..8], *b"NBDMAGIC");
    server.stop(PATIENCE);
    assert_eq!(stream.read(&mut greeting).unwrap(), 0);
}

//! Handing a server's connections over: a client sees that its requests take a little longer, and nothing else.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use export::nbd::protocol::{
    NBD_CMD_DISC, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_WRITE, NBD_EPERM, NBD_SIMPLE_REPLY_MAGIC, Request,
    encode_request,
};
use volume::{BlockDevice as _, ExtentKind};

use crate::client::{Client, PATIENCE, Server, eventually};
use crate::memory_disk::{MemoryDisk, pattern};

const MIB: usize = 1 << 20;
const BLOCK: u32 = 4096;
const DEPTH: usize = 32;

/// What a client has under way: by cookie, whether it writes, where, and the version that is written or expected.
type UnderWay = BTreeMap<u64, (bool, u64, u64)>;

/// A client that keeps many requests under way on blocks of its own, and checks every reply.
struct Load {
    client: Client,
    base: u64,
    versions: Vec<u64>,
    under_way: UnderWay,
    next: u64,
}

impl Load {
    fn block(base: u64, block: u64, version: u64) -> Vec<u8> {
        let word = (base + block) << 32 | version;
        word.to_be_bytes().repeat(BLOCK as usize / 8)
    }

    /// Sends a request for a block that none is under way for.
    fn send(&mut self) {
        let blocks = self.versions.len() as u64;
        let mut block = (self.next * 7919) % blocks;
        while self.under_way.values().any(|(_, other, _)| *other == block) {
            block = (block + 1) % blocks;
        }
        self.next += 1;
        let index = usize::try_from(block).unwrap();
        let offset = self.base + block * u64::from(BLOCK);
        let writes = self.next.is_multiple_of(2);
        let cookie = if writes {
            self.versions[index] += 1;
            let payload = Load::block(self.base, block, self.versions[index]);
            self.client.send(NBD_CMD_WRITE, 0, offset, BLOCK, &payload)
        } else {
            self.client.send(NBD_CMD_READ, 0, offset, BLOCK, &[])
        };
        assert!(self.under_way.insert(cookie, (writes, block, self.versions[index])).is_none());
    }

    /// Takes one reply.
    fn take(&mut self) {
        assert_eq!(u32::from_be_bytes(self.client.receive()), NBD_SIMPLE_REPLY_MAGIC);
        assert_eq!(u32::from_be_bytes(self.client.receive()), 0, "a request failed");
        let cookie = u64::from_be_bytes(self.client.receive());
        let (writes, block, version) = self.under_way.remove(&cookie).expect("a request was answered twice");
        if !writes {
            let found: [u8; BLOCK as usize] = self.client.receive();
            let expected = if version == 0 { vec![0; BLOCK as usize] } else { Load::block(self.base, block, version) };
            assert!(found[..] == expected[..], "block {block} is not version {version}");
        }
    }

    fn run(&mut self, stop: &AtomicBool, answered: &AtomicU64) {
        while !stop.load(Ordering::Relaxed) {
            while self.under_way.len() < DEPTH {
                self.send();
            }
            self.take();
            answered.fetch_add(1, Ordering::Relaxed);
        }
        while !self.under_way.is_empty() {
            self.take();
        }
    }
}

#[test]
fn requests_of_four_busy_clients_are_all_answered_once_and_rightly() {
    let disk = Arc::new(MemoryDisk::new(4 * MIB));
    let mut server = Server::of(&disk);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let loads: Vec<Load> = (0..4)
        .map(|number| {
            let (base, versions) = (number * MIB as u64, vec![0; MIB / BLOCK as usize]);
            Load { client: server.simple(), base, versions, under_way: UnderWay::new(), next: number }
        })
        .collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = loads
            .into_iter()
            .map(|mut load| {
                let (stop, answered) = (&stop, &answered);
                scope.spawn(move || {
                    load.run(stop, answered);
                    load
                })
            })
            .collect();
        for _ in 0..20 {
            let before = answered.load(Ordering::Relaxed);
            eventually("the load goes on", || answered.load(Ordering::Relaxed) > before + 500);
            server.hand_over();
        }
        stop.store(true, Ordering::Relaxed);
        for load in threads.into_iter().map(|thread| thread.join().unwrap()) {
            for (block, version) in load.versions.iter().enumerate().filter(|(_, version)| **version > 0) {
                let at = usize::try_from(load.base).unwrap() + block * BLOCK as usize;
                assert_eq!(disk.bytes(at, BLOCK as usize), Load::block(load.base, block as u64, *version));
            }
        }
    });
}

#[test]
fn a_read_that_waits_is_answered_by_the_successor() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    disk.mark(4096, 4096, ExtentKind::Absent);
    disk.mark(65536, 512, ExtentKind::Absent);
    let mut server = Server::of(&disk);
    let mut client = server.structured();
    client.send(NBD_CMD_READ, 0, 0, 65536, &[]);
    client.send(NBD_CMD_WRITE, 0, 65537, 3, &[9; 3]);
    eventually("both wait", || disk.waiting() == 2);
    for _ in 0..3 {
        server.hand_over();
        eventually("both wait again", || disk.waiting() == 2);
    }
    // What is here is served meanwhile.
    assert_eq!(client.ask(NBD_CMD_FLUSH, 0, 0, 0, &[]).error, 0);
    disk.arrive(65536, 512);
    assert_eq!(client.reply(0, 0).cookie, 2);
    disk.arrive(4096, 4096);
    assert_eq!(client.reply(0, 65536).data(0, 65536), pattern(0, 65536));
    assert_eq!(disk.bytes(65536, 5)[1..4], [9; 3]);
    assert_eq!(client.ask(7, 0, 0, 65536, &[]).status.len(), 3, "the contexts are as they were chosen");
}

#[test]
fn a_request_of_which_a_part_has_come_is_finished_by_the_successor() {
    let disk = Arc::new(MemoryDisk::new(MIB));
    let mut server = Server::of(&disk);
    let mut client = server.simple();
    let request = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 7, offset: 4096, length: 8192 };
    let bytes = [encode_request(&request).as_slice(), &[5; 8192]].concat();
    for part in bytes.chunks(2000) {
        client.stream.write_all(part).unwrap();
        server.hand_over();
    }
    assert_eq!(client.reply(0, 0).cookie, 7);
    assert_eq!(disk.bytes(4096, 8192), [5; 8192]);
}

#[test]
fn a_refused_write_is_passed_over_by_the_successor_too() {
    let disk = Arc::new(MemoryDisk::patterned(MIB).read_only());
    let mut server = Server::of(&disk);
    let mut client = server.structured();
    let request = Request { flags: 0, command: NBD_CMD_WRITE, cookie: 7, offset: 4096, length: 8192 };
    client.stream.write_all(&encode_request(&request)).unwrap();
    client.stream.write_all(&[5; 1000]).unwrap();
    server.hand_over();
    client.stream.write_all(&[5; 7192]).unwrap();
    let reply = client.reply(0, 0);
    assert_eq!((reply.cookie, reply.error), (7, NBD_EPERM));
    assert_eq!(client.read(0, 512), pattern(0, 512));
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up_and_loses_nothing() {
    let disk = Arc::new(MemoryDisk::patterned(4 * MIB));
    let mut server = Server::of(&disk);
    let mut lazy = server.simple();
    let cookies: Vec<u64> = (0..8).map(|_| lazy.send(NBD_CMD_READ, 0, 0, 4 << 20, &[])).collect();
    eventually("the first is being sent", || disk.requests.load(Ordering::SeqCst) > 0);
    server.hand_over();
    server.hand_over();
    for cookie in cookies {
        let reply = lazy.reply(0, 4 << 20);
        assert_eq!(reply.cookie, cookie);
        assert!(reply.data(0, 4 * MIB) == pattern(0, 4 * MIB));
    }
}

#[test]
fn who_connects_meanwhile_waits_and_who_was_haggling_must_come_again() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let mut server = Server::of(&disk);
    let mut idle = server.simple();
    let mut haggling = server.connect();
    haggling.greet();
    let suspended = server.suspend().expect("suspended");
    assert!(haggling.ended());
    let mut early = server.connect();
    server.resume(suspended);
    early.greet();
    early.go();
    assert_eq!(early.read(0, 512), pattern(0, 512));
    assert_eq!(idle.read(512, 512), pattern(512, 512));
    assert_eq!(server.nbd().connections("disk"), 2);
    idle.send(NBD_CMD_DISC, 0, 0, 0, &[]);
    assert!(idle.ended());
    server.stop(PATIENCE);
    assert!(early.ended());
    assert!(!server.socket().exists(), "the successor removes the socket that it was given");
}

#[test]
fn a_client_that_left_is_not_missed() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    disk.mark(0, 4096, ExtentKind::Absent);
    let mut server = Server::of(&disk);
    let mut gone = server.simple();
    gone.send(NBD_CMD_READ, 0, 0, 512, &[]);
    eventually("the read waits", || disk.waiting() == 1);
    let suspended = server.suspend().expect("suspended");
    drop(gone);
    server.resume(suspended);
    eventually("the connection has ended", || server.nbd().connections("disk") == 0);
    eventually("its wait too", || disk.waiting() == 0);
}

#[test]
fn a_server_whose_disk_hangs_goes_on_instead() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let mut server = Server::of(&disk);
    let (mut stuck, mut idle) = (server.simple(), server.simple());
    let size_bytes = disk.size_bytes();
    let hang = disk.hang();
    stuck.send(NBD_CMD_READ, 0, size_bytes - 512, 512, &[]);
    eventually("the disk has the request", || disk.requests.load(Ordering::SeqCst) == 1);
    assert!(server.suspend_within(Duration::from_millis(300)).is_none());
    drop(hang);
    assert_eq!(stuck.reply(size_bytes - 512, 512).data(size_bytes - 512, 512), pattern(MIB - 512, 512));
    assert_eq!(idle.read(0, 512), pattern(0, 512));
    assert_eq!(server.simple().read(0, 512), pattern(0, 512));
    server.hand_over();
    assert_eq!(stuck.read(0, 512), pattern(0, 512));
    let mut byte = [0];
    server.stop(PATIENCE);
    assert_eq!(idle.stream.read(&mut byte).unwrap(), 0);
}

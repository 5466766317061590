//! Requests for what is not here wait by themselves: others overtake them, limits hold, and waits can be ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use export::NbdOptions;
use export::nbd::protocol::{
    NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_DISC, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLUSH, NBD_CMD_READ,
    NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_EIO, NBD_ENOTSUP,
};
use volume::ExtentKind;

use crate::client::{Server, eventually};
use crate::memory_disk::{MemoryDisk, pattern};

const MIB: usize = 1 << 20;

/// A disk whose second half is not here.
fn half_absent() -> Arc<MemoryDisk> {
    let disk = Arc::new(MemoryDisk::patterned(2 * MIB));
    disk.mark(MIB, MIB, ExtentKind::Absent);
    disk
}

#[test]
fn other_requests_overtake_one_that_waits() {
    let disk = half_absent();
    let server = Server::of(&disk);
    for mut client in [server.simple(), server.structured()] {
        disk.mark(MIB, MIB, ExtentKind::Absent);
        let late = client.send(NBD_CMD_READ, 0, MIB as u64 + 512, 4096, &[]);
        assert_eq!(client.read(0, 4096), pattern(0, 4096));
        assert_eq!(client.write(0, 8192, &pattern(8192, 512)).error, 0);
        assert_eq!(client.ask(NBD_CMD_FLUSH, 0, 0, 0, &[]).error, 0);
        eventually("the read waits", || disk.waiting() == 1);
        disk.arrive(MIB, MIB);
        let reply = client.reply(MIB as u64 + 512, 4096);
        assert_eq!(reply.cookie, late);
        assert_eq!(reply.data(MIB as u64 + 512, 4096), pattern(MIB + 512, 4096));
    }
}

#[test]
fn a_large_read_sends_what_is_here_and_waits_for_the_rest() {
    let disk = half_absent();
    let server = Server::of(&disk);
    for mut client in [server.simple(), server.structured()] {
        disk.mark(MIB, MIB, ExtentKind::Absent);
        client.send(NBD_CMD_READ, 0, 3, (2 << 20) - 5, &[]);
        let reply = std::thread::scope(|scope| {
            scope.spawn(|| {
                eventually("the read waits", || disk.waiting() == 1);
                disk.arrive(MIB, MIB);
            });
            client.reply(3, (2 << 20) - 5)
        });
        assert!(reply.data(3, 2 * MIB - 5) == pattern(3, 2 * MIB - 5), "the read differs");
    }
}

#[test]
fn a_write_over_a_part_of_an_absent_sector_waits_for_it_alone() {
    let disk = half_absent();
    let server = Server::of(&disk);
    let mut client = server.structured();
    let at = MIB as u64;
    // Whole sectors need nothing that is not here.
    assert_eq!(client.write(0, at + 4096, &[7; 1024]).error, 0);
    assert_eq!(disk.waiting(), 0);
    let partial = client.send(NBD_CMD_WRITE, 0, at + 100, 8, &[9; 8]);
    let fast = NBD_CMD_FLAG_FAST_ZERO;
    assert_eq!(client.ask(NBD_CMD_WRITE_ZEROES, fast, at + 100, 8, &[]).error, NBD_ENOTSUP);
    let zeroes = client.send(NBD_CMD_WRITE_ZEROES, 0, at + 1000, 1024, &[]);
    assert_eq!(client.read(0, 512), pattern(0, 512));
    eventually("both wait", || disk.waiting() == 2);
    disk.arrive(MIB, 4096);
    let mut cookies = [client.reply(0, 0), client.reply(0, 0)].map(|reply| {
        assert_eq!(reply.error, 0, "{}", reply.message);
        reply.cookie
    });
    cookies.sort_unstable();
    assert_eq!(cookies, [partial, zeroes]);
    let mut expected = pattern(MIB, 4096);
    expected[100..108].fill(9);
    expected[1000..2024].fill(0);
    assert_eq!(disk.bytes(MIB, 4096), expected);
}

#[test]
fn cache_brings_what_is_absent_and_only_that() {
    let disk = half_absent();
    let server = Server::of(&disk);
    let mut client = server.structured();
    assert_eq!(client.ask(NBD_CMD_CACHE, 0, 0, 1 << 20, &[]).error, 0);
    let cookie = client.send(NBD_CMD_CACHE, 0, 0, 2 << 20, &[]);
    eventually("the absent half is fetched", || disk.waiting() == 1);
    disk.arrive(MIB, MIB);
    let reply = client.reply(0, 0);
    assert_eq!((reply.cookie, reply.error), (cookie, 0));
}

#[test]
fn a_disk_that_tells_little_at_a_time_is_cached_and_read_whole() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    disk.extents.store(1, Ordering::SeqCst);
    disk.mark(256 << 10, 4096, ExtentKind::Zero);
    disk.mark(512 << 10, 4096, ExtentKind::Absent);
    let server = Server::of(&disk);
    let mut client = server.structured();
    client.send(NBD_CMD_CACHE, 0, 0, 1 << 20, &[]);
    eventually("the absent part is fetched", || disk.waiting() == 1);
    disk.arrive(512 << 10, 4096);
    assert_eq!(client.reply(0, 0).error, 0);
    assert!(client.read(0, 1 << 20) == pattern(0, MIB), "the read differs");
    assert_eq!(client.ask(NBD_CMD_BLOCK_STATUS, 0, 0, 1 << 20, &[]).status[1].1, [(256 << 10, 2)]);
}

#[test]
fn waits_are_bounded_and_then_nothing_more_is_received() {
    let disk = half_absent();
    let options = NbdOptions { max_waiting_requests: 3, ..NbdOptions::default() };
    let server = Server::with(&disk, options);
    let mut client = server.structured();
    for _ in 0..10 {
        client.send(NBD_CMD_READ, 0, MIB as u64, 512, &[]);
    }
    eventually("as many wait as may", || disk.waiting() == 3);
    // Another client is not concerned.
    assert_eq!(server.structured().read(0, 512), pattern(0, 512));
    assert_eq!(disk.waiting(), 3);
    disk.arrive(MIB, MIB);
    for _ in 0..10 {
        assert_eq!(client.reply(MIB as u64, 512).data(MIB as u64, 512), pattern(MIB, 512));
    }
}

#[test]
fn bytes_waited_for_are_bounded_too() {
    let disk = half_absent();
    let server = Server::with(&disk, NbdOptions { max_waiting_bytes: 1 << 20, ..NbdOptions::default() });
    let mut client = server.simple();
    for _ in 0..5 {
        client.send(NBD_CMD_READ, 0, MIB as u64, 512 << 10, &[]);
    }
    eventually("a mebibyte waits", || disk.waiting() == 2);
    disk.arrive(MIB, MIB);
    for _ in 0..5 {
        assert!(client.reply(MIB as u64, 512 << 10).data(MIB as u64, 512 << 10) == pattern(MIB, 512 << 10));
    }
}

#[test]
fn a_wait_ends_at_its_time_limit_with_eio() {
    let disk = half_absent();
    let options = NbdOptions { read_timeout: Some(Duration::from_millis(20)), ..NbdOptions::default() };
    let server = Server::with(&disk, options);
    for mut client in [server.simple(), server.structured()] {
        assert_eq!(client.ask(NBD_CMD_READ, 0, MIB as u64, 512, &[]).error, NBD_EIO);
        assert_eq!(client.write(0, MIB as u64 + 1, &[1]).error, NBD_EIO);
        assert_eq!(client.read(0, 512), pattern(0, 512));
    }
    assert_eq!(disk.waiting(), 0);
}

#[test]
fn a_client_that_leaves_cancels_its_waits() {
    let disk = half_absent();
    let server = Server::of(&disk);
    for limit in [1, 100] {
        let server = Server::with(&disk, NbdOptions { max_waiting_requests: limit, ..NbdOptions::default() });
        let mut client = server.structured();
        client.send(NBD_CMD_READ, 0, MIB as u64, 512, &[]);
        eventually("the read waits", || disk.waiting() == 1);
        drop(client);
        eventually("the wait is cancelled", || disk.waiting() == 0);
        eventually("the connection is gone", || server.nbd().connections("disk") == 0);
    }
    let mut client = server.structured();
    client.send(NBD_CMD_READ, 0, MIB as u64, 512, &[]);
    client.send(NBD_CMD_DISC, 0, 0, 0, &[]);
    eventually("the read waits", || disk.waiting() == 1);
    drop(client);
    eventually("the wait is cancelled", || disk.waiting() == 0);
}

#[test]
fn a_disconnect_waits_for_what_was_asked_before() {
    let disk = half_absent();
    let server = Server::of(&disk);
    let mut client = server.structured();
    client.send(NBD_CMD_READ, 0, MIB as u64, 512, &[]);
    client.send(NBD_CMD_DISC, 0, 0, 0, &[]);
    eventually("the read waits", || disk.waiting() == 1);
    disk.arrive(MIB, MIB);
    assert_eq!(client.reply(MIB as u64, 512).data(MIB as u64, 512), pattern(MIB, 512));
    assert!(client.ended());
}

//! Reads, writes, zeroes, trims, flushes and block status, and every error that has a name.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use export::nbd::protocol::{
    NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES, NBD_EINVAL, NBD_EIO, NBD_ENOSPC, NBD_EPERM, NBD_ESHUTDOWN,
};
use volume::ExtentKind;

use crate::client::{Client, Server};
use crate::memory_disk::{Fault, MemoryDisk, pattern};

const MIB: usize = 1 << 20;
const SIZE: u64 = MIB as u64;

fn both(server: &Server) -> [Client; 2] {
    [server.simple(), server.structured()]
}

#[test]
fn what_is_written_is_read_by_all_connections() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
    let mut clients = both(&server);
    for (turn, fill) in [(0, 0xA1_u8), (1, 0xB2)] {
        assert_eq!(clients[turn].write(0, 4096, &vec![fill; 8192]).error, 0);
        for client in &mut clients {
            assert_eq!(client.read(4096, 8192), vec![fill; 8192]);
            assert_eq!(client.read(12288, 512), pattern(12288, 512));
        }
    }
}

#[test]
fn any_offset_and_length_can_be_read_and_written() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let server = Server::of(&disk);
    let mut expected = pattern(0, MIB);
    for mut client in both(&server) {
        for (offset, length) in [(1, 1), (511, 2), (700, 100), (512, 1), (1000, 5000), (1023, 1), (8191, 513)] {
            let data: Vec<u8> = (0..length).map(|at: usize| (at % 251).to_le_bytes()[0] ^ 0x5A).collect();
            expected[offset..offset + length].copy_from_slice(&data);
            assert_eq!(client.write(0, offset as u64, &data).error, 0);
            assert_eq!(client.read(offset as u64, u32::try_from(length).unwrap()), data);
        }
        for (offset, length) in [(20_001, 10), (20_480, 1000), (24_000, 4_321)] {
            expected[offset..offset + length].fill(0);
            let length = u32::try_from(length).unwrap();
            assert_eq!(client.ask(NBD_CMD_WRITE_ZEROES, 0, offset as u64, length, &[]).error, 0);
        }
        // A trim frees the whole sectors inside.
        expected[31_232..31_744].fill(0);
        assert_eq!(client.ask(NBD_CMD_TRIM, 0, 31_000, 1000, &[]).error, 0);
    }
    assert!(disk.bytes(0, MIB) == expected, "the disk differs from what was written");
}

#[test]
fn writes_sent_together_are_made_in_order_and_each_has_its_answer() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let server = Server::of(&disk);
    let mut expected = pattern(0, MIB);
    for mut client in both(&server) {
        let mut writes = Vec::new();
        for number in 0..200_u64 {
            // Each covers a part of the one before; some need a sector's rest, some are durable, some are refused.
            let fill = vec![number.to_le_bytes()[0]; 1024];
            let flags = if number % 23 == 5 { NBD_CMD_FLAG_FUA } else { 0 };
            let offset = match number % 17 {
                3 => number * 512 + 7,
                9 => SIZE - 512,
                _ => number * 512,
            };
            writes.push((flags, offset, fill));
        }
        let cookies = client.send_writes(&writes);
        for (cookie, (_, offset, data)) in cookies.into_iter().zip(&writes) {
            let reply = client.reply(0, 0);
            let beyond = offset + 1024 > SIZE;
            assert_eq!((reply.cookie, reply.error), (cookie, if beyond { NBD_ENOSPC } else { 0 }));
            if !beyond {
                let start = usize::try_from(*offset).unwrap();
                expected[start..start + 1024].copy_from_slice(data);
            }
        }
        assert!(disk.bytes(0, MIB) == expected, "the disk differs from what was written");
    }
    assert!(disk.together.load(Ordering::SeqCst) > 1, "none were made together");
}

#[test]
fn where_one_of_several_writes_finds_no_room_the_others_are_made() {
    let disk = Arc::new(MemoryDisk::new(MIB));
    disk.full_from.store(SIZE / 2, Ordering::SeqCst);
    let server = Server::of(&disk);
    let mut client = server.simple();
    let offset = |number: u64| if number % 5 == 4 { SIZE / 2 + number * 512 } else { number * 512 };
    let writes: Vec<_> = (0..60).map(|number| (0, offset(number), vec![7; 512])).collect();
    let cookies = client.send_writes(&writes);
    for (number, cookie) in (0..).zip(cookies) {
        let reply = client.reply(0, 0);
        let error = if number % 5 == 4 { NBD_ENOSPC } else { 0 };
        assert_eq!((reply.cookie, reply.error), (cookie, error), "write {number}");
        let written = if error == 0 { 7 } else { 0 };
        assert_eq!(disk.bytes(usize::try_from(offset(number)).unwrap(), 512), vec![written; 512]);
    }
    assert!(disk.together.load(Ordering::SeqCst) > 1, "none were made together");
}

#[test]
fn parts_of_one_sector_written_at_once_are_all_kept() {
    let disk = Arc::new(MemoryDisk::new(MIB));
    let server = Server::of(&disk);
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let mut client = server.simple();
            scope.spawn(move || {
                for turn in 0..64_u64 {
                    let offset = turn * 8 + u64::from(thread) * 2;
                    assert_eq!(client.write(0, offset, &[thread + 1; 2]).error, 0);
                }
            });
        }
    });
    let expected: Vec<u8> = (0..64).flat_map(|_| [1, 1, 2, 2, 3, 3, 4, 4]).collect();
    assert_eq!(disk.bytes(0, 512), expected);
}

#[test]
fn beyond_the_end_is_einval_for_reads_and_enospc_for_writes() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let server = Server::of(&disk);
    for mut client in both(&server) {
        for (offset, length) in [(SIZE, 512), (SIZE - 512, 1024), (u64::MAX - 511, 512), (u64::MAX - 100, 1 << 20)] {
            assert_eq!(client.ask(NBD_CMD_READ, 0, offset, length, &[]).error, NBD_EINVAL);
            assert_eq!(client.ask(NBD_CMD_TRIM, 0, offset, length, &[]).error, NBD_EINVAL);
            assert_eq!(client.ask(NBD_CMD_CACHE, 0, offset, length, &[]).error, NBD_EINVAL);
            assert_eq!(client.ask(NBD_CMD_WRITE_ZEROES, 0, offset, length, &[]).error, NBD_ENOSPC);
            let data = vec![1; length as usize];
            assert_eq!(client.ask(NBD_CMD_WRITE, 0, offset, length, &data).error, NBD_ENOSPC);
        }
        assert_eq!(client.read(SIZE - 512, 512), pattern(MIB - 512, 512));
    }
    assert!(disk.bytes(0, MIB) == pattern(0, MIB), "a refused request changed the disk");
}

#[test]
fn unknown_commands_and_flags_are_einval() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
    for mut client in both(&server) {
        assert_eq!(client.ask(77, 0, 0, 512, &[]).error, NBD_EINVAL);
        assert_eq!(client.ask(NBD_CMD_READ, 1 << 12, 0, 512, &[]).error, NBD_EINVAL);
        assert_eq!(client.ask(NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 512, &[]).error, NBD_EINVAL);
        assert_eq!(client.ask(NBD_CMD_TRIM, NBD_CMD_FLAG_REQ_ONE, 0, 512, &[]).error, NBD_EINVAL);
        assert_eq!(client.write(NBD_CMD_FLAG_DF, 0, &[1; 512]).error, NBD_EINVAL);
        assert_eq!(client.ask(NBD_CMD_FLUSH, 0, 512, 512, &[]).error, NBD_EINVAL);
        assert_eq!(client.read(0, 512), pattern(0, 512));
    }
    let mut simple = server.simple();
    assert_eq!(simple.ask(NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512, &[]).error, NBD_EINVAL);
    assert_eq!(simple.ask(NBD_CMD_BLOCK_STATUS, 0, 0, 512, &[]).error, NBD_EINVAL);
}

#[test]
fn requests_of_no_bytes_are_einval_and_do_not_disconnect() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB)));
    for mut client in both(&server) {
        for command in [NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES] {
            assert_eq!(client.ask(command, 0, 0, 0, &[]).error, NBD_EINVAL);
        }
        assert_eq!(client.read(0, 512), pattern(0, 512));
    }
}

#[test]
fn oversize_requests_are_einval_and_do_not_disconnect() {
    let disk = Arc::new(MemoryDisk::patterned(40 * MIB));
    let server = Server::of(&disk);
    for mut client in both(&server) {
        let length = (32 << 20) + 512;
        assert_eq!(client.ask(NBD_CMD_READ, 0, 0, length, &[]).error, NBD_EINVAL);
        let cookie = client.send(NBD_CMD_WRITE, 0, 0, length, &vec![9; length as usize]);
        let reply = client.reply(0, 0);
        assert_eq!((reply.cookie, reply.error), (cookie, NBD_EINVAL));
        // What has no payload may be as long as the disk.
        assert_eq!(client.ask(NBD_CMD_CACHE, 0, 0, 40 << 20, &[]).error, 0);
        assert_eq!(client.read(0, 512), pattern(0, 512));
    }
    assert!(disk.bytes(0, MIB) == pattern(0, MIB), "an oversize write changed the disk");
}

#[test]
fn the_largest_requests_work() {
    let disk = Arc::new(MemoryDisk::patterned(33 * MIB));
    let server = Server::of(&disk);
    for (mut client, fill) in both(&server).into_iter().zip([3_u8, 4]) {
        let length = 32 << 20;
        assert_eq!(client.write(0, 512, &vec![fill; length as usize]).error, 0);
        assert!(client.read(512, length) == vec![fill; length as usize], "the read differs from the write");
        if client.structured {
            let whole = client.ask(NBD_CMD_READ, NBD_CMD_FLAG_DF, 512, length, &[]);
            assert_eq!(whole.chunks.len(), 1);
        }
    }
}

#[test]
fn a_read_only_export_is_eperm_for_changes() {
    let server = Server::of(&Arc::new(MemoryDisk::patterned(MIB).read_only()));
    for mut client in both(&server) {
        assert_eq!(client.write(0, 0, &[1; 512]).error, NBD_EPERM);
        assert_eq!(client.ask(NBD_CMD_TRIM, 0, 0, 512, &[]).error, NBD_EPERM);
        assert_eq!(client.ask(NBD_CMD_WRITE_ZEROES, 0, 0, 512, &[]).error, NBD_EPERM);
        assert_eq!(client.ask(NBD_CMD_FLUSH, 0, 0, 0, &[]).error, 0);
        assert_eq!(client.read(0, 512), pattern(0, 512));
    }
}

#[test]
fn a_failing_disk_says_how() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let server = Server::of(&disk);
    let [mut simple, mut structured] = both(&server);
    disk.fail(Fault::Full);
    assert_eq!(simple.write(0, 0, &[1; 512]).error, NBD_ENOSPC);
    assert_eq!(structured.write(0, 0, &[1; 512]).error, NBD_ENOSPC);
    disk.fail(Fault::Damaged);
    assert_eq!(simple.ask(NBD_CMD_READ, 0, 0, 512, &[]).error, NBD_EIO);
    let reply = structured.ask(NBD_CMD_READ, 0, 0, 512, &[]);
    assert_eq!(reply.error, NBD_EIO);
    assert!(reply.message.contains("chunk 7 is damaged in /store/pack"), "{}", reply.message);
    assert_eq!(structured.ask(NBD_CMD_BLOCK_STATUS, 0, 0, 512, &[]).error, NBD_EIO);
    assert_eq!(simple.ask(NBD_CMD_FLUSH, 0, 0, 0, &[]).error, NBD_EIO);
    disk.fail(Fault::Closed);
    assert_eq!(simple.ask(NBD_CMD_READ, 0, 0, 512, &[]).error, NBD_ESHUTDOWN);
}

#[test]
fn fua_is_durable_and_flush_reaches_the_disk() {
    let disk = Arc::new(MemoryDisk::new(MIB));
    let server = Server::of(&disk);
    for mut client in both(&server) {
        let (durable, volatile) = disk.changes();
        client.write(0, 0, &[1; 512]);
        assert_eq!(disk.changes(), (durable, volatile + 1));
        client.write(NBD_CMD_FLAG_FUA, 0, &[1; 512]);
        client.write(NBD_CMD_FLAG_FUA, 1, &[1; 5]);
        client.ask(NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 0, 512, &[]);
        client.ask(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA, 0, 512, &[]);
        assert_eq!(disk.changes(), (durable + 4, volatile + 1));
        let flushes = disk.flushes.load(Ordering::SeqCst);
        assert_eq!(client.ask(NBD_CMD_FLUSH, 0, 0, 0, &[]).error, 0);
        assert_eq!(disk.flushes.load(Ordering::SeqCst), flushes + 1);
        // It has no meaning for a read, and does no harm.
        assert_eq!(client.ask(NBD_CMD_READ, NBD_CMD_FLAG_FUA, 0, 512, &[]).error, 0);
    }
}

#[test]
fn block_status_tells_all_contexts() {
    let disk = Arc::new(MemoryDisk::new(MIB));
    disk.mark(0, 4096, ExtentKind::Written);
    disk.mark(4096, 4096, ExtentKind::Local);
    disk.mark(8192, 4096, ExtentKind::Absent);
    disk.mark(12288, 4096, ExtentKind::Zero);
    let server = Server::of(&disk);
    let mut client = server.structured();
    let reply = client.ask(NBD_CMD_BLOCK_STATUS, 0, 0, 20480, &[]);
    let allocation = vec![(12288, 0), (4096, 2), (4096, 3)];
    let state = vec![(4096, 1), (4096, 2), (4096, 3), (4096, 4), (4096, 5)];
    let depth = vec![(4096, 1), (8192, 2), (4096, 1), (4096, 0)];
    assert_eq!(reply.status, [(1, allocation), (2, state), (3, depth)]);
    let reply = client.ask(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 100, 1000, &[]);
    assert_eq!(reply.status, [(1, vec![(1000, 0)]), (2, vec![(1000, 1)]), (3, vec![(1000, 1)])]);
    assert_eq!(client.ask(NBD_CMD_BLOCK_STATUS, 0, 0, 0, &[]).error, NBD_EINVAL);
    assert_eq!(client.ask(NBD_CMD_BLOCK_STATUS, 0, SIZE, 512, &[]).error, NBD_EINVAL);
    assert_eq!(disk.waiting(), 0, "block status must not fetch");
}

#[test]
fn zeroes_keep_their_place_and_are_fast() {
    let disk = Arc::new(MemoryDisk::patterned(MIB));
    let server = Server::of(&disk);
    let mut client = server.structured();
    let flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    assert_eq!(client.ask(NBD_CMD_WRITE_ZEROES, flags, 0, 1 << 19, &[]).error, 0);
    let reply = client.ask(NBD_CMD_BLOCK_STATUS, 0, 0, 1 << 19, &[]);
    assert_eq!(reply.status[0], (1, vec![(1 << 19, 2)]), "zero, but not a hole");
    assert_eq!(client.read(0, 1 << 19), vec![0; 1 << 19]);
}

#[test]
fn zeroes_are_sent_as_holes_where_that_saves_and_may() {
    let disk = Arc::new(MemoryDisk::patterned(4 * MIB));
    let server = Server::of(&disk);
    let mut client = server.structured();
    client.ask(NBD_CMD_WRITE_ZEROES, 0, 65536, 3 << 20, &[]);
    let mut expected = pattern(0, 4 * MIB);
    expected[65536..65536 + (3 << 20)].fill(0);
    let reply = client.ask(NBD_CMD_READ, 0, 0, 4 << 20, &[]);
    let holes: usize = reply.chunks.iter().filter(|chunk| chunk.2).map(|chunk| chunk.1.len()).sum();
    assert_eq!(holes, 3 << 20);
    assert!(reply.data(0, 4 * MIB) == expected, "the read differs");
    let whole = client.ask(NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 4 << 20, &[]);
    assert_eq!(whole.chunks.len(), 1);
    assert!(whole.data(0, 4 * MIB) == expected, "the unfragmented read differs");
    let mut simple = server.simple();
    assert!(simple.read(0, 4 << 20) == expected, "the simple read differs");
}

//! What a front-end and its guest are promised, over a real socket and real shared memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "the disks of tests are small")]

#[path = "promises/disk.rs"]
mod disk;
#[path = "promises/front_end.rs"]
mod front_end;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disk::MemoryDisk;
use front_end::{FrontEnd, Guest, SIZE};
use tokio::runtime::Runtime;
use vhost_user::{CacheMode, VhostUserOptions, VhostUserServer};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[derive(Debug, Default)]
struct Remembered(Mutex<Option<bool>>);

impl CacheMode for Remembered {
    fn remember(&self, write_through: bool) -> Result<(), Box<dyn Error + Send + Sync>> {
        *self.0.lock().unwrap() = Some(write_through);
        Ok(())
    }
}

/// A place to serve at.
struct Place {
    directory: tempfile::TempDir,
    runtime: Runtime,
    remembered: Arc<Remembered>,
}

impl Place {
    fn new() -> Place {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Place { directory: tempfile::tempdir().unwrap(), runtime, remembered: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk.sock")
    }

    fn serve(&self, disk: &Arc<MemoryDisk>) -> VhostUserServer {
        let cache_mode = Arc::clone(&self.remembered);
        let write_through = cache_mode.0.lock().unwrap().unwrap_or(false);
        let serial = "a name that is longer than it may be".to_owned();
        let options = VhostUserOptions { queues: 4, read_timeout: None, serial, write_through, cache_mode };
        let disk = Arc::clone(disk);
        VhostUserServer::start(&self.path(), disk, self.runtime.handle().clone(), options).unwrap()
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn a_disk_is_read_written_and_named() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    assert!(server.is_connected());
    let room = Guest::room(0, 0);
    guest.memory.write(room, &[7; 8192]).unwrap();
    assert_eq!(front_end.request(&mut guest, OUT, 8, 8192, true), OK);
    assert_eq!(disk.has(4096, 8192), [7; 8192]);
    assert_eq!(front_end.request(&mut guest, FLUSH, 0, 0, true), OK);
    assert_eq!(disk.take_done(), ["write 4096+8192", "flush 0+0"]);
    disk.put(512, &[9; 512]);
    assert_eq!(front_end.request(&mut guest, IN, 1, 1024, false), OK);
    let mut read = [0; 1024];
    guest.memory.read(room, &mut read).unwrap();
    assert_eq!((&read[..512], &read[512..]), (&[9; 512][..], &[0; 512][..]));
    assert_eq!(front_end.request(&mut guest, GET_ID, 0, 20, false), OK);
    let mut name = [0; 20];
    guest.memory.read(room, &mut name).unwrap();
    assert_eq!(&name, b"a name that is longe");
    guest.memory.write(room, &segment(16, 8, 1)).unwrap();
    assert_eq!(front_end.request(&mut guest, WRITE_ZEROES, 0, 16, true), OK);
    assert_eq!(disk.has(8192, 4096), [0; 4096]);
    guest.memory.write(room, &segment(8, 1, 0)).unwrap();
    assert_eq!(front_end.request(&mut guest, DISCARD, 0, 16, true), OK);
    assert_eq!(disk.take_done(), ["zero 8192+4096", "discard 4096+512"]);
    assert_eq!(front_end.request(&mut guest, OUT, 2047, 1024, true), IO_ERROR, "beyond the end");
    assert_eq!(front_end.request(&mut guest, 99, 0, 512, true), UNSUPPORTED);
    assert_eq!(front_end.stop(0), 8, "that many requests were taken");
    server.stop(Duration::from_secs(5));
    assert!(front_end.has_ended() && !place.path().exists());
}

#[test]
fn what_is_elsewhere_keeps_nothing_else_waiting() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20).without(1 << 19)));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    let far = guest.prepare(0, 0, IN, 1024, 4096, false);
    let near = guest.prepare(0, 1, IN, 0, 4096, false);
    guest.offer(0, far);
    guest.offer(0, near);
    front_end.kick(0);
    assert_eq!(front_end.wait_for(&mut guest, 0, 1), [near]);
    let write = guest.prepare(0, 2, OUT, 8, 512, true);
    guest.offer(0, write);
    front_end.kick(0);
    assert_eq!(front_end.wait_for(&mut guest, 0, 1), [write]);
    disk.put(1 << 19, &[5; 4096]);
    disk.arrive();
    assert_eq!(front_end.wait_for(&mut guest, 0, 1), [far]);
    let mut read = [0; 4096];
    guest.memory.read(Guest::room(0, 0), &mut read).unwrap();
    assert_eq!((read, guest.status(0, 0)), ([5; 4096], OK));
    assert_eq!(front_end.stop(0), 3);
    drop(server);
}

#[test]
fn what_was_under_way_is_made_again_by_the_next_server() {
    let place = Place::new();
    let disk = Arc::new(MemoryDisk::new(1 << 20).without(1 << 19));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    // Two wait, and one between them is answered.
    for (slot, sector) in [(0, 1024), (1, 0), (2, 1032)] {
        let head = guest.prepare(0, slot, IN, sector, 4096, false);
        guest.offer(0, head);
    }
    front_end.kick(0);
    assert_eq!(front_end.wait_for(&mut guest, 0, 1), [3]);
    wait_until("they wait", || disk.is_awaited());
    // One more comes while nobody serves.
    server.stop(Duration::ZERO);
    assert!(front_end.has_ended());
    let late = guest.prepare(0, 3, OUT, 4, 512, true);
    guest.offer(0, late);
    assert!(guest.answers(0).is_empty(), "nothing is answered that was not made");
    disk.put(1 << 19, &[6; 8192]);
    disk.arrive();
    let again = place.serve(&disk);
    let front_end = FrontEnd::start(&place.path(), &mut guest);
    let mut answered = front_end.wait_for(&mut guest, 0, 3);
    answered.sort_unstable();
    assert_eq!(answered, [0, 6, 9]);
    for slot in [0, 2] {
        let mut read = [0; 4096];
        guest.memory.read(Guest::room(0, slot), &mut read).unwrap();
        assert_eq!((read, guest.status(0, slot)), ([6; 4096], OK), "{slot}");
    }
    assert_eq!(disk.take_done(), ["write 2048+512"]);
    drop(again);
}

#[test]
fn a_disk_that_is_closed_answers_nothing_and_loses_nothing() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    disk.closed.store(true, Ordering::Release);
    let head = guest.prepare(0, 0, OUT, 0, 512, true);
    guest.offer(0, head);
    front_end.kick(0);
    assert!(front_end.has_ended());
    assert_eq!((guest.answers(0), guest.status(0, 0)), (vec![], 0xff));
    disk.closed.store(false, Ordering::Release);
    let front_end = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(front_end.wait_for(&mut guest, 0, 1), [head]);
    assert_eq!((guest.status(0, 0), disk.take_done()), (OK, vec!["write 0+512".to_owned()]));
    drop(server);
}

#[test]
fn a_cache_that_is_off_stays_off_and_every_write_is_durable() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(front_end.configuration(32, 1), [1], "it is on at first");
    assert_eq!(front_end.request(&mut guest, OUT, 0, 512, true), OK);
    assert!(front_end.set_writeback(false));
    assert_eq!(front_end.request(&mut guest, OUT, 1, 512, true), OK);
    assert_eq!(disk.take_done(), ["write 0+512", "flush 0+0", "write 512+512 durably"]);
    server.stop(Duration::ZERO);
    let server = place.serve(&disk);
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(front_end.configuration(32, 1), [0], "QEMU does not say it again");
    guest.memory.write(Guest::room(0, 0), &segment(0, 1, 0)).unwrap();
    assert_eq!(front_end.request(&mut guest, WRITE_ZEROES, 0, 16, true), OK);
    assert_eq!(disk.take_done(), ["zero 0+512 durably"]);
    assert!(front_end.set_writeback(true));
    assert_eq!(front_end.request(&mut guest, OUT, 2, 512, true), OK);
    assert_eq!(disk.take_done(), ["write 1024+512"]);
    assert_eq!(*place.remembered.0.lock().unwrap(), Some(false));
    drop(server);
}

#[test]
fn a_driver_without_a_flush_has_no_cache() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    guest.features &= !vhost_user::configuration::VIRTIO_BLK_F_FLUSH;
    let front_end = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(front_end.request(&mut guest, OUT, 0, 512, true), OK);
    assert_eq!(disk.take_done(), ["write 0+512 durably"]);
    drop(server);
}

#[test]
fn a_guest_hears_that_its_disk_has_grown_also_while_nobody_served_it() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(front_end.hear_backend(), 2, "it was not asked before");
    disk.grow(2 << 20);
    server.follow_size();
    assert_eq!(front_end.hear_backend(), 2);
    assert_eq!(front_end.configuration(0, 8), 4096_u64.to_le_bytes());
    assert_eq!(front_end.request(&mut guest, IN, 4088, 4096, false), OK);
    drop(server);
    disk.grow(3 << 20);
    let server = place.serve(&disk);
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(front_end.hear_backend(), 2);
    assert_eq!(front_end.configuration(0, 8), 6144_u64.to_le_bytes());
    drop(server);
}

#[test]
fn a_snapshot_is_not_changed() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20).for_reading()));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let front_end = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(front_end.request(&mut guest, OUT, 0, 512, true), IO_ERROR);
    guest.memory.write(Guest::room(0, 0), &segment(0, 1, 0)).unwrap();
    assert_eq!(front_end.request(&mut guest, DISCARD, 0, 16, true), IO_ERROR);
    assert_eq!(front_end.request(&mut guest, IN, 0, 512, false), OK);
    assert_eq!(disk.take_done(), [""; 0]);
    drop(server);
}

#[test]
fn queues_are_served_side_by_side() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let mut front_end = FrontEnd::start(&place.path(), &mut guest);
    for queue in [0, 1] {
        for slot in 0..5 {
            guest.memory.write(Guest::room(queue, slot), &[1 + slot as u8 + 10 * queue as u8; 512]).unwrap();
            let head = guest.prepare(queue, slot, OUT, u64::from(slot) + 5 * queue, 512, true);
            guest.offer(queue, head);
        }
        front_end.kick(queue);
    }
    for queue in [1, 0] {
        front_end.wait_for(&mut guest, queue, 5);
        for slot in 0..5_u16 {
            let expected = 1 + slot as u8 + 10 * queue as u8;
            assert_eq!(disk.has(512 * (usize::from(slot) + 5 * queue as usize), 512), [expected; 512]);
        }
    }
    assert_eq!((front_end.stop(1), front_end.stop(0)), (5, 5));
    drop(server);
}

#[test]
fn a_disk_has_one_front_end_at_a_time() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let mut guest = Guest::new();
    let mut first = FrontEnd::start(&place.path(), &mut guest);
    let mut second = FrontEnd::connect(&place.path());
    assert!(second.has_ended());
    assert_eq!(first.request(&mut guest, IN, 0, 512, false), OK);
    server.disconnect();
    assert!(first.has_ended());
    wait_until("it is gone", || !server.is_connected());
    let third = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(third.request(&mut guest, IN, 0, 512, false), OK);
    drop(server);
}

/// Connects and says something that ends the connection.
fn is_hung_up_on(path: &Path, say: impl FnOnce(&mut FrontEnd)) -> bool {
    let mut front_end = FrontEnd::connect(path);
    front_end.negotiate();
    say(&mut front_end);
    front_end.has_ended()
}

#[test]
fn a_front_end_that_makes_no_sense_is_hung_up_on() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let path = place.path();
    assert!(is_hung_up_on(&path, |front_end| front_end.write_raw(&[0xff; 64])));
    assert!(is_hung_up_on(&path, |front_end| front_end.say(99, &[], &[], false)));
    assert!(is_hung_up_on(&path, |front_end| front_end.say(8, &[1, 0, 0, 0], &[], false)));
    assert!(is_hung_up_on(&path, |front_end| front_end.say(8, &[0, 0, 0, 0, 3, 0, 0, 0], &[], false)), "no size");
    assert!(is_hung_up_on(&path, |front_end| front_end.say(8, &[9, 0, 0, 0, 8, 0, 0, 0], &[], false)), "no queue");
    assert!(is_hung_up_on(&path, |front_end| front_end.say(2, &u64::MAX.to_le_bytes(), &[], false)), "not offered");
    assert!(is_hung_up_on(&path, |front_end| front_end.say(32, &[9; 24], &[], false)), "no file");
    let mut guest = Guest::new();
    let mut polite = FrontEnd::start(&path, &mut guest);
    assert!(!polite.order(8, &[0, 0, 0, 0, 8, 0, 0, 0], &[]), "a queue that is in use is not changed");
    assert!(!polite.set_writeback(true) || polite.configuration(32, 1) == [1]);
    assert!(polite.configuration(250, 7).is_empty(), "there is no such part");
    assert_eq!(polite.request(&mut guest, IN, 0, 512, false), OK);
    drop(server);
}

#[test]
fn nothing_that_a_guest_writes_into_its_memory_harms() {
    let (place, disk) = (Place::new(), Arc::new(MemoryDisk::new(1 << 20)));
    let server = place.serve(&disk);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut number = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..60 {
        let mut guest = Guest::new();
        let mut front_end = FrontEnd::start(&place.path(), &mut guest);
        for _ in 0..40 {
            // Requests that are nearly right, with something wrong in any of their descriptors.
            let slot = (number() % 5) as u16;
            let head = guest.prepare(
                0,
                slot,
                (number() % 15) as u32,
                number() % 4096,
                (number() % 9000) as u32,
                number() % 2 == 0,
            );
            let address = if number() % 2 == 0 { number() % (5 << 20) } else { number() };
            let length = if number() % 2 == 0 { (number() % 70_000) as u32 } else { number() as u32 };
            let (flags, next) = ((number() % 8) as u16, (number() % 20) as u16);
            guest.put_descriptor(0, head + (number() % 3) as u16, (address, length), flags, next);
            guest.offer(0, if number() % 16 == 0 { number() as u16 % 32 } else { head });
            front_end.kick(0);
            if number() % 4 == 0 {
                guest.answers(0);
            }
        }
        front_end.stop(0);
    }
    let mut guest = Guest::new();
    let front_end = FrontEnd::start(&place.path(), &mut guest);
    assert_eq!(front_end.request(&mut guest, IN, 0, 512, false), OK, "others are served on");
    assert_eq!(disk.has(0, 1 << 20).len(), 1 << 20);
    const { assert!(SIZE > 15) };
    drop(server);
}

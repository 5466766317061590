//! A front-end as QEMU is one, with a guest whose driver is here, too.

use std::io::{IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use vhost_user::Memory;
use vhost_user::configuration::{VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_BLK_F_FLUSH, VIRTIO_F_VERSION_1};
use vhost_user::message::{HEADER_BYTES, InflightArea, Message, Region, decode, encode};

const USER: u64 = 0x5000_0000_0000;
pub(crate) const MEMORY_BYTES: u64 = 4 << 20;
pub(crate) const SIZE: u16 = 16;
/// What each queue has of the memory: the table, the rings, and room for requests.
const QUEUE_BYTES: u64 = 1 << 20;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADS: u64 = 0x3000;
pub(crate) const ROOM: u64 = 0x8000;
const ROOM_BYTES: u64 = 0x8000;

const LIMIT: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

fn duplicate(file: &OwnedFd) -> OwnedFd {
    fcntl_dupfd_cloexec(file, 0).unwrap()
}

fn wait_for(file: BorrowedFd<'_>, what: &str) {
    let ready = poll(&mut [PollFd::from_borrowed_fd(file, PollFlags::IN)], Some(&LIMIT)).unwrap();
    assert!(ready > 0, "{what} does not come");
}

/// What lives as long as the guest.
#[derive(Debug)]
pub(crate) struct Guest {
    file: OwnedFd,
    pub(crate) memory: Memory,
    log: Option<(InflightArea, OwnedFd)>,
    next: [u16; 2],
    seen: [u16; 2],
    pub(crate) features: u64,
}

impl Guest {
    pub(crate) fn new() -> Guest {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, MEMORY_BYTES).unwrap();
        let memory = Memory::new(&[region()], vec![duplicate(&file)]).unwrap();
        let features = VIRTIO_F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES | VIRTIO_BLK_F_FLUSH;
        Guest { file, memory, log: None, next: [0; 2], seen: [0; 2], features }
    }

    fn half(&self, address: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(address, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    pub(crate) fn put_descriptor(&self, queue: u64, index: u16, (address, length): (u64, u32), flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory.write(queue * QUEUE_BYTES + u64::from(index) * 16, &bytes).unwrap();
    }

    /// The room of a request, by its slot: there are five, each of three descriptors.
    pub(crate) fn room(queue: u64, slot: u16) -> u64 {
        queue * QUEUE_BYTES + ROOM + u64::from(slot) * ROOM_BYTES
    }

    /// Lays a request out: its head, its data, its status. Data that go to the device are those of the request's room.
    pub(crate) fn prepare(&self, queue: u64, slot: u16, kind: u32, sector: u64, length: u32, to_device: bool) -> u16 {
        let head = slot * 3;
        let place = queue * QUEUE_BYTES + HEADS + u64::from(slot) * 64;
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        bytes.push(0xff);
        self.memory.write(place, &bytes).unwrap();
        let write = if to_device { 0 } else { 2 };
        self.put_descriptor(queue, head, (place, 16), 1, if length > 0 { head + 1 } else { head + 2 });
        self.put_descriptor(queue, head + 1, (Self::room(queue, slot), length), write | 1, head + 2);
        self.put_descriptor(queue, head + 2, (place + 16, 1), 2, 0);
        head
    }

    pub(crate) fn status(&self, queue: u64, slot: u16) -> u8 {
        let mut status = [0];
        self.memory.read(queue * QUEUE_BYTES + HEADS + u64::from(slot) * 64 + 16, &mut status).unwrap();
        status[0]
    }

    /// Offers a chain to the device.
    pub(crate) fn offer(&mut self, queue: u64, head: u16) {
        let next = &mut self.next[queue as usize];
        let place = queue * QUEUE_BYTES + AVAILABLE;
        self.memory.write(place + 4 + 2 * u64::from(*next % SIZE), &head.to_le_bytes()).unwrap();
        *next = next.wrapping_add(1);
        self.memory.write(place + 2, &next.to_le_bytes()).unwrap();
    }

    /// The heads that were answered since the last call.
    pub(crate) fn answers(&mut self, queue: u64) -> Vec<u16> {
        let place = queue * QUEUE_BYTES + USED;
        let used = self.half(place + 2);
        let mut answers = Vec::new();
        let seen = &mut self.seen[queue as usize];
        while *seen != used {
            let mut head = [0; 2];
            self.memory.read(place + 4 + 8 * u64::from(*seen % SIZE), &mut head).unwrap();
            answers.push(u16::from_le_bytes(head));
            *seen = seen.wrapping_add(1);
        }
        answers
    }
}

fn region() -> Region {
    Region { guest_address: 0, size_bytes: MEMORY_BYTES, user_address: USER, file_offset: 0 }
}

/// A connection of the front-end.
#[derive(Debug)]
pub(crate) struct FrontEnd {
    pub(crate) socket: UnixStream,
    kicks: [OwnedFd; 2],
    calls: [OwnedFd; 2],
    backend: UnixStream,
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl FrontEnd {
    /// Connects, and sets nothing up.
    pub(crate) fn connect(path: &Path) -> FrontEnd {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let (backend, _) = UnixStream::pair().unwrap();
        FrontEnd { socket, kicks: [event(), event()], calls: [event(), event()], backend }
    }

    /// Connects as QEMU does, and has two queues served.
    pub(crate) fn start(path: &Path, guest: &mut Guest) -> FrontEnd {
        let mut front_end = FrontEnd::connect(path);
        front_end.set_up(guest);
        front_end
    }

    pub(crate) fn say(&self, code: u32, payload: &[u8], descriptors: &[BorrowedFd<'_>], need_reply: bool) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let message = encode(code, need_reply, payload);
        sendmsg(&self.socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    }

    /// The payload of a reply, and what came beside it.
    pub(crate) fn hear(&mut self, code: u32) -> (Vec<u8>, Option<OwnedFd>) {
        let mut header = [0; HEADER_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut header)];
        let received = recvmsg(&self.socket, &mut parts, &mut ancillary, RecvFlags::WAITALL).unwrap();
        assert_eq!(received.bytes, HEADER_BYTES, "the connection has ended");
        let mut descriptor = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut rights) = message {
                descriptor = rights.next();
            }
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (code, 1 | 4));
        let mut payload = vec![0; word(8) as usize];
        self.socket.read_exact(&mut payload).unwrap();
        (payload, descriptor)
    }

    pub(crate) fn ask(&mut self, code: u32, payload: &[u8]) -> Vec<u8> {
        self.say(code, payload, &[], false);
        self.hear(code).0
    }

    /// Says something that is acknowledged; whether it was done.
    pub(crate) fn order(&mut self, code: u32, payload: &[u8], descriptors: &[BorrowedFd<'_>]) -> bool {
        self.say(code, payload, descriptors, true);
        self.hear(code).0 == 0_u64.to_le_bytes()
    }

    pub(crate) fn configuration(&mut self, offset: u32, length: u32) -> Vec<u8> {
        let mut payload = words(&[offset, length, 0]);
        payload.extend(vec![0; length as usize]);
        self.ask(24, &payload)[12..].to_vec()
    }

    pub(crate) fn set_writeback(&mut self, on: bool) -> bool {
        let mut payload = words(&[32, 1, 0]);
        payload.push(u8::from(on));
        self.order(25, &payload, &[])
    }

    fn set_up(&mut self, guest: &mut Guest) {
        let protocol = self.negotiate();
        assert_eq!(protocol & 0x1229, 0x1229, "all that QEMU uses");
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert!(self.order(21, &[], &[theirs.as_fd()]));
        self.backend = ours;
        if guest.log.is_none() {
            let area = InflightArea { size_bytes: 0, file_offset: 0, queues: 2, queue_size: SIZE };
            self.say(31, &area.encode(), &[], false);
            let (payload, file) = self.hear(31);
            let Message::SetInflightFd(area) = decode(32, &payload).unwrap() else { panic!("a log") };
            guest.log = Some((area, file.expect("its file")));
        }
        let (area, file) = guest.log.as_ref().unwrap();
        assert!(self.order(32, &area.encode(), &[file.as_fd()]));
        self.start_queues(guest);
    }

    /// What QEMU says first; the protocol's features.
    pub(crate) fn negotiate(&mut self) -> u64 {
        let number = |payload: Vec<u8>| u64::from_le_bytes(payload.try_into().unwrap());
        let offered = number(self.ask(1, &[]));
        assert_ne!(offered & VHOST_USER_F_PROTOCOL_FEATURES, 0);
        let protocol = number(self.ask(15, &[]));
        self.say(16, &protocol.to_le_bytes(), &[], false);
        self.say(3, &[], &[], false);
        protocol
    }

    /// Has the queues served.
    pub(crate) fn start_queues(&mut self, guest: &Guest) {
        assert!(self.order(2, &guest.features.to_le_bytes(), &[]));
        let mut table = words(&[1, 0]);
        let Region { guest_address, size_bytes, user_address, file_offset } = region();
        [guest_address, size_bytes, user_address, file_offset]
            .iter()
            .for_each(|field| table.extend(field.to_le_bytes()));
        assert!(self.order(5, &table, &[guest.file.as_fd()]));
        for queue in 0..2_u32 {
            assert!(self.order(8, &words(&[queue, u32::from(SIZE)]), &[]));
            let used = guest.half(u64::from(queue) * QUEUE_BYTES + USED + 2);
            assert!(self.order(10, &words(&[queue, u32::from(used)]), &[]));
            let place = USER + u64::from(queue) * QUEUE_BYTES;
            let mut places = words(&[queue, 0]);
            [place, place + USED, place + AVAILABLE, 0].iter().for_each(|field| places.extend(field.to_le_bytes()));
            assert!(self.order(9, &places, &[]));
            let index = u64::from(queue).to_le_bytes();
            assert!(self.order(12, &index, &[duplicate(&self.kicks[queue as usize]).as_fd()]));
            assert!(self.order(13, &index, &[duplicate(&self.calls[queue as usize]).as_fd()]));
        }
        for queue in 0..2_u32 {
            assert!(self.order(18, &words(&[queue, 1]), &[]));
        }
    }

    pub(crate) fn kick(&self, queue: u64) {
        rustix::io::write(&self.kicks[queue as usize], &1_u64.to_le_bytes()).unwrap();
    }

    /// Waits until so many requests of a queue were answered.
    pub(crate) fn wait_for(&self, guest: &mut Guest, queue: u64, count: usize) -> Vec<u16> {
        let mut all = guest.answers(queue);
        while all.len() < count {
            let call = &self.calls[queue as usize];
            wait_for(call.as_fd(), "an answer");
            rustix::io::read(call, &mut [0_u8; 8]).unwrap();
            all.extend(guest.answers(queue));
        }
        assert_eq!(all.len(), count, "{all:?}");
        all
    }

    /// Makes one request and waits for it; its status.
    pub(crate) fn request(&self, guest: &mut Guest, kind: u32, sector: u64, length: u32, to_device: bool) -> u8 {
        let head = guest.prepare(0, 0, kind, sector, length, to_device);
        guest.offer(0, head);
        self.kick(0);
        assert_eq!(self.wait_for(guest, 0, 1), [head]);
        guest.status(0, 0)
    }

    /// The code of the back-end's next request.
    pub(crate) fn hear_backend(&mut self) -> u32 {
        let mut header = [0; HEADER_BYTES];
        self.backend.read_exact(&mut header).unwrap();
        u32::from_le_bytes(header[..4].try_into().unwrap())
    }

    /// Whether the other side has hung up.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.socket.read(&mut [0]), Ok(0) | Err(_))
    }

    /// Ends a queue; how far it was served.
    pub(crate) fn stop(&mut self, queue: u32) -> u32 {
        let state = self.ask(11, &words(&[queue, 0]));
        u32::from_le_bytes(state[4..].try_into().unwrap())
    }

    pub(crate) fn write_raw(&mut self, bytes: &[u8]) {
        // Who has hung up does not mind.
        let _ = self.socket.write_all(bytes);
    }
}

//! What goes between this process and the driver, byte by byte (include/uapi/linux/ublk_cmd.h).
//!
//! Invariant: what the kernel writes is read field by field; what is unknown in it is kept or passed over, and never panics.
#![expect(clippy::host_endian_bytes, reason = "the driver is spoken to within one machine, in its own order of bytes")]

/// The driver's letter among commands.
const LETTER: u32 = b'u' as u32;

/// A command's number, as the kernel composes it of what it does, the length of what it is given, and its own number.
const fn command(reads_only: bool, length: u32, number: u32) -> u32 {
    let direction = if reads_only { 2 } else { 3 };
    (direction << 30) | (length << 16) | (LETTER << 8) | number
}

/// The length of `struct ublksrv_ctrl_cmd`, in bytes.
const COMMAND_BYTES: u32 = 32;
/// The length of `struct ublksrv_io_cmd`, in bytes.
const ANSWER_BYTES: u32 = 16;
/// The length of `struct ublksrv_ctrl_dev_info`, in bytes.
pub(crate) const INFO_BYTES: usize = 64;
/// The length of the parameters that are set: `struct ublk_params` up to and with those of discards.
pub(crate) const PARAMETERS_BYTES: usize = 60;
/// The length of `struct ublksrv_io_desc`, in bytes.
pub(crate) const REQUEST_BYTES: usize = 24;
/// The length of the set of features, in bytes.
pub(crate) const FEATURES_BYTES: usize = 8;

pub(crate) const GET_DEV_INFO: u32 = command(true, COMMAND_BYTES, 0x02);
pub(crate) const ADD_DEV: u32 = command(false, COMMAND_BYTES, 0x04);
pub(crate) const START_DEV: u32 = command(false, COMMAND_BYTES, 0x06);
pub(crate) const STOP_DEV: u32 = command(false, COMMAND_BYTES, 0x07);
pub(crate) const SET_PARAMS: u32 = command(false, COMMAND_BYTES, 0x08);
pub(crate) const START_USER_RECOVERY: u32 = command(false, COMMAND_BYTES, 0x10);
pub(crate) const END_USER_RECOVERY: u32 = command(false, COMMAND_BYTES, 0x11);
pub(crate) const GET_FEATURES: u32 = command(true, COMMAND_BYTES, 0x13);
pub(crate) const DEL_DEV_ASYNC: u32 = command(true, COMMAND_BYTES, 0x14);
pub(crate) const UPDATE_SIZE: u32 = command(false, COMMAND_BYTES, 0x15);
pub(crate) const FETCH_REQ: u32 = command(false, ANSWER_BYTES, 0x20);
pub(crate) const COMMIT_AND_FETCH_REQ: u32 = command(false, ANSWER_BYTES, 0x21);

const USER_RECOVERY: u64 = 1 << 3;
const USER_RECOVERY_REISSUE: u64 = 1 << 4;
const CMD_IOCTL_ENCODE: u64 = 1 << 6;
const USER_COPY: u64 = 1 << 7;
const UPDATE_SIZE_FEATURE: u64 = 1 << 10;
/// What a device of ours takes.
const NEEDED: u64 = USER_RECOVERY | USER_RECOVERY_REISSUE | CMD_IOCTL_ENCODE | USER_COPY;

/// A command that is not for a queue.
const NO_QUEUE: u16 = u16::MAX;
/// Any device that is free.
pub(crate) const ANY_DEVICE: u32 = u32::MAX;

const PAGE_BYTES: u64 = 4096;
/// Where the requests' data are in the device's file, those of the first queue first, and how far apart by tag.
const DATA_BEGIN: u64 = 0x8000_0000;
const TAG_SHIFT: u32 = 25;

/// The unit of the driver, in bytes.
const SECTOR: u64 = 512;

const ATTR_READ_ONLY: u32 = 1 << 0;
const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
const ATTR_FUA: u32 = 1 << 3;
const TYPE_BASIC: u32 = 1 << 0;
const TYPE_DISCARD: u32 = 1 << 1;

const IO_FUA: u32 = 1 << 13;

/// What a driver can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    pub(crate) fn from_bytes(bytes: [u8; FEATURES_BYTES]) -> Features {
        Features(u64::from_ne_bytes(bytes))
    }

    /// Whether it has devices as they are made here: that outlive who serves them, and whose data are read and written.
    #[must_use]
    pub fn suffices(self) -> bool {
        self.0 & NEEDED == NEEDED
    }

    /// Whether a device can get another size while it is used (Linux 6.16).
    #[must_use]
    pub fn can_resize(self) -> bool {
        self.0 & UPDATE_SIZE_FEATURE != 0
    }
}

/// What state a device is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// There is no block device: it was not started yet, or was stopped.
    Dead,
    /// It is served.
    Live,
    /// Whoever served it is gone, and its requests wait for somebody else.
    Quiesced,
    /// One of newer drivers.
    Other(u16),
}

/// A device that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// How many requests may be under way.
    pub depth: u16,
    /// How long a request's data can be, in bytes: whole pages, up to 32 MiB.
    pub most_bytes: u32,
    /// A number that the driver keeps with the device for whoever makes it.
    pub identity: u64,
}

impl NewDevice {
    pub(crate) fn to_bytes(self, number: Option<u32>) -> [u8; INFO_BYTES] {
        let mut bytes = [0; INFO_BYTES];
        // One queue: of several, the driver loses itself where a process dies while it takes a device over.
        put(&mut bytes, 0, &1_u16.to_ne_bytes());
        put(&mut bytes, 2, &self.depth.to_ne_bytes());
        put(&mut bytes, 8, &self.most_bytes.to_ne_bytes());
        put(&mut bytes, 12, &number.unwrap_or(ANY_DEVICE).to_ne_bytes());
        put(&mut bytes, 24, &NEEDED.to_ne_bytes());
        put(&mut bytes, 32, &self.identity.to_ne_bytes());
        bytes
    }
}

/// What the driver says of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub number: u32,
    /// Its state.
    pub state: DeviceState,
    /// How many queues it has.
    pub queues: u16,
    /// How many requests each of them may have under way.
    pub depth: u16,
    /// The process that serves it, or that did; nothing where none has.
    pub process: Option<u32>,
    /// The number that was kept with it.
    pub identity: u64,
    flags: u64,
}

impl DeviceInfo {
    pub(crate) fn from_bytes(bytes: &[u8; INFO_BYTES]) -> DeviceInfo {
        let state = match u16::from_ne_bytes(at(bytes, 4)) {
            0 => DeviceState::Dead,
            1 => DeviceState::Live,
            2 => DeviceState::Quiesced,
            other => DeviceState::Other(other),
        };
        DeviceInfo {
            number: u32::from_ne_bytes(at(bytes, 12)),
            state,
            queues: u16::from_ne_bytes(at(bytes, 0)),
            depth: u16::from_ne_bytes(at(bytes, 2)),
            process: u32::try_from(i32::from_ne_bytes(at(bytes, 16))).ok(),
            identity: u64::from_ne_bytes(at(bytes, 32)),
            flags: u64::from_ne_bytes(at(bytes, 24)),
        }
    }

    /// Whether it is one as they are made here, so that it can be taken over.
    #[must_use]
    pub fn is_like_ours(&self) -> bool {
        self.flags & NEEDED == NEEDED && self.queues == 1
    }
}

/// What the users of a device see of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Its size in bytes, of whole sectors.
    pub size_bytes: u64,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// How long a request's data can be, in bytes: not more than the device was made with.
    pub most_bytes: u32,
}

impl Parameters {
    /// Sectors of 512 bytes in blocks of 4 KiB, a cache that is flushed, FUA, and discards and zeroes of any length.
    pub(crate) fn to_bytes(self) -> [u8; PARAMETERS_BYTES] {
        const SECTOR_SHIFT: u8 = 9;
        const BLOCK_SHIFT: u8 = 12;
        /// As long as the length of a request can be told in bytes.
        const MOST_SECTORS: u32 = u32::MAX >> SECTOR_SHIFT;
        let read_only = if self.read_only { ATTR_READ_ONLY } else { 0 };
        let mut bytes = [0; PARAMETERS_BYTES];
        put(&mut bytes, 0, &60_u32.to_ne_bytes());
        put(&mut bytes, 4, &(TYPE_BASIC | TYPE_DISCARD).to_ne_bytes());
        put(&mut bytes, 8, &(ATTR_VOLATILE_CACHE | ATTR_FUA | read_only).to_ne_bytes());
        put(&mut bytes, 12, &[SECTOR_SHIFT, BLOCK_SHIFT, BLOCK_SHIFT, BLOCK_SHIFT]);
        put(&mut bytes, 16, &(self.most_bytes >> SECTOR_SHIFT).to_ne_bytes());
        put(&mut bytes, 24, &(self.size_bytes / SECTOR).to_ne_bytes());
        // Of discards: the granularity, in bytes, the most sectors of one, those of zeroes, and the pieces of one.
        put(&mut bytes, 44, &512_u32.to_ne_bytes());
        put(&mut bytes, 48, &MOST_SECTORS.to_ne_bytes());
        put(&mut bytes, 52, &MOST_SECTORS.to_ne_bytes());
        put(&mut bytes, 56, &1_u16.to_ne_bytes());
        bytes
    }
}

/// A control command (`struct ublksrv_ctrl_cmd`), whose buffer is put in where it is sent.
pub(crate) fn control_command(device: u32, data: u64, address: u64, length: u16) -> [u8; 80] {
    let mut bytes = [0; 80];
    put(&mut bytes, 0, &device.to_ne_bytes());
    put(&mut bytes, 4, &NO_QUEUE.to_ne_bytes());
    put(&mut bytes, 6, &length.to_ne_bytes());
    put(&mut bytes, 8, &address.to_ne_bytes());
    put(&mut bytes, 16, &data.to_ne_bytes());
    bytes
}

/// The answer to a request, or that one is asked for (`struct ublksrv_io_cmd`); it has no address.
pub(crate) fn answer(tag: u16, result: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    put(&mut bytes, 2, &tag.to_ne_bytes());
    put(&mut bytes, 4, &result.to_ne_bytes());
    bytes
}

/// How much of the device's file has the requests of a queue of a depth, from its beginning on: whole pages.
pub(crate) fn mapped_bytes(depth: u16) -> u64 {
    (u64::from(depth) * REQUEST_BYTES as u64).next_multiple_of(PAGE_BYTES)
}

/// Where the data of a request are in the device's file.
pub(crate) fn data_offset(tag: u16, offset: u32) -> u64 {
    DATA_BEGIN + (u64::from(tag) << TAG_SHIFT) + u64::from(offset)
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// To give data.
    Read,
    /// To take data.
    Write,
    /// To make durable what was answered.
    Flush,
    /// That nobody needs a range any more.
    Discard,
    /// That a range shall be zero.
    WriteZeroes,
    /// Something that no device of ours is asked for.
    Other(u8),
}

/// A request of a device's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// By which it is answered.
    pub tag: u16,
    /// What it asks for.
    pub operation: Operation,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
    /// Whether it has to be durable when it is answered.
    pub durable: bool,
}

impl Request {
    pub(crate) fn from_bytes(tag: u16, bytes: &[u8; REQUEST_BYTES]) -> Request {
        let word = u32::from_ne_bytes(at(bytes, 0));
        let [operation, ..] = word.to_le_bytes();
        let operation = match operation {
            0 => Operation::Read,
            1 => Operation::Write,
            2 => Operation::Flush,
            3 => Operation::Discard,
            5 => Operation::WriteZeroes,
            other => Operation::Other(other),
        };
        // The kernel's requests are shorter than 4 GiB, and its devices than 2^64 bytes.
        let sectors = u32::from_ne_bytes(at(bytes, 4));
        let length = u32::try_from(u64::from(sectors) * SECTOR).unwrap_or(u32::MAX);
        let offset = u64::from_ne_bytes(at(bytes, 8)).saturating_mul(SECTOR);
        Request { tag, operation, offset, length, durable: word & IO_FUA != 0 }
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("a field is inside its structure")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a C compiler makes of the names in linux/ublk_cmd.h.
    #[test]
    fn commands_have_the_kernels_numbers() {
        let expected = [
            (GET_DEV_INFO, 0x8020_7502),
            (ADD_DEV, 0xc020_7504),
            (START_DEV, 0xc020_7506),
            (STOP_DEV, 0xc020_7507),
            (SET_PARAMS, 0xc020_7508),
            (START_USER_RECOVERY, 0xc020_7510),
            (END_USER_RECOVERY, 0xc020_7511),
            (GET_FEATURES, 0x8020_7513),
            (DEL_DEV_ASYNC, 0x8020_7514),
            (UPDATE_SIZE, 0xc020_7515),
            (FETCH_REQ, 0xc010_7520),
            (COMMIT_AND_FETCH_REQ, 0xc010_7521),
        ];
        for (ours, theirs) in expected {
            assert_eq!(ours, theirs, "{ours:#x}");
        }
    }

    #[test]
    fn a_device_is_described_as_the_kernel_reads_it() {
        let device = NewDevice { depth: 128, most_bytes: 1 << 20, identity: 0x0102_0304_0506_0708 };
        let bytes = device.to_bytes(None);
        assert_eq!(bytes[..4], [1, 0, 128, 0]);
        assert_eq!(bytes[8..16], [0, 0, 16, 0, 255, 255, 255, 255]);
        assert_eq!(bytes[24..40], [0xd8, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert!(bytes[40..].iter().all(|byte| *byte == 0));
        assert_eq!(device.to_bytes(Some(7))[12..16], [7, 0, 0, 0]);
    }

    #[test]
    fn what_the_kernel_says_of_a_device_is_read() {
        let mut bytes = NewDevice { depth: 64, most_bytes: 4096, identity: u64::MAX - 1 }.to_bytes(Some(3));
        put(&mut bytes, 4, &2_u16.to_ne_bytes());
        put(&mut bytes, 16, &1234_i32.to_ne_bytes());
        let info = DeviceInfo::from_bytes(&bytes);
        let expected = (3, DeviceState::Quiesced, 1, 64, Some(1234), u64::MAX - 1);
        assert_eq!((info.number, info.state, info.queues, info.depth, info.process, info.identity), expected);
        assert!(info.is_like_ours());
        put(&mut bytes, 16, &(-1_i32).to_ne_bytes());
        put(&mut bytes, 24, &[0]);
        put(&mut bytes, 4, &[9]);
        let other = DeviceInfo::from_bytes(&bytes);
        assert_eq!((other.process, other.state, other.is_like_ours()), (None, DeviceState::Other(9), false));
    }

    #[test]
    fn parameters_are_what_the_kernel_reads() {
        let bytes = Parameters { size_bytes: 24 << 20, read_only: true, most_bytes: 1 << 20 }.to_bytes();
        let word = |offset: usize| u32::from_ne_bytes(at(&bytes, offset));
        assert_eq!([word(0), word(4), word(8)], [60, 3, 1 | 4 | 8]);
        assert_eq!(bytes[12..16], [9, 12, 12, 12]);
        assert_eq!([word(16), word(20)], [2048, 0]);
        assert_eq!(u64::from_ne_bytes(at(&bytes, 24)), 48 << 10);
        assert_eq!([word(32), word(36), word(40), word(44)], [0, 0, 0, 512]);
        assert_eq!([word(48), word(52), word(56)], [0x7f_ffff, 0x7f_ffff, 1]);
        let writable = Parameters { size_bytes: 512, read_only: false, most_bytes: 4096 }.to_bytes();
        assert_eq!(writable[8], 4 | 8);
    }

    #[test]
    fn commands_are_laid_out_as_the_kernel_reads_them() {
        let bytes = control_command(5, 0x1122, 0xaabb_ccdd, 64);
        assert_eq!(bytes[..8], [5, 0, 0, 0, 255, 255, 64, 0]);
        assert_eq!(bytes[8..16], 0xaabb_ccdd_u64.to_ne_bytes());
        assert_eq!(bytes[16..24], 0x1122_u64.to_ne_bytes());
        assert!(bytes[24..].iter().all(|byte| *byte == 0));
        assert_eq!(answer(7, -5), [0, 0, 7, 0, 251, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn requests_are_read_and_nothing_in_them_is_too_large() {
        let mut bytes = [0; REQUEST_BYTES];
        put(&mut bytes, 0, &(1_u32 | IO_FUA | 1 << 11).to_ne_bytes());
        put(&mut bytes, 4, &8_u32.to_ne_bytes());
        put(&mut bytes, 8, &100_u64.to_ne_bytes());
        let expected = Request { tag: 9, operation: Operation::Write, offset: 51_200, length: 4096, durable: true };
        assert_eq!(Request::from_bytes(9, &bytes), expected);
        for (number, operation) in [
            (0, Operation::Read),
            (2, Operation::Flush),
            (3, Operation::Discard),
            (4, Operation::Other(4)),
            (5, Operation::WriteZeroes),
        ] {
            bytes[0] = number;
            assert_eq!(Request::from_bytes(0, &bytes).operation, operation);
        }
        let largest = Request::from_bytes(0, &[255; REQUEST_BYTES]);
        assert_eq!((largest.operation, largest.offset, largest.length), (Operation::Other(255), u64::MAX, u32::MAX));
    }

    #[test]
    fn places_in_the_devices_file_are_the_kernels() {
        assert_eq!([mapped_bytes(1), mapped_bytes(128), mapped_bytes(171)], [4096, 4096, 8192]);
        assert_eq!(data_offset(0, 0), 0x8000_0000);
        assert_eq!(data_offset(3, 512), 0x8000_0000 + (3 << 25) + 512);
    }

    #[test]
    fn features_are_told_apart() {
        let features = |bits: u64| Features::from_bytes(bits.to_ne_bytes());
        assert!(features(0x1fe).suffices() && !features(0x1fe).can_resize());
        assert!(features(0x5fe).can_resize() && !features(0x17e).suffices());
    }
}

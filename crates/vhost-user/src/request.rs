//! The requests of a virtio block device (virtio 1.2, 5.2.6): what they are, and which are refused.

/// The length of a request's head.
pub const HEAD_BYTES: usize = 16;
/// The most data of one request.
pub const MAX_DATA_BYTES: u64 = 32 << 20;
/// The length of what a device is asked to call itself.
pub const ID_BYTES: usize = 20;
/// The most ranges of one discard or write-zeroes.
pub const MAX_SEGMENTS: u32 = 64;
/// The longest of them, in sectors.
pub const MAX_SEGMENT_SECTORS: u32 = 1 << 22;
/// The length of a range, as it is written.
pub const SEGMENT_BYTES: usize = 16;

const SECTOR: u64 = 512;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Of a write-zeroes: the room may be freed.
const UNMAP: u32 = 1;

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It is done.
    Ok = 0,
    /// It is wrong, or failed.
    IoError = 1,
    /// There is no such request.
    Unsupported = 2,
}

impl Status {
    /// As a driver reads it.
    #[must_use]
    pub fn byte(self) -> u8 {
        self as u8
    }
}

/// What a request is about, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// A request that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read into what is writable.
    Read(Range),
    /// Write what is readable.
    Write(Range),
    /// Make everything durable.
    Flush,
    /// Say what the device is called.
    Identify,
    /// These are not needed any more.
    Discard(Vec<Range>),
    /// Make these zero.
    WriteZeroes(Vec<Range>),
}

/// What requests are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The disk's size at this moment.
    pub size_bytes: u64,
    /// Whether changes are refused.
    pub read_only: bool,
}

impl Limits {
    fn range(&self, sector: u64, length: u64) -> Result<Range, Status> {
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(length).ok_or(Status::IoError)?;
        let whole = length > 0 && length.is_multiple_of(SECTOR);
        if whole && end <= self.size_bytes { Ok(Range { offset, length }) } else { Err(Status::IoError) }
    }

    fn data(&self, sector: u64, length: u64) -> Result<Range, Status> {
        self.range(sector, length)
            .and_then(|range| if length > MAX_DATA_BYTES { Err(Status::IoError) } else { Ok(range) })
    }

    fn changeable(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(()) }
    }
}

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which request it is.
    pub kind: u32,
    /// Where it begins, in sectors of 512 bytes.
    pub sector: u64,
}

impl Head {
    /// Reads a head.
    #[must_use]
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Head {
        let [a, b, c, d, _, _, _, _, sector @ ..] = *bytes;
        Head { kind: u32::from_le_bytes([a, b, c, d]), sector: u64::from_le_bytes(sector) }
    }

    /// Whether what is readable behind the head are ranges, how many bytes of them are looked at.
    #[must_use]
    pub fn has_segments(&self) -> bool {
        matches!(self.kind, DISCARD | WRITE_ZEROES)
    }

    /// Checks a request. `readable` and `writable` are the lengths of what is behind the head, and before the status;
    /// `segments` is what is readable, where it [has segments](Head::has_segments).
    ///
    /// # Errors
    /// What to answer instead of making it.
    pub fn check(&self, readable: u64, writable: u64, segments: &[u8], limits: &Limits) -> Result<Request, Status> {
        match self.kind {
            IN => limits.data(self.sector, writable).map(Request::Read),
            OUT => {
                limits.changeable()?;
                limits.data(self.sector, readable).map(Request::Write)
            }
            FLUSH => Ok(Request::Flush),
            GET_ID if writable >= ID_BYTES as u64 => Ok(Request::Identify),
            GET_ID => Err(Status::IoError),
            DISCARD => ranges(segments, 0, limits).map(Request::Discard),
            WRITE_ZEROES => ranges(segments, UNMAP, limits).map(Request::WriteZeroes),
            _ => Err(Status::Unsupported),
        }
    }
}

fn ranges(segments: &[u8], flags: u32, limits: &Limits) -> Result<Vec<Range>, Status> {
    limits.changeable()?;
    let most = SEGMENT_BYTES * MAX_SEGMENTS as usize;
    if segments.is_empty() || !segments.len().is_multiple_of(SEGMENT_BYTES) || segments.len() > most {
        return Err(Status::IoError);
    }
    let range = |bytes: &[u8]| {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (sector, sectors) = (u64::from(word(0)) | u64::from(word(4)) << 32, word(8));
        if word(12) & !flags != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_SEGMENT_SECTORS {
            return Err(Status::IoError);
        }
        limits.range(sector, u64::from(sectors) * SECTOR)
    };
    segments.chunks_exact(SEGMENT_BYTES).map(range).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: Limits = Limits { size_bytes: 1 << 20, read_only: false };
    const SNAPSHOT: Limits = Limits { read_only: true, ..DISK };

    fn check(kind: u32, sector: u64, readable: u64, writable: u64, limits: &Limits) -> Result<Request, Status> {
        Head { kind, sector }.check(readable, writable, &[], limits)
    }

    fn segments(all: &[(u64, u32, u32)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (sector, sectors, flags) in all {
            bytes.extend(sector.to_le_bytes());
            bytes.extend(sectors.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn data_are_whole_sectors_of_the_disk() {
        assert_eq!(check(IN, 8, 0, 4096, &DISK), Ok(Request::Read(Range { offset: 4096, length: 4096 })));
        assert_eq!(check(OUT, 2047, 512, 0, &DISK), Ok(Request::Write(Range { offset: 1048064, length: 512 })));
        for (sector, length) in [(0, 0), (0, 511), (0, 513), (2048, 512), (2047, 1024), (u64::MAX, 512), (1 << 55, 512)]
        {
            assert_eq!(check(IN, sector, 0, length, &DISK), Err(Status::IoError), "{sector} {length}");
            assert_eq!(check(OUT, sector, length, 0, &DISK), Err(Status::IoError), "{sector} {length}");
        }
        let large = Limits { size_bytes: 1 << 40, ..DISK };
        assert_eq!(check(IN, 0, 0, MAX_DATA_BYTES + 512, &large), Err(Status::IoError));
    }

    #[test]
    fn what_is_not_known_is_not_supported() {
        for kind in [2, 3, 5, 7, 9, 14, u32::MAX] {
            assert_eq!(check(kind, 0, 512, 512, &DISK), Err(Status::Unsupported), "{kind}");
        }
        assert_eq!(check(GET_ID, 0, 0, 20, &DISK), Ok(Request::Identify));
        assert_eq!(check(GET_ID, 0, 0, 19, &DISK), Err(Status::IoError));
        assert_eq!(check(FLUSH, 0, 0, 0, &SNAPSHOT), Ok(Request::Flush));
    }

    #[test]
    fn a_snapshot_takes_no_changes() {
        assert_eq!(check(OUT, 0, 512, 0, &SNAPSHOT), Err(Status::IoError));
        for kind in [DISCARD, WRITE_ZEROES] {
            let one = segments(&[(0, 1, 0)]);
            assert_eq!(Head { kind, sector: 0 }.check(16, 0, &one, &SNAPSHOT), Err(Status::IoError));
        }
    }

    #[test]
    fn ranges_are_checked_one_by_one() {
        let discard = |bytes: &[u8]| Head { kind: DISCARD, sector: 0 }.check(0, 0, bytes, &DISK);
        let zero = |bytes: &[u8]| Head { kind: WRITE_ZEROES, sector: 0 }.check(0, 0, bytes, &DISK);
        let two = [Range { offset: 0, length: 512 }, Range { offset: 4096, length: 8192 }];
        assert_eq!(discard(&segments(&[(0, 1, 0), (8, 16, 0)])), Ok(Request::Discard(two.to_vec())));
        assert_eq!(zero(&segments(&[(0, 1, 1), (8, 16, 0)])), Ok(Request::WriteZeroes(two.to_vec())));
        assert_eq!(discard(&segments(&[(0, 1, 1)])), Err(Status::Unsupported), "a discard has no flags");
        assert_eq!(zero(&segments(&[(0, 1, 2)])), Err(Status::Unsupported));
        assert_eq!(zero(&segments(&[(0, 0, 0)])), Err(Status::IoError));
        assert_eq!(zero(&segments(&[(0, MAX_SEGMENT_SECTORS + 1, 0)])), Err(Status::IoError));
        assert_eq!(zero(&segments(&[(0, 1, 0), (2048, 1, 0)])), Err(Status::IoError));
        assert_eq!(zero(&segments(&[(0, 1, 0)])[..15]), Err(Status::IoError));
        assert_eq!(zero(&[]), Err(Status::IoError));
        assert_eq!(zero(&segments(&[(0, 1, 0); 65])), Err(Status::IoError));
    }

    proptest! {
        #[test]
        fn what_is_made_is_within_the_disk(
            head in any::<[u8; HEAD_BYTES]>(), kind in 0_u32..16, sector in 0_u64..4096, random: bool,
            readable in 0_u64..1 << 21, writable in 0_u64..1 << 21, bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let head = if random { Head::decode(&head) } else { Head { kind, sector } };
            let within = |range: &Range| range.offset.checked_add(range.length).is_some_and(|end| end <= 1 << 20);
            match head.check(readable, writable, &bytes, &DISK) {
                Ok(Request::Read(range) | Request::Write(range)) => prop_assert!(within(&range)),
                Ok(Request::Discard(ranges) | Request::WriteZeroes(ranges)) => prop_assert!(ranges.iter().all(within)),
                Ok(Request::Flush | Request::Identify) | Err(_) => {}
            }
        }
    }
}

//! The one file: what the kernel asks of it, as requests to the node.
//!
//! What the loop driver sends (drivers/block/loop.c): a flush is `fsync`; a discard and a write-zeroes that may deallocate
//! are both `fallocate` with `PUNCH_HOLE`, a write-zeroes that may not is `ZERO_RANGE`. All must read zero afterwards, so
//! all are `NBD_CMD_WRITE_ZEROES`: `NBD_CMD_TRIM` promises nothing.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use capture::nbd::reply::Answer;
use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags};

use super::client::{Client, Command};
use crate::nbd::protocol::{
    NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES,
};

/// The longest read or write that the kernel sends, in bytes.
const REQUEST_BYTES: u32 = 1 << 20;
/// How many requests the kernel sends before it waits for answers.
const REQUESTS: u16 = 128;
/// The unit in which room is given back, which is what a loop device tells as its granularity of discards.
const BLOCK_BYTES: u32 = 4096;
/// The longest range that one request zeroes, in bytes: a whole number of blocks.
const ZERO_BYTES: u64 = 1 << 31;
/// For how long the kernel may believe the size: not at all, as it is asked for only where it matters.
const BELIEVED: Duration = Duration::ZERO;

/// An export as a file.
pub(super) struct ExportedFile {
    client: Client,
    since: SystemTime,
}

impl ExportedFile {
    pub(super) fn new(client: Client) -> ExportedFile {
        ExportedFile { client, since: SystemTime::now() }
    }

    fn attributes(&self, size: u64) -> FileAttr {
        FileAttr {
            ino: INodeNo::ROOT,
            size,
            blocks: size.div_ceil(512),
            atime: self.since,
            mtime: self.since,
            ctime: self.since,
            crtime: self.since,
            kind: FileType::RegularFile,
            perm: if self.client.read_only() { 0o400 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    /// Sends a request that is answered by its success.
    fn submit_for(&self, command: Command, done: impl FnOnce(Result<(), Errno>) + Send + 'static) {
        self.client.submit(command, Box::new(move |answer| done(answer.map(drop).map_err(Errno::from_i32))));
    }
}

fn command(command: u16, flags: u16, offset: u64, length: u32) -> Command {
    Command { command, flags, offset, length, data: Vec::new() }
}

/// What several requests to the node answer together: that all have succeeded, or the first error.
#[derive(Debug)]
struct Together {
    left: AtomicU64,
    error: AtomicI32,
    reply: Mutex<Option<ReplyEmpty>>,
}

impl Together {
    fn one_done(&self, outcome: Result<(), Errno>) {
        if let Err(error) = outcome {
            self.error.store(error.code(), Ordering::Release);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let reply = self.reply.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (reply, self.error.load(Ordering::Acquire)) {
            (Some(reply), 0) => reply.ok(),
            (Some(reply), error) => reply.error(Errno::from_i32(error)),
            (None, _) => {}
        }
    }
}

/// The pieces of a range that one request each can zero.
fn zeroing(offset: u64, length: u64, flags: u16) -> Vec<Command> {
    let end = offset.saturating_add(length);
    let mut pieces = Vec::new();
    let mut at = offset;
    while at < end {
        let bytes = u32::try_from((end - at).min(ZERO_BYTES)).expect("a piece fits");
        pieces.push(command(NBD_CMD_WRITE_ZEROES, flags, at, bytes));
        at += u64::from(bytes);
    }
    pieces
}

/// How a range is zeroed in a mode of `fallocate`; nothing where the mode is another one.
fn zeroing_flags(mode: i32) -> Option<u16> {
    let mode = FallocateFlags::from_bits(u32::try_from(mode).ok()?)?;
    let (punch, zero, keep) = (FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE, FallocateFlags::KEEP_SIZE);
    if mode == punch | keep {
        Some(0)
    } else if mode == zero | keep || mode == zero {
        Some(NBD_CMD_FLAG_NO_HOLE)
    } else {
        None
    }
}

impl Filesystem for ExportedFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |what: &str| io::Error::other(format!("FUSE does not take {what}"));
        config.set_max_background(REQUESTS).map_err(|_| refused("so many requests"))?;
        config.set_max_write(REQUEST_BYTES).map_err(|_| refused("writes of this size"))?;
        // Without it, the kernel sends one request of a device after the other.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).map_err(|_| refused("direct requests side by side"))?;
        Ok(())
    }

    fn getattr(&self, _: &Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&BELIEVED, &self.attributes(self.client.ask_size()));
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // Times are nobody's business; the rest is the node's.
        if mode.is_some() || uid.is_some() || gid.is_some() || size.is_some() {
            return reply.error(Errno::EPERM);
        }
        reply.attr(&BELIEVED, &self.attributes(self.client.size_bytes()));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // A file that ends gives less than was asked for; a device that ends gives an error.
        let left = self.client.size_bytes().saturating_sub(offset);
        let length = u32::try_from(left).map_or(size, |left| left.min(size));
        if length == 0 {
            return reply.data(&[]);
        }
        let answered = move |answer| match answer {
            Ok(Answer::Data(bytes)) => reply.data(&bytes),
            Ok(_) => reply.error(Errno::EIO),
            Err(error) => reply.error(Errno::from_i32(error)),
        };
        self.client.submit(command(NBD_CMD_READ, 0, offset, length), Box::new(answered));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Ok(length) = u32::try_from(data.len()) else { return reply.error(Errno::EINVAL) };
        if length == 0 {
            return reply.written(0);
        }
        // O_SYNC contains O_DSYNC.
        let durable = OFlags::from_bits_retain(flags.0.cast_unsigned()).contains(OFlags::DSYNC);
        let flags = if durable { NBD_CMD_FLAG_FUA } else { 0 };
        let write = Command { data: data.to_vec(), ..command(NBD_CMD_WRITE, flags, offset, length) };
        self.submit_for(write, move |outcome| match outcome {
            Ok(()) => reply.written(length),
            Err(error) => reply.error(error),
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if self.client.read_only() {
            return reply.ok();
        }
        self.submit_for(command(NBD_CMD_FLUSH, 0, 0, 0), move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(flags) = zeroing_flags(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let length = length.min(self.client.size_bytes().saturating_sub(offset));
        let pieces = zeroing(offset, length, flags);
        if pieces.is_empty() {
            return reply.ok();
        }
        let left = AtomicU64::new(pieces.len() as u64);
        let together = Arc::new(Together { left, error: AtomicI32::new(0), reply: Mutex::new(Some(reply)) });
        for piece in pieces {
            let together = Arc::clone(&together);
            self.submit_for(piece, move |outcome| together.one_done(outcome));
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = self.client.size_bytes() / u64::from(BLOCK_BYTES);
        reply.statfs(blocks, 0, 0, 1, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Closing promises nothing.
        reply.ok();
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    // The kernel does not ask again for what there is not.
    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_zeroed_in_pieces_without_a_gap() {
        for (offset, length) in [(0, 1), (512, 5 << 30), (4096, ZERO_BYTES), (0, ZERO_BYTES + 512), (7, 0)] {
            let mut at = offset;
            for piece in zeroing(offset, length, NBD_CMD_FLAG_NO_HOLE) {
                assert_eq!(
                    (piece.offset, piece.command, piece.flags),
                    (at, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE)
                );
                at += u64::from(piece.length);
            }
            assert_eq!(at, offset + length);
        }
    }

    #[test]
    fn only_holes_and_zeroes_can_be_allocated() {
        let bits = |flags: FallocateFlags| flags.bits().cast_signed();
        let (punch, zero, keep) = (FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE, FallocateFlags::KEEP_SIZE);
        assert_eq!(zeroing_flags(bits(punch | keep)), Some(0));
        assert_eq!(zeroing_flags(bits(zero | keep)), Some(NBD_CMD_FLAG_NO_HOLE));
        assert_eq!(zeroing_flags(bits(zero)), Some(NBD_CMD_FLAG_NO_HOLE));
        for other in [0, bits(keep), bits(FallocateFlags::COLLAPSE_RANGE), -1] {
            assert_eq!(zeroing_flags(other), None, "{other}");
        }
    }
}

//! What each request does, and its reply.
//!
//! What is here is served at once, on the connection's thread, into the replies that are gathered for the next send.
//! What is not becomes a wait, answered out of order when it ends. Nothing is answered before it is true: a write's
//! reply is made after the device has returned.

use std::io;
use std::sync::Arc;

use volume::{DeviceError, Durability, ExtentKind, Readiness};

use super::context::{Context, descriptors};
use super::link::Link;
use super::protocol::{
    NBD_CMD_BLOCK_STATUS, NBD_CMD_CACHE, NBD_CMD_FLAG_DF, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_EIO,
    NBD_ENOTSUP, Request,
};
use super::refusal::{Limits, Refusal, check};
use super::reply::Replies;
use super::wait::{Ended, Purpose, Waiting, Waits};
use crate::disk::{Disk, Written};

/// Reads from this length on are looked at for zeroes that need not be sent.
const HOLES_FROM_BYTES: usize = 64 << 10;
/// Zeroes shorter than this are sent as data.
const HOLE_BYTES: u64 = 4096;
/// The largest content of one chunk, where a reply may be split.
const PIECE_BYTES: usize = 512 << 10;
/// From this length on, replies are sent before further requests are served: the client can work on them meanwhile.
const SEND_BYTES: usize = 128 << 10;
/// From this length on, a waited-for answer is sent from where it lies.
const DIRECT_BYTES: usize = 64 << 10;
/// Most extents looked at for one piece of a read.
const EXTENTS_OF_READ: usize = 32;
/// Most extents told in one block status.
const EXTENTS_OF_STATUS: usize = 1024;
/// About how many pieces one cache request brings at most.
const PIECES_OF_CACHE: usize = 4096;

/// What was agreed on with the client.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) structured: bool,
    pub(crate) contexts: Vec<Context>,
}

/// A connection's way from requests to replies.
#[derive(Debug)]
pub(crate) struct Transmission {
    link: Arc<Link>,
    disk: Disk,
    terms: Terms,
    replies: Replies,
    /// What another process left unsent, or the client did not take before this was held; goes before all else.
    unsent: Vec<u8>,
    pub(crate) waits: Waits,
}

impl Transmission {
    pub(crate) fn new(link: Arc<Link>, disk: Disk, terms: Terms, waits: Waits) -> Transmission {
        Transmission { link, disk, terms, replies: Replies::new(), unsent: Vec::new(), waits }
    }

    /// Goes on where another process has stopped.
    pub(crate) fn resume(&mut self, unsent: Vec<u8>, waiting: Vec<Waiting>) -> io::Result<()> {
        self.unsent = unsent;
        for Waiting { request, purpose } in waiting {
            if let Err(refusal) = check(&request, &self.limits()) {
                self.refuse(&request, &refusal)?;
                continue;
            }
            match purpose {
                Purpose::Read(offset) => {
                    let length = request.end().map_or(0, |end| length_within(end.saturating_sub(offset)));
                    self.waits.begin(&self.disk, request, Purpose::Read(offset), vec![(offset, length)]);
                }
                Purpose::Retry(payload) => self.perform(&request, &payload)?,
                Purpose::Cache => self.perform(&request, &[])?,
            }
        }
        Ok(())
    }

    /// Gives up all waits, answers those that have ended, and returns the others with what the client has not taken.
    pub(crate) fn suspend(&mut self) -> io::Result<(Vec<u8>, Vec<Waiting>)> {
        let mut waiting = Vec::new();
        while !self.waits.is_empty() {
            for ended in self.waits.recall()? {
                match ended.outcome {
                    None => waiting.push(Waiting { request: ended.request, purpose: ended.purpose }),
                    Some(_) => self.ended(ended)?,
                }
            }
        }
        self.send()?;
        Ok((std::mem::take(&mut self.unsent), waiting))
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(crate) fn terms(&self) -> &Terms {
        &self.terms
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            size_bytes: self.disk.size_bytes(),
            read_only: self.disk.read_only(),
            structured: self.terms.structured,
            contexts: !self.terms.contexts.is_empty(),
        }
    }

    /// Sends what was gathered.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        self.send_unsent()?;
        if !self.replies.pending().is_empty() {
            put_out(&self.link, &mut self.unsent, self.replies.pending())?;
            self.replies.clear();
        }
        Ok(())
    }

    fn send_unsent(&mut self) -> io::Result<()> {
        if !self.unsent.is_empty() && !self.link.holding() {
            let unsent = std::mem::take(&mut self.unsent);
            put_out(&self.link, &mut self.unsent, &unsent)?;
        }
        Ok(())
    }

    /// Answers an error.
    pub(crate) fn refuse(&mut self, request: &Request, refusal: &Refusal) -> io::Result<()> {
        self.make_room(refusal.message.len())?;
        tracing::debug!(?request, error = refusal.error, reason = refusal.message, "request refused");
        self.replies.error(request.cookie, self.terms.structured, refusal);
        Ok(())
    }

    /// Does a request that was checked, or lets it wait.
    pub(crate) fn perform(&mut self, request: &Request, payload: &[u8]) -> io::Result<()> {
        let length = u64::from(request.length);
        let durability = if request.has(NBD_CMD_FLAG_FUA) { Durability::Power } else { Durability::Process };
        match request.command {
            NBD_CMD_READ => self.read(request),
            NBD_CMD_WRITE => {
                let written = self.disk.write(request.offset, payload, durability);
                self.written(request, written, payload)
            }
            NBD_CMD_WRITE_ZEROES => {
                let written = self.disk.write_zeroes(request.offset, length, durability);
                self.written(request, written, &[])
            }
            NBD_CMD_TRIM => {
                let done = self.disk.discard(request.offset, length, durability);
                self.written(request, done.map(|()| Written::Done), &[])
            }
            NBD_CMD_FLUSH => {
                let done = self.disk.flush();
                self.written(request, done.map(|()| Written::Done), &[])
            }
            NBD_CMD_CACHE => self.cache(request),
            NBD_CMD_BLOCK_STATUS => self.status(request),
            command => unreachable!("command {command} was checked before"),
        }
    }

    /// Makes several writes of whole sectors that were checked, in one go. Where that fails, each has its own answer.
    pub(crate) fn write_run(&mut self, run: &[(Request, &[u8])]) -> io::Result<()> {
        let writes: Vec<_> = run.iter().map(|(request, payload)| (request.offset, *payload)).collect();
        match self.disk.write_many(&writes) {
            Ok(()) => run.iter().try_for_each(|(request, _)| self.succeed(request)),
            // Those that were made are made again, in the same order: none of them has been answered.
            Err(_) => run.iter().try_for_each(|(request, payload)| self.perform(request, payload)),
        }
    }

    /// Sends what was gathered, if it is much.
    pub(crate) fn send_if_much(&mut self) -> io::Result<()> {
        if self.replies.pending().len() >= SEND_BYTES { self.send() } else { Ok(()) }
    }

    /// Answers a request whose wait has ended.
    pub(crate) fn ended(&mut self, ended: Ended) -> io::Result<()> {
        let Ended { request, purpose, outcome, .. } = ended;
        match (outcome, purpose) {
            (None, _) => self.refuse(&request, &Refusal::new(NBD_EIO, "the read was given up")),
            (Some(Err(refusal)), _) => self.refuse(&request, &refusal),
            (Some(Ok(_)), Purpose::Cache) => self.succeed(&request),
            (Some(Ok(_)), Purpose::Retry(payload)) => self.perform(&request, &payload),
            (Some(Ok(data)), Purpose::Read(offset)) => {
                self.make_room(0)?;
                self.content(&request, true, offset, length_of(data.len()));
                if data.len() >= DIRECT_BYTES {
                    self.send()?;
                    return put_out(&self.link, &mut self.unsent, &data);
                }
                self.make_room(data.len())?;
                self.replies.space(data.len()).copy_from_slice(&data);
                Ok(())
            }
        }
    }

    fn read(&mut self, request: &Request) -> io::Result<()> {
        let length = request.length as usize;
        if !self.terms.structured || request.has(NBD_CMD_FLAG_DF) {
            self.read_run(request, request.offset, length)?;
            return Ok(());
        }
        let end = request.offset + u64::from(request.length);
        let mut offset = request.offset;
        while offset < end {
            let piece = PIECE_BYTES.min(length_within(end - offset));
            for (length, zero) in self.runs(offset, piece) {
                if zero {
                    self.make_room(0)?;
                    let done = offset + length as u64 == end;
                    self.replies.hole(request.cookie, done, offset, length_of(length));
                } else if !self.read_run(request, offset, length)? {
                    return Ok(());
                }
                offset += length as u64;
            }
        }
        Ok(())
    }

    /// Reads one run of a request into the replies; false if the rest of the request was answered, or waits.
    fn read_run(&mut self, request: &Request, offset: u64, length: usize) -> io::Result<bool> {
        self.make_room(length)?;
        let mark = self.replies.mark();
        let end = request.offset + u64::from(request.length);
        self.content(request, offset + length as u64 == end, offset, length_of(length));
        match self.disk.try_read(offset, self.replies.space(length)) {
            Ok(Readiness::Ready) => return Ok(true),
            Ok(Readiness::Wait) => {
                self.replies.take_back(mark);
                let rest = vec![(offset, length_within(end - offset))];
                self.waits.begin(&self.disk, *request, Purpose::Read(offset), rest);
            }
            Err(error) => {
                self.replies.take_back(mark);
                self.fail(request, &error, false)?;
            }
        }
        Ok(false)
    }

    /// The header of a read's content.
    fn content(&mut self, request: &Request, done: bool, offset: u64, length: u32) {
        if self.terms.structured {
            self.replies.data(request.cookie, done, offset, length);
        } else {
            self.replies.simple(request.cookie, 0);
        }
    }

    /// A range as runs of (length, whether it is all zero); together they are as long as the range.
    fn runs(&self, offset: u64, length: usize) -> Vec<(usize, bool)> {
        if length < HOLES_FROM_BYTES {
            return vec![(length, false)];
        }
        // An error shows up in the read itself, where it can be answered.
        let extents = self.disk.extents(offset, length as u64, EXTENTS_OF_READ).unwrap_or_default();
        let mut runs: Vec<(usize, bool)> = Vec::new();
        let mut left = length;
        let mut append = |length: usize, zero: bool| match runs.last_mut() {
            Some((before, same)) if *same == zero => *before += length,
            _ => runs.push((length, zero)),
        };
        for extent in extents {
            let empty = matches!(extent.kind, ExtentKind::Zero | ExtentKind::Hole);
            let length = length_within(extent.length).min(left);
            append(length, empty && extent.length >= HOLE_BYTES);
            left -= length;
        }
        if left > 0 {
            append(left, false);
        }
        runs
    }

    /// Answers what a change came to.
    fn written(&mut self, request: &Request, written: Result<Written, DeviceError>, payload: &[u8]) -> io::Result<()> {
        match written {
            Ok(Written::Done) => self.succeed(request),
            Ok(Written::Needs { .. }) if request.has(NBD_CMD_FLAG_FAST_ZERO) => {
                self.refuse(request, &Refusal::new(NBD_ENOTSUP, "a sector at the edge is not here"))
            }
            Ok(Written::Needs { offset, length }) => {
                let retry = Purpose::Retry(payload.to_vec());
                self.waits.begin(&self.disk, *request, retry, vec![(offset, length)]);
                Ok(())
            }
            Err(error) => self.fail(request, &error, true),
        }
    }

    fn cache(&mut self, request: &Request) -> io::Result<()> {
        match self.absent(request) {
            Err(error) => self.fail(request, &error, false),
            Ok(absent) if absent.is_empty() => self.succeed(request),
            Ok(absent) => {
                self.waits.begin(&self.disk, *request, Purpose::Cache, absent);
                Ok(())
            }
        }
    }

    /// What of a range is not here, in pieces; the rest is left out where there are very many.
    fn absent(&self, request: &Request) -> Result<Vec<(u64, usize)>, DeviceError> {
        let mut offset = request.offset;
        let mut left = u64::from(request.length);
        let mut absent = Vec::new();
        while left > 0 && absent.len() < PIECES_OF_CACHE {
            let extents = self.disk.extents(offset, left, EXTENTS_OF_STATUS)?;
            if extents.is_empty() {
                break;
            }
            for extent in extents {
                let end = offset + extent.length;
                while extent.kind == ExtentKind::Absent && offset < end {
                    let piece = PIECE_BYTES.min(length_within(end - offset));
                    absent.push((offset, piece));
                    offset += piece as u64;
                }
                offset = end;
                left -= extent.length;
            }
        }
        Ok(absent)
    }

    fn status(&mut self, request: &Request) -> io::Result<()> {
        let extents = match self.disk.extents(request.offset, u64::from(request.length), EXTENTS_OF_STATUS) {
            Ok(extents) if extents.is_empty() => {
                return self.refuse(request, &Refusal::new(NBD_EIO, "the disk told nothing of the range"));
            }
            Ok(extents) => extents,
            Err(error) => return self.fail(request, &error, false),
        };
        let contexts = self.terms.contexts.clone();
        for (index, context) in contexts.iter().enumerate() {
            let all = descriptors(*context, &extents, request.has(NBD_CMD_FLAG_REQ_ONE));
            self.make_room(8 * all.len())?;
            self.replies.status(request.cookie, index + 1 == contexts.len(), context.id(), &all);
        }
        Ok(())
    }

    fn succeed(&mut self, request: &Request) -> io::Result<()> {
        self.make_room(0)?;
        self.replies.simple(request.cookie, 0);
        Ok(())
    }

    fn fail(&mut self, request: &Request, error: &DeviceError, writing: bool) -> io::Result<()> {
        let refusal = Refusal::of(error, writing);
        if refusal.error == NBD_EIO {
            tracing::error!(?request, error = refusal.message, "the disk failed a request");
        }
        self.refuse(request, &refusal)
    }

    /// Sends what was gathered, if so many more bytes and their frame do not fit.
    fn make_room(&mut self, content: usize) -> io::Result<()> {
        if self.replies.fits(content) { Ok(()) } else { self.send() }
    }
}

/// Sends bytes behind what was not sent before; what the client does not take before this is held joins that.
fn put_out(link: &Link, unsent: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let sent = if unsent.is_empty() { link.send_unless_held(bytes)? } else { 0 };
    unsent.extend_from_slice(&bytes[sent..]);
    Ok(())
}

/// A length that is at most a request's.
fn length_of(length: usize) -> u32 {
    u32::try_from(length).expect("a request's length is 32 bits")
}

fn length_within(length: u64) -> usize {
    usize::try_from(length).expect("a request fits in memory")
}

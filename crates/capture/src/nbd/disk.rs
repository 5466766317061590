//! An export of an NBD server as a disk: requests spread over connections, reads tried again on a new one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::connection::{Connection, Request};
use super::handshake::Export;
use super::reply::{Answer, Wanted};
use super::uri::NbdUri;
use super::{Lost, NbdError, number};
use crate::foreign::{CaptureError, ForeignDisk, ForeignExtent, check_range, push_extent, whole_sectors};

/// How a server is used.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// The most connections, where the server says that they are coherent.
    pub connections: usize,
    /// How long connecting and negotiating may take.
    pub connect_timeout: Duration,
    /// How long a reply may take.
    pub reply_timeout: Duration,
}

impl Default for NbdOptions {
    fn default() -> Self {
        Self { connections: 4, connect_timeout: Duration::from_secs(15), reply_timeout: Duration::from_secs(60) }
    }
}

/// The longest single request, in bytes; longer reads are split and their parts asked for at once.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// The longest range whose status is asked for at once, in bytes.
const MAX_STATUS_BYTES: u64 = 1 << 30;

/// How often a read is tried again on a new connection after one was lost.
const RETRIES: usize = 2;

/// An export of an NBD server.
#[derive(Debug)]
pub struct NbdDisk {
    uri: NbdUri,
    options: NbdOptions,
    export: Export,
    size_bytes: u64,
    connections: Vec<Mutex<Arc<Connection>>>,
    next: AtomicUsize,
}

impl NbdDisk {
    /// Connects to a server.
    ///
    /// # Errors
    /// See [`NbdError`].
    pub fn connect(uri: &NbdUri, options: &NbdOptions) -> Result<Self, NbdError> {
        let open = || Connection::open(uri, options.connect_timeout, options.reply_timeout);
        let first = open()?;
        let export = first.export;
        let size_bytes = whole_sectors(export.size_bytes).map_err(|_| NbdError::Unusable("the size of the export"))?;
        let mut connections = vec![Mutex::new(Arc::new(first))];
        let most = if export.flags & number::EXPORT_CAN_MULTI_CONN != 0 { options.connections } else { 1 };
        while connections.len() < most {
            match open() {
                Ok(more) if more.export == export => connections.push(Mutex::new(Arc::new(more))),
                Ok(_) => return Err(NbdError::Unusable("its connections show different disks")),
                Err(error) => {
                    // It promised to take several; with fewer everything works as well, only slower.
                    tracing::debug!(%error, connections = connections.len(), "no further connection");
                    break;
                }
            }
        }
        Ok(Self {
            uri: uri.clone(),
            options: options.clone(),
            export,
            size_bytes,
            connections,
            next: AtomicUsize::new(0),
        })
    }

    /// Whether the server refuses writes.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.export.flags & number::EXPORT_READ_ONLY != 0
    }

    /// The export's size as the server gave it, in bytes; not always a multiple of 512.
    #[must_use]
    pub fn export_bytes(&self) -> u64 {
        self.export.size_bytes
    }

    /// Writes. After a failure it is not known what was written.
    ///
    /// # Errors
    /// See [`CaptureError`]. Nothing is tried again: what an earlier connection had written may be lost with it.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), CaptureError> {
        self.check_write(offset, data.len() as u64)?;
        let connection = self.connection();
        let mut tickets = Vec::new();
        for (index, part) in data.chunks(MAX_REQUEST_BYTES as usize).enumerate() {
            let offset = offset + index as u64 * u64::from(MAX_REQUEST_BYTES);
            let length = u32::try_from(part.len()).expect("parts are short");
            let request = Request { command: number::COMMAND_WRITE, offset, length };
            tickets.push(connection.send(request, Wanted::Done, part)?);
        }
        tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop))?;
        Ok(())
    }

    /// Makes a range zero, by the server where it can, else by writing zeroes.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at).
    pub fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), CaptureError> {
        self.check_write(offset, length)?;
        let can = self.export.flags & number::EXPORT_SEND_WRITE_ZEROES != 0;
        let step = if can { MAX_STATUS_BYTES } else { u64::from(MAX_REQUEST_BYTES) };
        let zeroes = if can { Vec::new() } else { vec![0; MAX_REQUEST_BYTES as usize] };
        let mut position = offset;
        while position < offset + length {
            let part = step.min(offset + length - position);
            if can {
                let length = u32::try_from(part).expect("parts are short");
                let request = Request { command: number::COMMAND_WRITE_ZEROES, offset: position, length };
                self.connection().send(request, Wanted::Done, &[])?.wait()?;
            } else {
                let length = usize::try_from(part).expect("parts are short");
                self.write_at(position, &zeroes[..length])?;
            }
            position += part;
        }
        Ok(())
    }

    /// Makes everything that was written durable.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn flush(&self) -> Result<(), CaptureError> {
        if self.export.flags & number::EXPORT_SEND_FLUSH != 0 {
            let request = Request { command: number::COMMAND_FLUSH, offset: 0, length: 0 };
            self.connection().send(request, Wanted::Done, &[])?.wait()?;
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), CaptureError> {
        check_range(offset, length, self.export.size_bytes)?;
        if self.read_only() {
            return Err(NbdError::ReadOnly.into());
        }
        let block = u64::from(self.export.minimum_block);
        if !offset.is_multiple_of(block) || !length.is_multiple_of(block) {
            return Err(NbdError::Unusable("it only takes writes of larger blocks than the disk has").into());
        }
        Ok(())
    }

    fn slot(&self) -> &Mutex<Arc<Connection>> {
        &self.connections[self.next.fetch_add(1, Ordering::Relaxed) % self.connections.len()]
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.slot().lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something that changes nothing on some connection, and again on a new one where that is lost.
    fn with_retry<T>(&self, work: impl Fn(&Connection) -> Result<T, NbdError>) -> Result<T, NbdError> {
        let slot = self.slot();
        let mut tries = 0;
        loop {
            let connection = Arc::clone(&slot.lock().unwrap_or_else(PoisonError::into_inner));
            match work(&connection) {
                Err(NbdError::Lost(Lost::Closed | Lost::Io(_))) if tries < RETRIES => {
                    tries += 1;
                    self.replace(slot)?;
                }
                outcome => return outcome,
            }
        }
    }

    fn replace(&self, slot: &Mutex<Arc<Connection>>) -> Result<(), NbdError> {
        let mut current = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if !current.is_lost() {
            return Ok(());
        }
        let new = Connection::open(&self.uri, self.options.connect_timeout, self.options.reply_timeout)?;
        // The numbers of contexts may differ from connection to connection; the disk may not.
        if new.export.size_bytes != self.export.size_bytes {
            return Err(NbdError::Unusable("the disk has another size after connecting again"));
        }
        tracing::info!(uri = %self.uri, "connected to the NBD server again");
        *current = Arc::new(new);
        Ok(())
    }

    /// Reads a range that is aligned and lies in the export.
    fn read_aligned(&self, offset: u64, buffer: &mut [u8]) -> Result<(), NbdError> {
        let largest = self.export.maximum_payload.min(MAX_REQUEST_BYTES) / self.export.minimum_block;
        let largest = (largest * self.export.minimum_block) as usize;
        let answers = self.with_retry(|connection| {
            let mut tickets = Vec::new();
            for start in (0..buffer.len()).step_by(largest) {
                let part = largest.min(buffer.len() - start);
                let offset = offset + start as u64;
                let length = u32::try_from(part).expect("parts are short");
                let wanted = Wanted::Data { offset, buffer: vec![0; part] };
                tickets.push(connection.send(
                    Request { command: number::COMMAND_READ, offset, length },
                    wanted,
                    &[],
                )?);
            }
            tickets.into_iter().map(super::connection::Ticket::wait).collect::<Result<Vec<_>, _>>()
        })?;
        let mut rest = buffer;
        for answer in answers {
            let Answer::Data(data) = answer else { unreachable!("a read is answered with data") };
            let (part, after) = rest.split_at_mut(data.len());
            part.copy_from_slice(&data);
            rest = after;
        }
        Ok(())
    }

    fn status(&self, offset: u64, length: u32) -> Result<Option<Vec<(u32, u32)>>, NbdError> {
        self.with_retry(|connection| {
            let Some(context) = connection.export.allocation else { return Ok(None) };
            let request = Request { command: number::COMMAND_BLOCK_STATUS, offset, length };
            match connection.send(request, Wanted::Extents { context }, &[])?.wait()? {
                Answer::Extents(extents) => Ok(Some(extents)),
                _ => unreachable!("block status is answered with extents"),
            }
        })
    }
}

impl ForeignDisk for NbdDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), CaptureError> {
        check_range(offset, buffer.len() as u64, self.size_bytes)?;
        let block = u64::from(self.export.minimum_block);
        let end = (offset + buffer.len() as u64).min(self.export.size_bytes);
        let (first, last) = (offset / block * block, end.next_multiple_of(block).min(self.export.size_bytes));
        if first == offset && last == offset + buffer.len() as u64 {
            return Ok(self.read_aligned(offset, buffer)?);
        }
        // Not whole blocks of the server's, or the padding of an export that does not end with a sector.
        buffer.fill(0);
        if end > offset {
            let length = |bytes: u64| usize::try_from(bytes).expect("not longer than the buffer and two blocks");
            let mut wider = vec![0; length(last - first)];
            self.read_aligned(first, &mut wider)?;
            let skip = length(offset - first);
            buffer[..length(end - offset)].copy_from_slice(&wider[skip..skip + length(end - offset)]);
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<ForeignExtent>, CaptureError> {
        check_range(offset, length, self.size_bytes)?;
        let block = u64::from(self.export.minimum_block);
        let mut list = Vec::new();
        if offset >= self.export.size_bytes {
            push_extent(&mut list, length, true);
            return Ok(list);
        }
        let first = offset / block * block;
        let end = (offset + length).next_multiple_of(block).min(self.export.size_bytes).min(first + MAX_STATUS_BYTES);
        let asked = u32::try_from(end - first).expect("at most the longest status");
        let end = end.min(offset + length);
        let Some(extents) = self.status(first, asked)? else {
            push_extent(&mut list, end - offset, false);
            return Ok(list);
        };
        let mut position = first;
        for (length, state) in extents {
            let next = (position + u64::from(length)).min(end);
            push_extent(&mut list, next.saturating_sub(position.max(offset)), state & number::STATE_ZERO != 0);
            position = next;
        }
        if list.is_empty() {
            // The server told of less than the block that was asked about.
            push_extent(&mut list, end - offset, false);
        }
        Ok(list)
    }

    fn parallel_reads(&self) -> usize {
        2 * self.options.connections.max(1)
    }
}

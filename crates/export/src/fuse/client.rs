//! The front's connection to the node: many requests at a time, kept until they are answered.
//!
//! Invariant: every request is in the table of unanswered ones from before it is sent until its reply is complete. A
//! connection that is lost takes nothing with it: on the next one, everything in the table is sent again. Requests that were
//! done already are so done twice, which changes nothing: whoever waits for a write has no other one under way there whose
//! outcome was promised. Requests and their data are bounded together; who brings more waits.

use std::collections::BTreeMap;
use std::io::{self, BufReader, IoSlice, Read, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use capture::NbdError;
use capture::nbd::Lost;
use capture::nbd::handshake::{Export, negotiate};
use capture::nbd::reply::{Answer, Gathering, Header, Wanted};

use super::FrontError;
use crate::nbd::protocol::{
    self, NBD_CMD_DISC, NBD_CMD_READ, NBD_ESHUTDOWN, NBD_FLAG_READ_ONLY, REQUEST_BYTES, encode_request,
};

/// How much of requests and their data is kept at most, in bytes; one request may be larger.
const ROOM_BYTES: usize = 64 << 20;
/// What a request weighs beside its data, in bytes.
const REQUEST_WEIGHT: usize = 4096;
/// How much is received at once, in bytes.
const RECEIVE_BYTES: usize = 256 << 10;
/// How long the node may take to greet. One that recovers listens already, and answers when it is done.
const GREETING: Duration = Duration::from_mins(10);
/// How long the node may take to say how large the export is, where an older word of it will do.
const QUESTION: Duration = Duration::from_secs(5);
/// How long is waited before the node is looked for again: at first, and at most.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// What becomes of an answer; a failure is an error's number.
pub(super) type Reply = Box<dyn FnOnce(Result<Answer, i32>) + Send>;

/// What is asked.
#[derive(Debug)]
pub(super) struct Command {
    /// `NBD_CMD_*`.
    pub(super) command: u16,
    /// `NBD_CMD_FLAG_*`.
    pub(super) flags: u16,
    /// Where, in bytes.
    pub(super) offset: u64,
    /// How long, in bytes.
    pub(super) length: u32,
    /// The data of a write.
    pub(super) data: Vec<u8>,
}

impl Command {
    fn head(&self, cookie: u64) -> [u8; REQUEST_BYTES] {
        let Command { command, flags, offset, length, .. } = *self;
        encode_request(&protocol::Request { flags, command, cookie, offset, length })
    }

    fn gathering(&self, structured: bool) -> Gathering {
        let wanted = match self.command {
            NBD_CMD_READ => Wanted::Data { offset: self.offset, buffer: vec![0; self.length as usize] },
            _ => Wanted::Done,
        };
        Gathering::new(wanted, structured)
    }

    fn weight(&self) -> usize {
        let data = if self.command == NBD_CMD_READ { self.length as usize } else { self.data.len() };
        REQUEST_WEIGHT + data
    }
}

/// A request that was not answered yet.
struct Unanswered {
    command: Arc<Command>,
    /// The reply as far as it has come on the present connection.
    gathering: Option<Gathering>,
    reply: Reply,
}

#[derive(Default)]
struct Table {
    requests: BTreeMap<u64, Unanswered>,
    bytes: usize,
    next: u64,
}

struct Shared {
    socket: PathBuf,
    export: String,
    size_bytes: AtomicU64,
    table: Mutex<Table>,
    room: Condvar,
    /// The connection, where there is one. Held while a request is sent, so that requests do not mix.
    connection: Mutex<Option<Arc<UnixStream>>>,
}

/// The client of one export.
pub(super) struct Client {
    shared: Arc<Shared>,
    read_only: bool,
}

impl Client {
    /// Connects, and keeps connected for as long as this process lives.
    pub(super) fn connect(socket: &Path, export: &str) -> Result<Client, FrontError> {
        let (stream, agreed) = open(socket, export, GREETING).map_err(FrontError::Connect)?;
        let shared = Arc::new(Shared {
            socket: socket.to_owned(),
            export: export.to_owned(),
            size_bytes: AtomicU64::new(agreed.size_bytes),
            table: Mutex::default(),
            room: Condvar::new(),
            connection: Mutex::default(),
        });
        let receiving = Arc::clone(&shared);
        let receive = move || receiving.keep_connected((stream, agreed));
        std::thread::Builder::new().name("receive".to_owned()).spawn(receive).map_err(FrontError::Thread)?;
        Ok(Client { shared, read_only: agreed.flags & NBD_FLAG_READ_ONLY != 0 })
    }

    /// Whether writes are refused.
    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// The size as it was last heard, in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.shared.size_bytes.load(Ordering::Acquire)
    }

    /// Asks the node how large the export is; a node that does not answer leaves what was last heard.
    pub(super) fn ask_size(&self) -> u64 {
        match open(&self.shared.socket, &self.shared.export, QUESTION) {
            Ok((stream, agreed)) => {
                self.shared.size_bytes.store(agreed.size_bytes, Ordering::Release);
                let goodbye = Command { command: NBD_CMD_DISC, flags: 0, offset: 0, length: 0, data: Vec::new() };
                if let Err(error) = send(&stream, 0, &goodbye) {
                    tracing::trace!(%error, "the node did not hear the goodbye");
                }
            }
            Err(error) => tracing::debug!(%error, "the node does not say how large the export is"),
        }
        self.size_bytes()
    }

    /// Sends a request; where the node is not there, it is sent when it is. Waits while too much is unanswered.
    pub(super) fn submit(&self, command: Command, reply: Reply) {
        self.shared.wait_for_room(command.weight());
        let command = Arc::new(command);
        // From here to the end nobody else sends, and no new connection comes about.
        let connection = self.shared.connection();
        let cookie = self.shared.keep(Arc::clone(&command), reply);
        if let Some(stream) = &*connection
            && let Err(error) = send(stream, cookie, &command)
        {
            tracing::debug!(%error, "a request could not be sent");
            close(stream);
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection(&self) -> MutexGuard<'_, Option<Arc<UnixStream>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_room(&self, bytes: usize) {
        let mut table = self.table();
        while table.bytes > 0 && table.bytes + bytes > ROOM_BYTES {
            table = self.room.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        table.bytes += bytes;
    }

    /// Enters a request in the table.
    fn keep(&self, command: Arc<Command>, reply: Reply) -> u64 {
        let mut table = self.table();
        let cookie = table.next;
        table.next += 1;
        table.requests.insert(cookie, Unanswered { command, gathering: None, reply });
        cookie
    }

    /// Receives replies from one connection after the other, for ever.
    fn keep_connected(&self, first: (UnixStream, Export)) {
        let _watched = Indispensable;
        let mut next = Some(first);
        loop {
            let (stream, agreed) = next.take().unwrap_or_else(|| self.connect_again());
            self.size_bytes.store(agreed.size_bytes, Ordering::Release);
            let stream = Arc::new(stream);
            // Sent by another thread: a node that answers before it has received everything must be listened to.
            let lost = std::thread::scope(|scope| {
                scope.spawn(|| self.send_again(&stream));
                let lost = self.receive(&stream, agreed.structured);
                close(&stream);
                lost
            });
            *self.connection() = None;
            tracing::warn!(reason = %lost, unanswered = self.table().requests.len(), "the node is gone: waiting for it");
        }
    }

    /// Sends everything that was not answered, and lets others send from then on.
    fn send_again(&self, stream: &Arc<UnixStream>) {
        let mut connection = self.connection();
        let unanswered: Vec<(u64, Arc<Command>)> = {
            let mut table = self.table();
            let again = |(cookie, request): (&u64, &mut Unanswered)| {
                request.gathering = None;
                (*cookie, Arc::clone(&request.command))
            };
            table.requests.iter_mut().map(again).collect()
        };
        for (cookie, command) in unanswered {
            if let Err(error) = send(stream, cookie, &command) {
                tracing::debug!(%error, "a request could not be sent again");
                return close(stream);
            }
        }
        *connection = Some(Arc::clone(stream));
    }

    fn connect_again(&self) -> (UnixStream, Export) {
        let mut rest = LOOK_AGAIN.0;
        loop {
            match open(&self.socket, &self.export, GREETING) {
                Ok(found) => {
                    tracing::info!("the node is back");
                    return found;
                }
                Err(error) => tracing::debug!(%error, "the node is not there"),
            }
            std::thread::sleep(rest);
            rest = (rest * 2).min(LOOK_AGAIN.1);
        }
    }

    fn receive(&self, stream: &UnixStream, structured: bool) -> Lost {
        let mut stream = BufReader::with_capacity(RECEIVE_BYTES, stream);
        loop {
            if let Err(lost) = self.receive_one(&mut stream, structured) {
                return lost;
            }
        }
    }

    /// Receives one reply, or a part of one. A request whose reply does not come as it should stays in the table.
    fn receive_one(&self, stream: &mut impl Read, structured: bool) -> Result<(), Lost> {
        let header = Header::read(stream)?;
        let cookie = header.cookie();
        let request = self.table().requests.remove(&cookie);
        let mut request = request.ok_or(Lost::Protocol("a reply to nothing"))?;
        let mut gathering = request.gathering.take().unwrap_or_else(|| request.command.gathering(structured));
        let outcome = match gathering.take(&header, stream) {
            Ok(true) => gathering.finish(),
            Ok(false) => {
                request.gathering = Some(gathering);
                self.table().requests.insert(cookie, request);
                return Ok(());
            }
            Err(lost) => Err(lost),
        };
        let answer = match outcome {
            Ok(Ok(answer)) => Ok(answer),
            // The node ends: who comes after it will do it.
            Ok(Err(failure)) if failure.error == NBD_ESHUTDOWN => {
                self.table().requests.insert(cookie, request);
                return Err(Lost::Closed);
            }
            Ok(Err(failure)) => Err(i32::try_from(failure.error).unwrap_or(i32::MAX)),
            Err(lost) => {
                self.table().requests.insert(cookie, request);
                return Err(lost);
            }
        };
        let weight = request.command.weight();
        (request.reply)(answer);
        self.table().bytes -= weight;
        self.room.notify_all();
        Ok(())
    }
}

/// What a thread holds without which the process is of no use: requests would wait for ever.
struct Indispensable;

impl Drop for Indispensable {
    fn drop(&mut self) {
        // It is dropped only by a panic.
        std::process::abort();
    }
}

/// Connects and agrees with the node, which may take for so long.
fn open(socket: &Path, export: &str, patience: Duration) -> Result<(UnixStream, Export), NbdError> {
    let failed = |source| NbdError::Connect { address: socket.display().to_string(), source };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(patience)).map_err(failed)?;
    let agreed = negotiate(&mut stream, export)?;
    stream.set_read_timeout(None).map_err(failed)?;
    Ok((stream, agreed))
}

/// Ends a connection, which its receiver notices.
fn close(stream: &UnixStream) {
    if let Err(error) = stream.shutdown(Shutdown::Both) {
        tracing::trace!(%error, "a connection was closed already");
    }
}

/// Sends a request, in one system call where the socket takes it.
fn send(mut stream: &UnixStream, cookie: u64, command: &Command) -> io::Result<()> {
    let head = command.head(cookie);
    let mut sent = 0;
    while sent < head.len() {
        match stream.write_vectored(&[IoSlice::new(&head[sent..]), IoSlice::new(&command.data)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.write_all(&command.data[sent - head.len()..])
}

#[cfg(test)]
mod tests;

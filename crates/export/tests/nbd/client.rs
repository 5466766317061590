//! A client that says exactly what a test tells it to, and a server to say it to.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use export::nbd::option::{NBD_OPT_GO, NBD_OPT_SET_META_CONTEXT, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK};
use export::nbd::protocol::{
    IHAVEOPT, NBD_REP_MAGIC, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC, NBDMAGIC, Request, encode_request,
};
use export::nbd::state::ServerState;
use export::{Listen, NbdOptions, NbdServer, SingleExport, Suspended};
use volume::BlockDevice;

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until something holds.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A server of one disk named `disk`, on a unix socket of its own.
pub(crate) struct Server {
    server: Option<NbdServer>,
    device: Arc<dyn BlockDevice>,
    directory: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn of(disk: &Arc<impl BlockDevice + 'static>) -> Server {
        Server::with(disk, NbdOptions::default())
    }

    pub(crate) fn with(disk: &Arc<impl BlockDevice + 'static>, options: NbdOptions) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let device = Arc::clone(disk) as Arc<dyn BlockDevice>;
        let server = NbdServer::start(
            Listen::Unix(directory.path().join("socket")),
            Arc::new(SingleExport::new("disk", Arc::clone(&device))),
            runtime.handle().clone(),
            options,
        );
        Server { server: Some(server.unwrap()), device, directory, runtime }
    }

    /// Suspends the server, and tells of it as another process would be told.
    pub(crate) fn suspend(&mut self) -> Option<Suspended> {
        self.suspend_within(PATIENCE)
    }

    /// Suspends the server; where a request takes longer than `patience`, it goes on.
    pub(crate) fn suspend_within(&mut self, patience: Duration) -> Option<Suspended> {
        let (state, sockets) = match self.server.take().unwrap().suspend(patience) {
            Ok(suspended) => suspended.into_parts(),
            Err(server) => {
                self.server = Some(server);
                return None;
            }
        };
        let told: ServerState = minicbor::decode(&minicbor::to_vec(&state).unwrap()).unwrap();
        assert_eq!(told, state);
        Some(Suspended::from_parts(told, sockets).unwrap())
    }

    /// Goes on with a suspended server.
    pub(crate) fn resume(&mut self, suspended: Suspended) {
        let exports = Arc::new(SingleExport::new("disk", Arc::clone(&self.device)));
        let server = NbdServer::resume(suspended, exports, self.runtime.handle().clone(), NbdOptions::default());
        self.server = Some(server.unwrap());
    }

    /// Hands all connections over to another server of the same disk.
    pub(crate) fn hand_over(&mut self) {
        let suspended = self.suspend().expect("nothing takes long here");
        self.resume(suspended);
    }

    pub(crate) fn nbd(&self) -> &NbdServer {
        self.server.as_ref().unwrap()
    }

    pub(crate) fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn uri(&self) -> String {
        self.nbd().uri("disk")
    }

    pub(crate) fn stop(&mut self, grace: Duration) {
        self.server.take().unwrap().stop(grace);
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, structured: false, next: 0 }
    }

    /// A client of a connection that needed no handshake, with simple replies.
    pub(crate) fn direct(&self) -> Client {
        let stream = self.nbd().direct("disk").connect().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream, structured: false, next: 0 }
    }

    /// A client in transmission, with structured replies and all contexts.
    pub(crate) fn structured(&self) -> Client {
        let mut client = self.connect();
        client.greet();
        client.structured_replies();
        client.contexts(&["base:allocation", "brant:state", "qemu:allocation-depth"]);
        client.go();
        client
    }

    /// A client in transmission, with simple replies.
    pub(crate) fn simple(&self) -> Client {
        let mut client = self.connect();
        client.greet();
        client.go();
        client
    }
}

/// An option's reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) option: u32,
    pub(crate) reply: u32,
    pub(crate) data: Vec<u8>,
}

/// A request's reply, whole.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    pub(crate) error: u32,
    pub(crate) message: String,
    /// Content chunks: offset, data, and whether they came as a hole. A simple reply has none.
    pub(crate) chunks: Vec<(u64, Vec<u8>, bool)>,
    /// Block status: context id and (length, status).
    pub(crate) status: Vec<(u32, Vec<(u32, u32)>)>,
}

impl Reply {
    /// A read's data, put together.
    pub(crate) fn data(&self, offset: u64, length: usize) -> Vec<u8> {
        assert_eq!(self.error, 0, "{}", self.message);
        let mut data = vec![0xDD; length];
        let mut covered = 0;
        for (at, bytes, _) in &self.chunks {
            let start = usize::try_from(at - offset).unwrap();
            data[start..start + bytes.len()].copy_from_slice(bytes);
            covered += bytes.len();
        }
        assert_eq!(covered, length, "the chunks do not cover the request");
        data
    }
}

pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    pub(crate) structured: bool,
    next: u64,
}

impl Client {
    pub(crate) fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    fn receive_bytes(&mut self, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.stream.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.receive())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.receive())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.receive())
    }

    /// Takes the greeting and answers it.
    pub(crate) fn greet(&mut self) {
        assert_eq!((self.u64(), self.u64(), self.u16()), (NBDMAGIC, IHAVEOPT, 3));
        self.stream.write_all(&3_u32.to_be_bytes()).unwrap();
    }

    pub(crate) fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends an option and takes all its replies.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.u64(), NBD_REP_MAGIC);
            let (option, reply, length) = (self.u32(), self.u32(), self.u32());
            let data = self.receive_bytes(length);
            replies.push(OptionReply { option, reply, data });
            if reply == NBD_REP_ACK || reply & (1 << 31) != 0 {
                return replies;
            }
        }
    }

    pub(crate) fn structured_replies(&mut self) {
        assert_eq!(self.option(NBD_OPT_STRUCTURED_REPLY, &[])[0].reply, NBD_REP_ACK);
        self.structured = true;
    }

    pub(crate) fn contexts(&mut self, names: &[&str]) -> Vec<OptionReply> {
        self.option(NBD_OPT_SET_META_CONTEXT, &contexts_data("disk", names))
    }

    pub(crate) fn go(&mut self) -> Vec<OptionReply> {
        let replies = self.option(NBD_OPT_GO, &info_data("disk", &[]));
        assert_eq!(replies.last().unwrap().reply, NBD_REP_ACK);
        replies
    }

    /// Sends a request with a new cookie, which is returned.
    pub(crate) fn send(&mut self, command: u16, flags: u16, offset: u64, length: u32, payload: &[u8]) -> u64 {
        self.next += 1;
        let request = Request { flags, command, cookie: self.next, offset, length };
        let bytes = [encode_request(&request).as_slice(), payload].concat();
        self.stream.write_all(&bytes).unwrap();
        self.next
    }

    /// Sends writes with their flags in one piece, and returns their cookies.
    pub(crate) fn send_writes(&mut self, writes: &[(u16, u64, Vec<u8>)]) -> Vec<u64> {
        let mut bytes = Vec::new();
        let mut cookies = Vec::new();
        for (flags, offset, data) in writes {
            self.next += 1;
            let length = u32::try_from(data.len()).unwrap();
            let request = Request { flags: *flags, command: 1, cookie: self.next, offset: *offset, length };
            bytes.extend(encode_request(&request));
            bytes.extend(data);
            cookies.push(self.next);
        }
        self.stream.write_all(&bytes).unwrap();
        cookies
    }

    /// Sends a request and takes the next reply, which must be its own. `reading` is how much a simple reply brings.
    pub(crate) fn ask(&mut self, command: u16, flags: u16, offset: u64, length: u32, payload: &[u8]) -> Reply {
        let cookie = self.send(command, flags, offset, length, payload);
        let reading = if command == 0 { length } else { 0 };
        let reply = self.reply(offset, reading);
        assert_eq!(reply.cookie, cookie, "another request was answered");
        reply
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        self.ask(0, 0, offset, length, &[]).data(offset, length as usize)
    }

    pub(crate) fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> Reply {
        self.ask(1, flags, offset, u32::try_from(data.len()).unwrap(), data)
    }

    /// Takes the next reply; `offset` and `reading` tell what a simple one would bring.
    pub(crate) fn reply(&mut self, offset: u64, reading: u32) -> Reply {
        let mut reply = Reply::default();
        loop {
            let magic = self.u32();
            if magic == NBD_SIMPLE_REPLY_MAGIC {
                reply.error = self.u32();
                reply.cookie = self.u64();
                if reply.error == 0 && reading > 0 {
                    assert!(!self.structured, "a read must be answered by a structured reply");
                    let data = self.receive_bytes(reading);
                    reply.chunks.push((offset, data, false));
                }
                return reply;
            }
            assert_eq!(magic, NBD_STRUCTURED_REPLY_MAGIC);
            assert!(self.structured, "structured replies were not negotiated");
            if self.chunk(&mut reply) {
                return reply;
            }
        }
    }

    fn chunk(&mut self, reply: &mut Reply) -> bool {
        let (flags, kind, cookie, length) = (self.u16(), self.u16(), self.u64(), self.u32());
        reply.cookie = cookie;
        match kind {
            NBD_REPLY_TYPE_OFFSET_DATA => {
                let offset = self.u64();
                let data = self.receive_bytes(length - 8);
                reply.chunks.push((offset, data, false));
            }
            NBD_REPLY_TYPE_OFFSET_HOLE => {
                assert_eq!(length, 12);
                let (offset, length) = (self.u64(), self.u32());
                reply.chunks.push((offset, vec![0; length as usize], true));
            }
            NBD_REPLY_TYPE_ERROR => {
                reply.error = self.u32();
                let message = u32::from(self.u16());
                assert_eq!(length, message + 6);
                reply.message = String::from_utf8(self.receive_bytes(message)).unwrap();
            }
            5 => {
                let context = self.u32();
                let extents = (0..(length - 4) / 8).map(|_| (self.u32(), self.u32())).collect();
                reply.status.push((context, extents));
            }
            other => panic!("chunk of unknown kind {other}"),
        }
        flags & NBD_REPLY_FLAG_DONE != 0
    }

    /// Whether the server has ended the connection.
    pub(crate) fn ended(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(length) => length == 0,
            Err(error) => matches!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

/// The data of `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub(crate) fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

/// The data of the options for metadata contexts.
pub(crate) fn contexts_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| data.extend(string(query)));
    data
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

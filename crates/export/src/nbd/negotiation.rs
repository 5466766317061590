//! The handshake: greeting, options, and what they agree on.
//!
//! A client may ask as much as it likes within a time limit; each option's data are bounded. What is not understood is
//! answered and passed over, so that the next option can be understood; only a stream out of step, an unknown client
//! flag, or a failed `NBD_OPT_EXPORT_NAME` (which has no error reply) ends the connection.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volume::BlockDevice;

use super::context::{Context, chosen, listed};
use super::link::Link;
use super::option::{
    NBD_INFO_BLOCK_SIZE, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_GO, NBD_OPT_INFO,
    NBD_OPT_LIST, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY,
    NBD_REP_ACK, NBD_REP_ERR_INVALID, NBD_REP_ERR_TLS_REQD, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNKNOWN,
    NBD_REP_ERR_UNSUP, NBD_REP_INFO, NBD_REP_META_CONTEXT, NBD_REP_SERVER, OPTION_HEADER_BYTES, OptionError,
    OptionHeader, decode_export_name, decode_info, decode_meta_context, decode_option_header,
    encode_option_reply_header,
};
use super::protocol::{
    IHAVEOPT, MAXIMUM_PAYLOAD_BYTES, MINIMUM_BLOCK_BYTES, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES,
    NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_HAS_FLAGS, NBD_FLAG_NO_ZEROES, NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_CACHE, NBD_FLAG_SEND_DF, NBD_FLAG_SEND_FAST_ZERO, NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_FUA,
    NBD_FLAG_SEND_TRIM, NBD_FLAG_SEND_WRITE_ZEROES, NBDMAGIC, PREFERRED_BLOCK_BYTES,
};
use super::refusal::with_reasons;
use super::tls::Tls;
use super::transmission::Terms;
use crate::exports::Exports;

/// The most data that an option may have; larger ones are passed over.
const OPTION_BYTES: u32 = 64 << 10;
/// Zeroes after the reply to `NBD_OPT_EXPORT_NAME`, for clients that have not asked to leave them out.
const PADDING_BYTES: usize = 124;

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NegotiationError {
    /// The socket failed, or the client left or was too slow.
    #[error("the handshake broke off")]
    Io(#[from] io::Error),
    /// The client set flags that do not exist.
    #[error("client flags {0:#x} are not known")]
    UnknownFlags(u32),
    /// The stream is out of step, or an option without error replies makes no sense.
    #[error("the client's option makes no sense")]
    Option(#[from] OptionError),
    /// The client asked for what there is not, in the way that has no error reply.
    #[error("there is no export {0:?}")]
    UnknownExport(String),
    /// The client chose an export without TLS, in the way that has no error reply.
    #[error("exports are served with TLS only")]
    TlsRequired,
}

/// What a handshake came to.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) terms: Terms,
}

/// What happens after an option.
enum Next {
    Haggle,
    Transmit(Agreed),
    End,
}

/// One handshake.
pub(crate) struct Negotiation<'a> {
    pub(crate) link: &'a Link,
    pub(crate) exports: &'a dyn Exports,
    /// Told of the export's name before the export is opened.
    pub(crate) chosen: &'a dyn Fn(&str),
    pub(crate) deadline: Instant,
    /// How TLS is used, if it is.
    tls: Option<&'a Tls>,
    structured: bool,
    contexts: Vec<Context>,
    /// The export that the contexts were chosen for.
    contexts_of: String,
    zeroes: bool,
}

impl<'a> Negotiation<'a> {
    pub(crate) fn new(
        link: &'a Link,
        exports: &'a dyn Exports,
        chosen: &'a dyn Fn(&str),
        time: Duration,
        tls: Option<&'a Tls>,
    ) -> Negotiation<'a> {
        let deadline = Instant::now() + time;
        let (contexts, contexts_of) = (Vec::new(), String::new());
        Negotiation { link, exports, chosen, deadline, tls, structured: false, contexts, contexts_of, zeroes: true }
    }

    /// Haggles until an export is chosen; `None` if the client ended it politely.
    pub(crate) fn run(mut self) -> Result<Option<Agreed>, NegotiationError> {
        self.greet()?;
        loop {
            self.link.set_timeout(Some(self.time_left()?))?;
            let mut header = [0; OPTION_HEADER_BYTES];
            self.link.receive_exact(&mut header)?;
            let header = decode_option_header(&header)?;
            let next = match self.data(&header)? {
                Some(data) => self.option(header.option, &data)?,
                None => Next::Haggle,
            };
            match next {
                Next::Haggle => {}
                Next::End => return Ok(None),
                Next::Transmit(agreed) => {
                    self.link.set_timeout(None)?;
                    return Ok(Some(agreed));
                }
            }
        }
    }

    fn time_left(&self) -> Result<Duration, io::Error> {
        time_until(self.deadline)
    }

    fn greet(&mut self) -> Result<(), NegotiationError> {
        self.link.set_timeout(Some(self.time_left()?))?;
        let mut greeting = Vec::with_capacity(18);
        greeting.extend(NBDMAGIC.to_be_bytes());
        greeting.extend(IHAVEOPT.to_be_bytes());
        greeting.extend((NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
        self.link.send(&greeting)?;
        let mut flags = [0; 4];
        self.link.receive_exact(&mut flags)?;
        let flags = u32::from_be_bytes(flags);
        let unknown = flags & !(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
        if unknown != 0 {
            return Err(NegotiationError::UnknownFlags(unknown));
        }
        self.zeroes = flags & NBD_FLAG_C_NO_ZEROES == 0;
        Ok(())
    }

    /// An option's data; `None` if they are too long and were passed over.
    fn data(&self, header: &OptionHeader) -> Result<Option<Vec<u8>>, NegotiationError> {
        let fits = header.length <= OPTION_BYTES;
        let mut data = vec![0; header.length.min(OPTION_BYTES) as usize];
        if fits {
            self.link.receive_exact(&mut data)?;
            return Ok(Some(data));
        }
        let mut left = header.length as usize;
        while left > 0 {
            self.link.set_timeout(Some(self.time_left()?))?;
            let length = data.len().min(left);
            self.link.receive_exact(&mut data[..length])?;
            left -= length;
        }
        self.error(header.option, NBD_REP_ERR_TOO_BIG, "the option is too long")?;
        Ok(None)
    }

    fn option(&mut self, option: u32, data: &[u8]) -> Result<Next, NegotiationError> {
        let plain = !self.link.encrypted();
        match option {
            NBD_OPT_EXPORT_NAME if plain && self.requires_tls() => return Err(NegotiationError::TlsRequired),
            NBD_OPT_EXPORT_NAME => return self.export_name(data),
            NBD_OPT_ABORT => {
                // The client may have left already.
                let _ = self.reply(option, NBD_REP_ACK, &[]);
                return Ok(Next::End);
            }
            NBD_OPT_STARTTLS => self.start_tls(option, data)?,
            _ if plain && self.requires_tls() => {
                self.error(option, NBD_REP_ERR_TLS_REQD, "exports are served with TLS only")?;
            }
            NBD_OPT_INFO | NBD_OPT_GO => return self.info(option, data),
            NBD_OPT_LIST if data.is_empty() => self.list(option)?,
            NBD_OPT_STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(option, NBD_REP_ACK, &[])?;
            }
            NBD_OPT_LIST | NBD_OPT_STRUCTURED_REPLY => {
                self.error(option, NBD_REP_ERR_INVALID, "the option has no data")?;
            }
            NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => self.meta_context(option, data)?,
            unknown => self.error(option, NBD_REP_ERR_UNSUP, &format!("option {unknown} is not known"))?,
        }
        Ok(Next::Haggle)
    }

    fn requires_tls(&self) -> bool {
        self.tls.is_some_and(Tls::required)
    }

    /// Begins TLS, and forgets what was agreed on without.
    fn start_tls(&mut self, option: u32, data: &[u8]) -> Result<(), NegotiationError> {
        if !data.is_empty() || self.link.encrypted() {
            self.error(option, NBD_REP_ERR_INVALID, "TLS is begun once, and the option has no data")?;
            return Ok(());
        }
        let Some(tls) = self.tls else {
            self.error(option, NBD_REP_ERR_UNSUP, "TLS is not available here")?;
            return Ok(());
        };
        let config = match tls.load() {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(error = with_reasons(&error), "a client is refused TLS");
                self.error(option, NBD_REP_ERR_UNSUP, "TLS cannot be used at this moment")?;
                return Ok(());
            }
        };
        self.reply(option, NBD_REP_ACK, &[])?;
        let (link, deadline) = (self.link, self.deadline);
        link.begin_tls(config, || link.set_timeout(Some(time_until(deadline)?)))?;
        self.structured = false;
        self.contexts.clear();
        Ok(())
    }

    fn list(&self, option: u32) -> io::Result<()> {
        for name in self.exports.list() {
            let mut data = Vec::with_capacity(4 + name.len());
            data.extend(length_of(name.len()).to_be_bytes());
            data.extend(name.as_bytes());
            self.reply(option, NBD_REP_SERVER, &data)?;
        }
        self.reply(option, NBD_REP_ACK, &[])
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Next, NegotiationError> {
        let name = decode_export_name(data)?;
        let Some(device) = self.open(&name) else { return Err(NegotiationError::UnknownExport(name)) };
        let mut reply = Vec::with_capacity(10 + PADDING_BYTES);
        reply.extend(device.size_bytes().to_be_bytes());
        reply.extend(transmission_flags(&*device, self.structured).to_be_bytes());
        if self.zeroes {
            reply.extend([0; PADDING_BYTES]);
        }
        self.link.send(&reply)?;
        Ok(Next::Transmit(self.agree(&name, device)))
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Result<Next, NegotiationError> {
        let request = match decode_info(data) {
            Ok(request) => request,
            Err(error) => {
                self.error(option, NBD_REP_ERR_INVALID, &error.to_string())?;
                return Ok(Next::Haggle);
            }
        };
        let go = option == NBD_OPT_GO;
        let device = if go { self.open(&request.name) } else { self.exports.open(&request.name) };
        let Some(device) = device else {
            self.error(option, NBD_REP_ERR_UNKNOWN, &format!("there is no export {:?}", request.name))?;
            return Ok(Next::Haggle);
        };
        let mut export = Vec::with_capacity(12);
        export.extend(NBD_INFO_EXPORT.to_be_bytes());
        export.extend(device.size_bytes().to_be_bytes());
        export.extend(transmission_flags(&*device, self.structured).to_be_bytes());
        self.reply(option, NBD_REP_INFO, &export)?;
        let mut sizes = Vec::with_capacity(14);
        sizes.extend(NBD_INFO_BLOCK_SIZE.to_be_bytes());
        sizes.extend(MINIMUM_BLOCK_BYTES.to_be_bytes());
        sizes.extend(PREFERRED_BLOCK_BYTES.to_be_bytes());
        sizes.extend(MAXIMUM_PAYLOAD_BYTES.to_be_bytes());
        self.reply(option, NBD_REP_INFO, &sizes)?;
        if request.wanted.contains(&NBD_INFO_NAME) {
            let mut name = NBD_INFO_NAME.to_be_bytes().to_vec();
            name.extend(self.exports.resolve(&request.name).as_bytes());
            self.reply(option, NBD_REP_INFO, &name)?;
        }
        self.reply(option, NBD_REP_ACK, &[])?;
        Ok(if go { Next::Transmit(self.agree(&request.name, device)) } else { Next::Haggle })
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<(), NegotiationError> {
        let setting = option == NBD_OPT_SET_META_CONTEXT;
        if setting {
            self.contexts.clear();
        }
        if !self.structured {
            self.error(option, NBD_REP_ERR_INVALID, "structured replies come first")?;
            return Ok(());
        }
        let request = match decode_meta_context(data) {
            Ok(request) => request,
            Err(error) => {
                self.error(option, NBD_REP_ERR_INVALID, &error.to_string())?;
                return Ok(());
            }
        };
        if self.exports.open(&request.name).is_none() {
            self.error(option, NBD_REP_ERR_UNKNOWN, &format!("there is no export {:?}", request.name))?;
            return Ok(());
        }
        let mut found: Vec<Context> = match (setting, request.queries.is_empty()) {
            (true, _) => request.queries.iter().filter_map(|query| chosen(query)).collect(),
            (false, true) => Context::ALL.to_vec(),
            (false, false) => request.queries.iter().flat_map(|query| listed(query)).collect(),
        };
        found.sort_unstable();
        found.dedup();
        for context in &found {
            let id = if setting { context.id() } else { 0 };
            let mut data = id.to_be_bytes().to_vec();
            data.extend(context.name().as_bytes());
            self.reply(option, NBD_REP_META_CONTEXT, &data)?;
        }
        self.reply(option, NBD_REP_ACK, &[])?;
        if setting {
            self.contexts = found;
            self.contexts_of = request.name;
        }
        Ok(())
    }

    /// Opens an export for transmission, after it was told which one it will be.
    fn open(&self, name: &str) -> Option<Arc<dyn BlockDevice>> {
        (self.chosen)(self.exports.resolve(name));
        self.exports.open(name)
    }

    fn agree(&mut self, name: &str, device: Arc<dyn BlockDevice>) -> Agreed {
        let contexts = if self.contexts_of == name { std::mem::take(&mut self.contexts) } else { Vec::new() };
        Agreed { device, terms: Terms { structured: self.structured, contexts } }
    }

    fn error(&self, option: u32, reply: u32, message: &str) -> io::Result<()> {
        self.reply(option, reply, message.as_bytes())
    }

    fn reply(&self, option: u32, reply: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = encode_option_reply_header(option, reply, length_of(data.len())).to_vec();
        bytes.extend(data);
        self.link.send(&bytes)
    }
}

/// What a client is told of an export.
pub(super) fn transmission_flags(device: &dyn BlockDevice, structured: bool) -> u16 {
    let mut flags =
        NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE | NBD_FLAG_CAN_MULTI_CONN;
    if device.read_only() {
        flags |= NBD_FLAG_READ_ONLY;
    } else {
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    }
    if structured {
        flags |= NBD_FLAG_SEND_DF;
    }
    flags
}

fn time_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The length of a reply's data.
fn length_of(length: usize) -> u32 {
    u32::try_from(length).expect("names and messages are short")
}

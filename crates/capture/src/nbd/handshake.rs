//! The negotiation that precedes requests: fixed newstyle, over anything that can be read and written.

use std::io::{self, Read, Write};

use types::MAX_DISK_BYTES;

use super::{Lost, NbdError, number};

/// What the two sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    /// The size, in bytes.
    pub size_bytes: u64,
    /// The transmission flags.
    pub flags: u16,
    /// Requests must be aligned to this many bytes: a power of two, at most 64 KiB.
    pub minimum_block: u32,
    /// The longest read or write, in bytes.
    pub maximum_payload: u32,
    /// Whether replies are structured.
    pub structured: bool,
    /// The number of the context `base:allocation`, where block status can be asked for.
    pub allocation: Option<u32>,
}

/// The longest read or write that every server takes, in bytes.
const DEFAULT_MAXIMUM_PAYLOAD: u32 = 32 << 20;

/// The longest reply to an option, in bytes: names and messages are at most 4096.
const MAX_REPLY_BYTES: u32 = 16 << 10;

/// The most replies to one option: a server that goes on for ever is given up.
const MAX_REPLIES: usize = 64;

const CONTEXT: &[u8] = b"base:allocation";

/// Negotiates the use of an export.
///
/// # Errors
/// See [`NbdError`]; the connection is of no use then.
pub fn negotiate<S: Read + Write>(stream: &mut S, name: &str) -> Result<Export, NbdError> {
    if u64::from_be_bytes(read(stream)?) != number::MAGIC {
        return Err(NbdError::Unusable("it does not greet as one"));
    }
    if u64::from_be_bytes(read(stream)?) != number::OPTION_MAGIC {
        return Err(NbdError::Unusable("it speaks the oldstyle protocol only"));
    }
    let flags = u16::from_be_bytes(read(stream)?);
    if flags & number::FLAG_FIXED_NEWSTYLE == 0 {
        return Err(NbdError::Unusable("it does not speak the fixed newstyle protocol"));
    }
    let flags = flags & (number::FLAG_FIXED_NEWSTYLE | number::FLAG_NO_ZEROES);
    send(stream, &u32::from(flags).to_be_bytes())?;

    let mut negotiation = Negotiation { stream, name };
    let structured = negotiation.structured_replies()?;
    let allocation = if structured { negotiation.allocation()? } else { None };
    let export = match negotiation.go()? {
        Some(export) => Export { structured, allocation, ..export },
        None => {
            let export = negotiation.export_name(flags & number::FLAG_NO_ZEROES != 0)?;
            Export { structured, ..export }
        }
    };
    if export.size_bytes == 0 || export.size_bytes > MAX_DISK_BYTES {
        return Err(NbdError::Unusable("the export is empty, or larger than a disk can be"));
    }
    Ok(export)
}

struct Negotiation<'s, S> {
    stream: &'s mut S,
    name: &'s str,
}

struct OptionReply {
    kind: u32,
    data: Vec<u8>,
}

impl<S: Read + Write> Negotiation<'_, S> {
    fn structured_replies(&mut self) -> Result<bool, NbdError> {
        self.ask(number::OPTION_STRUCTURED_REPLY, &[])?;
        let reply = self.reply(number::OPTION_STRUCTURED_REPLY)?;
        match reply.kind {
            number::REPLY_ACK => Ok(true),
            kind if kind & number::REPLY_ERROR != 0 && kind != number::REPLY_ERROR_TLS_REQUIRED => Ok(false),
            _ => Err(self.refusal(&reply)),
        }
    }

    fn allocation(&mut self) -> Result<Option<u32>, NbdError> {
        let data = [&sized(self.name.as_bytes())[..], &1_u32.to_be_bytes(), &sized(CONTEXT)].concat();
        self.ask(number::OPTION_SET_META_CONTEXT, &data)?;
        let mut context = None;
        for _ in 0..MAX_REPLIES {
            let reply = self.reply(number::OPTION_SET_META_CONTEXT)?;
            match reply.kind {
                number::REPLY_ACK => return Ok(context),
                number::REPLY_META_CONTEXT => {
                    let (id, name) = reply.data.split_first_chunk().ok_or(Lost::Protocol("a short context"))?;
                    if name == CONTEXT {
                        context = Some(u32::from_be_bytes(*id));
                    }
                }
                kind if kind & number::REPLY_ERROR != 0 => return Ok(None),
                _ => return Err(Lost::Protocol("an unknown answer about contexts").into()),
            }
        }
        Err(Lost::Protocol("endless answers about contexts").into())
    }

    /// Asks to use the export; `None` where the server does not know this way of asking.
    fn go(&mut self) -> Result<Option<Export>, NbdError> {
        let wishes = [1_u16.to_be_bytes(), number::INFO_BLOCK_SIZE.to_be_bytes()].concat();
        self.ask(number::OPTION_GO, &[sized(self.name.as_bytes()), wishes].concat())?;
        let mut size = None;
        let mut blocks = (1, DEFAULT_MAXIMUM_PAYLOAD);
        for _ in 0..MAX_REPLIES {
            let reply = self.reply(number::OPTION_GO)?;
            match reply.kind {
                number::REPLY_ACK => {
                    let (size_bytes, flags) = size.ok_or(Lost::Protocol("no word of the export's size"))?;
                    return Ok(Some(export(size_bytes, flags, blocks)));
                }
                number::REPLY_INFO => match info(&reply.data)? {
                    Info::Export { size_bytes, flags } => size = Some((size_bytes, flags)),
                    Info::Blocks { minimum, maximum } => blocks = (minimum, maximum),
                    Info::Other => {}
                },
                number::REPLY_ERROR_UNSUPPORTED => return Ok(None),
                _ => return Err(self.refusal(&reply)),
            }
        }
        Err(Lost::Protocol("endless information about the export").into())
    }

    /// The older way of asking, to which a server that does not have the export answers by closing the connection.
    fn export_name(&mut self, no_zeroes: bool) -> Result<Export, NbdError> {
        let head = [&number::OPTION_MAGIC.to_be_bytes()[..], &number::OPTION_EXPORT_NAME.to_be_bytes()].concat();
        send(self.stream, &[head, sized(self.name.as_bytes())].concat())?;
        let size_bytes = match read(self.stream) {
            Ok(bytes) => u64::from_be_bytes(bytes),
            Err(Lost::Closed) => {
                return Err(NbdError::NoSuchExport { name: self.name.to_owned(), message: String::new() });
            }
            Err(lost) => return Err(lost.into()),
        };
        let flags = u16::from_be_bytes(read(self.stream)?);
        if !no_zeroes {
            let _: [u8; 124] = read(self.stream)?;
        }
        Ok(export(size_bytes, flags, (1, DEFAULT_MAXIMUM_PAYLOAD)))
    }

    fn ask(&mut self, option: u32, data: &[u8]) -> Result<(), Lost> {
        let head = [&number::OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes()].concat();
        send(self.stream, &[head, sized(data)].concat())
    }

    fn reply(&mut self, option: u32) -> Result<OptionReply, Lost> {
        if u64::from_be_bytes(read(self.stream)?) != number::OPTION_REPLY_MAGIC {
            return Err(Lost::Protocol("no answer to an option"));
        }
        if u32::from_be_bytes(read(self.stream)?) != option {
            return Err(Lost::Protocol("an answer to another option"));
        }
        let kind = u32::from_be_bytes(read(self.stream)?);
        let length = u32::from_be_bytes(read(self.stream)?);
        if length > MAX_REPLY_BYTES {
            return Err(Lost::Protocol("an answer that is too long"));
        }
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        Ok(OptionReply { kind, data })
    }

    fn refusal(&self, reply: &OptionReply) -> NbdError {
        let message = message(&reply.data);
        let reason = match reply.kind {
            number::REPLY_ERROR_UNKNOWN => return NbdError::NoSuchExport { name: self.name.to_owned(), message },
            number::REPLY_ERROR_TLS_REQUIRED => "it wants TLS, which is not supported",
            number::REPLY_ERROR_POLICY => "its policy forbids it",
            number::REPLY_ERROR_BLOCK_SIZE_REQUIRED => "it wants block sizes that are not supported",
            kind if kind & number::REPLY_ERROR != 0 => "it gives an error",
            _ => return Lost::Protocol("an unknown kind of answer").into(),
        };
        NbdError::Refused { reason, message }
    }
}

enum Info {
    Export { size_bytes: u64, flags: u16 },
    Blocks { minimum: u32, maximum: u32 },
    Other,
}

fn info(data: &[u8]) -> Result<Info, NbdError> {
    let short = || Lost::Protocol("information that is too short");
    let (kind, rest) = data.split_first_chunk().ok_or_else(short)?;
    match u16::from_be_bytes(*kind) {
        number::INFO_EXPORT => {
            let (size, flags) = rest.split_first_chunk().ok_or_else(short)?;
            let flags = flags.try_into().map_err(|_| short())?;
            Ok(Info::Export { size_bytes: u64::from_be_bytes(*size), flags: u16::from_be_bytes(flags) })
        }
        number::INFO_BLOCK_SIZE => {
            let (words, rest) = rest.as_chunks::<4>();
            let &[minimum, _, maximum] = words else { return Err(short().into()) };
            let (minimum, maximum) = (u32::from_be_bytes(minimum), u32::from_be_bytes(maximum));
            // A maximum of all ones means that the whole export can be asked for at once.
            if !rest.is_empty() || !minimum.is_power_of_two() || minimum > 64 << 10 || maximum < 64 << 10 {
                return Err(NbdError::Unusable("its block sizes cannot be"));
            }
            Ok(Info::Blocks { minimum, maximum })
        }
        _ => Ok(Info::Other),
    }
}

fn export(size_bytes: u64, flags: u16, (minimum_block, maximum_payload): (u32, u32)) -> Export {
    Export { size_bytes, flags, minimum_block, maximum_payload, structured: false, allocation: None }
}

/// What a server says in words, cut and cleaned for an error message.
pub(super) fn message(data: &[u8]) -> String {
    String::from_utf8_lossy(data).chars().filter(|c| !c.is_control()).take(200).collect()
}

fn sized(data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("options are short");
    [&length.to_be_bytes()[..], data].concat()
}

fn read<const N: usize>(stream: &mut impl Read) -> Result<[u8; N], Lost> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn send(stream: &mut impl Write, bytes: &[u8]) -> Result<(), Lost> {
    stream.write_all(bytes).map_err(|error: io::Error| Lost::from(error))
}

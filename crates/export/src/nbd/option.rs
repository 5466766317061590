//! The NBD protocol's handshake on the wire: the numbers of options, their replies and infos, and the decoding of
//! option requests.
//!
//! Source: as [`super::protocol`]. Decoding is pure and total; no length that a client names is believed before the
//! bytes are there.

use super::protocol::{IHAVEOPT, MAXIMUM_STRING_BYTES, NBD_REP_MAGIC};

/// Chooses the export and ends the handshake, without any reply on failure.
pub const NBD_OPT_EXPORT_NAME: u32 = 1;
/// Ends the handshake and the connection.
pub const NBD_OPT_ABORT: u32 = 2;
/// Lists the exports.
pub const NBD_OPT_LIST: u32 = 3;
/// Begins TLS.
pub const NBD_OPT_STARTTLS: u32 = 5;
/// Describes an export.
pub const NBD_OPT_INFO: u32 = 6;
/// Describes an export, chooses it and ends the handshake.
pub const NBD_OPT_GO: u32 = 7;
/// Switches to structured replies.
pub const NBD_OPT_STRUCTURED_REPLY: u32 = 8;
/// Lists metadata contexts.
pub const NBD_OPT_LIST_META_CONTEXT: u32 = 9;
/// Chooses metadata contexts.
pub const NBD_OPT_SET_META_CONTEXT: u32 = 10;

/// Reply: done.
pub const NBD_REP_ACK: u32 = 1;
/// Reply: an export's name.
pub const NBD_REP_SERVER: u32 = 2;
/// Reply: a fact about an export.
pub const NBD_REP_INFO: u32 = 3;
/// Reply: a metadata context.
pub const NBD_REP_META_CONTEXT: u32 = 4;
/// Error reply: unknown option.
pub const NBD_REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// Error reply: the option's data make no sense.
pub const NBD_REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// Error reply: not without TLS.
pub const NBD_REP_ERR_TLS_REQD: u32 = (1 << 31) + 5;
/// Error reply: no such export.
pub const NBD_REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// Error reply: the option is too long.
pub const NBD_REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

/// Info: size and transmission flags.
pub const NBD_INFO_EXPORT: u16 = 0;
/// Info: the export's canonical name.
pub const NBD_INFO_NAME: u16 = 1;
/// Info: minimum, preferred and maximum block size.
pub const NBD_INFO_BLOCK_SIZE: u16 = 3;

/// Length of an option request without its data.
pub const OPTION_HEADER_BYTES: usize = 16;
/// Length of an option reply without its data.
pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// An option request cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// It began with the wrong number: the stream is out of step.
    #[error("option with magic number {0:#018x}")]
    Magic(u64),
    /// Its data end before what they announce.
    #[error("the option's data are cut short")]
    Truncated,
    /// Its data go on behind what they announce.
    #[error("the option's data are longer than announced")]
    Trailing,
    /// A string is longer than the protocol allows.
    #[error("string of {0} bytes, longer than {MAXIMUM_STRING_BYTES}")]
    TooLong(usize),
    /// A string is not UTF-8.
    #[error("string that is not UTF-8")]
    NotText,
}

/// An option request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// `NBD_OPT_*`, unchecked.
    pub option: u32,
    /// How many bytes of data follow.
    pub length: u32,
}

/// The data of [`NBD_OPT_INFO`] and [`NBD_OPT_GO`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export's name; empty for the default one.
    pub name: String,
    /// The `NBD_INFO_*` that the client would like to hear.
    pub wanted: Vec<u16>,
}

/// The data of [`NBD_OPT_LIST_META_CONTEXT`] and [`NBD_OPT_SET_META_CONTEXT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContextRequest {
    /// The export's name.
    pub name: String,
    /// What the client asks for: `namespace:leaf` or `namespace:`.
    pub queries: Vec<String>,
}

/// Decodes an option request's header.
///
/// # Errors
/// [`OptionError::Magic`].
pub fn decode_option_header(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<OptionHeader, OptionError> {
    let [m0, m1, m2, m3, m4, m5, m6, m7, o0, o1, o2, o3, l0, l1, l2, l3] = *bytes;
    let magic = u64::from_be_bytes([m0, m1, m2, m3, m4, m5, m6, m7]);
    if magic != IHAVEOPT {
        return Err(OptionError::Magic(magic));
    }
    Ok(OptionHeader { option: u32::from_be_bytes([o0, o1, o2, o3]), length: u32::from_be_bytes([l0, l1, l2, l3]) })
}

/// Decodes the data of [`NBD_OPT_EXPORT_NAME`].
///
/// # Errors
/// See [`OptionError`].
pub fn decode_export_name(data: &[u8]) -> Result<String, OptionError> {
    text(data)
}

/// Decodes the data of [`NBD_OPT_INFO`] and [`NBD_OPT_GO`].
///
/// # Errors
/// See [`OptionError`].
pub fn decode_info(data: &[u8]) -> Result<InfoRequest, OptionError> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let mut wanted = Vec::new();
    for _ in 0..count {
        wanted.push(fields.u16()?);
    }
    fields.end()?;
    Ok(InfoRequest { name, wanted })
}

/// Decodes the data of [`NBD_OPT_LIST_META_CONTEXT`] and [`NBD_OPT_SET_META_CONTEXT`].
///
/// # Errors
/// See [`OptionError`].
pub fn decode_meta_context(data: &[u8]) -> Result<MetaContextRequest, OptionError> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.string()?);
    }
    fields.end()?;
    Ok(MetaContextRequest { name, queries })
}

/// Encodes the header of an option reply; `length` is that of its data.
#[must_use]
pub fn encode_option_reply_header(option: u32, reply: u32, length: u32) -> [u8; OPTION_REPLY_HEADER_BYTES] {
    let mut bytes = [0; OPTION_REPLY_HEADER_BYTES];
    bytes[0..8].copy_from_slice(&NBD_REP_MAGIC.to_be_bytes());
    bytes[8..12].copy_from_slice(&option.to_be_bytes());
    bytes[12..16].copy_from_slice(&reply.to_be_bytes());
    bytes[16..20].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// What has not been decoded yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u16(&mut self) -> Result<u16, OptionError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(OptionError::Truncated)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    fn u32(&mut self) -> Result<u32, OptionError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(OptionError::Truncated)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    /// A string with its length before it.
    fn string(&mut self) -> Result<String, OptionError> {
        let length = usize::try_from(self.u32()?).map_err(|_| OptionError::Truncated)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(OptionError::Truncated)?;
        self.0 = rest;
        text(bytes)
    }

    fn end(&self) -> Result<(), OptionError> {
        if self.0.is_empty() { Ok(()) } else { Err(OptionError::Trailing) }
    }
}

fn text(bytes: &[u8]) -> Result<String, OptionError> {
    if bytes.len() > MAXIMUM_STRING_BYTES {
        return Err(OptionError::TooLong(bytes.len()));
    }
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| OptionError::NotText)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn info_lists_what_is_wanted() {
        let data = [0, 0, 0, 2, b'v', b'1', 0, 2, 0, 3, 0, 1];
        let request = decode_info(&data).unwrap();
        assert_eq!(request, InfoRequest { name: "v1".to_owned(), wanted: vec![NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME] });
        assert_eq!(decode_info(&data[..11]), Err(OptionError::Truncated));
        assert_eq!(decode_info(&[data.as_slice(), &[0]].concat()), Err(OptionError::Trailing));
    }

    #[test]
    fn meta_contexts_list_their_queries() {
        let data = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5, b'b', b'a', b's', b'e', b':'];
        let request = decode_meta_context(&data).unwrap();
        assert_eq!(request, MetaContextRequest { name: String::new(), queries: vec!["base:".to_owned()] });
    }

    #[test]
    fn a_huge_count_without_data_is_refused() {
        assert_eq!(decode_meta_context(&[0, 0, 0, 0, 255, 255, 255, 255]), Err(OptionError::Truncated));
        assert_eq!(decode_info(&[255, 255, 255, 255, 0]), Err(OptionError::Truncated));
    }

    #[test]
    fn names_are_text_of_a_bounded_length() {
        assert_eq!(decode_export_name(&[0xff]), Err(OptionError::NotText));
        assert_eq!(decode_export_name(&[b'a'; 4097]), Err(OptionError::TooLong(4097)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_info(&data);
            let _ = decode_meta_context(&data);
            let _ = decode_export_name(&data);
        }
    }
}

//! Chunks as they are stored and sent: plain, or compressed with zstd where that pays.

use bytes::Bytes;

/// How stored bytes become plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// They are the plain bytes.
    Plain = 0,
    /// One zstd frame (RFC 8878) without dictionary.
    Zstd = 1,
}

impl TryFrom<u8> for Codec {
    type Error = CodecError;

    fn try_from(byte: u8) -> Result<Self, CodecError> {
        match byte {
            0 => Ok(Self::Plain),
            1 => Ok(Self::Zstd),
            other => Err(CodecError::Unknown(other)),
        }
    }
}

/// Stored bytes could not be made plain.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A codec that this version does not know.
    #[error("unknown codec {0}")]
    Unknown(u8),
    /// The compressed bytes are damaged, or longer than promised.
    #[error("damaged zstd frame")]
    Damaged(#[source] std::io::Error),
    /// The plain bytes have another length than promised.
    #[error("{actual} plain bytes where {expected} were promised")]
    Length {
        /// Promised, in bytes.
        expected: usize,
        /// Found, in bytes.
        actual: usize,
    },
}

/// Bytes as they are stored and sent, with what is needed to make them plain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// How to make them plain.
    pub codec: Codec,
    /// The length of the plain bytes.
    pub plain_bytes: u32,
    /// The stored bytes.
    pub bytes: Bytes,
}

/// Compression must save at least one part in this many, or the plain bytes are stored: reading them is cheaper.
const MINIMUM_SAVING: usize = 32;

/// Compresses with a context that is reused from call to call.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// Makes a compressor of zstd level 1, which measured best for disks (0.387 of the plain size at 373 MB/s a core).
    #[must_use]
    pub fn new() -> Self {
        let mut zstd = zstd::bulk::Compressor::new(1).unwrap_or_default();
        // The chunk's hash covers the content, and the record its length: neither is needed in the frame.
        for parameter in
            [zstd::zstd_safe::CParameter::ContentSizeFlag(false), zstd::zstd_safe::CParameter::ChecksumFlag(false)]
        {
            if let Err(error) = zstd.set_parameter(parameter) {
                unreachable!("a boolean parameter is always valid: {error}");
            }
        }
        Self { zstd, scratch: Vec::new() }
    }

    /// Compresses plain bytes, or returns them as they are where compression does not pay.
    ///
    /// # Panics
    /// With more than `u32::MAX` bytes: what is stored is a chunk, a node or a manifest.
    #[must_use]
    pub fn compress(&mut self, plain: &[u8]) -> Stored {
        let plain_bytes = u32::try_from(plain.len()).expect("a stored object is shorter than 4 GiB");
        let room = zstd::zstd_safe::compress_bound(plain.len());
        self.scratch.resize(room, 0);
        match self.zstd.compress_to_buffer(plain, self.scratch.as_mut_slice()) {
            Ok(length) if length + plain.len() / MINIMUM_SAVING < plain.len() => {
                Stored { codec: Codec::Zstd, plain_bytes, bytes: Bytes::copy_from_slice(&self.scratch[..length]) }
            }
            _ => Stored { codec: Codec::Plain, plain_bytes, bytes: Bytes::copy_from_slice(plain) },
        }
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Stored {
    /// Wraps plain bytes without compressing them.
    ///
    /// # Panics
    /// With more than `u32::MAX` bytes.
    #[must_use]
    pub fn plain(bytes: Bytes) -> Self {
        let plain_bytes = u32::try_from(bytes.len()).expect("a stored object is shorter than 4 GiB");
        Self { codec: Codec::Plain, plain_bytes, bytes }
    }

    /// Makes the bytes plain. The caller has bounded `plain_bytes`, which is all that is allocated.
    ///
    /// # Errors
    /// Damaged bytes, or a length that is not the promised one.
    pub fn to_plain(&self) -> Result<Bytes, CodecError> {
        let expected = self.plain_bytes as usize;
        let plain = match self.codec {
            Codec::Plain => self.bytes.clone(),
            Codec::Zstd => DECOMPRESSOR.with_borrow_mut(|zstd| {
                zstd.decompress(&self.bytes, expected).map(Bytes::from).map_err(CodecError::Damaged)
            })?,
        };
        if plain.len() == expected { Ok(plain) } else { Err(CodecError::Length { expected, actual: plain.len() }) }
    }
}

thread_local! {
    static DECOMPRESSOR: std::cell::RefCell<zstd::bulk::Decompressor<'static>> = const_decompressor();
}

fn const_decompressor() -> std::cell::RefCell<zstd::bulk::Decompressor<'static>> {
    std::cell::RefCell::new(zstd::bulk::Decompressor::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compresses_where_it_pays_and_comes_back() {
        let mut compressor = Compressor::new();
        let text: Vec<u8> = (0..65536_u32).map(|i| (i / 100).to_le_bytes()[0]).collect();
        let stored = compressor.compress(&text);
        assert_eq!(stored.codec, Codec::Zstd);
        assert!(stored.bytes.len() < 4096);
        assert_eq!(stored.to_plain().unwrap(), text);
        let mut noise = vec![0; 65536];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let stored = compressor.compress(&noise);
        assert_eq!(stored.codec, Codec::Plain);
        assert_eq!(stored.to_plain().unwrap(), noise);
    }

    #[test]
    fn a_bomb_is_stopped_at_the_promised_length() {
        let mut stored = Compressor::new().compress(&vec![0; 1 << 24]);
        stored.plain_bytes = 65536;
        assert!(stored.to_plain().is_err());
        stored.plain_bytes = 1 << 25;
        assert!(stored.to_plain().is_err());
    }
}

//! Deterministic CBOR (RFC 8949, section 4.2): a value has one encoding, and no other is accepted.
//!
//! Types derive their encoding with minicbor as arrays of definite length with the shortest integers. The decoder
//! encodes again what it decoded and compares: what is not byte for byte what we would have written is rejected, so
//! that two parties can never hold different bytes for one signed or hashed value.

/// Bytes were not the canonical encoding of a value.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// They could not be decoded.
    #[error("malformed CBOR")]
    Malformed(#[from] minicbor::decode::Error),
    /// They could be decoded, but are not what the encoder writes.
    #[error("not the canonical encoding")]
    NotCanonical,
    /// They are longer than this kind of value may be.
    #[error("{length} bytes are more than the limit of {limit}")]
    TooLong {
        /// What was given, in bytes.
        length: usize,
        /// What is allowed, in bytes.
        limit: usize,
    },
}

/// Encodes a value.
pub fn to_canonical<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    match minicbor::encode(value, &mut bytes) {
        Ok(()) => bytes,
        Err(error) => unreachable!("writing to a vector cannot fail and our encoders do not: {error}"),
    }
}

/// Decodes a value from bytes of at most `limit`.
///
/// # Errors
/// Bytes that are too long, are not CBOR of this type, or are not canonical.
pub fn from_canonical<T>(bytes: &[u8], limit: usize) -> Result<T, CanonicalError>
where
    T: minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()>,
{
    if bytes.len() > limit {
        return Err(CanonicalError::TooLong { length: bytes.len(), limit });
    }
    let value: T = minicbor::decode(bytes)?;
    if to_canonical(&value) == bytes { Ok(value) } else { Err(CanonicalError::NotCanonical) }
}

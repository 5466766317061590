//! The roots log: transactions that change a store's roots, all or none.
//!
//! A transaction's checksum is keyed with a secret of the log and covers its number, so that a value that someone
//! else chose cannot be taken for a transaction, and an older one cannot stand in a newer one's place. The layout is
//! in `docs/format.md`, "Roots".

use crate::pack::PackSecret;

/// The length of the log's header, in bytes.
pub const ROOTS_HEADER_BYTES: usize = 64;

/// The length of a transaction's header, in bytes.
pub const TRANSACTION_HEADER_BYTES: usize = 32;

/// What every transaction begins with.
pub const TRANSACTION_MAGIC: [u8; 4] = *b"bTxn";

/// The longest transaction, in bytes without its header.
pub const MAX_TRANSACTION_BYTES: usize = 1 << 28;

const ROOTS_MAGIC: [u8; 8] = *b"brantRTS";
const VERSION: u32 = 1;

/// Bytes were not a roots log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// There are too few.
    #[error("{0} bytes are too few")]
    Short(usize),
    /// They do not begin as they must.
    #[error("no magic number")]
    Magic,
    /// The checksum is wrong.
    #[error("wrong checksum")]
    Checksum,
    /// Written by a later version of brant.
    #[error("roots version {0} is newer than this brant understands")]
    Newer(u32),
    /// A value that cannot be.
    #[error("a transaction whose {0} cannot be")]
    Invalid(&'static str),
}

/// A change to one root: its name, and its new value or `None` to remove it.
pub type Change = (String, Option<Vec<u8>>);

/// Encodes what a log begins with.
#[must_use]
pub fn encode_header(secret: &PackSecret) -> [u8; ROOTS_HEADER_BYTES] {
    let mut bytes = [0; ROOTS_HEADER_BYTES];
    bytes[..8].copy_from_slice(&ROOTS_MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..48].copy_from_slice(secret);
    let checksum = *blake3::hash(&bytes[..48]).as_bytes();
    bytes[48..].copy_from_slice(&checksum[..16]);
    bytes
}

/// Decodes what a log begins with, and returns its secret.
///
/// # Errors
/// Everything that [`encode_header`] would not have written.
pub fn decode_header(bytes: &[u8]) -> Result<PackSecret, RootsError> {
    let header = bytes.first_chunk::<ROOTS_HEADER_BYTES>().ok_or(RootsError::Short(bytes.len()))?;
    if header[..8] != ROOTS_MAGIC {
        return Err(RootsError::Magic);
    }
    if header[48..] != blake3::hash(&header[..48]).as_bytes()[..16] {
        return Err(RootsError::Checksum);
    }
    match u32::from_le_bytes([header[8], header[9], header[10], header[11]]) {
        VERSION if header[12..16] == [0; 4] => {
            let mut secret = [0; 32];
            secret.copy_from_slice(&header[16..48]);
            Ok(secret)
        }
        VERSION => Err(RootsError::Invalid("reserved field")),
        newer => Err(RootsError::Newer(newer)),
    }
}

/// A set of changes that come about together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// One more than the transaction before.
    pub sequence: u64,
    /// The changes, in order.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// Encodes it.
    ///
    /// # Panics
    /// With a name longer than 64 KiB or more than [`MAX_TRANSACTION_BYTES`]: the store refuses these before.
    #[must_use]
    pub fn encode(&self, secret: &PackSecret) -> Vec<u8> {
        let mut bytes = vec![0; TRANSACTION_HEADER_BYTES];
        for (name, value) in &self.changes {
            let name_length = u16::try_from(name.len()).expect("a root's name is short");
            bytes.push(u8::from(value.is_some()));
            bytes.extend(name_length.to_le_bytes());
            let value = value.as_deref().unwrap_or_default();
            bytes.extend(u32::try_from(value.len()).expect("a root's value is small").to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(value);
        }
        let length = bytes.len() - TRANSACTION_HEADER_BYTES;
        assert!(length <= MAX_TRANSACTION_BYTES, "a transaction of {length} bytes");
        bytes[..4].copy_from_slice(&TRANSACTION_MAGIC);
        bytes[4..8].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        let checksum = transaction_checksum(secret, &bytes);
        bytes[16..32].copy_from_slice(&checksum);
        bytes
    }

    /// Decodes the transaction that some bytes begin with, and returns it with its length.
    ///
    /// # Errors
    /// Bytes that are too few, or that [`Transaction::encode`] would not have written.
    pub fn decode(bytes: &[u8], secret: &PackSecret) -> Result<(Self, usize), RootsError> {
        let short = RootsError::Short(bytes.len());
        let header = bytes.first_chunk::<TRANSACTION_HEADER_BYTES>().ok_or(short)?;
        if header[..4] != TRANSACTION_MAGIC {
            return Err(RootsError::Magic);
        }
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if length > MAX_TRANSACTION_BYTES {
            return Err(RootsError::Invalid("length"));
        }
        let end = TRANSACTION_HEADER_BYTES + length;
        let whole = bytes.get(..end).ok_or(short)?;
        if header[16..] != transaction_checksum(secret, whole) {
            return Err(RootsError::Checksum);
        }
        let mut sequence = [0; 8];
        sequence.copy_from_slice(&header[8..16]);
        let changes = decode_changes(&whole[TRANSACTION_HEADER_BYTES..])?;
        Ok((Self { sequence: u64::from_le_bytes(sequence), changes }, end))
    }
}

fn decode_changes(mut rest: &[u8]) -> Result<Vec<Change>, RootsError> {
    let mut changes = Vec::new();
    while !rest.is_empty() {
        let (head, after) = rest.split_first_chunk::<7>().ok_or(RootsError::Invalid("change"))?;
        let name_length = usize::from(u16::from_le_bytes([head[1], head[2]]));
        let value_length = u32::from_le_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let (name, after) = after.split_at_checked(name_length).ok_or(RootsError::Invalid("name"))?;
        let (value, after) = after.split_at_checked(value_length).ok_or(RootsError::Invalid("value"))?;
        let name = std::str::from_utf8(name).map_err(|_| RootsError::Invalid("name"))?.to_owned();
        match head[0] {
            0 if value.is_empty() => changes.push((name, None)),
            1 => changes.push((name, Some(value.to_vec()))),
            _ => return Err(RootsError::Invalid("change")),
        }
        rest = after;
    }
    Ok(changes)
}

/// Covers everything but the checksum's own field.
fn transaction_checksum(secret: &PackSecret, bytes: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(&bytes[..16]).update(&bytes[TRANSACTION_HEADER_BYTES..]);
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    first
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: PackSecret = [0x11; 32];

    #[test]
    fn every_changed_bit_and_every_missing_byte_is_seen() {
        let transaction = Transaction {
            sequence: 5,
            changes: vec![("volume/1".to_owned(), Some(vec![1, 2, 3])), ("layer/2".to_owned(), None)],
        };
        let bytes = transaction.encode(&SECRET);
        assert_eq!(Transaction::decode(&bytes, &SECRET), Ok((transaction, bytes.len())));
        for bit in 0..8 * bytes.len() {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Transaction::decode(&bad, &SECRET).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(matches!(Transaction::decode(&bytes[..length], &SECRET), Err(RootsError::Short(_))), "{length}");
        }
        let header = encode_header(&SECRET);
        assert_eq!(decode_header(&header), Ok(SECRET));
        for bit in 0..8 * header.len() {
            let mut bad = header;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_header(&bad).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn any_transaction_comes_back(
            sequence: u64,
            changes in prop::collection::vec((".{0,20}", prop::option::of(prop::collection::vec(any::<u8>(), 0..40))), 0..6),
            secret: [u8; 32],
        ) {
            let transaction = Transaction { sequence, changes };
            let mut bytes = transaction.encode(&secret);
            let length = bytes.len();
            bytes.extend([7; 9]);
            prop_assert_eq!(Transaction::decode(&bytes, &secret), Ok((transaction, length)));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>, secret: [u8; 32]) {
            let _ = decode_header(&bytes);
            let _ = Transaction::decode(&bytes, &secret);
            let _ = decode_changes(&bytes);
        }
    }
}

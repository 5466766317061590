//! Ids: 32-byte hashes and public keys, and 16-byte random ids of local things.
//!
//! Each is its own type, so that a chunk's hash cannot be passed where a tree node's is wanted. All are written as
//! lowercase hexadecimal and are CBOR byte strings.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;

/// An id was not hexadecimal of the right length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {digits} hexadecimal digits")]
pub struct IdError {
    digits: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The first ten hexadecimal digits, enough for a person to tell ids apart.
            #[must_use]
            pub fn short(&self) -> String {
                HEXLOWER_PERMISSIVE.encode(&self.0[..5])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = IdError { digits: 2 * $bytes };
                let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| error.clone())?;
                bytes.try_into().map(Self).map_err(|_| error)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                encoder: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                encoder.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let bytes = decoder.bytes()?;
                bytes
                    .try_into()
                    .map(Self)
                    .map_err(|_| minicbor::decode::Error::message(concat!("not the length of a ", stringify!($name))))
            }
        }
    };
}

id!(
    /// Names a chunk: the domain-separated BLAKE3 hash of its 64 KiB of plain bytes.
    ChunkId, 32);
id!(
    /// Names a node of a disk tree: the domain-separated BLAKE3 hash of its encoding.
    NodeId, 32);
id!(
    /// Names a sealed snapshot: the domain-separated BLAKE3 hash of its manifest.
    SnapshotId, 32);
id!(
    /// Names a bucket: the Ed25519 public key that it was created with.
    BucketId, 32);
id!(
    /// Names an entry of a bucket's log: the domain-separated BLAKE3 hash of its signed bytes.
    EntryHash, 32);
id!(
    /// Names a node of the network: the Ed25519 public key of its transport endpoint.
    EndpointId, 32);
id!(
    /// A public key that may write a bucket's log, or that an Indexer signs with (Ed25519, RFC 8032).
    PublicKey, 32);
id!(
    /// Names a volume on its node: random.
    VolumeId, 16);
id!(
    /// Names a layer of written sectors on its node: random.
    LayerId, 16);
id!(
    /// Names a journal, what one volume writes to, on its node: random.
    JournalId, 16);
id!(
    /// Names one disk of a snapshot on its node, from the moment it is frozen: random.
    FrozenId, 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_there_and_back() {
        let id = ChunkId([0xab; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.short(), "ababababab");
        assert!("abc".parse::<ChunkId>().is_err());
        assert!("zz".repeat(32).parse::<ChunkId>().is_err());
    }
}

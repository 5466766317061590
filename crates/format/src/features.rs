//! The `format` file of a store: which version and features are needed to use it.
//!
//! Compatible features can be ignored by who does not know them, read-only-compatible ones by who only reads, and
//! incompatible ones by nobody (after ext4 and ZFS). The layout is in `docs/format.md`, "Store directory".

use std::fmt::Write;

use crate::pack::PackSecret;

/// The version of store directories that is written.
pub const STORE_VERSION: u32 = 1;

/// The longest `format` file, in bytes.
pub const MAX_FORMAT_FILE_BYTES: usize = 4096;

const FIRST_LINE: &str = "brant store";

/// What a store directory needs of who uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFormat {
    /// The version of the directory.
    pub version: u32,
    /// What the checksums in packs are keyed with.
    pub secret: PackSecret,
    /// Features that can be ignored.
    pub compatible: Vec<String>,
    /// Features that can be ignored by who only reads.
    pub read_only_compatible: Vec<String>,
    /// Features that must be known.
    pub incompatible: Vec<String>,
}

/// A `format` file could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatFileError {
    /// It is not one.
    #[error("not a store's format file")]
    Malformed,
    /// Written by a later version of brant, which may have changed anything after the version.
    #[error("store version {0} is newer than this brant understands")]
    Newer(u32),
}

impl StoreFormat {
    /// What this version writes: no features beyond the version itself.
    #[must_use]
    pub fn new(secret: PackSecret) -> Self {
        Self {
            version: STORE_VERSION,
            secret,
            compatible: Vec::new(),
            read_only_compatible: Vec::new(),
            incompatible: Vec::new(),
        }
    }

    /// Encodes the file.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = format!("{FIRST_LINE}\nversion {}\nsecret ", self.version);
        for byte in self.secret {
            let _ = write!(text, "{byte:02x}");
        }
        for (name, features) in [
            ("compatible", &self.compatible),
            ("read-only-compatible", &self.read_only_compatible),
            ("incompatible", &self.incompatible),
        ] {
            let _ = write!(text, "\n{name}");
            for feature in features {
                let _ = write!(text, " {feature}");
            }
        }
        text.push('\n');
        text
    }

    /// Decodes the file.
    ///
    /// # Errors
    /// Everything that [`StoreFormat::encode`] would not have written; [`FormatFileError::Newer`] for later versions.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatFileError> {
        let malformed = FormatFileError::Malformed;
        if bytes.len() > MAX_FORMAT_FILE_BYTES {
            return Err(malformed);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| malformed.clone())?;
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err(malformed);
        }
        let mut field = |name: &str| lines.next().and_then(|line| line.strip_prefix(name)).ok_or(malformed.clone());
        let version = field("version ")?.parse().map_err(|_| malformed.clone())?;
        if version > STORE_VERSION {
            return Err(FormatFileError::Newer(version));
        }
        let secret = decode_secret(field("secret ")?).ok_or(malformed.clone())?;
        let mut features = |name: &str| -> Result<Vec<String>, FormatFileError> {
            Ok(field(name)?.split_ascii_whitespace().map(str::to_owned).collect())
        };
        let format = Self {
            version,
            secret,
            compatible: features("compatible")?,
            read_only_compatible: features("read-only-compatible")?,
            incompatible: features("incompatible")?,
        };
        if version > 0 && format.encode() == text { Ok(format) } else { Err(malformed) }
    }
}

fn decode_secret(text: &str) -> Option<PackSecret> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes: Vec<u8> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect::<Option<_>>()?;
    if rest.is_empty() { bytes.try_into().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_format_comes_back_and_a_newer_one_is_told_apart_from_a_broken_one() {
        let mut format = StoreFormat::new([0xa5; 32]);
        format.incompatible = vec!["encryption".to_owned(), "tiers".to_owned()];
        let text = format.encode();
        assert_eq!(StoreFormat::decode(text.as_bytes()), Ok(format));
        let newer = text.replace("version 1", "version 2");
        assert_eq!(StoreFormat::decode(newer.as_bytes()), Err(FormatFileError::Newer(2)));
        for bad in [
            "",
            "brant store\n",
            &text.replace("version 1", "version 0"),
            &text[..text.len() - 1],
            &text.replace("a5", "A5"),
        ] {
            assert_eq!(StoreFormat::decode(bad.as_bytes()), Err(FormatFileError::Malformed), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            let _ = StoreFormat::decode(&bytes);
        }
    }
}

//! Names that people give: of volumes, buckets, objects and accounts, paths of snapshots, and references at an Indexer.

use std::fmt;
use std::str::FromStr;

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 100;

/// A name was malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A name has characters that could be taken for something else, or too many.
    #[error(
        "{0:?} is not a name: use 1 to {MAX_NAME_BYTES} letters, digits, '-', '_' or '.', beginning with a letter or digit"
    )]
    Name(String),
    /// A snapshot's path is not `BUCKET/OBJECT[@VERSION]`.
    #[error("{0:?} is not BUCKET/OBJECT or BUCKET/OBJECT@VERSION")]
    Path(String),
    /// A reference is not `INDEXER/ACCOUNT/NAME`.
    #[error("{0:?} is not a reference: write INDEXER/ACCOUNT/NAME, for example index.example.org/alice/vms")]
    Reference(String),
}

/// The name of a volume, bucket, object or account.
///
/// ASCII letters, digits, `-`, `_` and `.`, beginning with a letter or digit: safe as a file name, in a URL and on a
/// command line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        let good = text.len() <= MAX_NAME_BYTES
            && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && text.bytes().all(inner);
        if good { Ok(Self(text.to_owned())) } else { Err(NameError::Name(text.to_owned())) }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<C> minicbor::Encode<C> for Name {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.str(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Name {
    fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        decoder.str()?.parse().map_err(|_| minicbor::decode::Error::message("not a name"))
    }
}

/// A version of an object in a bucket: `BUCKET/OBJECT[@VERSION]`; the latest when the version is left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectPath {
    /// The bucket's local name.
    pub bucket: Name,
    /// The object's name in it.
    pub object: Name,
    /// The version, from 1; the latest where none is given.
    pub version: Option<u64>,
}

impl FromStr for ObjectPath {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::Path(text.to_owned());
        let (bucket, rest) = text.split_once('/').ok_or_else(error)?;
        let (object, version) = match rest.split_once('@') {
            Some((object, version)) => (object, Some(version.parse().ok().filter(|v| *v > 0).ok_or_else(error)?)),
            None => (rest, None),
        };
        Ok(Self { bucket: bucket.parse()?, object: object.parse()?, version })
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.object)?;
        self.version.map_or(Ok(()), |version| write!(f, "@{version}"))
    }
}

/// A bucket's public name: `INDEXER/ACCOUNT/NAME`, where INDEXER is a host with an optional port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    /// The Indexer's host and optional port, in lowercase.
    pub indexer: String,
    /// The account that owns the reference.
    pub account: Name,
    /// The reference's name in that account.
    pub name: Name,
}

impl FromStr for Reference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError::Reference(text.to_owned());
        let mut parts = text.split('/');
        let (Some(indexer), Some(account), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error());
        };
        let host_character = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b':' | b'[' | b']');
        if indexer.is_empty() || indexer.len() > 260 || !indexer.bytes().all(host_character) {
            return Err(error());
        }
        Ok(Self { indexer: indexer.to_ascii_lowercase(), account: account.parse()?, name: name.parse()? })
    }
}

impl TryFrom<String> for Reference {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.indexer, self.account, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["vm1", "a", "Web-01.example_2"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "ä", "a@1", &"x".repeat(101)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_and_references_there_and_back() {
        for text in ["b/o", "b/o@7"] {
            assert_eq!(text.parse::<ObjectPath>().unwrap().to_string(), text);
        }
        for bad in ["b", "b/o@", "b/o@0", "b/o@x", "/o", "b/", "b/o/p"] {
            assert!(bad.parse::<ObjectPath>().is_err(), "{bad}");
        }
        assert_eq!("127.0.0.1:7070/alice/vms".parse::<Reference>().unwrap().to_string(), "127.0.0.1:7070/alice/vms");
        for bad in ["alice/vms", "h/a/b/c", "http://h/a/b", "h //a"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}

//! Signed statements: small values that a key vouches for, most of them for a short time.
//!
//! The bytes that were signed are the bytes that are sent: deterministic CBOR, signed in a context of its own per kind
//! of statement. What [`Signed::verify`] returns was said by the author that it names, and has not expired.

use std::fmt;
use std::marker::PhantomData;

use format::canonical::{CanonicalError, from_canonical, to_canonical};
use types::PublicKey;

use crate::signer::{Signer, is_signed_by};

/// The longest statement, in bytes, signature included.
pub const MAX_STATEMENT_BYTES: usize = 256 << 10;

/// A kind of statement.
pub trait Statement: minicbor::Encode<()> + for<'b> minicbor::Decode<'b, ()> {
    /// What precedes the bytes when they are signed; ends in a zero byte.
    const CONTEXT: &'static [u8];
    /// What it is called in errors.
    const KIND: &'static str;
    /// The version of the encoding that is understood.
    const VERSION: u16 = 1;

    /// The version that the value carries.
    fn version(&self) -> u16;
    /// Whose signature it needs.
    fn author(&self) -> PublicKey;
    /// Until when it holds, in milliseconds since 1970; `None` for ever.
    fn expires_ms(&self) -> Option<u64>;
}

/// Why a statement is not believed.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// Not the encoding of one.
    #[error("malformed {kind}")]
    Encoding {
        /// What it should have been.
        kind: &'static str,
        /// What is wrong.
        #[source]
        source: CanonicalError,
    },
    /// Made by another version of brant.
    #[error("{kind} of version {version}, which this brant does not understand")]
    Version {
        /// What it is.
        kind: &'static str,
        /// Its version.
        version: u16,
    },
    /// Not signed by the author that it names.
    #[error("{kind} that {author} did not sign")]
    Signature {
        /// What it is.
        kind: &'static str,
        /// Who it names.
        author: PublicKey,
    },
    /// Its time is over.
    #[error("{kind} that expired {ago_ms} ms ago")]
    Expired {
        /// What it is.
        kind: &'static str,
        /// How long ago, in milliseconds.
        ago_ms: u64,
    },
}

/// A statement as it is kept and sent: the signed bytes and the signature. Not yet believed.
pub struct Signed<S> {
    /// The canonical encoding of the statement.
    pub bytes: Vec<u8>,
    /// The author's signature.
    pub signature: [u8; 64],
    kind: PhantomData<fn() -> S>,
}

impl<S: Statement> Signed<S> {
    /// Signs a statement.
    ///
    /// # Panics
    /// The statement names another author than `signer`.
    #[must_use]
    pub fn sign(signer: &Signer, statement: &S) -> Self {
        assert!(statement.author() == signer.public_key(), "a {} is signed by the author that it names", S::KIND);
        let bytes = to_canonical(statement);
        let signature = signer.sign(S::CONTEXT, &bytes);
        Self { bytes, signature, kind: PhantomData }
    }

    /// Checks everything and returns what is said.
    ///
    /// The author is the one that the statement names: whether to trust it is the caller's part.
    ///
    /// # Errors
    /// The statement is malformed, of another version, not signed by its author, or expired.
    pub fn verify(&self, now_ms: u64) -> Result<S, StatementError> {
        let kind = S::KIND;
        let encoding = |source| StatementError::Encoding { kind, source };
        let mut head = minicbor::Decoder::new(&self.bytes);
        if let (Ok(Some(_)), Ok(version)) = (head.array(), head.u16())
            && version != S::VERSION
        {
            return Err(StatementError::Version { kind, version });
        }
        let statement: S = from_canonical(&self.bytes, MAX_STATEMENT_BYTES).map_err(encoding)?;
        if statement.version() != S::VERSION {
            return Err(StatementError::Version { kind, version: statement.version() });
        }
        let author = statement.author();
        if !is_signed_by(author, S::CONTEXT, &self.bytes, &self.signature) {
            return Err(StatementError::Signature { kind, author });
        }
        match statement.expires_ms() {
            Some(expires_ms) if expires_ms <= now_ms => {
                Err(StatementError::Expired { kind, ago_ms: now_ms - expires_ms })
            }
            _ => Ok(statement),
        }
    }

    /// Encodes statement and signature together.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        to_canonical(self)
    }

    /// Decodes statement and signature; neither is checked yet.
    ///
    /// # Errors
    /// Bytes that are too long or not canonical.
    pub fn decode(bytes: &[u8]) -> Result<Self, StatementError> {
        from_canonical(bytes, MAX_STATEMENT_BYTES).map_err(|source| StatementError::Encoding { kind: S::KIND, source })
    }
}

impl<S> Clone for Signed<S> {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), signature: self.signature, kind: PhantomData }
    }
}

impl<S> PartialEq for Signed<S> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.signature == other.signature
    }
}

impl<S> Eq for Signed<S> {}

impl<S: Statement> fmt::Debug for Signed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signed<{}>({} bytes)", S::KIND, self.bytes.len())
    }
}

impl<S, C> minicbor::Encode<C> for Signed<S> {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.array(2)?.bytes(&self.bytes)?.bytes(&self.signature)?.ok()
    }
}

impl<'b, S, C> minicbor::Decode<'b, C> for Signed<S> {
    fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        if decoder.array()? != Some(2) {
            return Err(minicbor::decode::Error::message("not a pair of statement and signature"));
        }
        let bytes = decoder.bytes()?.to_vec();
        let signature = decoder.bytes()?.try_into();
        let signature = signature.map_err(|_| minicbor::decode::Error::message("not the length of a signature"))?;
        Ok(Self { bytes, signature, kind: PhantomData })
    }
}

//! Certificates: an Indexer's word, for a short time, that an endpoint belongs to an account of its.
//!
//! A serving peer checks the certificate of who asks, and then whether the bucket's log grants reading to
//! (that Indexer's key, that account): see [`crate::Log::readable_by`].

use minicbor::{Decode, Encode};
use types::{EndpointId, Name, PublicKey};

use crate::signer::Signer;
use crate::statement::{Signed, Statement};

/// That an endpoint belongs to an account.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Certificate {
    /// The version of this format.
    #[n(0)]
    pub version: u16,
    /// The Indexer's key, which signs.
    #[n(1)]
    pub indexer: PublicKey,
    /// The account there.
    #[n(2)]
    pub account: Name,
    /// The endpoint.
    #[n(3)]
    pub endpoint: EndpointId,
    /// Until when it holds, in milliseconds since 1970.
    #[n(4)]
    pub expires_ms: u64,
}

/// A certificate as it is sent.
pub type SignedCertificate = Signed<Certificate>;

impl Statement for Certificate {
    const CONTEXT: &'static [u8] = b"brant 2026-11 certificate v1\0";
    const KIND: &'static str = "certificate";

    fn version(&self) -> u16 {
        self.version
    }

    fn author(&self) -> PublicKey {
        self.indexer
    }

    fn expires_ms(&self) -> Option<u64> {
        Some(self.expires_ms)
    }
}

impl Signed<Certificate> {
    /// Certifies, with the Indexer's key, that `endpoint` belongs to `account` until `expires_ms`.
    #[must_use]
    pub fn issue(indexer: &Signer, account: Name, endpoint: EndpointId, expires_ms: u64) -> Self {
        let version = Certificate::VERSION;
        Self::sign(indexer, &Certificate { version, indexer: indexer.public_key(), account, endpoint, expires_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::HeadStatement;
    use crate::statement::StatementError;

    fn issued() -> SignedCertificate {
        SignedCertificate::issue(&Signer::from_seed(&[1; 32]), "alice".parse().unwrap(), EndpointId([2; 32]), 1000)
    }

    #[test]
    fn a_certificate_holds_until_it_expires() {
        let signed = SignedCertificate::decode(&issued().encode()).unwrap();
        let certificate = signed.verify(999).unwrap();
        assert_eq!(certificate.account.as_str(), "alice");
        assert_eq!(certificate.indexer, Signer::from_seed(&[1; 32]).public_key());
        assert!(matches!(signed.verify(1000), Err(StatementError::Expired { ago_ms: 0, .. })));
    }

    #[test]
    fn no_bit_can_be_changed() {
        let good = issued().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let believed = SignedCertificate::decode(&bad).and_then(|signed| signed.verify(999));
            assert!(believed.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn nothing_else_passes_for_a_certificate() {
        let signed = issued();
        let other = Signed::<HeadStatement>::decode(&signed.encode()).unwrap();
        assert!(other.verify(0).is_err());
    }

    #[test]
    fn another_version_is_named() {
        let signer = Signer::from_seed(&[1; 32]);
        let mut certificate = issued().verify(0).unwrap();
        certificate.version = 2;
        let newer = Signed::sign(&signer, &certificate);
        assert!(matches!(newer.verify(0), Err(StatementError::Version { version: 2, .. })));
    }
}

//! Proofs: an endpoint's signed wish to be certified as one account's by one Indexer, now.

use bucket::{Signed, Statement};
use minicbor::{Decode, Encode};
use types::{EndpointId, Name, PublicKey};

/// That the holder of an endpoint's key wants it certified.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EndpointProof {
    /// The version of this format.
    #[n(0)]
    pub version: u16,
    /// The endpoint, which signs.
    #[n(1)]
    pub endpoint: EndpointId,
    /// The key of the Indexer that shall certify.
    #[n(2)]
    pub indexer: PublicKey,
    /// The account there.
    #[n(3)]
    pub account: Name,
    /// Until when the wish holds, in milliseconds since 1970.
    #[n(4)]
    pub expires_ms: u64,
}

/// A proof as it is sent.
pub type SignedProof = Signed<EndpointProof>;

impl Statement for EndpointProof {
    const CONTEXT: &'static [u8] = b"brant 2026-11 endpoint proof v1\0";
    const KIND: &'static str = "endpoint proof";

    fn version(&self) -> u16 {
        self.version
    }

    fn author(&self) -> PublicKey {
        PublicKey(self.endpoint.0)
    }

    fn expires_ms(&self) -> Option<u64> {
        Some(self.expires_ms)
    }
}

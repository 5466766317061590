//! Address records: where an endpoint can be reached, in its own signed words.
//!
//! The Indexer keeps the record with the highest sequence per endpoint, so that an old one cannot be replayed.

use std::net::SocketAddr;

use bucket::{Signed, Signer, Statement};
use minicbor::{Decode, Encode};
use types::{EndpointId, PublicKey};

/// The most addresses in one record.
pub const MAX_ADDRESSES: usize = 32;

/// The longest relay URL, in bytes.
pub const MAX_RELAY_BYTES: usize = 512;

/// Where an endpoint can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AddressRecord {
    /// The version of this format.
    #[n(0)]
    pub version: u16,
    /// The endpoint, which signs.
    #[n(1)]
    pub endpoint: EndpointId,
    /// Rises with each record of the endpoint; milliseconds since 1970 serve well.
    #[n(2)]
    pub sequence: u64,
    /// Its direct addresses, at most [`MAX_ADDRESSES`].
    #[cbor(n(3), with = "addresses")]
    pub addresses: Vec<SocketAddr>,
    /// The URL of its relay.
    #[n(4)]
    pub relay: Option<String>,
}

/// An address record as it is sent.
pub type SignedAddressRecord = Signed<AddressRecord>;

impl Statement for AddressRecord {
    const CONTEXT: &'static [u8] = b"brant 2026-11 address record v1\0";
    const KIND: &'static str = "address record";

    fn version(&self) -> u16 {
        self.version
    }

    fn author(&self) -> PublicKey {
        PublicKey(self.endpoint.0)
    }

    fn expires_ms(&self) -> Option<u64> {
        None
    }
}

impl AddressRecord {
    /// Signs a record with the endpoint's key; what is beyond the limits is left out.
    #[must_use]
    pub fn sign(
        endpoint: &Signer,
        sequence: u64,
        mut addresses: Vec<SocketAddr>,
        relay: Option<String>,
    ) -> SignedAddressRecord {
        addresses.truncate(MAX_ADDRESSES);
        let relay = relay.filter(|relay| relay.len() <= MAX_RELAY_BYTES);
        let (version, endpoint_id) = (Self::VERSION, endpoint.endpoint_id());
        Signed::sign(endpoint, &Self { version, endpoint: endpoint_id, sequence, addresses, relay })
    }

    /// Whether the record keeps the limits.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.addresses.len() <= MAX_ADDRESSES && self.relay.as_ref().is_none_or(|relay| relay.len() <= MAX_RELAY_BYTES)
    }
}

/// Socket addresses as text, which is canonical once parsed and written again.
mod addresses {
    use std::net::SocketAddr;

    use minicbor::decode::Error;
    use minicbor::{Decoder, Encoder};

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        addresses: &Vec<SocketAddr>,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.array(addresses.len() as u64)?;
        for address in addresses {
            encoder.str(&address.to_string())?;
        }
        Ok(())
    }

    pub(super) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Vec<SocketAddr>, Error> {
        let count = decoder.array()?.ok_or_else(|| Error::message("an array of unknown length"))?;
        let mut addresses = Vec::new();
        for _ in 0..count {
            let address = decoder.str()?.parse();
            addresses.push(address.map_err(|_| Error::message("not an address with a port"))?);
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_there_and_back() {
        let signer = Signer::from_seed(&[1; 32]);
        let addresses = vec!["10.0.0.1:7000".parse().unwrap(), "[2001:db8::1]:7000".parse().unwrap()];
        let signed = AddressRecord::sign(&signer, 5, addresses.clone(), Some("https://relay.example.org".into()));
        let record = SignedAddressRecord::decode(&signed.encode()).unwrap().verify(u64::MAX).unwrap();
        assert_eq!((record.addresses, record.sequence, record.endpoint), (addresses, 5, signer.endpoint_id()));
        let many = vec!["10.0.0.1:7000".parse().unwrap(); 100];
        assert_eq!(AddressRecord::sign(&signer, 5, many, None).verify(0).unwrap().addresses.len(), MAX_ADDRESSES);
    }
}

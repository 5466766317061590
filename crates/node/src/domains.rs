//! Trust domains by owner: whose data may stand in for whose.
//!
//! This node's own buckets are one domain, all public buckets another, and each foreign owner's private buckets one
//! each. What a volume cloned from somebody else's snapshot writes is in a domain of that volume: were it in that
//! owner's, the owner could probe for it; were it in our own, a chunk of ours could stand in for one that was never
//! fetched. `docs/decisions/003-trust-domains.md` tells more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use store::{ChunkStore, Domain};
use types::Reference;

use crate::api::ApiError;
use crate::error::store_error;
use crate::record::{DomainRecord, Record, RecordError};

const PREFIX: &str = "domain/";

/// The node's trust domains.
#[derive(Debug)]
pub(crate) struct TrustDomains {
    store: Arc<dyn ChunkStore>,
    known: Mutex<BTreeMap<String, Domain>>,
}

impl TrustDomains {
    pub(crate) fn open(store: Arc<dyn ChunkStore>) -> Result<Self, RecordError> {
        let records = DomainRecord::read_all(&*store, PREFIX)?;
        let known = records.into_iter().map(|(owner, record)| (owner, Domain(record.number))).collect();
        Ok(Self { store, known: Mutex::new(known) })
    }

    /// The domain of what is read from a reference.
    pub(crate) fn of_reference(&self, reference: &Reference, public: bool) -> Result<Domain, ApiError> {
        if public {
            return Ok(Domain::PUBLIC);
        }
        self.named(format!("account/{}/{}", reference.indexer, reference.account))
    }

    /// The domain of what a new volume over somebody else's snapshot writes.
    pub(crate) fn of_volume(&self, volume: &types::Name) -> Result<Domain, ApiError> {
        self.named(format!("volume/{volume}"))
    }

    fn named(&self, owner: String) -> Result<Domain, ApiError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(domain) = known.get(&owner) {
            return Ok(*domain);
        }
        let highest = known.values().copied().max().unwrap_or(Domain::PUBLIC).max(Domain::PUBLIC);
        let domain = Domain(highest.0 + 1);
        DomainRecord { number: domain.0 }.write(&*self.store, format!("{PREFIX}{owner}")).map_err(store_error)?;
        known.insert(owner, domain);
        Ok(domain)
    }
}

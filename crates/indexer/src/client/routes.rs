//! The client's methods, one per route: what is sent, and what of the answer is checked.

use bucket::{Head, HeadStatement, Signed, SignedCertificate, SignedHead, Signer, Statement};
use format::entry::SignedEntry;
use futures_util::stream::BoxStream;
use reqwest::Method;
use types::{EndpointId, Name, SnapshotId};

use super::error::{AppendError, ClientError};
use super::events::{HeadEvent, heads};
use super::{Identity, IndexerClient, MAX_LOG_BYTES, MAX_LOG_ENTRIES};
use crate::address::{AddressRecord, SignedAddressRecord};
use crate::announcement::{Announced, Announcement, MAX_SNAPSHOTS};
use crate::api::{
    ApiError, AppendRequest, ClaimRequest, HeadInfo, Info, LogPage, MAX_ENTRIES, MAX_ENTRIES_BYTES, Provider,
    Providers, ReferenceInfo, ReferencePage, SignedText, VisibilityRequest, WhoAmI,
};
use crate::proof::EndpointProof;

/// How long a proof or an announcement may be on its way, in milliseconds.
const PROOF_VALIDITY_MS: u64 = 5 * 60 * 1000;

/// The most providers that are taken from an answer.
const MAX_PROVIDERS: usize = 1000;

/// The most references of an account that are read.
const MAX_REFERENCES: usize = 100_000;

impl IndexerClient {
    pub(super) async fn ask_info(&self) -> Result<Info, ClientError> {
        self.transport.get(self.transport.url(&["indexer"], &[])).await
    }

    pub(super) async fn ask_whoami(&self) -> Result<WhoAmI, ClientError> {
        self.transport.get(self.transport.url(&["whoami"], &[])).await
    }

    /// The Indexer's key, asked once.
    async fn identity(&self) -> Result<&Identity, ClientError> {
        self.identity.get_or_try_init(|| async { Ok(Identity { indexer: self.ask_info().await?.key }) }).await
    }

    fn reference_url(&self, account: &Name, name: &Name, rest: &[&str], query: &[(&str, String)]) -> url::Url {
        let mut segments = vec!["accounts", account.as_str(), "references", name.as_str()];
        segments.extend(rest);
        self.transport.url(&segments, query)
    }

    pub(super) async fn send_claim(
        &self,
        account: &Name,
        name: &Name,
        public: bool,
        entries: &[SignedEntry],
    ) -> Result<ReferenceInfo, AppendError> {
        let first = batches(entries).next().unwrap_or_default();
        let body = ClaimRequest { public, entries: first.to_vec() };
        let url = self.reference_url(account, name, &[], &[]);
        let mut info: ReferenceInfo = self.transport.send(Method::PUT, url, &body).await.map_err(conflict)?;
        self.check_reference(account, name, &info)?;
        // What the Indexer has must be a beginning of what we have.
        let known = usize::try_from(info.head.sequence).unwrap_or(usize::MAX);
        match entries.get(known) {
            Some(entry) if entry.hash() == info.head.hash => {}
            _ => return Err(AppendError::Conflict { head: info.head.into() }),
        }
        if known + 1 < entries.len() {
            info.head = self.send_append(account, name, info.head.into(), &entries[known + 1..]).await?.into();
        }
        Ok(info)
    }

    pub(super) async fn ask_reference(&self, account: &Name, name: &Name) -> Result<ReferenceInfo, ClientError> {
        let info = self.transport.get(self.reference_url(account, name, &[], &[])).await?;
        self.check_reference(account, name, &info)?;
        Ok(info)
    }

    fn check_reference(&self, account: &Name, name: &Name, info: &ReferenceInfo) -> Result<(), ClientError> {
        if info.account == *account && info.name == *name {
            Ok(())
        } else {
            Err(self.transport.garbage("it is about another reference"))
        }
    }

    pub(super) async fn ask_references(&self) -> Result<Vec<ReferenceInfo>, ClientError> {
        let mut references = Vec::new();
        let mut after: Option<Name> = None;
        while references.len() < MAX_REFERENCES {
            let query: Vec<_> = after.iter().map(|after| ("after", after.to_string())).collect();
            let page: ReferencePage = self.transport.get(self.transport.url(&["references"], &query)).await?;
            let empty = page.references.is_empty();
            references.extend(page.references);
            match page.next {
                None => return Ok(references),
                Some(_) if empty => break,
                next if next <= after => break,
                next => after = next,
            }
        }
        Err(self.transport.garbage("a list of references that does not end"))
    }

    pub(super) async fn send_visibility(
        &self,
        account: &Name,
        name: &Name,
        public: bool,
    ) -> Result<ReferenceInfo, ClientError> {
        let url = self.reference_url(account, name, &[], &[]);
        let info = self.transport.send(Method::PATCH, url, &VisibilityRequest { public }).await?;
        self.check_reference(account, name, &info)?;
        Ok(info)
    }

    pub(super) async fn send_release(&self, account: &Name, name: &Name) -> Result<(), ClientError> {
        self.transport.send_only::<()>(Method::DELETE, self.reference_url(account, name, &[], &[]), None).await
    }

    pub(super) async fn ask_log(
        &self,
        account: &Name,
        name: &Name,
        from: u64,
    ) -> Result<Vec<SignedEntry>, ClientError> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        loop {
            let next = from.saturating_add(entries.len() as u64);
            let query = [("from", next.to_string()), ("limit", MAX_ENTRIES.to_string())];
            let page: LogPage = self.transport.get(self.reference_url(account, name, &["log"], &query)).await?;
            bytes += page.entries.iter().map(|entry| entry.entry.len()).sum::<usize>();
            let count = entries.len() + page.entries.len();
            if page.entries.len() > MAX_ENTRIES || count > MAX_LOG_ENTRIES || bytes > MAX_LOG_BYTES {
                return Err(self.transport.garbage("a log that does not end"));
            }
            let empty = page.entries.is_empty();
            entries.extend(page.entries);
            let end = from.saturating_add(entries.len() as u64);
            if page.head.sequence < end {
                return Ok(entries);
            }
            if empty {
                return Err(self.transport.garbage("a page without the entries that its head promises"));
            }
        }
    }

    pub(super) async fn send_append(
        &self,
        account: &Name,
        name: &Name,
        expected_head: Head,
        entries: &[SignedEntry],
    ) -> Result<Head, AppendError> {
        let mut head = expected_head;
        for batch in batches(entries) {
            let body = AppendRequest { expected_head: head.hash, entries: batch.to_vec() };
            let url = self.reference_url(account, name, &["log"], &[]);
            let answer: HeadInfo = self.transport.send(Method::POST, url, &body).await.map_err(conflict)?;
            let last = batch.last().map(SignedEntry::hash);
            if Some(answer.hash) != last || answer.sequence != head.sequence + batch.len() as u64 {
                return Err(self.transport.garbage("a head that is not the last entry appended").into());
            }
            head = answer.into();
        }
        Ok(head)
    }

    pub(super) async fn ask_head(
        &self,
        account: &Name,
        name: &Name,
    ) -> Result<(SignedHead, HeadStatement), ClientError> {
        let text: SignedText = self.transport.get(self.reference_url(account, name, &["head"], &[])).await?;
        self.open(&text)
    }

    pub(super) async fn follow(
        &self,
        account: &Name,
        name: &Name,
    ) -> Result<BoxStream<'static, Result<HeadEvent, ClientError>>, ClientError> {
        let response = self.transport.open_stream(self.reference_url(account, name, &["events"], &[])).await?;
        Ok(heads(self.transport.clone(), response))
    }

    pub(super) async fn send_announcement(
        &self,
        account: &Name,
        name: &Name,
        endpoint: &Signer,
        snapshots: &[Announced],
        ttl_s: u64,
    ) -> Result<(), ClientError> {
        let indexer = self.identity().await?.indexer;
        for snapshots in snapshots.chunks(MAX_SNAPSHOTS) {
            let announcement = Announcement {
                version: Announcement::VERSION,
                endpoint: endpoint.endpoint_id(),
                indexer,
                account: account.clone(),
                name: name.clone(),
                snapshots: snapshots.to_vec(),
                ttl_s,
                expires_ms: self.clock.now_ms().saturating_add(PROOF_VALIDITY_MS),
            };
            let body = SignedText::new(&Signed::sign(endpoint, &announcement));
            let url = self.reference_url(account, name, &["providers"], &[]);
            self.transport.send_only(Method::POST, url, Some(&body)).await?;
        }
        Ok(())
    }

    pub(super) async fn ask_providers(
        &self,
        account: &Name,
        name: &Name,
        snapshot: SnapshotId,
    ) -> Result<Vec<Provider>, ClientError> {
        let query = [("snapshot", snapshot.to_string())];
        let answer: Providers = self.transport.get(self.reference_url(account, name, &["providers"], &query)).await?;
        if answer.snapshot != snapshot || answer.providers.len() > MAX_PROVIDERS {
            return Err(self.transport.garbage("it is about another snapshot, or does not end"));
        }
        Ok(answer.providers)
    }

    pub(super) async fn send_endpoint(&self, record: &SignedAddressRecord) -> Result<(), ClientError> {
        let id = match record.verify(self.clock.now_ms()) {
            Ok(record) => record.endpoint,
            Err(error) => return Err(self.transport.garbage(&error.to_string())),
        };
        let url = self.transport.url(&["endpoints", &id.to_string()], &[]);
        self.transport.send_only(Method::PUT, url, Some(&SignedText::new(record))).await
    }

    pub(super) async fn ask_endpoint(&self, id: EndpointId) -> Result<Option<AddressRecord>, ClientError> {
        let url = self.transport.url(&["endpoints", &id.to_string()], &[]);
        let text: SignedText = match self.transport.get(url).await {
            Err(ClientError::NotFound(_)) => return Ok(None),
            answer => answer?,
        };
        let (_, record): (_, AddressRecord) = self.open(&text)?;
        if record.endpoint != id || !record.is_bounded() {
            return Err(self.transport.garbage("another endpoint's record"));
        }
        Ok(Some(record))
    }

    pub(super) async fn ask_certificate(&self, endpoint: &Signer) -> Result<SignedCertificate, ClientError> {
        let indexer = self.identity().await?.indexer;
        let account = self.ask_whoami().await?.account;
        let proof = EndpointProof {
            version: EndpointProof::VERSION,
            endpoint: endpoint.endpoint_id(),
            indexer,
            account: account.clone(),
            expires_ms: self.clock.now_ms().saturating_add(PROOF_VALIDITY_MS),
        };
        let body = SignedText::new(&Signed::sign(endpoint, &proof));
        let url = self.transport.url(&["certificates"], &[]);
        let text: SignedText = self.transport.send(Method::POST, url, &body).await?;
        let (signed, certificate): (SignedCertificate, bucket::Certificate) = self.open(&text)?;
        let expected = (indexer, account, endpoint.endpoint_id());
        if (certificate.indexer, certificate.account, certificate.endpoint) == expected {
            Ok(signed)
        } else {
            Err(self.transport.garbage("a certificate for someone else"))
        }
    }

    /// Decodes and verifies what is signed.
    fn open<S: Statement>(&self, text: &SignedText) -> Result<(Signed<S>, S), ClientError> {
        let signed: Signed<S> = text.decode().ok_or_else(|| self.transport.garbage("not a signed statement"))?;
        match signed.verify(self.clock.now_ms()) {
            Ok(statement) => Ok((signed, statement)),
            Err(error) => Err(self.transport.garbage(&error.to_string())),
        }
    }
}

/// Runs of entries that fit one request each.
fn batches(entries: &[SignedEntry]) -> impl Iterator<Item = &[SignedEntry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |entry: &&SignedEntry| {
            bytes += entry.entry.len() + 80;
            bytes <= MAX_ENTRIES_BYTES
        };
        let count = rest.iter().take(MAX_ENTRIES).take_while(fits).count().max(1).min(rest.len());
        let (batch, remaining) = rest.split_at(count);
        rest = remaining;
        (!batch.is_empty()).then_some(batch)
    })
}

/// A conflict that names a head is one of the log.
fn conflict(error: ClientError) -> AppendError {
    match error {
        ClientError::Conflict(ApiError { head: Some(head), .. }) => AppendError::Conflict { head: head.into() },
        error => AppendError::Client(error),
    }
}

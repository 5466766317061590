//! The node's side: every route of an Indexer as a method. All that comes back is taken for hostile.
//!
//! Answers are bounded in size and time, redirects are not followed, and what is signed is verified here. Log entries
//! are only decoded: `bucket::Log` verifies them, and detects replayed and forked logs.

mod error;
mod events;
mod routes;
mod transport;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bucket::{Head, HeadStatement, SignedCertificate, SignedHead, Signer};
use format::entry::SignedEntry;
use tokio::sync::OnceCell;
use types::{EndpointId, Name, PublicKey, SnapshotId};
use url::Url;

pub use self::error::{AppendError, ClientError};
pub use self::events::HeadEvent;
use self::transport::Transport;
use crate::address::{AddressRecord, SignedAddressRecord};
use crate::announcement::Announced;
pub use crate::api::{ApiError, Info, Provider, ReferenceInfo, WhoAmI};
use crate::clock::Clock;

/// The most entries that one call of [`IndexerClient::log`] returns.
pub const MAX_LOG_ENTRIES: usize = 200_000;

/// The most bytes of entries that one call of [`IndexerClient::log`] returns.
pub const MAX_LOG_BYTES: usize = 128 << 20;

/// How long a client waits.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For a whole answer; event streams aside.
    pub request: Duration,
    /// For the next sign of life of an event stream.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), request: Duration::from_secs(30), idle: Duration::from_secs(60) }
    }
}

/// Speaks to one Indexer, with an account's token or without. Cheap to clone.
#[derive(Clone, Debug)]
pub struct IndexerClient {
    transport: Transport,
    clock: Clock,
    /// What the Indexer and the token are, asked once.
    identity: Arc<OnceCell<Identity>>,
}

/// Who is at both ends: what proofs and announcements are bound to.
#[derive(Clone, Debug)]
struct Identity {
    indexer: PublicKey,
}

impl IndexerClient {
    /// A client of the Indexer at `base_url` (`http` or `https`, with or without a path).
    ///
    /// # Errors
    /// The URL or the token cannot be used, or TLS cannot be set up. Nothing is sent yet.
    pub fn new(base_url: Url, token: Option<String>) -> Result<Self, ClientError> {
        Self::with(base_url, token, Timeouts::default(), Clock::system())
    }

    /// A client with other patience, or another clock.
    ///
    /// # Errors
    /// As [`IndexerClient::new`].
    pub fn with(base_url: Url, token: Option<String>, timeouts: Timeouts, clock: Clock) -> Result<Self, ClientError> {
        let transport = Transport::new(base_url, token, timeouts)?;
        Ok(Self { transport, clock, identity: Arc::default() })
    }

    /// The Indexer's URL.
    #[must_use]
    pub fn base_url(&self) -> &Url {
        self.transport.base_url()
    }

    /// Whether the client has a token to show.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.transport.has_token()
    }

    /// What the Indexer says of itself.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn info(&self) -> Result<Info, ClientError> {
        self.ask_info().await
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// [`ClientError::Unauthorized`] where there is none or it is not valid; see [`ClientError`].
    pub async fn whoami(&self) -> Result<WhoAmI, ClientError> {
        self.ask_whoami().await
    }

    /// Claims a reference for the bucket whose log is given, from its creation; long logs go in several requests.
    /// Claiming again what is claimed for the same bucket is no error, and brings the Indexer up to date.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] where the Indexer's log has entries that `entries` has not.
    pub async fn claim(
        &self,
        account: &Name,
        name: &Name,
        public: bool,
        entries: &[SignedEntry],
    ) -> Result<ReferenceInfo, AppendError> {
        self.send_claim(account, name, public, entries).await
    }

    /// What a reference names.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] where there is none, or none that this account may read.
    pub async fn reference(&self, account: &Name, name: &Name) -> Result<ReferenceInfo, ClientError> {
        self.ask_reference(account, name).await
    }

    /// All references of the token's account.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn references(&self) -> Result<Vec<ReferenceInfo>, ClientError> {
        self.ask_references().await
    }

    /// Changes whether everyone may read a reference.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_public(&self, account: &Name, name: &Name, public: bool) -> Result<ReferenceInfo, ClientError> {
        self.send_visibility(account, name, public).await
    }

    /// Gives a reference up; its log at the Indexer is gone.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn release(&self, account: &Name, name: &Name) -> Result<(), ClientError> {
        self.send_release(account, name).await
    }

    /// A log's entries from number `from` on, in order; not yet verified.
    ///
    /// # Errors
    /// [`ClientError::Garbage`] where there is more than [`MAX_LOG_ENTRIES`] or [`MAX_LOG_BYTES`], or a page without
    /// progress.
    pub async fn log(&self, account: &Name, name: &Name, from: u64) -> Result<Vec<SignedEntry>, ClientError> {
        self.ask_log(account, name, from).await
    }

    /// Appends entries to a log whose head is `expected_head`. Repeating what was accepted is no error.
    ///
    /// # Errors
    /// [`AppendError::Conflict`] with the head where it is another: rebase on it.
    pub async fn append(
        &self,
        account: &Name,
        name: &Name,
        expected_head: Head,
        entries: &[SignedEntry],
    ) -> Result<Head, AppendError> {
        self.send_append(account, name, expected_head, entries).await
    }

    /// The Indexer's signed word for the current head, verified and not expired.
    ///
    /// Whether [`HeadStatement::indexer`] is the key that one trusts is the caller's part.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn head(&self, account: &Name, name: &Name) -> Result<(SignedHead, HeadStatement), ClientError> {
        self.ask_head(account, name).await
    }

    /// Follows a log's head: the current one at once, then each change. The stream ends with an error when the
    /// connection does: ask [`IndexerClient::log`] and follow again.
    ///
    /// # Errors
    /// See [`ClientError`].
    ///
    /// # Cancel safety
    /// Dropping the stream closes the connection.
    pub async fn events(
        &self,
        account: &Name,
        name: &Name,
    ) -> Result<futures_util::stream::BoxStream<'static, Result<HeadEvent, ClientError>>, ClientError> {
        self.follow(account, name).await
    }

    /// Announces that the endpoint, whose key is given, provides snapshots of a reference for `ttl_s` seconds; 0
    /// takes it back. Any number of snapshots; they go in several requests.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn announce(
        &self,
        account: &Name,
        name: &Name,
        endpoint: &Signer,
        snapshots: &[Announced],
        ttl_s: u64,
    ) -> Result<(), ClientError> {
        self.send_announcement(account, name, endpoint, snapshots, ttl_s).await
    }

    /// Who provides a snapshot; a random choice where there are many.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn providers(
        &self,
        account: &Name,
        name: &Name,
        snapshot: SnapshotId,
    ) -> Result<Vec<Provider>, ClientError> {
        self.ask_providers(account, name, snapshot).await
    }

    /// Publishes where an endpoint can be reached. An older record than the Indexer has is refused.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put_endpoint(&self, record: &SignedAddressRecord) -> Result<(), ClientError> {
        self.send_endpoint(record).await
    }

    /// Publishes the addresses of the endpoint whose key is given, as of now.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put_addresses(
        &self,
        endpoint: &Signer,
        addresses: Vec<SocketAddr>,
        relay: Option<String>,
    ) -> Result<(), ClientError> {
        self.send_endpoint(&AddressRecord::sign(endpoint, self.clock.now_ms(), addresses, relay)).await
    }

    /// Where an endpoint can be reached, in its own signed words; `None` where the Indexer does not know.
    ///
    /// # Errors
    /// [`ClientError::Garbage`] where the record is not the endpoint's.
    pub async fn endpoint(&self, id: EndpointId) -> Result<Option<AddressRecord>, ClientError> {
        self.ask_endpoint(id).await
    }

    /// A certificate that the endpoint, whose key is given, belongs to the token's account.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn certificate(&self, endpoint: &Signer) -> Result<SignedCertificate, ClientError> {
        self.ask_certificate(endpoint).await
    }
}

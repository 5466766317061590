//! Publishing and following: what this node exchanges with Indexers, in the background and on command.
//!
//! A published bucket's new entries are pushed as they come; a followed one's are pulled, told by server-sent events
//! with polling as the fallback. Nothing that an Indexer says is believed: entries carry their writers' signatures, and
//! a head that lies before what is known, or a log that differs from it, is reported and not taken in.

use std::sync::Arc;
use std::time::Duration;

use ::bucket::{Head, HeadOrder};
use format::entry::{Action, Reader};
use futures_util::StreamExt as _;
use indexer::Announced;
use indexer::client::{AppendError, ClientError, IndexerClient};
use types::{Name, Reference, SnapshotId};

use crate::api::{ApiError, ErrorCode, Policy, Publication, PublishRequest, SubscribeRequest, Subscription};
use crate::buckets::{BucketState, parse_reader};
use crate::error::blocking;
use crate::indexers::client_error;
use crate::node::Node;
use crate::record::{BucketRecord, PolicyRecord, SubscribedRecord};

/// How often an Indexer is asked for news when its events do not come, and told again what is provided here.
const POLL: Duration = Duration::from_secs(30);

/// How long an announcement is good: a few times as long as until the next one.
const ANNOUNCEMENT_LIFE: Duration = Duration::from_secs(120);

/// The first and the longest pause after an Indexer failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

impl From<Policy> for PolicyRecord {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Tree => Self::Tree,
            Policy::Lazy => Self::Lazy,
            Policy::Full => Self::Full,
        }
    }
}

impl From<PolicyRecord> for Policy {
    fn from(policy: PolicyRecord) -> Self {
        match policy {
            PolicyRecord::Tree => Self::Tree,
            PolicyRecord::Lazy => Self::Lazy,
            PolicyRecord::Full => Self::Full,
        }
    }
}

impl Node {
    /// Publishes a bucket: claims the reference, and pushes the log now and whenever it grows.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        name: &Name,
        request: PublishRequest,
    ) -> Result<Publication, ApiError> {
        let bucket = self.buckets.find(name)?;
        let reference = request.reference;
        if !bucket.writable() {
            return Err(ApiError::new(ErrorCode::Forbidden, format!("{name} is somebody else's bucket")));
        }
        if let Some(before) = bucket.published().filter(|before| *before != reference) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} is published at {before}"))
                .hint(format!("first: brant unpublish {name}")));
        }
        let account = self.indexers.account_name(&reference.indexer).ok_or_else(|| {
            ApiError::new(ErrorCode::Forbidden, format!("this node has no account at {}", reference.indexer))
                .hint(format!("first: brant login {}", reference.indexer))
        })?;
        if account != reference.account {
            return Err(ApiError::new(
                ErrorCode::Forbidden,
                format!("this node is {account} at {}", reference.indexer),
            )
            .hint(format!("publish at {}/{account}/{}", reference.indexer, reference.name)));
        }
        let mut readers = Vec::new();
        if request.public {
            readers.push(Reader::Everyone);
        }
        if bucket.published().is_none() {
            // The other nodes of whom it belongs to.
            let own = format!("account:{}/{account}", reference.indexer);
            readers.push(parse_reader(&own, |indexer| self.indexers.key_of(indexer))?);
        }
        for reader in readers {
            self.grant(&bucket, reader).await?;
        }
        let client = self.indexers.client(&reference.indexer)?;
        let entries = bucket.history().log.entries().to_vec();
        let claimed = client.claim(&reference.account, &reference.name, request.public, &entries).await;
        claimed.map_err(|error| append_error(&error))?;
        let (node, changing, text) = (Arc::clone(self), Arc::clone(&bucket), reference.to_string());
        blocking(move || node.buckets.update(&changing, |record| record.published = Some(text))).await?;
        self.push(&bucket, &reference).await?;
        self.start_exchanging(&bucket);
        self.announce_soon().await;
        let entries = bucket.history().log.length();
        Ok(Publication { bucket: name.clone(), reference, public: request.public, entries })
    }

    /// Lets somebody read a bucket, who may be among its readers already.
    pub(crate) async fn grant(self: &Arc<Self>, bucket: &Arc<BucketState>, reader: Reader) -> Result<(), ApiError> {
        if !bucket.history().log.readers().any(|known| *known == reader) {
            self.append(bucket, Action::Grant { reader }).await?;
        }
        Ok(())
    }

    /// Withdraws a bucket's reference. What others have, they keep.
    pub(crate) async fn unpublish(self: &Arc<Self>, name: &Name) -> Result<Reference, ApiError> {
        let bucket = self.buckets.find(name)?;
        let reference = bucket
            .published()
            .ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("{name} is not published from here")))?;
        match self.indexers.client(&reference.indexer)?.release(&reference.account, &reference.name).await {
            Ok(()) | Err(ClientError::NotFound(_)) => {}
            Err(error) => return Err(client_error(&error)),
        }
        let node = Arc::clone(self);
        blocking(move || node.buckets.update(&bucket, |record| record.published = None)).await?;
        Ok(reference)
    }

    /// Follows a reference from now on, under a policy.
    pub(crate) async fn subscribe(self: &Arc<Self>, request: SubscribeRequest) -> Result<Subscription, ApiError> {
        let reference = request.reference;
        let name = request.bucket.unwrap_or_else(|| reference.name.clone());
        if let Ok(existing) = self.buckets.find(&name) {
            if existing.subscribed().as_ref() == Some(&reference) {
                self.check_readable(&reference).await?;
            }
            return Err(self.taken(&existing, &reference, request.policy));
        }
        let client = self.indexers.client(&reference.indexer)?;
        let found = client.reference(&reference.account, &reference.name).await;
        let found = found.map_err(|error| reference_error(&error, &reference))?;
        let entries = client.log(&reference.account, &reference.name, 0).await;
        let entries = entries.map_err(|error| reference_error(&error, &reference))?;
        let node = Arc::clone(self);
        let policy = request.policy;
        let followed = reference.clone();
        let bucket = blocking(move || {
            let log = ::bucket::Log::replay(found.bucket, entries.clone())
                .map_err(|error| ApiError::from_error(ErrorCode::Damaged, &error))?;
            let public = log.readers().any(|reader| *reader == Reader::Everyone);
            let domain = node.domains.of_reference(&followed, public)?;
            let subscribed = Some(SubscribedRecord { reference: followed.to_string(), policy: policy.into() });
            let record = BucketRecord { name, domain: domain.0, published: None, subscribed };
            node.buckets.add(found.bucket, record, entries)
        })
        .await?;
        self.index_bucket(&bucket).await?;
        self.start_exchanging(&bucket);
        let entries = bucket.history().log.length();
        Ok(Subscription { bucket: bucket.name(), reference, policy, entries })
    }

    /// An error where the Indexer says that a reference may not be read, or not any more.
    async fn check_readable(&self, reference: &Reference) -> Result<(), ApiError> {
        let client = self.indexers.client(&reference.indexer)?;
        match client.reference(&reference.account, &reference.name).await {
            Err(error @ ClientError::NotFound(_)) => Err(reference_error(&error, reference)),
            _ => Ok(()),
        }
    }

    fn taken(&self, existing: &BucketState, reference: &Reference, policy: Policy) -> ApiError {
        let name = existing.name();
        let error = ApiError::new(ErrorCode::Conflict, format!("there is a bucket {name} already"));
        match existing.record().subscribed {
            Some(followed) if followed.reference == reference.to_string() && followed.policy == policy.into() => {
                error.hint("it follows this reference already")
            }
            _ => error.hint(format!("choose another name: brant subscribe {reference} NAME")),
        }
    }

    /// Stops following a reference; the bucket and what is here of it go with it.
    pub(crate) async fn unsubscribe(self: &Arc<Self>, name: &Name) -> Result<(), ApiError> {
        let bucket = self.buckets.find(name)?;
        if bucket.subscribed().is_none() {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} follows no reference"))
                .hint(format!("to remove a bucket of your own: brant bucket remove {name}")));
        }
        self.remove_bucket(name).await
    }

    /// Forgets a bucket; its log and key are moved aside.
    pub(crate) async fn remove_bucket(self: &Arc<Self>, name: &Name) -> Result<(), ApiError> {
        let bucket = self.buckets.find(name)?;
        if let Some(reference) = bucket.published() {
            return Err(ApiError::new(ErrorCode::Conflict, format!("{name} is published at {reference}"))
                .hint(format!("first: brant unpublish {name}")));
        }
        let (node, removed) = (Arc::clone(self), name.clone());
        blocking(move || node.buckets.remove(&removed)).await?;
        self.versions.forget(bucket.id);
        // The follower finds its bucket gone.
        bucket.wake();
        self.catalog.replace_versions(name.as_str(), &[]).await.map_err(crate::error::catalog_error)
    }

    /// Follows or pushes a bucket in the background, whichever applies.
    pub(crate) fn start_exchanging(self: &Arc<Self>, bucket: &Arc<BucketState>) {
        if !bucket.start_exchanging() {
            return;
        }
        let (node, bucket) = (Arc::clone(self), Arc::clone(bucket));
        if let Some(reference) = bucket.subscribed() {
            self.spawn(async move { node.follow(&bucket, &reference).await });
        } else if bucket.published().is_some() {
            self.spawn(async move { node.keep_pushed(&bucket).await });
        } else {
            bucket.stop_exchanging();
        }
    }

    fn is_known(&self, bucket: &BucketState) -> bool {
        self.buckets.list().iter().any(|known| known.id == bucket.id)
    }

    async fn keep_pushed(self: &Arc<Self>, bucket: &Arc<BucketState>) {
        let mut grown = bucket.watch();
        let mut pause = BACKOFF.0;
        while let Some(reference) = bucket.published().filter(|_| self.is_known(bucket)) {
            grown.mark_unchanged();
            match self.push(bucket, &reference).await {
                Ok(()) => {
                    pause = BACKOFF.0;
                    bucket.set_problem(None);
                    // The poll notices that the Indexer lost its state, or that the bucket was withdrawn.
                    drop(tokio::time::timeout(POLL, grown.changed()).await);
                }
                Err(error) => {
                    bucket.set_problem(Some(error.message));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
        bucket.stop_exchanging();
    }

    /// Pushes what the Indexer lacks.
    async fn push(&self, bucket: &BucketState, reference: &Reference) -> Result<(), ApiError> {
        let client = self.indexers.client(&reference.indexer)?;
        let theirs =
            client.reference(&reference.account, &reference.name).await.map_err(|error| client_error(&error))?;
        let head = Head::from(theirs.head);
        // Not in the match itself, which would hold the log until its end.
        let order = bucket.history().log.compare(head);
        let missing = match order {
            HeadOrder::Same => return Ok(()),
            HeadOrder::Older => bucket.history().log.entries_from(head.sequence + 1).to_vec(),
            HeadOrder::Newer | HeadOrder::Diverged => {
                let message = format!("the log at {reference} is not ours: it was written elsewhere with the same key");
                return Err(ApiError::new(ErrorCode::Conflict, message));
            }
        };
        let appended = client.append(&reference.account, &reference.name, head, &missing).await;
        appended.map_err(|error| append_error(&error))?;
        self.moved.notify_one();
        Ok(())
    }

    async fn follow(self: &Arc<Self>, bucket: &Arc<BucketState>, reference: &Reference) {
        let mut pause = BACKOFF.0;
        self.spawn_policy(bucket);
        while self.is_known(bucket) {
            match self.follow_events(bucket, reference).await {
                Ok(()) => pause = BACKOFF.0,
                Err(error) => {
                    bucket.set_problem(Some(error.message));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
        bucket.stop_exchanging();
    }

    /// Pulls, then waits for one event or the time to poll.
    async fn follow_events(self: &Arc<Self>, bucket: &Arc<BucketState>, reference: &Reference) -> Result<(), ApiError> {
        let client = self.indexers.client(&reference.indexer)?;
        // The events are subscribed to first, so that nothing falls between the pull and them.
        let events = client.events(&reference.account, &reference.name).await;
        self.pull(bucket, reference, &client).await?;
        bucket.set_problem(None);
        let Ok(mut events) = events else {
            tokio::time::sleep(POLL).await;
            return Ok(());
        };
        while let Ok(Some(Ok(_))) = tokio::time::timeout(POLL, events.next()).await {
            self.pull(bucket, reference, &client).await?;
            if !self.is_known(bucket) {
                break;
            }
        }
        Ok(())
    }

    async fn pull(
        self: &Arc<Self>,
        bucket: &Arc<BucketState>,
        reference: &Reference,
        client: &IndexerClient,
    ) -> Result<(), ApiError> {
        let known = bucket.history().log.length();
        // The last known entry is asked for again: a log that differs there is a fork, a shorter one an old head.
        let entries = client.log(&reference.account, &reference.name, known.saturating_sub(1)).await;
        let entries = entries.map_err(|error| client_error(&error))?;
        let receiving = Arc::clone(bucket);
        let added = blocking(move || receiving.receive(entries)).await?;
        if added > 0 {
            tracing::info!(bucket = %bucket.name(), added, "new log entries");
            self.index_bucket(bucket).await?;
        }
        Ok(())
    }

    /// Brings what the policy says of every version, old and new.
    fn spawn_policy(self: &Arc<Self>, bucket: &Arc<BucketState>) {
        let (node, bucket) = (Arc::clone(self), Arc::clone(bucket));
        self.spawn(async move {
            let mut grown = bucket.watch();
            let mut done = std::collections::BTreeSet::new();
            while node.is_known(&bucket) {
                grown.mark_unchanged();
                let offered: Vec<_> = bucket.history().log.snapshots().collect();
                for snapshot in offered {
                    if done.contains(&snapshot) {
                        continue;
                    }
                    match node.bring(&bucket, snapshot).await {
                        Ok(()) => drop(done.insert(snapshot)),
                        Err(error) => tracing::info!(%error, %snapshot, "not all of a snapshot could be brought yet"),
                    }
                }
                drop(tokio::time::timeout(POLL, grown.changed()).await);
            }
        });
    }

    async fn bring(self: &Arc<Self>, bucket: &Arc<BucketState>, snapshot: SnapshotId) -> Result<(), ApiError> {
        let Some(policy) = bucket.record().subscribed.map(|followed| Policy::from(followed.policy)) else {
            return Ok(());
        };
        let resolved = self.resolve(&snapshot.to_string())?;
        let bases = self.tree_bases(&resolved).await?;
        let progress = types::Progress::default();
        for tree in bases.iter().filter_map(|(_, base)| crate::transfer::remote_tree(base)) {
            let brought = match policy {
                Policy::Lazy => Ok(()),
                Policy::Tree => self.swarm.fetch_tree(&tree, &progress).await,
                Policy::Full => self.swarm.hydrate(&tree, &progress).await,
            };
            brought.map_err(|error| crate::transfer::swarm_error(&error))?;
        }
        if policy == Policy::Full {
            self.moved.notify_one();
        }
        Ok(())
    }

    /// Tells the Indexers, again and again, where this node is and what it provides.
    pub(crate) fn spawn_announcer(self: &Arc<Self>) {
        let node = Arc::clone(self);
        self.spawn(async move {
            loop {
                if let Err(error) = node.announce().await {
                    tracing::debug!(%error, "an announcement failed");
                }
                drop(tokio::time::timeout(POLL, node.moved.notified()).await);
            }
        });
    }

    /// Announces at once, so that whoever subscribes next finds this node. A failure is tried again in the background.
    async fn announce_soon(self: &Arc<Self>) {
        if let Err(error) = self.announce().await {
            tracing::info!(%error, "the first announcement failed");
        }
    }

    async fn announce(self: &Arc<Self>) -> Result<(), ApiError> {
        let mut first_error = Ok(());
        for host in self.indexers.hosts() {
            if let Err(error) = self.announce_at(&host).await {
                first_error = first_error.and(Err(error));
            }
        }
        first_error
    }

    async fn announce_at(self: &Arc<Self>, host: &str) -> Result<(), ApiError> {
        let client = self.indexers.client(host)?;
        let signer = self.indexers.signer();
        let addresses = self.swarm.addresses();
        client.put_addresses(signer, addresses, None).await.map_err(|error| client_error(&error))?;
        for bucket in self.buckets.list() {
            let reference = bucket.published().or_else(|| bucket.subscribed());
            let Some(reference) = reference.filter(|reference| reference.indexer == host) else { continue };
            let (node, asked) = (Arc::clone(self), Arc::clone(&bucket));
            let provided = blocking(move || node.provided(&asked)).await?;
            if provided.is_empty() {
                continue;
            }
            let announced = client
                .announce(&reference.account, &reference.name, signer, &provided, ANNOUNCEMENT_LIFE.as_secs())
                .await;
            announced.map_err(|error| client_error(&error))?;
        }
        Ok(())
    }

    /// What this node provides of a bucket: all of its own, and what it holds in whole of others'.
    fn provided(&self, bucket: &BucketState) -> Result<Vec<Announced>, ApiError> {
        let offered: Vec<_> = {
            let history = bucket.history();
            history.log.snapshots().filter(|snapshot| history.log.offers(*snapshot)).collect()
        };
        let full = bucket.record().subscribed.map(|followed| followed.policy);
        let mut provided = Vec::new();
        for snapshot in offered {
            let complete = self.is_complete(snapshot)?;
            if full.is_none() || complete {
                provided.push(Announced { snapshot, complete });
            }
        }
        Ok(provided)
    }
}

/// An Indexer answers the same for what does not exist and what may not be read.
fn reference_error(error: &ClientError, reference: &Reference) -> ApiError {
    match error {
        ClientError::NotFound(_) => {
            ApiError::new(ErrorCode::NotFound, format!("there is no reference {reference}, or it may not be read"))
                .hint(
                    "if it is private, its owner must grant it to your account, and this node must be logged in there",
                )
        }
        error => client_error(error),
    }
}

fn append_error(error: &AppendError) -> ApiError {
    match error {
        AppendError::Client(error) => client_error(error),
        error => ApiError::from_error(ErrorCode::Conflict, error),
    }
}

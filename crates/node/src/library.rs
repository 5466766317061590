//! What the swarm asks the node: who may read what, who has what, and where peers are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::bucket::SignedCertificate;
use format::entry::Reader;
use format::{Disk, Manifest, Shape, tree};
use futures_util::future::BoxFuture;
use store::{ChunkStore, Domain, Domains, Key, NodeCache, Nodes, Origin, Part};
use swarm::{Library, Peer, Served};
use tokio::sync::Notify;
use types::{EndpointId, Reference, SnapshotId};

use crate::buckets::{BucketState, Buckets};
use crate::cluster::Moves;
use crate::indexers::Indexers;
use crate::readers::Readers;
use crate::version::Versions;

/// For how long an Indexer's answer about providers or addresses is used again.
const ANSWER_LIFE: Duration = Duration::from_secs(5);

/// How many answers are remembered.
const MAX_ANSWERS: usize = 1024;

/// What decoded nodes of relatives' trees may take, in bytes.
const NODE_CACHE_BYTES: u64 = 1 << 20;

type Remembered<K, V> = Mutex<BTreeMap<K, (Instant, V)>>;

/// The node, as the swarm sees it.
#[derive(Debug)]
pub(crate) struct NodeLibrary {
    store: Arc<dyn ChunkStore>,
    buckets: Arc<Buckets>,
    versions: Arc<Versions>,
    indexers: Arc<Indexers>,
    moves: Arc<Moves>,
    readers: Arc<Readers>,
    providers: Arc<Remembered<SnapshotId, Vec<EndpointId>>>,
    addresses: Arc<Remembered<EndpointId, Vec<SocketAddr>>>,
    relatives: Remembered<SnapshotId, Arc<Vec<Relative>>>,
    /// Decoded nodes of relatives' trees.
    nodes: Arc<NodeCache>,
    /// Woken when this node's addresses change, so that they are announced.
    moved: Arc<Notify>,
}

fn remembered<K: Ord, V: Clone>(answers: &Remembered<K, V>, key: &K) -> Option<V> {
    let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    answers.get(key).filter(|(since, _)| since.elapsed() < ANSWER_LIFE).map(|(_, value)| value.clone())
}

fn remember<K: Ord, V>(answers: &Remembered<K, V>, key: K, value: V) {
    let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
    if answers.len() >= MAX_ANSWERS {
        answers.retain(|_, (since, _)| since.elapsed() < ANSWER_LIFE);
    }
    answers.insert(key, (Instant::now(), value));
}

impl NodeLibrary {
    pub(crate) fn new(
        store: Arc<dyn ChunkStore>,
        buckets: Arc<Buckets>,
        versions: Arc<Versions>,
        indexers: Arc<Indexers>,
        moves: Arc<Moves>,
        readers: Arc<Readers>,
        moved: Arc<Notify>,
    ) -> Self {
        Self {
            store,
            buckets,
            versions,
            indexers,
            moves,
            readers,
            providers: Arc::default(),
            addresses: Arc::default(),
            relatives: Mutex::default(),
            nodes: NodeCache::new(NODE_CACHE_BYTES),
            moved,
        }
    }

    fn domains_in(&self, bucket: &BucketState, snapshot: &SnapshotId) -> (Domains, Vec<Option<Origin>>) {
        let places = bucket.history().log.snapshot_versions(*snapshot).to_vec();
        let record = places.iter().find_map(|(object, version)| self.versions.find(bucket.id, object, *version));
        match record {
            None => (Domain(bucket.record().domain).into(), Vec::new()),
            Some(record) => (record.domains(), record.disks.iter().map(|disk| disk.origin.map(Origin::from)).collect()),
        }
    }

    /// Whether everyone who may publish `bucket` may read `base`: then what both have at one place tells them nothing.
    fn may_stand_in(&self, bucket: &BucketState, base: &BucketState) -> bool {
        let Some(followed) = bucket.subscribed() else { return false };
        let key = self.indexers.key_of(&followed.indexer);
        base.history().log.readers().any(|reader| match reader {
            Reader::Everyone => true,
            Reader::Account { indexer, account } => Some(*indexer) == key && *account == followed.account,
            Reader::Endpoint { .. } => false,
        })
    }

    /// The snapshots of ours that a foreign one says it was derived from, and that its publisher may read.
    fn find_relatives(&self, snapshot: SnapshotId, domain: Domain) -> Option<Vec<Relative>> {
        let bytes = self.store.get(&Key::from(snapshot), &domain.into()).ok()??;
        let base = Manifest::decode(&bytes).ok()?.base?;
        let foreign = self.buckets.offering(&snapshot);
        let own = self.buckets.offering(&base).into_iter().filter(|bucket| bucket.writable());
        let fitting = own.filter(|base| foreign.iter().any(|bucket| self.may_stand_in(bucket, base)));
        let relative = |bucket: Arc<BucketState>| {
            let (domains, _) = self.domains_in(&bucket, &base);
            let bytes = self.store.get(&Key::from(base), &domains).ok()??;
            Some(Relative { disks: Manifest::decode(&bytes).ok()?.disks, domains })
        };
        Some(fitting.filter_map(relative).collect())
    }

    /// Takes a part from a relative, if it stands at the same place there.
    fn claim_from(&self, relative: &Relative, origin: Origin, part: Part, key: &Key, domain: Domain) -> Option<()> {
        let disk = relative.disks.get(usize::try_from(origin.disk).ok()?)?;
        let nodes = Nodes::with_cache(Arc::clone(&self.store), relative.domains.clone(), Arc::clone(&self.nodes));
        let shape = Shape::of(disk.size_bytes);
        let found = match part {
            Part::Chunk(index) => tree::lookup(&nodes, shape, disk.root, index).ok()?.map(Key::from),
            Part::Node(place) => tree::lookup_node(&nodes, shape, disk.root, place).ok()?.map(Key::from),
        };
        let stored = self.store.get_stored(key, &relative.domains).ok()?.filter(|_| found == Some(*key))?;
        self.store.put_stored(key, domain, &stored).ok().map(drop)
    }
}

/// A snapshot of ours that a foreign one was derived from.
#[derive(Debug)]
struct Relative {
    disks: Vec<Disk>,
    domains: Domains,
}

impl Library for NodeLibrary {
    fn serve(&self, peer: &Peer, snapshot: &SnapshotId) -> Option<Served> {
        if let Some(served) = self.moves.serve(peer.endpoint, *snapshot) {
            return Some(served);
        }
        let offering = self.buckets.offering(snapshot);
        let readable = offering.into_iter().find(|bucket| bucket.readable_by(peer.endpoint, &peer.accounts))?;
        self.readers.note(*snapshot);
        let (domains, upstream) = self.domains_in(&readable, snapshot);
        Some(Served { domains, upstream })
    }

    fn may_claim(&self, snapshot: &SnapshotId) -> bool {
        remembered(&self.relatives, snapshot).is_none_or(|relatives| !relatives.is_empty())
    }

    fn claim(&self, origin: Origin, part: Part, key: &Key, domain: Domain) -> bool {
        let known = remembered(&self.relatives, &origin.snapshot);
        let relatives = known.unwrap_or_else(|| {
            let found = Arc::new(self.find_relatives(origin.snapshot, domain).unwrap_or_default());
            remember(&self.relatives, origin.snapshot, Arc::clone(&found));
            found
        });
        relatives.iter().any(|relative| self.claim_from(relative, origin, part, key, domain).is_some())
    }

    fn providers(&self, snapshot: SnapshotId) -> BoxFuture<'static, Vec<EndpointId>> {
        if let Some(member) = self.moves.provider(snapshot) {
            return Box::pin(async move { vec![member] });
        }
        if let Some(known) = remembered(&self.providers, &snapshot) {
            return Box::pin(async move { known });
        }
        let references: Vec<Reference> = {
            let offering = self.buckets.offering(&snapshot);
            offering.iter().filter_map(|bucket| bucket.subscribed().or_else(|| bucket.published())).collect()
        };
        let (indexers, answers) = (Arc::clone(&self.indexers), Arc::clone(&self.providers));
        let own = self.indexers.signer().endpoint_id();
        Box::pin(async move {
            let mut found = Vec::new();
            for reference in references {
                let Ok(client) = indexers.client(&reference.indexer) else { continue };
                match client.providers(&reference.account, &reference.name, snapshot).await {
                    Ok(providers) => found.extend(providers.into_iter().map(|provider| provider.endpoint)),
                    Err(error) => tracing::debug!(%error, %reference, "no providers learned"),
                }
            }
            found.retain(|endpoint| *endpoint != own);
            found.sort_unstable();
            found.dedup();
            if !found.is_empty() {
                remember(&answers, snapshot, found.clone());
            }
            found
        })
    }

    fn certificates(&self) -> BoxFuture<'static, Vec<SignedCertificate>> {
        let indexers = Arc::clone(&self.indexers);
        Box::pin(async move { indexers.certificates().await })
    }

    fn resolve(&self, endpoint: EndpointId) -> BoxFuture<'static, Option<Vec<SocketAddr>>> {
        if let Some(addresses) = self.moves.addresses(endpoint) {
            return Box::pin(async move { Some(addresses) });
        }
        if let Some(known) = remembered(&self.addresses, &endpoint) {
            return Box::pin(async move { Some(known) });
        }
        let mut hosts = self.indexers.hosts();
        let subscribed = self.buckets.list().into_iter().filter_map(|bucket| bucket.subscribed());
        hosts.extend(subscribed.map(|reference| reference.indexer));
        hosts.sort_unstable();
        hosts.dedup();
        let (indexers, answers) = (Arc::clone(&self.indexers), Arc::clone(&self.addresses));
        Box::pin(async move {
            for host in hosts {
                let Ok(client) = indexers.client(&host) else { continue };
                if let Ok(Some(record)) = client.endpoint(endpoint).await {
                    remember(&answers, endpoint, record.addresses.clone());
                    return Some(record.addresses);
                }
            }
            None
        })
    }

    fn publish(&self, addresses: Vec<SocketAddr>) {
        tracing::debug!(?addresses, "this node's addresses changed");
        self.moved.notify_one();
    }
}

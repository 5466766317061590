//! Buckets, and how they are published and subscribed at Indexers.

use serde::{Deserialize, Serialize};
use types::{BucketId, Name, Reference, SnapshotId};
use utoipa::ToSchema;

/// Asks for a new bucket.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CreateBucketRequest {
    /// Its name on this node.
    #[schema(value_type = String)]
    pub name: Name,
}

/// A bucket, as in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bucket {
    /// Its name on this node.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its id: its public key.
    #[schema(value_type = String)]
    pub id: BucketId,
    /// Whether this node can write it.
    pub writable: bool,
    /// How many objects it has.
    pub objects: u64,
    /// How many versions they have in all.
    pub versions: u64,
    /// Where it is published from here.
    #[schema(value_type = Option<String>)]
    pub published: Option<Reference>,
    /// Where it is subscribed from.
    #[schema(value_type = Option<String>)]
    pub subscribed: Option<Reference>,
    /// How much of it is brought here, where it is subscribed.
    pub policy: Option<Policy>,
    /// What is wrong with it: a fork, or an Indexer that cannot be reached.
    pub problem: Option<String>,
}

/// An object of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BucketObject {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its latest version.
    pub latest: u64,
    /// The latest version's snapshot.
    #[schema(value_type = Option<String>)]
    pub snapshot: Option<SnapshotId>,
    /// The sum of its disks' sizes, in bytes.
    pub size_bytes: u64,
}

/// A bucket, in detail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BucketDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub bucket: Bucket,
    /// Its objects.
    pub contents: Vec<BucketObject>,
    /// Who may read it.
    pub readers: Vec<String>,
    /// The keys that may write it, beside its own.
    pub writers: Vec<String>,
}

/// An entry of a bucket's log, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Its number, from 0.
    pub sequence: u64,
    /// Its hash.
    pub hash: String,
    /// When it was written.
    pub time_ms: u64,
    /// The key that signed it.
    pub author: String,
    /// What it does, in words.
    pub action: String,
}

/// Asks to let someone read a bucket, or to take that back.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct GrantRequest {
    /// `everyone`, `endpoint:ID`, or `account:INDEXER/NAME`.
    pub reader: String,
}

/// Asks to publish a bucket.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PublishRequest {
    /// Where.
    #[schema(value_type = String)]
    pub reference: Reference,
    /// Whether everyone may read it.
    #[serde(default)]
    pub public: bool,
}

/// Where a bucket is published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Publication {
    /// The bucket.
    #[schema(value_type = String)]
    pub bucket: Name,
    /// Where.
    #[schema(value_type = String)]
    pub reference: Reference,
    /// Whether everyone may read it.
    pub public: bool,
    /// How many entries the Indexer has.
    pub entries: u64,
}

/// How much of a subscribed bucket is brought here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// The disks' trees: every later read costs one round trip.
    Tree,
    /// Nothing before it is read.
    #[default]
    Lazy,
    /// Everything.
    Full,
}

/// Asks to follow a reference.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SubscribeRequest {
    /// Which.
    #[schema(value_type = String)]
    pub reference: Reference,
    /// What to call it here; the reference's name where it is not given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub bucket: Option<Name>,
    /// How much of it to bring.
    #[serde(default)]
    pub policy: Policy,
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Subscription {
    /// What it is called here.
    #[schema(value_type = String)]
    pub bucket: Name,
    /// What it follows.
    #[schema(value_type = String)]
    pub reference: Reference,
    /// How much of it is brought.
    pub policy: Policy,
    /// How many entries are here.
    pub entries: u64,
}

/// Asks the node to use an account at an Indexer.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct LoginRequest {
    /// The Indexer's URL, or `host[:port]`.
    pub indexer: String,
    /// The account's token.
    pub token: String,
}

impl std::fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginRequest").field("indexer", &self.indexer).finish_non_exhaustive()
    }
}

/// An account that the node uses at an Indexer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Login {
    /// The Indexer's host and port, as in references.
    pub indexer: String,
    /// Its URL.
    pub url: String,
    /// The account.
    pub account: String,
}

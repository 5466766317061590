//! The JSON that clients and Indexer exchange, version 1. Signed things travel as base64 of their CBOR encoding.

use bucket::{Head, Signed, Statement};
use data_encoding::BASE64;
use format::entry::SignedEntry;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::{BucketId, EndpointId, EntryHash, Name, PublicKey, SnapshotId};
use utoipa::ToSchema;

/// The most entries in one request or page.
pub const MAX_ENTRIES: usize = 500;

/// The most bytes of entries in one page or request, before base64.
pub const MAX_ENTRIES_BYTES: usize = 2 << 20;

/// The longest request body, in bytes.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// The longest answer, in bytes; event streams aside.
pub const MAX_RESPONSE_BYTES: usize = 4 << 20;

/// How often an event stream says that it is alive, in seconds.
pub const KEEP_ALIVE_S: u64 = 15;

/// What every error looks like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// A stable word for programs, for example `not_found`.
    pub code: String,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// With `conflict`: the log's head, on which the entries must be based.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadInfo>,
}

/// The newest entry of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HeadInfo {
    /// Its number, from 0.
    pub sequence: u64,
    /// Its hash, hexadecimal.
    #[schema(value_type = String)]
    pub hash: EntryHash,
}

impl From<Head> for HeadInfo {
    fn from(Head { sequence, hash }: Head) -> Self {
        Self { sequence, hash }
    }
}

impl From<HeadInfo> for Head {
    fn from(HeadInfo { sequence, hash }: HeadInfo) -> Self {
        Self { sequence, hash }
    }
}

/// What an Indexer says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Info {
    /// Its software's version.
    pub version: String,
    /// The key that it certifies with, hexadecimal.
    #[schema(value_type = String)]
    pub key: PublicKey,
    /// Its name, for people.
    pub name: String,
}

/// Whose token was shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhoAmI {
    /// The account.
    #[schema(value_type = String)]
    pub account: Name,
}

/// A reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReferenceInfo {
    /// The account that owns it.
    #[schema(value_type = String)]
    pub account: Name,
    /// Its name there.
    #[schema(value_type = String)]
    pub name: Name,
    /// The bucket that it names, hexadecimal.
    #[schema(value_type = String)]
    pub bucket: BucketId,
    /// Whether everyone may read it.
    pub public: bool,
    /// The bucket's newest entry.
    pub head: HeadInfo,
}

/// A page of an account's own references, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReferencePage {
    /// The references.
    pub references: Vec<ReferenceInfo>,
    /// Where the next page begins (`after`), where there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<Name>,
}

/// Claims a reference for a bucket.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// Whether everyone may read it.
    pub public: bool,
    /// The bucket's log from its creation, or its beginning where it is long.
    #[serde(with = "entries")]
    #[schema(value_type = Vec<String>)]
    pub entries: Vec<SignedEntry>,
}

/// Changes who may read a reference.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VisibilityRequest {
    /// Whether everyone may.
    pub public: bool,
}

/// A run of a log's entries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogPage {
    /// The entries, each the base64 of a signed entry's encoding.
    #[serde(with = "entries")]
    #[schema(value_type = Vec<String>)]
    pub entries: Vec<SignedEntry>,
    /// The log's head, perhaps beyond this page.
    pub head: HeadInfo,
}

/// Appends to a log, if its head is still the one expected.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AppendRequest {
    /// The hash of the entry that the new ones follow.
    #[schema(value_type = String)]
    pub expected_head: EntryHash,
    /// The entries.
    #[serde(with = "entries")]
    #[schema(value_type = Vec<String>)]
    pub entries: Vec<SignedEntry>,
}

/// A signed thing: the base64 of its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedText {
    /// The base64 of statement and signature.
    pub signed: String,
}

impl SignedText {
    /// Writes a signed statement as text.
    #[must_use]
    pub fn new<S: Statement>(signed: &Signed<S>) -> Self {
        Self { signed: BASE64.encode(&signed.encode()) }
    }

    /// Reads it; nothing is checked yet.
    #[must_use]
    pub fn decode<S: Statement>(&self) -> Option<Signed<S>> {
        Signed::decode(&BASE64.decode(self.signed.as_bytes()).ok()?).ok()
    }
}

/// Who provides a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Provider {
    /// The endpoint, hexadecimal.
    #[schema(value_type = String)]
    pub endpoint: EndpointId,
    /// Whether it says that it holds all of the snapshot.
    pub complete: bool,
}

/// Who provides a snapshot; a random choice where there are many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Providers {
    /// The snapshot, hexadecimal.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// The providers.
    pub providers: Vec<Provider>,
}

/// Entries as base64 text.
mod entries {
    use super::{BASE64, Deserialize, Deserializer, Serializer, SignedEntry};

    pub(super) fn serialize<S: Serializer>(entries: &[SignedEntry], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(entries.iter().map(|entry| BASE64.encode(&entry.encode())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SignedEntry>, D::Error> {
        let texts = Vec::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let decode = |text: &str| SignedEntry::decode(&BASE64.decode(text.as_bytes()).ok()?).ok();
        let not_an_entry = || serde::de::Error::custom("not the base64 of a signed log entry");
        texts.iter().map(|text| decode(text).ok_or_else(not_an_entry)).collect()
    }
}

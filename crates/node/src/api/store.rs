//! The store: collection and scrub.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How to collect what nothing refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CollectRequest {
    /// How many bytes may be read and written per second; no limit where none is given.
    pub rate_bytes_per_second: Option<u64>,
    /// Only count what would go.
    pub dry_run: bool,
    /// How long a retired version is kept, in milliseconds; a day where nothing is given.
    pub grace_ms: Option<u64>,
}

/// How to read everything again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ScrubRequest {
    /// How many bytes may be read per second; no limit where none is given.
    pub rate_bytes_per_second: Option<u64>,
}

/// What scrubs found since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScrubStatus {
    /// When the last one ended; 0 where none has.
    pub ended_ms: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Objects that were found damaged.
    pub damaged: u64,
    /// Objects that were fetched again from peers.
    pub healed: u64,
    /// Objects that nobody could give when it was last tried.
    pub absent: u64,
}

/// What the last collection found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CollectionStatus {
    /// When it ended.
    pub ended_ms: u64,
    /// Objects that were referred to.
    pub live_objects: u64,
    /// Their length as stored, in bytes.
    pub live_bytes: u64,
    /// What was left of the rest, in packs of which most is live, in bytes as stored.
    pub dead_bytes: u64,
}

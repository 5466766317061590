//! Attachments: volumes and snapshots made visible as block devices. They persist across restarts of the node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a device is made visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// NBD over a unix socket, or TCP where an address is given.
    #[default]
    Nbd,
}

/// Asks for an attachment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AttachRequest {
    /// A volume's name, `BUCKET/OBJECT[@VERSION]`, or a snapshot id.
    pub target: String,
    /// The disk of a snapshot that has several.
    #[serde(default)]
    pub disk: Option<String>,
    /// How.
    #[serde(default)]
    pub via: Transport,
    /// A TCP address to listen on instead of a unix socket; beyond loopback only with `insecure_listen`.
    #[serde(default)]
    pub listen: Option<String>,
    /// Allows plain NBD beyond loopback.
    #[serde(default)]
    pub insecure_listen: bool,
    /// After how long a read of what nobody has fails; never where it is not given.
    #[serde(default)]
    pub read_timeout_ms: Option<u64>,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// What `detach` takes: the volume's name, or the snapshot's path or id.
    pub target: String,
    /// How it is visible.
    pub via: Transport,
    /// Where: an NBD URI.
    pub uri: String,
    /// The unix socket, where it is one.
    pub socket: Option<String>,
    /// The name that the export has there.
    pub export: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How many clients are connected.
    pub connections: u64,
}

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
    /// A loop device of the kernel over a FUSE file, beside the unix socket. Takes root.
    Fuse,
    /// A device of the kernel's own NBD driver, beside the unix socket. Takes root and the driver (`modprobe nbd`).
    NbdKernel,
    /// A device of the kernel's ublk driver, beside the unix socket. Takes root and the driver (`modprobe ublk_drv`).
    Ublk,
    /// vhost-user-blk over a unix socket: a virtio block device for QEMU's guest, whose requests QEMU does not see.
    VhostUser,
}

impl Transport {
    /// Whether it makes a device of the kernel.
    #[must_use]
    pub fn makes_device(self) -> bool {
        match self {
            Self::Nbd | Self::VhostUser => false,
            Self::Fuse | Self::NbdKernel | Self::Ublk => true,
        }
    }

    /// Its name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::Fuse => "fuse",
            Self::NbdKernel => "nbd-kernel",
            Self::Ublk => "ublk",
            Self::VhostUser => "vhost-user",
        }
    }
}

/// How a device shall be made visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// [`Transport::Nbd`].
    #[default]
    Nbd,
    /// [`Transport::Fuse`].
    Fuse,
    /// [`Transport::NbdKernel`].
    NbdKernel,
    /// [`Transport::Ublk`].
    Ublk,
    /// [`Transport::VhostUser`].
    VhostUser,
    /// As a device of the kernel, in the best way that the node's machine has.
    Kernel,
}

/// Who has to use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TlsPolicy {
    /// Every client.
    Require,
    /// Those who want to.
    Allow,
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
    pub via: Via,
    /// Where to listen instead of at a unix socket in the node's directory: `IP:PORT`, `unix:PATH`, or `fd:NAME` for a
    /// socket that the node was started with. Beyond loopback only with TLS that is required, or with `insecure_listen`.
    #[serde(default)]
    pub listen: Option<String>,
    /// Allows plain NBD beyond loopback.
    #[serde(default)]
    pub insecure_listen: bool,
    /// After how long a read of what nobody has fails; never where it is not given.
    #[serde(default)]
    pub read_timeout_ms: Option<u64>,
    /// The directory, at the node, of the certificates for TLS; none where it is not given.
    #[serde(default)]
    pub tls_certificates: Option<String>,
    /// Whether clients have to use TLS, where there are certificates; they have to where it is not said.
    #[serde(default)]
    pub tls: Option<TlsPolicy>,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// What `detach` takes: the volume's name, or the snapshot's path or id.
    pub target: String,
    /// How it is visible.
    pub via: Transport,
    /// Where: an NBD URI, or `vhost-user+unix:PATH`.
    pub uri: String,
    /// The block device of the kernel, where it is one, such as `/dev/nbd0`. It stays the same across restarts of the
    /// node, not of the machine.
    #[serde(default)]
    pub device: Option<String>,
    /// The unix socket, where it is one.
    pub socket: Option<String>,
    /// The value of QEMU's `-drive` for it, where it is one of NBD; the guest's requests wait where the node was killed, until
    /// it is back.
    #[serde(default)]
    pub qemu_drive: String,
    /// What QEMU takes for it, word by word. With vhost-user its guest's memory has to be shared, too:
    /// `-object memory-backend-memfd,id=ram,size=…,share=on -machine memory-backend=ram`.
    #[serde(default)]
    pub qemu_arguments: Vec<String>,
    /// The name that the export has there.
    pub export: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The member of the cluster where the volume is, where that is not this node.
    #[serde(default)]
    pub home: Option<String>,
    /// How many clients are connected; what serves the device of the kernel is one of them.
    pub connections: u64,
}

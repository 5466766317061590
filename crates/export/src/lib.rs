//! Volumes and snapshots as block devices for others: one module per transport, over one core that takes any offset
//! and any length.
//!
//! Participants: a transport's client (a hypervisor, a kernel, a copying tool), which may be careless or hostile but
//! has been given the device; and a [`volume::BlockDevice`], which may have to wait for the network. Invariants: no
//! reply is sent before it is true; what is here is served at once even while other requests wait for what is not; no
//! client's bytes make this crate panic or hold memory beyond its bounds. It knows nothing of catalogs, attachments or
//! peers.
//!
//! [`nbd_device`], or [`fuse`] with [`loop_device`], makes an NBD export a block device of the kernel; [`ublk_device`] is one
//! without NBD.

mod disk;
mod exports;
pub mod fuse;
pub mod kernel_block;
pub mod loop_device;
pub mod mounts;
pub mod nbd;
pub mod nbd_device;
mod netlink;
pub mod ublk_device;

pub use exports::{Exports, SingleExport};
pub use fuse::{FrontError, FrontOptions, run_front};
pub use kernel_block::KernelBlock;
pub use nbd::{Direct, ExportError, Listen, NbdOptions, NbdServer, Reservation, Suspended, Tls, TlsError};

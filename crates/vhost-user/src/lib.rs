//! Volumes and snapshots as vhost-user-blk devices: virtio block devices that an unmodified QEMU gives to its guest, and
//! whose requests it does not see.
//!
//! Participants: a front-end (QEMU), which passes the guest's memory and the queues in it, and which has been given the
//! device; and a guest, which may be careless or hostile. A [`VhostUserServer`] serves one front-end at a time at a unix
//! socket. Invariants: no request is answered before it is done; nothing that a guest writes into its memory makes this
//! crate panic, hold memory beyond its bounds, or touch anything but its own disk and memory; a request that was not answered
//! when this process died is made again by the next one, as the front-end keeps the log of what is under way ([`inflight`]).
//! It knows nothing of catalogs, attachments or peers: only [`volume::BlockDevice`].
//!
//! Sources: the vhost-user protocol in QEMU's `docs/interop/vhost-user.rst`; virtio 1.2, sections 2.7 (split virtqueues)
//! and 5.2 (block device). Both are little-endian here, as the machines are that brant runs on.

mod call;
mod chain;
mod channel;
pub mod configuration;
pub mod inflight;
mod memory;
pub mod message;
pub mod request;
mod ring;
mod server;
mod session;
mod wait;
mod worker;

pub use chain::{Chain, ChainError, Piece, walk};
pub use memory::{Memory, MemoryError};
pub use server::{CacheMode, VhostUserOptions, VhostUserServer};

//! The Indexer: where buckets get public names, writers agree on the order of a log, and nodes find each other.
//!
//! It knows accounts, references, logs, who provides which snapshot and where endpoints are. It never holds or sees
//! disk data, and nobody trusts it with content: logs verify themselves, and its own word (certificates, heads) is
//! signed and short-lived. Who may not read a reference learns nothing of it: every answer about it is the one about a
//! name that does not exist.
//!
//! [`server`] is the service, [`admin`] its operator's side, [`client`] the node's side; [`api`] is what they say to
//! each other, described in `docs/protocol.md`. SQL is only in the `db` module.

pub mod address;
pub mod admin;
pub mod announcement;
pub mod api;
pub mod client;
pub mod clock;
mod db;
pub mod proof;
pub mod server;
mod token;

pub use address::{AddressRecord, SignedAddressRecord};
pub use announcement::{Announced, Announcement, SignedAnnouncement};
pub use clock::Clock;
pub use db::DbError;
pub use proof::{EndpointProof, SignedProof};
pub use server::{ServeError, ServeOptions, Serving, serve};

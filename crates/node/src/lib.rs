//! The daemon of a host: it joins store, volumes, swarm, buckets and exports, and offers them by its API.
//!
//! Invariant: what an answer acknowledges is durable in the store's roots or a bucket's log before the answer is sent;
//! the catalog is derived from them. The node does no block I/O of its own: guests talk to `export`, and the volumes'
//! data to `store` and `swarm`.

pub mod api;
mod attachments;
mod buckets;
mod catalog;
pub mod client;
mod cluster;
mod collection;
mod descriptors;
mod domains;
mod error;
mod exchange;
mod folding;
pub mod handover;
mod indexers;
mod labels;
mod library;
mod listing;
mod node;
mod passed;
mod port;
mod readers;
mod record;
mod resolve;
mod restart;
mod rewind;
mod routes;
mod schedule;
mod scrub;
mod sealing;
mod serve;
mod snapshots;
mod systemd;
mod task;
mod transfer;
mod version;
mod volumes;

pub use catalog::CatalogError;
pub use node::NodeOptions;
pub use passed::PassedSockets;
pub use record::RecordError;
pub use restart::serving_arguments;
pub use routes::openapi;
pub use serve::{Ended, Ready, Start, serve};

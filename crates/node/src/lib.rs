//! The daemon of a host: it joins store, volumes, swarm, buckets and exports, and offers them by its API.

pub mod api;
pub mod client;

//! The NBD server, by raw sockets and by other people's tools.

#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped fails its test")]

mod client;
mod memory_disk;
mod tool;

mod a_hand_over_is_only_a_pause;
mod absent_data_blocks_nobody;
mod bad_input_ends_nothing_more_than_it_must;
mod direct_connections_need_no_handshake;
mod handshake_follows_the_protocol;
mod other_tools_agree;
mod real_volumes_are_served;
mod requests_mean_what_the_protocol_says;
mod stopping_loses_nothing;
mod tls_keeps_others_out;

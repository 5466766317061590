//! One target for every decoder of bytes from disk, network or guest, and seeds for it.
//!
//! A target takes any bytes and panics only where the decoder breaks a promise: that it does not panic, that what it
//! accepts is encoded to the same bytes again, that what it gives is within its limits. `tests/mutation.rs` runs all
//! targets on stable Rust with seeded mutations; `cargo-fuzz/` runs them guided by coverage where there is a nightly
//! toolchain. A decoder behind a checksum is also given bytes whose checksum has been made right, or nothing behind it
//! would ever be reached.

pub mod mutate;

mod definitions;
mod images;
mod journal;
mod members;
mod names;
mod nbd_client;
mod nbd_server;
mod objects;
mod packs;
mod peers;
mod statements;
mod vhost_user;

/// A decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, as in `cargo-fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Gives bytes to the decoder; whether it took them.
    pub run: fn(&[u8]) -> bool,
    /// Bytes to begin with, some of which it takes.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 33] = [
    Target { name: "chunk", run: objects::chunk, seeds: objects::chunk_seeds },
    Target { name: "node", run: objects::node, seeds: objects::node_seeds },
    Target { name: "manifest", run: objects::manifest, seeds: objects::manifest_seeds },
    Target { name: "entry", run: objects::entry, seeds: objects::entry_seeds },
    Target { name: "signed_entry", run: objects::signed_entry, seeds: objects::signed_entry_seeds },
    Target { name: "log", run: statements::log, seeds: statements::log_seeds },
    Target { name: "fork_evidence", run: statements::fork_evidence, seeds: statements::fork_evidence_seeds },
    Target { name: "statement", run: statements::statement, seeds: statements::statement_seeds },
    Target { name: "pack_header", run: packs::pack_header, seeds: packs::pack_header_seeds },
    Target { name: "pack_record", run: packs::pack_record, seeds: packs::pack_record_seeds },
    Target { name: "pack_footer", run: packs::pack_footer, seeds: packs::pack_footer_seeds },
    Target { name: "roots", run: packs::roots, seeds: packs::roots_seeds },
    Target { name: "store_format", run: packs::store_format, seeds: packs::store_format_seeds },
    Target { name: "journal_record", run: journal::record, seeds: journal::record_seeds },
    Target { name: "journal_header", run: journal::header, seeds: journal::header_seeds },
    Target { name: "journal_footer", run: journal::footer, seeds: journal::footer_seeds },
    Target { name: "nbd_request", run: nbd_server::request, seeds: nbd_server::request_seeds },
    Target { name: "nbd_option", run: nbd_server::option, seeds: nbd_server::option_seeds },
    Target { name: "nbd_state", run: nbd_server::state, seeds: nbd_server::state_seeds },
    Target { name: "nbd_negotiation", run: nbd_client::negotiation, seeds: nbd_client::negotiation_seeds },
    Target { name: "nbd_reply", run: nbd_client::reply, seeds: nbd_client::reply_seeds },
    Target { name: "swarm_request", run: peers::request, seeds: peers::request_seeds },
    Target { name: "swarm_reply", run: peers::reply, seeds: peers::reply_seeds },
    Target { name: "cluster_request", run: members::request, seeds: members::request_seeds },
    Target { name: "cluster_reply", run: members::reply, seeds: members::reply_seeds },
    Target { name: "cluster_settings", run: members::set, seeds: members::set_seeds },
    Target { name: "cluster_frames", run: members::frames, seeds: members::frames_seeds },
    Target { name: "image", run: images::image, seeds: images::image_seeds },
    Target { name: "definition", run: definitions::definition, seeds: definitions::definition_seeds },
    Target { name: "name", run: names::name, seeds: names::name_seeds },
    Target { name: "nbd_uri", run: names::nbd_uri, seeds: names::nbd_uri_seeds },
    Target { name: "vhost_message", run: vhost_user::message, seeds: vhost_user::message_seeds },
    Target { name: "vhost_request", run: vhost_user::request, seeds: vhost_user::request_seeds },
];

/// Runs the target of a name; what `cargo-fuzz` calls.
///
/// # Panics
/// Where the decoder breaks a promise, and for a name that no target has.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(data);
}

//! `brant status`: the node as a whole.

use node::api::NodeStatus;

use crate::context::Context;
use crate::failure::Outcome;
use crate::output::table::pairs;
use crate::output::text::{count, size};

/// Show the node as a whole: its id, its store, its traffic
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant status
  brant status --json --node /var/lib/brant")]
pub(crate) struct Arguments {}

pub(crate) async fn run(context: &Context) -> Outcome {
    let status = context.client.status().await?;
    context.output.show(&status, |_| show(&status))
}

fn show(status: &NodeStatus) -> String {
    let (store, swarm) = (&status.store, &status.swarm);
    let mut facts = vec![
        ("node", format!("brant {} in {}", status.version, status.directory)),
        ("endpoint", status.endpoint.clone()),
        ("addresses", if status.addresses.is_empty() { "none".to_owned() } else { status.addresses.join(", ") }),
    ];
    for login in &status.logins {
        facts.push(("account", format!("{} at {}", login.account, login.indexer)));
    }
    facts.push(("volumes", status.volumes.to_string()));
    if status.replicated > 0 {
        facts.push(("replicas", replicas(status)));
    }
    facts.extend([
        ("buckets", status.buckets.to_string()),
        ("tasks", format!("{} running", status.running_tasks)),
        ("store", format!("{} on disk: {}", size(store.allocated_bytes), objects(store))),
        ("sent", size(swarm.sent_bytes)),
        ("received", size(swarm.received_bytes)),
        ("peers", peers(swarm)),
        ("memory", size(status.memory_bytes)),
    ]);
    pairs(&facts)
}

/// What a store holds, for people.
pub(super) fn objects(store: &node::api::StoreStatus) -> String {
    let (plain, stored) = (size(store.plain_bytes), size(store.stored_bytes));
    format!("{} of {plain}, stored in {stored}", count(store.objects, "object"))
}

fn replicas(status: &NodeStatus) -> String {
    match status.replicas_not_current {
        0 => format!("{} of volumes here, all current", status.replicated),
        behind => format!("{} of volumes here, {behind} not current; see: brant volume show VOLUME", status.replicated),
    }
}

fn peers(swarm: &node::api::SwarmStatus) -> String {
    match swarm.bad_chunks {
        0 => format!("{} connected", swarm.peers),
        bad => format!("{} connected; {} refused that had the wrong content", swarm.peers, count(bad, "chunk")),
    }
}

#[cfg(test)]
mod tests {
    use node::api::{Login, StoreStatus, SwarmStatus};

    use super::*;

    #[test]
    fn everything_has_a_unit() {
        let status = NodeStatus {
            version: "0.1.0".to_owned(),
            pid: 7,
            restart_failure: None,
            endpoint: "ab".repeat(32),
            addresses: vec!["10.0.0.1:7071".to_owned()],
            directory: "/var/lib/brant".to_owned(),
            logins: vec![Login {
                indexer: "127.0.0.1:7070".to_owned(),
                url: "http://127.0.0.1:7070".to_owned(),
                account: "alice".to_owned(),
            }],
            volumes: 3,
            replicated: 2,
            replicas_not_current: 1,
            buckets: 1,
            running_tasks: 0,
            store: StoreStatus {
                directory: "/var/lib/brant/store".to_owned(),
                objects: 1,
                plain_bytes: 65536,
                stored_bytes: 1024,
                allocated_bytes: 4096,
                collection: None,
                scrub: node::api::ScrubStatus::default(),
            },
            swarm: SwarmStatus { bad_chunks: 2, ..SwarmStatus::default() },
            memory_bytes: 50 << 20,
        };
        let text = show(&status);
        assert!(text.contains("store      4 KiB on disk: 1 object of 64 KiB, stored in 1 KiB\n"), "{text}");
        assert!(text.contains("account    alice at 127.0.0.1:7070\n"), "{text}");
        assert!(text.contains("2 chunks refused"), "{text}");
        assert!(
            text.contains("replicas   2 of volumes here, 1 not current; see: brant volume show VOLUME\n"),
            "{text}"
        );
    }
}

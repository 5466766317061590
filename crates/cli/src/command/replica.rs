//! `brant volume replicate`, `replicas` and `promote`: a second member has all of a volume, and takes over when the first one is gone.

use node::api::{
    ApiError, ErrorCode, PromoteRequest, Replica, ReplicateRequest, Replication, ReplicationMode, ReplicationState,
};
use types::{ByteSize, Name};

use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::Table;
use crate::output::text::{size, span};

/// Whether the replica is waited for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Nothing is answered before the replica has it, too
    Sync,
    /// The replica may be behind, by --lag at most
    Async,
}

/// How a volume is replicated, or that it is not any more.
#[derive(clap::Args, Debug)]
pub(crate) struct Replicate {
    /// Its name
    #[arg(value_name = "VOLUME")]
    volume: Name,
    /// The member that keeps the replica
    #[arg(value_name = "MEMBER", required_unless_present = "stop")]
    to: Option<Name>,
    /// Whether writes wait for the replica
    #[arg(long, default_value = "sync")]
    mode: Mode,
    /// A third member, which says who goes on alone when the two do not hear of each other
    #[arg(long, value_name = "MEMBER")]
    witness: Option<Name>,
    /// How far the replica may be behind: 1MiB to 1GiB [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    lag: Option<ByteSize>,
    /// Remove the replica
    #[arg(long, conflicts_with_all = ["to", "witness", "lag"])]
    stop: bool,
    /// Although its member cannot be told: it must never be promoted then
    #[arg(long, requires = "stop")]
    force: bool,
}

pub(super) async fn replicate(context: &Context, arguments: Replicate) -> Outcome {
    let (client, output) = (&context.client, context.output);
    let Replicate { volume, to, mode, witness, lag, stop: _, force } = arguments;
    let Some(to) = to else {
        let shown = client.stop_replicating(volume.as_str(), force).await?;
        return output.show(&shown, |_| format!("the volume {volume} has no replica any more"));
    };
    let mode = match mode {
        Mode::Sync if lag.is_some() => {
            let error = ApiError::new(ErrorCode::Invalid, "a replica that writes wait for is never behind by --lag");
            return Err(error.hint("say --mode async, or leave --lag out").into());
        }
        Mode::Sync => ReplicationMode::Sync,
        Mode::Async => ReplicationMode::Async,
    };
    let request = ReplicateRequest { to, mode, witness, most_lag_bytes: lag };
    let replication = client.replicate_volume(volume.as_str(), &request).await?;
    output.show(&replication, |_| format!("{volume} is replicated to {}", replicated(Some(&replication))))?;
    if replication.state != ReplicationState::Current {
        output.note(&format!("it counts once it is current; see: brant volume show {volume}"));
    }
    Ok(())
}

pub(super) async fn promote(context: &Context, volume: &Name, accept_loss: bool) -> Outcome {
    let promoted = context.client.promote_volume(volume.as_str(), &PromoteRequest { accept_loss }).await?;
    let kept =
        if promoted.lossless { "nothing that was answered is lost" } else { "what was written last may be lost" };
    context.output.show(&promoted, |_| format!("the volume {volume} is here now; {kept}"))?;
    context.output.note(&format!("use it with: brant attach {volume}"));
    Ok(())
}

pub(super) async fn list(context: &Context, remove: Option<Name>) -> Outcome {
    let (client, output) = (&context.client, context.output);
    if let Some(volume) = remove {
        let removed = client.remove_replica(volume.as_str()).await?;
        return output.done(&removed, &format!("removed the replica of {volume}"));
    }
    let replicas = client.replicas().await?;
    output
        .list(&replicas, "no replicas are kept here; see: brant volume replicate --help", |view| table(&replicas, view))
}

fn table(replicas: &[Replica], view: View) -> String {
    let mut table =
        Table::new().words("VOLUME").words("HOME").numbers("SIZE").words("MODE").words("STATE").texts("WITNESS");
    for replica in replicas {
        table.row([
            replica.volume.to_string(),
            replica.home.clone(),
            replica.size_bytes.map_or_else(|| "-".to_owned(), size),
            mode(replica.mode).to_owned(),
            if replica.current { "current" } else { "behind" }.to_owned(),
            replica.witness.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.render(view.width)
}

fn mode(mode: ReplicationMode) -> &'static str {
    match mode {
        ReplicationMode::Sync => "sync",
        ReplicationMode::Async => "async",
    }
}

/// How a replica of a volume is kept, in words.
pub(super) fn replicated(replication: Option<&Replication>) -> String {
    let Some(replication) = replication else { return "nowhere; see: brant volume replicate".to_owned() };
    let behind = match (replication.lag_bytes, replication.lag_ms) {
        (0, _) => String::new(),
        (bytes, ms) => format!(", {} and {} behind", size(bytes), span(std::time::Duration::from_millis(ms))),
    };
    let state = match (replication.state, replication.mode) {
        (ReplicationState::Current, _) => format!("current{behind}"),
        (ReplicationState::Away, ReplicationMode::Sync) => "does not answer: writes wait for it".to_owned(),
        (ReplicationState::Away, ReplicationMode::Async) => format!("does not answer{behind}"),
        (ReplicationState::Syncing, _) => "being brought up to date".to_owned(),
        (ReplicationState::Behind, _) => "not current, and not connected now: nothing waits for it".to_owned(),
    };
    let witness = replication.witness.as_ref().map(|witness| format!(", witness {witness}")).unwrap_or_default();
    format!("{} ({}{witness}), {state}", replication.to, mode(replication.mode))
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    #[test]
    fn what_a_replica_is_is_said_in_one_line() {
        let replication = |state, lag_bytes| Replication {
            to: "b".to_owned(),
            mode: ReplicationMode::Sync,
            witness: Some("c".to_owned()),
            most_lag_bytes: 64 << 20,
            state,
            lag_bytes,
            lag_ms: 1500,
        };
        let current = replication(ReplicationState::Current, 0);
        assert_eq!(replicated(Some(&current)), "b (sync, witness c), current");
        let away = replication(ReplicationState::Away, 5 << 20);
        assert_eq!(replicated(Some(&away)), "b (sync, witness c), does not answer: writes wait for it");
        assert!(replicated(None).starts_with("nowhere"));
    }

    #[test]
    fn a_list_fits() {
        let replica = Replica {
            volume: "web1".parse().unwrap(),
            home: "node1.example.org".to_owned(),
            mode: ReplicationMode::Async,
            witness: Some("node3.example.org".to_owned()),
            size_bytes: Some(10 << 30),
            current: true,
        };
        let text = table(&[replica], View { width: Some(80), now_ms: 0 });
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("web1    node1.example.org  10 GiB  async  current  node3"), "{text}");
    }
}

//! Replicas of disks: the parameters `replica`, `replica_mode` and `witness`, as the node's replicas of volumes.
//!
//! A label says what was asked of the node last. As long as the parameters say the same, the replica is let be, wherever the disk and its
//! replica have gone since: who takes over is followed by who was the home. A replica that somebody else has asked for is let be, too.

use node::api::{
    ApiError, ErrorCode, LabelRequest, ReplicateRequest, Replication, ReplicationMode, ReplicationState, Volume,
};
use types::Name;

use crate::label::{self, key};
use crate::parameters::Replica;
use crate::session::Session;

/// What the label says of a replica that was asked for.
pub(crate) fn asked(replica: &Replica) -> String {
    let mode = match replica.mode {
        ReplicationMode::Sync => "sync",
        ReplicationMode::Async => "async",
    };
    let witness = replica.witness.as_ref().map(|witness| format!(", witness {witness}")).unwrap_or_default();
    format!("{mode} at {}{witness}", replica.to)
}

/// Asks for the replica of a volume that is here.
pub(crate) async fn begin(session: &Session<'_>, volume: &Name, replica: &Replica) -> Result<Replication, ApiError> {
    let Replica { to, mode, witness } = replica.clone();
    let request = ReplicateRequest { to, mode, witness, most_lag_bytes: None };
    session.ask(session.client.replicate_volume(volume.as_str(), &request)).await
}

/// Has the node do what the parameters of a disk say, if they say something else than before.
pub(crate) async fn apply(session: &Session<'_>, volume: &Volume, wanted: Option<&Replica>) -> Result<(), ApiError> {
    // A passing snapshot has the parameters of the disk that it is of.
    if volume.labels.contains_key(&key(label::SNAPSHOT_OF)) {
        return Ok(());
    }
    let (known, text) = (volume.labels.get(&key(label::REPLICA)), wanted.map(asked));
    let same = known == text.as_ref();
    if same && volume.replication.is_some() == wanted.is_some() || (known.is_none() && wanted.is_none()) {
        return Ok(());
    }
    if !same && known.is_some() && volume.replication.is_some() {
        session.ask(session.client.stop_replicating(volume.name.as_str(), false)).await?;
    }
    if let Some(wanted) = wanted {
        begin(session, &volume.name, wanted).await?;
    }
    if same {
        return Ok(());
    }
    let request = LabelRequest { labels: [(key(label::REPLICA), text)].into() };
    session.ask(session.client.label_volume(volume.name.as_str(), &request)).await.map(drop)
}

/// Ends the replica of a disk that is about to be deleted, also where its member does not answer; says what is left then.
pub(crate) async fn end(session: &Session<'_>, volume: &Volume) -> Result<String, ApiError> {
    let Some(replication) = &volume.replication else { return Ok(String::new()) };
    match session.ask(session.client.stop_replicating(volume.name.as_str(), true)).await {
        // Somebody else was faster.
        Err(error) if error.code != ErrorCode::NotFound => return Err(error),
        _ => {}
    }
    let silent = matches!(replication.state, ReplicationState::Away | ReplicationState::Behind);
    let (name, to) = (&volume.name, &replication.to);
    Ok(if silent {
        format!("; {to} does not answer, and keeps its replica until there: brant volume replicas --remove {name}")
    } else {
        String::new()
    })
}

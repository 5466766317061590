//! Snapshots of instances: all disks of one at the same moment.

use node::api::{ApiError, ErrorCode, Snapshot, TakeSnapshotRequest, Volume};
use node::client::Client;
use types::{Name, ObjectPath};

use crate::definition::Definition;
use crate::label::{self, key};
use crate::provider::disk_number;

/// Takes a snapshot of all disks of an instance at one moment, as a new version.
///
/// The disks are called `disk0`, `disk1`, … in the order of Ganeti. Without a path the version goes to the bucket that the
/// disks' parameters name, as an object of the instance's name. Its definition is kept with it.
///
/// # Errors
/// An instance without disks at this node, nowhere to put the snapshot, and whatever the node reports.
pub async fn snapshot_instance(
    client: &Client,
    instance: &str,
    path: Option<ObjectPath>,
    message: String,
    definition: Option<&Definition>,
) -> Result<Snapshot, ApiError> {
    let mut disks = client.volumes().await?;
    let label = label::of_instance(instance);
    disks.retain(|volume| volume.labels.get(&key(label::INSTANCE)) == Some(&label));
    if disks.is_empty() {
        let message = format!("no disk of the instance {instance} is at the node {}", client.address());
        return Err(ApiError::new(ErrorCode::NotFound, message)
            .hint("give its full name, at the node where it runs: gnt-instance list -o name,pnode"));
    }
    if let Some(definition) = definition.filter(|definition| definition.disks.len() != disks.len()) {
        let (all, here) = (definition.disks.len(), disks.len());
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!("{instance} has {all} disks, and {here} of them are here"),
        )
        .hint("all of them must be brant's, on one node, and the definition of now: gnt-instance info"));
    }
    disks.sort_by_key(|volume| (disk_number(&volume.name), volume.name.clone()));
    let path = match path {
        Some(path) => path.to_string(),
        None => own_path(instance, &disks)?,
    };
    let names = (0..disks.len()).filter_map(|number| format!("disk{number}").parse().ok()).collect();
    let volumes = disks.into_iter().map(|volume| volume.name).collect();
    client
        .take_snapshot(&TakeSnapshotRequest {
            volumes,
            path,
            message,
            disks: names,
            machine: definition.map(Definition::to_machine),
        })
        .await
}

/// Where the disks' parameters say that snapshots go.
fn own_path(instance: &str, disks: &[Volume]) -> Result<String, ApiError> {
    let mut buckets: Vec<&String> = disks.iter().filter_map(|disk| disk.labels.get(&key(label::BUCKET))).collect();
    buckets.sort();
    buckets.dedup();
    let say = || format!("say where: brant ganeti snapshot {instance} BUCKET/OBJECT");
    let [bucket] = buckets[..] else {
        let message = match buckets.len() {
            0 => format!("no disk of {instance} has the parameter bucket"),
            _ => format!("the disks of {instance} name several buckets"),
        };
        return Err(ApiError::new(ErrorCode::Invalid, message).hint(say()));
    };
    match instance.parse::<Name>() {
        Ok(object) => Ok(format!("{bucket}/{object}")),
        Err(error) => Err(ApiError::from_error(ErrorCode::Invalid, &error).hint(say())),
    }
}

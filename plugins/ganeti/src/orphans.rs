//! Volumes of this node that are left of instances which there are no more.
//!
//! Ganeti forgets a disk whose node does not answer when its instance is removed, and the volume stays. Who says which instances there are
//! is Ganeti itself, never what is here: without its word nothing is an orphan.

use std::collections::BTreeSet;

use node::api::{ApiError, ErrorCode, Volume};
use node::client::Client;

use crate::label::{self, key};
use crate::luxi::Luxi;

/// A volume that is left of an instance.
#[derive(Debug)]
pub struct Orphan {
    /// The instance that it was a disk of.
    pub instance: String,
    /// The volume. What is attached is in use: the instance may be about to be added.
    pub volume: Volume,
}

/// Finds the volumes of this node that belong to none of the instances that there are.
///
/// # Errors
/// Whatever the node reports, and where Ganeti does not say which instances there are.
pub async fn orphans(client: &Client, luxi: &Luxi) -> Result<Vec<Orphan>, ApiError> {
    // The volumes first: an instance that is added meanwhile is known then.
    let volumes = client.volumes().await?;
    let instances = luxi.instances().map_err(|error| {
        ApiError::from_error(ErrorCode::Unreachable, &error)
            .hint("is Ganeti running here? gnt-cluster verify, on the master")
    })?;
    Ok(find(volumes, &instances))
}

fn find(volumes: Vec<Volume>, instances: &[String]) -> Vec<Orphan> {
    let known: BTreeSet<_> = instances.iter().map(|instance| label::of_instance(instance)).collect();
    let orphan = |volume: Volume| {
        let instance = volume.labels.get(&key(label::INSTANCE))?.clone();
        (!known.contains(&instance)).then_some(Orphan { instance, volume })
    };
    volumes.into_iter().filter_map(orphan).collect()
}

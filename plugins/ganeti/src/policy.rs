//! Schedules of disks: the parameters `schedule` and `keep`, as the node's schedules of volumes.
//!
//! Snapshots of a disk go to the object of its instance's name, so that all disks of an instance that have the parameter are
//! taken at one moment. A label says what was asked of the node last: a schedule that somebody else has made is let be.

use node::api::{ApiError, ErrorCode, LabelRequest, ScheduleRequest, Volume};
use types::Name;

use crate::label::{self, key};
use crate::parameters::Meaning;
use crate::provider::disk_number;
use crate::session::Session;

/// What the node is asked for, and how the label says so.
fn wanted(volume: &Volume, meaning: &Meaning) -> Result<Option<(ScheduleRequest, String)>, ApiError> {
    let (Some(every_ms), Some(bucket)) = (meaning.every_ms, &meaning.bucket) else { return Ok(None) };
    let Some(instance) = volume.labels.get(&key(label::INSTANCE)) else { return Ok(None) };
    let object: Name = instance.parse().map_err(|error| ApiError::from_error(ErrorCode::Invalid, &error))?;
    let disk = disk_number(&volume.name).and_then(|number| format!("disk{number}").parse().ok());
    let request = ScheduleRequest { into: format!("{bucket}/{object}"), every_ms, keep: meaning.keep, disk };
    let keep = request.keep.map_or_else(|| "all".to_owned(), |keep| keep.to_string());
    let text = format!("every {every_ms} ms into {}, keep {keep}", request.into);
    Ok(Some((request, text)))
}

/// Has the node do what the parameters of a disk say, if they say something else than before.
pub(crate) async fn apply(session: &Session<'_>, volume: &Volume, meaning: &Meaning) -> Result<(), ApiError> {
    // A passing snapshot has the parameters of the disk that it is of. And nothing is known of a disk before it is an instance's.
    let passing = volume.labels.contains_key(&key(label::SNAPSHOT_OF));
    if passing || !volume.labels.contains_key(&key(label::INSTANCE)) {
        return Ok(());
    }
    let wanted = wanted(volume, meaning)?;
    let text = wanted.as_ref().map(|(_, text)| text.clone());
    if volume.labels.get(&key(label::SCHEDULE)) == text.as_ref() {
        return Ok(());
    }
    let name = volume.name.as_str();
    match &wanted {
        Some((request, _)) => drop(session.ask(session.client.schedule_volume(name, request)).await?),
        None => match session.ask(session.client.unschedule_volume(name)).await {
            Err(error) if error.code != ErrorCode::NotFound => return Err(error),
            _ => {}
        },
    }
    let request = LabelRequest { labels: [(key(label::SCHEDULE), text)].into() };
    session.ask(session.client.label_volume(name, &request)).await.map(drop)
}

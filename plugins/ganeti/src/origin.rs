//! What a disk begins as: a snapshot of this node's, or one that an Indexer's reference leads to.

use std::str::FromStr;
use std::time::Duration;

use node::api::{ApiError, Bucket, ErrorCode, Policy, SubscribeRequest};
use types::{Name, ObjectPath, Reference, SnapshotId};

use crate::session::Session;

/// How long the Indexer may take to say whether what is followed may still be read.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// An origin could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "write BUCKET/OBJECT[@VERSION], a snapshot id, or INDEXER/ACCOUNT/NAME[/OBJECT[@VERSION]], each with #DISK for one disk of several"
)]
pub struct OriginError;

/// What a disk begins as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    place: Place,
    disk: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// As the node takes it.
    Here(String),
    /// In a bucket that is published; the object may be left out where there is only one.
    Published { reference: Reference, object: Option<String> },
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let (place, disk) = match text.split_once('#') {
            Some((place, disk)) => (place, Some(disk.parse::<Name>().map_err(|_| OriginError)?.to_string())),
            None => (text, None),
        };
        let is_path = |text: &str| text.parse::<ObjectPath>().is_ok();
        let reference = |text: &str| text.parse::<Reference>().map_err(|_| OriginError);
        let place = match place.matches('/').count() {
            0 if place.parse::<SnapshotId>().is_ok() => Place::Here(place.to_owned()),
            1 if is_path(place) => Place::Here(place.to_owned()),
            2 => Place::Published { reference: reference(place)?, object: None },
            3 => {
                let (published, object) = place.rsplit_once('/').ok_or(OriginError)?;
                // As it will be asked for, in a bucket of some name.
                if !is_path(&format!("b/{object}")) {
                    return Err(OriginError);
                }
                Place::Published { reference: reference(published)?, object: Some(object.to_owned()) }
            }
            _ => return Err(OriginError),
        };
        Ok(Self { place, disk })
    }
}

impl Origin {
    /// The disk that was chosen, of a snapshot that may have several.
    pub(crate) fn disk(&self) -> Option<&str> {
        self.disk.as_deref()
    }

    /// The snapshot, as this node takes it; what is not followed yet is followed from now on.
    pub(crate) async fn snapshot(&self, session: &Session<'_>) -> Result<String, ApiError> {
        let Place::Published { reference, object } = &self.place else {
            return Ok(self.text());
        };
        let bucket = bucket_of(session, reference).await?;
        let object = match object {
            Some(object) => object.clone(),
            None => only_object(session, &bucket, reference).await?,
        };
        Ok(format!("{bucket}/{object}"))
    }

    fn text(&self) -> String {
        match &self.place {
            Place::Here(text) => text.clone(),
            Place::Published { reference, .. } => reference.to_string(),
        }
    }
}

/// The bucket here that is published at a reference, or follows it.
async fn bucket_of(session: &Session<'_>, reference: &Reference) -> Result<Name, ApiError> {
    let buckets = session.ask(session.client.buckets()).await?;
    let of = |place: fn(&Bucket) -> &Option<Reference>| {
        buckets.iter().find(|bucket| place(bucket).as_ref() == Some(reference)).map(|bucket| bucket.name.clone())
    };
    if let Some(own) = of(|bucket| &bucket.published) {
        return Ok(own);
    }
    if let Some(followed) = of(|bucket| &bucket.subscribed) {
        let request =
            SubscribeRequest { reference: reference.clone(), bucket: Some(followed.clone()), policy: Policy::Lazy };
        // It may have been granted before and not be any more: a disk would wait for its data for ever. Whoever cannot be asked
        // may be so for a moment, and what is here already needs nobody.
        let asking = Session::new(session.client, ASK_AGAIN);
        return match asking.ask(asking.client.subscribe(&request)).await {
            Err(error) if error.code == ErrorCode::NotFound => Err(error),
            _ => Ok(followed),
        };
    }
    let taken = buckets.iter().any(|bucket| bucket.name == reference.name);
    let longer = || format!("{}.{}", reference.account, reference.name).parse().ok();
    let bucket = if taken { longer() } else { None };
    let request = SubscribeRequest { reference: reference.clone(), bucket, policy: Policy::Lazy };
    session.ask(session.client.subscribe(&request)).await.map(|subscription| subscription.bucket)
}

/// Where a bucket here is published, or what it follows.
pub(crate) async fn published_as(session: &Session<'_>, bucket: &Name) -> Result<Option<Reference>, ApiError> {
    let detail = session.ask(session.client.bucket(bucket.as_str())).await?;
    Ok(detail.bucket.published.or(detail.bucket.subscribed))
}

async fn only_object(session: &Session<'_>, bucket: &Name, reference: &Reference) -> Result<String, ApiError> {
    let detail = session.ask(session.client.bucket(bucket.as_str())).await?;
    let names: Vec<&str> = detail.contents.iter().map(|object| object.name.as_str()).collect();
    match names[..] {
        [only] => Ok(only.to_owned()),
        [] => Err(ApiError::new(ErrorCode::NotFound, format!("nothing is published at {reference} yet"))),
        _ => Err(ApiError::new(ErrorCode::Invalid, format!("several objects are published at {reference}"))
            .hint(format!("choose one, as {reference}/OBJECT: {}", names.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_told_from_the_others() {
        let here = |text: &str| Place::Here(text.to_owned());
        let id = "ab".repeat(32);
        for (text, place, disk) in [
            ("vms/web", here("vms/web"), None),
            ("vms/web@3#disk1", here("vms/web@3"), Some("disk1")),
            (id.as_str(), here(&id), None),
        ] {
            assert_eq!(text.parse(), Ok(Origin { place, disk: disk.map(str::to_owned) }));
        }
        let origin: Origin = "index.example.org:7070/alice/vms/web@3#root".parse().unwrap();
        let reference = "index.example.org:7070/alice/vms".parse().unwrap();
        assert_eq!(origin.disk(), Some("root"));
        assert_eq!(origin.place, Place::Published { reference, object: Some("web@3".to_owned()) });
        let origin: Origin = "index.example.org/alice/vms".parse().unwrap();
        assert!(matches!(origin.place, Place::Published { object: None, .. }));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in ["", "web", "vms/", "vms/web@0", "vms/web#", "vms/web#a/b", "h/a/b/c@x", "h/a/b/c/d", "http://h/a"] {
            assert_eq!(bad.parse::<Origin>(), Err(OriginError), "{bad}");
        }
    }
}

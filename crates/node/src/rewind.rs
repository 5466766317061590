//! Rewind: keeping a volume's past, and cloning a moment of it.

use std::sync::Arc;

use jiff::Timestamp;
use types::Name;
use volume::{Protection, Volume, VolumeError};

use crate::api::{self, ApiError, ErrorCode};
use crate::error::blocking;
use crate::node::Node;
use crate::snapshots::volume_error;

impl Node {
    /// Keeps what is written to a volume from now on.
    pub(crate) async fn protect_volume(
        self: &Arc<Self>,
        name: &Name,
        request: api::ProtectRequest,
    ) -> Result<api::VolumeDetail, ApiError> {
        if request.for_ms == 0 {
            let error = ApiError::new(ErrorCode::Invalid, "nothing can be kept for no time at all");
            return Err(error.hint("to keep nothing any more: brant volume protect NAME --off"));
        }
        let volume = self.find_volume(name)?;
        let space_bytes = request.space_bytes.map(|size| size.0);
        let protection = Protection { for_ms: request.for_ms, space_bytes };
        let (node, protecting) = (Arc::clone(self), Arc::clone(&volume));
        blocking(move || node.volumes.protect(&protecting, protection).map_err(volume_error)).await?;
        self.settings_changed(name).await?;
        self.show_volume_detail(&volume).await
    }

    /// Keeps nothing of a volume's past any more.
    pub(crate) async fn unprotect_volume(self: &Arc<Self>, name: &Name) -> Result<api::VolumeDetail, ApiError> {
        let volume = self.find_volume(name)?;
        let (node, letting_go) = (Arc::clone(self), Arc::clone(&volume));
        blocking(move || node.volumes.unprotect(&letting_go).map_err(volume_error)).await?;
        self.settings_changed(name).await?;
        self.show_volume_detail(&volume).await
    }

    /// Makes a volume that is what another one was at a moment.
    pub(crate) async fn clone_moment(
        self: &Arc<Self>,
        source: &str,
        moment: &str,
        name: Name,
    ) -> Result<Arc<Volume>, ApiError> {
        let source: Name =
            source.parse().map_err(|error: types::NameError| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
        let volume = self.find_volume(&source)?;
        let at: Timestamp = moment.parse().map_err(|_| {
            ApiError::new(ErrorCode::Invalid, format!("{moment:?} is not a moment"))
                .hint("write it as in RFC 3339, for example 2026-11-26T10:00:00Z")
        })?;
        let Ok(at_ms) = u64::try_from(at.as_millisecond()) else {
            return Err(ApiError::new(ErrorCode::Invalid, "moments before 1970 are not kept"));
        };
        let node = Arc::clone(self);
        blocking(move || {
            node.volumes.clone_at(&volume, at_ms, &name).map_err(|error| match error {
                VolumeError::OutsideWindow { from_ms, to_ms } => {
                    let message = format!("nothing is kept of {source} at {}", seconds(at_ms));
                    let from_ms = from_ms.next_multiple_of(1000);
                    ApiError::new(ErrorCode::NotFound, message).hint(match from_ms <= to_ms {
                        true => format!("any moment from {} to {} can be cloned", seconds(from_ms), seconds(to_ms)),
                        false => format!("what is written is kept from {} on", seconds(from_ms)),
                    })
                }
                VolumeError::NotProtected(_) => ApiError::from_error(ErrorCode::NotFound, &error)
                    .hint(format!("keep it from now on with: brant volume protect {source} --for 2h")),
                error => volume_error(error),
            })
        })
        .await
    }

    /// Lets go of what is older than volumes are protected for.
    pub(crate) async fn expire_history(self: &Arc<Self>) {
        let node = Arc::clone(self);
        if let Err(error) = blocking(move || node.volumes.expire_history().map_err(volume_error)).await {
            tracing::warn!(%error, "what was kept of volumes' past could not be let go");
        }
    }
}

/// A moment to the second, as in RFC 3339.
fn seconds(ms: u64) -> String {
    let timestamp = i64::try_from(ms / 1000).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    timestamp.map_or_else(|| format!("{ms} ms since 1970"), |timestamp| timestamp.to_string())
}

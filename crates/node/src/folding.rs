//! Folding journals in the background: when their volumes rest, or when there is too much in them.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use types::{Progress, VolumeId};
use volume::{FoldDue, Volume};

use crate::node::Node;

/// How often a fold is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A fold that does not come forward for so long, as its data is not here, lets go of what it holds and begins again.
const PATIENCE: Duration = Duration::from_mins(5);

impl Node {
    /// Begins to fold the journals that need it, one fold a volume: one that waits for absent data holds up no other.
    pub(crate) fn fold_volumes(self: &Arc<Self>) {
        for (volume, due) in self.volumes.needs_fold() {
            if !self.folding().insert(volume.id()) {
                continue;
            }
            let node = Arc::clone(self);
            self.spawn(async move {
                node.fold(&volume, due).await;
                node.folding().remove(&volume.id());
            });
        }
    }

    fn folding(&self) -> MutexGuard<'_, BTreeSet<VolumeId>> {
        self.folding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fold(&self, volume: &Arc<Volume>, due: FoldDue) {
        let progress = Progress::default();
        let mut fold = std::pin::pin!(self.volumes.fold(volume, &progress));
        let mut moved = (0, Instant::now());
        let name = volume.name();
        loop {
            match tokio::time::timeout(LOOK, &mut fold).await {
                Ok(Ok(())) => return tracing::debug!(volume = %name, "a journal was folded"),
                Ok(Err(error)) if progress.is_cancelled() => {
                    return tracing::debug!(%error, volume = %name, "folding a journal is put off");
                }
                Ok(Err(error)) => return tracing::warn!(%error, volume = %name, "a journal could not be folded"),
                Err(_) => {}
            }
            if progress.done_bytes() != moved.0 {
                moved = (progress.done_bytes(), Instant::now());
            } else if moved.1.elapsed() > PATIENCE && !progress.is_cancelled() {
                tracing::warn!(volume = %name, "folding a journal waits for data that is not here");
                progress.cancel();
            }
            if due == FoldDue::Resting && volume.fold_may_wait() {
                progress.cancel();
            }
        }
    }
}

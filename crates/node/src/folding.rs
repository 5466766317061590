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

/// How long a journal waits that was found to need more room than there is.
const ROOM_WAIT: Duration = Duration::from_mins(10);

/// How a fold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folded {
    /// It is done, or can be begun again as soon as it is due.
    AsFarAsItGoes,
    /// It was given up, as there is no room for the rest.
    LacksRoom,
}

impl Node {
    /// Begins to fold the journals that need it, one fold a volume: one that waits for absent data holds up no other.
    pub(crate) fn fold_volumes(self: &Arc<Self>) {
        for (volume, _) in self.volumes.needs_fold() {
            if !self.folding().insert(volume.id()) {
                continue;
            }
            // One that has just ended may have been seen half done.
            let Some(due) = volume.needs_fold() else {
                self.folding().remove(&volume.id());
                continue;
            };
            let node = Arc::clone(self);
            self.spawn(async move {
                if node.fold(&volume, due).await == Folded::LacksRoom {
                    tokio::time::sleep(ROOM_WAIT).await;
                }
                node.folding().remove(&volume.id());
            });
        }
    }

    fn folding(&self) -> MutexGuard<'_, BTreeSet<VolumeId>> {
        self.folding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fold(&self, volume: &Arc<Volume>, due: FoldDue) -> Folded {
        let progress = Progress::default();
        let mut fold = std::pin::pin!(self.volumes.fold(volume, &progress));
        let mut moved = (0, Instant::now());
        let mut outcome = Folded::AsFarAsItGoes;
        let name = volume.name();
        loop {
            if let Ok(folded) = tokio::time::timeout(LOOK, &mut fold).await {
                match folded {
                    Ok(()) => tracing::debug!(volume = %name, "a journal was folded"),
                    Err(error) if progress.is_cancelled() => {
                        tracing::debug!(%error, volume = %name, "folding a journal is put off");
                    }
                    Err(error) => tracing::warn!(%error, volume = %name, "a journal could not be folded"),
                }
                return outcome;
            }
            if progress.done_bytes() != moved.0 {
                moved = (progress.done_bytes(), Instant::now());
            } else if moved.1.elapsed() > PATIENCE && !progress.is_cancelled() {
                tracing::warn!(volume = %name, "folding a journal waits for data that is not here");
                progress.cancel();
            }
            if outcome != Folded::LacksRoom && volume.fold_lacks_room(&progress) {
                tracing::warn!(volume = %name, "folding a journal needs more room than the file system has left");
                outcome = Folded::LacksRoom;
                progress.cancel();
            }
            if due == FoldDue::Resting && volume.fold_may_wait() {
                progress.cancel();
            }
        }
    }
}

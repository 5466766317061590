//! What the root records of volumes and frozen disks refer to in the store.

use store::LiveTree;

use crate::error::VolumeError;
use crate::records::{
    self, FROZEN_PREFIX, FrozenRecord, HISTORY_PREFIX, HistoryRecord, JOURNAL_PREFIX, LAYER_PREFIX, PROTECTION_PREFIX,
    VOLUME_PREFIX, VolumeRecord,
};

/// The trees that a root record keeps: those of volumes, deleted ones included, of their past, and of frozen disks.
/// `None` where the record is not of this crate.
///
/// # Errors
/// A record that cannot be understood.
pub fn live_trees(name: &str, value: &[u8]) -> Result<Option<Vec<LiveTree>>, VolumeError> {
    let stack = if name.starts_with(VOLUME_PREFIX) {
        records::decode::<VolumeRecord>(name, value)?.stack
    } else if name.starts_with(FROZEN_PREFIX) {
        records::decode::<FrozenRecord>(name, value)?.stack
    } else if name.starts_with(HISTORY_PREFIX) {
        records::decode::<HistoryRecord>(name, value)?.before
    } else {
        // A layer's data are in its journal.
        let has_none = [LAYER_PREFIX, JOURNAL_PREFIX, PROTECTION_PREFIX].iter().any(|prefix| name.starts_with(prefix));
        return Ok(has_none.then(Vec::new));
    };
    let base = stack.check(name)?;
    let tree = base.root.map(|root| LiveTree {
        root,
        size_bytes: base.size_bytes,
        domains: base.domains,
        chunks: true,
        partial: base.origin.is_some(),
    });
    Ok(Some(tree.into_iter().collect()))
}

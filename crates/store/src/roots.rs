//! Roots: what is common to their implementations.
//!
//! Invariant: changes are checked before anything is written, so that a refused change leaves no trace.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::{RootChange, StoreError};

/// The longest name of a root, in bytes.
pub const MAX_ROOT_NAME_BYTES: usize = 512;

/// The longest value of a root, in bytes.
pub const MAX_ROOT_VALUE_BYTES: usize = 1 << 20;

/// The most that one set of changes may come to, in bytes, each name counted in full.
pub const MAX_CHANGES_BYTES: usize = 64 << 20;

/// Refuses names and values beyond the limits.
pub(crate) fn check_changes(changes: &[RootChange]) -> Result<(), StoreError> {
    let fits = |(name, value): &RootChange| {
        (1..=MAX_ROOT_NAME_BYTES).contains(&name.len())
            && value.as_ref().is_none_or(|value| value.len() <= MAX_ROOT_VALUE_BYTES)
    };
    let total: usize = changes.iter().map(|(_, value)| value.as_ref().map_or(0, Vec::len) + MAX_ROOT_NAME_BYTES).sum();
    let refused = changes.iter().find(|change| !fits(change));
    match refused.or(changes.first().filter(|_| total > MAX_CHANGES_BYTES)) {
        None => Ok(()),
        Some((name, _)) => Err(StoreError::RootTooLong { name: name.chars().take(80).collect() }),
    }
}

/// The records whose names begin with a prefix.
pub(crate) fn list_prefix(records: &BTreeMap<String, Vec<u8>>, prefix: &str) -> Vec<(String, Vec<u8>)> {
    records
        .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(|(name, _)| name.starts_with(prefix))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

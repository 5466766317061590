//! Metadata contexts: what block status tells of a range, in three views.
//!
//! - `base:allocation`: hole and zero, as the protocol document defines them. A range that was zeroed is zero but not a
//!   hole, so that `NBD_CMD_FLAG_NO_HOLE` is honoured; only what was never written is a hole.
//! - `brant:state`: which [`ExtentKind`] it is, as a number (see [`Context::status`]); 0 means unknown.
//! - `qemu:allocation-depth`: 1 for what was written since the volume was made, 2 for what its base holds, 0 for holes.

use volume::{Extent, ExtentKind};

use super::protocol::{NBD_STATE_HOLE, NBD_STATE_ZERO};

/// A metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Context {
    /// `base:allocation`.
    Allocation,
    /// `brant:state`.
    State,
    /// `qemu:allocation-depth`.
    Depth,
}

impl Context {
    /// All there are.
    pub const ALL: [Context; 3] = [Context::Allocation, Context::State, Context::Depth];

    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::State => "brant:state",
            Context::Depth => "qemu:allocation-depth",
        }
    }

    /// Its number in block status replies.
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            Context::Allocation => 1,
            Context::State => 2,
            Context::Depth => 3,
        }
    }

    /// What it says of a kind of extent.
    #[must_use]
    pub fn status(self, kind: ExtentKind) -> u32 {
        match (self, kind) {
            (Context::Allocation, ExtentKind::Written | ExtentKind::Local | ExtentKind::Absent)
            | (Context::Depth, ExtentKind::Hole) => 0,
            (Context::Allocation, ExtentKind::Zero) => NBD_STATE_ZERO,
            (Context::Allocation, ExtentKind::Hole) => NBD_STATE_HOLE | NBD_STATE_ZERO,
            (Context::State, ExtentKind::Written) | (Context::Depth, ExtentKind::Written | ExtentKind::Zero) => 1,
            (Context::State, ExtentKind::Local) | (Context::Depth, ExtentKind::Local | ExtentKind::Absent) => 2,
            (Context::State, ExtentKind::Absent) => 3,
            (Context::State, ExtentKind::Zero) => 4,
            (Context::State, ExtentKind::Hole) => 5,
        }
    }
}

/// The contexts that a query of `NBD_OPT_LIST_META_CONTEXT` finds: a name, or a namespace with its colon.
#[must_use]
pub fn listed(query: &str) -> Vec<Context> {
    let namespace = query.ends_with(':');
    Context::ALL
        .into_iter()
        .filter(|context| context.name() == query || (namespace && context.name().starts_with(query)))
        .collect()
}

/// The context that a query of `NBD_OPT_SET_META_CONTEXT` chooses: only by its whole name.
#[must_use]
pub fn chosen(query: &str) -> Option<Context> {
    Context::ALL.into_iter().find(|context| context.name() == query)
}

/// Extents as a context's (length, status) descriptors, neighbours of one status joined.
pub(crate) fn descriptors(context: Context, extents: &[Extent], one: bool) -> Vec<(u32, u32)> {
    let mut all: Vec<(u32, u32)> = Vec::with_capacity(extents.len());
    for extent in extents {
        let status = context.status(extent.kind);
        // A request's length is 32 bits, and extents do not go beyond it.
        let length = u32::try_from(extent.length).unwrap_or(u32::MAX);
        match all.last_mut() {
            Some((before, same)) if *same == status => *before = before.saturating_add(length),
            Some(_) if one => break,
            _ => all.push((length, status)),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_lists_but_does_not_choose() {
        assert_eq!(listed("base:"), [Context::Allocation]);
        assert_eq!(listed("brant:state"), [Context::State]);
        assert_eq!(listed("base"), []);
        assert_eq!(listed("qemu:dirty-bitmap:"), []);
        assert_eq!(chosen("base:"), None);
        assert_eq!(chosen("qemu:allocation-depth"), Some(Context::Depth));
    }

    #[test]
    fn neighbours_of_one_status_are_joined() {
        let extents = [
            Extent { length: 512, kind: ExtentKind::Written },
            Extent { length: 1024, kind: ExtentKind::Absent },
            Extent { length: 512, kind: ExtentKind::Hole },
        ];
        assert_eq!(descriptors(Context::Allocation, &extents, false), [(1536, 0), (512, 3)]);
        assert_eq!(descriptors(Context::Allocation, &extents, true), [(1536, 0)]);
        assert_eq!(descriptors(Context::State, &extents, false), [(512, 1), (1024, 3), (512, 5)]);
        assert_eq!(descriptors(Context::Depth, &extents, false), [(512, 1), (1024, 2), (512, 0)]);
    }
}

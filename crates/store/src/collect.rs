//! Collection: what a store needs to know to give the room of unreferenced objects back, and what it tells.
//!
//! Invariants: an object is removed only if, since before the roots were listed, it was neither reachable from a root
//! nor put nor found present under a [`Hold`]. Whoever stores something that no root refers to yet takes a hold first
//! and keeps it until the root is durable. A set of roots that is not known to be whole forbids collection.

use std::any::Any;
use std::fmt;

use types::{Cancelled, NodeId};

use crate::{Domains, Key, StoreError};

/// Keeps everything that is put or found present from now on from being collected, until it is dropped.
#[derive(Default)]
pub struct Hold {
    _guard: Option<Box<dyn Any + Send + Sync>>,
}

impl Hold {
    /// Wraps what ends the hold when it is dropped.
    #[must_use]
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self { _guard: Some(Box::new(guard)) }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}

/// Something that a root refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Live {
    /// A disk's tree, with everything below it.
    Tree(LiveTree),
    /// A single object, present or not.
    Object {
        /// Which.
        key: Key,
        /// Where it counts as present.
        domains: Domains,
    },
}

/// A disk's tree that a root refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveTree {
    /// Its root.
    pub root: NodeId,
    /// The disk's size, in bytes.
    pub size_bytes: u64,
    /// Where its parts count as present.
    pub domains: Domains,
    /// Whether its chunks are kept, too, and not its nodes only.
    pub chunks: bool,
    /// Whether parts of it may be elsewhere: absent nodes are passed over then, and forbid collection otherwise.
    pub partial: bool,
}

/// The roots of a store's owner.
pub trait LiveRoots: Sync {
    /// Shows all that is referred to at one moment.
    ///
    /// # Errors
    /// When a root cannot be read or understood: nothing is collected then.
    fn visit(&self, live: &mut dyn FnMut(Live)) -> Result<(), IncompleteRoots>;
}

/// The roots could not be listed in whole.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct IncompleteRoots {
    /// Which root, and what is wrong with it.
    pub what: String,
    /// Why.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// How a store is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectOptions {
    /// How many bytes may be read and written per second; no limit where none is given.
    pub rate_bytes_per_second: Option<u64>,
    /// A pack of which less is live is hollowed or written anew, in percent; with 100 every dead object goes.
    pub live_percent: u8,
    /// Only count what would be done.
    pub dry_run: bool,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self { rate_bytes_per_second: None, live_percent: 75, dry_run: false }
    }
}

/// What a collection did, or, in a dry run, would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Objects that are referred to and present.
    pub live_objects: u64,
    /// Their length as stored, in bytes.
    pub live_bytes: u64,
    /// Objects that nothing refers to, and second copies.
    pub dead_objects: u64,
    /// Their length as stored, in bytes.
    pub dead_bytes: u64,
    /// Packs that were removed.
    pub removed_packs: u64,
    /// Packs in which the room of what is dead was given back where it lay.
    pub hollowed_packs: u64,
    /// Bytes that came back: the length of the packs that were removed, and what was given back in others.
    pub freed_bytes: u64,
    /// Bytes of live objects that were written anew.
    pub moved_bytes: u64,
    /// Packs that stay because something live in them is damaged.
    pub damaged_packs: u64,
    /// The most memory that its own tables took, in bytes.
    pub memory_bytes: u64,
}

/// A collection could not come to its end. What it had done by then is whole, and the next one goes on from there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError {
    /// It was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// Another one is under way.
    #[error("another collection is under way")]
    Busy,
    /// This store cannot be collected.
    #[error("this store cannot be collected")]
    Unsupported,
    /// The roots are not known in whole: nothing was removed.
    #[error("not all that is referred to is known: nothing is collected")]
    Roots(#[from] IncompleteRoots),
    /// A node of a tree that must be here in whole is not here, or damaged: what is below it is not known, so nothing
    /// was removed.
    #[error("tree node {0}, which is referred to, cannot be read: nothing is collected")]
    Node(NodeId, #[source] Option<Box<StoreError>>),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

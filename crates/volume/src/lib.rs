//! Writable thin disks: a tree, a few frozen layers over it, and a journal into the open layer.
//!
//! A write is one append to the open layer's journal. A snapshot freezes the open layer and puts an empty one over it,
//! a clone is a new open layer over what is shared: both cost the same for every size. Sealing folds frozen layers
//! into the tree in the background. What the tree lacks is asked for at a [`store::ChunkSource`]; this crate knows
//! nothing of peers, buckets or transports.

mod base;
mod clock;
mod cloning;
mod deleted;
pub mod device;
mod difference;
mod error;
mod extent_map;
mod frozen;
mod giving;
mod history;
mod in_file;
mod inspect;
mod journal;
mod layer;
mod live;
mod locks;
mod observer;
mod pressure;
mod read_ahead;
mod reading;
mod records;
mod recovery;
mod replay;
mod revert;
mod seal;
mod segment;
mod sharing;
mod stack;
mod steps;
mod tidy;
mod volume;
mod volumes;
mod workers;

pub use base::{Missing, TreeBase};
pub use clock::Clock;
pub use cloning::CloneOf;
pub use deleted::Deleted;
pub use device::{BlockDevice, DeviceError, Durability, Extent, ExtentKind, Readiness};
pub use difference::{Changed, ChangedKind, Changes, DiskState};
pub use error::VolumeError;
pub use frozen::{Frozen, TreeView};
pub use history::{Protection, Window};
pub use live::live_trees;
pub use observer::{Change, Observer};
pub use pressure::FoldDue;
pub use revert::RevertTo;
pub use sharing::Sharing;
pub use tidy::Promised;
pub use volume::{Position, Volume, VolumeStatus};
pub use volumes::{VolumeOptions, Volumes};

//! What several crates' tests share: running the real `brant`, killing it at will, and disks to try it on.
//!
//! Nothing that ships depends on this crate. Every wait has a limit, every process ends with the value that holds it,
//! and whatever a test needs of the machine and does not find is skipped by name.

pub mod disk;
pub mod service;
pub mod wait;
pub mod world;

pub use disk::Disk;
pub use service::Service;
pub use world::{Node, Output, World};

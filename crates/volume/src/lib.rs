//! Writable thin disks: a tree, a few frozen layers over it, and a journal into the open layer.

pub mod device;

pub use device::{BlockDevice, DeviceError, Durability, Extent, ExtentKind, Readiness};

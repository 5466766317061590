//! How two disks differ.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What became of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DifferenceKind {
    /// It has other data.
    Data,
    /// It is zero, and was not.
    Zero,
    /// Whether it differs cannot be told from what is here.
    Unknown,
}

/// A range in which two disks differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DifferenceExtent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes: whole chunks of 64 KiB, but for the end of the disk.
    pub length: u64,
    /// What became of it.
    pub kind: DifferenceKind,
}

/// Some of the ranges in which two disks differ, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Differences {
    /// What is compared, with its version.
    pub from: String,
    /// What it is compared with, with its version.
    pub to: String,
    /// The size of the first, in bytes.
    pub from_size_bytes: u64,
    /// The size of the second, in bytes.
    pub to_size_bytes: u64,
    /// Where they differ.
    pub extents: Vec<DifferenceExtent>,
    /// The `offset` to ask with for more; none when this is all.
    pub next: Option<u64>,
}

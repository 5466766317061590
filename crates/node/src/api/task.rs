//! Tasks: everything that takes time.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiError;

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Reads a foreign disk into a bucket.
    Import,
    /// Writes a snapshot out to foreign storage.
    Materialize,
    /// Gives a snapshot its content id.
    Seal,
    /// Brings what is not here.
    Hydrate,
    /// Gives the room of what nothing refers to back.
    Collect,
    /// Reads everything again, and fetches what is damaged.
    Scrub,
    /// Takes a volume from another member of the cluster.
    Take,
}

/// How far a task has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It runs.
    Running,
    /// It ended well.
    Done,
    /// It failed.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// The node stopped while it ran, and it cannot go on by itself.
    Interrupted,
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its number on this node, from 1.
    pub id: u64,
    /// What it does.
    pub kind: TaskKind,
    /// What it does it to, for example `vms/web@3`.
    pub subject: String,
    /// How far it has come.
    pub state: TaskState,
    /// When it began.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// Bytes to do in all; 0 while unknown.
    pub total_bytes: u64,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes that had to be stored or transferred, as stored.
    pub moved_bytes: u64,
    /// What came of it, for example the snapshot's path.
    pub result: Option<String>,
    /// Why it failed.
    pub error: Option<ApiError>,
}

//! Watching a task until it ends.

use std::time::Duration;

use super::Client;
use crate::api::{ApiError, ErrorCode, Task, TaskState};

impl Client {
    /// Waits until a task has ended, showing it at least every `interval` to `watch`.
    ///
    /// # Errors
    /// What the node reports; that the task failed is not an error here: see [`Task::into_result`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the task as it is.
    pub async fn wait_for_task(
        &self,
        id: u64,
        interval: Duration,
        mut watch: impl FnMut(&Task),
    ) -> Result<Task, ApiError> {
        loop {
            let task = self.task(id, interval).await?;
            watch(&task);
            if task.state != TaskState::Running {
                return Ok(task);
            }
        }
    }
}

impl Task {
    /// Returns a task that ended well, or why it did not.
    ///
    /// # Errors
    /// The task's own error, or one that says that it was cancelled or interrupted.
    pub fn into_result(self) -> Result<Self, ApiError> {
        match self.state {
            TaskState::Running | TaskState::Done => Ok(self),
            TaskState::Cancelled => Err(ApiError::new(ErrorCode::Cancelled, format!("task {} was cancelled", self.id))),
            TaskState::Failed => {
                let unexplained = || ApiError::new(ErrorCode::Internal, format!("task {} failed", self.id));
                Err(self.error.clone().unwrap_or_else(unexplained))
            }
            TaskState::Interrupted => Err(ApiError::new(
                ErrorCode::Cancelled,
                format!("task {} was interrupted: the node stopped while it ran", self.id),
            )
            .hint("run the same command again: what had been done is not done twice")),
        }
    }
}

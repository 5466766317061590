//! The one shape of every error.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of error it is; the command line's exit code follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense as it is. Exit code 2.
    Invalid,
    /// What it names does not exist, or may not be seen. Exit code 3.
    NotFound,
    /// What it would make exists, or is in use. Exit code 4.
    Conflict,
    /// It is not allowed. Exit code 5.
    Forbidden,
    /// There is no room. Exit code 6.
    Full,
    /// An Indexer, a peer or a program could not be reached. Exit code 7.
    Unreachable,
    /// Something stored or received is damaged. Exit code 8.
    Damaged,
    /// It was cancelled. Exit code 9.
    Cancelled,
    /// Anything else. Exit code 1.
    Internal,
}

/// An error, for people and for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind.
    pub code: ErrorCode,
    /// What went wrong, from the outermost step to the innermost cause.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// Makes an error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Makes an error of another one and all its causes.
    pub fn from_error(code: ErrorCode, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = inner.source();
        }
        Self::new(code, message)
    }
}

//! What can go wrong between a node and an Indexer, each with something that a person can do.

use bucket::Head;
use url::Url;

use crate::api::ApiError;

/// Why an Indexer gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL cannot be one of an Indexer.
    #[error("{url} is not an Indexer's URL")]
    Url {
        /// What was given.
        url: Url,
    },
    /// The token cannot be sent.
    #[error("the token is malformed")]
    Token,
    /// The HTTP client could not be made.
    #[error("could not set up HTTP")]
    Setup(#[source] reqwest::Error),
    /// No connection, or it broke.
    #[error("could not reach the Indexer at {url}")]
    Unreachable {
        /// The Indexer.
        url: Url,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The event stream ended.
    #[error("the Indexer at {url} closed the connection")]
    Closed {
        /// The Indexer.
        url: Url,
    },
    /// It did not answer in time.
    #[error("the Indexer at {url} did not answer in time")]
    TimedOut {
        /// The Indexer.
        url: Url,
    },
    /// No token, or one that is wrong or expired.
    #[error("the Indexer does not accept the token: {}", .0.message)]
    Unauthorized(ApiError),
    /// Not there, or not for this account.
    #[error("not found at the Indexer")]
    NotFound(ApiError),
    /// Someone else was faster.
    #[error("the Indexer refused a conflicting change: {}", .0.message)]
    Conflict(ApiError),
    /// The Indexer said no.
    #[error("the Indexer refused: {}", .0.message)]
    Refused(ApiError),
    /// What it said cannot be.
    #[error("the Indexer at {url} gave an answer that cannot be used: {what}")]
    Garbage {
        /// The Indexer.
        url: Url,
        /// What is wrong with it.
        what: String,
    },
}

impl ClientError {
    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Url { .. } => "write http://HOST:PORT or https://HOST",
            Self::Token => "a token begins with brant_; log in again with brant login",
            Self::Setup(_) => "https needs the system's CA certificates: install ca-certificates",
            Self::Unreachable { .. } | Self::Closed { .. } | Self::TimedOut { .. } => {
                "is the Indexer running, and the URL right? What is logged in, published or subscribed is tried again by itself"
            }
            Self::Garbage { .. } => "is this the URL of a brant Indexer? Nothing of its answer was used",
            Self::Unauthorized(error) | Self::NotFound(error) | Self::Conflict(error) | Self::Refused(error) => {
                return error.hint.clone();
            }
        };
        Some(hint.to_owned())
    }

    /// Whether trying again later can help without anyone doing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Closed { .. } | Self::TimedOut { .. } => true,
            Self::Refused(error) => matches!(error.code.as_str(), "too_many_requests" | "internal" | "unavailable"),
            _ => false,
        }
    }
}

/// Why entries were not appended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The log has another head: fetch what is new and rebase.
    #[error("the log has moved on to entry {}", head.sequence)]
    Conflict {
        /// The log's head, as the Indexer says.
        head: Head,
    },
    /// Something else.
    #[error(transparent)]
    Client(#[from] ClientError),
}

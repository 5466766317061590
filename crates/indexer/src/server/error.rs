//! What a request fails with: a status and the one shape of errors.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bucket::Head;

use crate::api::ApiError;
use crate::db::DbError;

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    error: Box<ApiError>,
}

/// What a handler returns.
pub(crate) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>, hint: Option<&str>) -> Self {
        let hint = hint.map(str::to_owned);
        Self { status, error: Box::new(ApiError { code: code.into(), message: message.into(), hint, head: None }) }
    }

    /// The one answer about a reference that is not there, or not for the asker.
    pub(crate) fn not_found() -> Self {
        let hint = "check the name; a private reference is seen only with the token of an account that may read it";
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such reference here", Some(hint))
    }

    pub(crate) fn no_endpoint() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "this endpoint is not known here", None)
    }

    pub(crate) fn token_needed() -> Self {
        let hint = "log in with brant login INDEXER";
        Self::new(StatusCode::UNAUTHORIZED, "token_needed", "this needs an account's token", Some(hint))
    }

    pub(crate) fn bad_token() -> Self {
        let hint = "it may be mistyped, expired or replaced: get one from the Indexer's operator and run brant login";
        Self::new(StatusCode::UNAUTHORIZED, "bad_token", "the token is not valid", Some(hint))
    }

    pub(crate) fn too_many_requests() -> Self {
        let hint = Some("wait a few seconds");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", "too many requests", hint)
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message, None)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message, Some("send less at a time"))
    }

    pub(crate) fn not_owner() -> Self {
        let hint = "only the account that owns a reference changes it";
        Self::new(StatusCode::FORBIDDEN, "not_owner", "this reference belongs to another account", Some(hint))
    }

    pub(crate) fn over_limit(message: impl Into<String>) -> Self {
        let hint = "remove what is not needed, or ask the Indexer's operator";
        Self::new(StatusCode::FORBIDDEN, "over_limit", message, Some(hint))
    }

    /// The log has moved on.
    pub(crate) fn conflict(head: Head) -> Self {
        let message = format!("the log's head is entry {}", head.sequence);
        let hint = "fetch the new entries and rebase yours on them";
        let mut failure = Self::new(StatusCode::CONFLICT, "conflict", message, Some(hint));
        failure.error.head = Some(head.into());
        failure
    }

    pub(crate) fn refused(code: &str, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message, hint)
    }

    /// Something that must not happen: told to the operator, not to the client.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            chain.push_str(": ");
            chain.push_str(&cause.to_string());
            source = cause.source();
        }
        tracing::error!(error = chain, "a request failed");
        let hint = Some("try again; the Indexer's log says more");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the Indexer failed", hint)
    }
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Self {
        Self::internal(&error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(&*self.error)).into_response();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::TOO_MANY_REQUESTS => {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
            }
            _ => {}
        }
        response
    }
}

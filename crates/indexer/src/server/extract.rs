//! Requests' parts, with errors of our own shape.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use types::Name;

use super::error::{Answer, Failure};

/// An account and a name in a path.
#[derive(Clone, Debug)]
pub(crate) struct ReferencePath {
    pub(crate) account: Name,
    pub(crate) name: Name,
}

impl<S: Send + Sync> FromRequestParts<S> for ReferencePath {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let path = Path::<(String, String)>::from_request_parts(parts, state).await;
        let Path((account, name)) = path.map_err(|error| Failure::malformed(error.body_text()))?;
        let parse = |text: String| text.parse::<Name>().map_err(|error| Failure::malformed(error.to_string()));
        Ok(Self { account: parse(account)?, name: parse(name)? })
    }
}

/// A query string.
#[derive(Clone, Debug)]
pub(crate) struct Ask<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Ask<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let query = Query::<T>::try_from_uri(&parts.uri);
        query.map(|Query(query)| Self(query)).map_err(|error| Failure::malformed(error.body_text()))
    }
}

/// A JSON body, within the router's limit of length.
#[derive(Clone, Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Answer<Self> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Failure::too_large("the request's body is too long"),
            _ => Failure::malformed(error.body_text()),
        })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Failure::malformed(error.to_string()))
    }
}

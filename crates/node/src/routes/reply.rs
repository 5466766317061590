//! How handlers answer, and how errors look over HTTP.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::api::{ApiError, ErrorCode};

/// What every handler returns.
pub(super) type Reply<T> = Result<Json<T>, ApiError>;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::Full => StatusCode::INSUFFICIENT_STORAGE,
            ErrorCode::Unreachable => StatusCode::BAD_GATEWAY,
            ErrorCode::Damaged | ErrorCode::Cancelled | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self)).into_response()
    }
}

/// A JSON body, refused in the API's own words where it is not one.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(refused(&rejection)),
        }
    }
}

fn refused(rejection: &JsonRejection) -> ApiError {
    ApiError::new(ErrorCode::Invalid, rejection.body_text()).hint("the API is described at /v1/openapi.json")
}

/// Reads a name out of a path.
pub(super) fn name(text: &str) -> Result<types::Name, ApiError> {
    text.parse().map_err(|error: types::NameError| ApiError::new(ErrorCode::Invalid, error.to_string()))
}

/// The answer for what is no route.
pub(super) async fn no_such_route() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "there is no such route").hint("the API is described at /v1/openapi.json")
}

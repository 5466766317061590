//! How the errors of the parts below become the API's: kind, message, and what to do.

use store::StoreError;

use crate::api::{ApiError, ErrorCode};
use crate::catalog::CatalogError;

/// Turns a store's error into the API's.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    let code = match &error {
        StoreError::Full { .. } => ErrorCode::Full,
        StoreError::Damaged { .. } | StoreError::WrongHash(_) => ErrorCode::Damaged,
        StoreError::InUse { .. } => ErrorCode::Conflict,
        _ => ErrorCode::Internal,
    };
    let hint = match &error {
        StoreError::Full { .. } => Some("make room on that file system and run the command again"),
        StoreError::Index(_) => Some("stop the node and run: brant store rebuild-index --dir DIR"),
        _ => None,
    };
    let api = ApiError::from_error(code, &error);
    match hint {
        Some(hint) => api.hint(hint),
        None => api,
    }
}

/// Turns the catalog's error into the API's.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(crate) fn catalog_error(error: CatalogError) -> ApiError {
    ApiError::from_error(ErrorCode::Internal, &error)
}

/// A name that nothing has.
pub(crate) fn not_found(what: &str, name: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no {what} {name}"))
}

/// Runs work that blocks on a thread for it.
///
/// # Errors
/// Those of the work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(ApiError::new(ErrorCode::Internal, format!("a worker failed: {error}"))))
}

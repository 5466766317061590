//! How the errors of the parts below become the API's: kind, message, and what to do.

use std::error::Error;
use std::sync::Arc;

use store::StoreError;

use crate::api::{ApiError, ErrorCode};
use crate::catalog::CatalogError;

/// The kind of an error that may have a store's error at the bottom.
pub(crate) fn code_beneath(error: &(dyn Error + 'static)) -> ErrorCode {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let shared = error.downcast_ref::<Arc<StoreError>>().map(AsRef::as_ref);
        if let Some(error) = shared.or_else(|| error.downcast_ref::<StoreError>()) {
            return store_code(error);
        }
        cause = error.source();
    }
    ErrorCode::Internal
}

fn store_code(error: &StoreError) -> ErrorCode {
    match error {
        StoreError::Full { .. } => ErrorCode::Full,
        StoreError::Damaged { .. } | StoreError::WrongHash(_) => ErrorCode::Damaged,
        StoreError::InUse { .. } => ErrorCode::Conflict,
        _ => ErrorCode::Internal,
    }
}

/// Turns a store's error into the API's.
pub(crate) fn store_error(error: StoreError) -> ApiError {
    let code = store_code(&error);
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
    if error.is_full() {
        return ApiError::from_error(ErrorCode::Full, &error).hint("make room on the node's file system");
    }
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

#[cfg(test)]
mod tests {
    use store::FetchError;
    use volume::DeviceError;

    use super::*;

    #[test]
    fn a_stores_error_is_found_beneath_others() {
        let full = || StoreError::Full { path: "packs".into() };
        let damaged = StoreError::Damaged { what: "a chunk".to_owned(), path: "packs".into() };
        assert_eq!(code_beneath(&DeviceError::Store(damaged)), ErrorCode::Damaged);
        assert_eq!(code_beneath(&DeviceError::Fetch(FetchError::Store(Arc::new(full())))), ErrorCode::Full);
        assert_eq!(code_beneath(&full()), ErrorCode::Full);
        assert_eq!(code_beneath(&DeviceError::ReadOnly), ErrorCode::Internal);
    }
}

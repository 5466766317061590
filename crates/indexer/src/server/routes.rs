//! All routes, and what holds for every request: limits of length and time, one shape of errors.

mod account;
mod append;
mod endpoints;
mod events;
mod log;
mod providers;
mod references;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use utoipa::OpenApi;

use super::auth::Caller;
use super::error::{Answer, Failure};
use super::extract::ReferencePath;
use super::state::State;
use crate::api::{ApiError, MAX_REQUEST_BYTES};
use crate::db::Reference;

/// How long a request may take, its body included; an event stream counts until it begins.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The service's description.
#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "brant Indexer", description = "References, logs, providers and endpoints of brant buckets."),
    paths(
        account::info,
        account::whoami,
        account::references,
        account::certify,
        references::claim,
        references::show,
        references::change,
        references::release,
        log::page,
        log::head,
        append::append,
        events::events,
        providers::announce,
        providers::list,
        endpoints::put,
        endpoints::show,
        openapi
    ),
    components(schemas(ApiError))
)]
pub(crate) struct Description;

pub(crate) fn router(state: Arc<State>) -> Router {
    const REFERENCE: &str = "/v1/accounts/{account}/references/{name}";
    let under = |rest: &str| format!("{REFERENCE}{rest}");
    Router::new()
        .route("/v1/indexer", get(account::info))
        .route("/v1/openapi.json", get(openapi))
        .route("/v1/whoami", get(account::whoami))
        .route("/v1/references", get(account::references))
        .route("/v1/certificates", post(account::certify))
        .route(
            REFERENCE,
            put(references::claim).get(references::show).patch(references::change).delete(references::release),
        )
        .route(&under("/log"), get(log::page).post(append::append))
        .route(&under("/head"), get(log::head))
        .route(&under("/events"), get(events::events))
        .route(&under("/providers"), get(providers::list).post(providers::announce))
        .route("/v1/endpoints/{id}", put(endpoints::put).get(endpoints::show))
        .fallback(|| async { Failure::new(StatusCode::NOT_FOUND, "no_route", "there is no such route", None) })
        .method_not_allowed_fallback(|| async {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "no_method", "this route has no such method", None)
        })
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(middleware::from_fn(within_bounds))
        .with_state(state)
}

/// Gives every request a time limit, and every answer the headers that keep it out of caches.
async fn within_bounds(request: Request, next: Next) -> Response {
    let mut response = match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = "the request took too long";
            Failure::new(StatusCode::REQUEST_TIMEOUT, "timed_out", message, Some("try again")).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The service's description as an OpenAPI document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "This document")))]
pub(crate) async fn openapi(_: Caller) -> Answer<Response> {
    let document = Description::openapi().to_json().map_err(|error| Failure::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], document).into_response())
}

/// Finds a reference that the caller may read; everything else is not found.
async fn readable(state: &State, caller: &Caller, path: &ReferencePath) -> Answer<Reference> {
    let found = state.db.readable(caller.account.as_ref(), &path.account, &path.name).await?;
    found.ok_or_else(Failure::not_found)
}

/// Runs a change to its end, also when the client that asked for it goes away.
async fn to_the_end<T: Send + 'static>(
    state: &State,
    change: impl Future<Output = Answer<T>> + Send + 'static,
) -> Answer<T> {
    state.changes.spawn(change).await.map_err(|error| Failure::internal(&error))?
}

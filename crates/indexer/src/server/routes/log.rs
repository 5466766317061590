//! Logs to read: pages of entries, and the signed head.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use bucket::SignedHead;
use serde::Deserialize;
use utoipa::IntoParams;

use super::readable;
use crate::api::{ApiError, LogPage, MAX_ENTRIES, SignedText};
use crate::server::auth::Caller;
use crate::server::error::Answer;
use crate::server::extract::{Ask, ReferencePath};
use crate::server::state::State;

/// How long a signed head holds, in milliseconds.
const HEAD_MS: u64 = 2 * 60 * 1000;

/// Which entries are asked for.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Run {
    /// The number of the first, 0 when left out.
    #[serde(default)]
    from: u64,
    /// How many at most.
    limit: Option<usize>,
}

/// Entries of a log, in order; fewer than asked for where a page is full.
#[utoipa::path(get, path = "/v1/accounts/{account}/references/{name}/log",
    params(("account" = String, Path), ("name" = String, Path), Run),
    responses((status = 200, body = LogPage), (status = 404, body = ApiError)))]
pub(crate) async fn page(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
    Ask(run): Ask<Run>,
) -> Answer<Json<LogPage>> {
    let reference = readable(&state, &caller, &path).await?;
    let limit = run.limit.unwrap_or(MAX_ENTRIES).clamp(1, MAX_ENTRIES);
    let mut entries = state.db.entries(&reference, run.from, limit).await?;
    // An append may have come between the two statements: the page ends at the head that it names.
    let known = (reference.head.sequence + 1).saturating_sub(run.from);
    entries.truncate(usize::try_from(known).unwrap_or(usize::MAX));
    Ok(Json(LogPage { entries, head: reference.head.into() }))
}

/// The Indexer's signed word for the log's head, which holds for two minutes.
#[utoipa::path(get, path = "/v1/accounts/{account}/references/{name}/head",
    params(("account" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = SignedText), (status = 404, body = ApiError)))]
pub(crate) async fn head(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
) -> Answer<Json<SignedText>> {
    let reference = readable(&state, &caller, &path).await?;
    let expires_ms = state.valid_until(HEAD_MS);
    Ok(Json(SignedText::new(&SignedHead::attest(&state.signer, reference.bucket, reference.head, expires_ms))))
}

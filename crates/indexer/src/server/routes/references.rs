//! References: claim, show, make public or private, release.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use bucket::{Log, LogError};
use format::entry::{Entry, SignedEntry};

use super::account::describe;
use super::append::refuse;
use super::{readable, to_the_end};
use crate::api::{ApiError, ClaimRequest, MAX_ENTRIES, ReferenceInfo, VisibilityRequest};
use crate::db::{Account, Claim, Claimed, Reference};
use crate::server::auth::Caller;
use crate::server::error::{Answer, Failure};
use crate::server::extract::{Body, ReferencePath};
use crate::server::logs::verify;
use crate::server::state::State;

/// Claims a reference for a bucket; again for the same bucket only sets whether it is public.
#[utoipa::path(put, path = "/v1/accounts/{account}/references/{name}", request_body = ClaimRequest,
    params(("account" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "Claimed before", body = ReferenceInfo),
        (status = 201, description = "Claimed", body = ReferenceInfo),
        (status = 409, description = "The name is taken", body = ApiError),
        (status = 422, description = "The log is not acceptable", body = ApiError)))]
pub(crate) async fn claim(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
    Body(request): Body<ClaimRequest>,
) -> Answer<(StatusCode, Json<ReferenceInfo>)> {
    let owner = caller.account()?.clone();
    if owner.name != path.account {
        return Err(Failure::not_found());
    }
    if request.entries.len() > MAX_ENTRIES {
        return Err(Failure::too_large(format!("at most {MAX_ENTRIES} entries go in one request")));
    }
    let (status, reference) = to_the_end(&state, {
        let state = Arc::clone(&state);
        async move { carry_out(&state, &owner, &path, request).await }
    })
    .await?;
    Ok((status, Json(describe(reference))))
}

async fn carry_out(
    state: &State,
    owner: &Account,
    path: &ReferencePath,
    request: ClaimRequest,
) -> Answer<(StatusCode, Reference)> {
    let entries = request.entries;
    let log = verify(move || replay(entries)).await?.map_err(|error| refuse(&error))?;
    let (indexer, limit) = (state.signer.public_key(), state.limits.references_per_account);
    let claim = Claim { owner, name: &path.name, public: request.public, log: &log, indexer, limit };
    match state.db.claim(claim, state.clock.now_ms()).await? {
        Claimed::New(reference) => {
            state.logs.keep(reference.id, log);
            Ok((StatusCode::CREATED, reference))
        }
        Claimed::Again(reference) => {
            state.notify(reference.id);
            Ok((StatusCode::OK, reference))
        }
        Claimed::Taken => {
            let message = format!("{}/{} names another bucket", path.account, path.name);
            let hint = Some("choose another name, or release that one first");
            Err(Failure::new(StatusCode::CONFLICT, "name_taken", message, hint))
        }
        Claimed::TooMany => Err(Failure::over_limit(format!("an account has at most {limit} references"))),
    }
}

/// Verifies a log whose bucket is the one that its first entry names.
fn replay(entries: Vec<SignedEntry>) -> Result<Log, LogError> {
    let first = entries.first().ok_or(LogError::Empty)?;
    let first = Entry::decode(&first.entry).map_err(|source| LogError::Malformed { sequence: 0, source })?;
    Log::replay(first.bucket, entries)
}

/// What a reference names.
#[utoipa::path(get, path = "/v1/accounts/{account}/references/{name}",
    params(("account" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = ReferenceInfo),
        (status = 404, description = "Not there, or not for the caller", body = ApiError)))]
pub(crate) async fn show(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
) -> Answer<Json<ReferenceInfo>> {
    Ok(Json(describe(readable(&state, &caller, &path).await?)))
}

/// Makes a reference public or private.
#[utoipa::path(patch, path = "/v1/accounts/{account}/references/{name}", request_body = VisibilityRequest,
    params(("account" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = ReferenceInfo), (status = 403, body = ApiError), (status = 404, body = ApiError)))]
pub(crate) async fn change(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
    Body(request): Body<VisibilityRequest>,
) -> Answer<Json<ReferenceInfo>> {
    let (owner, reference) = owned(&state, &caller, &path).await?;
    let public = request.public;
    let reference = to_the_end(&state, {
        let state = Arc::clone(&state);
        async move {
            state.db.set_public(&owner, &reference, public, state.clock.now_ms()).await?;
            // Streams of those who may read no longer end.
            state.notify(reference.id);
            Ok(Reference { public, ..reference })
        }
    })
    .await?;
    Ok(Json(describe(reference)))
}

/// Gives a reference up, with its log.
#[utoipa::path(delete, path = "/v1/accounts/{account}/references/{name}",
    params(("account" = String, Path), ("name" = String, Path)),
    responses((status = 204, description = "Gone"), (status = 403, body = ApiError), (status = 404, body = ApiError)))]
pub(crate) async fn release(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
) -> Answer<StatusCode> {
    let (owner, reference) = owned(&state, &caller, &path).await?;
    to_the_end(&state, {
        let state = Arc::clone(&state);
        async move {
            state.db.release(&owner, &reference, state.clock.now_ms()).await?;
            state.notify(reference.id);
            Ok(StatusCode::NO_CONTENT)
        }
    })
    .await
}

/// A reference of the caller's own: others' are refused if they may be read, and else not found.
async fn owned(state: &State, caller: &Caller, path: &ReferencePath) -> Answer<(Account, Reference)> {
    let account = caller.account()?;
    let reference = readable(state, caller, path).await?;
    if reference.account_id == account.id { Ok((account.clone(), reference)) } else { Err(Failure::not_owner()) }
}

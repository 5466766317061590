//! Appending to a log: compare and swap on its head, and only what the log's own rules accept.
//!
//! Any account that may read a reference may append: the entries' signatures are what gives the right.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use bucket::{Log, LogError};
use types::EntryHash;

use super::{readable, to_the_end};
use crate::api::{ApiError, AppendRequest, HeadInfo, MAX_ENTRIES};
use crate::db::{Account, Appended, NewEntries, Reference};
use crate::server::auth::Caller;
use crate::server::error::{Answer, Failure};
use crate::server::extract::{Body, ReferencePath};
use crate::server::logs::{load, verify};
use crate::server::state::State;

/// Appends entries if the head is the expected one; what was accepted before is accepted again.
#[utoipa::path(post, path = "/v1/accounts/{account}/references/{name}/log", request_body = AppendRequest,
    params(("account" = String, Path), ("name" = String, Path)),
    responses((status = 200, description = "The new head", body = HeadInfo), (status = 404, body = ApiError),
        (status = 409, description = "The head is another one", body = ApiError),
        (status = 422, description = "The entries are not acceptable", body = ApiError)))]
pub(crate) async fn append(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
    Body(request): Body<AppendRequest>,
) -> Answer<Json<HeadInfo>> {
    let account = caller.account()?.clone();
    if request.entries.is_empty() || request.entries.len() > MAX_ENTRIES {
        return Err(Failure::too_large(format!("1 to {MAX_ENTRIES} entries go in one request")));
    }
    let head = to_the_end(&state, {
        let state = Arc::clone(&state);
        async move {
            let found = readable(&state, &caller, &path).await?;
            let _turn = state.logs.turn(found.id).await;
            // Someone else's turn may just have ended.
            let reference = readable(&state, &caller, &path).await?;
            carry_out(&state, &account, reference, request).await
        }
    })
    .await?;
    Ok(Json(head))
}

async fn carry_out(state: &State, account: &Account, reference: Reference, request: AppendRequest) -> Answer<HeadInfo> {
    let AppendRequest { expected_head, entries } = request;
    if reference.head.hash != expected_head {
        return repeated(state, &reference, expected_head, &entries).await;
    }
    let limits = &state.limits;
    let bytes = entries.iter().map(|entry| entry.encode().len() as u64).sum::<u64>();
    if reference.head.sequence + 1 + entries.len() as u64 > limits.log_entries
        || reference.log_bytes + bytes > limits.log_bytes
    {
        return Err(Failure::over_limit(format!("a log has at most {} entries", limits.log_entries)));
    }
    let log = load(state, &reference).await?;
    // Whatever the outcome, the log comes back: an error leaves it as it was.
    let (log, outcome, entries) = verify(move || {
        let mut log = log;
        let outcome = add(&mut log, &entries);
        Ok((log, outcome, entries))
    })
    .await?
    .map_err(|error| Failure::internal(&error))?;
    if let Err(error) = outcome {
        state.logs.keep(reference.id, log);
        return Err(refuse(&error));
    }
    let (head, author) = (log.head(), account.name.as_str());
    let new = NewEntries { entries: &entries, head, author, indexer: state.signer.public_key() };
    match state.db.append(&reference, new, state.clock.now_ms()).await? {
        Appended::Yes => {
            state.logs.keep(reference.id, log);
            state.notify(reference.id);
            Ok(head.into())
        }
        Appended::Lost => {
            // Another process was faster, or the reference is gone.
            let path = (&reference.account, &reference.name);
            let now = state.db.readable(Some(account), path.0, path.1).await?;
            Err(now.map_or_else(Failure::not_found, |now| Failure::conflict(now.head)))
        }
    }
}

/// Adds entries that must all be new.
fn add(log: &mut Log, entries: &[format::entry::SignedEntry]) -> Result<(), LogError> {
    let next = log.length();
    let first = entries.first().and_then(|first| format::entry::Entry::decode(&first.entry).ok());
    match first {
        Some(first) if first.sequence != next => Err(LogError::Sequence { found: first.sequence, expected: next }),
        _ => log.merge(entries).map(|_| ()),
    }
}

/// Answers an append whose expected head is not the head: success if just these entries stand there already.
async fn repeated(
    state: &State,
    reference: &Reference,
    expected_head: EntryHash,
    entries: &[format::entry::SignedEntry],
) -> Answer<HeadInfo> {
    let conflict = || Failure::conflict(reference.head);
    let first = entries.first().and_then(|first| format::entry::Entry::decode(&first.entry).ok());
    let from = first.filter(|first| first.previous == Some(expected_head)).ok_or_else(conflict)?.sequence;
    let known = state.db.entries(reference, from, entries.len()).await?;
    let same = known.len() == entries.len() && known.iter().zip(entries).all(|(one, two)| one.entry == two.entry);
    let last = entries.last().filter(|_| same).ok_or_else(conflict)?;
    Ok(HeadInfo { sequence: from + entries.len() as u64 - 1, hash: last.hash() })
}

/// What the world is told of entries that are not acceptable.
pub(crate) fn refuse(error: &LogError) -> Failure {
    let mut message = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        message = format!("{message}: {source}");
    }
    Failure::refused("bad_entries", message, Some("is the bucket's key, or a writer key, the right one?"))
}

//! Who provides which snapshot.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use serde::Deserialize;
use types::SnapshotId;
use utoipa::IntoParams;

use super::account::{check_expiry, open};
use super::{readable, to_the_end};
use crate::announcement::{Announcement, MAX_SNAPSHOTS};
use crate::api::{ApiError, Providers, SignedText};
use crate::db::{Announce, Announcing};
use crate::server::auth::Caller;
use crate::server::error::{Answer, Failure};
use crate::server::extract::{Ask, Body, ReferencePath};
use crate::server::state::State;

/// The longest time that an announcement holds, in seconds.
const MAX_TTL_S: u64 = 24 * 3600;

/// The most providers in one answer.
const MAX_PROVIDERS: u32 = 100;

/// Notes what an endpoint provides, in its own signed words; a `ttl_s` of 0 takes it back.
#[utoipa::path(post, path = "/v1/accounts/{account}/references/{name}/providers", request_body = SignedText,
    params(("account" = String, Path), ("name" = String, Path)),
    responses((status = 204, description = "Noted"), (status = 404, body = ApiError), (status = 422, body = ApiError)))]
pub(crate) async fn announce(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
    Body(body): Body<SignedText>,
) -> Answer<StatusCode> {
    let account = caller.account()?.clone();
    let reference = readable(&state, &caller, &path).await?;
    let (_, announcement) = open::<Announcement>(&state, &body)?;
    check_expiry(&state, announcement.expires_ms)?;
    let place = (&announcement.indexer, &announcement.account, &announcement.name);
    if place != (&state.signer.public_key(), &path.account, &path.name) {
        return Err(Failure::refused("bad_announcement", "the announcement is for another place", None));
    }
    if announcement.snapshots.len() > MAX_SNAPSHOTS {
        return Err(Failure::too_large(format!("at most {MAX_SNAPSHOTS} snapshots go in one announcement")));
    }
    let change = {
        let state = Arc::clone(&state);
        async move {
            let now_ms = state.clock.now_ms();
            let announce = Announce {
                caller: &account,
                reference: &reference,
                endpoint: announcement.endpoint,
                snapshots: &announcement.snapshots,
                expires_ms: now_ms.saturating_add(announcement.ttl_s.min(MAX_TTL_S) * 1000),
                limit: state.limits.announcements_per_account,
            };
            Ok(state.db.announce(announce, now_ms).await?)
        }
    };
    match to_the_end(&state, change).await? {
        Announcing::Done => Ok(StatusCode::NO_CONTENT),
        Announcing::Unknown(snapshot) => {
            let message = format!("the log has no version with snapshot {snapshot}");
            Err(Failure::refused("unknown_snapshot", message, Some("append the version to the log first")))
        }
        Announcing::TooMany => Err(Failure::over_limit("the account has announced too many snapshots")),
    }
}

/// Which snapshot is asked for.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// The snapshot, hexadecimal.
    #[param(value_type = String)]
    snapshot: SnapshotId,
}

/// Who provides a snapshot now; a random choice where there are many.
#[utoipa::path(get, path = "/v1/accounts/{account}/references/{name}/providers",
    params(("account" = String, Path), ("name" = String, Path), Which),
    responses((status = 200, body = Providers), (status = 404, body = ApiError)))]
pub(crate) async fn list(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
    Ask(Which { snapshot }): Ask<Which>,
) -> Answer<Json<Providers>> {
    let reference = readable(&state, &caller, &path).await?;
    let providers = state.db.providers(&reference, snapshot, MAX_PROVIDERS, state.clock.now_ms()).await?;
    Ok(Json(Providers { snapshot, providers }))
}

//! Where endpoints are, in their own signed words. Whoever knows an endpoint's id may ask; none are listed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use types::EndpointId;

use super::account::open;
use super::to_the_end;
use crate::address::AddressRecord;
use crate::api::{ApiError, SignedText};
use crate::db::PutEndpoint;
use crate::server::auth::Caller;
use crate::server::error::{Answer, Failure};
use crate::server::extract::Body;
use crate::server::state::State;

/// Puts an endpoint's address record, if it is newer than the one that is known.
#[utoipa::path(put, path = "/v1/endpoints/{id}", request_body = SignedText, params(("id" = String, Path)),
    responses((status = 204, description = "Noted"), (status = 401, body = ApiError), (status = 409, body = ApiError),
        (status = 422, body = ApiError)))]
pub(crate) async fn put(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Path(id): Path<String>,
    Body(body): Body<SignedText>,
) -> Answer<StatusCode> {
    let account = caller.account()?.clone();
    let id = parse(&id)?;
    let (signed, record) = open::<AddressRecord>(&state, &body)?;
    if record.endpoint != id || !record.is_bounded() {
        return Err(Failure::refused("bad_record", "the record is another endpoint's, or too long", None));
    }
    let change = {
        let state = Arc::clone(&state);
        async move {
            let (limit, now_ms) = (state.limits.endpoints_per_account, state.clock.now_ms());
            Ok(state.db.put_endpoint(&account, id, record.sequence, &signed, limit, now_ms).await?)
        }
    };
    match to_the_end(&state, change).await? {
        PutEndpoint::Done => Ok(StatusCode::NO_CONTENT),
        PutEndpoint::Older => {
            let hint = Some("sign it with a higher sequence");
            Err(Failure::new(StatusCode::CONFLICT, "older_record", "a newer record is known", hint))
        }
        PutEndpoint::TooMany => Err(Failure::over_limit("the account has too many endpoints")),
    }
}

/// An endpoint's newest address record.
#[utoipa::path(get, path = "/v1/endpoints/{id}", params(("id" = String, Path)),
    responses((status = 200, body = SignedText), (status = 404, body = ApiError)))]
pub(crate) async fn show(
    Shared(state): Shared<Arc<State>>,
    _: Caller,
    Path(id): Path<String>,
) -> Answer<Json<SignedText>> {
    let record = state.db.endpoint(parse(&id)?).await?.ok_or_else(Failure::no_endpoint)?;
    Ok(Json(SignedText::new(&record)))
}

fn parse(id: &str) -> Answer<EndpointId> {
    id.parse().map_err(|error: types::id::IdError| Failure::malformed(error.to_string()))
}

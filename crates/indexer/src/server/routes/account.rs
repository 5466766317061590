//! What the Indexer is, who asks, what they own, and certificates for their endpoints.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use bucket::SignedCertificate;
use serde::Deserialize;
use types::Name;
use utoipa::IntoParams;

use crate::api::{ApiError, Info, ReferenceInfo, ReferencePage, SignedText, WhoAmI};
use crate::db::Reference;
use crate::proof::EndpointProof;
use crate::server::auth::Caller;
use crate::server::error::{Answer, Failure};
use crate::server::extract::{Ask, Body};
use crate::server::state::State;

/// How long a certificate holds, in milliseconds.
const CERTIFICATE_MS: u64 = 30 * 60 * 1000;

/// How far ahead a proof may expire, in milliseconds: longer ones could be kept and used by someone else.
pub(crate) const MAX_AHEAD_MS: u64 = 15 * 60 * 1000;

/// The references on a page.
const PAGE: u32 = 200;

/// What the Indexer is.
#[utoipa::path(get, path = "/v1/indexer", responses((status = 200, body = Info)))]
pub(crate) async fn info(Shared(state): Shared<Arc<State>>, _: Caller) -> Json<Info> {
    let (version, name) = (env!("CARGO_PKG_VERSION").to_owned(), state.name.clone());
    Json(Info { version, key: state.signer.public_key(), name })
}

/// Whose token this is.
#[utoipa::path(get, path = "/v1/whoami", responses((status = 200, body = WhoAmI), (status = 401, body = ApiError)))]
pub(crate) async fn whoami(caller: Caller) -> Answer<Json<WhoAmI>> {
    Ok(Json(WhoAmI { account: caller.account()?.name.clone() }))
}

/// Where a page of references begins.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct After {
    /// The last name of the page before.
    #[param(value_type = Option<String>)]
    after: Option<Name>,
}

/// The caller's own references, by name.
#[utoipa::path(get, path = "/v1/references", params(After),
    responses((status = 200, body = ReferencePage), (status = 401, body = ApiError)))]
pub(crate) async fn references(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Ask(query): Ask<After>,
) -> Answer<Json<ReferencePage>> {
    let after = query.after.as_ref().map_or("", Name::as_str);
    let mut references = state.db.references_of(caller.account()?, after, PAGE + 1).await?;
    let more = references.len() > PAGE as usize;
    references.truncate(PAGE as usize);
    let next = references.last().filter(|_| more).map(|last| last.name.clone());
    Ok(Json(ReferencePage { references: references.into_iter().map(describe).collect(), next }))
}

/// Certifies that an endpoint, which proves itself, belongs to the caller's account.
#[utoipa::path(post, path = "/v1/certificates", request_body = SignedText,
    responses((status = 200, body = SignedText), (status = 401, body = ApiError), (status = 422, body = ApiError)))]
pub(crate) async fn certify(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    Body(body): Body<SignedText>,
) -> Answer<Json<SignedText>> {
    let account = caller.account()?;
    let (_, proof) = open::<EndpointProof>(&state, &body)?;
    check_expiry(&state, proof.expires_ms)?;
    if proof.indexer != state.signer.public_key() || proof.account != account.name {
        return Err(Failure::refused("bad_proof", "the proof is for another Indexer or account", None));
    }
    let expires_ms = state.valid_until(CERTIFICATE_MS);
    tracing::info!(account = %account.name, endpoint = %proof.endpoint, "certified");
    let certificate = SignedCertificate::issue(&state.signer, account.name.clone(), proof.endpoint, expires_ms);
    Ok(Json(SignedText::new(&certificate)))
}

/// What the world is told of a reference.
pub(crate) fn describe(reference: Reference) -> ReferenceInfo {
    let Reference { account, name, bucket, public, head, .. } = reference;
    ReferenceInfo { account, name, bucket, public, head: head.into() }
}

/// Decodes and verifies a signed statement of a client's.
pub(crate) fn open<S: bucket::Statement>(state: &State, text: &SignedText) -> Answer<(bucket::Signed<S>, S)> {
    let signed: bucket::Signed<S> = text.decode().ok_or_else(|| Failure::malformed("not a signed statement"))?;
    let hint = Some("if it has expired, check that the clocks agree");
    let statement = signed.verify(state.clock.now_ms());
    let statement = statement.map_err(|error| Failure::refused("bad_statement", error.to_string(), hint))?;
    Ok((signed, statement))
}

/// Refuses statements that would hold for too long.
pub(crate) fn check_expiry(state: &State, expires_ms: u64) -> Answer<()> {
    if expires_ms > state.valid_until(MAX_AHEAD_MS) {
        let hint = Some("check that the clocks agree");
        return Err(Failure::refused("clock_skew", "the statement expires too far in the future", hint));
    }
    Ok(())
}

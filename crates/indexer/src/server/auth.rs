//! Who asks. A token is checked before anything else is looked at; a wrong one is refused whatever is asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::error::{Answer, Failure};
use super::limit::Key;
use super::state::State;
use crate::db::Account;
use crate::token;

/// What a wrong token costs of an address's requests.
const WRONG_TOKEN_COST: f64 = 10.0;

/// The other end of the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Who asks: an account, or someone without a token.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) account: Option<Account>,
    pub(crate) key: Key,
}

impl Caller {
    /// The account, which this request needs.
    pub(crate) fn account(&self) -> Answer<&Account> {
        self.account.as_ref().ok_or_else(Failure::token_needed)
    }
}

impl FromRequestParts<Arc<State>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<State>) -> Answer<Self> {
        let peer = parts.extensions.get::<Peer>().copied();
        let peer = peer.ok_or_else(|| Failure::malformed("a request from nowhere"))?;
        let (address, now) = (Key::address(peer.0.ip()), Instant::now());
        let Some(header) = parts.headers.get(AUTHORIZATION) else {
            return if state.rates.take(address, 1.0, now) {
                Ok(Self { account: None, key: address })
            } else {
                Err(Failure::too_many_requests())
            };
        };
        let shown = header.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
        let account = match shown.map(str::trim).filter(|shown| token::is_well_formed(shown)) {
            Some(shown) => state.db.authenticate(shown, state.clock.now_ms()).await?,
            None => None,
        };
        match account {
            Some(account) => {
                let key = Key::Account(account.id);
                if state.rates.take(key, 1.0, now) {
                    Ok(Self { account: Some(account), key })
                } else {
                    Err(Failure::too_many_requests())
                }
            }
            None if state.rates.take(address, WRONG_TOKEN_COST, now) => {
                tracing::info!(peer = %peer.0, "a wrong token");
                Err(Failure::bad_token())
            }
            None => Err(Failure::too_many_requests()),
        }
    }
}

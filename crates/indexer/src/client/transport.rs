//! HTTP to one Indexer: bounded in size and time, whatever the other side does.

use std::fmt;
use std::sync::Once;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;
use zeroize::Zeroizing;

use super::Timeouts;
use super::error::ClientError;
use crate::api::{ApiError, MAX_RESPONSE_BYTES};

/// The longest message of an Indexer that is shown, in characters.
const MAX_MESSAGE_CHARACTERS: usize = 500;

#[derive(Clone)]
pub(super) struct Transport {
    http: reqwest::Client,
    base: Url,
    authorization: Option<HeaderValue>,
    timeouts: Timeouts,
}

impl Transport {
    pub(super) fn new(mut base: Url, token: Option<String>, timeouts: Timeouts) -> Result<Self, ClientError> {
        let usable = matches!(base.scheme(), "http" | "https") && base.has_host() && base.query().is_none();
        if !usable || !base.username().is_empty() || base.password().is_some() || base.fragment().is_some() {
            return Err(ClientError::Url { url: base });
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let authorization = token.map(Zeroizing::new).map(|token| bearer(token.trim())).transpose()?;
        install_crypto();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("brant/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeouts.connect);
        if base.scheme() == "http" {
            // Plain HTTP needs no certificates, and must work where the system has none.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(ClientError::Setup)?;
        Ok(Self { http, base, authorization, timeouts })
    }

    pub(super) fn base_url(&self) -> &Url {
        &self.base
    }

    pub(super) const fn has_token(&self) -> bool {
        self.authorization.is_some()
    }

    pub(super) const fn idle_timeout(&self) -> Duration {
        self.timeouts.idle
    }

    /// The URL of a route; `query` is put as it is.
    pub(super) fn url(&self, segments: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().push("v1").extend(segments);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        }
    }

    /// Asks, and reads the answer as JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, ClientError> {
        let bytes = self.exchange(self.request(Method::GET, url)).await?;
        self.parse(&bytes)
    }

    /// Sends JSON and reads the answer as JSON.
    pub(super) async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: &B,
    ) -> Result<T, ClientError> {
        let bytes = self.exchange(self.request(method, url).json(body)).await?;
        self.parse(&bytes)
    }

    /// Sends without a body, or with one, where the answer has none.
    pub(super) async fn send_only<B: Serialize>(
        &self,
        method: Method,
        url: Url,
        body: Option<&B>,
    ) -> Result<(), ClientError> {
        let request = self.request(method, url);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.exchange(request).await.map(|_| ())
    }

    /// Opens a stream of events; only the beginning of the answer has a time limit.
    pub(super) async fn open_stream(&self, url: Url) -> Result<Response, ClientError> {
        let request = self.request(Method::GET, url).header("accept", "text/event-stream");
        let exchange = async {
            let response = request.send().await.map_err(|error| self.broken(error))?;
            if response.status().is_success() {
                let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
                return match kind {
                    Some(kind) if kind.starts_with("text/event-stream") => Ok(response),
                    _ => Err(self.garbage("not a stream of events")),
                };
            }
            let status = response.status();
            Err(self.refusal(status, &self.bounded_body(response).await?))
        };
        tokio::time::timeout(self.timeouts.request, exchange).await.map_err(|_| self.timed_out())?
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<Vec<u8>, ClientError> {
        let exchange = async {
            let response = request.send().await.map_err(|error| self.broken(error))?;
            let status = response.status();
            let body = self.bounded_body(response).await?;
            if status.is_success() { Ok(body) } else { Err(self.refusal(status, &body)) }
        };
        tokio::time::timeout(self.timeouts.request, exchange).await.map_err(|_| self.timed_out())?
    }

    async fn bounded_body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| self.broken(error))? {
            if body.len() + part.len() > MAX_RESPONSE_BYTES {
                return Err(self.garbage("it does not end"));
            }
            body.extend_from_slice(&part);
        }
        Ok(body)
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|error| self.garbage(&error.to_string()))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        let Ok(mut error) = serde_json::from_slice::<ApiError>(body) else {
            return self.garbage(&format!("status {} without a brant error", status.as_u16()));
        };
        // It ends on a terminal: bounded, and without control characters.
        error.message = printable(&error.message);
        error.code = printable(&error.code);
        error.hint = error.hint.as_deref().map(printable);
        match status {
            StatusCode::UNAUTHORIZED => ClientError::Unauthorized(error),
            StatusCode::NOT_FOUND => ClientError::NotFound(error),
            StatusCode::CONFLICT => ClientError::Conflict(error),
            _ => ClientError::Refused(error),
        }
    }

    pub(super) fn broken(&self, error: reqwest::Error) -> ClientError {
        if error.is_timeout() {
            return self.timed_out();
        }
        ClientError::Unreachable { url: self.base.clone(), source: error.without_url() }
    }

    pub(super) fn timed_out(&self) -> ClientError {
        ClientError::TimedOut { url: self.base.clone() }
    }

    pub(super) fn closed(&self) -> ClientError {
        ClientError::Closed { url: self.base.clone() }
    }

    pub(super) fn garbage(&self, what: &str) -> ClientError {
        ClientError::Garbage { url: self.base.clone(), what: printable(what) }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.authorization.as_ref().map(|_| "secret");
        f.debug_struct("Transport").field("base", &self.base.as_str()).field("token", &token).finish_non_exhaustive()
    }
}

fn bearer(token: &str) -> Result<HeaderValue, ClientError> {
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ClientError::Token);
    }
    let text = Zeroizing::new(format!("Bearer {token}"));
    let mut value = HeaderValue::from_str(&text).map_err(|_| ClientError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(MAX_MESSAGE_CHARACTERS).collect()
}

/// Chooses the process's TLS implementation, once; who was first stays.
fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
    });
}

//! The client of a node's API: what the command line and the plugins talk to a node with.
//!
//! One request is one connection to the node's unix socket: connecting costs microseconds there, and nothing has to be
//! kept alive. Every failure is an [`ApiError`], whether the node reported it or nobody answered; the answer's length is
//! bounded. Waiting is up to the caller: a request has no time-out of its own, and dropping its future ends it.
//!
//! Not here: what the values mean ([`crate::api`]) and how they are shown (the command line).

mod address;
mod descriptor;
mod routes;
mod watch;

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{ApiError, ErrorCode};

pub use address::{Address, DESCRIPTOR_SOCKET, NODE_SOCKET, default_directory};

/// The longest answer that is read, in bytes: a bucket's log of hundreds of thousands of entries fits.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// How much of an answer that is not ours is quoted in an error, in characters.
const MAX_QUOTE_CHARACTERS: usize = 200;

/// Talks to one node.
#[derive(Clone)]
pub struct Client {
    address: Address,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.address).finish()
    }
}

impl Client {
    /// Makes a client of the node at an address; nothing is sent yet.
    #[must_use]
    pub const fn new(address: Address) -> Self {
        Self { address }
    }

    /// Makes a client of the node whose directory is given.
    #[must_use]
    pub fn of_directory(directory: &Path) -> Self {
        Self::new(Address::Socket(directory.join(NODE_SOCKET)))
    }

    /// Where the node is.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Sends a `GET` and decodes the answer.
    ///
    /// # Errors
    /// What the node reported; [`ErrorCode::Unreachable`] when none answers.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        decode(&self.request(Method::GET, path, None).await?)
    }

    /// Sends a `POST` with a JSON body and decodes the answer.
    ///
    /// # Errors
    /// As [`get`](Client::get).
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| ApiError::new(ErrorCode::Internal, format!("could not write the request: {error}")))?;
        decode(&self.request(Method::POST, path, Some(body)).await?)
    }

    /// Sends a `DELETE` and decodes the answer; an empty one is `null`.
    ///
    /// # Errors
    /// As [`get`](Client::get).
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        decode(&self.request(Method::DELETE, path, None).await?)
    }

    async fn request(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Bytes, ApiError> {
        let stream = self.connect().await?;
        let lost = |error: hyper::Error| {
            ApiError::from_error(ErrorCode::Unreachable, &error).hint("the node may have stopped: see its log")
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(lost)?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, "node");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| ApiError::new(ErrorCode::Invalid, format!("{path:?} is not a path: {error}")))?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(lost)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|error| ApiError::new(ErrorCode::Unreachable, format!("the answer broke off: {error}")))?;
            Ok((status, body.to_bytes()))
        };
        let driver = async move {
            // Its errors reach `exchange` too; here only the connection is kept going.
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        let (status, body) = tokio::select! {
            result = exchange => result?,
            () = driver => unreachable!("the driver never ends"),
        };
        if status.is_success() { Ok(body) } else { Err(reported(status, &body)) }
    }

    async fn connect(&self) -> Result<UnixStream, ApiError> {
        let path = self.address.socket()?;
        let short = address::Reachable::new(path);
        UnixStream::connect(short.path()).await.map_err(|error| self.address.unreachable(path, &error))
    }
}

/// Decodes an answer; an empty one counts as JSON's `null`.
fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let body = if body.is_empty() { b"null" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("the node's answer was not understood: {error}"))
            .hint("is it another version of brant? see: brant status")
    })
}

/// Makes an error of an answer that reports one, whoever wrote it.
fn reported(status: StatusCode, body: &[u8]) -> ApiError {
    if let Ok(error) = serde_json::from_slice::<ApiError>(body) {
        return error;
    }
    let code = match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => ErrorCode::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorCode::Forbidden,
        StatusCode::CONFLICT => ErrorCode::Conflict,
        _ if status.is_client_error() => ErrorCode::Invalid,
        _ => ErrorCode::Internal,
    };
    let text: String = String::from_utf8_lossy(body).chars().take(MAX_QUOTE_CHARACTERS).collect();
    let text = text.trim();
    let separator = if text.is_empty() { "" } else { ": " };
    ApiError::new(code, format!("the node answered {status}{separator}{text}"))
        .hint("is it another version of brant? see: brant status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_decoded_whoever_wrote_it() {
        let ours = ApiError::new(ErrorCode::Full, "no space left").hint("make room");
        let body = serde_json::to_vec(&ours).unwrap();
        assert_eq!(reported(StatusCode::INSUFFICIENT_STORAGE, &body), ours);
        let other = reported(StatusCode::NOT_FOUND, b"");
        assert_eq!(other.code, ErrorCode::NotFound);
        assert_eq!(other.message, "the node answered 404 Not Found");
        let long = reported(StatusCode::BAD_GATEWAY, "é".repeat(5000).as_bytes());
        assert_eq!(long.code, ErrorCode::Internal);
        assert!(long.message.len() < 500);
    }

    #[test]
    fn an_answer_of_another_shape_is_an_error() {
        assert_eq!(decode::<u64>(b"17").unwrap(), 17);
        decode::<()>(b"").unwrap();
        assert_eq!(decode::<u64>(b"<html>").unwrap_err().code, ErrorCode::Internal);
    }
}

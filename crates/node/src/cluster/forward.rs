//! Requests to the API about a volume that is at another member: they are answered there.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use cluster::message::{Reply, Request as Question};
use tower::ServiceExt as _;
use types::{Name, SnapshotId};

use super::asked;
use super::moves::Member;
use crate::api::{ApiError, ErrorCode, Volume};
use crate::node::Node;

/// The longest body, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;

/// How long the member may take.
const ANSWER: Duration = Duration::from_secs(30);

/// Marks a request that was passed on already.
#[derive(Clone, Copy, Debug)]
struct Forwarded;

/// The volume that a path is about, if its requests are answered where the volume is.
fn volume_of(path: &str) -> Option<Name> {
    let mut parts = path.strip_prefix("/v1/volumes/")?.split('/');
    let name = parts.next()?.parse().ok()?;
    let follows = parts.next();
    let passed_on =
        matches!(follows, None | Some("resize" | "labels" | "protect" | "revert" | "schedule" | "replicate"));
    (passed_on && parts.next().is_none()).then_some(name)
}

/// The volume that a clone is made of.
fn volume_of_clone(body: &[u8]) -> Option<Name> {
    let request: serde_json::Value = serde_json::from_slice(body).ok()?;
    let source = request.get("snapshot")?.as_str()?;
    // A moment of a volume is written behind its name.
    let name = source.split_once('@').map_or(source, |(name, _)| name);
    name.parse::<Name>().ok().filter(|_| name.parse::<SnapshotId>().is_err())
}

/// Passes a request on to the home of the volume that it is about, where that is another member.
pub(crate) async fn forward(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    let about_volumes = volume_of(request.uri().path());
    let clones = request.method() == Method::POST && request.uri().path() == "/v1/clones";
    let alone = node.cluster.moves.members().is_empty();
    if alone || request.extensions().get::<Forwarded>().is_some() || (about_volumes.is_none() && !clones) {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let body = match to_bytes(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(error) => return ApiError::from_error(ErrorCode::Invalid, &error).into_response(),
    };
    let volume = about_volumes.or_else(|| volume_of_clone(&body)).filter(|name| node.volumes.get(name).is_none());
    let Some(volume) = volume else { return next.run(Request::from_parts(head, Body::from(body))).await };
    match node.home_of(&volume).await {
        Ok((home, _)) => {
            let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
            let answered = node.forward_to(&home, &volume, &head.method, path, body.to_vec()).await;
            answered.unwrap_or_else(|error| error.into_response())
        }
        // What this node itself knows of the name is more to the point.
        Err(error) if error.code == ErrorCode::NotFound => next.run(Request::from_parts(head, Body::from(body))).await,
        Err(error) => error.into_response(),
    }
}

/// Says in what is told of a volume at which member that is.
fn say_home(home: &Name, volume: &Name, body: Vec<u8>) -> Vec<u8> {
    if !serde_json::from_slice::<Volume>(&body).is_ok_and(|told| told.name == *volume) {
        return body;
    }
    let Ok(serde_json::Value::Object(mut told)) = serde_json::from_slice(&body) else { return body };
    told.insert("home".to_owned(), home.to_string().into());
    serde_json::to_vec(&told).unwrap_or(body)
}

impl Node {
    async fn forward_to(
        self: &Arc<Self>,
        home: &Member,
        volume: &Name,
        method: &Method,
        path: String,
        body: Vec<u8>,
    ) -> Result<Response, ApiError> {
        if *method == Method::DELETE {
            self.check_detached(volume.as_str())?;
        }
        let resizes = path.ends_with("/resize");
        if resizes {
            self.attachments.check_resizable(volume.as_str())?;
        }
        let question = Question::Forward { method: method.to_string(), path, body: body.into() };
        let reply = self.cluster.peers.ask(home.endpoint, &question, ANSWER).await;
        let Reply::Answered { status, body } = reply.map_err(|error| asked(error, &home.name))? else {
            return Err(asked(cluster::AskError::Unexpected, &home.name));
        };
        let body = if status == 200 { say_home(&home.name, volume, body.into()) } else { body.into() };
        if resizes && status == 200 {
            self.follow_remote_size(volume, &body).await?;
        }
        let response =
            Response::builder().status(status).header("content-type", "application/json").body(Body::from(body));
        response.map_err(|error| ApiError::from_error(ErrorCode::Internal, &error))
    }

    /// Has who uses a volume here know its new size.
    async fn follow_remote_size(self: &Arc<Self>, volume: &Name, body: &[u8]) -> Result<(), ApiError> {
        let (Some(used), Ok(grown)) = (self.cluster.uses.get(volume), serde_json::from_slice::<Volume>(body)) else {
            return Ok(());
        };
        used.remote.grow(grown.size_bytes);
        let (node, target) = (Arc::clone(self), volume.to_string());
        crate::error::blocking(move || {
            node.attachments.follow_size(&target);
            Ok(())
        })
        .await
    }

    /// Answers a request that a member has passed on.
    pub(super) async fn answer_forwarded(
        self: &Arc<Self>,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(u16, Vec<u8>), ApiError> {
        let malformed = || ApiError::new(ErrorCode::Invalid, "a member passed on what is no request");
        let plain = path.split('?').next().unwrap_or_default();
        if volume_of(plain).is_none() && plain != "/v1/clones" {
            return Err(malformed());
        }
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .extension(Forwarded)
            .body(Body::from(body));
        let request = request.map_err(|_| malformed())?;
        let answer = crate::routes::router(Arc::clone(self)).oneshot(request).await;
        let response = answer.unwrap_or_else(|never| match never {});
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), cluster::message::MAX_MESSAGE_BYTES).await;
        Ok((status, body.map_err(|error| ApiError::from_error(ErrorCode::Internal, &error))?.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_one_volume_is_passed_on_and_nothing_else() {
        let name = |text: &str| Some(text.parse::<Name>().unwrap());
        assert_eq!(volume_of("/v1/volumes/web1"), name("web1"));
        assert_eq!(volume_of("/v1/volumes/web1/resize"), name("web1"));
        assert_eq!(volume_of("/v1/volumes/web1/schedule"), name("web1"));
        for other in ["/v1/volumes", "/v1/volumes/", "/v1/volumes/web1/take", "/v1/volumes/a/labels/b", "/v1/status"] {
            assert_eq!(volume_of(other), None, "{other}");
        }
        assert_eq!(volume_of_clone(br#"{"snapshot": "web1", "volume": "x"}"#), name("web1"));
        assert_eq!(volume_of_clone(br#"{"snapshot": "web1@10 minutes ago"}"#), name("web1"));
        for other in [&br#"{"snapshot": "b/web1@3"}"#[..], b"{}", b"x", br#"{"snapshot": 1}"#] {
            assert_eq!(volume_of_clone(other), None);
        }
    }
}

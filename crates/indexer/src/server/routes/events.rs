//! Event streams: a log's head at once, and each time it changes. The right to read is checked again every time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, Sse};
use bucket::Head;
use futures_util::Stream;
use futures_util::stream;
use tokio::sync::broadcast;

use super::readable;
use crate::api::{ApiError, HeadInfo, KEEP_ALIVE_S};
use crate::server::auth::Caller;
use crate::server::error::{Answer, Failure};
use crate::server::extract::ReferencePath;
use crate::server::limit::Open;
use crate::server::state::{Changed, State};

/// Follows a log's head, as server-sent events named `head` whose data is a head and whose id is its number.
#[utoipa::path(get, path = "/v1/accounts/{account}/references/{name}/events",
    params(("account" = String, Path), ("name" = String, Path),
        ("Last-Event-ID" = Option<u64>, Header, description = "The number of the last head that was seen")),
    responses((status = 200, description = "Events", content_type = "text/event-stream", body = HeadInfo),
        (status = 404, body = ApiError), (status = 429, body = ApiError)))]
pub(crate) async fn events(
    Shared(state): Shared<Arc<State>>,
    caller: Caller,
    path: ReferencePath,
    headers: HeaderMap,
) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    // Listening begins before the head is read, so that no change falls between.
    let changed = state.changed.subscribe();
    let reference = readable(&state, &caller, &path).await?;
    let open = state.streams.open(caller.key).ok_or_else(|| {
        let hint = Some("follow fewer references, or poll");
        Failure::new(StatusCode::TOO_MANY_REQUESTS, "too_many_streams", "too many event streams", hint)
    })?;
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse::<u64>().ok());
    let first = Some(reference.head).filter(|head| seen != Some(head.sequence));
    let following = Following {
        state,
        caller,
        path,
        reference_id: reference.id,
        head: reference.head,
        first,
        changed,
        _open: open,
    };
    Ok(Sse::new(stream::unfold(following, |mut following| async {
        let event = following.next().await?;
        Some((Ok(event), following))
    })))
}

struct Following {
    state: Arc<State>,
    caller: Caller,
    path: ReferencePath,
    reference_id: i64,
    head: Head,
    first: Option<Head>,
    changed: broadcast::Receiver<Changed>,
    _open: Open,
}

impl Following {
    /// The next event or sign of life; `None` when the server stops, or the caller may read no longer.
    async fn next(&mut self) -> Option<Event> {
        if let Some(head) = self.first.take() {
            return Some(event(head));
        }
        let mut alive = std::pin::pin!(tokio::time::sleep(Duration::from_secs(KEEP_ALIVE_S)));
        loop {
            let timely = tokio::select! {
                () = self.state.shutdown.cancelled() => return None,
                () = alive.as_mut() => false,
                changed = self.changed.recv() => match changed {
                    Ok(changed) if changed.reference_id != self.reference_id => continue,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => true,
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
            };
            // Other processes on the same database do not wake us: each sign of life looks too.
            let reference = readable(&self.state, &self.caller, &self.path).await.ok()?;
            if reference.id != self.reference_id {
                return None;
            }
            if reference.head != self.head {
                self.head = reference.head;
                return Some(event(reference.head));
            }
            if !timely {
                return Some(Event::default().comment("alive"));
            }
        }
    }
}

fn event(head: Head) -> Event {
    let HeadInfo { sequence, hash } = head.into();
    // Not `json_data`, which can fail: two fields without a character to escape.
    let data = format!(r#"{{"sequence":{sequence},"hash":"{hash}"}}"#);
    Event::default().event("head").id(sequence.to_string()).data(data)
}

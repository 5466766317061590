//! Connections: accepted up to a limit, with time limits for requests' heads, and ended gracefully.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use super::auth::Peer;
use super::limit::Key;
use super::state::State;

/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long running requests have when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait when no connection can be accepted, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Accepts and serves connections until the server stops, and then waits for those that are open.
pub(crate) async fn accept(listener: TcpListener, state: Arc<State>, router: Router) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = state.shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                // One too many is closed at once.
                if let Some(open) = state.connections.open(Key::address(address.ip())) {
                    let (state, router) = (Arc::clone(&state), router.clone());
                    connections.spawn(async move {
                        serve(stream, Peer(address), &state, router).await;
                        drop(open);
                    });
                }
            }
            Err(error) if is_the_peers(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(STOP_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "connections are cut");
    }
}

async fn serve(stream: TcpStream, peer: Peer, state: &State, router: Router) {
    // Answers are small and wanted at once.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "could not set TCP_NODELAY");
    }
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        router.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(64).max_buf_size(64 << 10);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = state.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let stopping = tokio::time::timeout(STOP_TIMEOUT, connection).await;
            stopping.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, peer = %peer.0, "a connection broke");
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

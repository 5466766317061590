//! Running a node: its sockets, its readiness, and its end.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::node::{Node, NodeOptions};

/// Where a node that has just started can be reached.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The API's socket.
    pub socket: PathBuf,
    /// The node's id among peers.
    pub endpoint: String,
    /// Where peers reach it.
    pub addresses: Vec<std::net::SocketAddr>,
}

/// How long API requests in flight may take when the node stops.
const GRACE: Duration = Duration::from_secs(5);

/// Runs a node until SIGTERM or SIGINT, and calls `ready` once it answers.
///
/// # Errors
/// When the node cannot start, or its sockets fail.
pub async fn serve(options: NodeOptions, ready: Box<dyn FnOnce(&Ready) + Send>) -> anyhow::Result<()> {
    let directory = options.directory.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let node = Node::start(options).await?;
    let socket = directory.join("node.sock");
    let listener = bind_private(&socket).with_context(|| format!("could not listen on {}", socket.display()))?;
    let stopping = node.stopping.clone();
    let router = crate::routes::router(Arc::clone(&node));
    let api =
        tokio::spawn(
            async move { axum::serve(listener, router).with_graceful_shutdown(stopping.cancelled_owned()).await },
        );
    let descriptors = directory.join("descriptors.sock");
    let passing = {
        let (path, tickets) = (descriptors.clone(), Arc::clone(&node.tickets));
        tokio::spawn(async move { crate::descriptors::serve(&path, tickets).await })
    };
    // The caller may pass a descriptor as soon as it hears of the node.
    while !descriptors.exists() && !passing.is_finished() {
        tokio::task::yield_now().await;
    }
    ready(&Ready {
        socket: socket.clone(),
        endpoint: node.swarm.endpoint().to_string(),
        addresses: node.swarm.addresses(),
    });
    tracing::info!(socket = %socket.display(), "the node is ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("the node stops");
    node.stop().await;
    passing.abort();
    drop(tokio::time::timeout(GRACE, api).await);
    for path in [&socket, &descriptors] {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::debug!(%error, path = %path.display(), "a socket was gone already");
        }
    }
    Ok(())
}

/// Binds a unix socket that only its owner can use; one left over from a crash is replaced.
pub(crate) fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    if crate::descriptors::answers(path) {
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another node answers there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

//! The service: listens, and answers hostile clients within limits until it is told to stop.
//!
//! What a client has been told was done is durable. Plain HTTP beyond loopback needs an explicit word; TLS belongs to
//! a reverse proxy for now.

mod auth;
mod connection;
mod error;
mod extract;
mod limit;
mod logs;
mod routes;
mod state;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use types::PublicKey;

pub use self::limit::Limits;
use self::state::State;
use crate::clock::Clock;
use crate::db::{Db, DbError};

/// How often what has expired is removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Where to listen; port 0 for any.
    pub listen: SocketAddr,
    /// The database: `sqlite:FILE`.
    pub database: String,
    /// Whether plain HTTP may be spoken beyond loopback.
    pub insecure_listen: bool,
    /// The Indexer's name, for people.
    pub name: String,
    /// What clients may do.
    pub limits: Limits,
    /// What time it is.
    pub clock: Clock,
    /// Stops the server when cancelled.
    pub shutdown: CancellationToken,
}

impl ServeOptions {
    /// The usual: no plain HTTP beyond loopback, default limits, the system's clock.
    #[must_use]
    pub fn new(listen: SocketAddr, database: impl Into<String>) -> Self {
        Self {
            listen,
            database: database.into(),
            insecure_listen: false,
            name: "brant indexer".into(),
            limits: Limits::default(),
            clock: Clock::system(),
            shutdown: CancellationToken::new(),
        }
    }
}

/// Why the server does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Plain HTTP would leave the host.
    #[error(
        "{0} is not a loopback address, and the Indexer speaks plain HTTP: put a TLS proxy before it, or allow it with --insecure-listen"
    )]
    Insecure(SocketAddr),
    /// The address cannot be listened on.
    #[error("could not listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// A running server.
#[derive(Debug)]
pub struct Serving {
    local_addr: SocketAddr,
    key: PublicKey,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The key that it certifies with.
    #[must_use]
    pub const fn key(&self) -> PublicKey {
        self.key
    }

    /// Waits until it has stopped, because the shutdown token was cancelled.
    pub async fn finished(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the server's task failed");
        }
    }

    /// Tells it to stop, and waits: requests that run are answered, for a few seconds.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.finished().await;
    }
}

/// Opens the database, listens, and serves in the background; returns as soon as clients can connect.
///
/// # Errors
/// The address or the database cannot be used.
pub async fn serve(options: ServeOptions) -> Result<Serving, ServeError> {
    let ServeOptions { listen, database, insecure_listen, name, limits, clock, shutdown } = options;
    if !listen.ip().to_canonical().is_loopback() && !insecure_listen {
        return Err(ServeError::Insecure(listen));
    }
    let db = Db::open(&database).await?;
    let signer = db.signer().await?;
    let key = signer.public_key();
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|source| ServeError::Listen { address: listen, source })?;
    let local_addr = listener.local_addr().map_err(|source| ServeError::Listen { address: listen, source })?;
    let state = Arc::new(State::new(db, signer, name, limits, clock, shutdown.child_token()));
    tracing::info!(%local_addr, %key, "the indexer is listening");
    let task = tokio::spawn(run(listener, state));
    Ok(Serving { local_addr, key, shutdown, task })
}

async fn run(listener: TcpListener, state: Arc<State>) {
    let sweeping = tokio::spawn(sweep(Arc::clone(&state)));
    connection::accept(listener, Arc::clone(&state), routes::router(Arc::clone(&state))).await;
    if let Err(error) = sweeping.await {
        tracing::error!(%error, "the sweeping task failed");
    }
    state.changes.close();
    state.changes.wait().await;
    state.db.close().await;
}

async fn sweep(state: Arc<State>) {
    loop {
        if let Err(error) = state.db.sweep(state.clock.now_ms()).await {
            tracing::warn!(error = %error, "could not remove what has expired");
        }
        tokio::select! {
            () = state.shutdown.cancelled() => return,
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
    }
}

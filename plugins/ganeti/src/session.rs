//! Talking to the node within a time: Ganeti itself waits for 900 seconds, and holds its locks meanwhile.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use node::api::{ApiError, ErrorCode};
use node::client::Client;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use crate::call::{Call, Script};
use crate::provider;

/// Where the disks' sockets are.
const SOCKETS: &str = "/run/brant/ganeti";

/// How often something is looked at again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How calls are answered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the disks' sockets are: the same on every node, as the target of a migration is given the source's.
    pub sockets: PathBuf,
    /// Until the node must have been reached: longer than it takes to hand over to a successor.
    pub reach: Duration,
    /// Until the call must have ended.
    pub total: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { sockets: SOCKETS.into(), reach: Duration::from_secs(3), total: Duration::from_secs(10) }
    }
}

/// A node, and until when it must have answered.
#[derive(Debug)]
pub(crate) struct Session<'c> {
    pub(crate) client: &'c Client,
    limit: Duration,
    until: Instant,
}

impl<'c> Session<'c> {
    pub(crate) fn new(client: &'c Client, limit: Duration) -> Self {
        Self { client, limit, until: Instant::now() + limit }
    }

    /// Waits until the node answers at all: it may be about to be replaced by another process.
    async fn reach(&self, patience: Duration) -> Result<(), ApiError> {
        let until = Instant::now() + patience;
        loop {
            match self.ask(self.client.get::<Value>("/v1/health")).await {
                Err(error) if error.code == ErrorCode::Unreachable && Instant::now() < until => sleep(LOOK_AGAIN).await,
                Err(error) if error.code == ErrorCode::Unreachable => return Err(error),
                // Whatever it says of its health, what it is asked for is what counts.
                _ => return Ok(()),
            }
        }
    }

    /// Asks the node, and waits for the answer as long as there is time.
    pub(crate) async fn ask<T>(&self, asking: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
        match timeout_at(self.until, asking).await {
            Ok(answer) => answer,
            Err(_) => {
                let message =
                    format!("the node at {} has not answered within {} s", self.client.address(), self.limit.as_secs());
                Err(ApiError::new(ErrorCode::Unreachable, message).hint("its log and `brant status` may say why"))
            }
        }
    }
}

/// Does what a script is called for, and returns what it prints.
///
/// # Errors
/// Whatever went wrong, as one line without a hint apart: it ends up in Ganeti's job log.
pub async fn run(
    client: &Client,
    script: Script,
    environment: impl IntoIterator<Item = (String, String)>,
    settings: &Settings,
) -> Result<String, ApiError> {
    let call = Call::read(script, environment).map_err(|error| ApiError::from_error(ErrorCode::Invalid, &error))?;
    let session = Session::new(client, settings.total);
    let work = async {
        session.reach(settings.reach).await?;
        provider::act(&session, &call, &settings.sockets).await
    };
    work.await.map_err(|error| one_line(script, &call, &error))
}

fn one_line(script: Script, call: &Call, error: &ApiError) -> ApiError {
    let hint = error.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    let message = format!("brant could not {} {}: {}{hint}", script.name(), call.volume, error.message);
    ApiError::new(error.code, message.replace('\n', "; "))
}

/// An error of ours as the API's.
pub(crate) fn invalid(error: &(dyn Error + 'static)) -> ApiError {
    ApiError::from_error(ErrorCode::Invalid, error)
}

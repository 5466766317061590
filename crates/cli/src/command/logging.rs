//! The log of services: lines on standard error, filtered, as text or as JSON.

use std::io::IsTerminal;

use clap::ValueEnum;
use node::api::{ApiError, ErrorCode};
use tracing_subscriber::EnvFilter;

/// How a service logs.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Logging")]
pub(super) struct Logging {
    /// What to log: a level (error, warn, info, debug, trace), or TARGET=LEVEL,…
    #[arg(long = "log", env = "BRANT_LOG", hide_env_values = true, default_value = "info", value_name = "FILTER")]
    filter: String,
    /// How to write the log's lines
    #[arg(long = "log-format", default_value = "text", value_enum)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Lines for people
    Text,
    /// A JSON object per line
    Json,
}

impl Logging {
    /// Begins to log on standard error.
    pub(super) fn begin(&self) -> Result<(), ApiError> {
        // The network's own libraries tell more than an operator wants, unless they are asked.
        let quiet = if self.filter.contains('=') {
            ""
        } else {
            ",iroh=warn,noq=warn,hyper=warn,sqlx=warn,netwatch=warn,fjall=warn,lsm_tree=warn,fuser=error"
        };
        let filter = EnvFilter::try_new(format!("{}{quiet}", self.filter)).map_err(|error| {
            ApiError::new(ErrorCode::Invalid, format!("{:?} is not a filter of logs: {error}", self.filter))
                .hint("write a level such as info, or TARGET=LEVEL, for example swarm=debug")
        })?;
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let begun = match self.format {
            Format::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
            Format::Json => lines.json().try_init(),
        };
        begun.map_err(|error| ApiError::new(ErrorCode::Internal, format!("could not begin to log: {error}")))
    }
}

//! `brant fuse-front`: the process that serves an export to the kernel. A node runs it by itself.

use std::path::PathBuf;

use export::fuse::FRONT_READY;
use export::{FrontOptions, run_front};
use serde_json::json;

use super::logging::Logging;
use crate::context::Context;
use crate::failure::{Failure, Outcome};

/// Serve a node's export to the kernel over FUSE
///
/// A node runs this by itself.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The node's socket for the export
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The export
    #[arg(long, value_name = "NAME")]
    export: String,
    /// The file to mount it on
    #[arg(long, value_name = "PATH")]
    file: PathBuf,
    /// A file to lock meanwhile
    #[arg(long, value_name = "PATH")]
    lock: PathBuf,
    #[command(flatten)]
    logging: Logging,
}

pub(crate) fn run(context: &Context, arguments: Arguments) -> Outcome {
    let Arguments { socket, export, file, lock, logging } = arguments;
    logging.begin()?;
    let output = context.output;
    // The node listens to the first line, and to nothing after it.
    let say = |line: &str| {
        if output.line(&json!({ "front": line }), line).is_err() {
            tracing::debug!("nobody reads standard output");
        }
    };
    run_front(&FrontOptions { socket, export, file, lock }, || say(FRONT_READY)).map_err(|error| {
        let error = anyhow::Error::from(error);
        say(&format!("{error:#}"));
        Failure::of_service(&error)
    })
}

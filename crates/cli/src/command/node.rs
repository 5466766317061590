//! `brant node serve`: the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::node::api::ApiError;
use ::node::client::default_directory;
use ::node::{NodeOptions, PassedSockets, Ready};
use ::store::StoreError;
use clap::Subcommand;
use serde_json::json;
use types::ByteSize;

use super::logging::Logging;
use crate::arguments::milliseconds;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// Run this host's node
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a node until SIGTERM or Ctrl-C
    ///
    /// Prints a line that begins with "brant node ready:" on standard output once commands are answered; logs on
    /// standard error. After a crash it recovers by itself, and attachments come back at the same sockets.
    #[command(after_long_help = "Examples:
  brant node serve --dir /var/lib/brant
  brant node serve --dir /srv/brant --bind 0.0.0.0:7071 --cache 1GiB --log debug")]
    Serve(Serve),
}

#[derive(clap::Args, Debug)]
struct Serve {
    /// Where it keeps everything [default: the directory of this user's node]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A UDP address to talk to peers at; may be repeated [default: any port of all addresses]
    #[arg(long, visible_alias = "listen", value_name = "IP:PORT")]
    bind: Vec<SocketAddr>,
    /// Memory for decompressed chunks
    #[arg(long, default_value = "64MiB", value_name = "SIZE")]
    cache: ByteSize,
    /// Room on disk for plain copies of what guests read often; it is given back when it is needed
    #[arg(long, default_value = "4GiB", value_name = "SIZE")]
    hot: ByteSize,
    /// How long a deleted volume is kept, so that it can be taken back
    #[arg(long, default_value = "7d", value_name = "TIME", value_parser = milliseconds)]
    keep_deleted: u64,
    /// How often the room of what nothing refers to is given back; 0s for never
    #[arg(long, default_value = "1d", value_name = "TIME", value_parser = milliseconds)]
    collect_every: u64,
    #[command(flatten)]
    logging: Logging,
}

pub(crate) fn run(context: &Context, arguments: Arguments) -> Outcome {
    let Verb::Serve(serve) = arguments.verb;
    serve.logging.begin()?;
    // Absolute, as others are told of sockets in it.
    let given = serve.dir.unwrap_or_else(default_directory);
    let directory = std::path::absolute(&given).map_err(|error| Failure::of_file("find", &given, &error))?;
    let (cache_bytes, hot_bytes) = (serve.cache.0, serve.hot.0);
    let keep_deleted = Duration::from_millis(serve.keep_deleted);
    let passed = PassedSockets::from_environment().map_err(|error| Failure::of_service(&error.into()))?;
    let collect_every = Some(Duration::from_millis(serve.collect_every)).filter(|every| !every.is_zero());
    let options = NodeOptions {
        bind: serve.bind,
        cache_bytes,
        hot_bytes,
        keep_deleted,
        collect_every,
        passed,
        ..NodeOptions::new(&directory)
    };
    let output = context.output;
    let ready = Box::new(move |ready: &Ready| announce(output, ready));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::of_service(&error.into()))?;
    runtime.block_on(::node::serve(options, ready)).map_err(|error| explain(&error, &directory))
}

/// Why a node could not run; a store that another one has open is told from what is wrong with it.
fn explain(error: &anyhow::Error, directory: &Path) -> Failure {
    let Some(store) = error.chain().find_map(|cause| cause.downcast_ref::<StoreError>()) else {
        return Failure::of_service(error);
    };
    let mut reported = ApiError { message: format!("{error:#}"), ..super::store::explain(store) };
    if matches!(store, StoreError::InUse { .. }) {
        reported.hint =
            Some(format!("is a node running there already? see: brant status --node {}", directory.display()));
    }
    Failure::Reported(reported)
}

/// Says that the node answers. Nobody listening to that is no reason to stop.
fn announce(output: Output, ready: &Ready) {
    let addresses: Vec<String> = ready.addresses.iter().map(ToString::to_string).collect();
    let value = json!({"socket": ready.socket, "endpoint": ready.endpoint, "addresses": addresses});
    let line = format!(
        "brant node ready: socket={} endpoint={} addresses={}",
        ready.socket.display(),
        ready.endpoint,
        addresses.join(",")
    );
    if output.line(&value, &line).is_err() {
        tracing::debug!("nobody reads standard output");
    }
}

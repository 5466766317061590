//! `brant node`: the daemon, and its replacement by a newer one.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::node::api::{ApiError, ErrorCode, Restart};
use ::node::client::default_directory;
use ::node::{Ended, NodeOptions, PassedSockets, Ready, Start};
use ::store::StoreError;
use clap::Subcommand;
use serde_json::json;
use types::ByteSize;

use super::logging::Logging;
use crate::arguments::milliseconds;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// How often a restart is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

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
  brant node serve --dir /srv/brant --bind 0.0.0.0:4701 --cache 1GiB")]
    Serve(Serve),
    /// Replace the running node by a new process, guests undisturbed
    ///
    /// The new process is started from the same file, which an upgrade may have replaced, with the same arguments. It
    /// goes on with all connections of running guests, who see a pause of a moment. Where it cannot, the running node
    /// goes on as if nothing had happened, and this says why. Tasks are taken up again, or must be run again, as after
    /// any restart.
    #[command(after_long_help = "Examples:
  brant node restart
  brant node restart --node /var/lib/brant")]
    Restart,
    /// Hold a node's connections while its successor starts
    ///
    /// A node runs this by itself.
    #[command(hide = true)]
    Guard(Guard),
}

#[derive(clap::Args, Debug)]
struct Guard {
    /// The arguments of the node that handed over
    #[arg(last = true)]
    serving: Vec<OsString>,
}

#[derive(clap::Args, Debug)]
struct Serve {
    /// Where it keeps everything [default: the directory of this user's node]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A UDP address to talk to peers at; may be repeated [default: all addresses, and the port of the last time]
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
    /// Go on with the connections of the node that runs with this directory, if one does, and replace it
    #[arg(long)]
    take_over: bool,
    /// Go on with the connections at standard input, which were handed over in vain
    #[arg(long, hide = true, value_name = "WHY", conflicts_with = "take_over")]
    taken_back: Option<String>,
    /// How often everything that is stored is read again, to find damage; 0s for never
    #[arg(long, default_value = "30d", value_name = "TIME", value_parser = milliseconds)]
    scrub_every: u64,
    #[command(flatten)]
    logging: Logging,
}

pub(crate) fn run(context: &Context, arguments: Arguments) -> Outcome {
    match arguments.verb {
        Verb::Serve(serve) => run_node(context, serve),
        Verb::Restart => context.block_on(restart(context)),
        Verb::Guard(guard) => {
            ::node::handover::guard(&guard.serving).map_err(|error| Failure::of_service(&error.into()))
        }
    }
}

/// Has the running node replaced, and waits until that has succeeded or failed.
async fn restart(context: &Context) -> Outcome {
    let begun = context.client.restart().await?;
    loop {
        tokio::time::sleep(LOOK_AGAIN).await;
        let status = match context.client.status().await {
            // Between the two processes, nobody answers for a moment.
            Err(error) if error.code == ErrorCode::Unreachable && alive(&begun) => continue,
            status => status?,
        };
        if let Some(failure) = status.restart_failure {
            let error = ApiError::new(ErrorCode::Internal, format!("the node was not replaced: {failure}"));
            return Err(Failure::Reported(error.hint("the running node goes on; its log says more")));
        }
        if status.pid == begun.successor {
            let line = format!("process {} has taken over from {}", begun.successor, begun.pid);
            return context.output.show(&status, |_| line);
        }
    }
}

/// Whether one of the processes of a restart is there.
fn alive(restart: &Restart) -> bool {
    [restart.pid, restart.successor].iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

fn run_node(context: &Context, serve: Serve) -> Outcome {
    serve.logging.begin()?;
    // Absolute, as others are told of sockets in it.
    let given = serve.dir.unwrap_or_else(default_directory);
    let directory = std::path::absolute(&given).map_err(|error| Failure::of_file("find", &given, &error))?;
    let (cache_bytes, hot_bytes) = (serve.cache.0, serve.hot.0);
    let keep_deleted = Duration::from_millis(serve.keep_deleted);
    let passed = PassedSockets::from_environment().map_err(|error| Failure::of_service(&error.into()))?;
    let collect_every = Some(Duration::from_millis(serve.collect_every)).filter(|every| !every.is_zero());
    let scrub_every = Some(Duration::from_millis(serve.scrub_every)).filter(|every| !every.is_zero());
    let options = NodeOptions {
        bind: serve.bind,
        cache_bytes,
        hot_bytes,
        keep_deleted,
        collect_every,
        scrub_every,
        passed,
        ..NodeOptions::new(&directory)
    };
    let output = context.output;
    let ready = Box::new(move |ready: &Ready| announce(output, ready));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::of_service(&error.into()))?;
    let start = match serve.taken_back {
        Some(why) => Start::TakenBack { why },
        None if serve.take_over => Start::TakeOver,
        None => Start::Alone,
    };
    let ended = runtime.block_on(::node::serve(options, start, ready));
    match ended.map_err(|error| explain(&error, &directory))? {
        Ended::Stopped => Ok(()),
        // Nothing of this process is waited for: what it has left to do, it does as after a crash.
        Ended::HandsOver(hand_over) => {
            let error = hand_over.become_guard(&::node::serving_arguments());
            Err(Failure::of_service(&anyhow::Error::from(error).context("could not hand over")))
        }
    }
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

//! `brant hydrate`: bring what is not here.

use crate::context::Context;
use crate::failure::Outcome;
use crate::wait::{self, Detach};

/// Bring everything of a volume or snapshot that is not here yet
///
/// What a guest waits for goes first meanwhile. Goes on by itself after the node was restarted.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant hydrate web1
  brant hydrate vms/web@3 --detach")]
pub(crate) struct Arguments {
    /// A volume, BUCKET/OBJECT[@VERSION], or a snapshot id
    #[arg(value_name = "VOLUME|SNAPSHOT")]
    target: String,
    #[command(flatten)]
    detach: Detach,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let task = context.client.hydrate(&arguments.target).await?;
    wait::finish(context, task, arguments.detach).await
}

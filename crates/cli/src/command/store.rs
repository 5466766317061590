//! `brant store`: where the node keeps chunks.

use clap::Subcommand;

use super::status::objects;
use crate::context::Context;
use crate::failure::Outcome;
use crate::output::table::pairs;
use crate::output::text::size;

/// Look at the store of chunks
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what the store holds and what it takes on disk
    #[command(after_long_help = "Example:\n  brant store show")]
    Show,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    match arguments.verb {
        Verb::Show => {
            let store = context.client.status().await?.store;
            context.output.show(&store, |_| {
                pairs(&[
                    ("store", store.directory.clone()),
                    ("on disk", size(store.allocated_bytes)),
                    ("holds", objects(&store)),
                ])
            })
        }
    }
}

//! `brant store`: where the node keeps chunks.

use std::path::PathBuf;
use std::time::Duration;

use ::store::{LocalStore, RecoveryReport, StoreError};
use clap::Subcommand;
use node::api::{ApiError, CollectRequest, CollectionStatus, ErrorCode, ScrubRequest};
use serde_json::{Value, json};
use types::ByteSize;

use super::status::objects;
use crate::arguments::milliseconds;
use crate::context::Context;
use crate::failure::Outcome;
use crate::output::now_ms;
use crate::output::table::pairs;
use crate::output::text::{count, size, span};
use crate::wait::{self, Detach};

/// Look at the store of chunks, collect what is dead, mend it
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
    /// Give the room of what nothing refers to back
    ///
    /// Runs beside everything else; what it has done when it is cancelled is whole. A node does it by itself every day.
    #[command(
        name = "gc",
        visible_alias = "collect",
        after_long_help = "Examples:
  brant store gc --dry-run
  brant store gc --rate 50MiB --grace 0s"
    )]
    Collect {
        /// How much may be read and written per second
        #[arg(long, value_name = "SIZE")]
        rate: Option<ByteSize>,
        /// Only count what would go
        #[arg(long)]
        dry_run: bool,
        /// How long a retired version is kept [default: 1d]
        #[arg(long, value_name = "TIME", value_parser = milliseconds)]
        grace: Option<u64>,
        #[command(flatten)]
        detach: Detach,
    },
    /// Read everything again, and fetch what is damaged from peers
    ///
    /// What is damaged is absent from then on, and its bytes are kept in damaged/ in the store's directory. A scrub that
    /// was cancelled goes on where it was. A node does it by itself every month, slowly.
    #[command(after_long_help = "Examples:
  brant store scrub
  brant store scrub --rate 50MiB --detach")]
    Scrub {
        /// How much may be read per second
        #[arg(long, value_name = "SIZE")]
        rate: Option<ByteSize>,
        #[command(flatten)]
        detach: Detach,
    },
    /// Build the chunk index anew from the packs, with the node stopped
    ///
    /// Every record of every pack is checked meanwhile; what is damaged is named, and counts as absent from then on.
    #[command(after_long_help = "Example:\n  brant store rebuild-index --dir /var/lib/brant")]
    RebuildIndex {
        /// The node's directory
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    match arguments.verb {
        Verb::Show => {
            let store = context.client.status().await?.store;
            context.output.show(&store, |_| {
                let mut facts = vec![
                    ("store", store.directory.clone()),
                    ("on disk", size(store.allocated_bytes)),
                    ("holds", objects(&store)),
                ];
                if let Some(collection) = &store.collection {
                    facts.push(("live", in_use(collection)));
                }
                pairs(&facts)
            })
        }
        Verb::Collect { rate, dry_run, grace, detach } => {
            let rate_bytes_per_second = rate.map(|rate| rate.0);
            let request = CollectRequest { rate_bytes_per_second, dry_run, grace_ms: grace };
            let task = context.client.collect(&request).await?;
            wait::finish(context, task, detach).await
        }
        Verb::Scrub { rate, detach } => {
            let request = ScrubRequest { rate_bytes_per_second: rate.map(|rate| rate.0) };
            let task = context.client.scrub(&request).await?;
            wait::finish(context, task, detach).await
        }
        Verb::RebuildIndex { dir } => {
            let directory = dir.join("store");
            let report = LocalStore::rebuild_index(&directory).map_err(|error| explain(&error))?;
            context.output.show(&as_json(&report), |_| sentences(&directory.display().to_string(), &report))?;
            if report.damages == 0 {
                return Ok(());
            }
            let damaged = format!("{} damaged: what was there is not present any more", places(report.damages));
            Err(ApiError::new(ErrorCode::Damaged, damaged)
                .hint("what was published elsewhere comes back from there: brant hydrate; import the rest again")
                .into())
        }
    }
}

/// What the last collection left, for people.
fn in_use(collection: &CollectionStatus) -> String {
    let ago = span(Duration::from_millis(now_ms().saturating_sub(collection.ended_ms)));
    let (live, dead) = (size(collection.live_bytes), size(collection.dead_bytes));
    format!("{} in {live}, and {dead} that nothing refers to, {ago} ago", count(collection.live_objects, "object"))
}

/// The kind of a store's error, and what to do about it.
pub(super) fn explain(error: &StoreError) -> ApiError {
    let of = |code| ApiError::from_error(code, error);
    match error {
        StoreError::InUse { .. } => of(ErrorCode::Conflict).hint("stop the node first"),
        StoreError::NotAStore { .. } => {
            of(ErrorCode::NotFound).hint("--dir is the node's directory, which has store/ in it")
        }
        StoreError::Newer { .. } => of(ErrorCode::Invalid),
        StoreError::Full { .. } => of(ErrorCode::Full),
        StoreError::Damaged { .. } | StoreError::Malformed { .. } => of(ErrorCode::Damaged),
        StoreError::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => of(ErrorCode::NotFound),
            std::io::ErrorKind::PermissionDenied => {
                of(ErrorCode::Forbidden).hint("run this as the user that runs the node")
            }
            _ => of(ErrorCode::Internal),
        },
        _ => of(ErrorCode::Internal),
    }
}

fn places(number: u64) -> String {
    if number == 1 { "1 place is".to_owned() } else { format!("{number} places are") }
}

fn sentences(directory: &str, report: &RecoveryReport) -> String {
    let (records, packs) = (count(report.records, "record"), count(report.packs, "pack"));
    let mut text = format!("built the index of {directory} anew: {records} in {packs}\n");
    if report.torn_bytes > 0 {
        text.push_str(&format!("cut off {} of writes that were never committed\n", size(report.torn_bytes)));
    }
    for damage in &report.named_damages {
        let object = damage.object.map_or_else(|| "something".to_owned(), |key| key.to_string());
        let path = damage.path.display();
        text.push_str(&format!("damaged: {object} at byte {} of {path}, {}\n", damage.place, size(damage.length)));
    }
    text
}

fn as_json(report: &RecoveryReport) -> Value {
    let damages = report.named_damages.iter().map(|damage| {
        json!({
            "path": damage.path, "object": damage.object.map(|key| key.to_string()),
            "place": damage.place, "length_bytes": damage.length,
        })
    });
    json!({
        "packs": report.packs, "records": report.records, "torn_bytes": report.torn_bytes,
        "damages": report.damages, "named_damages": damages.collect::<Vec<_>>(),
    })
}

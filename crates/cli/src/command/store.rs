//! `brant store`: where the node keeps chunks.

use std::path::PathBuf;

use ::store::{LocalStore, RecoveryReport, StoreError};
use clap::Subcommand;
use node::api::{ApiError, ErrorCode};
use serde_json::{Value, json};

use super::status::objects;
use crate::context::Context;
use crate::failure::Outcome;
use crate::output::table::pairs;
use crate::output::text::{count, size};

/// Look at the store of chunks, and mend its index
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
                pairs(&[
                    ("store", store.directory.clone()),
                    ("on disk", size(store.allocated_bytes)),
                    ("holds", objects(&store)),
                ])
            })
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

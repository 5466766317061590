//! `brant login`: let the node use an account at an Indexer.

use std::path::PathBuf;

use node::api::LoginRequest;

use super::token;
use crate::context::Context;
use crate::failure::Outcome;

/// Let the node use an account at an Indexer
///
/// The token is read from --token-file, else from the variable BRANT_TOKEN, else asked for. It is never an argument,
/// which others on this host could see.
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant login index.example.org
  brant login http://127.0.0.1:7070 --token-file alice.token")]
pub(crate) struct Arguments {
    /// The Indexer's URL, or HOST[:PORT]
    #[arg(value_name = "INDEXER")]
    indexer: String,
    /// A file whose first line is the token; - for standard input
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let token = token::obtain(&arguments.indexer, arguments.token_file.as_deref()).await?;
    let login = context.client.login(&LoginRequest { indexer: arguments.indexer, token }).await?;
    context.output.show(&login, |_| format!("the node uses the account {} at {}", login.account, login.indexer))
}

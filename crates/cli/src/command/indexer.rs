//! `brant indexer`: the meeting point, and its accounts.

use std::net::SocketAddr;

use ::indexer::admin::{self, AccountInfo, AdminError};
use ::indexer::{DbError, ServeError, ServeOptions};
use clap::Subcommand;
use node::api::{ApiError, ErrorCode};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use types::Name;

use super::logging::Logging;
use crate::arguments::some_milliseconds;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::output::View;
use crate::output::table::Table;
use crate::output::text::moment;

/// Run an Indexer, and manage its accounts
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run an Indexer until SIGTERM or Ctrl-C
    ///
    /// Prints a line that begins with "brant indexer ready:" and has its URL on standard output once it answers; logs on
    /// standard error. It speaks plain HTTP: for others than this host, put a TLS proxy in front of it.
    #[command(after_long_help = "Example:
  brant indexer serve --database sqlite:/var/lib/brant-indexer/index.db")]
    Serve(Serve),
    /// Manage accounts, also while the Indexer runs
    Account {
        #[command(subcommand)]
        verb: AccountVerb,
    },
}

#[derive(clap::Args, Debug)]
struct Serve {
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    #[command(flatten)]
    database: Database,
    /// Allow plain HTTP beyond the loopback addresses, where anyone on the way can read tokens
    #[arg(long)]
    insecure_listen: bool,
    #[command(flatten)]
    logging: Logging,
}

#[derive(clap::Args, Debug)]
struct Database {
    /// The database: sqlite:FILE, made where it does not exist
    #[arg(long = "database", value_name = "URL", env = "BRANT_INDEXER_DATABASE", hide_env_values = true)]
    url: String,
}

#[derive(Debug, Subcommand)]
enum AccountVerb {
    /// Make an account, and print its token once
    #[command(after_long_help = "Example:
  brant indexer account add alice --database sqlite:indexer.sqlite \\
    > alice.token")]
    Add {
        /// Its name
        #[arg(value_name = "ACCOUNT")]
        account: Name,
        #[command(flatten)]
        database: Database,
    },
    /// List the accounts
    #[command(after_long_help = "Example:
  brant indexer account list --database sqlite:indexer.sqlite")]
    List {
        #[command(flatten)]
        database: Database,
    },
    /// Remove an account, with its references and their logs
    #[command(after_long_help = "Example:
  brant indexer account remove alice --database sqlite:indexer.sqlite")]
    Remove {
        /// Its name
        #[arg(value_name = "ACCOUNT")]
        account: Name,
        #[command(flatten)]
        database: Database,
    },
    /// Replace an account's tokens by a new one, and print it once
    #[command(after_long_help = "Example:
  brant indexer account token alice --database sqlite:indexer.sqlite \\
    --valid-for 24h")]
    Token {
        /// The account's name
        #[arg(value_name = "ACCOUNT")]
        account: Name,
        #[command(flatten)]
        database: Database,
        /// How long it is valid, such as 24h [default: until it is replaced]
        #[arg(long, value_name = "TIME", value_parser = some_milliseconds)]
        valid_for: Option<u64>,
    },
}

pub(crate) fn run(context: &Context, arguments: Arguments) -> Outcome {
    match arguments.verb {
        Verb::Serve(serve) => {
            serve.logging.begin()?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::of_service(&error.into()))?;
            runtime.block_on(self::serve(context, &serve))
        }
        Verb::Account { verb } => context.block_on(account(context, verb)),
    }
}

async fn serve(context: &Context, serve: &Serve) -> Outcome {
    let failed = |error: std::io::Error| Failure::of_service(&error.into());
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let options =
        ServeOptions { insecure_listen: serve.insecure_listen, ..ServeOptions::new(serve.listen, &serve.database.url) };
    let serving = ::indexer::serve(options).await.map_err(|error| cannot_serve(&error))?;
    let url = format!("http://{}", serving.local_addr());
    let value = json!({"url": url, "key": serving.key().to_string()});
    if context.output.line(&value, &format!("brant indexer ready: {url}")).is_err() {
        tracing::debug!("nobody reads standard output");
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    serving.stop().await;
    Ok(())
}

async fn account(context: &Context, verb: AccountVerb) -> Outcome {
    let output = context.output;
    match verb {
        AccountVerb::Add { account, database } => {
            let token = admin::account_add(&database.url, &account).await.map_err(|error| explain(&error))?;
            output.show(&json!({"account": account, "token": token.as_str()}), |_| token.to_string())?;
            output.note("this token is shown only now; use it with: brant login INDEXER --token-file FILE");
            Ok(())
        }
        AccountVerb::List { database } => {
            let accounts = admin::account_list(&database.url).await.map_err(|error| explain(&error))?;
            let values: Vec<Value> = accounts.iter().map(as_json).collect();
            output.list(&values, "no accounts; make one with: brant indexer account add NAME --database URL", |view| {
                list(&accounts, view)
            })
        }
        AccountVerb::Remove { account, database } => {
            admin::account_remove(&database.url, &account).await.map_err(|error| explain(&error))?;
            output.show(&json!({"account": account}), |_| format!("removed the account {account}"))
        }
        AccountVerb::Token { account, database, valid_for } => {
            let rotated = admin::token_rotate(&database.url, &account, valid_for).await;
            let token = rotated.map_err(|error| explain(&error))?;
            output.show(&json!({"account": account, "token": token.as_str()}), |_| token.to_string())?;
            output.note("this token is shown only now; tokens that the account had are not valid any more");
            Ok(())
        }
    }
}

fn as_json(account: &AccountInfo) -> Value {
    json!({"account": account.name, "created_ms": account.created_ms, "references": account.references})
}

fn list(accounts: &[AccountInfo], view: View) -> String {
    let mut table = Table::new().texts("ACCOUNT").numbers("REFERENCES").words("CREATED");
    for account in accounts {
        let created = moment(account.created_ms, view.now_ms);
        table.row([account.name.to_string(), account.references.to_string(), created]);
    }
    table.render(view.width)
}

fn explain(error: &AdminError) -> ApiError {
    match error {
        AdminError::Exists(name) => ApiError::from_error(ErrorCode::Conflict, error)
            .hint(format!("for a new token of it: brant indexer account token {name} --database URL")),
        AdminError::NoAccount(_) => {
            ApiError::from_error(ErrorCode::NotFound, error).hint("see: brant indexer account list --database URL")
        }
        AdminError::Db(inner) => cannot_open(inner, error),
        _ => ApiError::from_error(ErrorCode::Internal, error),
    }
}

fn cannot_serve(error: &ServeError) -> ApiError {
    match error {
        ServeError::Insecure(_) => ApiError::from_error(ErrorCode::Invalid, error),
        ServeError::Listen { source, .. } => match source.kind() {
            std::io::ErrorKind::AddrInUse => ApiError::from_error(ErrorCode::Conflict, error)
                .hint("is an Indexer running there already? port 0 is any free one"),
            std::io::ErrorKind::PermissionDenied => ApiError::from_error(ErrorCode::Forbidden, error),
            _ => ApiError::from_error(ErrorCode::Internal, error),
        },
        ServeError::Db(inner) => cannot_open(inner, error),
        _ => ApiError::from_error(ErrorCode::Internal, error),
    }
}

fn cannot_open(error: &DbError, outer: &(dyn std::error::Error + 'static)) -> ApiError {
    let code = match error {
        DbError::Scheme(_) => ErrorCode::Invalid,
        DbError::Loose { .. } => ErrorCode::Forbidden,
        DbError::File { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => ErrorCode::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorCode::Forbidden,
            _ => ErrorCode::Internal,
        },
        _ => ErrorCode::Internal,
    };
    ApiError::from_error(code, outer)
}

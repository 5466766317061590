//! brant's command line: arguments in, tables or JSON out; everything else happens in the node it talks to.
//!
//! Commands are modules under [`command`], a noun each, with their arguments and their one-screen implementations. What
//! is printed goes through [`output`], long jobs through [`wait`], and every failure becomes an exit code in
//! [`failure`]. No command touches a node's directory, except `node serve`, `fuse-front` and `store rebuild-index`.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments of arguments are the help text, with its own brackets"
)]

mod arguments;
mod command;
mod context;
mod failure;
mod moment;
mod output;
mod wait;

use std::process::ExitCode;

use clap::Parser as _;

use crate::arguments::Arguments;

/// Gives memory back after a burst of work on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match command::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

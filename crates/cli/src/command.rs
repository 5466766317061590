//! The commands: a module per noun, or per verb that needs none.

pub(crate) mod attach;
pub(crate) mod bucket;
pub(crate) mod clone;
pub(crate) mod cluster;
pub(crate) mod completion;
mod difference;
pub(crate) mod fuse_front;
pub(crate) mod ganeti;
pub(crate) mod hydrate;
pub(crate) mod import;
pub(crate) mod indexer;
mod logging;
pub(crate) mod login;
pub(crate) mod materialize;
pub(crate) mod node;
pub(crate) mod place;
pub(crate) mod publish;
mod replica;
pub(crate) mod revert;
mod schedule;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod subscribe;
pub(crate) mod task;
pub(crate) mod token;
pub(crate) mod volume;

use crate::arguments::{Arguments, Command};
use crate::context::Context;
use crate::failure::Outcome;

/// Runs what was asked for.
pub(crate) fn run(arguments: Arguments) -> Outcome {
    let context = Context::new(&arguments.global);
    let node = arguments.global.node;
    match arguments.command {
        Command::Ganeti(arguments) => context.block_on(ganeti::run(&context, node.as_deref(), arguments)),
        Command::Completion(arguments) => completion::run(&arguments),
        Command::Node(arguments) => node::run(&context, arguments),
        Command::Indexer(arguments) => indexer::run(&context, arguments),
        Command::FuseFront(arguments) => fuse_front::run(&context, arguments),
        talking => context.block_on(talk(&context, talking)),
    }
}

/// Runs a command that talks to a node.
async fn talk(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Import(arguments) => import::run(context, arguments).await,
        Command::Materialize(arguments) => materialize::run(context, arguments).await,
        Command::Clone(arguments) => clone::run(context, arguments).await,
        Command::Revert(arguments) => revert::run(context, arguments).await,
        Command::Attach(arguments) => attach::attach(context, arguments).await,
        Command::Detach(arguments) => attach::detach(context, arguments).await,
        Command::Hydrate(arguments) => hydrate::run(context, arguments).await,
        Command::Publish(arguments) => publish::publish(context, arguments).await,
        Command::Unpublish(arguments) => publish::unpublish(context, arguments).await,
        Command::Subscribe(arguments) => subscribe::subscribe(context, arguments).await,
        Command::Unsubscribe(arguments) => subscribe::unsubscribe(context, arguments).await,
        Command::Snapshot(arguments) => snapshot::run(context, arguments).await,
        Command::Volume(arguments) => volume::run(context, arguments).await,
        Command::Cluster(arguments) => cluster::run(context, arguments).await,
        Command::Bucket(arguments) => bucket::run(context, arguments).await,
        Command::Task(arguments) => task::run(context, arguments).await,
        Command::Status(_) => status::run(context).await,
        Command::Login(arguments) => login::run(context, arguments).await,
        Command::Store(arguments) => store::run(context, arguments).await,
        Command::Completion(_)
        | Command::Node(_)
        | Command::Indexer(_)
        | Command::FuseFront(_)
        | Command::Ganeti(_) => {
            unreachable!("runs elsewhere")
        }
    }
}

//! What every command that talks to a node needs: the client and the output.

use node::client::{Address, Client};

use crate::arguments::Global;
use crate::failure::Outcome;
use crate::output::Output;

/// A command's surroundings.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) output: Output,
}

impl Context {
    pub(crate) fn new(global: &Global) -> Self {
        let address = global.node.as_deref().map_or_else(Address::of_this_user, Address::parse);
        Self { client: Client::new(address), output: Output::new(global.json) }
    }

    /// Runs a command to its end on this thread.
    pub(crate) fn block_on(&self, command: impl Future<Output = Outcome>) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| crate::failure::Failure::of_service(&error.into()))?;
        let outcome = runtime.block_on(command);
        // A thread that still waits for the keyboard does not keep the process.
        runtime.shutdown_background();
        outcome
    }
}

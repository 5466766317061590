//! `brant completion`: scripts that let a shell complete commands.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::failure::Outcome;
use crate::output::Output;

/// Print a script that lets a shell complete brant's commands
#[derive(clap::Args, Debug)]
#[command(after_long_help = "Examples:
  brant completion bash > /etc/bash_completion.d/brant
  brant completion zsh > ~/.zfunc/_brant")]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let mut command = crate::arguments::Arguments::command();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "brant", &mut script);
    Output::raw(&script)
}

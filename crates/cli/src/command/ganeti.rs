//! `brant ganeti`: disks of Ganeti's instances as volumes of this node.

mod moving;
mod orphans;

use std::path::PathBuf;

use clap::Subcommand;
use ganeti::{InstallError, Installation, LOG_DIRECTORY, PROVIDER_DIRECTORY, Script, Settings};
use node::api::{ApiError, ErrorCode};
use serde_json::json;
use types::ObjectPath;

use super::snapshot::{path_of, until_sealed};
use crate::arguments::new_path;
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::output::Output;
use crate::output::text::size;

/// Ganeti's disks on brant: the provider, snapshots, instances that travel
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Let the Ganeti of this host keep disks at this node
    ///
    /// Writes the ExtStorage provider "brant", and makes Ganeti's directory for its logs. To be run on every node of the cluster. Running it again, after
    /// an upgrade that moved brant for example, writes the scripts anew; disks and instances are not touched.
    #[command(after_long_help = "Examples:
  brant ganeti install
  brant ganeti install --node /srv/brant")]
    Install {
        /// The provider's directory; its last part is what Ganeti calls the provider
        #[arg(long, value_name = "DIR", default_value = PROVIDER_DIRECTORY)]
        provider_dir: PathBuf,
        /// Where Ganeti writes what the scripts print
        #[arg(long, value_name = "DIR", default_value = LOG_DIRECTORY)]
        log_dir: PathBuf,
    },
    /// Take the provider away from the Ganeti of this host
    ///
    /// Instances whose disks are here cannot be started, stopped or removed until it is installed again. Volumes and logs stay.
    #[command(after_long_help = "Example:
  brant ganeti uninstall")]
    Uninstall {
        /// The provider's directory
        #[arg(long, value_name = "DIR", default_value = PROVIDER_DIRECTORY)]
        provider_dir: PathBuf,
    },
    /// Take a snapshot of all disks of an instance at one moment
    ///
    /// At the node where the instance runs, while it runs. The snapshot's disks are called disk0, disk1, …; an instance that is added with it as the
    /// parameter origin of its disks begins as it.
    #[command(after_long_help = "Examples:
  brant ganeti snapshot web1.example.org vms/web
  brant ganeti snapshot web1.example.org -m 'before the upgrade' --wait")]
    Snapshot {
        /// Its full name
        #[arg(value_name = "INSTANCE")]
        instance: String,
        /// Where the new version goes [default: the instance's name in the bucket of the disks' parameter `bucket`]
        #[arg(value_name = "BUCKET/OBJECT", value_parser = new_path)]
        path: Option<ObjectPath>,
        /// A note that is kept with the version
        #[arg(short, long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        message: String,
        /// Wait until it is sealed
        #[arg(long)]
        wait: bool,
    },
    /// Take a snapshot of all disks of an instance, with its definition
    ///
    /// Like `snapshot`, and what `create` needs to make the instance again in this cluster or another one is kept with it: memory, processors, NICs,
    /// the operating system and its parameters, what hardware the guest sees, tags. To be run where the instance runs; where that is not Ganeti's
    /// master, the command says how it gets the definition from there.
    #[command(after_long_help = "Examples:
  brant ganeti export web1.example.org vms/web
  ssh MASTER brant ganeti definition web1.example.org |
    brant ganeti export web1.example.org vms/web --definition -")]
    Export(moving::Export),
    /// Make an instance from a snapshot, of this cluster or another one
    ///
    /// To be run on Ganeti's master. It runs `gnt-instance add` (and `start`) with what the definition says that came with the snapshot, and with what the options
    /// say instead. Any snapshot will do: one without a definition needs --os.
    #[command(after_long_help = "Examples:
  brant ganeti create index.example.org/alice/vms/web --name web1.example.net
  brant ganeti create templates/debian12 --name web2.example.net --os debian
  brant ganeti create vms/web@3 --name web3.example.net \\
    --net 0:link=br1 --dry-run")]
    Create(Box<moving::Create>),
    /// Print an instance's definition, on Ganeti's master
    #[command(after_long_help = "Example:
  brant ganeti definition web1.example.org")]
    Definition {
        /// Its full name
        #[arg(value_name = "INSTANCE")]
        instance: String,
    },
    /// List the volumes here that belong to no instance any more
    ///
    /// Ganeti forgets a disk whose node does not answer when its instance is removed; the volume stays. To be run on every node. On another node than
    /// Ganeti's master, the instances are those that the master has told this node of last.
    #[command(after_long_help = "Examples:
  brant ganeti orphans
  brant ganeti orphans --remove")]
    Orphans {
        /// Remove those that are not attached; they can be taken back for a while
        #[arg(long)]
        remove: bool,
    },
    /// Do what Ganeti calls a script of the provider for
    ///
    /// What is asked for is in the environment. Ganeti runs this by itself.
    #[command(hide = true)]
    Provider {
        /// The script
        #[arg(value_name = "SCRIPT", value_parser = script)]
        script: Script,
    },
}

fn script(name: &str) -> Result<Script, String> {
    let names = || Script::ALL.map(Script::name).join(", ");
    Script::of_name(name).ok_or_else(|| format!("the scripts are {}", names()))
}

pub(crate) async fn run(context: &Context, node: Option<&str>, arguments: Arguments) -> Outcome {
    match arguments.verb {
        Verb::Install { provider_dir, log_dir } => install(context, node, provider_dir, log_dir),
        Verb::Uninstall { provider_dir } => {
            ganeti::uninstall(&provider_dir).map_err(|error| explain(&error))?;
            let shown = provider_dir.display();
            context.output.done(&json!({"provider_directory": provider_dir}), &format!("removed {shown}"))
        }
        Verb::Snapshot { instance, path, message, wait } => {
            let mut snapshot = ganeti::snapshot_instance(&context.client, &instance, path, message, None).await?;
            if wait {
                snapshot = until_sealed(context, snapshot).await?;
            }
            context.output.show(&snapshot, |_| {
                format!("took {} of {instance}, {}", path_of(&snapshot), size(snapshot.size_bytes))
            })
        }
        Verb::Export(arguments) => moving::export(context, arguments).await,
        Verb::Create(arguments) => moving::create(context, *arguments).await,
        Verb::Definition { instance } => moving::definition(&instance),
        Verb::Orphans { remove } => orphans::run(context, remove).await,
        Verb::Provider { script } => {
            let printed = ganeti::run(&context.client, script, environment(), &Settings::default()).await?;
            Output::raw(printed.as_bytes())
        }
    }
}

/// The variables that are text: Ganeti's are.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn install(context: &Context, node: Option<&str>, provider_directory: PathBuf, log_directory: PathBuf) -> Outcome {
    let brant = std::env::current_exe().map_err(|error| Failure::of_file("find", "brant".as_ref(), &error))?;
    let node = match node {
        // The scripts run in another directory than this one.
        Some(path) if !path.contains("://") => {
            let found = std::path::absolute(path).map_err(|error| Failure::of_file("find", path.as_ref(), &error))?;
            Some(found.to_string_lossy().into_owned())
        }
        given => given.map(str::to_owned),
    };
    let installation = Installation { provider_directory, log_directory, brant, node };
    ganeti::install(&installation).map_err(|error| explain(&error))?;
    let shown = installation.provider_directory.display();
    let value = json!({
        "provider_directory": installation.provider_directory,
        "log_directory": installation.log_directory,
        "brant": installation.brant,
        "node": installation.node,
    });
    context.output.show(&value, |_| format!("installed the provider in {shown}"))?;
    context.output.note("on every node of the cluster it has to be so; see: gnt-storage diagnose");
    Ok(())
}

/// Why the provider could not be installed or removed, with the kind of error.
fn explain(error: &InstallError) -> Failure {
    let code = match error {
        InstallError::NoGaneti(_) | InstallError::Absent(_) => ErrorCode::NotFound,
        InstallError::Foreign(_) => ErrorCode::Conflict,
        InstallError::NotText(_) => ErrorCode::Invalid,
        InstallError::File { doing, path, source } => return Failure::of_file(doing, path, source),
    };
    let hint = match error {
        InstallError::NoGaneti(_) => "install Ganeti first, or say where it looks for providers: --provider-dir DIR",
        InstallError::Foreign(_) => "move it away, or choose another directory: --provider-dir DIR",
        InstallError::Absent(_) => "where is it? --provider-dir DIR",
        _ => "choose another directory",
    };
    Failure::Reported(ApiError::from_error(code, error).hint(hint))
}

//! `brant ganeti definition`, `export` and `create`: instances between clusters.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ganeti::{Definition, DefinitionError, Luxi, LuxiError, Wishes, advice};
use node::api::{ApiError, ErrorCode};
use serde_json::json;
use types::ObjectPath;

use crate::arguments::new_path;
use crate::command::snapshot::{path_of, until_sealed};
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::output::Output;
use crate::output::text::size;

/// The longest definition that is read from a file, in bytes; it is checked afterwards.
const MAX_READ_BYTES: u64 = 1 << 20;

/// What to export.
#[derive(clap::Args, Debug)]
pub(crate) struct Export {
    /// Its full name
    #[arg(value_name = "INSTANCE")]
    instance: String,
    /// Where the new version goes
    #[arg(value_name = "BUCKET/OBJECT", value_parser = new_path)]
    path: ObjectPath,
    /// The definition, as `brant ganeti definition` printed it on the master; - for standard input
    #[arg(long, value_name = "FILE")]
    definition: Option<PathBuf>,
    /// A note that is kept with the version
    #[arg(short, long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    message: String,
    /// Wait until it is sealed
    #[arg(long)]
    wait: bool,
}

/// What to make.
#[derive(clap::Args, Debug)]
pub(crate) struct Create {
    /// BUCKET/OBJECT[@VERSION], a snapshot id, or INDEXER/ACCOUNT/NAME[/OBJECT[@VERSION]]
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// The new instance's name
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The node that it runs on [default: the cluster's allocator chooses]
    #[arg(long, value_name = "NODE", conflicts_with = "iallocator")]
    on: Option<String>,
    /// The allocator that chooses the node
    #[arg(short = 'I', long, value_name = "NAME")]
    iallocator: Option<String>,
    /// The operating system, instead of the definition's
    #[arg(short, long, value_name = "OS")]
    os: Option<String>,
    /// Parameters of the operating system, instead of the definition's of the same names
    #[arg(short = 'O', long, value_name = "KEY=VALUE,…")]
    os_parameters: Option<String>,
    /// Private ones, which never travel
    #[arg(long, value_name = "KEY=VALUE,…")]
    os_parameters_private: Option<String>,
    /// A NIC, as gnt-instance add takes it, instead of all of the definition's; may be repeated
    #[arg(long, value_name = "N:KEY=VALUE,…", conflicts_with = "no_nics")]
    net: Vec<String>,
    /// No NICs
    #[arg(long)]
    no_nics: bool,
    /// Keep the NICs' MAC addresses, instead of new ones: only where the old instance runs no more
    #[arg(long)]
    keep_mac: bool,
    /// Parameters of the backend, instead of the definition's of the same names
    #[arg(short = 'B', long, value_name = "KEY=VALUE,…")]
    backend: Option<String>,
    /// The hypervisor, and parameters of it instead of the definition's of the same names
    #[arg(short = 'H', long, value_name = "HYPERVISOR[:KEY=VALUE,…]")]
    hypervisor: Option<String>,
    /// Further parameters of every disk, or of disk N: bucket=vms, 1:mode=ro; may be repeated
    #[arg(long, value_name = "[N:]KEY=VALUE,…")]
    disk: Vec<String>,
    /// Do not start it
    #[arg(long)]
    no_start: bool,
    /// The name need not resolve, and its address may be in use
    #[arg(long)]
    no_name_check: bool,
    /// Only print the command of Ganeti's that would be run
    #[arg(long)]
    dry_run: bool,
}

/// Why a definition could not be had, with the kind of error.
fn explain(error: &DefinitionError, instance: &str) -> Failure {
    let (code, hint) = match error {
        DefinitionError::Luxi(LuxiError::NotMaster { master }) => (
            ErrorCode::Invalid,
            format!(
                "ssh {master} brant ganeti definition {instance} | brant ganeti export {instance} … --definition -"
            ),
        ),
        DefinitionError::Luxi(_) => (ErrorCode::Unreachable, "is Ganeti running? gnt-cluster verify".to_owned()),
        DefinitionError::NoInstance(_) => {
            (ErrorCode::NotFound, "give its full name: gnt-instance list -o name".to_owned())
        }
        DefinitionError::Newer(_) => (ErrorCode::Invalid, "upgrade brant on this host".to_owned()),
        _ => (ErrorCode::Invalid, "take the disks alone: brant ganeti snapshot".to_owned()),
    };
    Failure::Reported(ApiError::from_error(code, error).hint(hint))
}

/// Prints an instance's definition.
pub(crate) fn definition(instance: &str) -> Outcome {
    let found = Definition::ask(&Luxi::default(), instance).map_err(|error| explain(&error, instance))?;
    Output::raw(format!("{}\n", found.definition.to_machine().description).as_bytes())
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_READ_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_READ_BYTES).read_to_string(&mut text))
    };
    read.map(|_| text).map_err(|error| Failure::of_file("read", path, &error))
}

/// Takes a snapshot of an instance's disks, with its definition.
pub(crate) async fn export(context: &Context, arguments: Export) -> Outcome {
    let Export { instance, path, definition, message, wait } = arguments;
    let (definition, home) = match definition {
        Some(file) => (Definition::decode(&read(&file)?).map_err(|error| explain(&error, &instance))?, None),
        None => {
            let found = Definition::ask(&Luxi::default(), &instance).map_err(|error| explain(&error, &instance))?;
            for parameter in &found.left_out {
                context
                    .output
                    .note(&format!("the parameter {parameter} is not in the snapshot: it is of this cluster's hosts"));
            }
            if found.template != "ext" {
                let message =
                    format!("the disks of {instance} are of the template {}, and not brant's", found.template);
                let hint = "read them into a bucket instead, stopped: brant import FILE|DEVICE|NBD-URI BUCKET/OBJECT";
                return Err(ApiError::new(ErrorCode::Invalid, message).hint(hint).into());
            }
            (found.definition, Some(found.node))
        }
    };
    if definition.name != instance {
        let message = format!("that is the definition of {}, and not of {instance}", definition.name);
        return Err(ApiError::new(ErrorCode::Invalid, message).into());
    }
    let taken =
        ganeti::snapshot_instance(&context.client, &instance, Some(path.clone()), message, Some(&definition)).await;
    let mut snapshot = taken.map_err(|error| match home {
        Some(home) if error.code == ErrorCode::NotFound && error.message.starts_with("no disk") => error.hint(format!(
            "its disks are at {home}: brant ganeti definition {instance} | ssh {home} brant ganeti export {instance} {path} --definition -"
        )),
        _ => error,
    })?;
    if wait {
        snapshot = until_sealed(context, snapshot).await?;
    }
    context.output.show(&snapshot, |_| {
        format!("exported {instance} with its definition to {}, {}", path_of(&snapshot), size(snapshot.size_bytes))
    })
}

/// Makes an instance from a snapshot.
pub(crate) async fn create(context: &Context, arguments: Create) -> Outcome {
    let wishes = Wishes {
        name: arguments.name.clone(),
        node: arguments.on,
        iallocator: arguments.iallocator,
        os: arguments.os,
        os_parameters: arguments.os_parameters,
        os_private: arguments.os_parameters_private,
        nics: arguments.net,
        no_nics: arguments.no_nics,
        keep_mac: arguments.keep_mac,
        backend: arguments.backend,
        hypervisor: arguments.hypervisor,
        disks: arguments.disk,
        no_name_check: arguments.no_name_check,
    };
    let mut plan = ganeti::plan(&context.client, &Luxi::default(), &arguments.snapshot, &wishes).await?;
    if arguments.no_start {
        plan.start.clear();
    }
    let value = json!({"instance": arguments.name, "command": plan.words, "start": plan.start});
    let name = &arguments.name;
    if arguments.dry_run {
        let line = |words: &[String]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        return context
            .output
            .show(&value, |_| format!("{}\n{}", line(&plan.words), line(&plan.start)).trim().to_owned());
    }
    if let Err(said) = tell(&plan.words)? {
        let error = ApiError::new(ErrorCode::Invalid, format!("Ganeti did not make {name}: {said}"));
        let see = || "to see the whole command: --dry-run".to_owned();
        return Err(error.hint(advice(&said).map_or_else(see, str::to_owned)).into());
    }
    if !plan.start.is_empty()
        && let Err(said) = tell(&plan.start)?
    {
        let error = ApiError::new(ErrorCode::Unreachable, format!("made {name}, which Ganeti did not start: {said}"));
        return Err(error.hint(format!("gnt-instance start {name}, or to undo it: gnt-instance remove {name}")).into());
    }
    context.output.show(&value, |_| format!("made {name} as {}", arguments.snapshot))
}

/// Runs a command of Ganeti's; what it says where it fails, without what it says of its progress.
fn tell(words: &[String]) -> Result<Result<(), String>, Failure> {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    let output = command.output().map_err(|error| Failure::of_file("run", words[0].as_ref(), &error))?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = said.lines().filter(|line| !line.contains(" - INFO: ") && !line.trim().is_empty()).collect();
    Ok(Err(lines.join("; ")))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

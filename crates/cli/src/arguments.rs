//! The command line as a whole: the global options and the commands, the commonest jobs first.

use std::net::SocketAddr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use serde::de::DeserializeOwned;
use types::ObjectPath;

use crate::command::{
    attach, bucket, clone, cluster, completion, fuse_front, ganeti, hydrate, import, indexer, login, materialize, node,
    publish, revert, snapshot, status, store, subscribe, task, volume,
};

/// Volumes, images and snapshots, delivered from whoever has them to where they run
///
/// brant takes a snapshot of a disk on one host, moves only what is new, and runs a clone of it on another host before
/// its data has arrived. Every command talks to the node of this host, which `brant node serve` starts.
///
/// Objects are named BUCKET/OBJECT[@VERSION], the latest version where none is given, or by snapshot id; volumes by name.
#[derive(Debug, Parser)]
#[command(name = "brant", version, max_term_width = 80, disable_help_subcommand = true, subcommand_required = true)]
#[command(after_long_help = "Examples:
  brant import web.qcow2 vms/web
  brant clone vms/web web1
  brant attach web1")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The node: its directory or its socket [default: /var/lib/brant for root, else ~/.local/share/brant]
    #[arg(long, global = true, env = "BRANT_NODE", hide_env_values = true, value_name = "PATH")]
    pub(crate) node: Option<String>,
    /// Print JSON: the values of the node's API, stable within a version of it
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Import(import::Arguments),
    Materialize(materialize::Arguments),
    Clone(clone::Arguments),
    Attach(attach::AttachArguments),
    Detach(attach::DetachArguments),
    Hydrate(hydrate::Arguments),
    Revert(revert::Arguments),
    Publish(publish::PublishArguments),
    Unpublish(publish::UnpublishArguments),
    Subscribe(subscribe::SubscribeArguments),
    Unsubscribe(subscribe::UnsubscribeArguments),
    Snapshot(snapshot::Arguments),
    Volume(volume::Arguments),
    Bucket(bucket::Arguments),
    Cluster(cluster::Arguments),
    Task(task::Arguments),
    Status(status::Arguments),
    Login(login::Arguments),
    Store(store::Arguments),
    Node(node::Arguments),
    Indexer(indexer::Arguments),
    Ganeti(ganeti::Arguments),
    Completion(completion::Arguments),
    #[command(hide = true)]
    FuseFront(fuse_front::Arguments),
}

/// Parses one of a few words into the API's value of that name.
pub(crate) fn choice<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| serde_json::from_value::<T>(serde_json::Value::String(word)))
}

/// Parses where a new version goes: `BUCKET/OBJECT`, without a version.
pub(crate) fn new_path(text: &str) -> Result<ObjectPath, String> {
    let path: ObjectPath = text.parse().map_err(|error: types::NameError| error.to_string())?;
    match path.version {
        None => Ok(path),
        Some(_) => Err(format!("the version is numbered by the node: write {}/{}", path.bucket, path.object)),
    }
}

/// Parses an address with a port.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write IP:PORT, such as 192.0.2.12:4701 or [2001:db8::2]:4701; no host names".to_owned())
}

/// Parses a length of time such as `30s` or `7d`, in milliseconds; a day has 24 hours.
pub(crate) fn milliseconds(text: &str) -> Result<u64, String> {
    let hint = || "write a time such as 500ms, 30s, 5min, 2h or 7d".to_owned();
    let span: jiff::Span = text.parse().map_err(|_| hint())?;
    let duration = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| hint())?;
    u64::try_from(duration.as_millis()).map_err(|_| hint())
}

/// As [`milliseconds`], but more than none.
pub(crate) fn some_milliseconds(text: &str) -> Result<u64, String> {
    match milliseconds(text)? {
        0 => Err("it has to be longer than nothing".to_owned()),
        ms => Ok(ms),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Every command that does something, with its path.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        if !command.has_subcommands() {
            found.push((path.to_owned(), command.clone()));
        }
        // Hidden ones are not for people.
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            leaves(inner, &format!("{path} {}", inner.get_name()), found);
        }
    }

    fn all() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        leaves(&Arguments::command(), "brant", &mut found);
        found
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_of_one_line_and_an_example_that_parses() {
        let commands = all();
        assert!(commands.len() >= 40, "{}", commands.len());
        for (path, mut command) in commands {
            let about = command.get_about().unwrap_or_else(|| panic!("{path} has no help")).to_string();
            assert!(about.len() <= 64 && !about.contains('\n') && !about.ends_with('.'), "{path}: {about}");
            let help = command.render_long_help().to_string();
            let (_, examples) =
                help.split_once("Example").unwrap_or_else(|| panic!("{path} shows no example:\n{help}"));
            let wide = examples.lines().find(|line| line.len() > 79);
            assert!(wide.is_none(), "{path}: a terminal would break {wide:?}, and half of it would run");
            let examples = examples.replace(" \\\n   ", "");
            let mut lines = examples.lines().map(str::trim).filter(|line| line.starts_with("brant ")).peekable();
            assert!(lines.peek().is_some_and(|line| line.starts_with(&path)), "{path}: {examples}");
            for line in lines {
                let parsed = Arguments::try_parse_from(words(line));
                assert!(parsed.is_ok(), "{line}\n{}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn every_option_has_help() {
        for (path, command) in all() {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
        }
    }

    #[test]
    fn commands_of_the_readme_parse() {
        let readme = include_str!("../../../README.md");
        let commands: Vec<&str> = readme
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("$ "))
            .filter(|line| line.starts_with("brant "))
            .collect();
        assert!(commands.len() >= 10, "{commands:?}");
        for line in commands {
            let parsed = Arguments::try_parse_from(words(line.trim_end_matches('&')));
            assert!(parsed.is_ok(), "{line}\n{}", parsed.unwrap_err());
        }
    }

    /// Splits a command's line as a shell would, without expansions, up to a redirection.
    fn words(line: &str) -> Vec<String> {
        let line = line.split(" > ").next().and_then(|line| line.split(" 2> ").next()).unwrap_or_default();
        let mut words = Vec::new();
        let mut quote = None;
        let mut word = String::new();
        for c in line.chars().chain([' ']) {
            match quote {
                Some(open) if c == open => quote = None,
                None if c == '"' || c == '\'' => quote = Some(c),
                None if c == ' ' => {
                    if !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                }
                _ => word.push(c),
            }
        }
        words
    }

    #[test]
    fn times_need_a_unit() {
        for (text, ms) in [("30s", 30_000), ("5min", 300_000), ("500ms", 500), ("7d", 604_800_000), ("2h", 7_200_000)] {
            assert_eq!(some_milliseconds(text), Ok(ms));
        }
        assert_eq!(milliseconds("0s"), Ok(0));
        for bad in ["", "30", "-3s", "0s", "soon", "1y"] {
            assert!(some_milliseconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_new_version_is_not_numbered_by_hand() {
        assert!(new_path("vms/web").is_ok());
        assert!(new_path("vms/web@3").unwrap_err().contains("write vms/web"));
        assert!(new_path("web").is_err());
    }
}

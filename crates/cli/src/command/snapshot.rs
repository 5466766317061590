//! `brant snapshot`: versions of objects, taken of volumes.

use std::time::Duration;

use clap::Subcommand;
use node::api::{Snapshot, SnapshotDetail, SnapshotState, TakeSnapshotRequest, TaskKind};
use types::{Name, ObjectPath};

use super::volume::missing;
use crate::arguments::new_path;
use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::{Table, pairs};
use crate::output::text::{ago, moment, size};
use crate::wait::{self, Interrupt};

/// How long to wait before looking again for a seal that is about to begin or to be recorded.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Take, list, show, compare and retire snapshots
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take a snapshot of volumes at one moment, as a new version
    ///
    /// Takes the same time for any size, also while the volumes are in use. It can be cloned and attached at once; it is
    /// published when it has been sealed, in the background.
    #[command(after_long_help = "Examples:
  brant snapshot create web1 vms/web -m 'after the upgrade'
  brant snapshot create db-data db-log vms/db --disk-names data,log --wait")]
    Create {
        /// The volumes
        #[arg(value_name = "VOLUME", required = true)]
        volumes: Vec<Name>,
        /// Where the new version goes
        #[arg(value_name = "BUCKET/OBJECT", required = true, value_parser = new_path)]
        path: ObjectPath,
        /// A note that is kept with the version
        #[arg(short, long, default_value = "", hide_default_value = true, value_name = "TEXT")]
        message: String,
        /// What the disks are called in the snapshot, as many names as volumes [default: the object's, or the volumes' names]
        #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
        disk_names: Vec<Name>,
        /// Wait until it is sealed
        #[arg(long)]
        wait: bool,
    },
    /// List the snapshots, of one bucket or of all
    #[command(after_long_help = "Examples:\n  brant snapshot list\n  brant snapshot list vms")]
    List {
        /// The bucket
        #[arg(value_name = "BUCKET")]
        bucket: Option<Name>,
    },
    /// Show a snapshot: its disks, and what of them is not here yet
    #[command(after_long_help = "Example:\n  brant snapshot show vms/web@3")]
    Show {
        /// BUCKET/OBJECT[@VERSION] or a snapshot id
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
    /// Tell where two disks differ, in chunks of 64 KiB
    ///
    /// Costs only what differs. What was not sealed yet is compared as well, and a volume with what is written to it now. What is elsewhere is not
    /// fetched: where it may differ, that is said. --json prints all extents.
    #[command(after_long_help = "Examples:
  brant snapshot diff vms/web@1 vms/web@2
  brant snapshot diff vms/web web1 --json")]
    Diff(super::difference::Arguments),
    /// Withdraw a version: it is offered to nobody any more
    ///
    /// Clones of it stay as they are.
    #[command(after_long_help = "Example:\n  brant snapshot retire vms/web@1")]
    Retire {
        /// BUCKET/OBJECT@VERSION or a snapshot id
        #[arg(value_name = "SNAPSHOT")]
        snapshot: String,
    },
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let (client, output) = (&context.client, context.output);
    match arguments.verb {
        Verb::Create { volumes, path, message, disk_names, wait } => {
            let request =
                TakeSnapshotRequest { volumes, path: path.to_string(), message, disks: disk_names, machine: None };
            let mut snapshot = client.take_snapshot(&request).await?;
            if wait {
                snapshot = until_sealed(context, snapshot).await?;
            }
            output.show(&snapshot, |_| {
                let after = if snapshot.state == SnapshotState::Sealing { "; sealing in the background" } else { "" };
                format!("took {}, {}{after}", path_of(&snapshot), size(snapshot.size_bytes))
            })
        }
        Verb::List { bucket } => {
            let snapshots = client.snapshots(bucket.as_ref().map(Name::as_str)).await?;
            let empty = "no snapshots; make one with: brant import SOURCE BUCKET/OBJECT, or brant snapshot create";
            output.list(&snapshots, empty, |view| list(&snapshots, view))
        }
        Verb::Show { snapshot } => {
            let detail = client.snapshot(&snapshot).await?;
            output.show(&detail, |view| show(&detail, view))
        }
        Verb::Diff(arguments) => super::difference::run(context, arguments).await,
        Verb::Retire { snapshot } => {
            let retired = client.retire_snapshot(&snapshot).await?;
            output.done(&retired, &format!("retired {snapshot}"))
        }
    }
}

/// Waits until a snapshot is sealed, by the task that does that.
pub(super) async fn until_sealed(context: &Context, mut snapshot: Snapshot) -> Outcome<Snapshot> {
    let path = path_of(&snapshot);
    while snapshot.state == SnapshotState::Sealing {
        let tasks = context.client.tasks().await?;
        let seal = tasks.into_iter().filter(|task| task.kind == TaskKind::Seal && task.subject == path);
        if let Some(task) = seal.max_by_key(|task| task.id) {
            wait::until_end(context, task, Interrupt::Leaves).await?;
        }
        snapshot = context.client.snapshot(&path).await?.snapshot;
        if snapshot.state == SnapshotState::Sealing {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    Ok(snapshot)
}

/// A snapshot's name with its version.
pub(super) fn path_of(snapshot: &Snapshot) -> String {
    format!("{}/{}@{}", snapshot.bucket, snapshot.object, snapshot.version)
}

const fn state_word(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Sealing => "sealing",
        SnapshotState::Sealed => "sealed",
        SnapshotState::Retired => "retired",
    }
}

fn list(snapshots: &[Snapshot], view: View) -> String {
    let mut table =
        Table::new().texts("SNAPSHOT").numbers("SIZE").words("STATE").words("TAKEN").words("ID").texts("MESSAGE");
    for snapshot in snapshots {
        table.row([
            path_of(snapshot),
            size(snapshot.size_bytes),
            state_word(snapshot.state).to_owned(),
            ago(snapshot.taken_ms, view.now_ms),
            snapshot.id.map_or_else(|| "-".to_owned(), |id| id.short()),
            snapshot.message.clone(),
        ]);
    }
    table.render(view.width)
}

fn show(detail: &SnapshotDetail, view: View) -> String {
    let snapshot = &detail.snapshot;
    let mut facts = vec![
        ("snapshot", path_of(snapshot)),
        ("id", snapshot.id.map_or_else(|| "none until it is sealed".to_owned(), |id| id.to_string())),
        ("state", state_word(snapshot.state).to_owned()),
        ("taken", moment(snapshot.taken_ms, view.now_ms)),
        ("size", size(snapshot.size_bytes)),
    ];
    if !snapshot.message.is_empty() {
        facts.push(("message", snapshot.message.clone()));
    }
    if let Some(machine) = &detail.machine {
        facts.push(("machine", machine.media_type.clone()));
    }
    if let Some(base) = detail.base {
        facts.push(("base", base.to_string()));
    }
    let mut text = pairs(&facts);
    for disk in &detail.disks {
        text.push_str(&format!("\ndisk {}\n", disk.name));
        text.push_str(&pairs(&[
            ("  size", size(disk.size_bytes)),
            ("  missing", missing(&disk.missing)),
            ("  root", disk.root.clone().unwrap_or_else(|| "none".to_owned())),
        ]));
    }
    text
}

#[cfg(test)]
mod tests {
    use node::api::{DiskDetail, Missing};
    use types::SnapshotId;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    fn snapshot(version: u64, id: Option<SnapshotId>, state: SnapshotState) -> Snapshot {
        Snapshot {
            bucket: "vms".parse().unwrap(),
            object: "web".parse().unwrap(),
            version,
            id,
            state,
            size_bytes: 10 << 30,
            taken_ms: 1_763_877_012_000,
            message: "before the upgrade to the next release of everything".to_owned(),
            scheduled: false,
        }
    }

    #[test]
    fn a_list_fits_and_shortens_the_note() {
        let sealed = snapshot(11, Some(SnapshotId([0xcd; 32])), SnapshotState::Sealed);
        let view = View { width: Some(80), now_ms: 1_763_877_132_000 };
        let text = list(&[sealed, snapshot(12, None, SnapshotState::Sealing)], view);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("vms/web@11  10 GiB  sealed   2 min ago  cdcdcdcdcd  before"), "{text}");
        assert!(text.contains("vms/web@12  10 GiB  sealing  2 min ago  -"), "{text}");
    }

    #[test]
    fn details_show_every_disk() {
        let disk = DiskDetail {
            name: "root".parse().unwrap(),
            size_bytes: 10 << 30,
            root: None,
            missing: Missing { chunks: 2, bytes: 131_072, nodes: 0 },
        };
        let detail = SnapshotDetail {
            snapshot: snapshot(1, None, SnapshotState::Sealing),
            base: None,
            disks: vec![disk],
            machine: None,
        };
        let text = show(&detail, View { width: Some(80), now_ms: 1_763_877_012_000 });
        assert!(text.contains("taken     2025-11-23 05:50:12 UTC (just now)\n"), "{text}");
        assert!(
            text.ends_with("\ndisk root\n  size     10 GiB\n  missing  128 KiB in 2 chunks\n  root     none\n"),
            "{text}"
        );
    }
}

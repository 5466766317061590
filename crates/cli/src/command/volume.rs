//! `brant volume`: writable disks on this node.

use std::time::Duration;

use clap::Subcommand;
use node::api::{
    CreateVolumeRequest, DeletedVolume, ErrorCode, LabelRequest, Missing, ProtectRequest, ResizeRequest,
    RestoreRequest, Rewind, Volume, VolumeDetail,
};
use types::{ByteSize, Name, VolumeId};

use super::replica;
use crate::arguments::some_milliseconds;
use crate::context::Context;
use crate::failure::Outcome;
use crate::output::View;
use crate::output::table::{Table, pairs};
use crate::output::text::{ago, ahead, count, moment, size, span};
use crate::wait::{self, Detach};

/// Make, list, show, grow and remove volumes: writable thin disks
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make an empty volume
    ///
    /// It takes room only for what is written to it. To begin with a snapshot's content, see `brant clone`.
    #[command(after_long_help = "Example:\n  brant volume create scratch --size 10GiB")]
    Create {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// Its size, such as 10GiB; a multiple of 512 bytes, at most 64TiB
        #[arg(long)]
        size: ByteSize,
        /// A text that is kept with it, by a key; may be repeated
        #[arg(long = "label", value_name = "KEY=TEXT", value_parser = label)]
        labels: Vec<(Name, String)>,
    },
    /// List the volumes, or the deleted ones that are still kept
    #[command(after_long_help = "Examples:\n  brant volume list\n  brant volume list --deleted")]
    List {
        /// The deleted ones, which can be taken back with `brant volume restore`
        #[arg(long)]
        deleted: bool,
    },
    /// Show a volume, and what of it is not here yet
    #[command(after_long_help = "Example:\n  brant volume show web1")]
    Show {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
    },
    /// Make a volume larger, also while it is in use
    ///
    /// What is added reads as zeroes. A volume never shrinks. A guest sees the new size when its connection can be told, else when it
    /// attaches again.
    #[command(after_long_help = "Example:\n  brant volume resize scratch --size 20GiB")]
    Resize {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// Its new size, such as 20GiB; a multiple of 512 bytes, at most 64TiB
        #[arg(long)]
        size: ByteSize,
    },
    /// Delete a volume; it is kept for a while and can be taken back
    ///
    /// Its name is free at once. The node keeps it for 7 days, unless it was started with another --keep-deleted; until then `brant volume
    /// restore` takes it back. Snapshots that were taken of it stay in any case. One that is attached is not deleted.
    #[command(after_long_help = "Examples:
  brant volume remove scratch
  brant volume remove scratch --now
  brant volume remove 3f0c5e7a19 --now")]
    Remove {
        /// Its name; with --now also the id of one that is deleted already, or the first digits of that
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// Delete it for good, and give its space back at once
        #[arg(long)]
        now: bool,
    },
    /// Keep texts with a volume, by key
    ///
    /// They mean nothing to brant: who drives it finds volumes by them. They last as long as the volume can be taken back.
    #[command(after_long_help = "Examples:
  brant volume label web1 owner=alice ticket=4711
  brant volume label web1 --remove ticket")]
    Label {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// What is kept, by key
        #[arg(value_name = "KEY=TEXT", value_parser = label, required_unless_present = "remove")]
        labels: Vec<(Name, String)>,
        /// A key that is kept no more; may be repeated
        #[arg(long, value_name = "KEY")]
        remove: Vec<Name>,
    },
    /// Keep what is written, so that any moment of it can be cloned
    ///
    /// From now on, and for so long. `brant clone VOLUME@'10 minutes ago' NAME` makes a volume that is what this one was then, to the second and
    /// finer. It costs the space of what is written meanwhile, which `brant volume show` tells; where that is bounded, the oldest goes first.
    #[command(after_long_help = "Examples:
  brant volume protect web1 --for 2h
  brant volume protect web1 --for 7d --space 20GiB
  brant volume protect web1 --off")]
    Protect {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// For how long, such as 2h or 7d
        #[arg(long = "for", value_name = "TIME", value_parser = some_milliseconds, required_unless_present = "off")]
        for_ms: Option<u64>,
        /// In how much space at most
        #[arg(long, value_name = "SIZE")]
        space: Option<ByteSize>,
        /// Keep nothing any more, and give the space back
        #[arg(long, conflicts_with_all = ["for_ms", "space"])]
        off: bool,
    },
    /// Take snapshots by itself, and keep some of them
    ///
    /// At the beginning of each hour (`--every 1h`), day, or whatever is said, in UTC; what was missed while the node was down is made up for
    /// once. None is taken while nothing was written since the last one. Of those that it took itself, and of no others, the schedule withdraws
    /// what `--keep` does not name. Volumes whose snapshots go to one object are snapshotted together. Without options it shows the schedule of
    /// a volume, or all of them.
    #[command(after_long_help = "Examples:
  brant volume schedule web1 --every 1h --into vms/web1 --keep 24h,7d,4w
  brant volume schedule db-data db-log --every 15min --into vms/db --keep 8,24h
  brant volume schedule
  brant volume schedule web1 --off")]
    Schedule(super::schedule::Arguments),
    /// Take a volume from the member of the cluster that has it
    ///
    /// It may be in use here meanwhile, and nowhere else: the task waits until nobody uses it there. At first all of it is fetched, then what was
    /// written meanwhile; then requests wait for a moment while it changes its home. There, it is kept for a while as a deleted volume.
    /// Goes on by itself after a node was restarted.
    #[command(after_long_help = "Examples:
  brant volume take web1
  brant volume take web1 --detach")]
    Take {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
        #[command(flatten)]
        detach: Detach,
    },
    /// Have another member keep a replica that can take over
    ///
    /// The member gets all of the volume, then every change. With --mode sync nothing is answered before the replica has it: its loss of a home
    /// loses nothing, and while the replica is away writes wait, unless a --witness has recorded that it is left behind. With --mode async
    /// nothing waits, and at most --lag is lost.
    #[command(after_long_help = "Examples:
  brant volume replicate web1 node2 --mode sync --witness node3
  brant volume replicate web1 node2 --mode async --lag 16MiB
  brant volume replicate web1 --stop")]
    Replicate(replica::Replicate),
    /// List the replicas that are kept here
    #[command(after_long_help = "Examples:\n  brant volume replicas\n  brant volume replicas --remove web1")]
    Replicas {
        /// Remove the replica of a volume that does not exist any more
        #[arg(long, value_name = "VOLUME")]
        remove: Option<Name>,
    },
    /// Make the replica here the volume, as its home is gone
    ///
    /// Refused where the home answers, and where something that was answered could be lost: --accept-loss takes that. When the old home comes
    /// back, it lets the volume go, keeps what was there as a deleted volume, and becomes the replica.
    #[command(after_long_help = "Examples:
  brant volume promote web1
  brant volume promote web1 --accept-loss")]
    Promote {
        /// Its name
        #[arg(value_name = "VOLUME")]
        volume: Name,
        /// What was written last may be lost
        #[arg(long)]
        accept_loss: bool,
    },
    /// Take a deleted volume back
    ///
    /// The latest of a name is meant; an older one is named by its id, or the first digits of it, which `brant volume list --deleted` shows.
    #[command(after_long_help = "Examples:
  brant volume restore scratch
  brant volume restore 3f0c5e7a19 --as scratch-before")]
    Restore {
        /// The name that it had, or its id
        #[arg(value_name = "VOLUME|ID")]
        volume: Name,
        /// The name that it gets
        #[arg(long = "as", value_name = "NAME")]
        name: Option<Name>,
    },
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Outcome {
    let (client, output) = (&context.client, context.output);
    match arguments.verb {
        Verb::Create { volume, size: size_bytes, labels } => {
            let labels = labels.into_iter().collect();
            let volume = client.create_volume(&CreateVolumeRequest { name: volume, size_bytes, labels }).await?;
            output.show(&volume, |_| format!("made the volume {}, {}", volume.name, size(volume.size_bytes)))?;
            output.note(&format!("use it with: brant attach {}", volume.name));
            Ok(())
        }
        Verb::List { deleted: true } => {
            let deleted = client.deleted_volumes().await?;
            output.list(&deleted, "no deleted volumes are kept", |view| list_deleted(&deleted, view))
        }
        Verb::List { deleted: false } => {
            let volumes = client.volumes().await?;
            let empty = "no volumes; make one with: brant clone SNAPSHOT VOLUME, or brant volume create";
            output.list(&volumes, empty, |view| list(&volumes, view))
        }
        Verb::Show { volume } => {
            let detail = client.volume(volume.as_str()).await?;
            output.show(&detail, |view| show(&detail, view))
        }
        Verb::Resize { volume, size: size_bytes } => {
            let volume = client.resize_volume(volume.as_str(), &ResizeRequest { size_bytes }).await?;
            output.show(&volume, |_| format!("the volume {} has {} now", volume.name, size(volume.size_bytes)))
        }
        Verb::Label { volume, labels, remove } => {
            let set = labels.into_iter().map(|(key, text)| (key, Some(text)));
            let labels = set.chain(remove.into_iter().map(|key| (key, None))).collect();
            let volume = client.label_volume(volume.as_str(), &LabelRequest { labels }).await?;
            output.show(&volume, |_| format!("the volume {} has the labels: {}", volume.name, labels_of(&volume)))
        }
        Verb::Protect { volume, for_ms: Some(for_ms), space, .. } => {
            let request = ProtectRequest { for_ms, space_bytes: space };
            let detail = client.protect_volume(volume.as_str(), &request).await?;
            let kept = span(Duration::from_millis(for_ms));
            output.show(&detail, |_| format!("what is written to {volume} is kept for {kept}"))?;
            output.note(&format!("clone a moment of it with: brant clone {volume}@'10 minutes ago' NAME"));
            Ok(())
        }
        Verb::Protect { volume, .. } => {
            let detail = client.unprotect_volume(volume.as_str()).await?;
            output.show(&detail, |_| format!("nothing is kept of the past of {volume} any more"))
        }
        Verb::Schedule(arguments) => super::schedule::run(context, arguments).await,
        Verb::Take { volume, detach } => {
            let task = client.take_volume(volume.as_str()).await?;
            wait::finish(context, task, detach).await
        }
        Verb::Replicate(arguments) => replica::replicate(context, arguments).await,
        Verb::Replicas { remove } => replica::list(context, remove).await,
        Verb::Promote { volume, accept_loss } => replica::promote(context, &volume, accept_loss).await,
        Verb::Remove { volume, now } => remove(context, &volume, now).await,
        Verb::Restore { volume: deleted, name } => {
            let volume = client.restore_volume(deleted.as_str(), &RestoreRequest { name }).await?;
            output.show(&volume, |_| format!("the volume {} is back, {}", volume.name, size(volume.size_bytes)))
        }
    }
}

/// Parses a label: a key, and what it says.
pub(super) fn label(text: &str) -> Result<(Name, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=TEXT"))?;
    Ok((key.parse().map_err(|error: types::NameError| error.to_string())?, value.to_owned()))
}

fn labels_of(volume: &Volume) -> String {
    let labels: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "none".to_owned() } else { labels.join(" ") }
}

async fn remove(context: &Context, volume: &Name, now: bool) -> Outcome {
    let (client, output) = (&context.client, context.output);
    if !now {
        let removed = client.remove_volume(volume.as_str(), false).await?;
        output.done(&removed, &format!("deleted the volume {volume}"))?;
        output.note(&format!("take it back with: brant volume restore {volume}"));
        return Ok(());
    }
    let removed = match client.remove_volume(volume.as_str(), true).await {
        // It may be deleted already. By name that would be a guess: an id says which one is meant.
        Err(error) if error.code == ErrorCode::NotFound && is_id(volume.as_str()) => {
            client.purge_volume(volume.as_str()).await?
        }
        outcome => outcome?,
    };
    output.done(&removed, &format!("the volume {volume} is gone for good"))
}

/// Whether a text can be the first digits of an id.
fn is_id(text: &str) -> bool {
    text.len() >= 6 && text.bytes().all(|c| c.is_ascii_hexdigit())
}

fn list_deleted(volumes: &[DeletedVolume], view: View) -> String {
    let mut table = Table::new()
        .words("VOLUME")
        .words("ID")
        .numbers("SIZE")
        .numbers("JOURNALS")
        .words("DELETED")
        .words("KEPT FOR")
        .texts("WHY");
    for volume in volumes {
        table.row([
            volume.name.to_string(),
            VolumeId::short(&volume.id),
            size(volume.size_bytes),
            size(volume.journal_bytes),
            ago(volume.deleted_ms, view.now_ms),
            ahead(volume.expires_ms, view.now_ms),
            volume.note.clone(),
        ]);
    }
    table.render(view.width)
}

fn list(volumes: &[Volume], view: View) -> String {
    let mut table = Table::new().words("VOLUME").numbers("SIZE").numbers("UNSEALED").texts("ORIGIN").texts("ATTACHED");
    for volume in volumes {
        table.row([
            volume.name.to_string(),
            size(volume.size_bytes),
            size(volume.dirty_bytes),
            volume.origin.clone().unwrap_or_else(|| "-".to_owned()),
            attached(volume),
        ]);
    }
    table.render(view.width)
}

fn attached(volume: &Volume) -> String {
    if volume.attached.is_empty() { "-".to_owned() } else { volume.attached.join(" ") }
}

fn show(detail: &VolumeDetail, view: View) -> String {
    let volume = &detail.volume;
    let counted = |bytes: Option<u64>, what: &str| {
        bytes.map_or_else(|| "too much to count".to_owned(), |bytes| format!("{} of its tree {what}", size(bytes)))
    };
    let journals = format!("{} in {}", size(detail.journal_bytes), count(detail.layers, "layer"));
    let journals = match detail.own_journal_bytes {
        own if own == detail.journal_bytes => journals,
        own => format!("{journals}, {} of it only here", size(own)),
    };
    let clients = match detail.clients {
        0 => String::new(),
        clients => format!(" ({})", count(clients, "client")),
    };
    let (rewind, kept) = rewind(detail.rewind, view);
    pairs(&[
        ("volume", volume.name.to_string()),
        ("id", volume.id.to_string()),
        ("home", volume.home.clone().unwrap_or_else(|| "here".to_owned())),
        ("size", size(volume.size_bytes)),
        ("origin", volume.origin.clone().unwrap_or_else(|| "none".to_owned())),
        ("shared", counted(detail.shared_bytes, "that snapshots or other volumes hold too")),
        ("own", counted(detail.own_bytes, "that nothing else here holds")),
        ("unsealed", format!("{} written that no sealed snapshot holds", size(volume.dirty_bytes))),
        ("missing", missing(&detail.missing)),
        ("journals", format!("{journals}; folded beyond {}", size(detail.journal_limit_bytes))),
        ("replica", replica::replicated(volume.replication.as_ref())),
        ("rewind", rewind),
        ("kept", kept),
        ("schedule", super::schedule::line(detail.schedule.as_ref(), view)),
        ("root", detail.root.clone().unwrap_or_else(|| "none: nothing but holes".to_owned())),
        ("attached", format!("{}{clients}", attached(volume))),
        ("labels", labels_of(volume)),
    ])
}

/// Which moments can be cloned, and what is kept for that.
fn rewind(rewind: Option<Rewind>, view: View) -> (String, String) {
    let Some(rewind) = rewind else { return ("off; see: brant volume protect".to_owned(), "nothing".to_owned()) };
    let most = rewind.space_bytes.map(|most| format!(", in at most {}", size(most))).unwrap_or_default();
    let kept = span(Duration::from_millis(rewind.for_ms));
    let kept = format!("{} of journals for that; for {kept}{most}", size(rewind.bytes));
    (format!("to any moment since {}", moment(rewind.from_ms, view.now_ms)), kept)
}

/// What is not here, for people.
pub(super) fn missing(missing: &Missing) -> String {
    if missing.chunks == 0 && missing.nodes == 0 {
        return "nothing: all of it is here".to_owned();
    }
    let mut text = format!("{} in {}", size(missing.bytes), count(missing.chunks, "chunk"));
    if missing.nodes > 0 {
        text.push_str(&format!(", and all that lies below {}", count(missing.nodes, "absent tree node")));
    }
    text
}

#[cfg(test)]
mod tests {
    use types::VolumeId;
    use unicode_width::UnicodeWidthStr as _;

    use super::*;

    fn volume() -> Volume {
        Volume {
            name: "web1".parse().unwrap(),
            id: VolumeId([7; 16]),
            size_bytes: 10 << 30,
            origin: Some("virtual-machines/web@12".to_owned()),
            dirty_bytes: 3 << 19,
            attached: vec!["nbd+unix:///web1?socket=/var/lib/brant/nbd/web1.sock".to_owned()],
            labels: [("owner".parse().unwrap(), "alice".to_owned())].into(),
            replication: None,
            home: None,
        }
    }

    #[test]
    fn a_list_fits() {
        let text = list(&[volume()], View { width: Some(80), now_ms: 0 });
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("web1    10 GiB   1.5 MiB  virtual-machines/web@12"), "{text}");
    }

    #[test]
    fn a_list_of_deleted_volumes_fits_and_says_for_how_long() {
        let deleted = DeletedVolume {
            name: "web1".parse().unwrap(),
            id: VolumeId([7; 16]),
            size_bytes: 10 << 30,
            note: "before it was reverted to virtual-machines/web@12".to_owned(),
            deleted_ms: 1_763_877_012_000,
            expires_ms: 1_763_877_012_000 + 7 * 86_400_000,
            journal_bytes: 3 << 19,
        };
        let view = View { width: Some(80), now_ms: 1_763_877_012_000 + 3_600_000 };
        let text = list_deleted(&[deleted], view);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("web1    0707070707  10 GiB   1.5 MiB  1 h ago  6 d       before it"), "{text}");
    }

    #[test]
    fn a_label_is_a_key_and_a_text() {
        assert_eq!(label("owner=a=b"), Ok(("owner".parse().unwrap(), "a=b".to_owned())));
        assert!(label("owner").is_err() && label("=x").is_err() && label("a b=x").is_err());
    }

    #[test]
    fn only_digits_stand_for_an_id() {
        assert!(is_id("3f0c5e7a19") && !is_id("web-abc") && !is_id("abc"));
    }

    #[test]
    fn what_is_missing_is_never_called_nothing_while_nodes_are_absent() {
        assert_eq!(missing(&Missing::default()), "nothing: all of it is here");
        let one = Missing { chunks: 1, bytes: 65536, nodes: 0 };
        assert_eq!(missing(&one), "64 KiB in 1 chunk");
        let unknown = Missing { chunks: 0, bytes: 0, nodes: 2 };
        assert_eq!(missing(&unknown), "0 B in 0 chunks, and all that lies below 2 absent tree nodes");
    }

    #[test]
    fn details_fit_too() {
        let detail = VolumeDetail {
            volume: volume(),
            missing: Missing { chunks: 163_840, bytes: 10 << 30, nodes: 641 },
            shared_bytes: Some(480 << 20),
            own_bytes: Some(32 << 20),
            journal_bytes: 2 << 20,
            own_journal_bytes: 1 << 20,
            journal_limit_bytes: 1 << 30,
            rewind: Some(Rewind {
                for_ms: 5_400_000,
                space_bytes: Some(20 << 30),
                from_ms: 1_763_877_012_000,
                bytes: 3 << 29,
            }),
            schedule: None,
            clients: 1,
            layers: 2,
            root: Some("ab".repeat(32)),
        };
        let view = View { width: Some(80), now_ms: 1_763_877_612_000 };
        let text = show(&detail, view);
        assert!(text.lines().all(|line| line.width() <= 80), "{text}");
        assert!(text.contains("shared    480 MiB of its tree that snapshots or other volumes hold too\n"), "{text}");
        assert!(text.contains("own       32 MiB of its tree that nothing else here holds\n"), "{text}");
        let journals = "journals  2 MiB in 2 layers, 1 MiB of it only here; folded beyond 1 GiB\n";
        assert!(text.contains(journals), "{text}");
        assert!(text.contains("web1.sock (1 client)\n"), "{text}");
        assert!(text.ends_with("labels    owner=alice\n"), "{text}");
        assert!(text.contains("rewind    to any moment since 2025-11-23 05:50:12 UTC (10 min ago)\n"), "{text}");
        let kept = "kept      1.5 GiB of journals for that; for 1 h 30 min, in at most 20 GiB\n";
        assert!(text.contains(kept), "{text}");
        let unknown = show(&VolumeDetail { shared_bytes: None, own_bytes: None, rewind: None, ..detail }, view);
        assert!(unknown.contains("rewind    off;"), "{unknown}");
        assert!(unknown.contains("own       too much to count\n"), "{unknown}");
    }
}
